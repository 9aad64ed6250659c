"""Filling in what a picture does not show, from what is around it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

DIRECTIONS = 8  # of lines
ALIKE = 0.3  # ends whose colours differ by so much are not of one surface (pictures are in [−1, 1])
ALONE = 0.02  # what a line with one end counts, of one with two


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


def continued(picture: Float[Tensor, "B 3 H W"], known: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Return the picture where `known` is 1; elsewhere what is known on both sides, along lines whose sides agree.

    Edges and stripes go on straight behind what covers them. Of a pixel's lines, in DIRECTIONS, each counts more, the
    more alike its two ends are and the nearer; one with a single end counts little; where there is none at all, the
    pixel is as `filled_in` has it. (Edge-directed interpolation, as in de-interlacing, over wide gaps.)
    """
    which, y, x = (known[:, 0] < 0.5).nonzero(as_tuple=True)
    made = filled_in(picture, known)
    if not len(which):
        return made
    share = F.avg_pool2d(known, 3, 1, 1)
    smooth = torch.where(known > 0.5, F.avg_pool2d(picture * known, 3, 1, 1) / share.clamp_min(1e-6), picture)
    colour, total = smooth.new_zeros(len(which), 3), smooth.new_zeros(len(which), 1)
    for i in range(DIRECTIONS):
        sine, cosine = math.sin(math.pi * i / DIRECTIONS), math.cos(math.pi * i / DIRECTIONS)
        if abs(cosine) >= abs(sine):
            ends = _ends(smooth, known, which, y, x, sine / cosine)
        else:
            ends = _ends(smooth.mT, known.mT, which, x, y, cosine / sine)
        (one, near), (other, far) = ends
        both = near.isfinite() & far.isfinite()
        span = (near + far).clamp_min(1.0)
        alike = torch.exp(-(one - other).square().mean(1) / ALIKE**2) / span.square()
        single = ALONE / (2.0 * torch.minimum(near, far).clamp_min(1.0)).square()  # 0 where there is no end
        weight = torch.where(both, alike, single)[:, None]
        between = torch.lerp(one, other, torch.where(both, near / span, (far < near).to(near))[:, None])
        colour, total = colour + weight * between, total + weight
    found = total[:, 0] > 0
    made = made.clone()
    made[which[found], :, y[found], x[found]] = colour[found] / total[found]
    return made


def _ends(
    picture: Float[Tensor, "B 3 H W"],
    known: Float[Tensor, "B 1 H W"],
    which: Int64[Tensor, " N"],
    y: Int64[Tensor, " N"],
    x: Int64[Tensor, " N"],
    slope: float,
) -> list[tuple[Float[Tensor, "N 3"], Float[Tensor, " N"]]]:
    """The colours of the nearest known pixels to the left and to the right of N pixels along lines of that slope (px
    down per px across), and how far away they are: infinitely far where there is none."""
    height, width = picture.shape[-2:]
    across = torch.arange(width, device=picture.device)
    fall = (slope * across).round().long()
    most = int(fall.max())
    rows = torch.arange(height + most - int(fall.min()), device=picture.device)[:, None]
    line = rows + fall - most  # a line's row in each column: sheared, lines are rows
    there = (line >= 0) & (line < height)
    seen = known[:, 0][:, line.clamp(0, height - 1), across.expand_as(line)] * there > 0.5
    left = torch.where(seen, across, -1).cummax(2).values
    right = torch.where(seen, across, width).flip(2).cummin(2).values.flip(2)
    row, length = y - fall[x] + most, math.hypot(1.0, slope)
    ends = []
    for nearest in (left[which, row, x], right[which, row, x]):
        exists = (nearest >= 0) & (nearest < width)
        column = nearest.clamp(0, width - 1)
        value = picture[which, :, (y - fall[x] + fall[column]).clamp(0, height - 1), column]
        ends.append((value, torch.where(exists, (column - x).abs() * length, torch.inf)))
    return ends
