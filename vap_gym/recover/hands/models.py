"""The models that a hand video needs, as interfaces, and how they are run over a video: yours, through adapters.py.

A detector finds boxes, a mesh recoverer says where the 21 joints in a box are, a tracker (optional) follows a hand
through the video. None of them comes with the package.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from numpy.typing import NDArray

from vap_gym.errors import VapError
from vap_gym.recover.hands.detections import Detections, detections, no_detections
from vap_gym.recover.hands.hands import Estimate, Recovered
from vap_gym.recover.hands.linking import best_matching, box_iou, pairs_between

SEED_OBJECTS = (1, 2)
"""The tracker's numbers of the left and of the right hand."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Boxes:
    """N boxes with hands in a video or batch of pictures; `object` is a tracker's number, or −1."""

    frame: Int64[np.ndarray, "N"]
    box_px: Float[np.ndarray, "N 4"]
    confidence: Float[np.ndarray, "N"]
    right: Float[np.ndarray, "N"]
    object: Int64[np.ndarray, "N"]


@runtime_checkable
class Detector(Protocol):
    """Finds hands in pictures."""

    def detect(self, pictures: UInt8[np.ndarray, "N H W 3"]) -> Boxes:
        """Return the boxes in N RGB pictures; `frame` counts these pictures from 0."""
        ...


@runtime_checkable
class MeshRecoverer(Protocol):
    """Recovers the joints of hands whose boxes are known."""

    def recover(
        self, pictures: UInt8[np.ndarray, "N H W 3"], box_px: Float[np.ndarray, "N 4"], right: Bool[np.ndarray, "N"]
    ) -> Recovered:
        """Return the hands in N boxes, one in each of N RGB pictures; NaN joints where it finds none."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """Follows hands through a video from one box each."""

    def track(self, pictures: UInt8[np.ndarray, "T H W 3"], seeds: Boxes) -> Boxes:
        """Return where the seeds' hands (by `object`) are in the frames in which they are seen."""
        ...


def detect_hands(
    pictures: UInt8[np.ndarray, "T H W 3"], detector: Detector, recoverer: MeshRecoverer, *, batch: int = 16
) -> Detections:
    """Return all hands of a video: boxes by the detector, joints by the recoverer, `batch` pictures at a time."""
    if batch < 1:
        raise VapError(f"batch must be at least 1 picture, got {batch}. Try 16.")
    parts: list[Detections] = []
    frames = len(pictures)
    for begin in range(0, frames, batch):
        piece = pictures[begin : begin + batch]
        found = detector.detect(piece)
        if not len(found.frame):
            continue
        hands = recoverer.recover(piece[found.frame], found.box_px, found.right > 0.5)
        parts.append(
            detections(
                frames,
                frame=found.frame + begin,
                box_px=found.box_px,
                confidence=found.confidence,
                right=found.right,
                joints_px=hands.joints_px,
                joints_m=hands.joints_m,
            )
        )
    return joined(parts, frames)


def joined(parts: list[Detections], frames: int) -> Detections:
    """Return one table of several of the same video."""
    if not parts:
        return no_detections(frames)
    names = ("frame", "box_px", "confidence", "right", "joints_px", "joints_m", "object")
    return detections(frames, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def estimate_in(pictures: UInt8[np.ndarray, "T H W 3"], recoverer: MeshRecoverer, *, batch: int = 16) -> Estimate:
    """Return a recoverer bound to a video, as `hands.fill` asks for it."""

    def estimate(frame: NDArray[np.int64], box_px: NDArray[np.float64], right: NDArray[np.bool_]) -> Recovered:
        parts = [
            recoverer.recover(pictures[frame[s]], box_px[s], right[s])
            for s in (slice(begin, begin + batch) for begin in range(0, len(frame), batch))
        ]
        return Recovered(
            joints_px=np.concatenate([part.joints_px for part in parts]),
            joints_m=np.concatenate([part.joints_m for part in parts]),
            confidence=np.concatenate([part.confidence for part in parts]),
        )

    return estimate


def seeds_of(table: Detections, rows: Int64[np.ndarray, "T 2"]) -> Boxes:
    """Return for each side the box of its surest detection, for a tracker to start from (`rows`: Algorithm 1's)."""
    best = []
    for side in range(2):
        mine = rows[rows[:, side] >= 0, side]
        if len(mine):
            best.append((int(mine[np.argmax(table.confidence[mine])]), side))
    row = np.array([b[0] for b in best], np.int64)
    side_of = np.array([b[1] for b in best], np.int64)
    return Boxes(
        frame=table.frame[row],
        box_px=table.box_px[row],
        confidence=table.confidence[row],
        right=side_of.astype(np.float64),
        object=np.array(SEED_OBJECTS, np.int64)[side_of],
    )


def with_objects(table: Detections, tracked: Boxes, *, least_iou: float = 0.5) -> Detections:
    """Return detections with the number of the tracked hand that each overlaps, one of each a frame."""
    order = np.argsort(tracked.frame, kind="stable")
    i, j = pairs_between(table.frame, tracked.frame[order], 0)
    j = order[j]
    iou = box_iou(table.box_px[i], tracked.box_px[j])
    (over,) = np.nonzero(iou >= least_iou)
    chosen = over[best_matching(i[over], j[over], iou[over])]
    object_ = table.object.copy()
    object_[i[chosen]] = tracked.object[j[chosen]]
    return replace(table, object=object_)


def tracked_boxes(tracked: Boxes, frames: int) -> Float[np.ndarray, "T 2 4"]:
    """Return the tracker's boxes of the left and the right hand in every frame, NaN where it has none."""
    boxes = np.full((frames, 2, 4), np.nan)
    for side, number in enumerate(SEED_OBJECTS):
        mine = tracked.object == number
        boxes[tracked.frame[mine], side] = tracked.box_px[mine]
    return boxes
