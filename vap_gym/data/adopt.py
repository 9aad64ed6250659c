"""Take an episode that was written into another set, under an index of one's own; nothing of it is encoded again.

Workers do not know which episodes before theirs will be kept, so they write into a set beside; whoever gathers gives
the final indices, in order and without gaps.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa

from vap_gym.data import layout, tables
from vap_gym.data.layout import DataError


def adopt(staged: str | Path, index: int, root: str | Path, new_index: int) -> None:
    """Move episode `index`, written but not gathered in `staged`, into the set `root` as `new_index`.

    It is in `root`, whole, before it leaves `staged`; after a kill between the two, do it again. The first episode
    gives `root` its features. Raises DataError where it is not there, the index is taken, or the sets differ.
    """
    staged, root = Path(staged), Path(root)
    source, folder = tables.pending_folder(staged, index), tables.pending_folder(root, new_index)
    taken = {int(row["episode_index"]) for row in tables.gathered_rows(root)}
    if not source.is_dir() or new_index in taken or folder.exists():
        given = f"no {source}" if not source.is_dir() else f"{new_index}, which '{root}' holds already"
        raise DataError(f"adopt needs a written episode and a free index, got {given}. Write it first, or count on.")
    ours, theirs = layout.read_info(staged), root / layout.INFO_PATH
    if not theirs.exists():
        layout.write_json(theirs, ours)
    there = layout.read_info(root)
    for key in ("fps", "features", layout.OUR_KEY):
        if there.get(key) != ours.get(key):
            raise DataError(
                f"'{staged}' must be a set like '{root}', got another '{key}'. Write both with the same settings."
            )
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        for path in sorted(source.iterdir()):
            if path.suffix == ".parquet":
                tables.write_table(building / path.name, _renumbered(tables.read_table(path), new_index))
            else:
                _linked(path, building / path.name)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(source)


def _renumbered(table: pa.Table, index: int) -> pa.Table:
    at = table.schema.get_field_index("episode_index")
    return table.set_column(at, "episode_index", pa.array([index] * table.num_rows, pa.int64()))


def _linked(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
