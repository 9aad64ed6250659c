"""Where in episodes something is about to be moved: clips are sampled around it (Sec. 3.2)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

CONTACT_M, CONTACT_FRAMES = 0.03, 20
"""A rollout counts as one with contact where an object moves this far within this many frames."""


def contact_starts(objects_m: Float[Tensor, "E T N 3"]) -> Int64[Tensor, "S 2"]:
    """Return the (episode, frame) pairs from which an object soon moves; NaN where there is no object."""
    frames = objects_m.shape[1]
    last = (torch.arange(frames) + CONTACT_FRAMES).clamp(max=frames - 1)
    moved = (objects_m[:, last] - objects_m).norm(dim=-1).nan_to_num(0.0).amax(-1)
    return torch.nonzero(moved > CONTACT_M)
