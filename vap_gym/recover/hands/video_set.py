"""Many hand videos → one set of (prompt, video) pairs: every video a job, whose clips are taken over in order."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vap_gym.data import EpisodeSet, EpisodeWriter, finalise, read_video
from vap_gym.data.adopt import adopt
from vap_gym.data.layout import INFO_PATH, DataError, read_info, refuse_other_sets
from vap_gym.data.remux import probe_video
from vap_gym.jobs import Outcome, run_jobs
from vap_gym.jobs.manifest import begin, digest, write
from vap_gym.pictures import sheet, spread, write_png
from vap_gym.prompts.raster import overlay
from vap_gym.recover.hands.captions import Captioner, QwenCaptioner
from vap_gym.recover.hands.detections import read_detections
from vap_gym.recover.hands.hands import DETECTED, INTERPOLATED
from vap_gym.recover.hands.pipeline import PairSettings, RecoveredVideo, episodes_of, recover_video
from vap_gym.recover.hands.skeleton21 import draw_hands

MANIFEST, STAGED, OVERLAYS = "meta/recover.jsonl", ".staged", "overlays"
PICTURE = "overlay.png"
TOLD = ("dtype", "shape")  # of a feature, in meta/info.json
SHOWN = 6  # frames of a video on its overlay
SHOWN_WIDTH_PX = 400


@dataclass(frozen=True, kw_only=True)
class HandVideo:
    """A video, what was detected in it, and what its user says of it.

    `rate_hz` None: the container's. `caption_model` is the folder or hub name of a Qwen2.5-VL checkpoint.
    """

    path: Path
    detections: Path
    order: str = "openpose"
    rate_hz: float | None = None
    task: str = ""
    lab: str = ""
    skill: str = ""
    caption_model: str = ""

    @property
    def said(self) -> dict[str, Any]:
        """All but the path, as plain JSON."""
        told = asdict(self)
        del told["path"]
        return {**told, "detections": str(self.detections)}


@dataclass(frozen=True, kw_only=True)
class HandTask:
    """The job of one video: its clips as episodes 0, 1, … of a set of its own under `staged`, and an overlay."""

    staged: Path
    settings: PairSettings

    def __call__(self, video: HandVideo) -> dict[str, Any]:
        """Recover a video. What a broken try left is removed first: the detections may have been mended since."""
        root = staged_set(self.staged, video.path)
        shutil.rmtree(root, ignore_errors=True)
        table = read_detections(video.detections, probe_video(video.path).frames, order=video.order)
        found = recover_video(video.path, table, rate_hz=video.rate_hz, settings=self.settings)
        captioner = captioner_of(video.caption_model) if video.caption_model else None
        info = {"lab": video.lab, "skill": video.skill}
        episodes = episodes_of(found, self.settings, task=video.task, captioner=captioner, info=info)
        for number, episode in enumerate(episodes):
            writer = EpisodeWriter(root, fps=max(1, round(found.rate_hz)), robot_type="hand_21")
            writer.write(number, episode)
        write_overlay(found, root / PICTURE)
        return {**figures(found), "said": video.said}


def staged_set(staged: Path, video: Path) -> Path:
    """Where the clips of a video are until their final numbers are known."""
    return staged / digest(str(video))


@lru_cache(maxsize=1)
def captioner_of(checkpoint: str) -> Captioner:
    """Load a captioner, once in every process that needs it."""
    return QwenCaptioner(checkpoint)


def figures(found: RecoveredVideo) -> dict[str, Any]:
    """Return what was found in a video, as plain JSON; shares are in [0, 1]."""
    hands = found.hands
    left, right = hands.present.mean(0)
    shares = {
        "left": left,
        "right": right,
        "interpolated": (hands.source == INTERPOLATED).sum() / max(int(hands.present.sum()), 1),
        "in_clips": sum(map(len, found.clips)) / len(hands),
    }
    return {
        "frames": len(hands),
        "detected": found.detected,
        "used": int((hands.source == DETECTED).sum()),
        **{name: round(float(share), 4) for name, share in shares.items()},
        "clips": [f"{clip.start}-{clip.stop}" for clip in found.clips],
    }


def recover_videos(
    videos: Sequence[HandVideo],
    out: str | Path,
    settings: PairSettings,
    *,
    executor: str = "serial",
    workers: int = 1,
) -> list[Outcome]:
    """Recover every video, write the clips into the set `out`, and return the outcomes in the order of `videos`.

    Episodes are numbered without gaps, by video, then by clip; the files do not depend on executor and workers (see
    `vap_gym.jobs`). A stopped run goes on where it was, failed videos are tried again, more videos can be added
    later. A video that fails, or whose clips are unlike those before it, stops no other and leaves nothing.

    Raises DataError where `out` holds another data set, a run with other settings, or one of the videos with other
    words about it; see `run_jobs` for executors.
    """
    out = Path(out)
    refuse_other_sets(out, MANIFEST)
    told, manifest = asdict(settings), out / MANIFEST
    items = {str(video.path): video for video in videos}
    _refuse_other_words(items, begin(manifest, told))
    taken = _Taken(out=out, keys=tuple(items))
    outcomes = run_jobs(
        HandTask(staged=out / STAGED, settings=settings),
        items,
        manifest=manifest,
        settings=told,
        executor=executor,
        workers=workers,
        unit="video",
        tell=taken.take,
    )
    for outcome in outcomes:
        taken.take(outcome)
    noted = begin(manifest, told) | taken.refused
    write(manifest, told, noted.values())
    if (out / INFO_PATH).exists():
        finalise(out)
    shutil.rmtree(out / STAGED, ignore_errors=True)
    if all(outcome.error is not None for outcome in noted.values()) and not (out / INFO_PATH).exists():
        _remove_traces(manifest, out)
    return [taken.refused.get(outcome.key, outcome) for outcome in outcomes]


class _Taken:
    """Gives clips their final places as soon as all videos before theirs are done, so that order is that of `keys`."""

    def __init__(self, *, out: Path, keys: tuple[str, ...]) -> None:
        self.out, self.keys = out, keys
        self.refused: dict[str, Outcome] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._turn = 0
        self._next_index = 0
        self._there: set[tuple[str, str]] = set()
        if (out / INFO_PATH).exists():
            episodes = EpisodeSet(out)
            for i in range(len(episodes)):
                source = episodes.info(i).get("source", {})
                self._there.add((str(source.get("path")), str(source.get("episode"))))
                self._next_index = max(self._next_index, episodes.index(i) + 1)

    def take(self, outcome: Outcome) -> None:
        """Note what became of a video, and move the clips of those whose turn it is."""
        self._outcomes[outcome.key] = outcome
        while self._turn < len(self.keys) and self.keys[self._turn] in self._outcomes:
            key = self.keys[self._turn]
            result = self._outcomes[key].result
            self._turn += 1
            if result is None:
                continue
            try:
                self._move(key, result["clips"])
            except DataError as error:
                self.refused[key] = Outcome(key=key, error=str(error))

    def _move(self, key: str, clips: Sequence[str]) -> None:
        root = staged_set(self.out / STAGED, Path(key))
        for number, clip in enumerate(clips):
            if (key, clip) in self._there:  # from before a kill
                continue
            _require_alike(root, self.out)
            adopt(root, number, self.out, self._next_index)
            self._there.add((key, clip))
            self._next_index += 1
        if (root / PICTURE).is_file():
            picture = overlay_path(self.out, Path(key), self.keys)
            picture.parent.mkdir(exist_ok=True)
            (root / PICTURE).replace(picture)


def _require_alike(staged: Path, out: Path) -> None:
    """Refuse clips that differ from those of the set in rate, size or columns."""
    if not ((out / INFO_PATH).exists() and (staged / INFO_PATH).exists()):
        return
    wanted, given = read_info(out), read_info(staged)
    unlike = [name for name in {**wanted["features"], **given["features"]} if _differ(wanted, given, name)]
    if wanted["fps"] != given["fps"] or unlike:
        raise DataError(
            f"The clips of a set must be alike: those before have {wanted['fps']} frames a second, got "
            f"{given['fps']}{' and other ' + ', '.join(unlike) if unlike else ''}. Write this video into another "
            "folder; for one size of pictures, give --size 720 480; for one rate, --rate-hz."
        )


def _differ(wanted: dict[str, Any], given: dict[str, Any], name: str) -> bool:
    """Whether a feature has another type or shape; a video's rate is told apart from it."""
    return any(wanted["features"].get(name, {}).get(k) != given["features"].get(name, {}).get(k) for k in TOLD)


