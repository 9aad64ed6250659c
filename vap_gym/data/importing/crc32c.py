"""CRC-32C (Castagnoli), the checksum of TFRecord files, at the speed of numpy.

A CRC that starts from zero is linear over GF(2): many chunks are run side by side, eight bytes a step through tables
of 16 bits, and then joined in pairs by the (linear) operator that appends zeros to the left one.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed (RFC 3720, B.4)
MASK_DELTA = 0xA282EAD8  # TFRecord stores its checksums rotated by 15 bits plus this
_CHUNK = 128  # bytes that one lane runs through
_PIECE = 1 << 20  # bytes that are run side by side, so that memory stays bounded
_SHORT = 64  # fewer bytes than this are quicker one by one


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of some bytes, 0 to 2³² − 1."""
    if len(data) < _SHORT:
        table, crc = _byte_table(), 0xFFFFFFFF
        for byte in bytes(data):
            crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
        return crc ^ 0xFFFFFFFF
    content = np.frombuffer(data, np.uint8)
    first = (len(content) - _SHORT) % _PIECE + _SHORT  # what is left over goes first; never fewer than four bytes
    # Starting from ones is the same as starting from zero with the first four bytes inverted.
    crc = _from_zero(content[:first], inverted=True)
    for start in range(first, len(content), _PIECE):
        crc = int(_append_zeros(np.array([crc], np.uint32), _PIECE)[0]) ^ _from_zero(content[start : start + _PIECE])
    return crc ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | memoryview) -> int:
    """Return the checksum as TFRecord stores it: rotated and shifted, for data that hold checksums themselves."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & 0xFFFFFFFF


def _from_zero(content: NDArray[np.uint8], *, inverted: bool = False) -> int:
    """The CRC register after `content`, started from zero and not inverted at the end."""
    lanes = -(-len(content) // _CHUNK)
    padded = np.zeros(lanes * _CHUNK, np.uint8)  # zeros in front change nothing
    front = len(padded) - len(content)
    padded[front:] = content
    if inverted:
        padded[front : front + 4] ^= 0xFF
    halves = np.ascontiguousarray(padded.view("<u2").reshape(lanes, _CHUNK // 8, 4).transpose(1, 2, 0))
    t3, t2, t1, t0 = _word_tables()
    register = np.zeros(lanes, np.uint32)
    for low, high, third, fourth in halves:
        register = (
            t3[(register & 0xFFFF) ^ low] ^ t2[(register >> 16) ^ high] ^ np.take(t1, third) ^ np.take(t0, fourth)
        )
    length = _CHUNK
    while len(register) > 1:
        if len(register) % 2:
            register = np.concatenate([np.zeros(1, np.uint32), register])
        register = _append_zeros(register[::2], length) ^ register[1::2]
        length *= 2
    return int(register[0])


def _append_zeros(registers: NDArray[np.uint32], length: int) -> NDArray[np.uint32]:
    """Registers after `length` (a power of two) more zero bytes."""
    a, b, c, d = _zeros_operator(length)
    moved: NDArray[np.uint32] = (
        a[registers & 0xFF] ^ b[(registers >> 8) & 0xFF] ^ c[(registers >> 16) & 0xFF] ^ d[registers >> 24]
    )
    return moved


@cache
def _byte_table() -> tuple[int, ...]:
    """The register's change by one byte."""
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = (crc >> 1) ^ (POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


@cache
def _word_tables() -> tuple[NDArray[np.uint32], ...]:
    """Changes by 16 bits that stand 0, 2, 4 and 6 bytes from the left of eight, in that order."""
    bytewise = np.array(_byte_table(), np.uint32)
    tables: list[NDArray[np.uint32]] = []
    word: NDArray[np.uint32] = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(4):
        for _ in range(2):
            word = bytewise[word & 0xFF] ^ (word >> np.uint32(8))
        tables.append(word)
    return tuple(reversed(tables))


@cache
def _zeros_operator(length: int) -> NDArray[np.uint32]:
    """The operator that appends `length` (a power of two) zeros, (4, 256): a table per byte of the register."""
    if length == 1:
        bytewise = np.array(_byte_table(), np.uint32)
        values = np.arange(256, dtype=np.uint32)
        return np.stack([bytewise, values << 0, values << 8, values << 16])
    half = _zeros_operator(length // 2)
    return _append_zeros(half.reshape(-1), length // 2).reshape(4, 256)
