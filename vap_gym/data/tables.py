"""Parquet tables of a data set: frames, labels, per-episode rows and LeRobot's statistics; the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vap_gym.data import layout
from vap_gym.data.layout import Column, DataError, Features

INFO_COLUMN = "vap_gym/info"
Stats = Mapping[str, Mapping[str, NDArray[Any]]]


def pending_folder(root: Path, index: int) -> Path:
    """Folder of an episode that is written but not gathered."""
    return root / layout.PENDING / f"episode-{index:06d}"


def pending_episodes(root: Path) -> dict[int, Path]:
    """Folders of the episodes that are written but not gathered, by index."""
    folder = root / layout.PENDING
    if not folder.is_dir():
        return {}
    found = {int(path.name.removeprefix("episode-")): path for path in folder.glob("episode-*")}
    return dict(sorted(found.items()))


def write_table(path: Path, tables: pa.Table | Sequence[pa.Table]) -> None:
    """Write one row group per table. No dictionaries: Arrow's would merge NaNs of different bits."""
    groups = [tables] if isinstance(tables, pa.Table) else list(tables)
    with (
        layout.replacing(path) as temporary,
        pq.ParquetWriter(temporary, groups[0].schema, compression="zstd", use_dictionary=False) as writer,
    ):
        for group in groups:
            writer.write_table(group)


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open one parquet file; whatever Arrow says about it, or text that is none, becomes a DataError."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} must be a parquet file, got {error}. It is missing or damaged: write its episodes again."
        ) from error


def read_table(path: Path, *, row_groups: list[int] | None = None) -> pa.Table:
    """Read a whole file, or some of its row groups, and nothing that its folders' names might add."""
    with opened(path) as file:
        return file.read() if row_groups is None else file.read_row_groups(row_groups)


def frame_table(
    columns: Mapping[str, NDArray[Any]],
    features: Features,
    *,
    index: int,
    length: int,
    fps: int,
    pictures: Mapping[str, Sequence[bytes]] | None = None,
) -> pa.Table:
    """Rows of one episode; `index` and `task_index` of the whole set are filled in when it is gathered.

    `pictures` are the JPEG or PNG files of the views in `features.stills`.
    """
    steps = np.arange(length, dtype=np.int64)
    zeros = np.zeros(length, np.int64)
    arrays = [_arrow(columns[name], column) for name, column in features.columns.items()]
    for view in features.stills:
        files = pa.array((pictures or {})[view], pa.binary())
        arrays.append(pa.StructArray.from_arrays([files, pa.nulls(length, pa.string())], ["bytes", "path"]))
    arrays += [
        pa.array((steps / fps).astype(np.float32)),
        pa.array(steps),
        pa.array(np.full(length, index, np.int64)),
        pa.array(zeros),
        pa.array(zeros),
    ]
    return pa.Table.from_arrays(arrays, schema=layout.frame_schema(features))


def _arrow(values: NDArray[Any], column: Column) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return flat if column.width == 1 else pa.FixedSizeListArray.from_arrays(flat, column.width)


def read_columns(path: Path, first_row: int, length: int, columns: Mapping[str, Column]) -> dict[str, NDArray[Any]]:
    """Read `length` rows from `first_row` on, decoding only the row groups that hold them, with shapes restored."""
    table = _read_rows(path, first_row, length, list(columns))
    found = {}
    for name, column in columns.items():
        array = table.column(name).combine_chunks()
        array = array.storage if isinstance(array.type, pa.ExtensionType) else array
        while pa.types.is_nested(array.type):
            array = array.flatten()
        values = array.to_numpy(zero_copy_only=False).astype(column.dtype, copy=False)
        found[name] = np.array(values).reshape(length, *column.shape)
    return found


def read_pictures(path: Path, first_row: int, length: int, name: str) -> list[bytes]:
    """Read the JPEG or PNG files of `length` rows from `first_row` on."""
    rows = _read_rows(path, first_row, length, [name]).column(name).to_pylist()
    if any(row is None or row["bytes"] is None for row in rows):
        raise DataError(f"{path} must hold the bytes of '{name}', got none in some rows. Embed the pictures in it.")
    return [row["bytes"] for row in rows]


