"""A first picture with the robot and the things in it elsewhere: made of its own pixels, without imagining anything.

The robot is drawn as its surface, each point in the colour that the first picture shows of it, or in its usual colour
under that picture's light. A thing is drawn as a cut-out that faces the camera. What is nearer hides what is farther.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from vap_gym.world.appearance import FirstSight, RobotAppearance, lit
from vap_gym.world.surfels import FAR_M, Near, drawn, looked_at, near_pixels, rotations
from vap_gym.world.views import inverse_or_zero, project

HIDDEN_M = 0.03  # a point so far behind what is seen in its pixel is hidden
RIM = 0.7  # a point is drawn a little larger than it is: so much of a pixel at the surface's rim is robot
DEEPER_M = 0.1  # nothing of a thing is farther behind its centre
REACH_PX = 24  # no cut-out is larger than twice this
LEAST_PX, LEAST_RAD, LEAST_SCALE = 0.3, 0.04, 0.01  # what has moved less is left as it was: sharp
TOGETHER = 2**19  # points and pixels that a CPU core works on at once: about what its cache holds


class Posed(NamedTuple):
    """The picture, in [−1, 1], and how far each pixel is: the robot as it was seen, the robot as it looks in general,
    a thing, background that was hidden at first."""

    picture: Float[Tensor, "B 3 H W"]
    source: Float[Tensor, "B 4 H W"]


class Canvas(NamedTuple):
    """Pictures that are being drawn, pixel after pixel: colours, how far it is a thing, how far away that is, in m."""

    colour: Float[Tensor, " pixels_and_channels"]
    thing: Float[Tensor, " pixels"]
    depth_m: Float[Tensor, " pixels"]


class Between(NamedTuple):
    """N places between pixels: the four around each, how far right of the first and how far below it, in px."""

    pixels: Int64[Tensor, "4 N"]
    right: Float[Tensor, " N"]
    below: Float[Tensor, " N"]

    def mixed(self, values: Float[Tensor, "*C 4 N"]) -> Float[Tensor, "*C N"]:
        """Return what is there, bilinear, given the values of the four pixels."""
        first, second, third, fourth = values.unbind(-2)
        return torch.lerp(torch.lerp(first, second, self.right), torch.lerp(third, fourth, self.right), self.below)

    def value(self, values: Float[Tensor, " pixels"]) -> Float[Tensor, " N"]:
        """Return what is there."""
        return self.mixed(values.index_select(0, self.pixels.flatten()).view(4, -1))

    def colour(self, colours: Float[Tensor, " pixels_and_channels"]) -> Float[Tensor, "3 N"]:
        """Return the colours there."""
        return self.mixed(colours.index_select(0, channels(self.pixels.flatten()).flatten()).view(3, 4, -1))


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
    batch, _, height, width = sight.plate.shape
    if views.shape[1] <= base:
        nothing = torch.zeros_like(sight.mask)
        return Posed(sight.plate, torch.cat([nothing, nothing, nothing, sight.filled], 1))
    posed = Posed(
        torch.empty_like(sight.plate, memory_format=torch.channels_last), sight.plate.new_zeros(batch, 4, height, width)
    )
    together = batch
    if views.device.type == "cpu":
        each = height * width + len(appearance.look)
        together = max(1, TOGETHER * torch.get_num_threads() // each)
    for first in range(0, batch, together):
        some = slice(first, first + together)
        mine = (FirstSight(*(x[some] for x in sight)), place_m[some], turn[some], views[some])
        _pose(appearance, *mine, base, Posed(*(x[some] for x in posed)))
    return posed


def cell_means(values: Float[Tensor, "B C H W"], size: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """Return means over the pixels of each cell."""
    return F.avg_pool2d(values, values.shape[-1] // size[1])


def channels(pixels: Int64[Tensor, " N"]) -> Int64[Tensor, "3 N"]:
    """Return where the three values of pixels are that lie in memory pixel after pixel."""
    return pixels * 3 + torch.arange(3, device=pixels.device)[:, None]


def colours(picture: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " pixels_and_channels"]:
    """Return pictures pixel after pixel: the very memory of those that are channels-last."""
    return picture.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).view(-1)


def _pose(
    appearance: RobotAppearance,
    sight: FirstSight,
    place_m: Float[Tensor, "B K 3"],
    turn: Float[Tensor, "B K 3 3"],
    views: Float[Tensor, "B L 3 4"],
    base: int,
    posed: Posed,
) -> None:
    """Draw what `posed_picture` returns, of some pictures."""
    _, _, height, width = posed.picture.shape
    plate, filled = background_seen(sight, views, base)
    posed.picture.copy_(plate)
    nowhere = torch.zeros_like(sight.mask).view(-1)
    canvas = Canvas(colour=colours(posed.picture), thing=nowhere, depth_m=torch.full_like(nowhere, FAR_M))
    before, now = project(sight.views[:, base], sight.things_m), project(views[:, base], place_m)
    R_camera_link = rotations(views)
    if bool(sight.there.any()):
        _draw_things(canvas, sight, before, now, _angle(turn, R_camera_link[:, base]))
    thing = canvas.thing.view_as(filled)
    posed.source[:, 2:3] = thing
    torch.mul(filled, 1.0 - thing, out=posed.source[:, 3:])
    if appearance.knows(views):
        near = near_pixels(drawn(appearance.surfels, views, (height, width)))
        _draw_robot(canvas, posed.source.view(-1), appearance, sight, before[1], views, R_camera_link, near)


def _draw_robot(
    canvas: Canvas,
    source: Float[Tensor, " pixels_of_sources"],
    appearance: RobotAppearance,
    sight: FirstSight,
    things_far_m: Float[Tensor, "B K"],
    views: Float[Tensor, "B L 3 4"],
    R_camera_link: Float[Tensor, "B L 3 3"],
    near: Near,
) -> None:
    """Draw the robot, whose surface is in or beside the pixels `near`, before what is farther; say what it is."""
    _, _, height, width = sight.picture.shape
    pixel = (near.picture * height + near.y) * width + near.x
    both = looked_at(appearance.surfels, torch.cat([views, sight.views], 2), near.picture, near.point)
    (here_x, here_y), (there_x, there_y) = (both[i : i + 2] / both[i + 2].clamp_min(1e-3) for i in (0, 3))
    shown = _was_seen(sight, things_far_m, near.picture, there_x, there_y, both[5])
    at = between(near.picture, there_x + near.x + 0.5 - here_x, there_y + near.y + 0.5 - here_y, (height, width))
    share, colour = at.value(sight.mask.reshape(-1)), at.colour(colours(sight.picture))
    shown &= ~near.amid | (share > 0.5)  # the robot must be here: where its mask says no, it was mistaken or hidden
    new = (~shown).nonzero()[:, 0]
    colour[:, new] = lit(appearance, sight.light, R_camera_link, near.picture[new], near.point[new]).mT
    alpha = torch.where(shown, share, RIM * near.there)  # the mask, not the surface, says where the robot ends
    alpha = torch.where(near.amid, 1.0, alpha) * (near.depth_m < canvas.depth_m[pixel])
    places = channels(pixel)
    canvas.colour[places] = torch.lerp(canvas.colour[places], colour, alpha)
    size = height * width
    places = pixel + 3 * size * near.picture + size * torch.arange(4, device=pixel.device)[:, None]
    seen = alpha * shown
    source[places] = torch.cat([seen[None], (alpha - seen)[None], source[places[2:]] * (1.0 - alpha)])


def _was_seen(
    sight: FirstSight,
    things_far_m: Float[Tensor, "B K"],
    picture: Int64[Tensor, " N"],
    x_px: Float[Tensor, " N"],
    y_px: Float[Tensor, " N"],
    far_m: Float[Tensor, " N"],
) -> Bool[Tensor, " N"]:
    """Whether points of the robot were to be seen in the first pictures, where they were at those places."""
    _, _, height, width = sight.picture.shape
    row, column = y_px.clamp(0, height - 1).long(), x_px.clamp(0, width - 1).long()
    pixel = (picture * height + row) * width + column
    shown = (x_px > 0) & (x_px < width) & (y_px > 0) & (y_px < height) & (far_m > 0)
    shown &= far_m < sight.depth_m.reshape(-1).index_select(0, pixel) + HIDDEN_M
    owner = sight.owner.reshape(-1).index_select(0, pixel)
    owned = owner.nonzero()[:, 0]  # by things, which may have hidden the robot
    thing_m = things_far_m[picture[owned], owner[owned].long() - 1]
    solid = (sight.alpha.reshape(-1)[pixel[owned]] > 0.5) & ~_made_up(sight, pixel[owned])
    shown[owned] &= ~(solid & (thing_m < far_m[owned]))
    return shown


def _draw_things(
    canvas: Canvas,
    sight: FirstSight,
    before: tuple[Float[Tensor, "B K 2"], Float[Tensor, "B K"]],
    after: tuple[Float[Tensor, "B K 2"], Float[Tensor, "B K"]],
    angle: Float[Tensor, "B K"],
) -> None:
    """Draw the things, which were `before` and shall be `after` in those places (px) and so far away (m).

    A cut-out is shifted, scaled as its distance tells, and turned as far as its thing turns about the optical axis.
    """
    (at_first, far_first), (now, far) = before, after
    scale = far_first / far.clamp_min(0.05)
    away = (now - at_first).norm(dim=-1) > LEAST_PX
    away |= (angle.abs() > LEAST_RAD) | ((scale - 1.0).abs() > LEAST_SCALE)
    moved = sight.there & away
    _, height, width = sight.owner.shape
    picture, y, x = sight.owner.nonzero().unbind(1)
    pixel = (picture * height + y) * width + x
    thing = sight.owner.reshape(-1)[pixel].long() - 1
    rests = (sight.there & ~away)[picture, thing].nonzero()[:, 0]
    places = channels(pixel[rests])
    canvas.colour[places] = colours(sight.whole)[places]
    behind_m = _behind(sight, pixel, far_first[picture, thing])
    canvas.depth_m[pixel[rests]] = far_first[picture[rests], thing[rests]] + behind_m[pixel[rests]]
    canvas.thing[pixel[rests]] = 1.0
    if not bool(moved.any()):
        return
    extent = (torch.stack([x, y], -1) + 0.5 - at_first[picture, thing]).norm(dim=-1)
    extent = torch.zeros_like(far).view(-1).scatter_reduce_(0, picture * far.shape[1] + thing, extent, "amax")
    reach = (extent.view_as(far) + 1.5) * scale.abs() + 2.0  # a pixel and a half: values between pixels
    for k, reach_px in enumerate(torch.where(moved, reach, 0.0).amax(0).ceil().clamp_(max=REACH_PX).int().tolist()):
        if reach_px > 0:
            which = moved[:, k].nonzero()[:, 0]
            mine = (x[which, k] for x in (at_first, now, scale, angle, far))
            _cut_out(canvas, sight, behind_m, k, reach_px, which, *mine)


def _behind(sight: FirstSight, pixel: Int64[Tensor, " N"], far_m: Float[Tensor, " N"]) -> Float[Tensor, " pixels"]:
    """How much farther than its centre a thing is taken to be where the robot was seen before it, in m: behind that."""
    robot = (sight.mask.reshape(-1)[pixel] > 0.5) & _made_up(sight, pixel)
    least_m = sight.depth_m.reshape(-1)[pixel] + HIDDEN_M
    behind_m = torch.zeros_like(sight.depth_m).view(-1)
    behind_m[pixel] = (least_m - far_m).clamp_(0.0, DEEPER_M) * robot
    return behind_m


def _made_up(sight: FirstSight, pixel: Int64[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Whether things were not seen in those of their pixels: the robot hid them."""
    places = channels(pixel)
    return (colours(sight.whole)[places] != colours(sight.picture)[places]).any(0)


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
    x_there, y_there, far = _table_seen_before(P, P_first, (height, width))
    inside = (x_there > 0) & (x_there < width) & (y_there > 0) & (y_there < height) & (far > 0)
    grid = torch.stack([x_there * (2.0 / width) - 1.0, y_there * (2.0 / height) - 1.0], -1).clamp_(-2.0, 2.0)
    looked = F.grid_sample(torch.cat([sight.plate, sight.filled], 1), grid, padding_mode="border", align_corners=False)
    new = torch.maximum(looked[:, 3:], 1.0 - inside[:, None].to(looked))
    row = moved[:, None, None, None]
    return torch.where(row, looked[:, :3], sight.plate), torch.where(row, new, sight.filled)


