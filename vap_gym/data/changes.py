"""When a gripper opens or closes: the moments that clips are drawn around (paper Sec. 3.3)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64

LEAST_RANGE = 0.2
"""A gripper that moves less than this share of its stroke in an episode is at rest: its log jitters."""


def gripper_changes(
    closedness: Float[np.ndarray, " T"], *, least_range: float = LEAST_RANGE
) -> Int64[np.ndarray, " changes"]:
    """Return the frames at which the gripper crosses from open to closed or back.

    Open and closed are the lower and the upper quarter of what the episode itself shows, since a gripper that holds a
    thing does not close wholly; the crossing is at the middle, and counts once the other quarter is reached. Frames
    with NaN are passed over.
    """
    frames = np.flatnonzero(np.isfinite(closedness))
    if not len(frames):
        return np.zeros(0, np.int64)
    values = closedness[frames]
    low, high = float(values.min()), float(values.max())
    if high - low < least_range:
        return np.zeros(0, np.int64)
    share = (values - low) / (high - low)
    side = np.where(share >= 0.75, 1, np.where(share <= 0.25, -1, 0))
    (told,) = np.nonzero(side)
    turned = told[1:][side[told[1:]] != side[told[:-1]]]
    before = told[:-1][side[told[1:]] != side[told[:-1]]]
    found = []
    for begin, end in zip(before, turned, strict=True):
        above = share[begin : end + 1] >= 0.5
        crossed = np.flatnonzero(above[1:] != above[:-1])
        found.append(frames[begin + 1 + int(crossed[-1])])
    return np.array(found, np.int64)
