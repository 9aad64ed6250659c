"""Messages of a served env: msgpack with numpy arrays, or JSON; spaces and infos as plain tables."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image

from vap_gym.contract import Timings
from vap_gym.policies.wire import packed, png_text, unpacked
from vap_gym.serve.errors import MessageError, TooLargeError

PROTOCOL = 1  # what client and server must agree on
OPERATIONS = ("open", "reset", "step", "step_chunk", "branch", "close")
LARGEST_PICTURE_PX = 4096 * 4096
DAMAGED = (
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    SyntaxError,
    RecursionError,
    MemoryError,
)
"""What readers of msgpack, JSON, numpy types and pictures raise for bytes that are none."""


def encoded(value: Any) -> bytes:
    """Return msgpack of plain values and numpy arrays (see `policies.wire`).

    Raises:
        MessageError: something in it cannot be sent.
    """
    try:
        return packed(plain(value))
    except (ValueError, TypeError, OverflowError) as error:
        raise MessageError(
            f"A message must hold plain values and numpy arrays, got something else: {error}",
            "Send numbers, strings, lists, tables and arrays.",
        ) from error


def decoded(data: bytes) -> dict[str, Any]:
    """Return the table that `encoded` wrote; its arrays cannot be written to.

    Raises:
        MessageError: it is damaged, lies about the size of something in it, or is no table.
    """
    try:
        value = unpacked(data)
    except DAMAGED as error:
        raise MessageError(
            f"A message must be msgpack whose arrays are as large as they say, got {len(data)} bytes that are not: "
            f"{error}",
            "Write it with vap_gym.serve.messages.encoded.",
        ) from error
    return _table(value)


def json_text(value: Any) -> str:
    """Return JSON: pictures as {"png": base64}, other arrays as lists, numbers that are not finite as null."""
    return json.dumps(_for_json(plain(value)), allow_nan=False)


def read_json(data: bytes) -> dict[str, Any]:
    """Return a table from JSON; {"png": base64} anywhere in it becomes a picture (H, W, 3).

    Raises:
        MessageError: it is no JSON, no table, or holds something that is no picture.
    """
    try:
        value = json.loads(data, object_hook=_from_json)
    except DAMAGED as error:
        raise MessageError(
            f"A message must be JSON, got {len(data)} bytes that are not: {error}", 'Send a table: {"env": "…"}.'
        ) from error
    return _table(value)


def plain(value: Any) -> Any:
    """Return a value with tables in the place of dataclasses, and lists in that of tuples."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def own(value: Any) -> Any:
    """Return a value whose arrays have memory of their own, that may be written to."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: own(item) for key, item in value.items()}
    return [own(item) for item in value] if isinstance(value, list) else value


def info_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return an info as a local env gives it: its timings are `Timings` again."""
    info: dict[str, Any] = own(table)
    if isinstance(info.get("timings_ms"), dict):
        info["timings_ms"] = Timings(**info["timings_ms"])
    return info


def space_table(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a `Box`, or a `Dict` of them, as a table; bounds that are all the same as one number.

    Raises:
        MessageError: another kind of space.
    """
    if isinstance(space, spaces.Dict):
        return {"dict": {name: space_table(inner) for name, inner in space.spaces.items()}}
    if not isinstance(space, spaces.Box):
        raise MessageError(f"Only Box and Dict spaces can be served, got {type(space).__name__}.")
    low, high = (bound.flat[0] if (bound == bound.flat[0]).all() else bound for bound in (space.low, space.high))
    return {"low": low, "high": high, "shape": list(space.shape), "dtype": space.dtype.str}


def read_space(table: Mapping[str, Any]) -> spaces.Space[Any]:
    """Return the space that `space_table` wrote. Raises MessageError where it is none."""
    try:
        if "dict" in table:
            return spaces.Dict({name: read_space(inner) for name, inner in table["dict"].items()})
        shape, dtype = tuple(int(n) for n in table["shape"]), np.dtype(table["dtype"])
        low, high = (np.broadcast_to(np.asarray(table[side], dtype), shape).copy() for side in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    except DAMAGED as error:
        raise MessageError(f"The server's space cannot be read: {error}.") from error


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise MessageError(f"A message must be a table with names as keys, got {type(value).__name__}.")
    return value


def _for_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3 and value.size:
            return {"png": png_text(value)}
        return _for_json(list(value)) if value.dtype == np.uint8 and value.ndim == 4 else _for_json(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _for_json(item) for key, item in value.items()}
    return [_for_json(item) for item in value] if isinstance(value, list) else value


def _from_json(table: dict[str, Any]) -> Any:
    if set(table) != {"png"}:
        return table
    try:
        data = base64.b64decode(str(table["png"]), validate=True)
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > LARGEST_PICTURE_PX:
                raise TooLargeError(
                    f"A picture may have {LARGEST_PICTURE_PX} pixels, got {picture.width} × {picture.height}.",
                    "Send a smaller one: it is reduced to the env's size anyway.",
                )
            return np.array(picture.convert("RGB"))
    except (OSError, binascii.Error) as error:
        raise MessageError(f"png must be base64 of a picture, got something else: {error}.") from error
