"""Episodes: what one holds, and reading them from a folder one by one, in any order, whole or in part."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vap_gym.data import layout, tables
from vap_gym.data.encoded import decode_pictures
from vap_gym.data.layout import Column, DataError, Features
from vap_gym.data.video import read_video


@dataclass(frozen=True, kw_only=True)
class Episode:
    """T frames of one episode and what belongs to them.

    `frames` by view: uint8 (T,H,W,3) RGB. `columns` by feature name (observation.state, action, …): (T,…) of any
    bool, int or float dtype; row t of `action` is what leads from frame t to t+1. `labels` by name: uint8 (T,H,W),
    stored without loss. `info` is free JSON: seed, scene, success, split. `index` is set by reading.
    """

    frames: Mapping[str, NDArray[Any]]
    columns: Mapping[str, NDArray[Any]]
    task: str
    labels: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    index: int | None = None

    def __len__(self) -> int:
        """Number of frames T."""
        return next((len(array) for array in (*self.frames.values(), *self.columns.values())), 0)

    @property
    def features(self) -> Features:
        """Names, shapes and dtypes of what this episode holds."""
        return Features(
            views={name: (frames.shape[1], frames.shape[2]) for name, frames in sorted(self.frames.items())},
            columns={
                name: Column(dtype=values.dtype.name, shape=tuple(values.shape[1:]))
                for name, values in sorted(self.columns.items())
            },
            labels={name: (maps.shape[1], maps.shape[2]) for name, maps in sorted(self.labels.items())},
        )


class EpisodeSet:
    """The episodes of a folder in index order, read when asked for: ours, whole or killed half-way, or any LeRobot v3.

    `len(s)`, `s[i]` (an Episode), `s.read(i, start=, stop=, views=, labels=, columns=)`; without touching frames:
    `s.length(i)`, `s.task(i)`, `s.info(i)`, `s.index(i)`, `s.fps`, `s.features`. Safe to hand to forked workers.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.meta = layout.read_info(self.root)
        self.fps = int(self.meta["fps"])
        self.features = layout.features_of(self.meta)
        rows = tables.gathered_rows(self.root)
        gathered = {row["episode_index"] for row in rows}
        pending = {i: path for i, path in tables.pending_episodes(self.root).items() if i not in gathered}
        for folder, row in zip(
            pending.values(), tables.read_episode_rows(p / "episode.parquet" for p in pending.values()), strict=True
        ):
            row["pending"] = folder
            rows.append(row)
        self._rows = sorted(rows, key=lambda row: int(row["episode_index"]))
        self._first_rows = self._find_first_rows()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Episode:
        return self.read(i)

    def index(self, i: int) -> int:
        """The index under which the i-th episode was written: i itself, unless the set has gaps."""
        return int(self._row(i)["episode_index"])

    def length(self, i: int) -> int:
        """Number of frames of episode i."""
        return int(self._row(i)["length"])

    def task(self, i: int) -> str:
        """Instruction of episode i."""
        tasks = self._row(i)["tasks"]
        return str(tasks[0]) if tasks else ""

    def info(self, i: int) -> dict[str, Any]:
        """The free JSON that was stored with episode i ({} in other tools' sets)."""
        text = self._row(i).get(tables.INFO_COLUMN) or "{}"
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"What is stored with episode {i} of '{self.root}' must be a JSON object, got {text[:40]!r}. Write it "
                "again."
            ) from error

    def read(
        self,
        i: int,
        *,
        start: int = 0,
        stop: int | None = None,
        views: Iterable[str] | None = None,
        labels: Iterable[str] | None = None,
        columns: Iterable[str] | None = None,
    ) -> Episode:
        """Read frames start to stop (excluded; None for the end) of episode i.

        `views`, `labels` and `columns` name what to read, all where None; `()` skips the kind.
        Raises IndexError past the last episode, DataError on ranges and names that are not there or damaged files.
        """
        row, length = self._row(i), self.length(i)
        stop = length if stop is None else stop
        if not 0 <= start < stop <= length:
            raise DataError(
                f"Episode {i} needs 0 <= start < stop <= {length}, got start={start}, stop={stop}. "
                "Omit both for the whole episode."
            )
        wanted = {name: self.features.columns[name] for name in _known(columns, self.features.columns, "column")}
        values = tables.read_columns(self._path(row, "data"), self._first_rows[i], length, wanted) if wanted else {}
        maps = {
            name: tables.read_labels(self._path(row, "labels", name), int(row["episode_index"]))
            for name in _known(labels, self.features.labels, "labels")
        }
        return Episode(
            frames={v: self._frames(i, v, start, stop) for v in _known(views, self.features.views, "view")},
            columns={name: value[start:stop] for name, value in values.items()},
            task=self.task(i),
            labels={name: value[start:stop] for name, value in maps.items()},
            info=self.info(i),
            index=int(row["episode_index"]),
        )

    def pictures(self, i: int, view: str, *, start: int = 0, stop: int | None = None) -> list[bytes]:
        """The JPEG or PNG files of frames start to stop of a view in `features.stills`, as they were given."""
        _known([view], self.features.stills, "view of picture files")
        length, key = self.length(i), self._key(view)
        files = tables.read_pictures(self._path(self._row(i), "data"), self._first_rows[i], length, key)
        return files[start:stop]

    def video_of(self, i: int, view: str) -> tuple[Path, int]:
        """The mp4 that holds a view in `features.videos`, and which of its frames is the episode's first."""
        _known([view], self.features.videos, "view in a video")
        row, key = self._row(i), self._key(view)
        first = round(row.get(f"videos/{key}/from_timestamp", 0.0) * self.fps)
        return self._path(row, "video", key), first

    def _row(self, i: int) -> dict[str, Any]:
        if not -len(self._rows) <= i < len(self._rows):
            raise IndexError(f"No episode {i} in '{self.root}'. It holds {len(self._rows)}, numbered from 0.")
        return self._rows[i]

    def _find_first_rows(self) -> list[int]:
        """For every episode its first row within its data file."""
        begin_of_file: dict[tuple[int, int], int] = {}
        found = []
        for row in self._rows:
            if "pending" in row:
                found.append(0)
                continue
            file, begin = (row["data/chunk_index"], row["data/file_index"]), int(row["dataset_from_index"])
            found.append(begin - begin_of_file.setdefault(file, begin))
        return found

    def _path(self, row: Mapping[str, Any], kind: str, name: str = "") -> Path:
        if "pending" in row:
            file = {"data": "data.parquet", "labels": f"{name}.labels.parquet", "video": f"{name}.mp4"}[kind]
            return Path(row["pending"]) / file
        key = f"videos/{name}" if kind == "video" else "data"
        places = {"chunk_index": row[f"{key}/chunk_index"], "file_index": row[f"{key}/file_index"]}
        if kind == "labels":
            return self.root / layout.LABEL_PATH.format(label_key=name, **places)
        template = str(self.meta["video_path" if kind == "video" else "data_path"])
        try:
            return self.root / template.format(video_key=name, **places)
        except (KeyError, ValueError, IndexError) as error:
            raise DataError(
                f"The paths of {layout.INFO_PATH} must be made of video_key, chunk_index and file_index, "
                f"got {template!r}. Restore the file, or write the set again."
            ) from error

    def _key(self, view: str) -> str:
        prefixed = layout.IMAGE_PREFIX + view
        return prefixed if prefixed in self.meta["features"] else view

    def _frames(self, i: int, view: str, start: int, stop: int) -> NDArray[np.uint8]:
        if view in self.features.stills:
            return decode_pictures(self.pictures(i, view, start=start, stop=stop), f"'{view}' of episode {i}, frame")
        path, first = self.video_of(i, view)
        return read_video(path, start=first + start, stop=first + stop)


