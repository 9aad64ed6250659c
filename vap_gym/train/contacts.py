"""Where in episodes something is about to be moved: clips are sampled around it (Sec. 3.2)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

CONTACT_M, CONTACT_FRAMES = 0.03, 20
"""A rollout counts as one with contact where an object moves this far within this many frames."""
BEGINS_M = 0.004


def contact_starts(objects_m: Float[Tensor, "E T N 3"]) -> Int64[Tensor, "S 2"]:
    """Return the (episode, frame) pairs from which an object soon moves; NaN where there is no object."""
    frames = objects_m.shape[1]
    last = (torch.arange(frames) + CONTACT_FRAMES).clamp(max=frames - 1)
    moved = (objects_m[:, last] - objects_m).norm(dim=-1).nan_to_num(0.0).amax(-1)
    return torch.nonzero(moved > CONTACT_M)


def contact_moments(objects_m: Float[np.ndarray, "T N 3"]) -> list[int]:
    """Return the frames at which an object begins to move: 4 mm or more from frame to frame, after 3 frames without."""
    steps = np.linalg.norm(np.diff(objects_m, axis=0), axis=-1)
    moves = (np.nan_to_num(steps) > BEGINS_M).any(1)
    return [t for t in np.flatnonzero(moves).tolist() if not moves[max(0, t - 3) : t].any()]
