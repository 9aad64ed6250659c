"""Where in episodes something is about to be moved: clips are sampled around it (Sec. 3.2)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

CONTACT_M, CONTACT_FRAMES = 0.03, 20
"""A rollout counts as one with contact where an object moves this far within this many frames."""
BEGINS_M = 0.004
CLOSES = 0.15  # closedness from which on a gripper is closing
AROUND_M = 0.07  # a gripper that closes so near a thing means to take it (horizontally, from the middle of its fingers)
GRASP_FRAMES = (10, 1)  # clips with a grasp begin so long before it, at most and at least, at 15 Hz
RAISED_M, LIFTED_M, RAISED_FRAMES = 0.04, 0.03, 30  # a gripper that goes up so far has held what goes up so far


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


def grasp_starts(
    closed: Float[Tensor, "E T"],
    fingers_m: Float[Tensor, "E T 3"],
    objects_m: Float[Tensor, "E T N 3"],
    *,
    slow: int = 1,
) -> tuple[Int64[Tensor, "S 2"], Int64[Tensor, "M 2"]]:
    """Return the (episode, frame) pairs shortly before a gripper closes on a thing and goes up: with it, and without.

    Args:
        closed: 0 (open) to 1.
        fingers_m: the middle of the gripper's fingers.
        objects_m: NaN where there is no object.
        slow: how many steps of 15 Hz a frame takes.
    """
    frames = closed.shape[1]
    last = max(1, RAISED_FRAMES // slow)
    held: list[tuple[int, int]] = []
    missed: list[tuple[int, int]] = []
    begins = (closed[:, 1:] > CLOSES) & (closed[:, :-1] <= CLOSES)
    for episode, t in (begins.nonzero() + torch.tensor([0, 1])).tolist():
        apart = (objects_m[episode, t, :, :2] - fingers_m[episode, t, :2]).norm(dim=-1).nan_to_num(torch.inf)
        thing = int(apart.argmin())
        raised, lifted = (
            x[t : t + last + 1, 2].amax() - x[t, 2] for x in (fingers_m[episode], objects_m[episode, :, thing])
        )
        if apart[thing] > AROUND_M or raised < RAISED_M:
            continue
        early, late = (max(0, t - max(1, n // slow)) for n in GRASP_FRAMES)
        (held if lifted > LIFTED_M else missed).extend((episode, f) for f in range(early, min(late, frames - 2) + 1))
    return tuple(torch.tensor(found, dtype=torch.int64).reshape(-1, 2) for found in (held, missed))  # type: ignore[return-value]
