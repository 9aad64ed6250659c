"""Several data sets mixed by weight: everything about clip i follows from the seed and i, whoever asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vap_gym.data.layout import DataError


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Weights of several sets, any positive numbers; a set has its share of all clips in expectation, exactly."""

    weights: tuple[float, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        w = np.asarray(self.weights, np.float64)
        if not len(w) or not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0:
            raise DataError(
                f"Weights must be finite, at least 0 and not all 0, got {list(self.weights)}. "
                "Equal ones mix sets alike; numbers of frames mix them as if they were one."
            )
        if self.seed < 0:
            raise DataError(f"A seed must be a whole number of at least 0, got {self.seed}. Try 0.")

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each set."""
        total = sum(self.weights)
        return tuple(weight / total for weight in self.weights)

    def rng(self, index: int) -> np.random.Generator:
        """Return the generator of clip `index` >= 0: its own, so that neither order nor workers matter."""
        return np.random.default_rng([self.seed, index])

    def draw(self, rng: np.random.Generator) -> int:
        """Return which set the clip comes from; the first number that the clip's generator gives."""
        return choose(self.weights, rng)


def choose(weights: Sequence[float] | np.ndarray, rng: np.random.Generator) -> int:
    """Return a number below len(weights) with the probability of its weight; those of weight 0 never."""
    total = np.cumsum(np.asarray(weights, np.float64))
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))
