"""Where things lie in a data set: LeRobot v3.0 paths and features, plus ours under the key `vap_gym` of info.json.

```
meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-007.parquet   (one row per episode)
data/chunk-000/file-007.parquet                               (one row per frame, one row group per episode)
videos/observation.images.<view>/chunk-000/file-007.mp4       (every episode starts with a key frame)
videos/observation.images.<view>/chunk-1000/file-007.mp4      (those of the same shard with other codec parameters)
labels/<name>/chunk-000/file-007.parquet                      (ours: lossless label maps, one row per episode)
.pending/episode-000361/…                                     (ours: episodes written, not yet gathered into files)
```
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vap_gym.errors import VapError

CODEBASE_VERSION = "v3.0"
OUR_KEY = "vap_gym"
FILES_PER_CHUNK = 1000
IMAGE_PREFIX = "observation.images."
CHUNK_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{CHUNK_FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{CHUNK_FILE}.mp4"
VARIANT_CHUNKS = 1000  # so far apart are the chunks of videos of one shard that cannot be joined in one file
LABEL_PATH = f"labels/{{label_key}}/{CHUNK_FILE}.parquet"
EPISODES_PATH = f"meta/episodes/{CHUNK_FILE}.parquet"
INFO_PATH, STATS_PATH, TASKS_PATH = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
PENDING = ".pending"
INDEX_COLUMNS: Mapping[str, str] = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
PICTURE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")


class DataError(VapError):
    """A data set, an episode or a video that cannot be written or read as asked."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One number array per frame: its numpy dtype name and its shape without the time axis (`()` is a scalar)."""

    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Numbers per frame; stored flat, since LeRobot's fixed-size lists have one axis."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def arrow_type(self) -> pa.DataType:
        """LeRobot's storage: one number is a plain value, several are a fixed-size list."""
        value = pa.from_numpy_dtype(np.dtype(self.dtype))
        return value if self.width == 1 else pa.list_(value, self.width)


@dataclass(frozen=True, kw_only=True)
class Features:
    """What every episode of a set holds. Views and labels are (height, width) in px, by name; all sorted by name.

    `stills` are the names of those views whose frames are kept as JPEG or PNG files; the others are videos.
    """

    views: Mapping[str, tuple[int, int]]
    columns: Mapping[str, Column]
    labels: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    stills: tuple[str, ...] = ()

    @property
    def videos(self) -> tuple[str, ...]:
        """Names of the views that are stored as videos."""
        return tuple(view for view in self.views if view not in self.stills)


def shard_of(path_template: str, shard_index: int, **keys: str) -> str:
    """Path, relative to the root, of file number `shard_index` of a kind."""
    chunk_index, file_index = divmod(shard_index, FILES_PER_CHUNK)
    return path_template.format(chunk_index=chunk_index, file_index=file_index, **keys)


def frame_schema(features: Features) -> pa.Schema:
    """Arrow schema of data/…/file-….parquet; pictures as the `datasets` package stores its Image feature."""
    columns = [(name, column.arrow_type) for name, column in features.columns.items()]
    columns += [(IMAGE_PREFIX + view, PICTURE_TYPE) for view in features.stills]
    return pa.schema(columns + [(name, pa.from_numpy_dtype(np.dtype(dtype))) for name, dtype in INDEX_COLUMNS.items()])


