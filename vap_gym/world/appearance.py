"""What the robot looks like: as in the first picture where it is seen there, else as its surface looks in general; and
what is behind it. Pictures of the robot in another pose are made of this, without imagining anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.world.articulated import filled_in, warp
from vap_gym.world.layers import ResBlock
from vap_gym.world.surfels import FAR_M, Seen, Surfels, looked_at, seen_points, turned_normals, widened

NEAR_PX = 6  # nothing further than this from where the surface is drawn is taken for the robot
MARGIN_PX = 1  # background so near the robot is not told from it: pixels mix
LEAST_CELLS = 0.4  # 1.6 px: less shows hardly, and mistakes of all cells add up
HIDDEN_M = 0.03  # a point so far behind what is seen in its pixel is hidden
STRIDE_PX = 2  # one pixel in so many, across and down, is looked at to measure the light
LIGHT = (0.4, 2.0)  # how far one picture's robot may differ in brightness from the robot in general
PULL = 3.0  # so many pixels' worth of belief that light comes from everywhere
ENOUGH_PX = 8  # so many pixels of the robot must be seen (of those looked at) for its light to be measured


class RobotAppearance(ModelMixin, ConfigMixin):
    """Two things learned once for a robot: the colour of every point of its surface, and a mask.

    The surface is that of the robot's card (`prompts.body.Body`); how its points are found in a picture is known from
    kinematics. A small network says which pixels of a picture show the robot: no surface is exact, and objects may
    stand before it.

    Args:
        points, links: of the surface. Other robots are not posed.
        widths: channels of the mask's network at a half and a quarter of the picture's size.
    """

    points_m: Tensor
    normals: Tensor
    spacing_m: Tensor
    link: Tensor
    colour: Tensor

    @register_to_config
    def __init__(self, points: int = 12813, links: int = 17, widths: Sequence[int] = (24, 48)) -> None:
        super().__init__()
        self.register_buffer("points_m", torch.zeros(points, 3))
        self.register_buffer("normals", torch.zeros(points, 3))
        self.register_buffer("spacing_m", torch.zeros(points))
        self.register_buffer("link", torch.zeros(points, dtype=torch.int64))
        self.register_buffer("colour", torch.zeros(points, 3))  # in [0, 1]
        fine, coarse = widths
        self.enter = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * 7, fine, 3, padding=1), ResBlock(fine))
        self.down = nn.Sequential(nn.SiLU(), nn.Conv2d(fine, coarse, 4, stride=2, padding=1))
        self.middle = nn.Sequential(*[ResBlock(coarse) for _ in range(3)])
        self.up = nn.Sequential(nn.SiLU(), nn.Conv2d(coarse, 4 * fine, 3, padding=1), nn.PixelShuffle(2))
        self.leave = nn.Sequential(ResBlock(fine), nn.SiLU(), nn.Conv2d(fine, 4, 3, padding=1), nn.PixelShuffle(2))

    @property
    def surfels(self) -> Surfels:
        """The robot's surface."""
        return Surfels(self.points_m, self.normals, self.link, self.spacing_m)

    def knows(self, views: Float[Tensor, "B L 3 4"]) -> bool:
        """Whether these are views of a robot with so many links."""
        return views.shape[1] == int(self.config["links"])

    def mask_logits(self, picture: Float[Tensor, "B 3 H W"], seen: Seen) -> Float[Tensor, "B 1 H W"]:
        """Return how surely each pixel of a picture shows the robot, whose surface is to be seen there."""
        covered = (seen.point >= 0)[:, None].to(picture)
        colour = self.colour[seen.point.clamp_min(0)].permute(0, 3, 1, 2) * 2.0 - 1.0
        fine = self.enter(torch.cat([picture, colour * covered, covered], 1))
        return self.leave(fine + self.up(self.middle(self.down(fine))))  # type: ignore[no-any-return]


class FirstSight(NamedTuple):
    """What a first picture shows of a robot, to be used again and again.

    The pixels, in [−1, 1]; how far each is the robot; what they are without it; how the camera sees the links, and how
    far away the surface is, in m; its light: brightness from everywhere and along the camera's axes, then the tint.
    """

    picture: Float[Tensor, "B 3 H W"]
    mask: Float[Tensor, "B 1 H W"]
    plate: Float[Tensor, "B 3 H W"]
    views: Float[Tensor, "B L 3 4"]
    depth_m: Float[Tensor, "B 1 H W"]
    light: Float[Tensor, "B 7"]


@torch.no_grad()
def first_sight(
    appearance: RobotAppearance, picture: Float[Tensor, "B 3 H W"], views: Float[Tensor, "B L 3 4"]
) -> FirstSight:
    """Look at first pictures in which cameras see the robot's links as `views` says (`prompts.body.Body.views`)."""
    batch, _, height, width = picture.shape
    light = picture.new_tensor([1.0, 0, 0, 0, 1, 1, 1]).repeat(batch, 1)
    if not appearance.knows(views):
        nothing = picture.new_zeros(batch, 1, height, width)
        return FirstSight(picture, nothing, picture, views, nothing + FAR_M, light)
    seen = seen_points(appearance.surfels, views, (height, width))
    near = F.max_pool2d((seen.point >= 0)[:, None].to(picture), 2 * NEAR_PX + 1, 1, NEAR_PX)
    mask = appearance.mask_logits(picture, seen).float().sigmoid() * near
    depth = torch.where(seen.point[:, None] >= 0, seen.depth_m, -1.0)
    depth = F.max_pool2d(depth, 3, 1, 1)  # of what is around: a point is seen anew beside its pixel
    light = _light(appearance, picture, mask, seen, views)
    return FirstSight(picture, mask, background(picture, mask), views, torch.where(depth < 0, FAR_M, depth), light)


