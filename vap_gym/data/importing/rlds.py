"""RLDS sets (TFDS folders of TFRecord files) as episodes, one record at a time, pictures as the bytes they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vap_gym.data.encoded import PictureBytes, decode_picture, picture_size
from vap_gym.data.importing import rlds_presets, rlds_schema, tfrecord
from vap_gym.data.importing.example import Value, parse_example
from vap_gym.data.importing.rlds_presets import Mapped, Steps
from vap_gym.data.importing.rlds_schema import STEPS, Leaf
from vap_gym.data.importing.source import Options, RawEpisode, Source
from vap_gym.data.layout import DataError

PROBED = 8  # episodes, spread over the set, that decide whether a view is blank throughout


def open_bridge(path: Path, options: Options) -> Source:
    """Open Bridge V2 as RLDS: a folder with features.json and records, or one of its TFRecord files."""
    return _open("rlds-bridge", path, options, robot="widowx", rate_hz=5.0, preset=rlds_presets.bridge)


def open_rt1(path: Path, options: Options) -> Source:
    """Open RT-1 as RLDS (`fractal20220817_data`)."""
    return _open("rlds-rt1", path, options, robot="google_robot", rate_hz=3.0, preset=rlds_presets.rt1)


def open_droid_rlds(path: Path, options: Options) -> Source:
    """Open DROID as RLDS. `options.action` names which of `action_dict` becomes `action`; None keeps `action`."""
    preset = partial(rlds_presets.droid, choice=options.action)
    return _open("rlds-droid", path, options, robot="panda_robotiq", rate_hz=15.0, preset=preset)


def open_rlds(path: Path, options: Options) -> Source:
    """Open any RLDS set. Features keep their names, with dots for slashes; no meaning is put on them."""
    return _open("rlds", path, options, robot="unknown", rate_hz=None, preset=rlds_presets.plain)


def _open(
    kind: str, path: Path, options: Options, *, robot: str, rate_hz: float | None, preset: Callable[[Steps], Mapped]
) -> RldsSource:
    if options.action is not None and kind != "rlds-droid":
        raise DataError(
            f"Kind '{kind}' has one logged action and must go without a choice, got {options.action!r}. Leave it out."
        )
    if options.map_path is not None:
        raise DataError(
            f"Kind '{kind}' must go without a field map, got '{options.map_path}'. "
            "rlds-bridge, rlds-rt1 and rlds-droid have maps of their own; 'files' takes one."
        )
    path = _version_folder(path)
    shards = tfrecord.shards_of(path)
    folder = path if path.is_dir() else path.parent
    source = RldsSource(
        kind=kind,
        path=path,
        robot=options.robot or robot,
        rate_hz=rate_hz,
        preset=preset,
        leaves=rlds_schema.read_schema(folder),
        shards={shard.name: shard for shard in shards},
        stated=rlds_schema.shard_lengths(folder),
    )
    source.check_schema()
    return source


@dataclass(frozen=True, kw_only=True)
class RldsSource:
    """An RLDS set. Episodes are named by their file and record: `bridge-train.tfrecord-00000-of-00064:00012`."""

    kind: str
    path: Path
    robot: str
    rate_hz: float | None
    preset: Callable[[Steps], Mapped]
    leaves: Mapping[str, Leaf]
    shards: Mapping[str, Path]
    stated: Mapping[tuple[str, int], int]
    _offsets: dict[str, tuple[list[int], DataError | None]] = field(default_factory=dict, repr=False)
    _blank: list[frozenset[str]] = field(default_factory=list, repr=False)  # one entry, once it was looked for

    def names(self) -> Sequence[str]:
        """Names of all episodes, those that are damaged or missing at the end of a file included."""
        return [f"{shard}:{number:05d}" for shard in self.shards for number in range(self._count(shard))]

    def read(self, name: str) -> RawEpisode:
        """Read one episode: pictures as bytes, states and actions exactly. Raises DataError where it is damaged."""
        record = self._record(name)
        example = parse_example(record.data, record.where)
        steps = rlds_schema.count_steps(example, self.leaves, record.where)
        arrays = {
            leaf.key.removeprefix(STEPS): rlds_schema.numbers(example, leaf, steps, record.where)
            for leaf in self.leaves.values()
            if leaf.is_step and leaf.kind == "numbers"
        }
        try:
            mapped = self.preset(arrays)
        except DataError as error:
            raise DataError(f"{record.where}: {error}") from error
        left_out = [leaf.key for leaf in self.leaves.values() if leaf.kind == "unreadable"]
        columns = dict(mapped.columns)
        for key, array in arrays.items():
            if key in mapped.used:
                continue
            if "embedding" in key:  # hundreds of numbers that repeat the instruction at every step
                left_out.append(STEPS + key)
            else:
                column = rlds_presets.column_name(key)
                columns[f"source.{column}" if column in columns else column] = array
        views, notes = self._views(example, record.where)
        texts = self._texts(example, record.where)
        info = {**mapped.info, **notes}
        info |= {"metadata": self._metadata(example, record.where), "texts": texts}
        if left_out:
            info["left_out"] = sorted(left_out)
        return RawEpisode(
            name=name, views=views, columns=columns, task=_instruction(texts), info=info, rate_hz=self.rate_hz
        )

    def check_schema(self) -> None:
        """Refuse, at opening, a set whose features are not those that the kind's map needs."""
        blanks = {
            leaf.key.removeprefix(STEPS): np.zeros((2, *leaf.shape), leaf.dtype)
            for leaf in self.leaves.values()
            if leaf.is_step and leaf.kind == "numbers"
        }
        rlds_presets.check_fields(self.kind, blanks)

    def _count(self, shard: str) -> int:
        split = rlds_schema.split_of(self.shards[shard])
        stated = self.stated.get(split) if split else None
        return len(self._found(shard)[0]) if stated is None else stated

    def _found(self, shard: str) -> tuple[list[int], DataError | None]:
        if shard not in self._offsets:
            self._offsets[shard] = tfrecord.record_offsets(self.shards[shard])
        return self._offsets[shard]

    def _record(self, name: str) -> tfrecord.Record:
        shard, _, text = name.rpartition(":")
        if shard not in self.shards or not text.isdecimal() or int(text) >= self._count(shard):
            raise DataError(
                f"An episode of '{self.path}' must be named by file and record, as names() lists them, got {name!r}. "
                f"The first is {next(iter(self.names()), 'none')!r}."
            )
        number, path = int(text), self.shards[shard]
        offsets, damage = self._found(shard)
        if number >= len(offsets):
            ending = f"the file is damaged before it ({damage})" if damage else f"the file ends after {len(offsets)}"
            raise DataError(
                f"{path}: record {number} must be there, since dataset_info.json counts {self._count(shard)}, "
                f"got none: {ending}. Fetch the file again."
            )
        with tfrecord.opened(path) as file:
            return tfrecord.read_record(file, path, number, offsets[number])

    def _views(self, example: Mapping[str, Value], where: str) -> tuple[dict[str, PictureBytes], dict[str, Any]]:
        """Pictures by view, and what is to be said of them."""
        out = self._blank_throughout()
        views: dict[str, PictureBytes] = {}
        notes: dict[str, Any] = {}
        for leaf in self.leaves.values():
            if leaf.kind != "picture" or not leaf.is_step:
                continue
            files, view = rlds_schema.byte_strings(example, leaf, where), _view_name(leaf)
            blank = _is_blank(files, where)
            if view in out:
                notes.setdefault("views_left_out", {})[view] = "blank" if blank else "blank elsewhere, not here"
                continue
            if blank:
                notes.setdefault("blank_views", []).append(view)
            elif len(files) > 1 and len(set(files)) == 1:
                notes.setdefault("frozen_views", []).append(view)
            _check_sizes(files, leaf, where)
            views[view] = PictureBytes(files=files)
        return views, notes

    def _blank_throughout(self) -> frozenset[str]:
        """Views that are blank in episodes spread over the set (Bridge has up to four cameras, often one or two)."""
        if not self._blank:
            seen: Counter[str] = Counter()
            names, read = self.names(), 0
            for i in sorted({round(x) for x in np.linspace(0, len(names) - 1, PROBED)}) if names else []:
                try:
                    record = self._record(names[i])
                    example = parse_example(record.data, record.where)
                    pictures = [leaf for leaf in self.leaves.values() if leaf.kind == "picture" and leaf.is_step]
                    blank = [
                        _view_name(leaf)
                        for leaf in pictures
                        if _is_blank(rlds_schema.byte_strings(example, leaf, record.where), record.where)
                    ]
                except DataError:
                    continue  # told when that episode is read
                seen.update(blank)
                read += 1
            self._blank.append(frozenset(view for view, count in seen.items() if count == read))
        return self._blank[0]

    def _texts(self, example: Mapping[str, Value], where: str) -> dict[str, str]:
        """Texts of the steps, that of the first step where one is there, by name."""
        found = {}
        for leaf in self.leaves.values():
            if leaf.kind == "text" and leaf.is_step:
                texts = [text for text in rlds_schema.byte_strings(example, leaf, where) if text]
                found[leaf.key.removeprefix(STEPS)] = texts[0].decode("utf-8", "replace") if texts else ""
        return found

    def _metadata(self, example: Mapping[str, Value], where: str) -> dict[str, Any]:
        """Texts and numbers that belong to the whole episode, as plain JSON."""
        found: dict[str, Any] = {}
        for leaf in self.leaves.values():
            if leaf.is_step or leaf.key not in example:
                continue
            name = leaf.key.removeprefix("episode_metadata/")
            if leaf.kind == "text":
                found[name] = b" ".join(rlds_schema.byte_strings(example, leaf, where)).decode("utf-8", "replace")
            elif leaf.kind == "numbers":
                values = rlds_schema.numbers(example, leaf, None, where)
                finite = bool(np.isfinite(values).all())
                found[name] = values.tolist() if finite else [str(value) for value in values.reshape(-1)]
        return found


