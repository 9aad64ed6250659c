"""Bins of expectations: frames of which much the same was expected, and what happened in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vap_gym.metrics import Interval, bootstrap_interval, spearman

BINS = 8


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Frames for which much the same was expected."""

    expected: float
    happened: Interval  # episodes are resampled


def binned(expected: np.ndarray, happened: np.ndarray, which: Sequence[np.ndarray] | None = None) -> list[Bin]:
    """Return what was expected and what happened, both (N, S), in groups of the N·S frames; None: `groups`."""
    steps = expected.shape[1]
    bins = []
    for group in groups(expected) if which is None else which:
        of = group // steps  # frames of an episode are no independent samples
        values = happened.reshape(-1)[group]
        pairs = np.array([[values[of == i].sum(), (of == i).sum()] for i in np.unique(of)])
        said = bootstrap_interval(pairs, resamples=500, statistic=lambda v: float(v[:, 0].sum() / v[:, 1].sum()))
        bins.append(Bin(expected=float(expected.reshape(-1)[group].mean()), happened=said))
    return bins


def groups(expected: np.ndarray, count: int = BINS) -> list[np.ndarray]:
    """Return the numbers of frames in groups of much the same expectation: equally many, ties kept together."""
    flat = expected.reshape(-1)
    edges = np.unique(np.quantile(flat, np.linspace(0, 1, count + 1)[1:-1]))
    which = np.searchsorted(edges, flat, side="right")
    return [np.flatnonzero(which == i) for i in range(len(edges) + 1) if (which == i).any()]


def group_weights(expected: np.ndarray) -> list[float]:
    """Return the share of frames that each of `groups` has."""
    return [len(group) / expected.size for group in groups(expected)]


def off_by(bins: Sequence[Bin], weights: Sequence[float]) -> float:
    """Return how far what happened is from what was expected, mean over bins: the expected calibration error."""
    return float(sum(w * abs(b.expected - b.happened.value) for w, b in zip(weights, bins, strict=True)))


def rho(doubt: np.ndarray, error: np.ndarray) -> float:
    """Return Spearman's ρ over all frames; 0 where one of them is the same throughout."""
    if np.ptp(doubt) == 0 or np.ptp(error) == 0:
        return 0.0
    return float(spearman(doubt.reshape(-1), error.reshape(-1)))
