"""The kinds of recordings that can be imported, each a function that opens one: (path, options) to Source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from vap_gym.data.importing.source import Options, Source
from vap_gym.data.layout import DataError
from vap_gym.errors import unknown_name


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Where the function that opens a kind of recording is, and what it reads."""

    module: str
    function: str
    summary: str


KINDS: Mapping[str, Kind] = {
    "droid": Kind(module="droid", function="open_droid", summary="DROID folders: raw release, or log.npz + cam*.mp4"),
    "lerobot": Kind(module="lerobot", function="open_lerobot", summary="LeRobot v2.0, v2.1 and v3 sets"),
    "files": Kind(module="files", function="open_files", summary="mp4 + npz/json, by a field map (--map)"),
    "rlds-bridge": Kind(module="rlds", function="open_bridge", summary="Bridge V2 (WidowX) as TFRecord"),
    "rlds-rt1": Kind(module="rlds", function="open_rt1", summary="RT-1 (fractal20220817_data) as TFRecord"),
    "rlds-droid": Kind(module="rlds", function="open_droid_rlds", summary="DROID as TFRecord"),
    "rlds": Kind(module="rlds", function="open_rlds", summary="any RLDS set as TFRecord; features keep their names"),
    "oracle": Kind(module="lerobot", function="open_oracle", summary="sets of our own simulator"),
}


def open_source(kind: str, path: Path, options: Options) -> Source:
    """Open a recording. Raises UnknownNameError for the kind, DataError where the path does not hold one."""
    if kind not in KINDS:
        raise unknown_name("kind of recording", kind, KINDS)
    if not path.exists():
        raise DataError(
            f"A recording of kind '{kind}' needs a file or folder, got '{path}', which is not there. Check it."
        )
    chosen = KINDS[kind]
    function: Callable[[Path, Options], Source] = getattr(
        import_module(f"vap_gym.data.importing.{chosen.module}"), chosen.function
    )
    return function(path, options)
