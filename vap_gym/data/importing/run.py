"""Importing: every episode of a source into a data set, one by one; failures are kept apart, a killed run goes on."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vap_gym.data import layout
from vap_gym.data.encoded import PictureBytes, VideoFile
from vap_gym.data.episodes import Episode, EpisodeSet
from vap_gym.data.gather import finalise
from vap_gym.data.importing.source import Options, RawEpisode, RawView, Source, source_info
from vap_gym.data.layout import DataError
from vap_gym.data.remux import cut_video, probe_video
from vap_gym.data.video import read_video
from vap_gym.data.writer import EpisodeWriter
from vap_gym.errors import VapError

MANIFEST = "meta/import.jsonl"
STAGED = ".staged"  # of episodes that wait for those before them, where several are written at once


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one episode: its index and frames in the set, or the reason why it is not there."""

    name: str
    index: int | None = None
    frames: int = 0
    failed: str | None = None


Outcomes = Generator[Outcome, None, None]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Outcomes of all chosen episodes in the order of the source; the set's rate, and who said so."""

    outcomes: Sequence[Outcome]
    fps: int | None
    fps_from: str

    @property
    def failed(self) -> Sequence[Outcome]:
        """The episodes that are not in the set."""
        return tuple(outcome for outcome in self.outcomes if outcome.failed is not None)

    @property
    def frames(self) -> int:
        """Frames of all episodes that are in the set."""
        return sum(outcome.frames for outcome in self.outcomes)


@dataclass(frozen=True, kw_only=True)
class Doubts:
    """What the user says where a recording leaves doubt.

    `fps` of the set, whatever the source says; `rate_hz` of a source that does not state it; `trim` episodes whose
    videos and logs differ in length to the shortest; `recode` videos that cannot be cut without encoding again;
    `check` that every frame of a copied video can be decoded, not its key frames only.
    """

    fps: int | None = None
    rate_hz: float | None = None
    trim: bool = False
    recode: bool = False
    check: bool = True


def one_by_one(job: Job, names: Sequence[str]) -> Outcomes:
    """Write episodes here, one after the other."""
    for name in names:
        yield job.write(name)


def import_source(
    source: Source,
    path: Path,
    out: Path,
    *,
    doubts: Doubts = Doubts(),
    options: Options | None = None,
    only: str = "*",
    limit: int | None = None,
    episodes_per_file: int = 50,
    progress: Callable[[Outcome], None] = lambda outcome: None,
    write: Callable[[Job, Sequence[str]], Outcomes] = one_by_one,
) -> Report:
    """Import the episodes of `source`, opened at `path`, whose names match the pattern `only`, `limit` at most.

    Call it again to go on after a kill, or after damaged files were mended: what is in the set stays, what failed
    is tried again. The set and its manifest (meta/import.jsonl) come out the same with and without interruptions.
    An episode that cannot be read or does not fit the set becomes a failed outcome and harms no other.
    `options` are those that `source` was opened with (None: none): a set that was begun with others is refused.
    `write` gives the outcomes of the episodes that are left, in order (`vap_gym.jobs.AtOnce`: several at once).
    Raises DataError where `out` holds something else, or no episode is chosen.
    """
    if limit is not None and limit < 1:
        raise DataError(
            f"The number of episodes to import must be 1 or more, got --limit {limit}. Leave it out for all."
        )
    names = [name for name in source.names() if fnmatchcase(name, only)][:limit]
    if not names or len(set(names)) != len(names):
        given = f"{len(names)} of which {len(set(names))} differ" if names else "none"
        raise DataError(f"'{path}' must hold episodes with names of their own, got {given} for --only '{only}'.")
    manifest = out / MANIFEST
    header = _header(
        {"kind": source.kind, "path": str(path.resolve()), "fps": doubts.fps, **_chosen(options or Options())}, out
    )
    done = _done(out)
    job = Job(
        source=source,
        path=path,
        out=out,
        doubts=replace(doubts, fps=header["fps"]),
        episodes_per_file=episodes_per_file,
        first_index=max((o.index for o in done.values() if o.index is not None), default=-1) + 1,
    )
    outcomes: dict[str, Outcome] = {}
    try:
        if not read_manifest(out):
            _write_manifest(manifest, header, [])  # before any episode, or a killed run could not be told to be ours
        left = write(job, [name for name in names if name not in done])
        with manifest.open("a", encoding="utf-8") as log, closing(left):
            for name in names:
                outcomes[name] = done.get(name) or next(left)
                if name not in done:
                    log.write(_line(_entry(outcomes[name])))
                    log.flush()
                progress(outcomes[name])
    finally:
        job.close()
    if any(outcome.failed is None for outcome in outcomes.values()) or done:
        _write_manifest(manifest, header, [*(o for n, o in done.items() if n not in outcomes), *outcomes.values()])
        finalise(out)
    else:
        _remove_traces(out)
    return Report(outcomes=tuple(outcomes.values()), fps=job.fps, fps_from=job.fps_from)


