"""TFRecord files without TensorFlow: records one at a time, their checksums held to, damage told where it lies.

A record is its length (u64, little endian), the masked CRC-32C of these 8 bytes, the data, and the masked CRC-32C of
the data. Files may be gzipped as a whole; offsets then count unpacked bytes.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from vap_gym.data.importing.crc32c import masked_crc32c
from vap_gym.data.layout import DataError, replacing

HEADER_BYTES, FOOTER_BYTES = 12, 4
MAX_RECORD_BYTES = (1 << 31) - 1  # protobuf's own limit: no longer record can be an Example
_PIECE = 1 << 20  # bytes asked for at a time, so that a false length costs no memory
File = BufferedIOBase  # of a plain file or of an unpacking one
_SHARD_NAME = re.compile(r"\.tfrecords?(-\d+-of-\d+)?(\.gz)?$")


@dataclass(frozen=True, kw_only=True)
class Record:
    """The data of one record, and where it was found (`offset` is that of its header)."""

    path: Path
    number: int
    offset: int
    data: bytes

    @property
    def where(self) -> str:
        """The place, for messages."""
        return f"{self.path}: record {self.number} at byte {self.offset}"


def shards_of(path: Path) -> list[Path]:
    """Return the TFRecord files of a folder, by name (`…tfrecord`, `…tfrecord-00000-of-00005`), or the file given."""
    if path.is_file():
        return [path]
    shards = sorted(file for file in path.iterdir() if _SHARD_NAME.search(file.name)) if path.is_dir() else []
    if not shards:
        raise DataError(
            f"TFRecord files are needed (name.tfrecord or name.tfrecord-00000-of-00005), got none at '{path}'. "
            "Name such a file, or the folder that holds them beside features.json."
        )
    return shards


@contextmanager
def opened(path: Path) -> Iterator[File]:
    """Open a TFRecord file, unpacking it where it is gzipped; what the system says becomes a DataError."""
    try:
        with path.open("rb") as raw:
            if _is_gzip(raw):
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield unpacked
            else:
                yield raw
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{path} must be a TFRecord file, plain or gzipped, got: {error}. Fetch it again.") from error


def read_records(path: Path, *, check: bool = True) -> Iterator[Record]:
    """Yield the records of a file in order, holding one at a time.

    `check=False` leaves out the checksum of the data (not that of the length, without which nothing can be found).
    Raises DataError with file, record and offset at the first damage.
    """
    with opened(path) as file:
        number = offset = 0
        while (record := _read(file, path, number, offset, check)) is not None:
            yield record
            number, offset = number + 1, offset + HEADER_BYTES + len(record.data) + FOOTER_BYTES


def read_record(file: File, path: Path, number: int, offset: int, *, check: bool = True) -> Record:
    """Read the record at an offset of a file that is `opened`. Raises DataError where it is damaged or not there."""
    try:
        file.seek(offset)
        record = _read(file, path, number, offset, check)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: record {number} at byte {offset} cannot be unpacked: {error}. {_AGAIN}") from error
    if record is None:
        raise DataError(f"{path}: record {number} must start at byte {offset}, got the end of the file. {_AGAIN}")
    return record


def record_offsets(path: Path) -> tuple[list[int], DataError | None]:
    """Return where the records of a file start, from their headers alone, and the damage that ended the search.

    Where there is damage, the last offset is that of the record in which, or before which, it lies.
    """
    offsets: list[int] = []
    offset = 0
    try:
        with opened(path) as file:
            size = _size(file)
            while True:
                file.seek(offset)
                head = file.read(HEADER_BYTES)
                if not head:
                    return offsets, None
                length = _length(head, path, len(offsets), offset, size)
                offsets.append(offset)
                offset += HEADER_BYTES + length + FOOTER_BYTES
    except DataError as damage:
        return [*offsets, offset], damage


def write_records(path: Path, records: Iterable[bytes], *, compressed: bool = False) -> None:
    """Write a TFRecord file, gzipped if wished, under a temporary name until it is whole."""
    with replacing(path) as temporary, temporary.open("wb") as raw:
        file: File = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if compressed else raw
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + struct.pack("<I", masked_crc32c(length)))
            file.write(data + struct.pack("<I", masked_crc32c(data)))
        if compressed:
            file.close()


def shard_place(name: str) -> tuple[int, int] | None:
    """Return (i, n) of a shard `…-0000i-of-0000n`, None where the name tells none."""
    found = re.search(r"-(\d+)-of-(\d+)(\.gz)?$", name)
    return (int(found[1]), int(found[2])) if found else None


_AGAIN = "The file is damaged or cut short: fetch it again."


def _is_gzip(file: File) -> bool:
    """Whether a file is gzipped. Gzip's mark may begin a plain file too (as a length): its checksum then decides."""
    head = file.read(HEADER_BYTES)
    file.seek(0)
    if head[:3] != b"\x1f\x8b\x08":
        return False
    return len(head) < HEADER_BYTES or struct.unpack("<I", head[8:])[0] != masked_crc32c(head[:8])


def _size(file: File) -> int | None:
    """Bytes of a plain file; None where it is gzipped, since only unpacking would tell."""
    return None if isinstance(file, gzip.GzipFile) else os.fstat(file.fileno()).st_size


def _length(head: bytes, path: Path, number: int, offset: int, size: int | None) -> int:
    """Length of the data that a header announces, checked."""
    where = f"{path}: record {number} at byte {offset}"
    if len(head) < HEADER_BYTES:
        raise DataError(f"{where} must begin with a header of {HEADER_BYTES} bytes, got {len(head)}. {_AGAIN}")
    length, stored = struct.unpack("<QI", head)
    found = masked_crc32c(head[:8])
    if stored != found:
        raise DataError(
            f"{where}: the checksum of its length ({length}) must be {stored:#010x}, got {found:#010x}. "
            "The file is damaged or no TFRecord file: fetch it again."
        )
    if length > MAX_RECORD_BYTES:
        raise DataError(f"{where} must be shorter than 2 GiB, got {length} bytes. {_AGAIN}")
    if size is not None and offset + HEADER_BYTES + length + FOOTER_BYTES > size:
        raise DataError(
            f"{where} must hold {length} bytes and a checksum, got {size - offset - HEADER_BYTES} before the "
            f"file ends. {_AGAIN}"
        )
    return int(length)


def _read(file: File, path: Path, number: int, offset: int, check: bool) -> Record | None:
    """The record that starts where the file stands; None at its end."""
    head = file.read(HEADER_BYTES)
    if not head:
        return None
    wanted = _length(head, path, number, offset, _size(file)) + FOOTER_BYTES
    content = bytearray()
    while len(content) < wanted:
        piece = file.read(min(_PIECE, wanted - len(content)))
        if not piece:
            raise DataError(
                f"{path}: record {number} at byte {offset} must hold {wanted - FOOTER_BYTES} bytes and a checksum, "
                f"got {len(content)} before the file ends. {_AGAIN}"
            )
        content += piece
    data = bytes(memoryview(content)[:-FOOTER_BYTES])
    if check:
        (stored,) = struct.unpack("<I", content[-FOOTER_BYTES:])
        found = masked_crc32c(data)
        if stored != found:
            raise DataError(
                f"{path}: record {number} at byte {offset}: the checksum of its {len(data)} bytes must be "
                f"{stored:#010x}, got {found:#010x}. Bits were flipped: fetch the file again."
            )
    return Record(path=path, number=number, offset=offset, data=data)
