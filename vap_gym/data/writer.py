"""Writing episodes by index: any number of processes, in any order; a killed run stays readable and goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vap_gym.data import layout, tables
from vap_gym.data.encoded import PictureBytes, VideoFile, check_pictures, picture_size
from vap_gym.data.episodes import Episode
from vap_gym.data.layout import DataError, Features
from vap_gym.data.remux import copy_video, cut_video
from vap_gym.data.video import CODECS, check_video, write_video

Encoded = Mapping[str, VideoFile | PictureBytes]


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
        check: bool = True,
    ) -> None:
        if codec not in CODECS:
            raise DataError(f"No video codec named {codec!r}. Known: {', '.join(CODECS)}.")
        if fps < 1 or episodes_per_file < 1 or not 0 <= crf <= 51:
            raise DataError(
                "EpisodeWriter needs fps >= 1, episodes_per_file >= 1 and crf in 0 to 51, "
                f"got {fps}, {episodes_per_file} and {crf}. Try 15, 50 and 10."
            )
        self.root, self.fps, self.robot_type, self.check = Path(root), fps, robot_type, check
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

    def append(self, episode: Episode, *, encoded: Encoded | None = None) -> int:
        """Write an episode under the next free index and return it. For a single writing process."""
        index = max(self.written(), default=-1) + 1
        self.write(index, episode, encoded=encoded)
        return index

    def write(self, index: int, episode: Episode, *, encoded: Encoded | None = None) -> None:
        """Write an episode under `index` >= 0; it is on disk, whole, when this returns.

        `encoded` are views beside those of `episode.frames`, stored without encoding them again: the packets of an
        mp4, at the rate of the set, or JPEG and PNG files. All of it is decoded once, so that damage is found now
        (without `check`, of videos only the key frames).
        Raises DataError where the index is taken, the episode does not have the features of the set, or a picture
        is damaged.
        """
        encoded = dict(encoded or {})
        folder = tables.pending_folder(self.root, index)
        if index < 0 or index in self._gathered or folder.exists():
            raise DataError(
                f"write needs an index >= 0 that '{self.root}' does not hold yet, got {index}. "
                "missing(total) lists those to write."
            )
        features = _checked(episode, encoded)
        if self.features is not None:
            _require_same(features, self.features, self.root)
        building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            self._write_files(building, index, episode, encoded, features)
            if self.features is None:
                self.features = self._fix_features(features, encoded)
                _require_same(features, self.features, self.root)
            building.rename(folder)
        except OSError as error:
            raise DataError(
                f"Episode {index} must get the folder {folder}, got {error}. "
                "Make room on the disk, and let only one process write an index."
            ) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _write_files(self, folder: Path, index: int, episode: Episode, encoded: Encoded, features: Features) -> None:
        length = _length(episode, encoded)
        stats: dict[str, dict[str, NDArray[Any]]] = {}
        pictures: dict[str, Sequence[bytes]] = {}
        for view in features.views:
            key = layout.IMAGE_PREFIX + view
            given = encoded[view] if view in encoded else episode.frames[view]
            if isinstance(given, PictureBytes):
                pictures[view] = given.files
                shown = check_pictures(given.files, f"'{view}' of episode {index}, frame")
            elif isinstance(given, VideoFile):
                copy_video(given, folder / f"{key}.mp4", self.fps)
                shown = check_video(folder / f"{key}.mp4", length, whole=self.check)
            else:
                write_video(folder / f"{key}.mp4", given, self.fps, codec=self.codec["name"], crf=self.codec["crf"])
                shown = given
            stats[key] = tables.picture_stats(shown)
        for name in features.labels:
            tables.write_table(folder / f"{name}.labels.parquet", tables.label_table(index, episode.labels[name]))
        for name in features.columns:
            stats[name] = tables.column_stats(episode.columns[name])
        rows = tables.frame_table(
            episode.columns, features, index=index, length=length, fps=self.fps, pictures=pictures
        )
        tables.write_table(folder / "data.parquet", rows)
        row = tables.episode_row(index, episode.task, _as_json(episode.info), length, stats)
        tables.write_table(folder / "episode.parquet", row)

    def _fix_features(self, features: Features, encoded: Encoded) -> Features:
        """Describe a new set in meta/info.json; processes that start together all write the same."""
        path = self.root / layout.INFO_PATH
        if not path.exists():
            described = layout.info_json(
                features,
                fps=self.fps,
                robot_type=self.robot_type,
                codec=self.codec,
                episodes_per_file=self.episodes_per_file,
                copied={
                    view: (facts.codec, facts.pix_fmt)
                    for view, video in encoded.items()
                    if isinstance(video, VideoFile)
                    for facts in [cut_video(video).facts]
                },
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


def _length(episode: Episode, encoded: Encoded) -> int:
    """Number of frames of an episode, from its first part that has any."""
    if len(episode) or not encoded:
        return len(episode)
    first = next(iter(encoded.values()))
    return cut_video(first).count if isinstance(first, VideoFile) else len(first)


def _encoded_size(view: str, given: VideoFile | PictureBytes) -> tuple[int, tuple[int, int]]:
    """Frames of an encoded view and their (height, width); picture files are all asked for theirs."""
    if isinstance(given, VideoFile):
        cut = cut_video(given)
        return cut.count, (cut.facts.height, cut.facts.width)
    sizes = {picture_size(file, f"'{view}', frame {number}") for number, file in enumerate(given.files)}
    if len(sizes) != 1:
        shown = ", ".join(f"{height}x{width}" for height, width in sorted(sizes)) or "no pictures"
        raise DataError(f"All pictures of '{view}' must have one size, got {shown}. Give every size a view of its own.")
    return len(given), sizes.pop()


def _checked(episode: Episode, encoded: Encoded) -> Features:
    """Check an episode by itself and return its features."""
    length = _length(episode, encoded)
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
    sizes = {view: _encoded_size(view, given) for view, given in encoded.items()}
    rows = {name: len(array) for name, array in {**episode.frames, **episode.columns, **episode.labels}.items()}
    for name, count in {**rows, **{view: count for view, (count, _) in sizes.items()}}.items():
        if count != length:
            raise DataError(
                f"{name!r} must have {length} rows like the rest of the episode, got {count}. "
                "Give one row per frame, the last one included."
            )
        if not name or "/" in name or name in layout.INDEX_COLUMNS or name.startswith(layout.IMAGE_PREFIX):
            raise DataError(
                f"A feature's name must not hold '/', start with '{layout.IMAGE_PREFIX}' or be one of "
                f"{', '.join(layout.INDEX_COLUMNS)}, got {name!r}. Choose another, like 'tip.pose'."
            )
    features = episode.features
    views = {**features.views, **{view: size for view, (_, size) in sizes.items()}}
    stills = sorted(view for view, given in encoded.items() if isinstance(given, PictureBytes))
    return replace(features, views=dict(sorted(views.items())), stills=tuple(stills))


def _require_same(given: Features, wanted: Features, root: Path) -> None:
    """Refuse an episode whose features are not those of the set."""
    stored = {view: "picture files" if view in given.stills else "a video" for view in given.views}
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
    for view, how in stored.items():
        if (how == "picture files") != (view in wanted.stills):
            other = "a video" if how == "picture files" else "picture files"
            raise DataError(
                f"view '{view}' of '{root}' is stored as {other}, got {how}. "
                "All episodes of a set keep a view in the same way: write others into a new folder."
            )
