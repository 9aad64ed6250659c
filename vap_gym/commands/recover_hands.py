"""`vap-gym recover hands`: videos of hands and what a detector saw in them → (prompt, video) pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from vap_gym.data import EpisodeSet, EpisodeWriter, finalise, read_video
from vap_gym.data.layout import INFO_PATH, DataError
from vap_gym.data.remux import probe_video
from vap_gym.pictures import sheet, spread, write_png
from vap_gym.prompts.raster import overlay
from vap_gym.recover.hands.captions import Captioner, QwenCaptioner
from vap_gym.recover.hands.clips import ClipSettings
from vap_gym.recover.hands.detections import read_detections
from vap_gym.recover.hands.hands import DETECTED, INTERPOLATED, HandSettings
from vap_gym.recover.hands.linking import TrackSettings
from vap_gym.recover.hands.pipeline import PairSettings, RecoveredVideo, episodes_of, recover_video
from vap_gym.recover.hands.skeleton21 import draw_hands

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
) -> None:
    """Make (prompt, video) pairs of hand videos: Algorithm 1, smoothing, steady clips, drawn 21-joint skeletons.

    Args:
        video: a video, or a folder of videos.
        detections: what was detected in it: a folder of per-frame .json or .npz files, or one file. For a folder of
            videos: a folder that holds such a folder or file for each, named as the video without its ending. The
            layout is told by `python -m pydoc vap_gym.recover.hands.detections`.
        out: the data set to write; clips that it holds already are left as they are.
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
    captioner = QwenCaptioner(caption_model) if caption_model else None
    pairs = list(_pairs(video, detections))
    rows: list[tuple[str, ...]] = [HEADINGS]
    failed: list[str] = []
    for path, seen in pairs:
        try:
            table = read_detections(seen, probe_video(path).frames, order=order)
            found = recover_video(path, table, rate_hz=rate_hz, settings=settings)
            _write(found, settings, out, captioner, task, {"lab": lab, "skill": skill})
            _picture(found, out / "overlays" / f"{path.stem}.png")
        except DataError as error:
            if len(pairs) == 1:
                raise
            failed.append(f"{path.name}: {error}")
            continue
        rows.append(_row(found))
    if (out / INFO_PATH).exists():
        finalise(out)
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    print("\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths)).rstrip() for row in rows))
    for line in failed:
        print(f"left out  {line}")
    written = len(EpisodeSet(out)) if (out / INFO_PATH).exists() else 0
    print(f"{out}: {written} clips; look at {out / 'overlays'}")
    if failed and len(failed) == len(pairs):
        raise DataError(f"None of {len(pairs)} videos could be used; the first: {failed[0]}")


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


def _write(
    found: RecoveredVideo,
    settings: PairSettings,
    out: Path,
    captioner: Captioner | None,
    task: str,
    info: dict[str, str],
) -> None:
    """Append the clips that the set does not hold yet."""
    there = set()
    if (out / INFO_PATH).exists():
        episodes = EpisodeSet(out)
        sources = (episodes.info(i).get("source", {}) for i in range(len(episodes)))
        there = {(source.get("path"), source.get("episode")) for source in sources}
    left = [clip for clip in found.clips if (str(found.path), f"{clip.start}-{clip.stop}") not in there]
    if not left:
        return
    writer = EpisodeWriter(out, fps=max(1, round(found.rate_hz)), robot_type="hand_21")
    for episode in episodes_of(replace(found, clips=left), settings, task=task, captioner=captioner, info=dict(info)):
        writer.append(episode)


def _row(found: RecoveredVideo) -> tuple[str, ...]:
    """One line of the table."""
    hands = found.hands
    left, right = hands.present.mean(0)
    present = max(int(hands.present.sum()), 1)
    return (
        found.path.name,
        str(len(hands)),
        f"{found.detected} ({int((hands.source == DETECTED).sum())} used)",
        f"{left:.0%}",
        f"{right:.0%}",
        f"{(hands.source == INTERPOLATED).sum() / present:.0%}",
        str(len(found.clips)),
        f"{sum(map(len, found.clips)) / len(hands):.0%}",
    )


def _picture(found: RecoveredVideo, path: Path) -> None:
    """Write six frames with their skeletons over them, to look at."""
    width, height = found.frame_size_px
    (seen,) = np.nonzero(found.hands.present.any(1))
    shown = seen[spread(6, len(seen))] if len(seen) else np.array(spread(6, len(found.hands)))
    cells = []
    for frame in shown.tolist():
        picture = read_video(found.path, start=frame, stop=frame + 1)
        joints = found.hands.joints_px[frame : frame + 1]
        cells.append(overlay(picture, draw_hands(joints, frame_size_px=(width, height)))[0])
    scale = min(1.0, 400 / width)
    write_png(path, sheet([cells], scale=scale, columns=[f"frame {frame}" for frame in shown.tolist()]))