def _table_seen_before(
    P: Float[Tensor, "B 3 4"], P_first: Float[Tensor, "B 3 4"], size: tuple[int, int]
) -> tuple[Float[Tensor, "B H W"], Float[Tensor, "B H W"], Float[Tensor, "B H W"]]:
    """Return where the camera P_first sees (u, v in px, z in m) what each pixel's ray meets on the plane z = 0.

    A ray is linear in the pixel's place, and so is what P_first makes of it: no point is ever written down.
    """
    P, P_first = P.double(), P_first.double()
    back = inverse_or_zero(P[:, :, :3])
    origin = -back @ P[:, :, 3:]
    along = torch.cat([back[:, 2:], P_first[:, :, :3] @ back], 1)  # of (u, v, 1): how the ray falls, where it goes
    start = (P_first[:, :, :3] @ origin + P_first[:, :, 3:])[..., 0]
    y, x = (torch.arange(n, device=P.device) + 0.5 for n in size)
    across, down, ahead = along.float()[..., None, None].unbind(2)
    falls, *goes = (across * x + (down * y[:, None] + ahead)).unbind(1)
    steps = -origin[:, 2:].float() / falls.clamp(max=-1e-3)
    begin = start.float()[..., None, None].unbind(1)
    u, v, z = (torch.addcmul(one, steps, way) for one, way in zip(begin, goes, strict=True))
    safe = z.clamp_min(1e-3)
    return u / safe, v / safe, z


