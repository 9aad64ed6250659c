"""From a video and what was detected in it to (prompt, video) pairs: recovered hands, steady clips, episodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from vap_gym.data import Episode, read_video
from vap_gym.data.conventions import HANDS, camera_columns
from vap_gym.data.layout import DataError
from vap_gym.data.remux import probe_video
from vap_gym.recover.hands.captions import Captioner
from vap_gym.recover.hands.clips import Clip, ClipSettings, select_clips
from vap_gym.recover.hands.detections import Detections, usable
from vap_gym.recover.hands.hands import Estimate, Hands, HandSettings, recover
from vap_gym.recover.hands.skeleton21 import draw_hands
from vap_gym.recover.hands.viewpoint import Viewpoint, measure_viewpoint

HANDS_PX = "observation.hand_keypoints_px"
HANDS_PRESENT = "observation.hand_present"
HANDS_SOURCE = "observation.hand_source"
BLOCK = 256
"""Frames of a video that are in memory at once while the camera's motion is measured."""

BELIEVED_PX = 3.0
"""Intrinsics fitted to detections are believed if they put 3-D joints this near to the 2-D ones (median)."""


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Everything about making pairs of a video. `size_px` (width, height): pictures are centre-cropped to its shape and
    scaled; None leaves them as they are."""

    hands: HandSettings = field(default_factory=HandSettings)
    clips: ClipSettings = field(default_factory=ClipSettings)
    size_px: tuple[int, int] | None = None
    check_view: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class RecoveredVideo:
    """A video's hands and clips. `K` is None where 3-D joints are unknown."""

    path: Path
    rate_hz: float
    frame_size_px: tuple[int, int]
    detected: int
    hands: Hands
    viewpoint: Viewpoint | None
    clips: list[Clip]
    K: Float[np.ndarray, "3 3"] | None


def fit_intrinsics(table: Detections) -> tuple[Float[np.ndarray, "3 3"], float] | None:
    """Return the pinhole camera that puts 3-D joints on the 2-D ones, and its median error, px; None without 3-D.

    Linear least squares on u = f x/z + c, for u and v apart: the detections' own camera, whatever it was.
    """
    rows = usable(table) & np.isfinite(table.joints_m).all((1, 2)) & (np.nan_to_num(table.joints_m[..., 2]) > 0).all(1)
    if not rows.any():
        return None
    points, pixels = table.joints_m[rows].reshape(-1, 3), table.joints_px[rows].reshape(-1, 2)
    K = np.eye(3)
    for axis in range(2):
        design = np.stack([points[:, axis] / points[:, 2], np.ones(len(points))], -1)
        K[axis, axis], K[axis, 2] = np.linalg.lstsq(design, pixels[:, axis], rcond=None)[0]
    uvw = points @ K.T
    error = float(np.median(np.linalg.norm(uvw[:, :2] / uvw[:, 2:] - pixels, axis=-1)))
    return K, error


def measure_video(path: Path, boxes_px: Float[np.ndarray, "T 2 4"]) -> Viewpoint:
    """Return the camera's motion through a video file, read in blocks (the last frame of one begins the next)."""
    parts: list[Viewpoint] = []
    frames = len(boxes_px)
    for begin in range(0, max(frames - 1, 1), BLOCK):
        stop = min(begin + BLOCK + 1, frames)
        parts.append(measure_viewpoint(read_video(path, start=begin, stop=stop), boxes_px[begin:stop]))

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name)[1 if i else 0 :] for i, part in enumerate(parts)])

    names = ("flow", "homography", "inliers", "residual", "cut")
    return Viewpoint(**{name: joined(name) for name in names}, frame_size_px=parts[0].frame_size_px)


def recover_video(
    path: Path,
    table: Detections,
    *,
    rate_hz: float | None,
    settings: PairSettings,
    estimate: Estimate | None = None,
    tracked_px: Float[np.ndarray, "T 2 4"] | None = None,
) -> RecoveredVideo:
    """Recover the hands of a video from its detections and select its clips. `rate_hz` None: the container's.

    `estimate` (`models.estimate_in`) and `tracked_px` (`models.tracked_boxes`) fill missed frames better than
    interpolation does, where there are models for it.
    """
    facts = probe_video(path)
    rate = rate_hz if rate_hz is not None else facts.fps
    if rate is None or not 0 < rate < 1000:
        raise DataError(f"The frame rate of {path} must be above 0, got {rate}. Say it: --rate-hz 30")
    if table.frames != facts.frames:
        raise DataError(f"Detections of {table.frames} frames do not fit {path}, which has {facts.frames}.")
    hands = recover(table, rate, settings.hands, estimate=estimate, tracked_px=tracked_px)
    viewpoint = measure_video(path, hands.box_px) if settings.check_view and hands.present.any() else None
    fitted = fit_intrinsics(table)
    return RecoveredVideo(
        path=path,
        rate_hz=rate,
        frame_size_px=(facts.width, facts.height),
        detected=len(table),
        hands=hands,
        viewpoint=viewpoint,
        clips=select_clips(hands, viewpoint, rate, settings.clips),
        K=fitted[0] if fitted is not None and fitted[1] <= BELIEVED_PX else None,
    )


