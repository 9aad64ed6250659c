"""Scores of trust: whether doubt ranks errors rightly, and whether what is expected is what happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vap_gym.evaluate.trust_alone import DOUBT as CARRIED
from vap_gym.evaluate.trust_alone import Worth, worth
from vap_gym.evaluate.trust_bins import Bin, rho
from vap_gym.trust import SIGNALS, Calibration
from vap_gym.trust.calibration import OFF_M

COVERAGE = np.linspace(0.1, 1.0, 19)
DOUBT = {"step": 1, "changed": 1, "thing_spread_m": 1, "thing_moved_m": 1, "near_m": -1, "filled": 1}  # +: more, worse


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
    alone: dict[str, Worth]
    """What single signals are worth alone, and the doubt that envs carry beside them."""


def check(
    calibration: Calibration,
    signals: Float[np.ndarray, "N S F"],
    spread_grey: Float[np.ndarray, "N S"],
    psnr_db: Float[np.ndarray, "N S"],
    error_m: Float[np.ndarray, "N S"],
    *,
    adherence_px: Float[np.ndarray, "N S"] | None = None,
    alone: Mapping[str, Worth] | None = None,
) -> Checked:
    """Hold what is expected of N episodes' S frames against what happened.

    Args:
        adherence_px: where it is not known (NaN) it ranks in the middle. None: the judge does not know the gripper.
        alone: see `trust_alone.singly`.
    """
    told = calibration(signals)
    off = (error_m > OFF_M).astype(float)
    doubts = {name: DOUBT[name] * signals[..., i] for i, name in enumerate(SIGNALS)}
    if np.isfinite(spread_grey).all():
        doubts["spread over samples"] = spread_grey
    if adherence_px is not None and np.isfinite(adherence_px).any():
        doubts["adherence"] = np.where(np.isfinite(adherence_px), adherence_px, np.nanmedian(adherence_px))
    doubts["expected PSNR"] = -told.psnr_db
    doubts["object risk"] = told.object_risk
    picture, thing = -psnr_db, error_m
    ranks = {
        name: (
            rho(doubt, picture), rho(doubt, thing),
            kept(doubt.mean(1), picture.mean(1)).gained, kept(doubt[:, -1], thing[:, -1]).gained,
        )
        for name, doubt in doubts.items()
    }  # fmt: skip
    carried = worth(told, psnr_db, error_m)
    return Checked(
        episodes=len(signals),
        ranks=ranks,
        psnr_bins=carried.psnr_bins,
        risk_bins=carried.risk_bins,
        psnr_off_db=carried.psnr_off_db,
        psnr_usual_db=float(np.abs(psnr_db.mean() - psnr_db).mean()),
        risk_off=carried.risk_apart,
        brier=carried.brier,
        brier_usual=float(np.square(off.mean() - off).mean()),
        off_share=float(off.mean()),
        picture_kept=kept(-told.psnr_db.mean(1), picture.mean(1)),
        object_kept=kept(told.object_risk[:, -1], thing[:, -1]),
        alone={**(alone or {}), CARRIED: carried},
    )


def kept(doubt: Float[np.ndarray, " N"], error: Float[np.ndarray, " N"]) -> Kept:
    """Return the mean error of the share COVERAGE of episodes that is doubted least."""
    counts = np.maximum(1, np.round(COVERAGE * len(error)).astype(int))

    def means(order: np.ndarray) -> np.ndarray:
        return np.array([error[order[:count]].mean() for count in counts])

    return Kept(
        by_doubt=means(np.argsort(doubt, kind="stable")), by_error=means(np.argsort(error)), random=float(error.mean())
    )
