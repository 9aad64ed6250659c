"""`vap-gym recover hands`: videos of hands and what a detector saw in them → (prompt, video) pairs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vap_gym.data import EpisodeSet
from vap_gym.data.layout import INFO_PATH, DataError
from vap_gym.jobs import Executor, Outcome
from vap_gym.recover.hands.clips import ClipSettings
from vap_gym.recover.hands.hands import HandSettings
from vap_gym.recover.hands.linking import TrackSettings
from vap_gym.recover.hands.pipeline import PairSettings
from vap_gym.recover.hands.video_set import OVERLAYS, HandVideo, captioner_of, recover_videos

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm")
HEADINGS = ("video", "frames", "detections", "left", "right", "interpolated", "clips", "in clips")


def main(
    video: Path,
    detections: Path,
    out: Path,
    *,
    order: str = "openpose",
    rate_hz: float | None = None,
    min_frames: int = 25,
    max_frames: int = 150,
    size: tuple[int, int] | None = None,
    check_view: bool = True,
    max_step: float = 0.04,
    max_drift: float = 0.3,
    min_motion: float = 0.1,
    min_confidence: float = 0.3,
    fill_gap: int = 20,
    task: str = "",
    lab: str = "",
    skill: str = "",
    caption_model: str = "",
    executor: Executor = "serial",
    workers: int = 0,
) -> dict[str, Any]:
    """Make (prompt, video) pairs of hand videos: Algorithm 1, smoothing, steady clips, drawn 21-joint skeletons.

    Args:
        video: a video, or a folder of videos.
        detections: what was detected in it: a folder of per-frame .json or .npz files, or one file. For a folder of
            videos: a folder that holds such a folder or file for each, named as the video without its ending. The
            layout is told by `python -m pydoc vap_gym.recover.hands.detections`.
        out: the data set to write; a stopped run goes on, and other videos are added to those that it holds.
        order: how the files list joints: openpose, mano or interhand.
        rate_hz: frames per second, where the video does not tell it rightly.
        min_frames: of a clip.
        max_frames: of a clip.
        size: width and height of the pictures to write: centre crop, then resize. Default: as they are.
        check_view: drop parts in which the camera moves too much, and cut where the scene does. Needs OpenCV.
        max_step: how far the view may move from frame to frame, as a share of the picture's diagonal.
        max_drift: how far it may move from a clip's first frame.
        min_motion: how much hands must move against the background, on average, in hand sizes a second.
        min_confidence: detections below are not believed.
        fill_gap: missed frames in a row that are interpolated.
        task: the instruction of all clips, where there are no captions.
        lab: where the videos are from, for splits.
        skill: what is done in them, for splits.
        caption_model: folder or hub name of a Qwen2.5-VL checkpoint to caption clips by. Default: no captions.
        executor: where videos are worked on: here one by one, in processes, or on Ray (the extra [cluster]). The
            files come out the same. Every process loads a caption model of its own.
        workers: videos at once, with processes and ray; 0 for one per core.
    """
    settings = PairSettings(
        hands=HandSettings(tracks=TrackSettings(min_confidence=min_confidence), fill_gap=fill_gap),
        clips=ClipSettings(
            min_frames=min_frames,
            max_frames=max_frames,
            max_step=max_step,
            max_drift=max_drift,
            min_motion=min_motion,
        ),
        size_px=size,
        check_view=check_view,
    )
    said: dict[str, Any] = {"order": order, "rate_hz": rate_hz, "task": task, "lab": lab, "skill": skill}
    videos = [
        HandVideo(path=path, detections=seen, caption_model=caption_model, **said)
        for path, seen in _pairs(video, detections)
    ]
    if caption_model and executor == "serial":
        captioner_of(caption_model)  # a wrong one is told before any work
    outcomes = recover_videos(videos, out, settings, executor=executor, workers=workers or os.cpu_count() or 1)
    failed = [f"{Path(outcome.key).name}: {outcome.error}" for outcome in outcomes if outcome.error is not None]
    if failed and len(outcomes) == 1:
        raise DataError(str(outcomes[0].error))
    rows = [HEADINGS, *(_row(outcome) for outcome in outcomes if outcome.error is None)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    print("\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths)).rstrip() for row in rows))
    for line in failed:
        print(f"left out  {line}")
    written = len(EpisodeSet(out)) if (out / INFO_PATH).exists() else 0
    print(f"{out}: {written} clips; look at {out / OVERLAYS}")
    if failed and len(failed) == len(outcomes):
        raise DataError(f"None of {len(outcomes)} videos could be used; the first: {failed[0]}")
    videos_told = [{"video": Path(one.key).name, "error": one.error, **(one.result or {})} for one in outcomes]
    return {"out": out, "clips": written, "videos": videos_told}


def _pairs(video: Path, detections: Path) -> Iterator[tuple[Path, Path]]:
    """Videos with their detections."""
    if not video.is_dir():
        yield video, detections
        return
    videos = sorted(path for path in video.iterdir() if path.suffix.lower() in VIDEOS)
    if not videos:
        raise DataError(f"'{video}' holds no videos ({', '.join(VIDEOS)}). Give a video, or a folder of videos.")
    for path in videos:
        candidates = [detections / path.stem, detections / f"{path.stem}.npz", detections / f"{path.stem}.json"]
        yield path, next((seen for seen in candidates if seen.exists()), candidates[0])


def _row(outcome: Outcome) -> tuple[str, ...]:
    """One line of the table."""
    told = outcome.result or {}
    shares = {name: f"{told[name]:.0%}" for name in ("left", "right", "interpolated", "in_clips")}
    return (
        Path(outcome.key).name,
        str(told["frames"]),
        f"{told['detected']} ({told['used']} used)",
        shares["left"],
        shares["right"],
        shares["interpolated"],
        str(len(told["clips"])),
        shares["in_clips"],
    )
