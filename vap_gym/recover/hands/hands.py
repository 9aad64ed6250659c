"""The hands of a video after Algorithm 1: one left and one right at most, gaps filled, trajectories smoothed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from numpy.typing import NDArray

from vap_gym.recover.hands.detections import Detections
from vap_gym.recover.hands.linking import TrackSettings, hand_size
from vap_gym.recover.hands.smoothing import OneEuro, one_euro, runs, zero_lag
from vap_gym.recover.hands.tracklets import algorithm_1

ABSENT, DETECTED, REESTIMATED, INTERPOLATED = range(4)
"""Where a hand of a frame comes from: nowhere, a detector, a recoverer called again on an interpolated box, or its
neighbours in time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Hands:
    """The left (0) and right (1) hand of T frames; NaN where a hand is absent, `joints_m` also where 3-D is unknown."""

    joints_px: Float[np.ndarray, "T 2 21 2"]
    joints_m: Float[np.ndarray, "T 2 21 3"]
    box_px: Float[np.ndarray, "T 2 4"]
    confidence: Float[np.ndarray, "T 2"]
    source: UInt8[np.ndarray, "T 2"]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def present(self) -> Bool[np.ndarray, "T 2"]:
        """Where there is a hand."""
        there: NDArray[np.bool_] = self.source != ABSENT
        return there

    def part(self, start: int, stop: int) -> Hands:
        """Return the frames start … stop − 1."""
        s = slice(start, stop)
        return Hands(
            joints_px=self.joints_px[s],
            joints_m=self.joints_m[s],
            box_px=self.box_px[s],
            confidence=self.confidence[s],
            source=self.source[s],
        )


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What a mesh recoverer says of N boxes: joints in px of the picture, and in metres in the camera (NaN if unknown).

    A hand that it does not find has NaN joints.
    """

    joints_px: Float[np.ndarray, "N 21 2"]
    joints_m: Float[np.ndarray, "N 21 3"]
    confidence: Float[np.ndarray, "N"]


Estimate = Callable[[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]], Recovered]
"""(frame (N,), box_px (N,4), is_right (N,)) → the hands in these boxes: a recoverer bound to a video."""


ZERO_LAG_FILTER = OneEuro(min_cutoff_hz=3.0, beta=3.0, d_cutoff_hz=1.0)
CAUSAL_FILTER = OneEuro(min_cutoff_hz=3.0, beta=32.0, d_cutoff_hz=2.0)


@dataclass(frozen=True, kw_only=True)
class HandSettings:
    """Settings of the whole recovery. Speed in the filter is told in hand sizes a second."""

    tracks: TrackSettings = field(default_factory=TrackSettings)
    outlier: float = 0.12  # a hand this far (hand sizes) from where its neighbours in time put it is mistaken
    fill_gap: int = 20  # missed frames in a row that are filled
    causal: bool = False  # filter as in real time, with lag
    filter: OneEuro | None = None  # None: what suits `causal`

    @property
    def one_euro(self) -> OneEuro:
        """The filter's settings. A filter with lag must open sooner; found by trial on the synthetic hands."""
        return self.filter or (CAUSAL_FILTER if self.causal else ZERO_LAG_FILTER)


def gather(table: Detections, rows: Int64[np.ndarray, "T 2"]) -> Hands:
    """Return the chosen detections as hands."""
    absent = rows < 0

    def column(values: NDArray[np.float64]) -> NDArray[np.float64]:
        filled = np.full((*rows.shape, *values.shape[1:]), np.nan)
        filled[~absent] = values[rows[~absent]]
        return filled

    return Hands(
        joints_px=column(table.joints_px),
        joints_m=column(table.joints_m),
        box_px=column(table.box_px),
        confidence=np.nan_to_num(column(table.confidence)),
        source=np.where(absent, ABSENT, DETECTED).astype(np.uint8),
    )


def without_outliers(hands: Hands, limit: float) -> Hands:
    """Return hands without those that jump: far from the line between their neighbours in time, and back again.

    Far is `limit` hand sizes per frame between the neighbours, on the mean of all joints: a detection that is of the
    other hand, or of none.
    """
    source = hands.source.copy()
    for side in range(2):
        (seen,) = np.nonzero(hands.present[:, side])
        if len(seen) < 3:
            continue
        joints, time = hands.joints_px[seen, side], seen.astype(np.float64)
        span = time[2:] - time[:-2]
        share = ((time[1:-1] - time[:-2]) / span)[:, None, None]
        between = (1 - share) * joints[:-2] + share * joints[2:]
        off = np.linalg.norm(joints[1:-1] - between, axis=-1).mean(-1) / hand_size(hands.box_px[seen[1:-1], side])
        ends = np.linalg.norm(joints[2:] - joints[:-2], axis=-1).mean(-1) / hand_size(hands.box_px[seen[1:-1], side])
        jumps = (off > limit) & (off > ends) & (span <= 8)
        highest = np.ones(len(off), bool)  # of neighbours that both jump, the one farther off is to blame
        highest[1:] &= off[1:] >= off[:-1]
        highest[:-1] &= off[:-1] > off[1:]
        source[seen[1:-1][jumps & highest], side] = ABSENT
    return _cleared(replace(hands, source=source))


