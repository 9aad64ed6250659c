"""Growing masks by a box or a disk, and the share that one count is of another."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vap_gym.metrics.checks import Masks


def share(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    """Return part / whole, 1 where the whole is nothing."""
    whole = np.asarray(whole, np.float64)
    shares: NDArray[np.float64] = np.divide(part, whole, out=np.ones_like(whole), where=whole > 0)
    return shares


def dilate_box(mask: NDArray[np.bool_], radius: int, *, outside: bool = False) -> NDArray[np.bool_]:
    """Grow one mask (H, W) by `radius` pixels in every direction; beyond the frame all pixels are `outside`.

    The window doubles: a run of 2r + 1 pixels takes about log2(2r + 1) steps an axis instead of 2r.
    """
    grown = np.pad(mask, radius, constant_values=outside)
    size = 2 * radius + 1
    covered = 1
    while covered < size:
        shift = min(covered, size - covered)
        grown = grown[:-shift] | grown[shift:]
        covered += shift
    covered = 1
    while covered < size:
        shift = min(covered, size - covered)
        grown = grown[:, :-shift] | grown[:, shift:]
        covered += shift
    return grown


def dilate_disk(masks: Masks, radius: int) -> Masks:
    """Grow masks (T, H, W) by a disk: for each of its rows, by a run as wide as the disk is there."""
    height, width = masks.shape[1:]
    counts = np.pad(masks, ((0, 0), (radius, radius), (radius + 1, radius))).cumsum(axis=2, dtype=np.int32)
    grown = np.zeros_like(masks)
    for dy in range(-radius, radius + 1):
        half = math.isqrt(radius * radius - dy * dy)
        rows = counts[:, radius + dy : radius + dy + height]
        ahead, behind = radius + 1 + half, radius - half
        grown |= rows[:, :, ahead : ahead + width] > rows[:, :, behind : behind + width]
    return grown