def background(picture: Float[Tensor, "B 3 H W"], mask: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Return the picture without what the mask covers, filled in from around it."""
    covered = F.max_pool2d((mask > 0.1).to(picture), 2 * MARGIN_PX + 1, 1, MARGIN_PX)
    return torch.lerp(picture, filled_in(picture, 1.0 - covered), covered)


def carried_along(
    plate: Float[Tensor, "B 3 H W"], displacement_cells: Float[Tensor, "B 2 h w"]
) -> Float[Tensor, "B 3 H W"]:
    """Return a picture whose pixels are fetched from where the displacement of their cell points to.

    A cell's pixels go together: between an object that has moved and what stands still nothing is in between. What has
    moved less than LEAST_CELLS is left where it was.
    """
    far = displacement_cells.square().sum(1, keepdim=True) >= LEAST_CELLS**2
    displacement_cells = displacement_cells * far
    stride = plate.shape[-1] // displacement_cells.shape[-1]
    return warp(plate, F.interpolate(displacement_cells * stride, scale_factor=stride, mode="nearest"))


@torch.no_grad()
def posed_picture(
    appearance: RobotAppearance,
    sight: FirstSight,
    displacement_cells: Float[Tensor, "B 2 h w"],
    views: Float[Tensor, "B L 3 4"],
) -> Float[Tensor, "B 3 H W"]:
    """Return the first picture with what has moved carried along, and the robot in another pose.

    Args:
        appearance, sight: of the robot, and of the first picture.
        displacement_cells: from each cell to where its content was in the first picture.
        views: of the links as they shall be.
    """
    plate = carried_along(sight.plate, displacement_cells)
    if not appearance.knows(views):
        return plate
    surfels, (_, _, height, width) = appearance.surfels, plate.shape
    seen = seen_points(surfels, views, (height, width))
    near = widened(seen)  # the mask, not the surface, says where the robot ends
    which, y, x = (near.point >= 0).nonzero(as_tuple=True)
    point = near.point[which, y, x]
    here, _ = looked_at(surfels, views, which, point)
    there, far = looked_at(surfels, sight.views, which, point)
    past = _sampled(torch.cat([sight.picture, sight.mask], 1), which, there + torch.stack([x, y], -1) + 0.5 - here)
    shown = (there > 0).all(-1) & (there < there.new_tensor([width, height])).all(-1) & (far > 0)
    u, v = (there[:, i].clamp(0, size - 1).long() for i, size in ((0, width), (1, height)))
    shown = (shown & (far < sight.depth_m[which, 0, v, u] + HIDDEN_M))[:, None]
    colour = torch.where(shown, past[:, :3], _lit(appearance, sight.light, views, which, point))
    alpha = torch.where(shown, past[:, 3:], (seen.point[which, y, x] >= 0)[:, None].to(past))
    posed = plate.clone()
    posed[which, :, y, x] = torch.lerp(plate[which, :, y, x], colour, alpha)
    return posed


def _sampled(
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


def _lit(
    appearance: RobotAppearance,
    light: Float[Tensor, "B 7"],
    views: Float[Tensor, "B L 3 4"],
    which: Int64[Tensor, " N"],
    point: Int64[Tensor, " N"],
) -> Float[Tensor, "N 3"]:
    """Colours of points in the light of their picture, in [−1, 1]."""
    normals, light = turned_normals(appearance.surfels, views, which, point), light[which]
    bright = (light[:, :1] + (normals * light[:, 1:4]).sum(-1, keepdim=True)).clamp(*LIGHT)
    return (appearance.colour[point] * bright * light[:, 4:]).clamp(0.0, 1.0) * 2.0 - 1.0


def _light(
    appearance: RobotAppearance, picture: Tensor, mask: Tensor, seen: Seen, views: Tensor
) -> Float[Tensor, "B 7"]:
    """How the robot of a picture is lit: least squares over its pixels, of brightness = usual brightness · (a + b·n)
    with the surface's normal n (Lambert's law, shadows left out), drawn towards b = 0."""
    batch = len(picture)
    looked = torch.zeros_like(mask[:, 0], dtype=torch.bool)
    looked[:, ::STRIDE_PX, ::STRIDE_PX] = True
    which, y, x = (looked & (mask[:, 0] > 0.5) & (seen.point >= 0)).nonzero(as_tuple=True)
    point = seen.point[which, y, x]
    real, usual = picture[which, :, y, x] * 0.5 + 0.5, appearance.colour[point]

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(batch, *values.shape[1:]).index_add_(0, which, values)

    gain = (summed(real) / summed(usual).clamp_min(1e-3)).clamp(*LIGHT)
    gain = torch.where(summed(torch.ones_like(real[:, :1])) >= ENOUGH_PX, gain, torch.ones_like(gain))
    bright = gain.mean(1, keepdim=True)
    normals = turned_normals(appearance.surfels, views, which, point)
    terms = torch.cat([torch.ones_like(normals[:, :1]), normals], 1) * usual.mean(1, keepdim=True)
    left = summed(terms[:, :, None] * terms[:, None, :]) + PULL * torch.eye(4, device=terms.device)
    right = summed(terms * real.mean(1, keepdim=True)) + PULL * torch.cat([bright, torch.zeros_like(gain)], 1)
    return torch.cat([torch.linalg.solve(left, right), gain / bright], 1)