def _cut_out(
    canvas: Canvas,
    sight: FirstSight,
    behind_m: Float[Tensor, " pixels"],
    k: int,
    reach_px: int,
    which: Int64[Tensor, " N"],
    before: Float[Tensor, "N 2"],
    now: Float[Tensor, "N 2"],
    scale: Float[Tensor, " N"],
    angle: Float[Tensor, " N"],
    far_m: Float[Tensor, " N"],
) -> None:
    """Draw thing k of some pictures into the canvas: nothing of it is further than `reach_px` from its centre."""
    _, _, height, width = sight.picture.shape
    steps = torch.arange(-reach_px, reach_px, device=now.device)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    u, v = (now[:, i, None].floor() + step.reshape(1, -1) for i, step in ((0, x), (1, y)))
    off_x, off_y = ((at + 0.5 - now[:, i, None]) / scale[:, None] for i, at in ((0, u), (1, v)))
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y = before[:, :1] + (cos * off_x + sin * off_y), before[:, 1:] + (cos * off_y - sin * off_x)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (x > 0) & (x < width) & (y > 0) & (y < height)
    row, place = inside.nonzero().unbind(1)
    picture = which[row]
    pixel = (picture * height + v[row, place].long()) * width + u[row, place].long()
    at = between(picture, x[row, place], y[row, place], (height, width))
    far_m = far_m[row] + at.value(behind_m)
    around = at.pixels.flatten()
    alpha = sight.alpha.reshape(-1)[around] * (sight.owner.reshape(-1)[around] == k + 1)
    share = at.mixed(alpha.view(4, -1)) * (far_m < canvas.depth_m[pixel])
    drawn_here = share.nonzero()[:, 0]
    share, pixel, far_m = share[drawn_here], pixel[drawn_here], far_m[drawn_here]
    at = Between(at.pixels[:, drawn_here], at.right[drawn_here], at.below[drawn_here])
    places = channels(pixel)
    canvas.colour[places] = torch.lerp(canvas.colour[places], at.colour(colours(sight.whole)), share)
    canvas.thing[pixel] = torch.maximum(canvas.thing[pixel], share)
    solid = share > 0.5
    canvas.depth_m[pixel[solid]] = far_m[solid]


def _angle(turn: Float[Tensor, "B K 3 3"], R_camera_base: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B K"]:
    """How far a rotation of the base frame turns the picture of what it turns, x towards y."""
    R = R_camera_base[:, None]
    seen = R @ turn @ R.mT
    return torch.atan2(seen[..., 1, 0] - seen[..., 0, 1], seen[..., 0, 0] + seen[..., 1, 1])


def between(
    picture: Int64[Tensor, " N"], x_px: Float[Tensor, " N"], y_px: Float[Tensor, " N"], size: tuple[int, int]
) -> Between:
    """Return where places are among the pixels of all pictures, edges repeated."""
    height, width = size
    x, y = x_px.sub(0.5).clamp_(0, width - 1), y_px.sub(0.5).clamp_(0, height - 1)
    left_px, top_px = x.floor(), y.floor()
    left, top = left_px.long(), top_px.long()
    right, bottom = (left + 1).clamp_(max=width - 1), (top + 1).clamp_(max=height - 1)
    above, below = (picture * height + top) * width, (picture * height + bottom) * width
    pixels = torch.stack([above + left, above + right, below + left, below + right])
    return Between(pixels=pixels, right=x - left_px, below=y - top_px)
