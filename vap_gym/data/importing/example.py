"""tf.train.Example read from and written to protobuf's wire format, value for value, without TensorFlow.

Example { features = 1 } · Features { map<string, Feature> feature = 1 } · Feature { bytes_list = 1 | float_list = 2 |
int64_list = 3 } · each list { repeated value = 1 }, numbers packed or not. Unknown fields are passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from vap_gym.data.layout import DataError

# Of one feature: byte strings, float32 (n,) or int64 (n,); an empty list where the kind is not told.
Value = list[bytes] | NDArray[np.float32] | NDArray[np.int64]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_KINDS = {1: "bytes", 2: "float", 3: "int64"}


class _Malformed(ValueError):
    """What is wrong, and at which byte of the record."""

    def __init__(self, offset: int, text: str) -> None:
        super().__init__(text)
        self.offset = offset


def parse_example(data: bytes, where: str = "record") -> dict[str, Value]:
    """Return the features of an Example by name, the last one where a name comes twice (as protobuf has it).

    Raises DataError, with `where` and the byte within the record, where the data are no Example.
    """
    try:
        features: dict[str, Value] = {}
        for number, wire, start, stop in _fields(data, 0, len(data)):
            if number == 1:
                _need(wire == _BYTES, start, "Features must be a message")
                for inner, inner_wire, first, last in _fields(data, start, stop):
                    if inner == 1:
                        _need(inner_wire == _BYTES, first, "a feature must be a message")
                        name, value = _entry(data, first, last)
                        features[name] = value
    except _Malformed as error:
        raise DataError(
            f"{where}: its data must be a tf.train.Example, got at byte {error.offset} of {len(data)}: {error}. "
            "It is damaged, or a record of another kind: fetch the file again, or say what it holds."
        ) from error
    return features


def encode_example(features: Mapping[str, Value]) -> bytes:
    """Return an Example in wire format, features sorted by name, numbers packed."""
    return _message(1, b"".join(_message(1, _encode_entry(name, features[name])) for name in sorted(features)))


def _fields(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, first byte, last byte excluded) of a message's fields."""
    at = start
    while at < stop:
        key, first = _varint(data, at, stop)
        number, wire = key >> 3, key & 7
        _need(number > 0, at, "a field numbered 0")
        if wire == _BYTES:
            length, first = _varint(data, first, stop)
            end = first + length
        elif wire == _VARINT:
            _, end = _varint(data, first, stop)
        elif wire in (_FIXED64, _FIXED32):
            end = first + (8 if wire == _FIXED64 else 4)
        else:
            raise _Malformed(at, f"wire type {wire}")
        if end > stop:
            raise _Malformed(at, f"a field that is {end - stop} bytes longer than what holds it")
        yield number, wire, first, end
        at = end


def _varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    """Return the number at a byte, and the byte after it."""
    value = 0
    for i in range(10):
        _need(at + i < stop, at, "a number that is cut short")
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + i + 1
    raise _Malformed(at, "a number of more than ten bytes")


def _entry(data: bytes, start: int, stop: int) -> tuple[str, Value]:
    """Name and value of an entry of the map of features."""
    name, value = "", _empty()
    for number, wire, first, last in _fields(data, start, stop):
        if number in (1, 2):
            _need(wire == _BYTES, first, "an entry of the wrong type")
        if number == 1:
            try:
                name = data[first:last].decode("utf-8")
            except UnicodeDecodeError:
                raise _Malformed(first, "a name that is no UTF-8") from None
        elif number == 2:
            value = _feature(data, first, last)
    return name, value


def _feature(data: bytes, start: int, stop: int) -> Value:
    value = _empty()
    for number, wire, first, last in _fields(data, start, stop):
        if number in _KINDS:
            _need(wire == _BYTES, first, f"a list of {_KINDS[number]} of the wrong type")
            value = (_bytes, _floats, _integers)[number - 1](data, first, last)
    return value


def _empty() -> Value:
    return []


def _bytes(data: bytes, start: int, stop: int) -> Value:
    found: list[bytes] = []
    for number, wire, first, last in _fields(data, start, stop):
        if number == 1:
            _need(wire == _BYTES, first, "bytes of the wrong type")
            found.append(data[first:last])
    return found


def _floats(data: bytes, start: int, stop: int) -> Value:
    parts: list[NDArray[np.float32]] = []
    for number, wire, first, last in _fields(data, start, stop):
        if number == 1:
            _need(wire in (_BYTES, _FIXED32), first, "floats of the wrong type")
            _need((last - first) % 4 == 0, first, f"floats of 4 bytes each in {last - first} bytes")
            parts.append(np.frombuffer(data, "<f4", (last - first) // 4, first))
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)


def _integers(data: bytes, start: int, stop: int) -> Value:
    parts: list[NDArray[np.int64]] = []
    for number, wire, first, last in _fields(data, start, stop):
        if number == 1:
            _need(wire in (_BYTES, _VARINT), first, "integers of the wrong type")
            parts.append(_varints(np.frombuffer(data, np.uint8, last - first, first), first))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _varints(content: NDArray[np.uint8], offset: int) -> NDArray[np.int64]:
    """Decode packed numbers all at once."""
    if not len(content):
        return np.zeros(0, np.int64)
    _need(bool(content[-1] < 0x80), offset, "integers that are cut short")
    lasts = np.flatnonzero(content < 0x80)
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    _need(int((lasts - firsts).max()) < 10, offset, "a number of more than ten bytes")
    place = np.arange(len(content)) - np.repeat(firsts, lasts - firsts + 1)
    shifted = (content & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(shifted, firsts).view(np.int64)


def _need(holds: bool, offset: int, text: str) -> None:
    if not holds:
        raise _Malformed(offset, text)


def _encode_entry(name: str, value: Value) -> bytes:
    if isinstance(value, list):
        number, listed = 1, b"".join(_message(1, item) for item in value)
    elif value.dtype == np.float32:
        number, listed = 2, _message(1, value.astype("<f4").tobytes())
    elif value.dtype == np.int64:
        number, listed = 3, _message(1, b"".join(_encode_varint(int(item)) for item in value))
    else:
        raise DataError(
            f"Feature '{name}' must be a list of bytes, float32 or int64, got {value.dtype}. Convert it first."
        )
    return _message(1, name.encode()) + _message(2, _message(number, listed))


def _message(number: int, content: bytes) -> bytes:
    return struct.pack("B", number << 3 | _BYTES) + _encode_varint(len(content)) + content


def _encode_varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
