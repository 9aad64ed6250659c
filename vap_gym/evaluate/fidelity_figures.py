"""The figures of the fidelity table: pixels, motion, gripper and things of imagined frames against true ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from vap_gym import metrics
from vap_gym.evaluate.clips import Clips
from vap_gym.evaluate.fidelity_rollout import Sight
from vap_gym.evaluate.heldout import MOVED_M, STILL_M
from vap_gym.metrics import Interval, bootstrap_interval
from vap_gym.sim.scene import LABELS
from vap_gym.sim.spec import COLOURS
from vap_gym.stage import SEEN

NEAR_M = 0.015
FIRST_OBJECT = LABELS.index(COLOURS[0])
ENOUGH_PX = 12  # so many pixels of an object must be seen for its segmentation to be scored
LOST_M = 1.0  # no thing counts as further off than this: a ray may pass the table by, or meet it miles away
FELL_M = 0.1  # what is so far below where it was has left the table, and is not judged
Report = dict[str, Any]


def interval(values: np.ndarray, statistic: Callable[[np.ndarray], float] | None = None) -> Interval | None:
    """Return a figure with its interval, or None where there is nothing to measure."""
    return bootstrap_interval(values, statistic=statistic) if len(values) else None


def by_episode(function: Callable[..., Any], *columns: Any) -> list[Any]:
    """Call a function for every episode, on all cores: numpy lets go of Python's lock."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(function, *columns))


def psnr_by_step(made: UInt8[np.ndarray, "N S H W 3"], true: UInt8[np.ndarray, "N S H W 3"]) -> np.ndarray:
    """Return the PSNR [dB] of every frame, (N, S)."""
    return np.stack(by_episode(metrics.psnr_per_frame, made, true))


def gap_closed(rows: Float[np.ndarray, "N 3"]) -> float:
    """Return the share of the gap from frozen to codec that is closed, of columns imagined, frozen, codec [dB]."""
    imagined, frozen, codec = rows.mean(0)
    return float((imagined - frozen) / (codec - frozen)) if codec != frozen else float("nan")


def motion_masks(
    first: UInt8[np.ndarray, "N H W 3"], made: UInt8[np.ndarray, "N S H W 3"]
) -> Bool[np.ndarray, "N T H W"]:
    """Return which pixels move in clips that begin with their first pictures."""
    return np.stack(by_episode(lambda a, b: metrics.motion_masks(np.concatenate([a[None], b])), first, made))


def st_iou(made: Bool[np.ndarray, "N T H W"], true: Bool[np.ndarray, "N T H W"]) -> Float[np.ndarray, " N"]:
    """Return the spatio-temporal IoU of every clip's motion."""
    pairs = zip(made, true, strict=True)
    return np.array([metrics.mask_motion_iou(a, b).spatio_temporal for a, b in pairs])


def adherence(report: Report, clips: Clips, seen: Sight, real: Sight) -> None:
    """How far the gripper is seen from where it was commanded to be, where that is in the picture: median px."""
    for name, sight in (("", seen), ("_judge", real)):
        off_px = adherence_by_step(clips, sight)
        per_episode = np.array([np.nanmedian(row) for row in off_px[np.isfinite(off_px).any(axis=1)]])
        report[f"adherence_px{name}"] = interval(per_episode, statistic=lambda v: float(np.median(v)))


def adherence_by_step(clips: Clips, seen: Sight) -> Float[np.ndarray, "N S"]:
    """Return how far the gripper is seen from where it was commanded to be, px, after each step; NaN where that is not
    in the picture."""
    commanded = _pixels(clips, clips.tool_m[:, 1:, None], slice(1, None))[:, :, 0]
    inside = np.all((commanded > 0) & (commanded < _size(clips)), axis=-1)
    off_px: np.ndarray = np.where(inside, np.linalg.norm(seen.tool_px - commanded, axis=-1), np.nan)
    return off_px


