"""Agreement: how well imagined outcomes of policies stand for the true ones, and how much of it chance allows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from vap_gym.errors import VapError
from vap_gym.evaluate.trials import as_outcomes, paired_difference, start_numbers
from vap_gym.metrics import Interval, mmrv, pearson, spearman

Array = np.ndarray
FIGURES: Mapping[str, Callable[[Array, Array], float]] = {"pearson": pearson, "spearman": spearman, "mmrv": mmrv}


@dataclass(frozen=True, kw_only=True)
class Kruskal:
    """A Kruskal–Wallis test: do samples come from one distribution? A small p says that they do not."""

    statistic: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Perfect:
    """What a perfect simulator would score: median of many draws, and the range that holds `level` of them."""

    pearson: Interval
    spearman: Interval
    mmrv: Interval


@dataclass(frozen=True, kw_only=True)
class PolicyAgreement:
    """One policy's mean scores. Its trials are those whose outcome is known on both sides."""

    name: str
    trials: int
    imagined: float
    true: float
    bias: Interval  # imagined − true, over paired starts
    kruskal: Kruskal  # its imagined against its true outcomes, as in SIMPLER


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well a simulator orders and scores policies, each figure with its interval."""

    pearson: Interval  # 1 is perfect
    spearman: Interval  # 1 is perfect
    mmrv: Interval  # 0 is perfect
    resampled: str  # "starts" or "policies": over what the intervals are
    policies: tuple[PolicyAgreement, ...]  # () where mean scores alone were given
    differ: Kruskal | None  # true outcomes, policy against policy: is there anything to order?
    perfect: Perfect | None  # None where mean scores alone were given

    def to_json(self) -> dict[str, Any]:
        """Return plain containers."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a few lines to read."""
        lines = [f"over {self.resampled}, {round(100 * self.pearson.level)} % intervals"]
        for name in FIGURES:
            beside = "" if self.perfect is None else f"   a perfect simulator: {getattr(self.perfect, name)}"
            lines.append(f"{name:<9} {getattr(self, name)!s:<24}{beside}")
        if self.differ is not None:
            lines.append(f"the policies differ in truth: Kruskal–Wallis p = {self.differ.p:.3g}")
        width = max((len(policy.name) for policy in self.policies), default=0)
        lines += [
            f"  {one.name:<{width}}  imagined {one.imagined:.3f}  true {one.true:.3f}  bias {one.bias}"
            f"  p = {one.kruskal.p:.3g}  ({one.trials} trials)"
            for one in self.policies
        ]
        return "\n".join(lines)


