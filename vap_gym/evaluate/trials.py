"""Trials: how sure a success rate is, and how many trials it takes to know it, or to tell two policies apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vap_gym.errors import VapError
from vap_gym.metrics import Interval, bootstrap_interval, mmrv, pearson

MOST_TRIALS = 100_000  # what needs more is said not to be worth trying


def wilson(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """Return a success rate and its Wilson score interval (Wilson 1927): sound for few trials and for rates of 0 or 1.

    Raises:
        VapError: no trials, more successes than trials, or a level outside (0, 1).
    """
    from scipy.stats import binomtest

    if trials < 1 or not 0 <= successes <= trials:
        raise VapError(f"A rate needs 0 ≤ successes ≤ trials and trials ≥ 1, got {successes} of {trials}.")
    _check_share("level", level, 0.95)
    found = binomtest(successes, trials).proportion_ci(confidence_level=level, method="wilson")
    return Interval(value=successes / trials, low=float(found.low), high=float(found.high), level=level, samples=trials)


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, starts: Iterable[Hashable] | None = None, level: float = 0.95
) -> Interval:
    """Return the mean of a − b over paired trials, and its interval.

    For outcomes 0 and 1 from starts that were tried once, Agresti and Min's (2005): it is sound where the two hardly
    ever differ, and does not claim certainty where they never did. Otherwise whole starts are bootstrapped.

    Args:
        a, b: outcomes of the same N trials, NaN where one is not known: that trial is left out.
        starts: from which start each trial begins, N labels; default: each from its own.

    Raises:
        VapError: other shapes, or no trial that is known on both sides.
    """
    left, right = as_outcomes("a", a), as_outcomes("b", b)
    known = np.isfinite(left) & np.isfinite(right) if left.shape == right.shape else np.zeros(0, bool)
    if left.ndim != 1 or not known.any():
        raise VapError(
            f"A paired difference needs outcomes of the same trials, one or more known in both, got {left.shape} and "
            f"{right.shape}."
        )
    groups = start_numbers(starts, len(left))[known]
    left, right = left[known], right[known]
    if len(np.unique(groups)) == len(groups) and np.isin([left, right], (0.0, 1.0)).all():
        return _agresti_min(int((left > right).sum()), int((left < right).sum()), len(left), level)
    return mean_over_starts(left - right, groups, level=level)


def mean_over_starts(values: NDArray[np.float64], groups: NDArray[np.int64], *, level: float = 0.95) -> Interval:
    """Return the mean of known values (N,), and a bootstrap interval that draws whole starts (`start_numbers`)."""
    rows = np.stack([np.bincount(groups, values), np.bincount(groups)], 1)
    return bootstrap_interval(
        rows[rows[:, 1] > 0], level=level, statistic=lambda drawn: float(drawn[:, 0].sum() / drawn[:, 1].sum())
    )


def _agresti_min(only_a: int, only_b: int, n: int, level: float) -> Interval:
    """Wald's interval with half a pseudo trial in each of the four cells."""
    from scipy.stats import norm

    _check_share("level", level, 0.95)
    more_a, more_b, more = only_a + 0.5, only_b + 0.5, n + 2
    middle = (more_a - more_b) / more
    half = float(norm.ppf((1 + level) / 2)) * math.sqrt(more_a + more_b - (more_a - more_b) ** 2 / more) / more
    return Interval(
        value=(only_a - only_b) / n, low=max(middle - half, -1.0), high=min(middle + half, 1.0), level=level, samples=n
    )


def start_numbers(starts: Iterable[Hashable] | None, trials: int) -> NDArray[np.int64]:
    """Return the number of each trial's start, from 0 on in the order of their first trials; None: each its own."""
    if starts is None:
        return np.arange(trials)
    labels = list(starts)
    if len(labels) != trials:
        raise VapError(f"starts must have a label for each of {trials} trials, got {len(labels)}.")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(start, len(numbers)) for start in labels], np.int64)


def trials_for_width(rate: float, half_width: float, *, level: float = 0.95) -> int:
    """Return the fewest trials with which the Wilson interval of about this rate is at most ± half_width wide."""
    from scipy.stats import norm

    if not 0 <= rate <= 1:
        raise VapError(f"rate must be between 0 and 1, got {rate}. Where nothing is known, .5 needs the most trials.")
    _check_share("half_width", half_width, 0.1)
    _check_share("level", level, 0.95)
    z2 = float(norm.ppf((1 + level) / 2)) ** 2

    def narrow(n: int) -> bool:
        return math.sqrt(z2 * (n * rate * (1 - rate) + z2 / 4)) / (n + z2) <= half_width

    return _fewest(narrow, f"a rate of {rate:g} to be known to ± {half_width:g}")