def fill(
    hands: Hands,
    max_gap: int,
    estimate: Estimate | None = None,
    tracked_px: Float[np.ndarray, "T 2 4"] | None = None,
) -> Hands:
    """Return hands with gaps of up to `max_gap` frames filled.

    Boxes are those of a tracker where it has one (`tracked_px`, else NaN), and interpolated in time. `estimate` is
    asked for the joints in them; where there is none, or it finds no hand, joints are interpolated too (and flagged
    so).
    """
    filled = {name: getattr(hands, name).copy() for name in ("joints_px", "joints_m", "box_px", "confidence", "source")}
    for side in range(2):
        (seen,) = np.nonzero(hands.present[:, side])
        if len(seen) < 2:
            continue
        gap = np.diff(seen) - 1
        (open_,) = np.nonzero((gap > 0) & (gap <= max_gap))
        at = np.repeat(open_, gap[open_])
        if not len(at):
            continue
        begin = np.cumsum(gap[open_]) - gap[open_]
        frames = seen[at] + 1 + np.arange(len(at)) - np.repeat(begin, gap[open_])
        for name in ("joints_px", "joints_m", "box_px", "confidence"):
            filled[name][frames, side] = interpolated(seen, getattr(hands, name)[seen, side], frames, at)
        filled["source"][frames, side] = INTERPOLATED
        if tracked_px is not None:
            known = np.isfinite(tracked_px[frames, side]).all(-1)
            filled["box_px"][frames[known], side] = tracked_px[frames[known], side]
        if estimate is not None:
            found = estimate(frames, filled["box_px"][frames, side], np.full(len(frames), side == 1))
            (good,) = np.nonzero(np.isfinite(found.joints_px).all((1, 2)))
            filled["joints_px"][frames[good], side] = found.joints_px[good]
            filled["joints_m"][frames[good], side] = found.joints_m[good]
            filled["confidence"][frames[good], side] = found.confidence[good]
            filled["source"][frames[good], side] = REESTIMATED
    return Hands(**filled)


def interpolated(
    seen: Int64[np.ndarray, "S"],
    values: Float[np.ndarray, "S *channels"],
    frames: Int64[np.ndarray, "N"],
    at: Int64[np.ndarray, "N"],
) -> Float[np.ndarray, "N *channels"]:
    """Return values at `frames`, each between seen[at] and seen[at + 1]: a cubic curve along the motion on both sides.

    Slopes at the ends are those to the neighbours beyond them (a Catmull-Rom curve over uneven times), so that a gap
    in a bend is not cut short; without neighbours the curve is a line.
    """
    time = seen.astype(np.float64)
    before, after = np.maximum(at - 1, 0), np.minimum(at + 2, len(seen) - 1)

    def over(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
        slope: NDArray[np.float64] = (values[b] - values[a]) / _wide(time[b] - time[a], values)
        return slope

    width = _wide(time[at + 1] - time[at], values)
    share = (_wide(frames - time[at], values)) / width
    slope_in, slope_out = over(before, at + 1) * width, over(at, after) * width
    a, b = values[at], values[at + 1]
    curve: NDArray[np.float64] = (
        (1 + 2 * share) * (1 - share) ** 2 * a
        + share * (1 - share) ** 2 * slope_in
        + share**2 * (3 - 2 * share) * b
        - share**2 * (1 - share) * slope_out
    )
    return curve


def smooth(hands: Hands, rate_hz: float, settings: OneEuro, *, causal: bool = False) -> Hands:
    """Return hands with joints and boxes filtered along time, each run without gaps by itself."""
    chosen = one_euro if causal else zero_lag
    joints_px, joints_m, box_px = hands.joints_px.copy(), hands.joints_m.copy(), hands.box_px.copy()
    for side in range(2):
        for start, stop in runs(hands.present[:, side]):
            s = slice(start, stop)
            size = np.full((stop - start, 1, 1), np.median(hand_size(hands.box_px[s, side])))
            joints_px[s, side] = chosen(joints_px[s, side], rate_hz, settings, scale=size)
            box_px[s, side] = chosen(box_px[s, side], rate_hz, settings, scale=size[..., 0])
            for begin, end in runs(np.isfinite(joints_m[s, side]).all((1, 2))):
                part = joints_m[start + begin : start + end, side]
                span = np.linalg.norm(np.ptp(part, axis=1), axis=-1)
                unit = np.full((end - begin, 1, 1), max(float(np.median(span)), 1e-6))
                joints_m[start + begin : start + end, side] = chosen(part, rate_hz, settings, scale=unit)
    return replace(hands, joints_px=joints_px, joints_m=joints_m, box_px=box_px)


def recover(
    table: Detections,
    rate_hz: float,
    settings: HandSettings | None = None,
    *,
    estimate: Estimate | None = None,
    tracked_px: Float[np.ndarray, "T 2 4"] | None = None,
) -> Hands:
    """Return the hands of a video: Algorithm 1, outliers out, gaps filled (`fill`), trajectories smoothed."""
    settings = settings or HandSettings()
    hands = gather(table, algorithm_1(table, settings.tracks))
    hands = without_outliers(hands, settings.outlier)
    hands = fill(hands, settings.fill_gap, estimate, tracked_px)
    return smooth(hands, rate_hz, settings.one_euro, causal=settings.causal)


def _wide(per_row: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """One number a row, shaped to broadcast over the channels of `values`."""
    return per_row.reshape(-1, *[1] * (values.ndim - 1))


def _cleared(hands: Hands) -> Hands:
    """Hands with NaN wherever their source says that there is none."""
    gone = ~hands.present
    values = {name: getattr(hands, name).copy() for name in ("joints_px", "joints_m", "box_px", "confidence")}
    for name, value in values.items():
        value[gone] = 0.0 if name == "confidence" else np.nan
    return replace(hands, **values)
