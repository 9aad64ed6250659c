"""On the wire: numpy arrays in msgpack as openpi writes them, pictures in JSON, and calls that are tried again."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vap_gym.errors import require
from vap_gym.policies.protocol import PolicyError

Got = TypeVar("Got")
MOST_BYTES = 64 * 2**20
"""Of a server's answer: actions are some kilobytes, and a server that tells of terabytes is not to be believed."""


def packed(value: Any) -> bytes:
    """Return msgpack of plain values and numpy arrays, as openpi's client and server exchange it.

    An array is a map with the byte-string keys __ndarray__, data, dtype and shape; a numpy number one with
    __npgeneric__, data and dtype. Raises PolicyError for objects, structures and complex numbers.
    """
    msgpack: Any = require("msgpack", "[remote]", "An openpi policy")
    return bytes(msgpack.packb(value, default=_encoded))


def unpacked(data: bytes) -> Any:
    """Return what `packed` packed. Raises PolicyError where it is damaged or something else."""
    msgpack: Any = require("msgpack", "[remote]", "An openpi policy")
    try:
        return msgpack.unpackb(data, object_hook=_decoded)
    except (ValueError, TypeError, KeyError, OverflowError, msgpack.exceptions.UnpackException) as error:
        raise PolicyError(
            f"A policy server must send msgpack, got {len(data)} bytes that are none: {error}."
        ) from error


def _encoded(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise PolicyError(f"Only plain values and numpy arrays can be sent to a policy, got {type(value).__name__}.")
    if value.dtype.kind in "VOc":
        raise PolicyError(f"Arrays for a policy server must hold plain numbers, got dtype {value.dtype}.")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def _decoded(table: Mapping[Any, Any]) -> Any:
    if b"__ndarray__" in table:
        return np.frombuffer(table[b"data"], _plain_dtype(table)).reshape(table[b"shape"])
    if b"__npgeneric__" in table:
        return _plain_dtype(table).type(table[b"data"])
    return table


def _plain_dtype(table: Mapping[Any, Any]) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(table[b"dtype"])
    if dtype.kind in "VOc":
        raise ValueError(f"an array of dtype {dtype}")
    return dtype


def png_text(frame: UInt8[np.ndarray, "H W 3"]) -> str:
    """Return a frame as base64 of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def frame_of_text(text: str) -> UInt8[np.ndarray, "H W 3"]:
    """Return the frame that `png_text` wrote: for servers in Python."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return np.array(picture.convert("RGB"))


def again(
    call: Callable[[], Got], *, tries: int, wait_s: float, passing: tuple[type[Exception], ...], name: str
) -> Got:
    """Return what a call gives, tried up to `tries` times with growing pauses where it raises a `passing` error.

    Raises:
        PolicyError: it failed every time; the last reason is told.
    """
    for attempt in range(tries):
        try:
            return call()
        except passing as error:
            if attempt + 1 == tries:
                reason = str(error) or type(error).__name__
                raise PolicyError(
                    f"{name} could not be reached in {tries} tries: {reason}. Is it running, and is the address right?"
                ) from error
        time.sleep(wait_s * 2**attempt)
    raise PolicyError(f"{name} must be tried at least once, got tries={tries}.")
