"""Episodes on disk: any number of processes write them by index, a killed run stays readable and can go on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vap_gym.data import layout, tables
from vap_gym.data.layout import Column, DataError, Features
from vap_gym.data.video import CODECS, read_video, write_video


@dataclass(frozen=True, kw_only=True)
class Episode:
    """T frames of one episode and what belongs to them.

    `frames` by view: uint8 (T,H,W,3) RGB. `columns` by feature name (observation.state, action, …): (T,…) of any
    bool, int or float dtype; row t of `action` is what leads from frame t to t+1. `labels` by name: uint8 (T,H,W),
    stored without loss. `info` is free JSON: seed, scene, success, split. `index` is set by reading.
    """

    frames: Mapping[str, NDArray[np.uint8]]
    columns: Mapping[str, NDArray[Any]]
    task: str
    labels: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    index: int | None = None

    def __len__(self) -> int:
        """Number of frames T."""
        return len(next(iter({**self.columns, **self.frames}.values())))

    @property
    def features(self) -> Features:
        """Names, shapes and dtypes of what this episode holds."""
        return Features(
            views={name: _picture_size(frames) for name, frames in sorted(self.frames.items())},
            columns={
                name: Column(dtype=values.dtype.name, shape=tuple(values.shape[1:]))
                for name, values in sorted(self.columns.items())
            },
            labels={name: _picture_size(labels) for name, labels in sorted(self.labels.items())},
        )


class EpisodeWriter:
    """Writes episodes into `root`; open one per process, with the same settings.

    Every episode is written whole or not at all, under its own index, in any order and by any process:
    `for i in writer.missing(total): writer.write(i, make(i))` continues a killed run. `finalise(root)` then
    gathers them; the result does not depend on who wrote what when.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fps: int = 15,
        codec: str = "h264_444",
        crf: int = 10,
        episodes_per_file: int = 50,
        robot_type: str = "unknown",
    ) -> None:
        if codec not in CODECS:
            raise DataError(f"No video codec named {codec!r}. Known: {', '.join(CODECS)}.")
        self.root, self.fps, self.robot_type = Path(root), fps, robot_type
        self.episodes_per_file = episodes_per_file
        self.codec = {"name": codec, "crf": crf, "pix_fmt": CODECS[codec].pix_fmt}
        self.features: Features | None = None
        if (self.root / layout.INFO_PATH).exists():
            self._adopt(layout.read_info(self.root))
        self._gathered = {row["episode_index"] for row in tables.read_episode_rows(self.root, ["episode_index"])}

    def written(self) -> set[int]:
        """Indices of the episodes that are safely on disk, whoever wrote them."""
        return self._gathered | set(tables.pending_episodes(self.root))

    def missing(self, total: int) -> list[int]:
        """Indices below `total` that are still to be written, in order."""
        written = self.written()
        return [index for index in range(total) if index not in written]

    def append(self, episode: Episode) -> int:
        """Write an episode under the next free index and return it. For a single writing process."""
        index = max(self.written(), default=-1) + 1
        self.write(index, episode)
        return index

    def write(self, index: int, episode: Episode) -> None:
        """Write an episode under `index` >= 0; it is on disk, whole, when this returns.

        Raises DataError where the index is taken, or the episode does not have the features of the set
        (which its first episode fixes).
        """
        folder = tables.pending_folder(self.root, index)
        if index in self._gathered or folder.exists():
            raise DataError(
                f"Episode {index} of '{self.root}' must not exist yet, but it is written. "
                "Write only the indices that missing(total) gives."
            )
        features = _checked(episode)
        if self.features is None:
            self._describe(features)
        _require_same(features, self.features, self.root)
        building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            for view, frames in episode.frames.items():
                path = building / f"{layout.IMAGE_PREFIX}{view}.mp4"
                write_video(path, frames, self.fps, codec=self.codec["name"], crf=self.codec["crf"])
            for name, labels in episode.labels.items():
                tables.write_labels(building / f"{name}.labels.parquet", index, labels)
            tables.write_table(building / "data.parquet", tables.frame_table(episode.columns, features, index, self.fps))
            row = tables.episode_row(index, episode.task, _as_json(episode.info), len(episode), self._stats(episode))
            tables.write_table(building / "episode.parquet", row)
            building.rename(folder)
        except OSError as error:
            raise DataError(
                f"Episode {index} must get the folder {folder}, got {error}. "
                "Make room, or let only one process write an index."
            ) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _stats(self, episode: Episode) -> dict[str, dict[str, NDArray[Any]]]:
        pictures = {layout.IMAGE_PREFIX + view: tables.picture_stats(f) for view, f in sorted(episode.frames.items())}
        return pictures | {name: tables.column_stats(v) for name, v in sorted(episode.columns.items())}

    def _describe(self, features: Features) -> None:
        """Fix the features of a new set; processes that start together all come to the same file."""
        path = self.root / layout.INFO_PATH
        if not path.exists():
            described = layout.info_json(
                features,
                fps=self.fps,
                robot_type=self.robot_type,
                codec=self.codec,
                episodes_per_file=self.episodes_per_file,
            )
            layout.write_json(path, described)
        self._adopt(layout.read_info(self.root))

    def _adopt(self, info: Mapping[str, Any]) -> None:
        """Take the features of an existing set, and refuse to write into it with other settings."""
        ours = info.get(layout.OUR_KEY)
        if ours is None:
            raise DataError(
                f"'{self.root}' must be a set that vap-gym wrote, got another tool's. Write into a new folder."
            )
        mine: dict[str, Any] = {"fps": self.fps, "codec": self.codec, "episodes_per_file": self.episodes_per_file}
        theirs = {"fps": info["fps"], "codec": ours["codec"], "episodes_per_file": ours["episodes_per_file"]}
        for name, value in mine.items():
            if value != theirs[name]:
                raise DataError(
                    f"{name} of '{self.root}' is {theirs[name]!r}, got {value!r}. "
                    "Write with the same value, or into a new folder."
                )
        self.features = layout.features_of(info)


