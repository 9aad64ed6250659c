"""Scores of trust: whether doubt ranks errors rightly, and whether what is expected is what happens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vap_gym.metrics import Interval, bootstrap_interval, spearman
from vap_gym.trust import SIGNALS, Calibration
from vap_gym.trust.calibration import OFF_M

BINS = 8
COVERAGE = np.linspace(0.1, 1.0, 19)
DOUBT = {"step": 1, "changed": 1, "thing_spread_m": 1, "thing_moved_m": 1, "near_m": -1, "filled": 1}  # +: more, worse


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Frames for which much the same was expected."""

    expected: float
    happened: Interval  # episodes are resampled


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Risk and coverage: the mean error of the episodes that are kept, where those in doubt are left out."""

    by_doubt: Float[np.ndarray, " C"]
    by_error: Float[np.ndarray, " C"]  # the best that could be: by the true errors
    random: float  # whichever are left out

    @property
    def gained(self) -> float:
        """The share of what the best ordering gains over a random one, in area under the curve: at most 1; 0: none."""
        best = self.random - self.by_error.mean()
        return float((self.random - self.by_doubt.mean()) / best) if best > 1e-12 else 0.0


@dataclass(frozen=True, kw_only=True)
class Checked:
    """All that the page tells of one env."""

    episodes: int
    ranks: dict[str, tuple[float, float, float, float]]
    """Of each signal: Spearman's ρ with the picture's and the objects' error, and what is gained by leaving out."""
    psnr_bins: list[Bin]
    risk_bins: list[Bin]
    psnr_off_db: float  # mean absolute difference of expected and true PSNR, per frame
    psnr_usual_db: float  # the same where the mean was expected throughout
    risk_off: float  # expected calibration error of the risk
    brier: float
    brier_usual: float  # of a risk that is the mean throughout
    off_share: float  # of frames
    picture_kept: Kept
    object_kept: Kept


def check(
    calibration: Calibration,
    signals: Float[np.ndarray, "N S F"],
    spread_grey: Float[np.ndarray, "N S"],
    psnr_db: Float[np.ndarray, "N S"],
    error_m: Float[np.ndarray, "N S"],
) -> Checked:
    """Hold what is expected of N episodes' S frames against what happened."""
    told = calibration(signals)
    off = (error_m > OFF_M).astype(float)
    doubts = {name: DOUBT[name] * signals[..., i] for i, name in enumerate(SIGNALS)}
    if np.isfinite(spread_grey).all():
        doubts["spread over samples"] = spread_grey
    doubts["expected PSNR"] = -told.psnr_db
    doubts["object risk"] = told.object_risk
    picture, thing = -psnr_db, error_m
    ranks = {
        name: (
            _rho(doubt, picture), _rho(doubt, thing),
            kept(doubt.mean(1), picture.mean(1)).gained, kept(doubt[:, -1], thing[:, -1]).gained,
        )
        for name, doubt in doubts.items()
    }  # fmt: skip
    risk_bins = _bins(told.object_risk, off)
    weights = _weights(told.object_risk)
    return Checked(
        episodes=len(signals),
        ranks=ranks,
        psnr_bins=_bins(told.psnr_db, psnr_db),
        risk_bins=risk_bins,
        psnr_off_db=float(np.abs(told.psnr_db - psnr_db).mean()),
        psnr_usual_db=float(np.abs(psnr_db.mean() - psnr_db).mean()),
        risk_off=float(sum(w * abs(b.expected - b.happened.value) for w, b in zip(weights, risk_bins, strict=True))),
        brier=float(np.square(told.object_risk - off).mean()),
        brier_usual=float(np.square(off.mean() - off).mean()),
        off_share=float(off.mean()),
        picture_kept=kept(-told.psnr_db.mean(1), picture.mean(1)),
        object_kept=kept(told.object_risk[:, -1], thing[:, -1]),
    )


def kept(doubt: Float[np.ndarray, " N"], error: Float[np.ndarray, " N"]) -> Kept:
    """Return the mean error of the share COVERAGE of episodes that is doubted least."""
    counts = np.maximum(1, np.round(COVERAGE * len(error)).astype(int))

    def means(order: np.ndarray) -> np.ndarray:
        return np.array([error[order[:count]].mean() for count in counts])

    return Kept(
        by_doubt=means(np.argsort(doubt, kind="stable")), by_error=means(np.argsort(error)), random=float(error.mean())
    )


def _rho(doubt: np.ndarray, error: np.ndarray) -> float:
    if np.ptp(doubt) == 0 or np.ptp(error) == 0:
        return 0.0
    return float(spearman(doubt.reshape(-1), error.reshape(-1)))


def _groups(expected: np.ndarray) -> list[np.ndarray]:
    """Frames in groups of much the same expectation: equally many, ties kept together."""
    flat = expected.reshape(-1)
    edges = np.unique(np.quantile(flat, np.linspace(0, 1, BINS + 1)[1:-1]))
    which = np.searchsorted(edges, flat, side="right")
    return [np.flatnonzero(which == i) for i in range(len(edges) + 1) if (which == i).any()]


def _weights(expected: np.ndarray) -> list[float]:
    return [len(group) / expected.size for group in _groups(expected)]


def _bins(expected: np.ndarray, happened: np.ndarray) -> list[Bin]:
    steps = expected.shape[1]
    bins = []
    for group in _groups(expected):
        of = group // steps  # frames of an episode are no independent samples
        values = happened.reshape(-1)[group]
        pairs = np.array([[values[of == i].sum(), (of == i).sum()] for i in np.unique(of)])
        said = bootstrap_interval(pairs, resamples=500, statistic=lambda v: float(v[:, 0].sum() / v[:, 1].sum()))
        bins.append(Bin(expected=float(expected.reshape(-1)[group].mean()), happened=said))
    return bins
