"""Abstention: which imagined verdicts to believe, by trust, and how often those are wrong (risk–coverage curves)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from vap_gym.errors import VapError
from vap_gym.evaluate.trials import as_outcomes


@dataclass(frozen=True, kw_only=True, eq=False)
class RiskCoverage:
    """How often verdicts are wrong among those that are believed, from the most trusted one to all.

    Point k believes every verdict whose trust is at least `threshold[k]`; equal trust is believed together.
    """

    threshold: Float[np.ndarray, " K"]  # falling
    coverage: Float[np.ndarray, " K"]  # share of verdicts that are believed, rising to 1
    risk: Float[np.ndarray, " K"]  # share of wrong ones among these
    area: float  # mean risk over all coverages; the lower the better
    area_best: float  # if every wrong verdict were trusted less than every right one
    area_chance: float  # if trust told nothing: the share of wrong verdicts

    def at_most(self, risk: float) -> tuple[float, float] | None:
        """Return the threshold that believes the most verdicts at this risk or less, and its coverage; None: there is
        none."""
        fits = np.flatnonzero(self.risk <= risk)
        if not len(fits):
            return None
        last = int(fits[-1])
        return float(self.threshold[last]), float(self.coverage[last])

    def risk_at(self, coverage: float) -> float:
        """Return the share of wrong verdicts where at least this share (0 to 1) is believed: the most trusted ones."""
        return float(self.risk[min(len(self.risk) - 1, int(np.searchsorted(self.coverage, coverage - 1e-9)))])

    @property
    def gain(self) -> float:
        """What trust gains over chance, as a share of what it could: 1 is the best order, 0 tells nothing, NaN where no
        verdict is wrong, or all are."""
        room = self.area_chance - self.area_best
        return (self.area_chance - self.area) / room if room > 0 else float("nan")


def risk_coverage(trust: ArrayLike, wrong: ArrayLike) -> RiskCoverage:
    """Return the risk–coverage curve of N verdicts (El-Yaniv & Wiener 2010).

    Args:
        trust: of each verdict, higher is surer, any unit; shape (N,).
        wrong: 1 where the imagined verdict was not the true one, else 0 (or a loss); NaN where it is not known, which
            leaves the verdict out.

    Raises:
        VapError: other shapes, NaN in trust, or no verdict whose truth is known.
    """
    sure, loss = as_outcomes("trust", trust), as_outcomes("wrong", wrong)
    if sure.shape != loss.shape or sure.ndim != 1 or np.isnan(sure).any() or not np.isfinite(loss).any():
        raise VapError(
            f"trust and wrong must be one number per verdict, trust always known and wrong at least once, got "
            f"{sure.shape} with {int(np.isnan(sure).sum())} NaN and {loss.shape} with {int(np.isnan(loss).sum())} NaN."
        )
    sure, loss = sure[np.isfinite(loss)], loss[np.isfinite(loss)]
    order = np.argsort(-sure, kind="stable")
    sure, ordered = sure[order], loss[order]
    last = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))  # of every run of equal trust
    believed = last + 1
    risk = ordered.cumsum()[last] / believed
    best = np.sort(loss).cumsum() / np.arange(1, len(loss) + 1)
    return RiskCoverage(
        threshold=sure[last],
        coverage=believed / len(loss),
        risk=risk,
        area=float((risk * np.diff(believed, prepend=0)).sum() / len(loss)),
        area_best=float(best.mean()),
        area_chance=float(loss.mean()),
    )