def _read_rows(path: Path, first_row: int, length: int, names: list[str]) -> pa.Table:
    if first_row < 0 or length < 0:
        raise DataError(f"{path} must be read forwards, got {length} rows from {first_row}. Write the set again.")
    with opened(path) as file:
        begin, skipped = 0, 0
        groups: list[int] = []
        for group in range(file.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            if begin < first_row + length and end > first_row:
                skipped = begin if not groups else skipped
                groups.append(group)
            begin = end
        missing = set(names) - set(file.schema_arrow.names)
        if missing:
            raise DataError(f"{path} must hold the columns of its set, got none named {', '.join(sorted(missing))}.")
        table = file.read_row_groups(groups, columns=names).slice(first_row - skipped, length)
    if table.num_rows != length:
        raise DataError(f"{path} must hold {length} rows from {first_row}, got {table.num_rows}. Write it again.")
    return table


def label_table(index: int, labels: NDArray[np.uint8]) -> pa.Table:
    """Label maps (T,H,W) as one row: zstd makes them as small as a lossless video, ten times faster."""
    count, height, width = labels.shape
    columns = {"episode_index": [index], "frames": [count], "height": [height], "width": [width]}
    raw = pa.array([np.ascontiguousarray(labels).tobytes()], type=pa.large_binary())
    return pa.table({**columns, "labels": raw})


def read_labels(path: Path, index: int) -> NDArray[np.uint8]:
    """Read the label maps (T,H,W) of an episode."""
    with opened(path) as file:
        for group in range(file.num_row_groups):
            statistics = file.metadata.row_group(group).column(0).statistics
            if statistics.min <= index <= statistics.max:
                row = file.read_row_group(group).to_pylist()[0]
                shape = (row["frames"], row["height"], row["width"])
                return np.frombuffer(row["labels"], np.uint8).reshape(shape).copy()
    raise DataError(f"{path} must hold labels of episode {index}, got none. Write the episode again.")


def picture_stats(frames: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """LeRobot's statistics of pictures (T,H,W,3) over about 16 of them: per channel, in [0, 1], shape (3,1,1)."""
    sample = frames[:: max(1, len(frames) // 16)]
    count = np.array([len(sample)])
    histograms = np.stack([np.bincount(sample[..., c].ravel(), minlength=256) for c in range(3)])
    levels = np.arange(256) / 255.0
    total = histograms.sum(axis=1)
    mean = histograms @ levels / total
    spread = np.sqrt(np.maximum(histograms @ levels**2 / total - mean**2, 0.0))
    lowest = np.array([levels[np.flatnonzero(h)[0]] for h in histograms])
    highest = np.array([levels[np.flatnonzero(h)[-1]] for h in histograms])
    shaped = {k: v.reshape(3, 1, 1) for k, v in {"min": lowest, "max": highest, "mean": mean, "std": spread}.items()}
    return {**shaped, "count": count}


def column_stats(values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """LeRobot's statistics of a column (T,…), flat; over finite numbers only, 0 where there is none."""
    finite = np.isfinite(values.reshape(len(values), -1))
    flat = np.where(finite, values.reshape(len(values), -1), 0).astype(np.float64)
    number = np.maximum(finite.sum(axis=0), 1)
    with np.errstate(over="ignore"):  # numbers near the largest have no finite variance
        mean = np.nan_to_num((flat / number).sum(axis=0))
        spread = np.nan_to_num(np.sqrt((np.where(finite, flat - mean, 0.0) ** 2 / number).sum(axis=0)))
    some = finite.any(axis=0)
    lowest = np.where(some, np.where(finite, flat, np.inf).min(axis=0), 0.0)
    highest = np.where(some, np.where(finite, flat, -np.inf).max(axis=0), 0.0)
    return {"min": lowest, "max": highest, "mean": mean, "std": spread, "count": np.array([len(values)])}


def episode_row(index: int, task: str, info: str, length: int, stats: Stats) -> pa.Table:
    """The row of meta/episodes of one episode; the places of its files are added when it is gathered."""
    row: dict[str, Any] = {
        "episode_index": pa.array([index], pa.int64()),
        "tasks": pa.array([[task]], pa.list_(pa.string())),
        "length": pa.array([length], pa.int64()),
        INFO_COLUMN: pa.array([info], pa.string()),
    }
    for name, figures in stats.items():
        for kind, figure in figures.items():
            value: pa.DataType = pa.int64() if kind == "count" else pa.float64()
            for _ in range(figure.ndim):
                value = pa.list_(value)
            row[f"stats/{name}/{kind}"] = pa.array([figure.tolist()], value)
    return pa.table(row)


class EpisodeRow(dict[str, Any]):
    """What stands of an episode in a file of meta/episodes. Raises DataError for a column that is not there."""

    def __missing__(self, name: str) -> Any:
        held = ", ".join(map(str, self))
        raise DataError(f"A file of meta/episodes must hold a column '{name}', got {held}. Write the set again.")


def read_episode_rows(paths: Iterable[Path]) -> list[EpisodeRow]:
    """Rows of files of meta/episodes, without the statistics."""
    rows: list[EpisodeRow] = []
    for path in paths:
        with opened(path) as file:
            names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
            rows += map(EpisodeRow, file.read(columns=names).to_pylist())
    return rows


def gathered_rows(root: Path) -> list[EpisodeRow]:
    """Rows of meta/episodes of all gathered episodes, by index."""
    rows = read_episode_rows(sorted((root / "meta/episodes").glob("*/*.parquet")))
    return sorted(rows, key=lambda row: int(row["episode_index"]))
