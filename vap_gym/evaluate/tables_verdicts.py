"""Verdicts: whether an ordering holds is read from the measured figures by rule, and said in a plain sentence.

A figure is the mean over episodes (the median for adherence) of each episode's mean over seeds; its interval is a
bootstrap over episodes. One row is above another where their intervals are apart. That is asked of every metric, set
and split that the ordering names, and an ordering that fails any of them does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vap_gym.evaluate.tables_plan import OrderingPlan
from vap_gym.evaluate.tables_scores import Scores, matched
from vap_gym.metrics import Interval, bootstrap_interval, paired_bootstrap_interval

LOWER_IS_BETTER = ("adherence_px",)
MEDIANS = ("adherence_px",)
NAMES = {
    "psnr": "PSNR, dB", "ssim": "SSIM", "st_iou": "ST-IoU", "adherence_px": "adherence, px",
    "j_and_f": "J&F", "j": "J", "f": "F",
}  # fmt: skip
LEAST_EPISODES = 3  # fewer have no interval worth the name


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One cell of a table: the figure with its interval, and what each seed gave."""

    interval: Interval
    seeds: tuple[float, ...]

    def __str__(self) -> str:
        """Return "21.3 [20.9, 21.7]", and what the seeds gave where there are several."""
        text = f"{self.interval.value:.3g} [{self.interval.low:.3g}, {self.interval.high:.3g}]"
        return text if len(self.seeds) < 2 else f"{text} ({', '.join(f'{v:.3g}' for v in self.seeds)})"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an ordering holds, and a sentence on it. `holds` is None where it could not be measured."""

    claim: str
    source: str
    holds: bool | None
    sentence: str

    @property
    def word(self) -> str:
        """For a table's cell."""
        return {True: "holds", False: "does not hold", None: "not measured"}[self.holds]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a comparison is made."""

    set: str
    split: str
    metric: str


Measured = Mapping[tuple[str, str, str], Sequence[Scores]]
"""(row, set, split) → the scores of each seed."""


def figure(scores: Sequence[Scores], metric: str) -> Figure | None:
    """Return a row's figure; None where the metric applies to fewer than LEAST_EPISODES episodes."""
    if not scores:
        return None
    values, applies = matched(list(scores), metric)
    if applies.sum() < LEAST_EPISODES:
        return None
    kept = values[:, applies]
    return Figure(interval=_interval(kept.mean(0), metric), seeds=tuple(_statistic(one, metric) for one in kept))


def verdict(ordering: OrderingPlan, places: Sequence[Place], titles: Mapping[str, str], measured: Measured) -> Verdict:
    """Judge an ordering by what was measured.

    Args:
        ordering: what shall hold.
        places: sets, splits and metrics in which it shall.
        titles: how rows and sets are called.
        measured: scores by row, set and split.
    """
    failed, missing, held = [], [], 0
    for place in places:
        for better, worse in pairwise(ordering.order):
            given = [measured.get((row, place.set, place.split), ()) for row in (better, worse)]
            said = _compare(given[0], given[1], place, better, worse, titles, ordering.must_be_apart)
            if said is None:
                missing.append(f"{NAMES[place.metric]} on {_where(place, titles)}")
            elif said:
                failed.append(said)
            else:
                held += 1
    absent = f" Not measured: {_list(list(dict.fromkeys(missing)))}." if missing else ""
    if failed:
        sentence = f"{ordering.claim}: this does not hold at our scale. {' '.join(failed)}{absent}"
        return Verdict(claim=ordering.claim, source=ordering.source, holds=False, sentence=sentence)
    if missing or not held:
        sentence = f"{ordering.claim}: not measured, or not everywhere.{absent}"
        return Verdict(claim=ordering.claim, source=ordering.source, holds=None, sentence=sentence)
    how = "with intervals apart" if ordering.must_be_apart else "none is measurably worse than the next"
    sentence = f"{ordering.claim}: this holds, {how}, in all {held} comparison(s)."
    return Verdict(claim=ordering.claim, source=ordering.source, holds=True, sentence=sentence)


def _compare(
    better: Sequence[Scores],
    worse: Sequence[Scores],
    place: Place,
    better_name: str,
    worse_name: str,
    titles: Mapping[str, str],
    must_be_apart: bool,
) -> str | None:
    """Return "" where `better` is above `worse`, None where that was not measured, else what was measured instead."""
    count = min(len(better), len(worse))  # seeds that both were trained with, the first ones
    if not count:
        return None
    better, worse = better[:count], worse[:count]
    metric, sign = place.metric, -1.0 if place.metric in LOWER_IS_BETTER else 1.0
    (a, applies_a), (b, applies_b) = (matched(list(scores), metric) for scores in (better, worse))
    both = applies_a & applies_b
    if both.sum() < LEAST_EPISODES:
        return None
    left, right = a[:, both].mean(0), b[:, both].mean(0)
    one, other = _interval(left, metric), _interval(right, metric)
    ahead = paired_bootstrap_interval(sign * left, sign * right)
    if must_be_apart:
        good = one.high < other.low if metric in LOWER_IS_BETTER else one.low > other.high
    else:
        good = ahead.high >= 0
    if good:
        return ""
    apart = other.high < one.low if metric in LOWER_IS_BETTER else other.low > one.high
    names = [titles.get(name, name) for name in (better_name, worse_name)]
    if apart:
        how = "it is the other way round"
    elif not must_be_apart:
        how = "it is measurably worse, episode by episode"
    else:
        pairs = "the better, episode by episode" if ahead.low > 0 else "no measurable difference, episode by episode"
        pairs = "the worse, episode by episode" if ahead.high < 0 else pairs
        how = f"the intervals overlap ({pairs})"
    return f"On {_where(place, titles)}, {NAMES[metric]}: {names[0]} {one}, {names[1]} {other}; {how}."


def _where(place: Place, titles: Mapping[str, str]) -> str:
    name = titles.get(place.set, place.set)
    return name if place.split == "known" else f"{name}, {titles.get(f'{place.set} {place.split}', place.split)}"


def _interval(values: Float[np.ndarray, " N"], metric: str) -> Interval:
    if metric not in MEDIANS:
        return bootstrap_interval(values)  # all resamples at once
    return bootstrap_interval(values, statistic=lambda rows: float(np.median(rows)))


def _statistic(values: NDArray[np.float64], metric: str) -> float:
    return float(np.median(values) if metric in MEDIANS else np.mean(values))


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
