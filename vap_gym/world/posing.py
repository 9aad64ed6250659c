"""A first picture with the robot and the things in it elsewhere: made of its own pixels, without imagining anything.

The robot is drawn as its surface, each point in the colour that the first picture shows of it, or in its usual colour
under that picture's light. A thing is drawn as a cut-out that faces the camera. What is nearer hides what is farther.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from vap_gym.world.appearance import FirstSight, RobotAppearance, lit
from vap_gym.world.surfels import FAR_M, intrinsics, looked_at, seen_points, widened
from vap_gym.world.views import on_plane, project

HIDDEN_M = 0.03  # a point so far behind what is seen in its pixel is hidden
ALL_AROUND = 0.99  # of the nine pixels
RIM = 0.7  # a point is drawn a little larger than it is: so much of a pixel at the surface's rim is robot
REACH_PX = 24  # no cut-out is larger than twice this
LEAST_PX, LEAST_RAD, LEAST_SCALE = 0.3, 0.04, 0.01  # what has moved less is left as it was: sharp


class Posed(NamedTuple):
    """The picture, in [−1, 1], and how far each pixel is: the robot as it was seen, the robot as it looks in general,
    a thing, background that was hidden at first."""

    picture: Float[Tensor, "B 3 H W"]
    source: Float[Tensor, "B 4 H W"]


class Canvas(NamedTuple):
    """A picture that is being drawn: its pixels, how far they are a thing, how far away that is, in m."""

    picture: Float[Tensor, "B 3 H W"]
    thing: Float[Tensor, "B 1 H W"]
    depth_m: Float[Tensor, "B 1 H W"]


@torch.no_grad()
def posed_picture(
    appearance: RobotAppearance,
    sight: FirstSight,
    place_m: Float[Tensor, "B K 3"],
    turn: Float[Tensor, "B K 3 3"],
    views: Float[Tensor, "B L 3 4"],
    *,
    base: int = 0,
) -> Posed:
    """Return the first picture with its things in other places, and the robot in another pose.

    Args:
        appearance, sight: of the robot, and of the first picture.
        place_m, turn: where the things' centres shall be, in the robot's base frame; how they are turned since.
        views: of the robot's links as they shall be.
        base: which link is the robot's base.
    """
    nothing = torch.zeros_like(sight.mask)
    if views.shape[1] <= base:
        return Posed(sight.plate, torch.cat([nothing, nothing, nothing, sight.filled], 1))
    canvas, filled = things_drawn(sight, place_m, turn, views, base)
    if not appearance.knows(views):
        return Posed(canvas.picture, torch.cat([nothing, nothing, canvas.thing, filled * (1.0 - canvas.thing)], 1))
    surfels, (_, _, height, width) = appearance.surfels, sight.plate.shape
    seen = seen_points(surfels, views, (height, width))
    near = widened(surfels, seen)  # the mask, not the surface, says where the robot ends
    front = (near.point >= 0) & (near.depth_m < canvas.depth_m)[:, 0]
    which, y, x = front.nonzero(as_tuple=True)
    point = near.point[which, y, x]
    here, _ = looked_at(surfels, views, which, point)
    there, far = looked_at(surfels, sight.views, which, point)
    past = sampled(torch.cat([sight.picture, sight.mask], 1), which, there + torch.stack([x, y], -1) + 0.5 - here)
    shown = (there > 0).all(-1) & (there < there.new_tensor([width, height])).all(-1) & (far > 0)
    u, v = (there[:, i].clamp(0, size - 1).long() for i, size in ((0, width), (1, height)))
    shown &= far < sight.depth_m[which, 0, v, u] + HIDDEN_M
    shown = (shown & ~_behind_things(sight, base, which, u, v, far))[:, None]
    inside = F.avg_pool2d((seen.point >= 0)[:, None].float(), 3, 1, 1)[which, 0, y, x][:, None] > ALL_AROUND
    shown &= ~inside | (past[:, 3:] > 0.5)  # the robot must be here: where its mask says no, it was mistaken or hidden
    colour, new = past[:, :3].clone(), ~shown[:, 0]
    colour[new] = lit(appearance, sight.light, views, which[new], point[new])
    alpha = torch.where(shown, past[:, 3:], RIM * (seen.point[which, y, x] >= 0)[:, None].to(past))
    alpha = torch.where(inside, 1.0, alpha)
    posed = canvas.picture.clone()
    posed[which, :, y, x] = torch.lerp(posed[which, :, y, x], colour, alpha)
    source = torch.cat([nothing, nothing, canvas.thing, filled * (1.0 - canvas.thing)], 1)
    source[which, :, y, x] = torch.cat([alpha * shown, alpha * ~shown, source[which, 2:, y, x] * (1.0 - alpha)], 1)
    return Posed(posed, source)


def cell_means(values: Float[Tensor, "B C H W"], size: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """Return means over the pixels of each cell."""
    return F.avg_pool2d(values, values.shape[-1] // size[1])


def things_drawn(
    sight: FirstSight,
    place_m: Float[Tensor, "B K 3"],
    turn: Float[Tensor, "B K 3 3"],
    views: Float[Tensor, "B L 3 4"],
    base: int,
) -> tuple[Canvas, Float[Tensor, "B 1 H W"]]:
    """Return the background of a first picture with its things where they shall be, and where it is filled in.

    A cut-out is shifted, scaled as its distance tells, and turned as far as its thing turns about the optical axis.
    """
    before, far_before = project(sight.views[:, base], sight.things_m)
    now, far = project(views[:, base], place_m)
    scale = far_before / far.clamp_min(0.05)
    angle = _angle(turn, views, base)
    away = (now - before).norm(dim=-1) > LEAST_PX
    away |= (angle.abs() > LEAST_RAD) | ((scale - 1.0).abs() > LEAST_SCALE)
    rests = _at_owner(sight, sight.there & ~away)
    depth = torch.where(rests, _at_owner(sight, far_before), FAR_M)
    plate, filled = background_seen(sight, views, base)
    canvas = Canvas(torch.where(rests, sight.picture, plate), rests.to(sight.plate), depth)
    for k in (sight.there & away).any(0).nonzero()[:, 0].tolist():
        which = (sight.there & away)[:, k].nonzero()[:, 0]
        _cut_out(canvas, sight, k, which, *(x[which, k] for x in (before, now, scale, angle, far)))
    return canvas, filled


def background_seen(
    sight: FirstSight, views: Float[Tensor, "B L 3 4"], base: int
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 1 H W"]]:
    """Return the first picture's background as the camera sees it now, and where it is filled in.

    Where a camera has moved, the background is taken for the table's plane (z = 0 of the base), and what is above the
    horizon for infinitely far; what comes into the picture is as its nearest edge.
    """
    P, P_first = views[:, base], sight.views[:, base]
    moved = (P_first != P).flatten(1).any(1)
    if not bool(moved.any()):
        return sight.plate, sight.filled
    height, width = sight.plate.shape[-2:]
    y, x = torch.meshgrid(*(torch.arange(n, device=P.device) + 0.5 for n in (height, width)), indexing="ij")
    pixel = torch.stack([x, y], -1).reshape(1, -1, 2).expand(len(P), -1, -1)
    there, far = project(P_first, on_plane(P, pixel, torch.zeros_like(pixel[..., 0])))
    size = there.new_tensor([width, height])
    inside = ((there > 0) & (there < size)).all(-1) & (far > 0)
    grid = (2.0 * there / size - 1.0).unflatten(1, (height, width)).clamp(-2.0, 2.0)
    looked = F.grid_sample(torch.cat([sight.plate, sight.filled], 1), grid, padding_mode="border", align_corners=False)
    new = torch.maximum(looked[:, 3:], 1.0 - inside.to(looked).unflatten(1, (1, height, width)))
    row = moved[:, None, None, None]
    return torch.where(row, looked[:, :3], sight.plate), torch.where(row, new, sight.filled)


def _cut_out(
    canvas: Canvas,
    sight: FirstSight,
    k: int,
    which: Int64[Tensor, " N"],
    before: Float[Tensor, "N 2"],
    now: Float[Tensor, "N 2"],
    scale: Float[Tensor, " N"],
    angle: Float[Tensor, " N"],
    far_m: Float[Tensor, " N"],
) -> None:
    """Draw thing k of some pictures into the canvas."""
    _, _, height, width = canvas.picture.shape
    steps = torch.arange(-REACH_PX, REACH_PX, device=now.device)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    pixel = now.floor().long()[:, None] + torch.stack([x, y], -1).reshape(1, -1, 2)
    off = (pixel + 0.5 - now[:, None]) / scale[:, None, None]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    back = torch.stack([cos * off[..., 0] + sin * off[..., 1], cos * off[..., 1] - sin * off[..., 0]], -1)
    source = before[:, None] + back
    size = pixel.new_tensor([width, height])
    inside = ((pixel >= 0) & (pixel < size) & (source > 0) & (source < size)).all(-1)
    row, _ = inside.nonzero(as_tuple=True)
    pixel, source, picture = pixel[inside], source[inside], which[row]
    alpha = sight.alpha * (sight.owner == k + 1)
    values = sampled(torch.cat([sight.picture, alpha[:, None]], 1), picture, source)
    u, v = pixel.unbind(-1)
    nearer = (far_m[row] < canvas.depth_m[picture, 0, v, u])[:, None]
    share = values[:, 3:] * nearer
    canvas.picture[picture, :, v, u] = torch.lerp(canvas.picture[picture, :, v, u], values[:, :3], share)
    canvas.thing[picture, :, v, u] = torch.maximum(canvas.thing[picture, :, v, u], share)
    solid = share[:, 0] > 0.5
    canvas.depth_m[picture[solid], 0, v[solid], u[solid]] = far_m[row][solid]


def _angle(turn: Float[Tensor, "B K 3 3"], views: Float[Tensor, "B L 3 4"], base: int) -> Float[Tensor, "B K"]:
    """How far a rotation of the base frame turns the picture of what it turns, x towards y."""
    R = torch.linalg.solve(intrinsics(views), views[:, base : base + 1, :, :3])  # R_camera_base
    seen = R @ turn @ R.mT
    return torch.atan2(seen[..., 1, 0] - seen[..., 0, 1], seen[..., 0, 0] + seen[..., 1, 1])


def _at_owner(sight: FirstSight, values: Tensor) -> Tensor:
    """Of each pixel, the value (B, K) of the thing that owns it; 0 where none does. Shape (B, 1, H, W)."""
    table = torch.cat([torch.zeros_like(values[:, :1]), values], 1)
    return table.gather(1, sight.owner.flatten(1).long()).reshape(len(values), 1, *sight.owner.shape[1:])


def _behind_things(
    sight: FirstSight, base: int, which: Int64[Tensor, " N"], u: Tensor, v: Tensor, far_m: Float[Tensor, " N"]
) -> Tensor:
    """Whether a thing hid these points of the robot in the first picture."""
    _, far = project(sight.views[:, base], sight.things_m)
    owner = sight.owner[which, v, u].long()
    thing_m = far[which, (owner - 1).clamp_min(0)]
    hidden: Tensor = (owner > 0) & (sight.alpha[which, v, u] > 0.5) & (thing_m < far_m)
    return hidden


def sampled(
    values: Float[Tensor, "B C H W"], which: Int64[Tensor, " N"], at_px: Float[Tensor, "N 2"]
) -> Float[Tensor, "N C"]:
    """Values between pixels, bilinear, edges repeated; `which` picture each place is in."""
    height, width = values.shape[-2:]
    x, y = (at_px[:, i].sub(0.5).clamp(0, size - 1) for i, size in ((0, width), (1, height)))
    left, top = x.floor().long(), y.floor().long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    x, y = (x - left)[:, None], (y - top)[:, None]
    above = torch.lerp(values[which, :, top, left], values[which, :, top, right], x)
    below = torch.lerp(values[which, :, bottom, left], values[which, :, bottom, right], x)
    return torch.lerp(above, below, y)