class Job:
    """Writes episodes of one source; the first one that can be read fixes the rate of the set."""

    def __init__(
        self, *, source: Source, path: Path, out: Path, doubts: Doubts, episodes_per_file: int, first_index: int
    ) -> None:
        self.source, self.path, self.out, self.doubts = source, path, out, doubts
        self.next_index = first_index
        self.episodes_per_file = episodes_per_file
        self.fps: int | None = doubts.fps
        self.fps_from = "--fps" if doubts.fps is not None else ""
        self.writer: EpisodeWriter | None = None
        if (out / layout.INFO_PATH).exists():
            self.fps, self.fps_from = EpisodeSet(out).fps, self.fps_from or "the set as it was"
            self.writer = self._open_writer(self.fps)

    def write(self, name: str) -> Outcome:
        """Read an episode and write it under the next index."""
        try:
            raw = self.source.read(name)
            raw = _fitted(raw, self.doubts)
            fps, stated, container = self._rate(raw)
            writer = self.writer or self._open_writer(fps)
            origin = source_info(self.source, self.path, name)
            if container is not None:
                origin["source"]["container_hz"] = container
            info = {"robot": self.source.robot, **raw.info, "source": origin["source"], "rate_hz": stated}
            frames = {view: given for view, given in raw.views.items() if isinstance(given, np.ndarray)}
            encoded = {view: given for view, given in raw.views.items() if not isinstance(given, np.ndarray)}
            episode = Episode(frames=frames, columns=raw.columns, labels=raw.labels, task=raw.task, info=info)
            writer.write(self.next_index, episode, encoded=encoded)
        except VapError as error:
            return Outcome(name=name, failed=" ".join(str(error).split()))
        self.writer, self.fps = writer, fps
        self.fps_from = self.fps_from or ("the source" if stated is not None else f"the container of '{name}'")
        self.next_index += 1
        return Outcome(name=name, index=self.next_index - 1, frames=min(_counts(raw).values()))

    def close(self) -> None:
        """Leave no empty folder of pending episodes behind, and none that waited."""
        shutil.rmtree(self.out / STAGED, ignore_errors=True)
        pending = self.out / layout.PENDING
        if pending.is_dir() and not any(pending.iterdir()):
            pending.rmdir()

    def _open_writer(self, fps: int) -> EpisodeWriter:
        return EpisodeWriter(
            self.out,
            fps=fps,
            robot_type=self.source.robot,
            episodes_per_file=self.episodes_per_file,
            check=self.doubts.check,
        )

    def _rate(self, raw: RawEpisode) -> tuple[int, float | None, float | None]:
        """The rate for the set, the one stated for the episode, and the one of its first container."""
        stated, given = raw.rate_hz if raw.rate_hz is not None else self.doubts.rate_hz, self.doubts.rate_hz
        if stated is not None and not (math.isfinite(stated) and stated > 0):
            raise DataError(f"The frame rate of '{raw.name}' must be above 0 Hz, got {stated}. State it: --rate-hz 15")
        if stated is not None and given is not None and not math.isclose(stated, given, rel_tol=0.01):
            raise DataError(
                f"'{raw.name}' states {stated:g} frames a second, got --rate-hz {given:g}. "
                "Leave --rate-hz out, or give --fps to store it at another rate."
            )
        videos = [given for given in raw.views.values() if isinstance(given, VideoFile)]
        container = probe_video(videos[0].path).fps if videos else None
        rate = stated if stated is not None else container
        if self.doubts.fps is not None:
            return self.doubts.fps, stated, container
        if rate is None:
            raise DataError(
                f"The frame rate of '{raw.name}' must be stated, got none from its source. State it: --rate-hz 15"
            )
        if self.fps is not None and not math.isclose(rate, self.fps, rel_tol=0.01):
            raise DataError(
                f"'{raw.name}' has {rate:g} frames a second ({'stated' if stated is not None else 'container'}), the "
                f"set has {self.fps}. Import it into another folder (--only), or give --fps to store all at one rate."
            )
        if not math.isclose(rate, round(rate), rel_tol=0.01) or round(rate) < 1:
            raise DataError(
                f"A set needs a whole number of frames a second, got {rate:g} from '{raw.name}'. "
                f"Choose it: --fps {max(1, round(rate))}"
            )
        return self.fps or round(rate), stated, container


def _counts(raw: RawEpisode) -> dict[str, int]:
    """Frames or rows of each part of an episode."""
    counts = {view: _frames(given) for view, given in raw.views.items()}
    counts |= {name: len(values) for name, values in {**raw.columns, **raw.labels}.items()}
    return counts


def _frames(given: RawView) -> int:
    if isinstance(given, VideoFile):
        stop = probe_video(given.path).frames if given.stop is None else given.stop
        return stop - given.start
    return len(given)