def info_json(
    features: Features,
    *,
    fps: int,
    robot_type: str,
    codec: Mapping[str, Any],
    episodes_per_file: int,
    copied: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Contents of meta/info.json for a set with no episode gathered yet.

    `copied` has (codec, pixel format) of the views whose videos are not encoded by us.
    """
    described: dict[str, Any] = {}
    for view, (height, width) in features.views.items():
        name, pix_fmt = (copied or {}).get(view, ("h264", codec["pix_fmt"]))
        described[IMAGE_PREFIX + view] = {
            "dtype": "image" if view in features.stills else "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
        }
        if view not in features.stills:
            described[IMAGE_PREFIX + view]["info"] = {
                "video.height": height,
                "video.width": width,
                "video.codec": name,
                "video.pix_fmt": pix_fmt,
                "video.is_depth_map": False,
                "video.fps": fps,
                "video.channels": 3,
                "has_audio": False,
            }
    for name, column in features.columns.items():
        described[name] = {"dtype": column.dtype, "shape": [column.width], "names": None}
    for name, dtype in INDEX_COLUMNS.items():
        described[name] = {"dtype": dtype, "shape": [1], "names": None}
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": robot_type,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if features.videos else None,
        "features": described,
        OUR_KEY: {
            "episodes_per_file": episodes_per_file,
            "codec": dict(codec),
            "shapes": {name: list(column.shape) for name, column in features.columns.items()},
            "labels": {
                name: {"dtype": "uint8", "shape": list(shape), "path": LABEL_PATH, "storage": "zstd, lossless"}
                for name, shape in features.labels.items()
            },
        },
    }


def features_of(info: Mapping[str, Any]) -> Features:
    """The features that an info.json describes, ours or anyone's LeRobot v3 set (string columns are left out).

    Raises DataError where it does not describe them.
    """
    try:
        return _features_of(info)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"{INFO_PATH} must give a dtype and a shape for every feature, got: {error!r}. "
            "Restore the file, or write the set again."
        ) from error


def _features_of(info: Mapping[str, Any]) -> Features:
    ours = info.get(OUR_KEY, {})
    views: dict[str, tuple[int, int]] = {}
    stills: list[str] = []
    columns: dict[str, Column] = {}
    for name, described in info["features"].items():
        shape = tuple(int(n) for n in described["shape"])
        if described["dtype"] in ("video", "image") and len(shape) == 3:
            height, width = shape[1:] if shape[0] == 3 and shape[-1] != 3 else shape[:2]
            views[name.removeprefix(IMAGE_PREFIX)] = (height, width)
            if described["dtype"] == "image":
                stills.append(name.removeprefix(IMAGE_PREFIX))
        elif described["dtype"] in DTYPES and name not in INDEX_COLUMNS:
            true_shape = ours.get("shapes", {}).get(name, shape if shape != (1,) else ())
            columns[name] = Column(dtype=described["dtype"], shape=tuple(true_shape))
    labels = {name: (int(e["shape"][0]), int(e["shape"][1])) for name, e in ours.get("labels", {}).items()}
    return Features(views=views, columns=columns, labels=labels, stills=tuple(stills))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, moved onto it when the block ends well: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_other_sets(out: Path, manifest: str) -> None:
    """Refuse to go on with a data set that was not begun by a run which keeps this manifest (a path within `out`)."""
    if (out / INFO_PATH).exists() and not (out / manifest).is_file():
        raise DataError(
            f"'{out}' must be a new folder, or one that an earlier run of this command began, got a data set without "
            f"{manifest}. Name another."
        )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_info(root: Path) -> dict[str, Any]:
    """Read and check meta/info.json. Raises DataError where `root` holds no LeRobot v3.0 data set."""
    path = root / INFO_PATH
    if not path.is_file():
        given = "a folder without it" if root.is_dir() else "no such folder"
        raise DataError(
            f"'{root}' is not a data set: it needs {INFO_PATH}, given {given}. "
            "Name the folder that holds meta/, data/ and videos/, or write one with EpisodeWriter."
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} must be JSON, given {error}. Restore the file, or write the set again.") from error
    if not isinstance(info, dict) or not str(info.get("codebase_version", "")).startswith("v3."):
        version = info.get("codebase_version") if isinstance(info, dict) else type(info).__name__
        raise DataError(
            f"{path} must be of LeRobot version v3.x, given {version!r}. "
            "Convert older sets with LeRobot's convert_dataset_v21_to_v30."
        )
    for key, kinds in (("fps", (int, float)), ("features", (dict,)), ("data_path", (str,))):
        if not isinstance(info.get(key), kinds):
            raise DataError(
                f"{path} must give '{key}', got {info.get(key)!r}. Restore the file, or write the set again."
            )
    return info
