"""Steady progress: hysteresis for what a judge says, so that a flicker is neither reward nor success."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vap_gym.errors import VapError

Array = np.ndarray


class Steady:
    """Progress that `agree` of the last `of` readings have reached: their `agree`-th highest. Settings only.

    A task is solved where that is 1: so many readings of the last few said so. A vague reading (NaN) counts as the one
    before it. Steps before the first one count as progress 0.

    Args:
        agree: readings that must agree; 1 of 1 takes each as it comes.
        of: the last so many.
    """

    def __init__(self, agree: int = 2, of: int = 3) -> None:
        if not 1 <= agree <= of:
            raise VapError(f"Hysteresis needs 1 ≤ agree ≤ of, got {agree} of {of}. Try 2 of 3.")
        self.agree, self.of = agree, of

    def begin(self, slots: int) -> Float[Array, "B n"]:
        """Return the memory of slots whose episodes begin."""
        return np.zeros((slots, self.of))

    def __call__(
        self, memory: Float[Array, "B n"], progress: Float[Array, " B"]
    ) -> tuple[Float[Array, "B n"], Float[Array, " B"]]:
        """Return the memory after another reading, and the steady progress."""
        newest = np.where(np.isfinite(progress), progress, memory[:, -1])
        memory = np.concatenate([memory[:, 1:], newest[:, None]], 1)
        return memory, np.sort(memory, axis=1)[:, self.of - self.agree]
