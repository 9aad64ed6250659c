"""Damaged TFRecord and RLDS files: right data or one clear error, never a crash, a hang or a lot of memory."""

import gzip
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vap_gym.data import DataError
from vap_gym.data.importing.crc32c import masked_crc32c
from vap_gym.data.importing.example import encode_example, parse_example
from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.source import Options, RawEpisode
from vap_gym.data.importing.tfrecord import read_records, record_offsets, write_records

T = TypeVar("T")
QUICK = settings(max_examples=80, deadline=None)
RECORDS = [b"", b"abc" * 30, bytes(range(80))]
EXAMPLE = {"a": [b"xy", b""], "b/c": np.float32([1, np.nan, -3]), "d": np.int64([0, -1, 1 << 62])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where damaged files are written."""
    return tmp_path_factory.mktemp("fuzz")


def read_or_error(path: Path, *, check: bool = True) -> tuple[list[bytes], DataError | None]:
    """The records up to the first damage, and the error."""
    read: list[bytes] = []
    try:
        for record in read_records(path, check=check):
            read.append(record.data)  # noqa: PERF401  those before the damage count
    except DataError as error:
        return read, error
    return read, None


def result_or_error(function: Callable[[], T]) -> tuple[T | None, str]:
    """What a function returns, or the message of its DataError."""
    try:
        return function(), ""
    except DataError as error:
        return None, str(error)


def assert_three_parts(error: DataError, path: Path) -> None:
    text = str(error)
    assert str(path) in text
    assert "got" in text
    assert text.rstrip(".").split(". ")[-1].lower().count("again") == 1


@QUICK
@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_arbitrary_bytes_are_refused(folder: Path, content: bytes, compressed: bool, check: bool) -> None:
    path = folder / "arbitrary.tfrecord"
    path.write_bytes(gzip.compress(content) if compressed else content)
    read, error = read_or_error(path, check=check)
    assert not read
    assert (error is None) == (content == b"")
    if error:
        assert_three_parts(error, path)
    offsets, damage = record_offsets(path)
    assert (len(offsets), damage is None) == ((0, True) if content == b"" else (1, False))


@pytest.mark.parametrize("compressed", [False, True])
def test_file_cut_anywhere_gives_the_whole_records_and_one_error(folder: Path, compressed: bool) -> None:
    whole, path = folder / "whole.tfrecord", folder / "cut.tfrecord"
    write_records(whole, RECORDS, compressed=compressed)
    content = whole.read_bytes()
    borders = set() if compressed else {0, 16, 16 + 90 + 16, len(content)}
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        read, error = read_or_error(path)
        assert read == RECORDS[: len(read)]
        is_whole = length in borders or length == len(content) or length == 0
        assert (error is None) == is_whole, length
        if error:
            assert_three_parts(error, path)
            assert record_offsets(path)[1] is not None


@pytest.mark.parametrize("compressed", [False, True])
def test_any_flipped_bit_is_found_and_earlier_records_are_right(folder: Path, compressed: bool) -> None:
    whole, path = folder / "whole.tfrecord", folder / "flipped.tfrecord"
    write_records(whole, RECORDS, compressed=compressed)
    content = whole.read_bytes()
    for place in range(len(content)):
        for bit in (0, 3, 7):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            read, error = read_or_error(path)
            assert read == RECORDS[: len(read)]
            # Some bits of gzip's own mean nothing: its header's time and system, what fills up the last byte.
            assert error is not None or (compressed and read == RECORDS), (place, bit)


@pytest.mark.parametrize("length", [1 << 60, (1 << 64) - 1, (1 << 31) - 1])
@pytest.mark.parametrize("compressed", [False, True])
def test_false_length_takes_no_memory(folder: Path, length: int, compressed: bool) -> None:
    """Its checksum is right, so that only what is there can tell."""
    head = struct.pack("<Q", length)
    content = head + struct.pack("<I", masked_crc32c(head)) + b"data"
    path = folder / "false.tfrecord"
    path.write_bytes(gzip.compress(content) if compressed else content)
    tracemalloc.start()
    try:
        read, error = read_or_error(path, check=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not read
    assert error is not None
    assert_three_parts(error, path)
    assert peak < 8 << 20


@QUICK
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_an_example_or_an_error(content: bytes) -> None:
    features, told = result_or_error(lambda: parse_example(content, "here"))
    if features is None:
        assert told.startswith("here: its data must be a tf.train.Example, got at byte")
    else:
        assert all(isinstance(name, str) for name in features)


def test_example_cut_anywhere_is_an_error() -> None:
    data = encode_example(EXAMPLE)
    for length in range(1, len(data)):
        with pytest.raises(DataError, match="must be a tf.train.Example, got at byte"):
            parse_example(data[:length])
    assert parse_example(b"") == {}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_example_with_wrong_bytes_is_an_error_or_typed_values(data: st.DataObject) -> None:
    content = bytearray(encode_example(EXAMPLE))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    features, told = result_or_error(lambda: parse_example(bytes(content)))
    assert (features is None) == ("fetch the file again" in told)
    for value in (features or {}).values():
        if isinstance(value, list):
            assert all(isinstance(item, bytes) for item in value)
        else:
            assert value.dtype in (np.float32, np.int64)
            assert value.ndim == 1


def test_false_length_of_a_field_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        for before in (b"", b"\x0a\x1d", b"\x0a\x1f\x0a\x1d"):  # Features, a feature, its name
            with pytest.raises(DataError, match="longer than what holds it"):
                parse_example(before + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x0f" + b"x" * 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# RLDS folders

STEP = {"tensor": {"shape": {"dimensions": ["2"]}, "dtype": "float32", "encoding": "none"}}
SCHEMA = {
    "featuresDict": {"features": {"steps": {"sequence": {"feature": {"featuresDict": {"features": {"x": STEP}}}}}}}
}


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_damaged_schema_is_an_error_or_a_set(folder: Path, data: st.DataObject) -> None:
    rlds = folder / "rlds"
    rlds.mkdir(exist_ok=True)
    values = np.float32([[1, 2], [3, 4], [5, 6]])
    write_records(rlds / "a.tfrecord", [encode_example({"steps/x": values.reshape(-1)})])
    content = bytearray(json.dumps(SCHEMA).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(32, 126))
    (rlds / "features.json").write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )

    def read_first() -> RawEpisode:
        source = open_source("rlds", rlds, Options())
        return source.read(source.names()[0])

    episode, told = result_or_error(read_first)
    assert (episode is None) == ("got" in told)
    for column in episode.columns.values() if episode else ():
        assert np.array_equal(column.reshape(-1), values.reshape(-1).astype(column.dtype))


@pytest.mark.parametrize(
    "told",
    ["[", "[]", "3", '{"splits": 3}', '{"splits": [{"shardLengths": ["x"], "name": "a"}]}',
     '{"splits": [{"shardLengths": [1]}]}', '{"fileFormat": "array_record"}', "[" * 100_000],
)  # fmt: skip
def test_damaged_dataset_info_is_told(folder: Path, told: str) -> None:
    rlds = folder / "told"
    rlds.mkdir(exist_ok=True)
    write_records(rlds / "a.tfrecord", [encode_example({"steps/x": np.float32([1, 2])})])
    (rlds / "features.json").write_text(json.dumps(SCHEMA))
    (rlds / "dataset_info.json").write_text(told)
    with pytest.raises(DataError, match=r"dataset_info.json.*got"):
        open_source("rlds", rlds, Options())


@pytest.mark.parametrize(
    ("example", "told"),
    [
        ({"steps/x": np.float32([1, 2, 3])}, "must hold 2 numbers a step"),
        ({"steps/x": np.zeros(0, np.float32)}, "must have the same number of steps, at least 1, got none"),
        ({"steps/y": np.float32([1, 2])}, "'steps/x' must be there, .* got steps/y"),
        ({"steps/x": [b"a", b"b"]}, "must hold float32, got byte strings"),
    ],
)
def test_episode_that_is_not_as_its_schema_says_is_told(folder: Path, example: dict[str, object], told: str) -> None:
    rlds = folder / "other"
    rlds.mkdir(exist_ok=True)
    write_records(rlds / "a.tfrecord", [encode_example(example)])  # type: ignore[arg-type]
    (rlds / "features.json").write_text(json.dumps(SCHEMA))
    source = open_source("rlds", rlds, Options())
    with pytest.raises(DataError, match=f"record 0 at byte 0.*{told}"):
        source.read(source.names()[0])
