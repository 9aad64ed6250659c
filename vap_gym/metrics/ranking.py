"""Ranking: does a simulator order policies as reality does? MMRV, Pearson, Spearman, with intervals over trials.

Arguments are always (sim, real), in that order. They matter: MMRV weighs a wrong order by the *real* difference.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vap_gym.errors import VapError
from vap_gym.metrics.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class RankAgreement:
    """How well a simulator ranks policies, each figure with its interval over the trials."""

    mmrv: Interval  # 0 is perfect
    pearson: Interval  # 1 is perfect
    spearman: Interval  # likewise
    policies: int
    trials: int


def mmrv(sim: ArrayLike, real: ArrayLike) -> float:
    """Return the mean maximum rank violation (SIMPLER, Li et al. 2024) of n policies' scores; 0 is the best.

    Mean over policies i of the largest |real_i − real_j| among the policies j that sim and real order differently,
    (sim_i > sim_j) ≠ (real_i > real_j). In the unit of the scores: at most the largest real difference.

    Args:
        sim: each policy's score in the simulator, shape (n,).
        real: the same policies' scores in reality, in the same order. Not to be swapped with `sim`.
    """
    s, r = _scores(sim, real)
    disagree = (s[:, None] > s[None]) != (r[:, None] > r[None])
    return float((np.abs(r[:, None] - r[None]) * disagree).max(axis=1).mean())


def pearson(sim: ArrayLike, real: ArrayLike) -> float:
    """Return the linear correlation of n policies' scores, in [−1, 1].

    Raises:
        VapError: fewer than two policies, NaN, or all scores equal on one side: there is nothing to correlate then.
    """
    s, r = _scores(sim, real)
    for name, scores in (("sim", s), ("real", r)):
        if np.ptp(scores) == 0:
            raise VapError(
                f"A correlation needs scores that differ, got {name} = {scores[0]:g} for all {len(scores)} policies. "
                "Score more policies, or more trials of each; mmrv needs no spread."
            )
    # Of scores brought to [0, 1] first, so that tiny or huge ones neither vanish nor overflow when squared.
    s, r = ((x - x.min()) / np.ptp(x) for x in (s, r))
    s, r = s - s.mean(), r - r.mean()
    return float(np.clip(s @ r / np.sqrt((s @ s) * (r @ r)), -1, 1))


def spearman(sim: ArrayLike, real: ArrayLike) -> float:
    """Return the correlation of n policies' ranks, in [−1, 1]; policies that tie share their mean rank.

    Raises:
        VapError: as `pearson`.
    """
    s, r = _scores(sim, real)
    return pearson(_mean_ranks(s), _mean_ranks(r))


def rank_agreement(
    sim_trials: ArrayLike, real_trials: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> RankAgreement:
    """Return MMRV, Pearson and Spearman of policies' mean scores, with percentile-bootstrap intervals over the trials.

    Trial k of every policy, in sim and in reality, begins from the same start k: whole starts are drawn together, as
    pairing the starts is what makes a few dozen trials enough. Resampling adds noise to noise, so that the interval of
    MMRV lies high: read it as how bad it may be.

    Args:
        sim_trials, real_trials: score of each trial (success 0 or 1, or a progress), shape (policies, trials).
    """
    sim, real = np.asarray(sim_trials, np.float64), np.asarray(real_trials, np.float64)
    if sim.shape != real.shape or sim.ndim != 2 or sim.shape[0] < 2 or sim.shape[1] < 1:
        raise VapError(
            f"sim_trials and real_trials must have one shape (policies ≥ 2, trials ≥ 1), got {sim.shape} and "
            f"{real.shape}. Run every policy from the same starts in both."
        )
    if not 0 < level < 1:
        raise VapError(f"level must be between 0 and 1, got {level}. Try 0.95.")
    policies, trials = sim.shape
    pick = np.random.default_rng(seed).integers(0, trials, (resamples, trials))
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = {}
    for name, figure in (("mmrv", mmrv), ("pearson", pearson), ("spearman", spearman)):
        value = figure(sim.mean(1), real.mean(1))
        drawn = []
        for rows in pick:
            s, r = sim[:, rows].mean(1), real[:, rows].mean(1)
            if figure is mmrv or (np.ptp(s) > 0 and np.ptp(r) > 0):  # a draw in which all tie has no correlation
                drawn.append(figure(s, r))
        low, high = np.quantile(drawn, tails) if drawn else (value, value)
        intervals[name] = Interval(value=value, low=float(low), high=float(high), level=level, samples=trials)
    return RankAgreement(policies=policies, trials=trials, **intervals)


def _mean_ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank 1 is the lowest; equal scores share the mean of the ranks that they take up."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def _scores(sim: ArrayLike, real: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    s, r = np.asarray(sim, np.float64), np.asarray(real, np.float64)
    if s.shape != r.shape or s.ndim != 1 or len(s) < 2 or not (np.isfinite(s).all() and np.isfinite(r).all()):
        raise VapError(
            f"sim and real must be finite scores of the same two or more policies, shape (n,), got {s.shape} and "
            f"{r.shape} with {int((~np.isfinite(s)).sum() + (~np.isfinite(r)).sum())} NaN or infinite. "
            "Give one mean score per policy, in one order."
        )
    return s, r