def overlay_path(out: Path, video: Path, keys: Sequence[str]) -> Path:
    """Where the overlay of a video is: named as it is, with its ending where another is named alike."""
    namesakes = sum(Path(key).stem == video.stem for key in keys)
    return out / OVERLAYS / f"{video.stem if namesakes == 1 else video.name}.png"


def _refuse_other_words(items: dict[str, HandVideo], before: dict[str, Outcome]) -> None:
    for key, outcome in before.items():
        if key not in items or outcome.result is None:
            continue
        for name, value in items[key].said.items():
            if outcome.result["said"].get(name) != value:
                raise DataError(
                    f"'{key}' was recovered with {name} {outcome.result['said'].get(name)!r}, got {value!r}. "
                    "Say the same to go on, or write into a new folder."
                )


def _remove_traces(manifest: Path, out: Path) -> None:
    """Remove what a run that gave nothing has left: its manifest, and the folders that only this needed."""
    manifest.unlink(missing_ok=True)
    for folder in (manifest.parent, out):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def write_overlay(found: RecoveredVideo, path: Path) -> None:
    """Write some frames with their skeletons over them, to look at."""
    width, height = found.frame_size_px
    (seen,) = np.nonzero(found.hands.present.any(1))
    shown = seen[spread(SHOWN, len(seen))] if len(seen) else np.array(spread(SHOWN, len(found.hands)))
    cells = []
    for frame in shown.tolist():
        picture = read_video(found.path, start=frame, stop=frame + 1)
        joints = found.hands.joints_px[frame : frame + 1]
        cells.append(overlay(picture, draw_hands(joints, frame_size_px=(width, height)))[0])
    scale = min(1.0, SHOWN_WIDTH_PX / width)
    write_png(path, sheet([cells], scale=scale, columns=[f"frame {frame}" for frame in shown.tolist()]))
