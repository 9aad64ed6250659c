"""Where exactly the tool is, told from the latents around where it was found."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vap_gym.world.layers import ResBlock, zeroed

CELLS = 12  # of the square that is looked at


class Locator(nn.Module):
    """A square of features around a first guess → a better place, in cells of the whole; at first, the square's middle.

    The place is a mean over the square's cells, each of which says where it takes the tool to be, weighted by how much
    it has to say: it is learned by its error alone, in the unit that counts.

    Args:
        channels: of the features.
        width: channels within.
        depth: residual blocks.
    """

    def __init__(self, channels: int, *, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.body = nn.Sequential(*[ResBlock(width) for _ in range(depth)], nn.SiLU())
        self.say = zeroed(nn.Conv2d(width, 3, 3, padding=1))

    def forward(
        self, features: Float[Tensor, "N C h w"], guess: Float[Tensor, "N 2"]
    ) -> tuple[Float[Tensor, "N 2"], Int64[Tensor, "N 2"], Float[Tensor, "N s s"]]:
        """Return places in cells, (x, y), the square's upper left corner, and how much each of its cells has to say
        (logits)."""
        corner = corner_of(guess)
        said = self.say(self.body(self.enter(square(features, corner)))).float()
        share = said[:, 0].flatten(1).softmax(-1)
        step = torch.arange(CELLS, device=said.device) + 0.5
        cell = torch.stack(torch.meshgrid(step, step, indexing="xy"))
        place = ((cell + said[:, 1:]).flatten(2) * share[:, None]).sum(-1)
        return place + corner, corner, said[:, 0]


def corner_of(guess: Float[Tensor, "N 2"]) -> Int64[Tensor, "N 2"]:
    """Return the square's upper left cell (x, y), so that its middle is the corner of cells nearest to the guess."""
    return guess.round().long() - CELLS // 2


def square(features: Float[Tensor, "N C h w"], corner: Int64[Tensor, "N 2"]) -> Float[Tensor, "N C s s"]:
    """Cut squares out; zeros where they reach beyond the edge."""
    _, _, h, w = features.shape
    x, y = (corner[:, i, None] + torch.arange(CELLS, device=features.device) for i in range(2))  # (N, s)
    inside = ((y >= 0) & (y < h))[:, :, None] & ((x >= 0) & (x < w))[:, None, :]
    number = torch.arange(len(features), device=features.device)[:, None, None]
    cut = features[number, :, y.clamp(0, h - 1)[:, :, None], x.clamp(0, w - 1)[:, None, :]]  # N s s C
    return (cut * inside[..., None]).permute(0, 3, 1, 2)
