"""Anyone's files: an npz or JSON log per episode with mp4s beside it, told by a field map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vap_gym.data.importing.fieldmap import FieldMap, read_map
from vap_gym.data.importing.readers import read_json, read_npz, text
from vap_gym.data.importing.source import Options, RawEpisode, Source, VideoFile
from vap_gym.data.layout import DataError
from vap_gym.data.remux import probe_video


def open_files(path: Path, options: Options) -> Source:
    """Open a folder of logs and videos by the field map of the options."""
    if options.map_path is None:
        raise DataError(
            "Kind 'files' needs a field map that tells what the fields are, got none. Write one in TOML and give "
            "--map map.toml; its sections are listed in vap_gym/data/importing/fieldmap.py."
        )
    fields = read_map(options.map_path)
    try:
        logs = sorted(path.glob(fields.episodes.log))
    except (ValueError, NotImplementedError, IndexError) as error:
        raise DataError(
            f"episodes.log of {options.map_path} must be a pattern below '{path}', got {fields.episodes.log!r} "
            f'({error}). Like: log = "*/log.npz"'
        ) from error
    if not logs:
        raise DataError(
            f"'{path}' must hold logs that match '{fields.episodes.log}', got none. Correct [episodes] log of the map."
        )
    named = {log.relative_to(path).with_suffix("").as_posix(): log for log in logs}
    return Files(root=path, robot=options.robot or fields.robot or "unknown", fields=fields, logs=named)


@dataclass(frozen=True, kw_only=True)
class Files:
    """Logs found by a pattern; videos and notes lie beside them."""

    root: Path
    robot: str
    fields: FieldMap
    logs: Mapping[str, Path]
    kind: str = "files"

    @property
    def rate_hz(self) -> float | None:
        """The rate that the map states."""
        return self.fields.rate_hz

    def names(self) -> Sequence[str]:
        """Paths of the logs from the root, without their ending."""
        return tuple(self.logs)

    def read(self, name: str) -> RawEpisode:
        """Read a log and map its fields; videos stay where they are."""
        path = self.logs[name]
        log, texts = _read_log(path)
        if self.fields.episodes.note:
            texts = read_json(path.parent / self.fields.episodes.note)
        views = {}
        for view, told in self.fields.views.items():
            views[view] = VideoFile(path=path.parent / told.file.replace("{name}", path.stem))
            facts = probe_video(views[view].path)
            if told.size_px != (0, 0) and told.size_px != (facts.width, facts.height):
                raise DataError(
                    f"'{view}' of {path.parent} must be {told.size_px[0]}x{told.size_px[1]} px, got "
                    f"{facts.width}x{facts.height}. Correct size_px of the map, or leave the episode out."
                )
        return RawEpisode(
            name=name,
            views=views,
            columns=self.fields.columns(log, str(path)),
            task=text(texts, self.fields.episodes.task),
            info=self.fields.info,
            rate_hz=self.fields.rate_hz,
        )


def _read_log(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and texts of an npz or JSON log."""
    if path.suffix == ".npz":
        arrays = read_npz(path)
        return arrays, {
            key: value.item() for key, value in arrays.items() if value.dtype.kind == "U" and not value.ndim
        }
    if path.suffix == ".json":
        table = read_json(path)
        found = {}
        for key, value in table.items():
            if not isinstance(value, list):
                continue
            try:
                array = np.array(value)
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"'{key}' of {path} must be a full table of numbers, got {error}. Give every row as many."
                ) from error
            if array.dtype.kind == "i" and np.abs(array).max(initial=0) < 2**53:
                array = array.astype(np.float64)  # JSON writes 1.0 as 1 or not, as it likes
            found[key] = array
        return found, table
    raise DataError(f"{path} must be an npz or json log, got '{path.suffix}'. Convert it with numpy.savez.")
