"""What an importer gives: raw episodes, one at a time, with pictures still as their source stores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vap_gym.data.encoded import PictureBytes as PictureBytes
from vap_gym.data.encoded import VideoFile as VideoFile
from vap_gym.data.layout import DataError

# The pictures of one view: an mp4 to copy, encoded pictures to keep, or uint8 (T,H,W,3) RGB to encode.
RawView = VideoFile | PictureBytes | NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class RawEpisode:
    """What a source gives for one episode of T frames.

    `name` is unique within the source and the same at every opening of it. `columns` are (T, …) under the names of
    `vap_gym.data.conventions`, with the dtype and the bits of the source wherever its map is the identity; every
    episode of a source has the same columns (NaN where a log lacks one, told in `info["absent"]`). `rate_hz` is
    the rate of the frames as the source states it, None where it does not (a container's rate is no statement).
    """

    name: str
    views: Mapping[str, RawView]
    columns: Mapping[str, NDArray[Any]]
    task: str = ""
    labels: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    rate_hz: float | None = None


@runtime_checkable
class Source(Protocol):
    """A recording of many episodes. Opening one reads names and settings only, never frames."""

    @property
    def kind(self) -> str:
        """Name of the format: "droid", "lerobot", …"""

    @property
    def robot(self) -> str:
        """Name of a robot card, or "unknown"."""

    @property
    def rate_hz(self) -> float | None:
        """Frames per second that all episodes share, as the source states them; None where it does not."""

    def names(self) -> Sequence[str]:
        """Names of the episodes in the order of the source, the same at every opening."""

    def read(self, name: str) -> RawEpisode:
        """Read one episode. Raises DataError where it is damaged; the others stay readable."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may tell about a recording that does not tell it itself; None leaves it to the source."""

    robot: str | None = None
    rate_hz: float | None = None
    action: str | None = None  # which of the logged commands becomes `action`: a convention's name
    map_path: Path | None = None  # of a field map (vap_gym.data.importing.fieldmap)


def source_info(source: Source, path: Path, name: str) -> dict[str, Any]:
    """The entries of `info` that every importer gives (conventions): robot, and where the episode comes from."""
    return {"robot": source.robot, "source": {"kind": source.kind, "path": str(path), "episode": name}}


def damaged(what: str, error: object, remedy: str = "Fetch the file again, or leave this episode out.") -> DataError:
    """The error (to raise) for a file of a recording that cannot be read."""
    return DataError(f"{what} must be readable, got {error}. {remedy}")
