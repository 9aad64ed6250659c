"""What a robot hides of the things in a first picture: told by their solids, in the colours of what is seen of them.

(Amodal completion: a thing is whole where only a part of it is seen.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from vap_gym.world.surfels import FAR_M
from vap_gym.world.things import EDGE, Found
from vap_gym.world.views import project, rays

ROBOT = 0.1  # a pixel that is robot to this share hides what is there
RIM_PX = 1  # so near the robot, pixels mix with it
WINDOW_PX = 24  # no thing is looked at further from its centre
SHIFT_PX = 3  # so far, across and down, a thing may be from where it was found
SCALES = (0.85, 1.0, 1.15)  # how large it may be of what was found
SHIFTED, SCALED = 0.3, 2.0  # what that costs, in pixels: per px², and for another size
ROUND = 0.5  # of a shape: round from above
BOX, CYLINDER, BALL = 0, 1, 2
ENOUGH_PX = 4  # so many pixels amid a thing tell its colours well
PURE = 0.7  # else those do that are so unlike background and robot, relative to the most unlike
FACE_PX = 12.0  # what is on another face of a solid is as if so far away
SUBPIXELS = (0.25, 0.75)


class Whole(NamedTuple):
    """A picture in [−1, 1] that shows things where a robot hid them, whose each pixel is, and how far (`things.Found`).

    The robot's other pixels stay; what is not the thing's of a pixel at its edge is background.
    """

    picture: Float[Tensor, "B 3 H W"]
    owner: UInt8[Tensor, "B H W"]
    alpha: Float[Tensor, "B H W"]


class _Windows(NamedTuple):
    """What is around the centres of N things: which pixels (of all pictures', flat; edges repeated), and what they are.

    `mine` is a thing's own, `other` another thing's, `beside` is robot or next to it, `near` robot that may hide this
    thing, or next to that.
    """

    picture: Int64[Tensor, " N"]
    number: Int64[Tensor, " N"]
    far_m: Float[Tensor, " N"]  # of the centre, along the optical axis
    corner: Int64[Tensor, "N 2"]  # x, y of the first pixel
    pixel: Int64[Tensor, "N S S"]
    inside: Bool[Tensor, "N S S"]
    mine: Bool[Tensor, "N S S"]
    other: Bool[Tensor, "N S S"]
    beside: Bool[Tensor, "N S S"]
    near: Bool[Tensor, "N S S"]
    share: Float[Tensor, "N S S"]  # how far it is a thing

    @property
    def clean(self) -> Bool[Tensor, "N S S"]:
        """A thing's own pixels, away from the robot."""
        return self.mine & ~self.beside & (self.share > 0.5)


@torch.no_grad()
def whole_things(
    picture: Float[Tensor, "B 3 H W"],
    plate: Float[Tensor, "B 3 H W"],
    robot: Float[Tensor, "B 1 H W"],
    depth_m: Float[Tensor, "B 1 H W"],
    P: Float[Tensor, "B 3 4"],
    found: Found,
) -> Whole:
    """Return first pictures with their things whole; what is not near a robot is as it was.

    A thing of which nothing is seen away from the robot stays as it was found.

    Args:
        picture, plate: the first pictures, and what is behind robot and things.
        robot, depth_m: how far each pixel is the robot, and how far away that is (FAR_M where it is not known).
        P: the camera in the robot's base frame.
        found: the things, whose places and shapes are in that frame.
    """
    windows = _windows(robot, depth_m, P, found)
    if windows is None:
        return Whole(picture, found.owner, found.alpha)
    centre_m, shape = (x[windows.picture, windows.number] for x in (found.centre_m, found.shape))
    share, normal = _silhouettes(windows, P[windows.picture], centre_m, shape)
    robot, seen = robot.reshape(-1)[windows.pixel], windows.mine * windows.share
    share = torch.maximum(share, seen * (1.0 - robot))
    may = windows.near & windows.inside & (~windows.other | (robot > 0.5))
    mine, lost = may & (share > EDGE), may & windows.mine & (share <= EDGE)
    flat, background = (x.permute(0, 2, 3, 1).reshape(-1, 3) for x in (picture, plate))
    new, owner, alpha, at = flat.clone(), found.owner.flatten().clone(), found.alpha.flatten().clone(), windows.pixel
    owner[at[lost]], alpha[at[lost]] = 0, 0.0
    sources = _sources(windows, flat[at], background[at], robot > ROBOT)
    for n in windows.far_m.argsort(descending=True).tolist():  # the nearer over the farther
        here, source = mine[n], sources[n]
        pixel, mix = at[n][here], share[n][here]
        like = _weights(here, source, normal[n], windows.share[n]) @ flat[at[n][source]]
        new[pixel] = torch.lerp(background[pixel], like, mix[:, None])
        owner[pixel], alpha[pixel] = (windows.number[n] + 1).to(torch.uint8), mix
    shown = new.view(picture.movedim(1, 3).shape).movedim(3, 1)
    return Whole(shown, owner.view_as(found.owner), alpha.view_as(found.alpha))


def _windows(
    robot: Float[Tensor, "B 1 H W"],
    depth_m: Float[Tensor, "B 1 H W"],
    P: Float[Tensor, "B 3 4"],
    found: Found,
) -> _Windows | None:
    """Look around those things that a robot may hide in part; None where there is none."""
    height, width = robot.shape[-2:]
    at_px, far_m = project(P, found.centre_m)
    covered = robot > ROBOT
    beside = _grown(covered)[:, 0]
    which, number = (found.there & beside.flatten(1).any(1, keepdim=True)).nonzero().unbind(1)
    if not len(which):
        return None
    at_px, far_m, reach_m = at_px[which, number], far_m[which, number], found.shape[which, number, :3].norm(dim=-1)
    corner = at_px.clamp(-1e4, 1e4).round().long() - WINDOW_PX
    steps = torch.arange(2 * WINDOW_PX, device=robot.device)
    x, y = corner[:, None, :1] + steps[:, None], corner[:, 1:, None] + steps[:, None]
    x = x.mT
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    pixel = (which[:, None, None] * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)
    owner, deep = found.owner.reshape(-1)[pixel].long(), depth_m.reshape(-1)[pixel]
    mine = inside & (owner == number[:, None, None] + 1)
    nearer = (deep < (far_m + reach_m)[:, None, None]) | (deep >= FAR_M)
    reach_px = max(SCALES) * reach_m * _focal_px(P)[which] / far_m.clamp_min(0.05) + SHIFT_PX + RIM_PX
    around = (x + 0.5 - at_px[:, 0, None, None]).hypot(y + 0.5 - at_px[:, 1, None, None]) < reach_px[:, None, None]
    hides = inside & around & nearer & covered.reshape(-1)[pixel]
    windows = _Windows(
        picture=which, number=number, far_m=far_m, corner=corner, pixel=pixel, inside=inside, mine=mine,
        other=inside & (owner > 0) & ~mine, beside=beside.reshape(-1)[pixel], near=_grown(hides[:, None])[:, 0],
        share=found.alpha.reshape(-1)[pixel],
    )  # fmt: skip
    useful = (windows.clean.flatten(1).any(1) & hides.flatten(1).any(1)).nonzero()[:, 0]
    return _Windows(*(x[useful] for x in windows)) if len(useful) else None


def _sources(
    windows: _Windows,
    picture: Float[Tensor, "N S S 3"],
    plate: Float[Tensor, "N S S 3"],
    covered: Bool[Tensor, "N S S"],
) -> Bool[Tensor, "N S S"]:
    """Which of its pixels tell a thing's colours: those amid it; of a sliver, those least like what is around it."""
    other = ~(windows.clean | windows.beside)
    amid = windows.clean & ~_grown(other[:, None])[:, 0]
    parts = torch.cat([picture, torch.ones_like(picture[..., :1])], -1) * covered[..., None]
    parts = F.avg_pool2d(parts.movedim(3, 1), 5, 1, 2).movedim(1, 3)
    robot = parts[..., :3] / parts[..., 3:].clamp_min(1e-6)  # its colour nearby
    seen = windows.mine & (windows.share > 0.5) & ~covered
    unlike_plate = _relative((picture - plate).norm(dim=-1), seen)
    unlike_robot = _relative((picture - robot).norm(dim=-1), seen & windows.beside)
    pure = torch.where(windows.beside, torch.minimum(unlike_plate, unlike_robot), unlike_plate) * seen
    sliver = seen & (pure >= PURE * pure.amax((1, 2), keepdim=True))
    enough = amid.flatten(1).sum(1) >= ENOUGH_PX
    return torch.where(enough[:, None, None], amid, sliver)


def _relative(values: Float[Tensor, "N S S"], which: Bool[Tensor, "N S S"]) -> Float[Tensor, "N S S"]:
    """Return what values are of the largest one there is of each N."""
    return values * which / (values * which).amax((1, 2), keepdim=True).clamp_min(1e-6)


def _focal_px(P: Float[Tensor, "B 3 4"]) -> Float[Tensor, " B"]:
    """The focal length along v: of the rows of K·R, the part of the second that the third has not."""
    down, ahead = P[:, 1, :3], P[:, 2, :3]
    focal_px: Tensor = (down - (down * ahead).sum(1, keepdim=True) * ahead).norm(dim=1)
    return focal_px


def _grown(which: Bool[Tensor, "N 1 H W"]) -> Bool[Tensor, "N 1 H W"]:
    return F.max_pool2d(which.float(), 2 * RIM_PX + 1, 1, RIM_PX) > 0.5


def _silhouettes(
    windows: _Windows, P: Float[Tensor, "N 3 4"], centre_m: Float[Tensor, "N 3"], shape: Float[Tensor, "N 6"]
) -> tuple[Float[Tensor, "N S S"], Float[Tensor, "N S S 3"]]:
    """How far each pixel shows a thing's solid, were there nothing else, and the normals of what it shows."""
    half_m, kind, offset = _fitted(windows, P, centre_m, shape)
    size = windows.pixel.shape[-1]
    steps = torch.arange(size, device=P.device)
    places = torch.cat([steps + part for part in SUBPIXELS])
    hit, normal = _seen(_around(windows.corner + offset, places), P, centre_m, shape, half_m, kind)
    hit, normal = (x.unflatten(1, (2, size, 2, size)) for x in (hit.float(), normal * hit[..., None]))
    return hit.mean((1, 3)), F.normalize(normal.sum((1, 3)), dim=-1)


def _fitted(
    windows: _Windows, P: Float[Tensor, "N 3 4"], centre_m: Float[Tensor, "N 3"], shape: Float[Tensor, "N 6"]
) -> tuple[Float[Tensor, "N 3"], Int64[Tensor, " N"], Int64[Tensor, "N 2"]]:
    """The half extents and the kind of solid that agree best with what is seen, and where, in px, they are looked at.

    What is seen of the thing should be in the silhouette, and what is seen of anything else should not.
    """
    size, is_round = windows.pixel.shape[-1], shape[:, 3] > ROUND
    usual = torch.where(is_round, CYLINDER, BOX)
    kind = torch.stack([usual] * len(SCALES) + [torch.where(is_round, BALL, BOX)], 1)
    scales = shape.new_tensor((*SCALES, 1.0))
    tried = len(scales)
    half_m = shape[:, None, :3] * scales[:, None]
    places = torch.arange(-SHIFT_PX, size + SHIFT_PX, device=P.device) + 0.5
    pixels = _around(windows.corner, places).repeat_interleave(tried, 0)
    many = [x.repeat_interleave(tried, 0) for x in (P, centre_m, shape)]
    hit, _ = _seen(pixels, many[0], many[1], many[2], half_m.flatten(0, 1), kind.flatten())
    hit = hit.float().view(len(P), tried, len(places), len(places))
    known = windows.inside & ~windows.beside & ~windows.other
    worth = known * (1.0 - 2.0 * windows.mine * windows.share)  # Σ (hit − share)², but for what does not change
    cost = torch.einsum("ncijyx,nyx->ncij", hit.unfold(2, size, 1).unfold(3, size, 1), worth)
    shift = torch.arange(-SHIFT_PX, SHIFT_PX + 1, device=P.device)
    cost = cost + SHIFTED * (shift.square() + shift[:, None].square()) + SCALED * (scales != 1.0)[:, None, None]
    best, (_, _, rows, columns) = cost.flatten(1).argmin(1), cost.shape
    offset = torch.stack([best % columns, best // columns % rows], 1) - SHIFT_PX
    chosen, every = best // (rows * columns), torch.arange(len(P), device=P.device)
    return half_m[every, chosen], kind[every, chosen], offset


def _around(corner: Int64[Tensor, "N 2"], places: Float[Tensor, " S"]) -> Float[Tensor, "N pixels 2"]:
    """Places in px, rows of columns, so far right of corners and below them."""
    y, x = torch.meshgrid(places, places, indexing="ij")
    return corner[:, None] + torch.stack([x, y], -1).view(1, -1, 2)


def _seen(
    pixels: Float[Tensor, "N R 2"],
    P: Float[Tensor, "N 3 4"],
    centre_m: Float[Tensor, "N 3"],
    shape: Float[Tensor, "N 6"],
    half_m: Float[Tensor, "N 3"],
    kind: Int64[Tensor, " N"],
) -> tuple[Bool[Tensor, "N R"], Float[Tensor, "N R 3"]]:
    """Whether places in pictures show solids, and about which way the surface faces there, in the solid's own frame.

    Rays are cut by slabs (Kay and Kajiya 1986), in a frame in which each solid is of half extents 1.
    """
    origin, ray = rays(P, pixels)
    turn = 0.5 * torch.atan2(shape[:, 5], shape[:, 4])
    cos, sin, none, one = turn.cos(), turn.sin(), torch.zeros_like(turn), torch.ones_like(turn)
    R_own_base = torch.stack([cos, sin, none, -sin, cos, none, none, none, one], -1).view(-1, 3, 3)
    begin, way = (x @ R_own_base.mT / half_m[:, None] for x in (origin - centre_m[:, None], ray))
    way = torch.where(way.abs() < 1e-6, 1e-6, way)
    middle, reach = -begin / way, 1.0 / way.abs()
    kind = kind[:, None]
    for solid, axes in ((CYLINDER, 2), (BALL, 3)):  # a circle around z, or a sphere, in place of slabs
        centre, half = _circle(begin[..., :axes], way[..., :axes])
        is_it = (kind == solid)[..., None].expand(-1, -1, axes)
        middle[..., :axes] = torch.where(is_it, centre, middle[..., :axes])
        reach[..., :axes] = torch.where(is_it, half, reach[..., :axes])
    enters, face = (middle - reach).max(-1)
    hit = (enters < (middle + reach).amin(-1)) & (enters > 0)
    at = begin + torch.where(hit, enters, 0.0)[..., None] * way
    flat = F.one_hot(face, 3).bool()
    around = torch.where(face[..., None] == 2, flat, torch.tensor([True, True, False], device=P.device))
    faces = torch.where((kind == BOX)[..., None], flat, torch.where((kind == CYLINDER)[..., None], around, True))
    return hit, at * faces


def _circle(
    begin: Float[Tensor, "N 1 D"], way: Float[Tensor, "N R D"]
) -> tuple[Float[Tensor, "N R 1"], Float[Tensor, "N R 1"]]:
    """The middle of what a ray has within a unit circle or sphere, and half of its length: −∞ where it has nothing."""
    square = way.square().sum(-1, keepdim=True).clamp_min(1e-12)
    middle = -(begin * way).sum(-1, keepdim=True) / square
    beside = (begin + middle * way).square().sum(-1, keepdim=True)
    return middle, torch.where(beside < 1.0, ((1.0 - beside).clamp_min(0.0) / square).sqrt(), -torch.inf)


def _weights(
    here: Bool[Tensor, "S S"],
    source: Bool[Tensor, "S S"],
    normal: Float[Tensor, "S S 3"],
    share: Float[Tensor, "S S"],
) -> Float[Tensor, "N M"]:
    """How far each new pixel is as each of those that are seen: by how near they are, most of all on the same face.

    (Inverse distances, after Shepard 1968.)
    """
    new, old = (torch.cat([at.nonzero(), FACE_PX * normal[at]], 1) for at in (here, source))
    near = share[source].pow(4) / torch.cdist(new, old).square().add(1.0).pow(3)
    weights: Tensor = near / near.sum(1, keepdim=True)
    return weights