class EpisodeSet:
    """The episodes of a folder in index order, read when asked for: ours, whole or killed half-way, or LeRobot v3.

    `len(s)`, `s[i]` (an Episode), `s.read(i, start=, stop=)`, `s.task(i)`, `s.info(i)`, `s.length(i)`.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.meta = layout.read_info(self.root)
        self.fps = int(self.meta["fps"])
        self.features = layout.features_of(self.meta)
        self._rows = tables.read_episode_rows(self.root, None)
        gathered = {row["episode_index"] for row in self._rows}
        for index, folder in tables.pending_episodes(self.root).items():
            if index not in gathered:
                row = pq.read_table(folder / "episode.parquet").to_pylist()[0]
                self._rows.append({**row, "pending": folder, "dataset_from_index": 0})
        self._rows.sort(key=lambda row: int(row["episode_index"]))
        self._first_row = self._first_rows()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Episode:
        return self.read(i)

    def index(self, i: int) -> int:
        """The index under which the i-th episode was written (i itself, unless the set has gaps)."""
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
        return dict(json.loads(self._row(i).get(tables.INFO_COLUMN) or "{}"))

    def read(
        self,
        i: int,
        *,
        start: int = 0,
        stop: int | None = None,
        views: Iterable[str] | None = None,
        labels: bool = True,
        columns: Iterable[str] | None = None,
    ) -> Episode:
        """Read frames start to stop (excluded; None for the end) of episode i, all views and columns unless named."""
        row, length = self._row(i), self.length(i)
        stop = length if stop is None else stop
        if not 0 <= start < stop <= length:
            raise DataError(
                f"Episode {i} needs 0 <= start < stop <= {length}, got start={start}, stop={stop}. "
                "Omit both for the whole episode."
            )
        frames = {
            view: self._frames(row, view, start, stop) for view in _known(views, self.features.views, "view")
        }
        maps = {
            name: tables.read_labels(self._path(row, "labels", name), int(row["episode_index"]))[start:stop]
            for name in (self.features.labels if labels else ())
        }
        wanted = {name: self.features.columns[name] for name in _known(columns, self.features.columns, "column")}
        data = self._path(row, "data")
        values = tables.read_columns(data, self._first_row[i], length, wanted) if wanted else {}
        return Episode(
            frames=frames,
            columns={name: value[start:stop] for name, value in values.items()},
            task=self.task(i),
            labels=maps,
            info=self.info(i),
            index=int(row["episode_index"]),
        )

    def _row(self, i: int) -> dict[str, Any]:
        if not -len(self._rows) <= i < len(self._rows):
            raise IndexError(f"No episode {i} in '{self.root}'. It holds {len(self._rows)}, numbered from 0.")
        return self._rows[i]

    def _first_rows(self) -> list[int]:
        """For every episode its first row within its data file."""
        first_index: dict[tuple[int, int], int] = {}
        found = []
        for row in self._rows:
            if "pending" in row:
                found.append(0)
                continue
            file = (row["data/chunk_index"], row["data/file_index"])
            found.append(row["dataset_from_index"] - first_index.setdefault(file, row["dataset_from_index"]))
        return found

    def _path(self, row: Mapping[str, Any], kind: str, name: str = "") -> Path:
        if "pending" in row:
            file = {"data": "data.parquet", "labels": f"{name}.labels.parquet", "video": f"{name}.mp4"}[kind]
            return Path(row["pending"]) / file
        key = f"videos/{name}" if kind == "video" else "data"
        indices = {"chunk_index": row[f"{key}/chunk_index"], "file_index": row[f"{key}/file_index"]}
        if kind == "labels":
            return self.root / layout.LABEL_PATH.format(label_key=name, **indices)
        template = self.meta["video_path" if kind == "video" else "data_path"]
        return self.root / str(template).format(video_key=name, **indices)

    def _frames(self, row: Mapping[str, Any], view: str, start: int, stop: int) -> NDArray[np.uint8]:
        prefixed = layout.IMAGE_PREFIX + view
        key = prefixed if prefixed in self.meta["features"] else view
        first = round(row.get(f"videos/{key}/from_timestamp", 0.0) * self.fps)
        return read_video(self._path(row, "video", key), start=first + start, stop=first + stop)


def _picture_size(pictures: NDArray[Any]) -> tuple[int, int]:
    return (int(pictures.shape[1]), int(pictures.shape[2])) if pictures.ndim >= 3 else (0, 0)


def _known(names: Iterable[str] | None, known: Mapping[str, Any], kind: str) -> list[str]:
    wanted = list(known if names is None else names)
    for name in wanted:
        if name not in known:
            raise DataError(f"No {kind} named {name!r} in this set. Known: {', '.join(known) or 'none'}.")
    return wanted


def _as_json(info: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(info), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"info of an episode must be plain JSON, got {error}. Turn arrays into lists with .tolist()."
        ) from error


def _checked(episode: Episode) -> Features:
    """Check an episode by itself and return its features."""
    if not episode.frames and not episode.columns:
        raise DataError("An episode must hold frames or columns, got neither. Give at least one.")
    if not isinstance(episode.task, str):
        raise DataError(f"task must be a string, got {type(episode.task).__name__}. Use '' where there is none.")
    length = len(episode)
    arrays: list[tuple[str, NDArray[Any]]] = [("frames " + k, v) for k, v in episode.frames.items()]
    arrays += [("labels " + k, v) for k, v in episode.labels.items()]
    for name, pictures in arrays:
        wanted = "(T, H, W, 3)" if name.startswith("frames") else "(T, H, W)"
        if pictures.dtype != np.uint8 or pictures.ndim != wanted.count(",") + 1 or pictures.shape[3:] not in ((3,), ()):
            raise DataError(f"{name!r} must be uint8 {wanted}, got {pictures.dtype} {pictures.shape}. Convert it first.")
    for name, values in (*arrays, *episode.columns.items()):
        if values.ndim == 0 or len(values) != length or length == 0:
            raise DataError(
                f"{name!r} must have {length or 'at least 1'} rows, one per frame, got shape {values.shape}. "
                "Give every array of an episode the same first axis."
            )
    for name, values in episode.columns.items():
        if values.dtype.name not in layout.DTYPES or 0 in values.shape:
            raise DataError(
                f"column {name!r} must be non-empty and one of {', '.join(layout.DTYPES)}, "
                f"got {values.dtype} {values.shape}. Convert it first."
            )
    for name in (*episode.frames, *episode.labels, *episode.columns):
        if "/" in name or name in layout.INDEX_COLUMNS or name.startswith(layout.IMAGE_PREFIX) or not name:
            raise DataError(
                f"A feature cannot be named {name!r}: '/', the prefix '{layout.IMAGE_PREFIX}' and "
                f"{', '.join(layout.INDEX_COLUMNS)} belong to the layout. Choose another name."
            )
    return episode.features


def _require_same(given: Features, wanted: Features | None, root: Path) -> None:
    assert wanted is not None
    for kind, mine, theirs in (
        ("view", given.views, wanted.views),
        ("label", given.labels, wanted.labels),
        ("column", given.columns, wanted.columns),
    ):
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                raise DataError(
                    f"{kind} {name!r} of '{root}' is {theirs.get(name, 'absent')}, got {mine.get(name, 'none')}. "
                    "Every episode of a set has the same features; write others into a new folder."
                )
