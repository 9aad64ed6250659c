"""Single signals of trust: what adherence and the spread over samples tell alone, beside the doubt that envs carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from vap_gym.evaluate.trust_bins import Bin, binned, group_weights, groups, off_by, rho
from vap_gym.trust import Expected
from vap_gym.trust.calibration import OFF_M, SHRUNK, Curve, bent

ADHERENCE, SPREAD, DOUBT = "adherence [px]", "spread over samples [grey levels]", "doubt, as info carries it"
PARTS = 4  # of a signal's range, equally many frames each


@dataclass(frozen=True, kw_only=True)
class Alone:
    """What is expected of frames from one signal: monotone curves, fitted as the shipped doubt is.

    Frames whose signal is not known (the gripper is not in the picture) are expected to be as those were, on average.
    """

    psnr: Curve
    risk: Curve
    unknown: tuple[float, float]

    def __call__(self, signal: Float[np.ndarray, "*batch"]) -> Expected:
        """Return what is expected of frames with such a signal; more of it is worse, NaN is not known."""
        known = np.isfinite(signal)
        told = np.where(known, signal, 0.0)[..., None]
        psnr_db, risk = (
            np.where(known, curve(told), mean) for curve, mean in zip((self.psnr, self.risk), self.unknown, strict=True)
        )
        return Expected(psnr_db=psnr_db, object_risk=np.clip(risk, 0.0, 1.0))

    @staticmethod
    def fit(
        signal: Float[np.ndarray, " N"], psnr_db: Float[np.ndarray, " N"], off: Bool[np.ndarray, " N"]
    ) -> Alone | None:
        """Fit to N frames; None where the signal is never known."""
        known = np.isfinite(signal)
        if not known.any():
            return None
        rest = ~known if (~known).any() else known
        told, hit = signal[known, None], off.astype(float)
        return Alone(
            psnr=bent(told, np.array([-1.0, 0.0]), psnr_db[known]),
            risk=bent(told, np.array([1.0, 0.0]), hit[known], shrunk=SHRUNK),
            unknown=(float(psnr_db[rest].mean()), float((1 - SHRUNK) * hit[rest].mean() + SHRUNK * hit.mean())),
        )


@dataclass(frozen=True, kw_only=True)
class Part:
    """Frames with much the same of a signal: what was expected of them, and what happened."""

    signal: float  # mean
    share: float  # of all frames
    psnr: Bin
    risk: Bin
    error_m: float  # of the object that is furthest off


@dataclass(frozen=True, kw_only=True)
class Worth:
    """How good the expectations are that come of something, over all held-out frames."""

    psnr_off_db: float  # mean absolute difference of expected and true PSNR, per frame
    psnr_apart_db: float  # of expected and mean true PSNR, over groups of frames of which much the same was expected
    psnr_rho: float  # Spearman's, of expected and true
    risk_apart: float  # as psnr_apart_db: expected calibration error
    brier: float
    risk_rho: float  # of the expected risk and the true error
    psnr_bins: list[Bin]
    risk_bins: list[Bin]
    parts: list[Part] = field(default_factory=list)  # by the signal, where it is a single one
    known: float = 1.0  # share of frames whose signal is known


def worth(told: Expected, psnr_db: Float[np.ndarray, "N S"], error_m: Float[np.ndarray, "N S"]) -> Worth:
    """Hold what is expected of N episodes' S frames against what happened."""
    off = (error_m > OFF_M).astype(float)
    psnr_bins, risk_bins = binned(told.psnr_db, psnr_db), binned(told.object_risk, off)
    return Worth(
        psnr_off_db=float(np.abs(told.psnr_db - psnr_db).mean()),
        psnr_apart_db=off_by(psnr_bins, group_weights(told.psnr_db)),
        psnr_rho=rho(told.psnr_db, psnr_db),
        risk_apart=off_by(risk_bins, group_weights(told.object_risk)),
        brier=float(np.square(told.object_risk - off).mean()),
        risk_rho=rho(told.object_risk, error_m),
        psnr_bins=psnr_bins,
        risk_bins=risk_bins,
    )


def singly(
    fitted: Mapping[str, Float[np.ndarray, "M S"]],
    fitted_psnr_db: Float[np.ndarray, "M S"],
    fitted_off: Bool[np.ndarray, "M S"],
    seen: Mapping[str, Float[np.ndarray, "N S"]],
    psnr_db: Float[np.ndarray, "N S"],
    error_m: Float[np.ndarray, "N S"],
) -> dict[str, Worth]:
    """Return what each signal is worth alone: fitted to M episodes, held against N others.

    Signals that are never known in either are left out.
    """
    found = {}
    for name, signal in fitted.items():
        alone = Alone.fit(signal.reshape(-1), fitted_psnr_db.reshape(-1), fitted_off.reshape(-1))
        held = seen[name]
        if alone is None or not np.isfinite(held).any():
            continue
        told = alone(held)
        one = worth(told, psnr_db, error_m)
        found[name] = Worth(
            **{**vars(one), "parts": _parts(held, told, psnr_db, error_m), "known": float(np.isfinite(held).mean())}
        )
    return found


def _parts(signal: np.ndarray, told: Expected, psnr_db: np.ndarray, error_m: np.ndarray) -> list[Part]:
    """The frames whose signal is known, in equal parts by how much of it there is."""
    off, flat = (error_m > OFF_M).astype(float), signal.reshape(-1)
    known = np.flatnonzero(np.isfinite(flat))
    parts = []
    for group in groups(flat[known], PARTS):
        rows = known[group]
        psnr, risk = (
            binned(expected, happened, [rows])[0]
            for expected, happened in ((told.psnr_db, psnr_db), (told.object_risk, off))
        )
        parts.append(
            Part(
                signal=float(flat[rows].mean()),
                share=len(rows) / flat.size,
                psnr=psnr,
                risk=risk,
                error_m=float(error_m.reshape(-1)[rows].mean()),
            )
        )
    return parts
