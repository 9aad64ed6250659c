"""Whether an episode is kept: by how far matches on the robot are off, how sure they are, and whose motion it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vap_gym.recover.matching import Matches, discrepancy_px, match_score
from vap_gym.recover.motion import MotionShare


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What an episode must meet. Chosen on some real episodes, tested on others (benchmarks/rectification.py)."""

    most_px: float = 10.0  # median distance between matched points; also what counts as near in a frame's score
    least_score: float = 0.45  # mean over frames of the confidence of near matches, in [0, 1]
    least_motion: float = 0.35  # share of the explicable motion that the robot explains; not asked where nothing moves
    least_visible: float = 0.2  # share of frames in which the robot is in view


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an episode is kept, why not, and the figures; those that could not be taken are NaN."""

    keep: bool
    reasons: tuple[str, ...]  # why it is discarded
    discrepancy_px: float
    score: float
    motion: float
    visible: float


def judged(
    matches: Sequence[Matches], motion: MotionShare | None, rule: Rule
) -> tuple[Verdict, Float[np.ndarray, " T"]]:
    """Judge an episode by each frame's matches on the robot; also return the frames' scores (NaN: nothing to match)."""
    scores = np.array([match_score(m, near_px=rule.most_px) for m in matches])
    off = np.array([discrepancy_px(m) for m in matches])
    sure = np.array([float(m.confidence.mean()) if len(m) else 0.0 for m in matches])
    seen = np.isfinite(scores)
    visible = float(seen.mean()) if len(seen) else 0.0
    score = float(scores[seen].mean()) if seen.any() else float("nan")
    discrepancy = _weighted_median(off, sure)
    ratio = motion.ratio if motion is not None else float("nan")
    reasons = []
    if visible < rule.least_visible:
        reasons.append(
            f"the robot is in view in {visible:.0%} of the frames (at least {rule.least_visible:.0%}): "
            "check the camera, or take another view"
        )
    if discrepancy > rule.most_px:
        reasons.append(f"matches on the robot are {discrepancy:.1f} px off in the median (at most {rule.most_px:g})")
    if not score >= rule.least_score and visible > 0:
        reasons.append(f"the robot is found with a score of {score:.2f} (at least {rule.least_score:g})")
    if ratio < rule.least_motion:
        reasons.append(f"the robot explains {ratio:.0%} of the explicable motion (at least {rule.least_motion:.0%})")
    verdict = Verdict(
        keep=not reasons,
        reasons=tuple(reasons),
        discrepancy_px=discrepancy,
        score=score,
        motion=ratio,
        visible=visible,
    )
    return verdict, scores


def _weighted_median(values: Float[np.ndarray, " T"], weight: Float[np.ndarray, " T"]) -> float:
    known = np.isfinite(values) & (weight > 0)
    if not known.any():
        return float("nan")
    order = np.argsort(values[known])
    total = np.cumsum(weight[known][order])
    return float(values[known][order][np.searchsorted(total, 0.5 * total[-1])])
