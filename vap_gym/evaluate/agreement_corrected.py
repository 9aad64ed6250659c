"""Correction: an imagined success rate, set right by a few true trials (prediction-powered inference)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from vap_gym.errors import VapError
from vap_gym.evaluate.trials import as_outcomes, wilson
from vap_gym.metrics import Interval

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A success rate from many imagined trials and few true ones, and what each of the two says alone."""

    rate: Interval  # corrected; `samples` are the true trials
    imagined: Interval  # of all imagined trials alone: precise, and maybe wrong
    true: Interval  # of the true trials alone: right, and wide
    weight: float  # of the imagined trials, 0 to 1; 0: they tell nothing
    worth: float  # how many true trials alone would give an interval as narrow


def corrected_rate(
    imagined: ArrayLike, true: ArrayLike, *, level: float = 0.95, weight: float | None = None
) -> Corrected:
    """Return a true mean outcome by prediction-powered inference (Angelopoulos et al. 2023, arXiv 2301.09633).

    The mean of the true trials, plus `weight` times what the imagined outcomes of the other starts are better than
    those of the starts that were truly tried. It is right on average however wrong imagination is, as long as the
    starts that are truly tried are drawn by chance. The interval is a Student's one, with a degree of freedom less
    where the weight is chosen; for outcomes 0 and 1 half a pseudo trial of each pair of outcomes is added to its
    variance (Agresti & Min 2005), or a few trials in which imagination happened to be right would claim to be certain.

    Args:
        imagined: outcome of every imagined trial, shape (N,); 0 or 1, or a progress.
        true: the true outcome of the same trial, NaN where it was not tried; three or more must be known.
        level: of the interval.
        weight: of the imagined trials; 1 is the paper's plain form; None chooses what makes the interval narrowest
            (arXiv 2311.01453), so that a useless imagination costs nothing.

    Raises:
        VapError: other shapes, or fewer than three true trials whose imagined outcome is known.
    """
    predicted, found = as_outcomes("imagined", imagined), as_outcomes("true", true)
    if predicted.shape != found.shape or predicted.ndim != 1:
        raise VapError(
            f"imagined and true must have one shape (trials,), got {predicted.shape} and {found.shape}. "
            "Put NaN where a trial was not truly run."
        )
    if weight is not None and not 0 <= weight <= 1:
        raise VapError(f"weight must be between 0 and 1, or None to have it chosen, got {weight}.")
    predicted, found = predicted[np.isfinite(predicted)], found[np.isfinite(predicted)]
    tried = np.isfinite(found)
    y, f, others = found[tried], predicted[tried], predicted[~tried]
    if len(y) < 3:
        raise VapError(f"A correction needs at least three true trials, got {len(y)}. Ten or more make it useful.")
    n, m = len(y), len(others)
    pairs, counts = _smoothed(y, f)
    covariance = np.cov(pairs, aweights=counts, ddof=0)
    freedom = n - 1
    if m == 0:
        weight = 0.0
    elif weight is None:
        freedom = n - 2
        weight = float(np.clip(covariance[0, 1] / max((1 + n / m) * covariance[1, 1], 1e-12), 0.0, 1.0))
    value = float(y.mean() + weight * (others.mean() - f.mean() if m else 0.0))
    left = covariance[0, 0] - 2 * weight * covariance[0, 1] + weight**2 * covariance[1, 1]  # of y − weight · f
    variance = left / freedom + (weight**2 * float(predicted.var()) / m if m else 0.0)
    alone = covariance[0, 0] / (n - 1)
    return Corrected(
        rate=_student(value, variance, n, freedom, level, bounded=_within(y, predicted)),
        imagined=_alone(predicted, level),
        true=_alone(y, level),
        weight=weight,
        worth=float(n * alone / variance) if variance > 0 else float(n),
    )


def _smoothed(y: Float[Array, " n"], f: Float[Array, " n"]) -> tuple[Float[Array, "2 k"], Float[Array, " k"]]:
    """Pairs of outcomes with their counts; binary ones with half a trial more of each of the four pairs."""
    pairs, counts = np.stack([y, f]), np.ones(len(y))
    if np.isin(pairs, (0.0, 1.0)).all():
        pairs = np.concatenate([pairs, [[0, 0, 1, 1], [0, 1, 0, 1]]], 1)
        counts = np.concatenate([counts, np.full(4, 0.5)])
    return pairs, counts


def _within(*values: Array) -> bool:
    return all(bool(((one >= 0) & (one <= 1)).all()) for one in values)


def _student(value: float, variance: float, n: int, freedom: int, level: float, *, bounded: bool) -> Interval:
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, freedom)) * variance**0.5
    low, high = value - half, value + half
    if bounded:
        low, value, high = (min(max(x, 0.0), 1.0) for x in (low, value, high))
    return Interval(value=value, low=low, high=high, level=level, samples=n)


def _alone(values: Float[Array, " n"], level: float) -> Interval:
    """The mean of outcomes by themselves: Wilson's interval where they are 0 and 1, Student's otherwise."""
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(int(values.sum()), len(values), level=level)
    spread = float(values.var(ddof=1)) / len(values)
    return _student(float(values.mean()), spread, len(values), len(values) - 1, level, bounded=_within(values))