def things(report: Report, clips: Clips, first: Sight, seen: Sight, real: Sight, *, suffix: str = "") -> None:
    """Where things are in the last frame: those that the oracle left alone, and those that it moved.

    An object counts where the oracle's is in the picture and the judge is sure of it there, and in the `first` frame:
    what a robot hides at first, nobody can imagine. Untouched ones are in place where the judge sees them within
    1.5 cm, and what it errs by on the true frame. Moved ones are where the judge last was sure of them. Figures that
    end in `_all` count what is hidden at first, too, and take every object to be where the judge's heat map peaks.
    """
    start, end = clips.objects_m[:, 0], clips.objects_m[:, -1]
    moved_m = np.linalg.norm(end - start, axis=-1)  # NaN where there is no object
    pixels = _pixels(clips, end[:, None], slice(-1, None))[:, 0]
    inside = ((pixels > 2) & (pixels < _size(clips) - 2)).all(-1) & (end[..., 2] > start[..., 2] - FELL_M)
    visible = inside & (real.confidence[:, -1] > SEEN)
    shown = visible & (first.confidence[:, 0] > SEEN)
    present = np.isfinite(moved_m) & inside
    judged, peak = (_off_m(sight.objects_m[:, -1], end) for sight in (real, seen))
    there = (seen.confidence[:, -1] > SEEN) & (peak <= NEAR_M + judged)
    for name, counted in (("", shown), ("_all", visible)):
        report[f"untouched_there{name}{suffix}"] = share_by_episode(there, counted & (moved_m < STILL_M))
    report[f"untouched_objects{suffix}"] = int((shown & (moved_m < STILL_M)).sum())
    if suffix:
        return
    report["objects_seen"] = float(visible.sum() / max(1, present.sum()))
    report["objects_shown"] = float(shown.sum() / max(1, visible.sum()))
    moved = shown & (moved_m >= MOVED_M)
    report["moved_objects"] = int(moved.sum())
    error = {name: _off_m(last_seen(first, sight), end) for name, sight in (("", seen), ("_judge", real))}
    for name, off_m, counted in (
        *((name, off_m, moved) for name, off_m in error.items()),
        ("_all", peak, visible & (moved_m >= MOVED_M)),
    ):
        pairs = np.stack([off_m[counted], moved_m[counted]], 1)
        report[f"moved_error_share{name}"] = interval(pairs, lambda v: float(v[:, 0].mean() / v[:, 1].mean()))
    report["moved_error_cm"] = interval(100 * error[""][moved])
    report["moved_frozen_cm"] = interval(100 * moved_m[moved])
    report["judge_object_cm"] = interval(100 * judged[visible], lambda v: float(np.median(v)))


def last_seen(first: Sight, seen: Sight) -> Float[np.ndarray, "N K 3"]:
    """Return where the judge last was sure of each object, in frames after a first one; else where it was in that."""
    place_m = first.objects_m[:, 0].copy()
    for t in range(seen.objects_m.shape[1]):
        sure = (seen.confidence[:, t] > SEEN) & np.isfinite(seen.objects_m[:, t]).all(-1)
        place_m[sure] = seen.objects_m[:, t][sure]
    return place_m


def _off_m(place_m: Float[np.ndarray, "N K 3"], true_m: Float[np.ndarray, "N K 3"]) -> Float[np.ndarray, "N K"]:
    off: np.ndarray = np.nan_to_num(np.linalg.norm(place_m - true_m, axis=-1), nan=LOST_M).clip(max=LOST_M)
    return off


def share_by_episode(good: np.ndarray, counted: np.ndarray) -> Interval | None:
    """Return the share of counted objects that are good; whole episodes are resampled."""
    pairs = np.stack([(good & counted).sum(1), counted.sum(1)], 1)[counted.any(1)]
    return interval(pairs, lambda v: float(v[:, 0].sum() / v[:, 1].sum()))


def segmentation(clips: Clips, real: Sight, at: slice) -> Interval | None:
    """Return J&F of the judge's objects in true frames, mean over objects and frames of an episode."""

    def one(labels: np.ndarray, said: np.ndarray) -> float:
        values = []
        for number in range(FIRST_OBJECT, FIRST_OBJECT + len(COLOURS)):
            true, told = labels == number, said == number
            enough = true.sum((1, 2)) >= ENOUGH_PX
            if enough.any():
                j, f = (m(told[enough], true[enough])
                        for m in (metrics.region_j_per_frame, metrics.boundary_f_per_frame))  # fmt: skip
                values.append(0.5 * (j + f))
        return float(np.concatenate(values).mean()) if values else np.nan

    scores = np.array(by_episode(one, clips.labels[:, at], real.segmentation))
    return interval(scores[np.isfinite(scores)])


def _pixels(clips: Clips, points_m: Float[np.ndarray, "N S P 3"], at: slice) -> Float[np.ndarray, "N S P 2"]:
    """Where points are in the frames `at`."""
    told = torch.from_numpy(points_m).float()
    return np.stack([clips.camera(i, at).project(told[i])[0].numpy() for i in range(len(clips))])


def _size(clips: Clips) -> np.ndarray:
    return np.array(clips.frames.shape[3:1:-1])
