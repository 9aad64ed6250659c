"""Things that a robot may move: found once, in the first picture, each with its pixels, its place and its size.

Which pixels go together is told by their votes for a centre, as in Panoptic-DeepLab (Cheng et al. 2020, arXiv
1911.10194): no kinds of things are told apart, so that unknown ones are found as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.world.layers import ResBlock
from vap_gym.world.support import Support
from vap_gym.world.views import inverse_or_zero, on_plane, rays

HEAT_PX = 2  # of a cell of the heat map
VOTE_PX = 8.0  # what the network calls 1
SURE = 0.35  # heat of a centre that counts as one
FAR_M = 2.0  # what is further from the robot's base is out of its reach
NEAR_PX = 6.0  # votes that end further from a centre are not for it
EDGE = 0.1  # a pixel that is a thing to this share belongs to it
HEIGHT_M, SIZE_M = 0.03, 0.03  # of a usual thing's centre, and its half extents: what the network says is relative
GROUND_PX_PER_M = 150.0
SHAPE = 6  # figures of a shape, see `Found`


class Found(NamedTuple):
    """K things in each of B pictures.

    `shape` is the half extents in m (the longer horizontal one, the shorter one, the vertical one), how round it is
    from above (0 to 1), and (cos 2ψ, sin 2ψ)·elongation, ψ being the longer side's angle about the base frame's z.
    """

    there: Bool[Tensor, "B K"]
    centre_m: Float[Tensor, "B K 3"]  # in the robot's base frame
    shape: Float[Tensor, "B K 6"]
    owner: UInt8[Tensor, "B H W"]  # whose pixel it is: 0 nobody's, else 1 + the thing's number
    alpha: Float[Tensor, "B H W"]  # how far it is


class ThingFinder(ModelMixin, ConfigMixin):
    """A small network over a picture: what is a thing, where each one's centre is, how high and how large it is.

    Args:
        most: how many things are looked for.
        widths: channels at a half and a quarter of the picture's size.
        links, base: of the robots it knows: how many links their views have, and which of them is the base.
        cabinets: things may stand on something else than the card's table: how high that is is told, too.
    """

    @register_to_config
    def __init__(
        self,
        most: int = 5,
        widths: Sequence[int] = (32, 64),
        blocks: int = 4,
        links: int = 17,
        base: int = 0,
        cabinets: bool = False,
    ) -> None:
        super().__init__()
        fine, coarse = widths
        self.enter = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * 6, fine, 3, padding=1), ResBlock(fine))
        self.down = nn.Sequential(nn.SiLU(), nn.Conv2d(fine, coarse, 4, stride=2, padding=1))
        self.middle = nn.Sequential(*[ResBlock(coarse) for _ in range(blocks)])
        self.support = Support(6, shrink=4) if cabinets else None
        self.up = nn.Sequential(nn.SiLU(), nn.Conv2d(coarse, 4 * fine, 3, padding=1), nn.PixelShuffle(2))
        self.mix = nn.Sequential(ResBlock(fine), ResBlock(fine), nn.SiLU())
        self.pixels = nn.Sequential(nn.Conv2d(fine, 4 * 3, 3, padding=1), nn.PixelShuffle(2))
        self.centres = nn.Conv2d(fine, 3 + 1 + SHAPE, 3, padding=1)

    def knows(self, views: Float[Tensor, "B L 3 4"]) -> bool:
        """Whether there are views of a robot, its base among them: without them nothing can be placed."""
        return views.shape[1] > int(self.config["base"])

    def forward(
        self,
        picture: Float[Tensor, "B 3 H W"],
        robot: Float[Tensor, "B 1 H W"],
        views: Float[Tensor, "B L 3 4"],
    ) -> dict[str, Tensor]:
        """Look at pictures in [−1, 1] whose `robot` mask is known.

        Returns `support_m` (B, 1), how high things stand over the card's table; `mask` (B, 1, H, W) logits, `vote`
        (B, 2, H, W) from each pixel to its thing's centre in px; and of a centre in each cell of H/2 × W/2: `heat`
        (B, 1, …) logits, `offset` (B, 2, …) in px, `height_m` (B, 1, …) over the card's table, and
        `shape` (B, 6, …) as in `Found`, but ψ is told from the direction in which the camera looks.
        """
        looked = torch.cat([picture, robot, self._ground(views, picture.shape[-2:])], 1)
        fine = self.enter(looked.contiguous(memory_format=torch.channels_last))
        mixed = self.mix(fine + self.up(self.middle(self.down(fine))))
        pixels, centres = self.pixels(mixed).float(), self.centres(mixed).float()
        heat, offset, height, size, rest = centres.split([1, 2, 1, 3, SHAPE - 3], 1)
        support = looked.new_zeros(len(looked), 1) if self.support is None else self.support(looked)
        return {
            "support_m": support,
            "mask": pixels[:, :1],
            "vote": VOTE_PX * pixels[:, 1:],
            "heat": heat - 3.0,
            "offset": HEAT_PX * offset,
            "height_m": HEIGHT_M * (1.0 + height) + support[..., None, None],
            "shape": torch.cat([SIZE_M * (1.0 + 0.5 * size), rest], 1),
        }

    def _ground(self, views: Tensor, size: torch.Size) -> Float[Tensor, "B 2 H W"]:
        """Of each pixel: how large a metre of ground is there, and how steeply its ray falls."""
        P = views[:, int(self.config["base"])]
        with torch.autocast(views.device.type, enabled=False):  # geometry wants all its digits
            origin, ray = rays(P, _centres(size, views.device)[None].expand(len(views), -1, -1))
        falls = -ray[..., 2]
        far = origin[..., 2] / falls.clamp_min(1e-3)
        focal = (
            inverse_or_zero(P[:, :, :3]).norm(dim=1)[:, :1].clamp_min(1e-6).reciprocal()
        )  # px of a metre, a metre away
        large = (focal / far.clamp_min(0.05) / GROUND_PX_PER_M).clamp(0.1, 4.0).log()
        steep = falls / ray.norm(dim=-1).clamp_min(1e-6)
        ground: Tensor = torch.stack([large, steep], 1).unflatten(-1, size)
        return ground


@torch.no_grad()
def find_things(
    finder: ThingFinder,
    picture: Float[Tensor, "B 3 H W"],
    robot: Float[Tensor, "B 1 H W"],
    views: Float[Tensor, "B L 3 4"],
) -> Found:
    """Find the things in pictures. Without views that the finder knows there are none."""
    batch, _, height, width = picture.shape
    most = int(finder.config["most"])
    if not finder.knows(views):
        return Found(
            there=torch.zeros(batch, most, dtype=torch.bool, device=picture.device),
            centre_m=picture.new_zeros(batch, most, 3),
            shape=picture.new_zeros(batch, most, SHAPE),
            owner=torch.zeros(batch, height, width, dtype=torch.uint8, device=picture.device),
            alpha=picture.new_zeros(batch, height, width),
        )
    said = finder(picture, robot, views)
    heat = said["heat"].sigmoid()
    heat = heat * (heat == F.max_pool2d(heat, 5, 1, 2))
    score, cell = heat.flatten(1).topk(most)

    def at(name: str) -> Tensor:
        values = said[name].flatten(2)
        chosen: Tensor = values.gather(2, cell[:, None].expand(-1, values.shape[1], -1)).mT
        return chosen

    wide = said["heat"].shape[-1]
    pixel = torch.stack([cell % wide, cell // wide], -1).to(picture).add(0.5).mul(HEAT_PX) + at("offset")
    P = views[:, int(finder.config["base"])]
    shape = torch.cat([at("shape")[..., :3].clamp_min(0.005), at("shape")[..., 3:]], -1)
    centre = on_plane(P, pixel, at("height_m")[..., 0])
    there = (score > SURE) & (centre.norm(dim=-1) < FAR_M)
    owner, alpha = _owned(said, pixel, there)
    return Found(
        there=there,
        centre_m=centre * there[..., None],
        shape=seen_from(shape, P, -1.0) * there[..., None],
        owner=owner,
        alpha=alpha,
    )


def seen_from(shape: Float[Tensor, "B K 6"], P: Float[Tensor, "B 3 4"], sign: float) -> Float[Tensor, "B K 6"]:
    """Return shapes whose ψ is told from the direction in which the camera looks (`sign` 1), given ones that tell it
    from the base frame's x; or the other way round (`sign` −1)."""
    ahead = P[:, 2, :3]  # the optical axis in the base frame
    twice = 2.0 * sign * torch.atan2(ahead[:, 1], ahead[:, 0])[:, None]
    x, y, cos, sin = shape[..., 4], shape[..., 5], twice.cos(), twice.sin()
    return torch.cat([shape[..., :4], torch.stack([cos * x + sin * y, cos * y - sin * x], -1)], -1)


def _owned(said: dict[str, Tensor], pixel: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Whose each pixel is: of the centre nearest to where its vote ends."""
    mask = said["mask"][:, 0].sigmoid()
    size = mask.shape[-2:]
    around = F.max_pool2d(mask[:, None], 3, 1, 1)[:, 0] > 0.5
    vote = _centres(size, mask.device).T.unflatten(1, size) + said["vote"]
    apart = torch.stack([(vote - pixel[:, k, :, None, None]).norm(dim=1) for k in range(pixel.shape[1])], 1)
    apart = torch.where(there[:, :, None, None], apart, torch.inf)
    nearest, which = apart.min(1)
    mine = (nearest < NEAR_PX) & (mask > EDGE) & around
    return torch.where(mine, which + 1, 0).to(torch.uint8), mask * mine


def _centres(size: torch.Size, device: torch.device) -> Float[Tensor, "cells 2"]:
    y, x = torch.meshgrid(*(torch.arange(n, device=device) + 0.5 for n in size), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2)
