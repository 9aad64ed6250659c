"""What is behind a robot and its things: learned from frames in which they have moved away."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vap_gym.world.filling import continued
from vap_gym.world.layers import ResBlock, zeroed


class BackgroundFiller(nn.Module):
    """A small U-Net that corrects what straight lines fill in: edges of tables and patterns go on behind the robot.

    Args:
        widths: channels at a half, a quarter, an eighth and a sixteenth of the picture's size.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (32, 64, 96, 96)) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(16, widths[0], 3, padding=1), ResBlock(widths[0]))
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Conv2d(a, b, 4, stride=2, padding=1), ResBlock(b), ResBlock(b))
            for a, b in pairs
        )
        self.up = nn.ModuleList(
            nn.Sequential(ResBlock(b), nn.SiLU(), nn.Conv2d(b, 4 * a, 3, padding=1), nn.PixelShuffle(2))
            for a, b in pairs
        )
        last = zeroed(nn.Conv2d(widths[0], 12, 3, padding=1))
        self.leave = nn.Sequential(ResBlock(widths[0]), nn.SiLU(), last, nn.PixelShuffle(2))

    def forward(self, picture: Float[Tensor, "B 3 H W"], covered: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Return the picture, in [−1, 1], with what is covered (1) replaced; H and W are multiples of 16, or padded."""
        begun = continued(picture, 1.0 - covered)
        height, width = picture.shape[-2:]
        x = torch.cat([begun, 2.0 * covered - 1.0], 1)
        x = nn.functional.pad(x, (0, -width % 16, 0, -height % 16), mode="replicate")
        levels = [self.enter(x.contiguous(memory_format=torch.channels_last))]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()
        for up in reversed(self.up):
            x = up(x) + levels.pop()
        correction = self.leave(x)[..., :height, :width].float()
        return torch.lerp(picture, (begun + correction).clamp(-1.0, 1.0), covered)