def trials_to_tell_apart(
    rate_a: float, rate_b: float, *, correlation: float = 0.0, power: float = 0.8, level: float = 0.95
) -> int:
    """Return how many starts, each tried with both policies, tell two success rates apart (McNemar's test).

    Connor's formula (Biometrics 43, 1987) with the share of starts in which the outcomes differ taken from the
    correlation.

    Args:
        rate_a, rate_b: what the two policies are expected to reach.
        correlation: of the two policies' outcomes from the same start (phi); 0 where hard starts are hard for one
            alone, then pairing gains nothing. See `Report.correlation`.
        power: how likely a difference is to be found.

    Raises:
        VapError: equal rates, or a correlation that two such rates cannot have.
    """
    from scipy.stats import norm

    if rate_a == rate_b or not (min(rate_a, rate_b) >= 0 and max(rate_a, rate_b) <= 1):
        raise VapError(f"Two different rates between 0 and 1 are needed, got {rate_a} and {rate_b}.")
    _check_share("power", power, 0.8)
    _check_share("level", level, 0.95)
    spread = math.sqrt(rate_a * (1 - rate_a) * rate_b * (1 - rate_b))
    both = rate_a * rate_b + correlation * spread
    only_a, only_b = rate_a - both, rate_b - both
    if min(both, only_a, only_b, 1 - both - only_a - only_b) < -1e-9:
        low = (max(0.0, rate_a + rate_b - 1) - rate_a * rate_b) / spread
        high = (min(rate_a, rate_b) - rate_a * rate_b) / spread
        raise VapError(
            f"Outcomes of rates {rate_a} and {rate_b} can have a correlation of {low:.2f} to {high:.2f}, "
            f"got {correlation}."
        )
    differ, gap = only_a + only_b, rate_a - rate_b
    z_level, z_power = (float(norm.ppf(share)) for share in ((1 + level) / 2, power))
    needed = (z_level * math.sqrt(differ) + z_power * math.sqrt(max(differ - gap**2, 0.0))) ** 2 / gap**2
    return math.ceil(needed)


def trials_for_agreement(
    rates: ArrayLike,
    *,
    least_pearson: float | None = None,
    most_mmrv: float | None = None,
    likely: float = 0.5,
    draws: int = 400,
    seed: int = 0,
) -> int:
    """Return with how many trials of each policy even a perfect simulator meets a bound, as often as `likely`.

    Both sides are drawn anew: the simulator is right about every rate, and has luck of its own. With fewer trials a
    bound is not to be had, whatever the simulator.

    Args:
        rates: the policies' true success rates.
        least_pearson, most_mmrv: the bounds; at least one.
        draws: how often it is drawn for each number of trials.
    """
    if least_pearson is None and most_mmrv is None:
        raise VapError("A bound is needed: least_pearson, most_mmrv, or both. Got neither. Try most_mmrv=0.05.")
    known = np.asarray(rates, np.float64)
    if known.ndim != 1 or len(known) < 2 or np.ptp(known) == 0 or not ((known >= 0) & (known <= 1)).all():
        raise VapError(f"rates must be two or more in [0, 1] that differ, got {rates!r}.")
    _check_share("likely", likely, 0.5)

    def met(trials: int) -> bool:
        rng = np.random.default_rng([seed, trials])
        sim, real = rng.binomial(trials, known, (2, draws, len(known))) / trials
        return float(np.mean([_meets(s, r, least_pearson, most_mmrv) for s, r in zip(sim, real)])) >= likely

    return _fewest(met, "this agreement")


def _meets(sim: NDArray[np.float64], real: NDArray[np.float64], least: float | None, most: float | None) -> bool:
    if least is not None and (np.ptp(sim) == 0 or np.ptp(real) == 0 or pearson(sim, real) < least):
        return False
    return most is None or mmrv(sim, real) <= most


def _fewest(enough: Callable[[int], bool], what: str) -> int:
    """The smallest number that is enough: doubled until it is, then halved in between."""
    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_TRIALS:
            raise VapError(f"More than {MOST_TRIALS:,} trials are needed for {what}. Ask for less.")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def as_outcomes(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return outcomes as floats in which NaN stands for unknown. Raises VapError for what is infinite or no number."""
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise VapError(f"{name} must be numbers, NaN where it is not known, got {type(values).__name__}.") from error
    if np.isinf(found).any():
        raise VapError(f"{name} must be finite, or NaN where it is not known, got infinity.")
    return found


def _check_share(name: str, value: float, usual: float) -> None:
    if not 0 < value < 1:
        raise VapError(f"{name} must be between 0 and 1, got {value}. Try {usual}.")