def outcome_agreement(
    imagined: ArrayLike,
    true: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    starts: Iterable[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Return Pearson, Spearman and MMRV of policies' imagined and true scores, and each policy's bias.

    With outcomes (P, N) trial k of every policy, imagined and true, begins from the same start: starts are drawn anew,
    whole, for the percentile intervals. With mean scores (P,) policies are drawn instead. Resampling adds noise to
    noise, so that the interval of MMRV lies high and those of correlations low: read them as how bad it may be.

    Args:
        imagined, true: P policies' outcomes (success 0 or 1, or progress) of N trials, NaN where one is not known; or
            their mean scores. In the same order.
        names: of the policies; default: "policy 0", ….
        starts: from which start each trial begins, N labels; trials of one start (with other seeds) are drawn together.
            Default: every trial has a start of its own.
        level: of the intervals.
        resamples: how often starts or policies are drawn.
        seed: of the drawing.

    Raises:
        VapError: shapes that differ, fewer than two policies, a policy with no trial that is known on both sides, or
            scores that are the same for all policies.
    """
    sim, real = as_outcomes("imagined", imagined), as_outcomes("true", true)
    if sim.shape != real.shape or sim.ndim not in (1, 2) or sim.shape[0] < 2 or 0 in sim.shape:
        raise VapError(
            f"imagined and true must have one shape, (policies ≥ 2, trials ≥ 1) or (policies ≥ 2,), got {sim.shape} "
            f"and {real.shape}. Run the same policies from the same starts in both."
        )
    if not 0 < level < 1:
        raise VapError(f"level must be between 0 and 1, got {level}. Try 0.95.")
    rng = np.random.default_rng(seed)
    told = tuple(names) if names is not None else tuple(f"policy {i}" for i in range(len(sim)))
    if len(told) != len(sim):
        raise VapError(f"names must be one for each of {len(sim)} policies, got {len(told)}.")
    if sim.ndim == 1:
        values = {name: figure(sim, real) for name, figure in FIGURES.items()}
        rows = rng.integers(0, len(sim), (resamples, len(sim)))
        intervals = _intervals(values, sim[rows], real[rows], level, samples=len(sim))
        return Agreement(**intervals, resampled="policies", policies=(), differ=None, perfect=None)
    known = np.isfinite(sim) & np.isfinite(real)
    if not known.any(1).all():
        lost = [told[i] for i in np.flatnonzero(~known.any(1))]
        raise VapError(
            f"Every policy needs a trial whose outcome is known, imagined and true, got none of: {', '.join(lost)}. "
            "Leave these policies out, or play them again."
        )
    sim, real = np.where(known, sim, np.nan), np.where(known, real, np.nan)
    groups = start_numbers(starts, sim.shape[1])
    values = {name: figure(np.nanmean(sim, 1), np.nanmean(real, 1)) for name, figure in FIGURES.items()}
    counts = rng.multinomial(groups.max() + 1, np.full(groups.max() + 1, 1 / (groups.max() + 1)), resamples)
    sims, reals = (_means(side, known, groups, counts) for side in (sim, real))
    return Agreement(
        **_intervals(values, sims, reals, level, samples=int(groups.max()) + 1),
        resampled="starts",
        policies=tuple(_policy(told[i], sim[i], real[i], groups, level) for i in range(len(sim))),
        differ=kruskal_of([row[np.isfinite(row)] for row in real]),
        perfect=perfect_simulator(real, starts=starts, level=level, seed=seed),
    )


def perfect_simulator(
    true: ArrayLike,
    *,
    starts: Iterable[Hashable] | None = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Perfect:
    """Return what a simulator that is right about everything but luck would score, by resampling true outcomes.

    Both the simulator's and the true outcomes are drawn anew, policy by policy. Where every start was tried more than
    once, trials are drawn within their start: the same starts, other luck. Otherwise they are drawn from all: other
    starts of the same kind. (From the very same starts with the very same luck a perfect simulator scores 1, 1 and 0.)

    Args:
        true: outcomes (P, N), NaN where one is not known.
        starts: as for `outcome_agreement`.
    """
    real = as_outcomes("true", true)
    if real.ndim != 2 or real.shape[0] < 2 or not np.isfinite(real).any(1).all():
        raise VapError(f"true must be known outcomes (policies ≥ 2, trials ≥ 1), got shape {real.shape}.")
    groups = start_numbers(starts, real.shape[1])
    if np.bincount(groups).min() < 2:
        groups = np.zeros_like(groups)
    rng = np.random.default_rng([seed, 1])
    sims, reals = (np.stack([_redrawn(row, groups, draws, rng) for row in real], 1) for _ in range(2))
    found = _figures(sims, reals)
    tails = [(1 - level) / 2, 0.5, (1 + level) / 2]
    intervals = {}
    for name, values in found.items():
        if not len(values):
            raise VapError(
                f"A perfect simulator's {name} needs policies that differ, got the same true score for all. "
                "Evaluate policies of several qualities."
            )
        low, middle, high = (float(x) for x in np.quantile(values, tails))
        intervals[name] = Interval(value=middle, low=low, high=high, level=level, samples=real.shape[1])
    return Perfect(**intervals)


def kruskal_of(samples: Sequence[Float[Array, " _"]]) -> Kruskal:
    """Return the Kruskal–Wallis test of two or more samples; p is 1 where all their values are the same."""
    from scipy.stats import kruskal

    values = np.concatenate(list(samples))
    if np.ptp(values) == 0:  # scipy has no answer: there is nothing to rank
        return Kruskal(statistic=0.0, p=1.0)
    found = kruskal(*samples)
    return Kruskal(statistic=float(found.statistic), p=float(found.pvalue))


def _policy(name: str, sim: Array, real: Array, groups: Array, level: float) -> PolicyAgreement:
    known = np.isfinite(sim)
    mine, truth = sim[known], real[known]
    return PolicyAgreement(
        name=name,
        trials=int(known.sum()),
        imagined=float(mine.mean()),
        true=float(truth.mean()),
        bias=paired_difference(sim, real, starts=groups.tolist(), level=level),
        kruskal=kruskal_of([mine, truth]),
    )


def _means(values: Array, known: Array, groups: Array, counts: Array) -> Array:
    """Means (R, P) of values (P, N) when start g is drawn counts[r, g] times; NaN where no known trial was drawn."""
    belongs = np.eye(groups.max() + 1)[groups]  # (N, G)
    sums, numbers = np.where(known, values, 0.0) @ belongs, known @ belongs
    drawn = counts @ numbers.T
    return np.asarray(np.divide(counts @ sums.T, drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0))


def _redrawn(row: Array, groups: Array, draws: int, rng: np.random.Generator) -> Array:
    """Means (R,) of one policy's outcomes, drawn anew within each start."""
    total, number = np.zeros(draws), 0
    for group in range(groups.max() + 1):
        values = row[groups == group]
        values = values[np.isfinite(values)]
        if len(values):
            total += values[rng.integers(0, len(values), (draws, len(values)))].sum(1)
            number += len(values)
    return np.asarray(total / number)


def _figures(sims: Array, reals: Array) -> dict[str, Array]:
    """Every figure of each draw (R, P) that has one: where all policies tie there is nothing to correlate."""
    from scipy.stats import rankdata

    complete = np.isfinite(sims).all(1) & np.isfinite(reals).all(1)
    sims, reals = sims[complete], reals[complete]
    differ = (np.ptp(sims, 1) > 0) & (np.ptp(reals, 1) > 0)
    ranks = (np.asarray(rankdata(side[differ], axis=1)) for side in (sims, reals))
    wrong = (sims[:, :, None] > sims[:, None]) != (reals[:, :, None] > reals[:, None])
    return {
        "pearson": _correlations(sims[differ], reals[differ]),
        "spearman": _correlations(*ranks),
        "mmrv": (np.abs(reals[:, :, None] - reals[:, None]) * wrong).max(2).mean(1),
    }


def _correlations(a: Array, b: Array) -> Array:
    """Correlations (R,) of rows (R, P)."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return np.asarray((a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1)))


def _intervals(
    values: Mapping[str, float], sims: Array, reals: Array, level: float, *, samples: int
) -> dict[str, Interval]:
    tails = [(1 - level) / 2, (1 + level) / 2]
    found = {}
    for name, drawn in _figures(sims, reals).items():
        low, high = np.quantile(drawn, tails) if len(drawn) else (values[name], values[name])
        found[name] = Interval(
            value=float(values[name]), low=float(low), high=float(high), level=level, samples=samples
        )
    return found
