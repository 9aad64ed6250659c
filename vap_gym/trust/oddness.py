"""How odd things look: a small network over those that were found, taught what training shows and what it never does.

It is shown the shapes of training beside odd ones made at random (`sim.odd`), after outlier exposure (Hendrycks et al.
2019, arXiv 1812.04606): to know what is strange, no example of the very thing that will be met is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.world.layers import ResBlock
from vap_gym.world.things import SHAPE, SIZE_M, seen_from

CROP_PX = 24  # of a thing as the network sees it
WIDE, MARGIN_PX = 1.4, 3.0  # a crop is so many times as wide as its thing, and wider by this on each side
FEW_PX = 6  # of a thing's pixels: of fewer nothing can be told
USUAL_PX = 12.0  # how wide things usually are
CHANNELS = 6  # of a crop: red, green, blue; the thing's own share, that of other things, the robot's
TOLD = 2 + SHAPE  # log of its size in the picture; how steeply the camera looks; its shape as the finder has it


class Crops(NamedTuple):
    """What is seen of the K things of B first pictures."""

    seen: Bool[Tensor, "B K"]  # enough of it to tell anything
    pictures: Float[Tensor, "B K 6 24 24"]
    told: Float[Tensor, "B K 8"]


class Oddness(ModelMixin, ConfigMixin):
    """Tells how odd things look.

    Args:
        widths: channels at the crop's size, at a half and at a quarter of it.
    """

    @register_to_config
    def __init__(self, widths: Sequence[int] = (24, 32, 48)) -> None:
        super().__init__()
        first, second, third = widths
        self.look = nn.Sequential(
            nn.Conv2d(CHANNELS, first, 3, padding=1),
            ResBlock(first),
            nn.SiLU(),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
            ResBlock(second),
            nn.SiLU(),
            nn.Conv2d(second, third, 4, stride=2, padding=1),
            ResBlock(third),
            nn.SiLU(),
        )
        self.tell = nn.Sequential(nn.Linear(2 * third + TOLD, third), nn.SiLU(), nn.Linear(third, 1))

    def forward(
        self, pictures: Float[Tensor, "N 6 24 24"], told: Float[Tensor, "N 8"], *, kept: Tensor | None = None
    ) -> Float[Tensor, " N"]:
        """Return logits; more is odder. `kept` (N, features) is multiplied with what was seen: for dropout."""
        seen = self.look(pictures)
        seen = torch.cat([seen.mean((2, 3)), seen.amax((2, 3)), told], -1)
        logits: Tensor = self.tell(seen if kept is None else seen * kept)
        return logits[:, 0]

    @torch.no_grad()
    def of(self, crops: Crops) -> Float[Tensor, "B K"]:
        """Return logits of all things; −inf for those of which too little is seen."""
        odd = torch.full(crops.seen.shape, -torch.inf)
        if crops.seen.any():
            odd[crops.seen] = self(crops.pictures[crops.seen], crops.told[crops.seen]).float()
        return odd


@torch.no_grad()
def crops_of(state: TensorDict) -> Crops:
    """Cut the things out of the first pictures of states that a `WorldModel` began (keys `world_first_*`); float32 on
    the CPU."""
    owner = state["world_first_owner"].cpu()
    alpha, robot = (state[f"world_first_{name}"].cpu().float().div(255.0) for name in ("alpha", "mask"))
    picture = state["world_first_picture"].cpu().float().permute(0, 3, 1, 2).div(127.5).sub(1.0)
    B, K = state["world_thing_there"].shape
    own = owner[:, None] == torch.arange(1, K + 1)[:, None, None]  # B K H W
    seen = own.sum((2, 3)) >= FEW_PX
    middle, size = _boxes(own)
    mine = own * alpha[:, None]
    others = ((owner > 0)[:, None] & ~own) * alpha[:, None]
    shared = torch.cat([picture, robot], 1)[:, None].expand(B, K, 4, *owner.shape[1:])
    layers = torch.cat([shared[:, :, :3], mine[:, :, None], others[:, :, None], shared[:, :, 3:]], 2)
    pictures = _cut(layers.flatten(0, 1), middle.flatten(0, 1), size.flatten(0, 1)).unflatten(0, (B, K))
    down = state["camera_T_world_camera"][:, 2, 2].cpu().float().neg()  # how steeply the optical axis falls
    told = torch.cat([torch.stack([(size / USUAL_PX).log(), down[:, None].expand(B, K)], -1), _shapes(state)], -1)
    return Crops(seen=seen, pictures=pictures * seen[..., None, None, None], told=told * seen[..., None])


def _shapes(state: TensorDict) -> Float[Tensor, "B K 6"]:
    """Shapes as the finder has them (`world.things.Found`), seen from the camera; half extents in `SIZE_M`."""
    shape = state["world_first_shape"].cpu().float()
    axes = state["camera_T_world_camera"][:, :3, :3].cpu().float().mT  # what `seen_from` looks at of a projection
    seen = seen_from(shape, torch.cat([axes, axes[..., :1]], -1), 1.0)
    return torch.cat([seen[..., :3] / SIZE_M, seen[..., 3:]], -1)


def _boxes(own: Bool[Tensor, "B K H W"]) -> tuple[Float[Tensor, "B K 2"], Float[Tensor, "B K"]]:
    """The middle of what things cover (u, v; px), and how wide the squares around them are that are cut out."""
    spans = []
    for axis in (2, 3):  # columns, rows
        any_there = own.any(axis)
        at = torch.arange(any_there.shape[-1], dtype=torch.float32)
        low = torch.where(any_there, at, torch.inf).amin(-1)
        high = torch.where(any_there, at, -torch.inf).amax(-1) + 1.0
        spans.append(torch.where(low < high, torch.stack([low, high]), torch.tensor([0.0, 1.0])[:, None, None]))
    middle = torch.stack([span.mean(0) for span in spans], -1)
    wide = torch.maximum(*(span[1] - span[0] for span in spans))
    return middle, WIDE * wide + 2.0 * MARGIN_PX


def _cut(layers: Tensor, middle: Float[Tensor, "N 2"], size: Float[Tensor, " N"]) -> Float[Tensor, "N C 24 24"]:
    """Squares of pictures, made as large as one another."""
    height, width = layers.shape[-2:]
    step = (torch.arange(CROP_PX) + 0.5) / CROP_PX - 0.5
    v, u = torch.meshgrid(step, step, indexing="ij")
    at = middle[:, None, None] + size[:, None, None, None] * torch.stack([u, v], -1)
    grid = 2.0 * at / torch.tensor([width, height]) - 1.0
    cut: Tensor = F.grid_sample(layers, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cut