def episodes_of(
    video: RecoveredVideo,
    settings: PairSettings,
    *,
    task: str = "",
    captioner: Captioner | None = None,
    info: dict[str, Any] | None = None,
) -> Iterator[Episode]:
    """Yield an episode for every clip: views `video` and `prompt`, the hands as columns, captions in `info`.

    The task is the caption with the action where there is a captioner, else `task`. `info["caption_scene"]` is the one
    that tells no action.
    """
    for clip in video.clips:
        frames = read_video(video.path, start=clip.start, stop=clip.stop)
        hands, K, frames = fitted_to(video.hands.part(clip.start, clip.stop), video.K, frames, settings.size_px)
        told = dict(info or {})
        if captioner is not None:
            told["caption_scene"] = captioner.caption(frames, action=False)
            told["caption_action"] = captioner.caption(frames, action=True)
        told |= {
            "robot": "hand_21",
            "source": {"kind": "hand_video", "path": str(video.path), "episode": f"{clip.start}-{clip.stop}"},
            "rate_hz": video.rate_hz,
            "hand_motion": round(clip.motion, 4),
            "view_drift": round(clip.drift, 4),
        }
        yield Episode(
            frames={"video": frames, "prompt": prompts_of(hands, frames)},
            columns=columns_of(hands, K),
            task=told.get("caption_action") or task,
            info=told,
        )


def prompts_of(hands: Hands, frames: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
    """Return the drawn prompts of a clip, at its size; nearer bones on top where depth is known."""
    depth = hands.joints_m[..., 2]
    known = bool(np.isfinite(depth[hands.present]).all())
    return draw_hands(
        hands.joints_px, frame_size_px=(frames.shape[2], frames.shape[1]), depth_m=depth if known else None
    )


def columns_of(hands: Hands, K: NDArray[np.float64] | None) -> dict[str, NDArray[Any]]:
    """Return the columns of a clip, as `data.conventions` names them; the world is the camera's frame.

    Hands are [left, right]; an absent one is NaN, and 0 in `observation.hand_source` (1 detected, 2 recovered in an
    interpolated box, 3 interpolated). 3-D joints and the camera are there only where the camera is known.
    """
    columns: dict[str, NDArray[Any]] = {
        HANDS_PX: hands.joints_px,
        HANDS_PRESENT: np.asarray(hands.present),
        HANDS_SOURCE: hands.source,
    }
    if K is not None:
        names = camera_columns("video")
        columns[HANDS] = hands.joints_m
        columns[names[0]] = np.broadcast_to(K, (len(hands), 3, 3)).copy()
        columns[names[1]] = np.broadcast_to(np.eye(4), (len(hands), 4, 4)).copy()
    return columns


def fitted_to(
    hands: Hands,
    K: NDArray[np.float64] | None,
    frames: UInt8[np.ndarray, "T H W 3"],
    size_px: tuple[int, int] | None,
) -> tuple[Hands, NDArray[np.float64] | None, UInt8[np.ndarray, "T h w 3"]]:
    """Return hands, camera and frames of a clip after centre crop and resize to `size_px` (width, height)."""
    if size_px is None:
        return hands, K, frames
    if min(size_px) < 8:
        raise DataError(f"Pictures must be at least 8 x 8 px, got {size_px}. The paper's are 720 480.")
    from PIL import Image

    height, width = frames.shape[1:3]
    scale = max(size_px[0] / width, size_px[1] / height)
    crop = (size_px[0] / scale, size_px[1] / scale)
    left, top = (width - crop[0]) / 2, (height - crop[1]) / 2
    box = (left, top, left + crop[0], top + crop[1])
    method = Image.Resampling.LANCZOS
    resized = np.stack([np.asarray(Image.fromarray(f).resize(size_px, method, box=box)) for f in frames])
    corner = np.array([left, top])
    moved = replace(
        hands,
        joints_px=(hands.joints_px - corner) * scale,
        box_px=(hands.box_px - np.tile(corner, 2)) * scale,
    )
    if K is not None:
        K = np.diag([scale, scale, 1.0]) @ (K - np.array([[0, 0, left], [0, 0, top], [0, 0, 0]]))
    return moved, K, resized
