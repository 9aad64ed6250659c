"""LeRobot sets of every version from 2.0 on, and sets of our own simulator: columns exact, videos and pictures kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vap_gym.data import layout, tables
from vap_gym.data.episodes import EpisodeSet
from vap_gym.data.importing.fieldmap import FieldMap, read_map
from vap_gym.data.importing.readers import BROKEN, number, read_json, read_json_lines
from vap_gym.data.importing.source import Options, PictureBytes, RawEpisode, RawView, Source, VideoFile
from vap_gym.data.layout import DataError, Features


def open_lerobot(path: Path, options: Options) -> Source:
    """Open a LeRobot set of version 2.0, 2.1 or 3.x. A field map may add columns of our conventions."""
    info = path / layout.INFO_PATH
    if not info.is_file():
        raise DataError(
            f"A LeRobot set must hold {layout.INFO_PATH}, got '{path}' without it. "
            "Name the folder that holds meta/, data/ and videos/."
        )
    meta = read_json(info)
    version = str(meta.get("codebase_version", ""))
    fields = read_map(options.map_path) if options.map_path else None
    robot = options.robot or (fields.robot if fields and fields.robot else str(meta.get("robot_type") or "unknown"))
    rate_hz = number(meta, "fps", info)
    if rate_hz is None or rate_hz <= 0:
        raise DataError(f"fps of {info} must be above 0, got {meta.get('fps')!r}. Correct it.")
    if version.startswith("v3."):
        episodes, positions = _open_set(path)
        return Version3(root=path, robot=robot, rate_hz=rate_hz, episodes=episodes, positions=positions, fields=fields)
    if version in ("v2.0", "v2.1"):
        return _version2(path, meta, robot=robot, rate_hz=rate_hz, fields=fields)
    raise DataError(
        f"{info} must be of version v2.0, v2.1 or v3.x, got {version or 'none'}. "
        "Convert older sets with LeRobot's own scripts."
    )


def open_oracle(path: Path, options: Options) -> Source:
    """Open a set that vap-gym itself wrote, labels and all."""
    source = open_lerobot(path, options)
    if not isinstance(source, Version3) or layout.OUR_KEY not in source.episodes.meta:
        raise DataError(f"'{path}' must be a set of vap-gym's, got another tool's. Import it as kind 'lerobot'.")
    return replace(source, kind="oracle")


def _open_set(path: Path) -> tuple[EpisodeSet, dict[str, int]]:
    try:
        episodes = EpisodeSet(path)
        return episodes, {f"{episodes.index(i):06d}": i for i in range(len(episodes))}
    except DataError:
        raise
    except BROKEN as error:
        raise DataError(
            f"'{path}' must describe its episodes and features, got {error!r}. Fetch meta again."
        ) from error


@dataclass(frozen=True, kw_only=True)
class Version3:
    """Episodes in files of many: each is cut out of its videos at key frames."""

    root: Path
    robot: str
    rate_hz: float
    episodes: EpisodeSet
    positions: Mapping[str, int]
    fields: FieldMap | None
    kind: str = "lerobot"

    def names(self) -> Sequence[str]:
        """Episode numbers, six digits."""
        return tuple(self.positions)

    def read(self, name: str) -> RawEpisode:
        """Read the columns of an episode; its videos stay where they are."""
        i = self.positions[name]
        try:
            length = self.episodes.length(i)
            part = self.episodes.read(i, views=())
            views: dict[str, RawView] = {}
            for view in self.episodes.features.videos:
                path, first = self.episodes.video_of(i, view)
                views[_short(view)] = VideoFile(path=path, start=first, stop=first + length)
            for view in self.episodes.features.stills:
                views[_short(view)] = PictureBytes(files=self.episodes.pictures(i, view))
        except DataError:
            raise
        except BROKEN as error:
            raise DataError(f"Episode {name} of '{self.root}' must be whole, got {error!r}. Fetch it again.") from error
        return RawEpisode(
            name=name,
            views=views,
            columns={**part.columns, **(self.fields.columns(part.columns, name) if self.fields else {})},
            labels=part.labels,
            task=part.task,
            info={**part.info, **(self.fields.info if self.fields else {})},
            rate_hz=self.rate_hz,
        )


@dataclass(frozen=True, kw_only=True)
class Version2:
    """A parquet file and an mp4 per view for every episode."""

    root: Path
    robot: str
    rate_hz: float
    meta: Mapping[str, Any]
    features: Features
    rows: Mapping[str, Mapping[str, Any]]
    fields: FieldMap | None
    kind: str = "lerobot"

    def names(self) -> Sequence[str]:
        """Episode numbers, six digits."""
        return tuple(self.rows)

    def read(self, name: str) -> RawEpisode:
        """Read the columns of an episode; its videos stay where they are."""
        row = self.rows[name]
        length = row["length"]
        try:
            places = {"episode_index": int(name), "episode_chunk": int(name) // int(self.meta.get("chunks_size", 1000))}
            data = self.root / str(self.meta["data_path"]).format(**places)
            videos = {
                view: self.root / str(self.meta["video_path"]).format(video_key=self._key(view), **places)
                for view in self.features.videos
            }
        except BROKEN as error:
            raise DataError(
                f"data_path and video_path of {self.root / layout.INFO_PATH} must be templates of episode_chunk (of "
                f"chunks_size), episode_index and video_key, got {error!r}. Correct them."
            ) from error
        with tables.opened(data) as file:
            rows = file.metadata.num_rows
        if rows != length:
            raise DataError(
                f"{data} must have {length} rows as meta/episodes.jsonl says, got {rows}. Fetch both again."
            )
        try:
            columns = tables.read_columns(data, 0, length, self.features.columns)
            stills = {v: tables.read_pictures(data, 0, length, self._key(v)) for v in self.features.stills}
        except DataError:
            raise
        except BROKEN as error:
            raise DataError(
                f"{data} must hold the columns that {layout.INFO_PATH} describes, got {error!r}. Fetch it again."
            ) from error
        tasks = row.get("tasks")
        return RawEpisode(
            name=name,
            views={
                **{_short(view): VideoFile(path=path) for view, path in videos.items()},
                **{_short(view): PictureBytes(files=files) for view, files in stills.items()},
            },
            columns={**columns, **(self.fields.columns(columns, name) if self.fields else {})},
            task=str(tasks[0]) if isinstance(tasks, list) and tasks else "",
            info=dict(self.fields.info) if self.fields else {},
            rate_hz=self.rate_hz,
        )

    def _key(self, view: str) -> str:
        prefixed = layout.IMAGE_PREFIX + view
        return prefixed if prefixed in self.meta["features"] else view


def _short(view: str) -> str:
    """`observation.image` → `image`: the writer puts its own prefix."""
    return view.removeprefix("observation.")


def _version2(path: Path, meta: Mapping[str, Any], *, robot: str, rate_hz: float, fields: FieldMap | None) -> Version2:
    listed = path / "meta/episodes.jsonl"
    rows: dict[str, Mapping[str, Any]] = {}
    for row in read_json_lines(listed):
        index, length = row.get("episode_index"), row.get("length")
        if not isinstance(index, int) or not isinstance(length, int) or index < 0 or length < 1:
            raise DataError(
                f"Lines of {listed} must have episode_index >= 0 and length >= 1, got {index!r} and {length!r}. "
                "Fetch the file again."
            )
        rows[f"{index:06d}"] = row
    return Version2(
        root=path,
        robot=robot,
        rate_hz=rate_hz,
        meta=meta,
        features=layout.features_of(meta),
        rows=dict(sorted(rows.items())),
        fields=fields,
    )
