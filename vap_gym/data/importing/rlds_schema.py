"""What an RLDS data set says it holds (TFDS's features.json, dataset_info.json), and its examples as typed arrays."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vap_gym.data.importing.example import Value
from vap_gym.data.importing.tfrecord import shard_place
from vap_gym.data.layout import DTYPES, DataError

STEPS = "steps/"


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One feature. `key` is its flattened name ("steps/observation/image_0"); `shape` is that of one step."""

    key: str
    kind: Literal["numbers", "picture", "text", "unreadable"]
    dtype: str = ""
    shape: tuple[int, ...] = ()
    encoding: str = "none"

    @property
    def is_step(self) -> bool:
        """Whether it has a value at every step, or one for the episode."""
        return self.key.startswith(STEPS)


def read_schema(folder: Path) -> dict[str, Leaf]:
    """Return the features of a TFDS folder by flattened name, from its features.json.

    Raises DataError where the file is missing, of another layout, or has no steps.
    """
    described = read_json(folder / "features.json", "TFDS writes it beside the records: copy it there.")
    leaves = {leaf.key: leaf for leaf in _leaves(described, "")}
    if not any(leaf.is_step and leaf.kind != "unreadable" for leaf in leaves.values()):
        raise DataError(
            f"{folder / 'features.json'} must describe an RLDS episode, a FeaturesDict with a Dataset 'steps', got "
            f"{', '.join(leaves) or 'no feature'}. Other TFDS sets hold no episodes; name an RLDS one."
        )
    return leaves


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file of a recording, or raise DataError with the remedy."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} must be a JSON file that can be read, got: {error}. {remedy}") from error


def shard_lengths(folder: Path) -> dict[tuple[str, int], int]:
    """Return how many records each shard has, by (split, number), from dataset_info.json; {} where it is absent."""
    path = folder / "dataset_info.json"
    if not path.is_file():
        return {}
    told = read_json(path, "Remove it to go by the records alone.")
    lengths: dict[tuple[str, int], int] = {}
    try:
        stored = told.get("fileFormat", "tfrecord")
        if stored != "tfrecord":
            raise DataError(
                f"{path}: the records must be of the format 'tfrecord', got {stored!r}. "
                "Write them again by tfds.builder(…, file_format='tfrecord')."
            )
        for split in told.get("splits", []):
            for i, length in enumerate(split.get("shardLengths", [])):
                lengths[str(split["name"]), i] = int(length)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} must list splits with names and shardLengths, got: {error!r}. "
            "Remove it to go by the records alone."
        ) from error
    return lengths


def split_of(shard: Path) -> tuple[str, int] | None:
    """Return (split, number) of a shard named `<set>-<split>.tfrecord-00003-of-00064`, None for other names."""
    place, stem = shard_place(shard.name), shard.name.split(".tfrecord")[0]
    return (stem.rsplit("-", 1)[-1], place[0]) if place and "-" in stem else None


def count_steps(example: Mapping[str, Value], leaves: Mapping[str, Leaf], where: str) -> int:
    """Return the number of steps of an episode; DataError where its features do not agree on it."""
    counts: dict[str, int] = {}
    for leaf in leaves.values():
        if leaf.is_step and leaf.kind != "unreadable":
            values = _given(example, leaf, where)
            one_each = leaf.kind in ("picture", "text") or leaf.encoding != "none"
            width = 1 if one_each else int(np.prod(leaf.shape, dtype=np.int64))
            if len(values) % width:
                raise DataError(
                    f"{where}: '{leaf.key}' must hold {width} numbers a step, as features.json says, got {len(values)} "
                    "in all. The file belongs to another features.json: fetch both from the same version."
                )
            counts[leaf.key] = len(values) // width
    first = next(iter(counts.values()))
    other = next((key for key, count in counts.items() if count != first), None)
    if other is not None or first == 0:
        key = next(iter(counts))
        given = f"{counts[other]} of '{other}' and {first} of '{key}'" if other else "none"
        raise DataError(f"{where}: all features must have the same number of steps, at least 1, got {given}. {_OTHER}")
    return first


