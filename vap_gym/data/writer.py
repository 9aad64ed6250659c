"""Writing episodes by index: any number of processes, in any order; a killed run stays readable and goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vap_gym.data import layout, tables
from vap_gym.data.episodes import Episode
from vap_gym.data.layout import DataError, Features
from vap_gym.data.video import CODECS, write_video


class EpisodeWriter:
    """Writes episodes into `root`; open one per process, with the same settings.

    Every episode is written whole or not at all, under its own index, in any order and by any process:
    `for i in writer.missing(total): writer.write(i, make(i))` continues a killed run. `finalise(root)` then
    gathers them; the result does not depend on who wrote what when. The first episode fixes the features.
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
        if fps < 1 or episodes_per_file < 1 or not 0 <= crf <= 51:
            raise DataError(
                "EpisodeWriter needs fps >= 1, episodes_per_file >= 1 and crf in 0 to 51, "
                f"got {fps}, {episodes_per_file} and {crf}. Try 15, 50 and 10."
            )
        self.root, self.fps, self.robot_type = Path(root), fps, robot_type
        self.episodes_per_file = episodes_per_file
        self.codec: dict[str, Any] = {"name": codec, "crf": crf, "pix_fmt": CODECS[codec].pix_fmt}
        self.features: Features | None = None
        if (self.root / layout.INFO_PATH).exists():
            self.features = self._read_features()
        self._gathered = {int(row["episode_index"]) for row in tables.gathered_rows(self.root)}

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

        Raises DataError where the index is taken, or the episode does not have the features of the set.
        """
        folder = tables.pending_folder(self.root, index)
        if index < 0 or index in self._gathered or folder.exists():
            raise DataError(
                f"write needs an index >= 0 that '{self.root}' does not hold yet, got {index}. "
                "missing(total) lists those to write."
            )
        features = _checked(episode)
        if self.features is None:
            self.features = self._fix_features(features)
        _require_same(features, self.features, self.root)
        building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            self._write_files(building, index, episode, features)
            building.rename(folder)
        except OSError as error:
            raise DataError(
                f"Episode {index} must get the folder {folder}, got {error}. "
                "Make room on the disk, and let only one process write an index."
            ) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _write_files(self, folder: Path, index: int, episode: Episode, features: Features) -> None:
        stats: dict[str, dict[str, NDArray[Any]]] = {}
        for view in features.views:
            key = layout.IMAGE_PREFIX + view
            frames = episode.frames[view]
            write_video(folder / f"{key}.mp4", frames, self.fps, codec=self.codec["name"], crf=self.codec["crf"])
            stats[key] = tables.picture_stats(frames)
        for name in features.labels:
            tables.write_table(folder / f"{name}.labels.parquet", tables.label_table(index, episode.labels[name]))
        for name in features.columns:
            stats[name] = tables.column_stats(episode.columns[name])
        rows = tables.frame_table(episode.columns, features, index=index, length=len(episode), fps=self.fps)
        tables.write_table(folder / "data.parquet", rows)
        row = tables.episode_row(index, episode.task, _as_json(episode.info), len(episode), stats)
        tables.write_table(folder / "episode.parquet", row)

    def _fix_features(self, features: Features) -> Features:
        """Describe a new set in meta/info.json; processes that start together all write the same."""
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
        return self._read_features()

    def _read_features(self) -> Features:
        """Features of the existing set; refuses to write into one with other settings."""
        info = layout.read_info(self.root)
        ours = info.get(layout.OUR_KEY)
        if ours is None:
            raise DataError(f"'{self.root}' must be a set of vap-gym's, got another tool's. Write into a new folder.")
        mine: dict[str, Any] = {"fps": self.fps, "codec": self.codec, "episodes_per_file": self.episodes_per_file}
        theirs = {"fps": info["fps"], "codec": ours["codec"], "episodes_per_file": ours["episodes_per_file"]}
        for name, value in mine.items():
            if value != theirs[name]:
                raise DataError(
                    f"{name} of '{self.root}' is {theirs[name]!r}, got {value!r}. "
                    "Write with the same value, or into a new folder."
                )
        return layout.features_of(info)


def _as_json(info: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(info), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"info of an episode must be plain JSON, got {error}. Turn arrays into lists with .tolist()."
        ) from error


def _checked(episode: Episode) -> Features:
    """Check an episode by itself and return its features."""
    length = len(episode)
    if not length:
        raise DataError("An episode must hold frames or columns of at least 1 step, got none. Drop empty episodes.")
    for kind, axes, arrays in (
        ("frames", "(T, H, W, 3)", episode.frames),
        ("labels", "(T, H, W)", episode.labels),
    ):
        for name, array in arrays.items():
            right_shape = array.ndim == len(axes.split(",")) and (array.ndim == 3 or array.shape[-1] == 3)
            if array.dtype != np.uint8 or not right_shape or 0 in array.shape:
                raise DataError(
                    f"{kind} {name!r} must be uint8 {axes}, got {array.dtype} {array.shape}. Convert it before writing."
                )
    for name, array in episode.columns.items():
        if array.dtype.name not in layout.DTYPES or 0 in array.shape or array.ndim == 0:
            raise DataError(
                f"column {name!r} must be (T, …), not empty, and one of {', '.join(layout.DTYPES)}, "
                f"got {array.dtype} {array.shape}. Convert it before writing."
            )
    for name, array in {**episode.frames, **episode.columns, **episode.labels}.items():
        if len(array) != length:
            raise DataError(
                f"{name!r} must have {length} rows like the rest of the episode, got {len(array)}. "
                "Give one row per frame, the last one included."
            )
        if not name or "/" in name or name in layout.INDEX_COLUMNS or name.startswith(layout.IMAGE_PREFIX):
            raise DataError(
                f"A feature's name must not hold '/', start with '{layout.IMAGE_PREFIX}' or be one of "
                f"{', '.join(layout.INDEX_COLUMNS)}, got {name!r}. Choose another, like 'tip.pose'."
            )
    return episode.features


def _require_same(given: Features, wanted: Features, root: Path) -> None:
    """Refuse an episode whose features are not those of the set."""
    pairs: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [
        ("view", given.views, wanted.views),
        ("labels", given.labels, wanted.labels),
        ("column", given.columns, wanted.columns),
    ]
    for kind, mine, theirs in pairs:
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                raise DataError(
                    f"{kind} {name!r} of '{root}' is {theirs.get(name, 'absent')}, got {mine.get(name, 'none')}. "
                    "All episodes of a set have the same features: write others into a new folder."
                )
