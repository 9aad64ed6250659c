"""Filling in what a picture does not show, from what is around it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def filled_in(picture: Float[Tensor, "B C H W"], known: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B C H W"]:
    """Return the picture where `known` is 1; elsewhere averages of ever wider surroundings that are known.

    (Pull-push interpolation, after Gortler et al. 1996, "The Lumigraph", Sec. 3.4.)
    """
    levels = [(picture * known, known)]
    while min(levels[-1][0].shape[-2:]) > 1:
        colour, weight = levels[-1]
        levels.append((F.avg_pool2d(colour, 2, ceil_mode=True), F.avg_pool2d(weight, 2, ceil_mode=True)))
    colour, weight = levels.pop()
    filled = colour / weight.clamp_min(1e-6)
    while levels:
        colour, weight = levels.pop()
        filled = F.interpolate(filled, size=colour.shape[-2:], mode="bilinear", align_corners=False)
        share = weight if not levels else (4.0 * weight).clamp(max=1.0)  # a quarter known is known well enough
        filled = torch.lerp(filled, colour / weight.clamp_min(1e-6), share)
    return filled
