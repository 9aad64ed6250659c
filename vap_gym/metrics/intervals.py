"""Intervals: a figure is told with how far it may be off, by bootstrap over independent samples."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vap_gym.errors import VapError


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and the interval that it lies in."""

    value: float
    low: float
    high: float
    level: float
    samples: int

    def __str__(self) -> str:
        """Return e.g. "0.612 [0.588, 0.634]"."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap_interval(
    values: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    statistic: Callable[[NDArray[np.float64]], float] | None = None,
) -> Interval:
    """Return a figure over n independent samples (episodes, not frames) and its percentile-bootstrap interval.

    Args:
        values: shape (n, ...); whole rows are drawn with replacement.
        statistic: from rows (n, ...) to a float; e.g. `np.median`, or a ratio of two columns' means. Default: the mean.

    Raises:
        VapError: no samples, NaN among them, or a level outside (0, 1).
    """
    rows = np.asarray(values, np.float64)
    if rows.ndim == 0 or len(rows) == 0 or np.isnan(rows).any():
        raise VapError(
            f"bootstrap needs at least one sample and no NaN, got {rows.shape} with {int(np.isnan(rows).sum())} NaN. "
            "Drop what does not apply first, e.g. values[~np.isnan(values)]."
        )
    if not 0 < level < 1:
        raise VapError(f"level must be between 0 and 1, got {level}. Try 0.95.")
    pick = np.random.default_rng(seed).integers(0, len(rows), (resamples, len(rows)))
    if statistic is None:
        statistic = np.mean
        drawn = rows[pick].mean(axis=tuple(range(1, rows.ndim + 1)))
    else:
        drawn = np.array([statistic(rows[one]) for one in pick])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(statistic(rows)), low=float(low), high=float(high), level=level, samples=len(rows))


def paired_bootstrap_interval(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean of a − b over n paired samples (the same episodes under two conditions) and its interval."""
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if left.shape != right.shape:
        raise VapError(f"Paired samples must have one shape, got {left.shape} and {right.shape}. Pair them by episode.")
    return bootstrap_interval(left - right, level=level, resamples=resamples, seed=seed)