def describe(root: str | Path) -> str:
    """A few lines on a data set: episodes, frames, hours, features, counts of tasks and of short `info` entries."""
    told = described(root)
    lines = [
        f"{told['root']}: {told['episodes']} episodes, {told['frames']} frames, "
        f"{told['hours']:.2f} h at {told['fps']} fps",
        *(f"  view    {name}  {height}x{width} px" for name, (height, width) in told["views"].items()),
        *(f"  labels  {name}  {height}x{width} px" for name, (height, width) in told["labels"].items()),
        *(f"  column  {name}  {c['dtype']} {c['shape']}" for name, c in told["columns"].items()),
    ]
    for name, counts in told["counts"].items():
        lines += [f"  {name}  {number} x {value}" for value, number in list(counts.items())[:20]]
    return "\n".join(lines)


def described(root: str | Path) -> dict[str, Any]:
    """Return what `describe` says as plain JSON; heights and widths in pixels, counts from the most frequent on."""
    episodes = EpisodeSet(root)
    all_of_them = range(len(episodes))
    frames = sum(episodes.length(i) for i in all_of_them)
    features = episodes.features
    infos = [episodes.info(i) for i in all_of_them]
    counted = [("task", [episodes.task(i) for i in all_of_them])]
    for name in sorted({name for info in infos for name, value in info.items() if isinstance(value, str | bool)}):
        values = [str(info.get(name)) for info in infos]
        if len(set(values)) <= 12:
            counted.append((name, values))
    return {
        "root": str(episodes.root),
        "episodes": len(episodes),
        "frames": frames,
        "hours": frames / episodes.fps / 3600,
        "fps": episodes.fps,
        "views": {name: list(size) for name, size in features.views.items()},
        "labels": {name: list(size) for name, size in features.labels.items()},
        "columns": {name: {"dtype": c.dtype, "shape": list(c.shape)} for name, c in features.columns.items()},
        "counts": {name: dict(Counter(values).most_common()) for name, values in counted},
    }


def _known(names: Iterable[str] | None, known: Collection[str], kind: str) -> list[str]:
    wanted = list(known if names is None else names)
    for name in wanted:
        if name not in known:
            raise DataError(f"No {kind} named {name!r} in this set. Known: {', '.join(known) or 'none'}.")
    return wanted