def numbers(example: Mapping[str, Value], leaf: Leaf, steps: int | None, where: str) -> NDArray[Any]:
    """Return the values of a feature, (T, …) or for an episode's own (…), in the dtype that the schema states.

    The values are those of the file; float32 is widened where the schema says float64. Raises DataError where they
    do not fit.
    """
    values = _given(example, leaf, where)
    shape = leaf.shape if steps is None else (steps, *leaf.shape)
    dtype = np.dtype(leaf.dtype)
    if leaf.encoding != "none":
        array = _unpacked(values, leaf, where)
    elif isinstance(values, list):
        raise DataError(f"{where}: '{leaf.key}' must hold {leaf.dtype}, got byte strings. {_OTHER}")
    else:
        array = values
    if array.size != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{where}: '{leaf.key}' must have the shape {shape}, got {array.size} numbers. {_OTHER}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
    if array.dtype.kind == "i" and not np.array_equal(cast.astype(np.int64), array):
        raise DataError(f"{where}: '{leaf.key}' must fit {leaf.dtype}, got {array.min()} to {array.max()}. {_OTHER}")
    return cast.reshape(shape)


def byte_strings(example: Mapping[str, Value], leaf: Leaf, where: str) -> list[bytes]:
    """Return the byte strings of a feature: texts, or pictures as they are stored."""
    values = _given(example, leaf, where)
    if not isinstance(values, list):
        raise DataError(f"{where}: '{leaf.key}' must hold byte strings, got {values.dtype}. {_OTHER}")
    return values


_OTHER = "The file is damaged, or belongs to another features.json: fetch both again."


def _given(example: Mapping[str, Value], leaf: Leaf, where: str) -> Value:
    if leaf.key not in example:
        raise DataError(
            f"{where}: '{leaf.key}' must be there, as features.json says, got {', '.join(sorted(example)) or 'none'}. "
            f"{_OTHER}"
        )
    return example[leaf.key]


def _unpacked(values: Value, leaf: Leaf, where: str) -> NDArray[Any]:
    """Tensors that were stored as bytes, packed by zlib or not."""
    size = int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize
    if not isinstance(values, list):
        raise DataError(f"{where}: '{leaf.key}' must hold byte strings, got {values.dtype}. {_OTHER}")
    try:
        plain = [
            zlib.decompressobj().decompress(item, size + 1) if leaf.encoding == "zlib" else item for item in values
        ]
    except zlib.error as error:
        raise DataError(f"{where}: '{leaf.key}' must be packed by zlib, got: {error}. {_OTHER}") from error
    for item in plain:
        if len(item) != size:
            raise DataError(f"{where}: '{leaf.key}' must hold {size} bytes a step, got {len(item)}. {_OTHER}")
    return np.frombuffer(b"".join(plain), np.dtype(leaf.dtype).newbyteorder("<"))


def _leaves(described: Any, key: str, *, nested: int = 0) -> Iterator[Leaf]:
    """Walk a Feature of TFDS's JSON. A Dataset within a Dataset, or a Sequence, has ragged rows: unreadable here."""
    try:
        if "featuresDict" in described:
            for name, inner in described["featuresDict"]["features"].items():
                yield from _leaves(inner, f"{key}/{name}" if key else name, nested=nested)
        elif "sequence" in described:
            if nested or key != "steps":
                yield Leaf(key=key, kind="unreadable")
            else:
                yield from _leaves(described["sequence"]["feature"], key, nested=1)
        elif "image" in described:
            shape = _shape(described["image"])
            readable = len(shape) == 3 and shape[2] == 3 and described["image"].get("dtype", "uint8") == "uint8"
            yield Leaf(key=key, kind="picture" if readable else "unreadable", dtype="uint8", shape=shape)
        elif "text" in described:
            yield Leaf(key=key, kind="text")
        elif "tensor" in described:
            yield _tensor(described["tensor"], key)
        else:
            yield Leaf(key=key, kind="unreadable")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"features.json must describe features as TFDS 4.4 and later do, got at '{key or 'its root'}': {error!r}. "
            "Write the set again with a newer TFDS, or fetch the file again."
        ) from error


def _tensor(described: Mapping[str, Any], key: str) -> Leaf:
    shape, dtype = _shape(described), str(described["dtype"])
    if dtype == "string":
        return Leaf(key=key, kind="text" if not shape else "unreadable")
    encoding = str(described.get("encoding", "none")).lower()
    readable = dtype in DTYPES and min(shape, default=1) > 0 and encoding in ("none", "bytes", "zlib")
    return Leaf(key=key, kind="numbers" if readable else "unreadable", dtype=dtype, shape=shape, encoding=encoding)


def _shape(described: Mapping[str, Any]) -> tuple[int, ...]:
    dimensions: Sequence[Any] = described.get("shape", {}).get("dimensions", [])
    return tuple(int(n) for n in dimensions)
