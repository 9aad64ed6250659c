"""What the robot looks like: taken from the first picture where it is seen there, else from what its bones look like in
general; and what is behind it. Pictures of the robot in another pose are made of this, without imagining anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.world.articulated import BonePlaces, bone_places, centres, filled_in, places_before, robot_cover, warp
from vap_gym.world.layers import ResBlock

STRIDE_PX = 2  # pixels so far apart share a place on a bone: a quarter of the work, and it changes little between them
NEAR_PX = 4.0  # the robot's fixed base, which has no bone, begins further than this from one: it stays where it is
MARGIN_PX = 1  # background so near the robot is not told from it: pixels mix
BEYOND = 1.6  # radii around a bone that the atlas covers: beyond its ends, and to its sides
LIGHT = (0.6, 1.6)  # how far one picture's robot may differ in brightness from the atlas
SEEN_PX = 30.0  # so much of the robot must be seen for its light to be measured


class RobotAppearance(ModelMixin, ConfigMixin):
    """Two things learned once for a robot: an atlas, and a mask.

    The atlas is a picture of every bone, unrolled: mean colour, and how often it is the robot that is seen, by the
    place along and across the bone as it appears in the picture (a table of colours where Thies et al. 2019,
    arXiv 1904.12356, learn features). A small network says which pixels of a picture show the robot.

    Args:
        bones: of the skeleton that the atlas is of. Other robots are posed without it.
        along, across: cells of a bone's atlas; `ends`: cells beyond either end.
        widths: channels of the mask's network at a half and a quarter of the picture's size.
    """

    colour: Tensor
    presence: Tensor

    @register_to_config
    def __init__(
        self, bones: int = 12, along: int = 16, across: int = 12, ends: int = 3, widths: Sequence[int] = (24, 48)
    ) -> None:
        super().__init__()
        cells = bones * (along + 2 * ends) * across
        self.register_buffer("colour", torch.zeros(cells, 3))  # in [−1, 1]
        self.register_buffer("presence", torch.zeros(cells))  # in [0, 1]
        fine, coarse = widths
        self.enter = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * 8, fine, 3, padding=1), ResBlock(fine))
        self.down = nn.Sequential(nn.SiLU(), nn.Conv2d(fine, coarse, 4, stride=2, padding=1))
        self.middle = nn.Sequential(*[ResBlock(coarse) for _ in range(3)])
        self.up = nn.Sequential(nn.SiLU(), nn.Conv2d(coarse, 4 * fine, 3, padding=1), nn.PixelShuffle(2))
        self.leave = nn.Sequential(ResBlock(fine), nn.SiLU(), nn.Conv2d(fine, 4, 3, padding=1), nn.PixelShuffle(2))

    def knows(self, bones: Float[Tensor, "B S 8"]) -> bool:
        """Whether the atlas is of a robot with so many bones."""
        return bones.shape[1] == int(self.config["bones"])

    def atlas_cells(self, places: BonePlaces) -> Int64[Tensor, "B cells"]:
        """Return the cell of the atlas that each place on a bone falls into."""
        along, across, ends = (int(self.config[name]) for name in ("along", "across", "ends"))
        further = (places.beyond.abs() / BEYOND * ends).floor().clamp(max=ends - 1)
        row = ends + (places.along * along).floor().clamp(max=along - 1)
        row = torch.where(places.beyond < 0, ends - 1 - further, row)
        row = torch.where(places.beyond > 0, ends + along + further, row)
        column = ((places.across / BEYOND + 1.0) / 2.0 * across).floor().clamp(0, across - 1)
        return ((places.bone * (along + 2 * ends) + row.long()) * across + column.long()).long()

    def drawn(self, places: BonePlaces, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the atlas's colour (B, 3, h, w) and presence (B, 1, h, w) at every cell; presence 0 off the robot."""
        cells, batch = self.atlas_cells(places), len(places.bone)
        colour = self.colour[cells].mT.reshape(batch, 3, *size)
        return colour, (self.presence[cells] * places.cover).reshape(batch, 1, *size)

    def mask_logits(self, picture: Float[Tensor, "B 3 H W"], bones: Float[Tensor, "B S 8"]) -> Float[Tensor, "B 1 H W"]:
        """Return how surely each pixel of a picture shows the robot whose bones are there."""
        height, width = picture.shape[-2:]
        size = (height // STRIDE_PX, width // STRIDE_PX)
        places = bone_places(bones, size, float(STRIDE_PX))
        cover = places.cover.reshape(len(picture), 1, *size)
        colour, presence = picture.new_zeros(len(picture), 3, *size), torch.zeros_like(cover)
        if self.knows(bones):
            colour, presence = self.drawn(places, size)
        told = F.interpolate(torch.cat([colour, presence, cover], 1), size=(height, width), mode="nearest")
        fine = self.enter(torch.cat([picture, told], 1))
        return self.leave(fine + self.up(self.middle(self.down(fine))))  # type: ignore[no-any-return]

    def mask(self, picture: Float[Tensor, "B 3 H W"], bones: Float[Tensor, "B S 8"]) -> Float[Tensor, "B 1 H W"]:
        """Return the share in [0, 1] of the robot in each pixel that is near a bone; 0 where no bones are told."""
        if bones.shape[1] == 0:
            return torch.zeros_like(picture[:, :1])
        near = robot_cover(bones, (picture.shape[-2], picture.shape[-1]), 1.0, NEAR_PX)
        return self.mask_logits(picture, bones).float().sigmoid() * near


class FirstSight(NamedTuple):
    """What a first picture shows of a robot, to be used again and again: the pixels, in [−1, 1]; how far each is the
    robot; what they are without it; where its bones are; which bone each cell shows (−1: none); the robot's light, as a
    factor on the atlas's colours."""

    picture: Float[Tensor, "B 3 H W"]
    mask: Float[Tensor, "B 1 H W"]
    plate: Float[Tensor, "B 3 H W"]
    bones: Float[Tensor, "B S 8"]
    shown: Float[Tensor, "B 1 h w"]
    light: Float[Tensor, "B 3 1 1"]


@torch.no_grad()
def first_sight(
    appearance: RobotAppearance, picture: Float[Tensor, "B 3 H W"], bones: Float[Tensor, "B S 8"]
) -> FirstSight:
    """Look at first pictures in which the robot's bones are where `bones` says (`prompts.raster.bone_figures`)."""
    batch, _, height, width = picture.shape
    size = (height // STRIDE_PX, width // STRIDE_PX)
    mask, light = appearance.mask(picture, bones), picture.new_ones(batch, 3, 1, 1)
    if bones.shape[1] == 0:
        return FirstSight(picture, mask, picture, bones, picture.new_full((batch, 1, *size), -1.0), light)
    places = bone_places(bones, size, float(STRIDE_PX))
    shown = torch.where(places.cover >= 0.5, places.bone, -1).to(picture).reshape(batch, 1, *size)
    if appearance.knows(bones):
        light = _light(appearance, picture, mask, places)
    return FirstSight(picture, mask, background(picture, mask), bones, shown, light)


def background(picture: Float[Tensor, "B 3 H W"], mask: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Return the picture without what the mask covers, filled in from around it."""
    covered = F.max_pool2d((mask > 0.1).to(picture), 2 * MARGIN_PX + 1, 1, MARGIN_PX)
    return torch.lerp(picture, filled_in(picture, 1.0 - covered), covered)


def carried_along(
    plate: Float[Tensor, "B 3 H W"], displacement_cells: Float[Tensor, "B 2 h w"]
) -> Float[Tensor, "B 3 H W"]:
    """Return a picture whose pixels are fetched from where the displacement of their cell points to.

    A cell's pixels go together: between an object that has moved and what stands still nothing is in between.
    """
    stride = plate.shape[-1] // displacement_cells.shape[-1]
    return warp(plate, F.interpolate(displacement_cells * stride, scale_factor=stride, mode="nearest"))


@torch.no_grad()
def posed_picture(
    appearance: RobotAppearance,
    sight: FirstSight,
    displacement_cells: Float[Tensor, "B 2 h w"],
    now: Float[Tensor, "B S 8"],
) -> Float[Tensor, "B 3 H W"]:
    """Return the first picture with what has moved carried along, and the robot in another pose.

    Args:
        appearance, sight: of the robot, and of the first picture.
        displacement_cells: from each cell to where its content was in the first picture.
        now: the bones as they shall be.
    """
    plate = carried_along(sight.plate, displacement_cells)
    if now.shape[1] == 0:
        return plate
    batch, _, height, width = plate.shape
    size = (height // STRIDE_PX, width // STRIDE_PX)
    places = bone_places(now, size, float(STRIDE_PX))
    source, inside = places_before(places, sight.bones, (height, width))
    flow = ((source - centres(size, float(STRIDE_PX), plate.device)[:, 0]) / STRIDE_PX).mT.reshape(batch, 2, *size)
    same = warp(sight.shown, flow, mode="nearest").reshape(batch, -1) == places.bone
    seen = (inside & same).to(plate).reshape(batch, 1, *size)
    cover = places.cover.reshape(batch, 1, *size)
    colour, presence = plate.new_zeros(batch, 3, *size), torch.zeros_like(cover)
    if appearance.knows(now):
        colour, presence = appearance.drawn(places, size)
        colour = (colour * 0.5 + 0.5) * sight.light * 2.0 - 1.0
    parts = torch.cat([flow * STRIDE_PX, seen, cover, colour, presence], 1)
    fine = F.interpolate(parts, scale_factor=STRIDE_PX, mode="nearest")
    flow, seen, cover, colour, presence = fine.split([2, 1, 1, 3, 1], 1)
    there = warp(torch.cat([sight.picture, sight.mask], 1), flow)
    alpha = torch.where(seen > 0, there[:, 3:] * cover, presence)
    return torch.lerp(plate, torch.where(seen > 0, there[:, :3], colour), alpha)


def _light(appearance: RobotAppearance, picture: Tensor, mask: Tensor, places: BonePlaces) -> Float[Tensor, "B 3 1 1"]:
    """How much brighter the robot is in a picture than in the atlas; 1 where too little of it is seen."""
    size = (picture.shape[-2] // STRIDE_PX, picture.shape[-1] // STRIDE_PX)
    colour, presence = appearance.drawn(places, size)
    weight = F.avg_pool2d(mask, STRIDE_PX) * (presence > 0.6)
    bright, usual = (
        (weight * (x * 0.5 + 0.5)).sum((2, 3), keepdim=True) for x in (F.avg_pool2d(picture, STRIDE_PX), colour)
    )
    gain = (bright / usual.clamp_min(1e-3)).clamp(*LIGHT)
    return torch.where(weight.sum((2, 3), keepdim=True) * STRIDE_PX**2 > SEEN_PX, gain, torch.ones_like(gain))
