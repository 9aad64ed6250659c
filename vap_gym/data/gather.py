"""Gather written episodes into LeRobot's files of many episodes, without encoding anything again."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vap_gym.data import layout, tables
from vap_gym.data.episodes import EpisodeSet
from vap_gym.data.layout import DataError, Features
from vap_gym.data.video import join_videos


def finalise(root: str | Path) -> None:
    """Gather all episodes of `root` and write its meta files; call it once the writers are done, in one process.

    May be killed and called again, and again after more episodes were written. The files are the same whatever
    the number of writers and interruptions. Raises DataError where an index is missing: LeRobot counts without gaps.
    """
    root = Path(root)
    info = layout.read_info(root)
    episodes = EpisodeSet(root)
    indices = [episodes.index(i) for i in range(len(episodes))]
    missing = sorted(set(range(max(indices, default=-1) + 1)) - set(indices))
    if missing or not indices:
        shown = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        raise DataError(
            f"finalise needs episodes 0 to n of '{root}' without gaps, got {len(indices)} with "
            f"{shown or 'all'} missing. Write them first: EpisodeWriter.missing(total) lists them."
        )
    lengths = [episodes.length(i) for i in indices]
    tasks = {task: number for number, task in enumerate(dict.fromkeys(episodes.task(i) for i in indices))}
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    per_file = int(info[layout.OUR_KEY]["episodes_per_file"])
    pending = tables.pending_episodes(root)
    gathered = {int(row["episode_index"]) for row in tables.read_episode_rows(root, ["episode_index"])}
    for shard_index in sorted({index // per_file for index in pending if index not in gathered}):
        members = range(shard_index * per_file, min((shard_index + 1) * per_file, len(indices)))
        shard = _Shard(root, info, shard_index, members, lengths, starts, gathered)
        shard.write([tasks[episodes.task(i)] for i in members])
    _write_meta(root, info, list(tasks), len(indices), starts[-1])
    shutil.rmtree(root / layout.PENDING, ignore_errors=True)


class _Shard:
    """One file of each kind: what it held already, then the pending episodes that belong to it.

    Indices grow without gaps, so an older version of a file is always a beginning of the newer one: whoever is
    killed between two files leaves a set that reads right.
    """

    def __init__(
        self,
        root: Path,
        info: Mapping[str, Any],
        shard_index: int,
        members: range,
        lengths: list[int],
        starts: list[int],
        gathered: set[int],
    ) -> None:
        self.root, self.index, self.members = root, shard_index, members
        self.features: Features = layout.features_of(info)
        self.fps = int(info["fps"])
        self.lengths, self.starts = lengths, starts
        self.old = [i for i in members if i in gathered]
        self.new = [i for i in members if i not in gathered]

    def path(self, template: str, **keys: str) -> Path:
        return self.root / layout.shard_of(template, self.index, **keys)

    def pending(self, index: int, name: str) -> Path:
        return tables.pending_folder(self.root, index) / name

    def write(self, task_indices: list[int]) -> None:
        for view in self.features.views:
            key = layout.IMAGE_PREFIX + view
            path = self.path(layout.VIDEO_PATH, video_key=key)
            parts = [(self.pending(i, f"{key}.mp4"), self.lengths[i]) for i in self.new]
            if self.old:
                parts.insert(0, (path, sum(self.lengths[i] for i in self.old)))
            join_videos(parts, path, self.fps)
        for name in self.features.labels:
            path = self.path(layout.LABEL_PATH, label_key=name)
            tables.write_table(path, self._groups(path, f"{name}.labels.parquet"))
        path = self.path(layout.DATA_PATH)
        groups = self._groups(path, "data.parquet")
        numbered = (
            _numbered(group, self.starts[i], task)
            for group, i, task in zip(groups, self.members, task_indices, strict=True)
        )
        tables.write_table(path, list(numbered))
        path = self.path(layout.EPISODES_PATH)  # last: an episode counts as gathered from here on
        rows = [self._placed(row, i) for row, i in zip(self._groups(path, "episode.parquet"), self.members, strict=True)]
        tables.write_table(path, rows)

    def _groups(self, path: Path, name: str) -> list[pa.Table]:
        """One table per member: the old ones from the file they are in, the new ones from their own."""
        found = []
        if self.old:
            with pq.ParquetFile(path) as file:
                found = [file.read_row_group(group) for group in range(len(self.old))]
        return found + [pq.read_table(self.pending(i, name)) for i in self.new]

    def _placed(self, row: pa.Table, index: int) -> pa.Table:
        """The episode's row with the places of its rows and frames in front of its statistics."""
        chunk_index, file_index = divmod(self.index, layout.FILES_PER_CHUNK)
        start, length = self.starts[index], self.lengths[index]
        places: dict[str, int | float] = {
            "dataset_from_index": start,
            "dataset_to_index": start + length,
            "data/chunk_index": chunk_index,
            "data/file_index": file_index,
            "meta/episodes/chunk_index": chunk_index,
            "meta/episodes/file_index": file_index,
        }
        first = start - self.starts[self.members[0]]
        for view in self.features.views:
            key = f"videos/{layout.IMAGE_PREFIX}{view}"
            places |= {f"{key}/chunk_index": chunk_index, f"{key}/file_index": file_index}
            places |= {f"{key}/from_timestamp": first / self.fps, f"{key}/to_timestamp": (first + length) / self.fps}
        kept = {name: row.column(name) for name in row.column_names if name not in places}
        head = {name: values for name, values in kept.items() if not name.startswith("stats/")}
        tail = {name: values for name, values in kept.items() if name.startswith("stats/")}
        return pa.table({**head, **{name: [value] for name, value in places.items()}, **tail})


