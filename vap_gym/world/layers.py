"""Small convolutional pieces shared by the codec, the world model's stem and head, and the judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ResBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the last convolution starting at zero: no normalisation, so cheap on a CPU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        return x + self.second(F.silu(self.first(F.silu(x))))  # type: ignore[no-any-return]


def listed(values: int | Sequence[int]) -> tuple[int, ...]:
    """One number, or several, as a tuple: of one robot, or of several."""
    return (values,) if isinstance(values, int) else tuple(int(value) for value in values)


def zeroed(module: ModuleT) -> ModuleT:
    """Set every parameter of a module to zero: what follows it starts as if it were not there."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module
