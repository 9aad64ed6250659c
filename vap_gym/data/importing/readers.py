"""Files of recordings, read so that every kind of damage is one clear DataError: JSON, npz, HDF5."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vap_gym.data.importing.source import damaged
from vap_gym.data.layout import DataError
from vap_gym.errors import require

# What zipfile, zlib, numpy and HDF5 raise on files with wrong bytes in them.
BROKEN = (
    OSError, ValueError, KeyError, EOFError, MemoryError, NotImplementedError, SyntaxError, RuntimeError, TypeError,
    OverflowError, AttributeError, IndexError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises DataError where it is missing, damaged or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(str(path), error) from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, got a {type(value).__name__}. Give it as {{…}}.")
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line. Raises DataError where it is missing, damaged or something else."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(str(path), error) from error
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} must hold one JSON object per line, got other values. Give each as {{…}}.")
    return rows


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read arrays of an npz, all where `names` is None; absent ones are left out. Raises DataError on damage."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if isinstance(file, np.ndarray):
                raise DataError(f"{path} must be an npz of named arrays, got one array. Save it with np.savez.")
            return {name: file[name] for name in (file.files if names is None else names) if name in file.files}
    except DataError:
        raise
    except BROKEN as error:
        raise damaged(str(path), error) from error


def read_h5(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read data sets of an HDF5 file by their paths; absent ones are left out. Raises DataError on damage."""
    h5py = require("h5py", "[data]", "Reading trajectory.h5 of DROID")
    try:
        with h5py.File(path, "r") as file:
            return {name: np.asarray(file[name][()]) for name in names if isinstance(file.get(name), h5py.Dataset)}
    except BROKEN as error:
        raise damaged(str(path), error) from error


def number(table: Mapping[str, Any], key: str, where: Path) -> float | None:
    """A number of a JSON object, None where it is absent or null. Raises DataError where it is something else."""
    value = table.get(key)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return None if value is None else float(value)
    raise DataError(f"'{key}' of {where} must be a number or null, got {value!r}. Correct the file.")


def text(table: Mapping[str, Any], key: str) -> str:
    """A string of a JSON object, "" where it is absent or something else."""
    value = table.get(key)
    return value if isinstance(value, str) else ""