def _numbered(table: pa.Table, start: int, task_index: int) -> pa.Table:
    count = table.num_rows
    for name, values in (("index", start + np.arange(count)), ("task_index", np.full(count, task_index))):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.int64()))
    return table


def _write_meta(root: Path, info: dict[str, Any], tasks: list[str], episodes: int, frames: int) -> None:
    names = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "__index_level_0__": pa.array(tasks)})
    tables.write_table(root / layout.TASKS_PATH, names.replace_schema_metadata({"pandas": _PANDAS_TASKS}))
    layout.write_json(root / layout.STATS_PATH, _joint_stats(root))
    totals = {"total_episodes": episodes, "total_frames": frames, "total_tasks": len(tasks)}
    layout.write_json(root / layout.INFO_PATH, {**info, **totals, "splits": {"train": f"0:{episodes}"}})


_PANDAS_TASKS = json.dumps(  # LeRobot reads tasks.parquet as a pandas frame whose row names are the tasks
    {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
            {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object"},
        ],
        "pandas_version": "2.2.0",
    }
)


def _joint_stats(root: Path) -> dict[str, dict[str, Any]]:
    """Statistics of all frames from those of the episodes (parallel variance, Chan et al. 1979)."""
    paths = sorted((root / "meta/episodes").glob("*/*.parquet"))
    rows = pa.concat_tables([pq.read_table(path) for path in paths])
    joint: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(n.split("/")[1] for n in rows.column_names if n.startswith("stats/")):
        figures = {
            kind: np.array(rows.column(f"stats/{name}/{kind}").to_pylist())
            for kind in ("min", "max", "mean", "std", "count")
        }
        mean = figures["mean"]
        weight = figures["count"].reshape(-1, *[1] * (mean.ndim - 1)) / figures["count"].sum()
        overall = (weight * mean).sum(axis=0)
        variance = (weight * (figures["std"] ** 2 + (mean - overall) ** 2)).sum(axis=0)
        joint[name] = {
            "min": figures["min"].min(axis=0).tolist(),
            "max": figures["max"].max(axis=0).tolist(),
            "mean": overall.tolist(),
            "std": np.sqrt(variance).tolist(),
            "count": [int(figures["count"].sum())],
        }
    return joint


def describe(root: str | Path) -> str:
    """A few lines on a data set: episodes, frames, hours, features, tasks."""
    episodes = EpisodeSet(root)
    frames = sum(episodes.length(i) for i in range(len(episodes)))
    features = episodes.features
    lines = [
        f"{episodes.root}: {len(episodes)} episodes, {frames} frames, "
        f"{frames / episodes.fps / 3600:.2f} h at {episodes.fps} fps",
        *(f"  view    {name}  {height}x{width} px" for name, (height, width) in features.views.items()),
        *(f"  labels  {name}  {height}x{width} px" for name, (height, width) in features.labels.items()),
        *(f"  column  {name}  {c.dtype} {list(c.shape)}" for name, c in features.columns.items()),
        *_counts("task", (episodes.task(i) for i in range(len(episodes)))),
    ]
    return "\n".join(lines)


def _counts(kind: str, values: Iterable[str]) -> list[str]:
    return [f"  {kind}    {count:6d} x {value}" for value, count in Counter(values).most_common(20)]