def _fitted(raw: RawEpisode, doubts: Doubts) -> RawEpisode:
    """Check that all parts have the same length; trim and recode where the user allows it."""
    counts = _counts(raw)
    shortest = min(counts.values(), default=0)
    if shortest < 1:
        raise DataError(f"'{raw.name}' must hold frames and rows, got {counts or 'nothing'}. Leave it out.")
    longest = max(counts.values())
    if longest != shortest:
        if not doubts.trim:
            parts = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(
                f"Views and columns of '{raw.name}' must have the same number of frames, got {parts}. "
                "Check that they belong together; --trim cuts them to the shortest."
            )
        raw = replace(
            raw,
            views={view: _first(given, shortest) for view, given in raw.views.items()},
            columns={name: values[:shortest] for name, values in raw.columns.items()},
            labels={name: values[:shortest] for name, values in raw.labels.items()},
            info={**raw.info, "trimmed_from": longest},
        )
    if doubts.recode:
        raw = replace(raw, views={view: _copied_or_decoded(given) for view, given in raw.views.items()})
    return raw


def _first(given: RawView, count: int) -> RawView:
    if isinstance(given, VideoFile):
        return replace(given, stop=given.start + count)
    if isinstance(given, PictureBytes):
        return PictureBytes(files=given.files[:count])
    return given[:count]


def _copied_or_decoded(given: RawView) -> RawView:
    """The view itself where its packets can be copied, else its decoded frames."""
    if not isinstance(given, VideoFile):
        return given
    try:
        cut_video(given)
    except DataError:
        frames: NDArray[np.uint8] = read_video(given.path, start=given.start, stop=given.stop)
        return frames
    return given


def _chosen(options: Options) -> dict[str, str]:
    """What was chosen of that which changes every episode."""
    table = {"robot": options.robot, "action": options.action, "map": options.map_path and options.map_path.resolve()}
    return {key: str(value) for key, value in table.items() if value is not None}


def _header(header: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The first line of the manifest: that of an earlier run where there is one. Refuses another source's set."""
    lines = read_manifest(out)
    if not lines:
        if (out / layout.INFO_PATH).exists():
            raise DataError(f"'{out}' must be new or an import to go on with, got a set without {MANIFEST}.")
        return dict(header)
    before = lines[0]
    for key in ("kind", "path"):
        if before.get(key) != header[key]:
            raise DataError(
                f"'{out}' was imported from {key} {before.get(key)!r}, got {header[key]!r}. "
                "Go on with the same source, or choose a new folder."
            )
    if (out / layout.INFO_PATH).exists():
        for key in ("robot", "action", "map"):
            if header.get(key) != before.get(key):
                given = [f"--{key} {table[key]}" if key in table else f"no --{key}" for table in (before, header)]
                raise DataError(
                    f"'{out}' was begun with {given[0]}, got {given[1]}. Go on with the same, or choose a new folder."
                )
    if header["fps"] is not None and header["fps"] != before.get("fps") and (out / layout.INFO_PATH).exists():
        raise DataError(
            f"'{out}' was begun with --fps {before.get('fps')}, got {header['fps']}. "
            "Go on with the same, or choose a new folder."
        )
    return {**header, "fps": before.get("fps") if (out / layout.INFO_PATH).exists() else header["fps"]}


def read_manifest(out: Path) -> list[dict[str, Any]]:
    """Lines of a set's manifest: the source, then one per episode. A line cut short by a kill is left out."""
    path = out / MANIFEST
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            lines += [value] if isinstance(value, dict) else []
    return lines


def _done(out: Path) -> dict[str, Outcome]:
    """Episodes that are in the set, by their names in the source. The set knows, whatever the manifest missed."""
    if not (out / layout.INFO_PATH).exists():
        return {}
    episodes = EpisodeSet(out)
    done = {}
    for i in range(len(episodes)):
        name = episodes.info(i)["source"]["episode"]
        done[name] = Outcome(name=name, index=episodes.index(i), frames=episodes.length(i))
    return done


def _entry(outcome: Outcome) -> dict[str, Any]:
    if outcome.failed is not None:
        return {"episode": outcome.name, "failed": outcome.failed}
    return {"episode": outcome.name, "index": outcome.index, "frames": outcome.frames}


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _write_manifest(path: Path, header: Mapping[str, Any], outcomes: Iterable[Outcome]) -> None:
    with layout.replacing(path) as temporary:
        temporary.write_text("".join(map(_line, [header, *map(_entry, outcomes)])), encoding="utf-8")


def _remove_traces(out: Path) -> None:
    """Remove the manifest of an import that imported nothing, with the folders that it alone needed."""
    (out / MANIFEST).unlink(missing_ok=True)
    for folder in ((out / MANIFEST).parent, out):
        if folder.is_dir() and not os.listdir(folder):
            folder.rmdir()
