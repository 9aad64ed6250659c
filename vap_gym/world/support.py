"""How high that is on which things stand, told from a whole picture: a table, or a cabinet before it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.world.layers import zeroed

SUPPORT_M = 0.03  # what the network calls 1
CELLS = (6, 9)  # of the picture, down and across, that are told apart


class Support(nn.Module):
    """A small network of its own over a picture or a latent: metres over the table of the robot's card, 0 at first.

    Apart from what finds things: what few scenes need is drowned there by what all need.

    Args:
        channels: of what is looked at.
        shrink: how many times smaller it is looked at.
        width: channels within.
    """

    def __init__(self, channels: int, *, shrink: int = 1, width: int = 32) -> None:
        super().__init__()
        self.shrink = shrink
        self.look = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=1, padding=1),
            nn.SiLU(),
        )
        self.tell = nn.Sequential(nn.Linear(CELLS[0] * CELLS[1] * width, width), nn.SiLU(), zeroed(nn.Linear(width, 1)))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1"]:
        small = F.avg_pool2d(x, self.shrink) if self.shrink > 1 else x
        seen = F.adaptive_avg_pool2d(self.look(small), CELLS)  # where in the picture its edges are matters
        height: Tensor = SUPPORT_M * self.tell(seen.flatten(1)).float()
        return height
