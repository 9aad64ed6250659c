"""What detectors saw: every hand of every frame of a video as one table, read from files, checked and cleaned.

A folder of detections holds one file a frame, whose name ends in the frame's number (`frame_000012.json`, `12.npz`);
frames without a file are frames without a hand. A single `.json` or `.npz` holds all frames.

```
json  {"hands": [{"box_px": [x0, y0, x1, y1], "confidence": 0.9, "right": 1, "joints_px": [[u, v], … 21],
                  "joints_m": [[x, y, z], … 21], "object": 3}]}           joints_m and object may be left out
      a single file: {"frames": [{"frame": 12, "hands": […]}, …]}
npz   box_px (n,4), confidence (n,), right (n,), joints_px (n,21,2), and joints_m (n,21,3), object (n,) if there are any
      a single file: the same for all hands, and frame (n,)
```

`right` is 1 for a right hand, 0 for a left one, or how sure the detector is that it is right. `joints_m` are metres in
the camera's frame (x right, y down, z forward). `object` is a tracker's number of the hand.
"""

from __future__ import annotations

import json
import re
import struct
import tokenize
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from vap_gym.data.layout import DataError, replacing
from vap_gym.recover.hands.joints import JOINTS, to_openpose

NO_OBJECT = -1
_SHAPES: Mapping[str, tuple[int, ...]] = {
    "box_px": (4,),
    "confidence": (),
    "right": (),
    "joints_px": (JOINTS, 2),
    "joints_m": (JOINTS, 3),
    "object": (),
}
_OPTIONAL = ("joints_m", "object")
DAMAGED = (
    OSError, ValueError, BadZipFile, EOFError, KeyError, TypeError, RuntimeError, MemoryError, SyntaxError,
    OverflowError, struct.error, tokenize.TokenError, zlib.error,
)  # fmt: skip
"""What numpy and json raise on truncated or flipped bytes of an .npz or .json."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """D hands seen in a video of `frames` frames, rows in the order of frames.

    `joints_m` is NaN where the detector gives no 3-D joints; `object` is −1 where no tracker has seen the hand.
    """

    frames: int
    frame: Int64[np.ndarray, "D"]
    box_px: Float[np.ndarray, "D 4"]  # x0, y0, x1, y1
    confidence: Float[np.ndarray, "D"]
    right: Float[np.ndarray, "D"]  # 0 left .. 1 right
    joints_px: Float[np.ndarray, "D 21 2"]
    joints_m: Float[np.ndarray, "D 21 3"]
    object: Int64[np.ndarray, "D"]

    def __len__(self) -> int:
        return len(self.frame)

    def at(self, rows: NDArray[Any]) -> Detections:
        """Return the rows at an index or mask."""
        arrays = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name != "frames"}
        return replace(self, **arrays)


def detections(
    frames: int,
    *,
    frame: NDArray[Any],
    box_px: NDArray[Any],
    confidence: NDArray[Any],
    right: NDArray[Any],
    joints_px: NDArray[Any],
    joints_m: NDArray[Any] | None = None,
    object: NDArray[Any] | None = None,
) -> Detections:
    """Return a checked table of detections, sorted by frame. Any real dtype; (0, …) arrays are no hands at all.

    Raises:
        DataError: shapes that do not fit, frames outside 0 … frames − 1, handedness outside 0 … 1.
    """
    count = len(frame)
    given: dict[str, NDArray[Any]] = {
        "box_px": box_px,
        "confidence": confidence,
        "right": right,
        "joints_px": joints_px,
        "joints_m": np.full((count, JOINTS, 3), np.nan) if joints_m is None else joints_m,
        "object": np.full(count, NO_OBJECT) if object is None else object,
    }
    arrays: dict[str, NDArray[Any]] = {}
    for name, value in given.items():
        value = np.asarray(value)
        if value.shape != (count, *_SHAPES[name]) or value.dtype.kind not in "fiub":
            raise DataError(
                f"{name} of {count} hands must be numbers of shape {(count, *_SHAPES[name])}, got {value.dtype} of "
                f"{value.shape}. Joints are the 21 of OpenPose, boxes are x0, y0, x1, y1 in px."
            )
        arrays[name] = value.astype(np.int64 if name == "object" else np.float64)
    number = np.asarray(frame)
    if number.shape != (count,) or (count and number.dtype.kind not in "iu"):
        raise DataError(f"frame must be {count} whole numbers, got {number.dtype} of {number.shape}. Count from 0.")
    number = number.astype(np.int64)
    if frames < 1 or (count and not 0 <= number.min() <= number.max() < frames):
        span = f"{number.min()} … {number.max()}" if count else "none"
        raise DataError(f"Frames of hands must lie in 0 … {frames - 1}, got {span}. Is it another video's file?")
    sure = arrays["right"][np.isfinite(arrays["right"])]
    if len(sure) and (sure.min() < 0 or sure.max() > 1):
        raise DataError(
            f"right must lie between 0 (left) and 1 (right), got {sure.min():g} … {sure.max():g}. "
            "Convert other conventions (−1 and 1, names) first."
        )
    order = np.argsort(number, kind="stable")
    return Detections(frames=frames, frame=number[order], **{name: value[order] for name, value in arrays.items()})


def no_detections(frames: int) -> Detections:
    """Return the table of a video without hands."""
    return detections(frames, frame=np.zeros(0, np.int64), **{n: np.zeros((0, *s)) for n, s in _SHAPES.items()})


def usable(table: Detections) -> NDArray[np.bool_]:
    """Return which rows can be worked with: finite box, confidence, handedness and joints, and a box with an area.

    3-D joints may be missing (NaN), but not in part.
    """
    numbers = (table.box_px, table.confidence[:, None], table.right[:, None], table.joints_px.reshape(-1, 2 * JOINTS))
    finite = np.logical_and.reduce([np.isfinite(x).all(-1) & (np.abs(x) < 1e7).all(-1) for x in numbers])
    bad_m = ~np.isfinite(table.joints_m).all((1, 2)) & ~np.isnan(table.joints_m).all((1, 2))
    box = np.where(finite[:, None], table.box_px, 0)
    good: NDArray[np.bool_] = finite & ~bad_m & (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
    return good


def read_detections(path: str | Path, frames: int, *, order: str = "openpose") -> Detections:
    """Read a folder of per-frame files, or one file, of a video of `frames` frames (layouts: this module's docstring).

    `order` names the order of joints in the files. Raises DataError on whatever cannot be read as told.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(
            file for file in path.iterdir() if file.suffix in (".json", ".npz") and _number(file) is not None
        )
        if not files:
            raise DataError(
                f"'{path}' holds no detections: it needs .json or .npz files with the frame's number at the end of "
                "their names, like frame_000012.json. See vap_gym.recover.hands.detections."
            )
        numbers = [_number(file) for file in files]
        if len(set(numbers)) != len(numbers):
            twice = next(file for file in files if numbers.count(_number(file)) > 1)
            raise DataError(f"'{path}' has two files of one frame, like {twice.name}. Remove one of them.")
        parts = [_rows(_content(file), file, _number(file)) for file in files]
    elif path.is_file():
        content = _content(path)
        listed = content.get("frames")
        if isinstance(listed, list):
            parts = [_rows(one, path, _frame_of(one, path)) for one in listed]
        else:
            parts = [_rows(content, path, None)]
    else:
        raise DataError(f"No detections at '{path}'. Give a folder of per-frame .json or .npz files, or one such file.")
    try:
        joined = {name: np.concatenate([part[name] for part in parts]) for name in ("frame", *_SHAPES)}
        joined["joints_px"] = to_openpose(joined["joints_px"].astype(np.float64), order)
        joined["joints_m"] = to_openpose(joined["joints_m"].astype(np.float64), order)
        return detections(frames, **joined)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def write_detections(path: Path, table: Detections) -> None:
    """Write all detections into one .npz that `read_detections` reads."""
    arrays = {field.name: getattr(table, field.name) for field in fields(table) if field.name != "frames"}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _number(file: Path) -> int | None:
    """The number at the end of a file's name, if there is one."""
    found = re.search(r"(\d{1,9})$", file.stem)
    return int(found.group(1)) if found else None


def _content(file: Path) -> dict[str, Any]:
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        content = json.loads(file.read_text(encoding="utf-8"))
    except DAMAGED as error:
        raise DataError(f"{file} cannot be read as {file.suffix or 'json'}: {error}. Write it again.") from error
    if not isinstance(content, dict):
        raise DataError(
            f'{file} must hold {{"hands": […]}}, got a {type(content).__name__}. See its layout in the docs.'
        )
    return content


def _frame_of(one: Any, file: Path) -> int:
    number = one.get("frame") if isinstance(one, dict) else None
    if isinstance(number, bool) or not isinstance(number, int):
        raise DataError(f'{file}: every entry of "frames" needs a whole "frame" number, got {number!r}. Count from 0.')
    return number


def _rows(content: Mapping[str, Any], file: Path, number: int | None) -> dict[str, NDArray[Any]]:
    """The arrays of one frame's file, or of a file with all frames (`number` None)."""
    columns = _columns_of(content["hands"], file) if "hands" in content else dict(content)
    missing = [name for name in _SHAPES if name not in columns and name not in _OPTIONAL]
    if number is None and "frame" not in columns:
        missing.insert(0, "frame")
    if missing:
        raise DataError(
            f"{file} lacks {', '.join(missing)}: got {', '.join(columns) or 'nothing'}. See the layout: {__name__}."
        )
    count = len(np.atleast_1d(columns["confidence"]))
    rows: dict[str, NDArray[Any]] = {}
    for name, shape in _SHAPES.items():
        default: Any = np.nan if name == "joints_m" else NO_OBJECT
        value = columns.get(name)
        if value is None:
            value = np.full((count, *shape), default)
        rows[name] = _numbers(value, name, (count, *shape), file)
    rows["frame"] = np.full(count, number) if number is not None else np.asarray(columns["frame"])
    return rows


def _columns_of(hands: Any, file: Path) -> dict[str, Any]:
    """The list of hands of a json as columns."""
    if not isinstance(hands, Sequence) or not all(isinstance(hand, Mapping) for hand in hands):
        raise DataError(
            f'{file}: "hands" must be a list of objects, got {str(hands)[:60]}. See its layout in the docs.'
        )
    columns: dict[str, Any] = {}
    for name, shape in _SHAPES.items():
        default: Any = np.full(shape, np.nan if name == "joints_m" else NO_OBJECT) if name in _OPTIONAL else None
        values = [hand.get(name, default) for hand in hands]
        values = [default if value is None else value for value in values]
        if any(value is None for value in values):
            raise DataError(f"{file}: a hand lacks {name}. It needs box_px, confidence, right and joints_px.")
        columns[name] = [_numbers(value, name, shape, file) for value in values] or np.zeros((0, *shape))
    return columns


def _numbers(value: Any, name: str, shape: tuple[int, ...], file: Path) -> NDArray[Any]:
    try:
        array = np.asarray(value)
        array = array if array.dtype.kind in "fiub" else array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{file}: {name} must be numbers of shape {shape}, got {error}. Write it again.") from error
    if array.shape != shape:
        raise DataError(
            f"{file}: {name} must have shape {shape}, got {array.shape}. "
            "Joints are the 21 of OpenPose, boxes are x0, y0, x1, y1 in px."
        )
    return array
