"""Which parts of a hand video make clips: hands there, a steady view, hands that do something."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vap_gym.errors import VapError
from vap_gym.recover.hands.hands import INTERPOLATED, Hands
from vap_gym.recover.hands.linking import hand_size
from vap_gym.recover.hands.viewpoint import Viewpoint


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """What a clip must be. Motions of the view are shares of the picture's diagonal, of hands in hand sizes a s."""

    min_frames: int = 25
    max_frames: int = 150
    max_absent: int = 0  # frames in a row without any hand that a clip may hold
    max_step: float = 0.04  # of the view from frame to frame
    max_drift: float = 0.3  # of the view from the clip's first frame
    min_motion: float = 0.1
    max_interpolated: float = 0.5  # share of hands that no detector and no recoverer has seen

    def __post_init__(self) -> None:
        if not 1 <= self.min_frames <= self.max_frames:
            raise VapError(
                f"A clip needs 1 <= min_frames <= max_frames, got {self.min_frames} and {self.max_frames}. "
                "The paper's clips have 25 frames."
            )


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames start … stop − 1 of a video, and what was measured in them."""

    start: int
    stop: int
    motion: float  # of the hands against the background, hand sizes a second
    drift: float  # largest, of the view from the first frame
    hands: tuple[float, float]  # share of frames with a left, with a right hand

    def __len__(self) -> int:
        return self.stop - self.start


def select_clips(
    hands: Hands, viewpoint: Viewpoint | None, rate_hz: float, settings: ClipSettings | None = None
) -> list[Clip]:
    """Return clips that do not overlap, in order; the longest possible one is taken first, then that of what is left.

    Without a viewpoint the camera is taken to stand still.
    """
    settings = settings or ClipSettings()
    frames = len(hands)
    if frames == 0:
        return []
    drift = np.zeros((frames, 1)) if viewpoint is None else viewpoint.drift(min(settings.max_frames, frames))
    reach = _reach(hands, viewpoint, drift, settings)
    speed = hand_motion(hands, viewpoint) * rate_hz
    free = [(0, frames)]
    found: list[Clip] = []
    while free:
        begin, end = free.pop()
        starts = np.arange(begin, end)
        length = np.minimum(reach[begin:end], end - starts)
        best = int(np.argmax(length)) if len(length) else 0
        if not len(length) or length[best] < settings.min_frames:
            continue
        start, stop = begin + best, begin + best + int(length[best])
        free += [(begin, start), (stop, end)]
        part = hands.part(start, stop)
        counted = part.present.sum()
        motion = float(np.nanmean(speed[start + 1 : stop])) if np.isfinite(speed[start + 1 : stop]).any() else 0.0
        guessed = (part.source == INTERPOLATED).sum() / max(counted, 1)
        if motion >= settings.min_motion and guessed <= settings.max_interpolated:
            moved = float(drift[start, : stop - start].max()) if viewpoint is not None else 0.0
            left, right = part.present.mean(0).tolist()
            found.append(Clip(start=start, stop=stop, motion=motion, drift=moved, hands=(left, right)))
    return sorted(found, key=lambda clip: clip.start)


def hand_motion(hands: Hands, viewpoint: Viewpoint | None) -> Float[np.ndarray, "T 2"]:
    """Return how far each hand moves from the last frame, the camera's own motion taken off, in hand sizes; NaN where
    it is not there in both."""
    before = hands.joints_px[:-1]
    if viewpoint is not None:
        H = viewpoint.homography[1:, None, None]
        to = (H @ np.concatenate([before, np.ones_like(before[..., :1])], -1)[..., None])[..., 0]
        before = to[..., :2] / to[..., 2:]
    moved = np.full(hands.source.shape, np.nan)
    size = hand_size(np.nan_to_num(hands.box_px[1:].reshape(-1, 4))).reshape(-1, 2)
    both = hands.present[1:] & hands.present[:-1]
    off = np.linalg.norm(hands.joints_px[1:] - before, axis=-1).mean(-1)
    moved[1:] = np.where(both, off / np.where(both, size, 1), np.nan)
    return moved


def _reach(
    hands: Hands, viewpoint: Viewpoint | None, drift: Float[np.ndarray, "T L"], settings: ClipSettings
) -> NDArray[np.int64]:
    """How many frames a clip that starts at each frame can have."""
    frames = len(hands)
    there: NDArray[np.bool_] = np.asarray(hands.present.any(1))
    last_there = np.maximum.accumulate(np.where(there, np.arange(frames), -1))
    absent_run = np.arange(frames) - last_there
    broken = ~there & (absent_run > settings.max_absent)
    joins = np.ones(frames, bool)
    if viewpoint is not None:
        joins = ~viewpoint.cut & (viewpoint.step <= settings.max_step)
    joins[0] = True
    stops = np.concatenate([np.flatnonzero(broken | ~joins), [frames]])
    reach = stops[np.searchsorted(stops, np.arange(frames) + 1)] - np.arange(frames)
    reach = np.where(there, np.minimum(reach, settings.max_frames), 0)
    next_there = _last_there_before(there, np.arange(frames) + reach)
    reach = np.where(there, np.minimum(reach, next_there - np.arange(frames) + 1), 0)
    if viewpoint is not None:
        over = drift > settings.max_drift
        first_over = np.where(over.any(1), over.argmax(1), drift.shape[1])
        reach = np.minimum(reach, first_over)
    return reach


def _last_there_before(there: NDArray[np.bool_], stop: NDArray[np.int64]) -> NDArray[np.int64]:
    """The last frame before each `stop` that has a hand: clips end on one."""
    last = np.maximum.accumulate(np.where(there, np.arange(len(there)), -1))
    found: NDArray[np.int64] = last[np.maximum(stop - 1, 0)]
    return found
