"""Arrays by name in one file that only grows: read through memory maps, written so that a kill loses the last at most.

```
<folder>/about.json     what it was made with; a store is only opened by who names the same
<folder>/index.jsonl    one line an array: name, place in the file, dtype, shape, and a digest of what it was made of
<folder>/arrays.bin     the arrays, one after the other
```
A line is written after its array: what the file holds past the last line was being written when the writer died.
"""

from __future__ import annotations

import fcntl
import json
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vap_gym.data.layout import write_json
from vap_gym.errors import CheckpointError

ABOUT, INDEX, ARRAYS = "about.json", "index.jsonl", "arrays.bin"
ALIGNMENT = 64  # bytes


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One array: where it is, what it is, and a digest of its source."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    digest: str

    @property
    def size(self) -> int:
        """In bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class Store:
    """A folder of named arrays.

    Args:
        folder: made if it is not there.
        about: plain JSON on what the arrays are made with.
        what: how errors call it.

    Raises:
        CheckpointError: the folder's arrays were made with something else, or are damaged.
    """

    def __init__(self, folder: Path, *, about: Mapping[str, Any], what: str = "cache") -> None:
        self.folder, self.what = folder, what
        wanted = json.loads(json.dumps(about))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ABOUT
        if not path.exists():
            write_json(path, wanted)
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self._damaged(f"{ABOUT} is no JSON ({error})") from error
        other = sorted(key for key in {*wanted, *given} if wanted.get(key) != given.get(key))
        if other:
            raise CheckpointError(
                f"The {what} '{folder}' was made with {_told(given, other)}, but now there is {_told(wanted, other)}. "
                "Remove that folder to make it anew, or name another."
            )
        self.entries: dict[str, Entry] = {}
        self._map: mmap.mmap | None = None
        self.reload()

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array, mapped and not to be written to."""
        entry = self.entries[name]
        if entry.size == 0:
            return np.zeros(entry.shape, entry.dtype)
        if self._map is None or len(self._map) < entry.offset + entry.size:
            with (self.folder / ARRAYS).open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        flat = np.frombuffer(self._map, entry.dtype, count=entry.size // np.dtype(entry.dtype).itemsize,
                             offset=entry.offset)  # fmt: skip
        return flat.reshape(entry.shape)

    def reload(self) -> None:
        """Read the index again, as after another process wrote."""
        self.entries = {}
        path = self.folder / INDEX
        for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():  # a line without its end is no line
            try:
                row = json.loads(line)
                entry = Entry(offset=row["offset"], dtype=row["dtype"], shape=tuple(row["shape"]), digest=row["digest"])
                self.entries[row["name"]] = entry
            except (ValueError, KeyError, TypeError) as error:
                raise self._damaged(f"{INDEX} has the line {line[:80]!r}") from error
        end = max((e.offset + e.size for e in self.entries.values()), default=0)
        there = (self.folder / ARRAYS).stat().st_size if (self.folder / ARRAYS).exists() else 0
        if there < end:
            raise self._damaged(f"{ARRAYS} has {there} bytes of {end}")

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Be the only writer; waits for others. What they wrote is there afterwards."""
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # gone with the process, however it ends
            self.reload()
            yield Writer(self)
            self.reload()

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"The {self.what} '{self.folder}' must be as it was written, got: {why}. Remove that folder to make it "
            "anew."
        )


class Writer:
    """Appends to a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        end = max((e.offset + e.size for e in store.entries.values()), default=0)
        self._end = end + -end % ALIGNMENT
        with (store.folder / ARRAYS).open("ab") as file:
            file.truncate(self._end)
        index = store.folder / INDEX
        if index.exists() and not (text := index.read_bytes()).endswith(b"\n"):
            with index.open("ab") as file:
                file.truncate(text.rfind(b"\n") + 1)

    def append(self, name: str, array: NDArray[Any], *, digest: str = "") -> None:
        """Write an array under a name that is not there yet."""
        assert name not in self._store.entries, name
        data = np.ascontiguousarray(array)
        entry = Entry(offset=self._end, dtype=data.dtype.name, shape=data.shape, digest=digest)
        pad = -data.nbytes % ALIGNMENT
        with (self._store.folder / ARRAYS).open("ab") as file:
            file.write(data.tobytes() + b"\0" * pad)
        row = {"name": name, "offset": entry.offset, "dtype": entry.dtype, "shape": list(entry.shape)}
        with (self._store.folder / INDEX).open("ab") as file:
            file.write(json.dumps(row | {"digest": digest}).encode() + b"\n")
        self._end += data.nbytes + pad
        self._store.entries[name] = entry


def _told(about: Mapping[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key} {_short(about.get(key))}" for key in keys)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:16]}…" if len(text) > 40 else text
