"""Gather written episodes into LeRobot's files of many episodes, without encoding anything again."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vap_gym.data import layout, tables
from vap_gym.data.episodes import EpisodeSet
from vap_gym.data.layout import DataError, Features
from vap_gym.data.remux import join_videos, probe_video

PANDAS_TASKS = json.dumps(  # LeRobot reads tasks.parquet as a pandas frame whose row names are the tasks
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


def finalise(root: str | Path) -> None:
    """Gather all episodes of `root` and write its meta files; call it in one process, once the writers are done.

    May be killed and called again, and again after more episodes were written. The files are the same, byte for
    byte, whatever the number of writers and interruptions. Raises DataError where an index is missing, since
    LeRobot counts episodes without gaps.
    """
    root = Path(root)
    info = layout.read_info(root)
    episodes = EpisodeSet(root)
    total = len(episodes)
    indices = {episodes.index(i) for i in range(total)}
    missing = sorted(set(range(max(indices, default=0) + 1)) - indices)
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        raise DataError(
            f"finalise needs episodes 0 to n of '{root}' without gaps, got {total} and misses {shown}. "
            "Write them first: EpisodeWriter.missing(total) lists them."
        )
    lengths = [episodes.length(i) for i in range(total)]
    tasks = {task: number for number, task in enumerate(dict.fromkeys(episodes.task(i) for i in range(total)))}
    task_indices = [tasks[episodes.task(i)] for i in range(total)]
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    gathered = {int(row["episode_index"]) for row in tables.gathered_rows(root)}
    per_file = int(info[layout.OUR_KEY]["episodes_per_file"])
    pending = tables.pending_episodes(root)
    for file_number in sorted({i // per_file for i in pending if i not in gathered}):
        members = range(file_number * per_file, min((file_number + 1) * per_file, total))
        shard = _Shard(
            root=root,
            features=episodes.features,
            fps=episodes.fps,
            number=file_number,
            old=[i for i in members if i in gathered],
            new=[i for i in members if i not in gathered],
        )
        shard.write(lengths, starts, task_indices)
    _write_meta(root, info, list(tasks), total, starts[-1])
    _remove_pending(root, pending)
    for remains in (root / layout.INFO_PATH).parent.rglob(".*.*.tmp"):  # of writers killed while they wrote meta files
        remains.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """One file of each kind: the episodes it holds already, then the pending ones that belong to it.

    Indices grow without gaps, so the older version of a file is always the beginning of the newer one: whoever is
    killed between two files leaves a set that reads right.
    """

    root: Path
    features: Features
    fps: int
    number: int
    old: list[int]
    new: list[int]

    def write(self, lengths: list[int], starts: list[int], task_indices: list[int]) -> None:
        """Write all files; meta/episodes last, since an episode counts as gathered once its row is there."""
        path = self._path(layout.EPISODES_PATH)
        old_rows = [tables.read_table(path)] if self.old else []
        variants = {view: self._variants(view, old_rows) for view in self.features.videos}
        for view, variant_of in variants.items():
            self._join(layout.IMAGE_PREFIX + view, variant_of, lengths)
        for name in self.features.labels:
            path = self._path(layout.LABEL_PATH, label_key=name)
            tables.write_table(path, self._groups(path, f"{name}.labels.parquet"))
        path = self._path(layout.DATA_PATH)
        groups = zip(self._groups(path, "data.parquet"), self.old + self.new, strict=True)
        tables.write_table(path, [_numbered(group, starts[i], task_indices[i]) for group, i in groups])
        rows = [
            self._placed(tables.read_table(self._pending(i, "episode.parquet")), i, lengths, starts, variants)
            for i in self.new
        ]
        tables.write_table(self._path(layout.EPISODES_PATH), pa.concat_tables(old_rows + rows).combine_chunks())

    def _variants(self, view: str, old_rows: list[pa.Table]) -> dict[int, int]:
        """For each episode the number of the video file of this shard that it goes to.

        One decoder reads one file, so episodes whose codec parameters differ (another camera's or tool's encoder)
        get files of their own, numbered by first appearance. To encode them again would lose what was recorded, and
        to refuse them would split sets by accidents of encoding.
        """
        key = layout.IMAGE_PREFIX + view
        found: dict[int, int] = {}
        for rows in old_rows:
            chunks = rows.column(f"videos/{key}/chunk_index").to_pylist()
            found |= {i: chunk // layout.VARIANT_CHUNKS for i, chunk in zip(self.old, chunks, strict=True)}
        known = [probe_video(self._video(key, variant)).parameters for variant in sorted(set(found.values()))]
        for i in self.new:
            parameters = probe_video(self._pending(i, f"{key}.mp4")).parameters
            if parameters not in known:
                known.append(parameters)
            found[i] = known.index(parameters)
        return found

    def _join(self, key: str, variant_of: dict[int, int], lengths: list[int]) -> None:
        """Write the video files of a view that get episodes."""
        for variant in sorted({variant_of[i] for i in self.new}):
            path = self._video(key, variant)
            count = sum(lengths[i] for i in self.old if variant_of[i] == variant)
            new = [i for i in self.new if variant_of[i] == variant]
            parts = [(path, count)] if count else []
            join_videos([*parts, *((self._pending(i, f"{key}.mp4"), lengths[i]) for i in new)], path, self.fps)

    def _path(self, template: str, **keys: str) -> Path:
        return self.root / layout.shard_of(template, self.number, **keys)

    def _video(self, key: str, variant: int) -> Path:
        number = self.number + variant * layout.VARIANT_CHUNKS * layout.FILES_PER_CHUNK
        return self.root / layout.shard_of(layout.VIDEO_PATH, number, video_key=key)

    def _pending(self, index: int, name: str) -> Path:
        return tables.pending_folder(self.root, index) / name

    def _groups(self, path: Path, name: str) -> list[pa.Table]:
        """One table per episode: the old ones are the first row groups of the file, the new ones have their own."""
        old = [tables.read_table(path, row_groups=[group]) for group in range(len(self.old))]
        return old + [tables.read_table(self._pending(i, name)) for i in self.new]

    def _placed(
        self,
        row: pa.Table,
        index: int,
        lengths: list[int],
        starts: list[int],
        variants: dict[str, dict[int, int]],
    ) -> pa.Table:
        """The row of an episode with the places of its rows and frames put before its statistics."""
        chunk_index, file_index = divmod(self.number, layout.FILES_PER_CHUNK)
        places: dict[str, int | float] = {
            "dataset_from_index": starts[index],
            "dataset_to_index": starts[index + 1],
            "data/chunk_index": chunk_index,
            "data/file_index": file_index,
            "meta/episodes/chunk_index": chunk_index,
            "meta/episodes/file_index": file_index,
        }
        for view, variant_of in variants.items():
            key = f"videos/{layout.IMAGE_PREFIX}{view}"
            begin = sum(lengths[i] for i in variant_of if i < index and variant_of[i] == variant_of[index])
            places |= {
                f"{key}/chunk_index": chunk_index + variant_of[index] * layout.VARIANT_CHUNKS,
                f"{key}/file_index": file_index,
                f"{key}/from_timestamp": begin / self.fps,
                f"{key}/to_timestamp": (begin + lengths[index]) / self.fps,
            }
        head = {name: row.column(name) for name in row.column_names if not name.startswith("stats/")}
        stats = {name: row.column(name) for name in row.column_names if name.startswith("stats/")}
        return pa.table({**head, **{name: [place] for name, place in places.items()}, **stats})


def _numbered(table: pa.Table, start: int, task_index: int) -> pa.Table:
    """Frame rows with `index` and `task_index` of the whole set."""
    count = table.num_rows
    for name, values in (("index", start + np.arange(count)), ("task_index", np.full(count, task_index))):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.int64()))
    return table


def _write_meta(root: Path, info: dict[str, Any], tasks: list[str], episodes: int, frames: int) -> None:
    names = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "__index_level_0__": pa.array(tasks)})
    tables.write_table(root / layout.TASKS_PATH, names.replace_schema_metadata({"pandas": PANDAS_TASKS}))
    layout.write_json(root / layout.STATS_PATH, _joint_stats(root))
    totals = {"total_episodes": episodes, "total_frames": frames, "total_tasks": len(tasks)}
    layout.write_json(root / layout.INFO_PATH, {**info, **totals, "splits": {"train": f"0:{episodes}"}})


def _joint_stats(root: Path) -> dict[str, dict[str, Any]]:
    """Statistics of all frames from those of the episodes (parallel variance, Chan et al. 1979)."""
    paths = sorted((root / "meta/episodes").glob("*/*.parquet"))
    rows = pa.concat_tables([tables.read_table(path) for path in paths])
    joint: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(n.split("/")[1] for n in rows.column_names if n.startswith("stats/")):
        kinds = ("min", "max", "mean", "std", "count")
        low, high, mean, std, count = (np.array(rows.column(f"stats/{name}/{kind}").to_pylist()) for kind in kinds)
        weight = count.reshape(-1, *[1] * (mean.ndim - 1)) / count.sum()
        with np.errstate(over="ignore"):  # as in column_stats
            overall = np.nan_to_num((weight * mean).sum(axis=0))
            spread = np.nan_to_num(np.sqrt((weight * (std**2 + (mean - overall) ** 2)).sum(axis=0)))
        joint[name] = {
            "min": low.min(axis=0).tolist(),
            "max": high.max(axis=0).tolist(),
            "mean": overall.tolist(),
            "std": spread.tolist(),
            "count": [int(count.sum())],
        }
    return joint


def _remove_pending(root: Path, gathered: dict[int, Path]) -> None:
    """Remove what was gathered, with the remains of killed writers of the same indices, and nothing else."""
    for folder in gathered.values():
        for remains in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(remains)
        shutil.rmtree(folder)
    if (root / layout.PENDING).is_dir() and not any((root / layout.PENDING).iterdir()):
        (root / layout.PENDING).rmdir()