def _version_folder(path: Path) -> Path:
    """The folder of records within `bridge_dataset/1.0.0/`, where only `bridge_dataset/` is named."""
    if path.is_file() or (path / "features.json").is_file():
        return path
    inner = sorted(folder for folder in path.iterdir() if (folder / "features.json").is_file())
    if len(inner) > 1:
        raise DataError(
            f"'{path}' must hold one version of a set, got {', '.join(folder.name for folder in inner)}. "
            "Name one of them."
        )
    return inner[0] if inner else path


def _view_name(leaf: Leaf) -> str:
    """`steps/observation/image_0` → `image_0`."""
    return leaf.key.removeprefix(STEPS).removeprefix("observation/").replace("/", ".")


def _instruction(texts: Mapping[str, str]) -> str:
    """The first text, in the order that sets name their instructions, that is not empty."""
    keys = [key for key in texts if key.rsplit("/", 1)[-1].endswith(("instruction", "instruction_2", "instruction_3"))]
    return next((texts[key] for key in sorted(keys) if texts[key]), "")


def _is_blank(files: Sequence[bytes], where: str) -> bool:
    """Whether all pictures are the same file, of one colour."""
    if len(set(files)) != 1:
        return False
    picture = decode_picture(files[0], f"{where}: a picture")
    return bool((picture == picture[0, 0]).all())


def _check_sizes(files: Sequence[bytes], leaf: Leaf, where: str) -> None:
    """Refuse pictures of another size than the schema's, or of several sizes."""
    wanted: tuple[int, int] | None = None
    for i, content in enumerate(files):
        height, width = picture_size(content, f"{where}: '{leaf.key}' at step {i}")
        if wanted is None:
            wanted = (
                leaf.shape[0] if leaf.shape[0] > 0 else height,
                leaf.shape[1] if leaf.shape[1] > 0 else width,
            )
        if (height, width) != wanted:
            raise DataError(
                f"{where}: '{leaf.key}' must be {wanted[0]}x{wanted[1]} px at all steps, got {height}x{width} at step "
                f"{i}. The file belongs to another features.json, or is damaged: fetch both again."
            )
