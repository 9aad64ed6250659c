"""Precomputed latents and what clips need beside them: made once per codec, data set and view, checked at each opening.

A latent cache is a `Store` with, for every episode, its latents (float16) and a table of figures (float32, `COLUMNS`).
For codecs that take several frames to a latent it holds clips in place of episodes, see `add_clips`. A prompt cache
holds drawn prompts, packed; it pays where drawing costs more than unpacking (meshes and depth).
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8
from numpy.typing import NDArray
from torch import nn

from vap_gym.data.clip_plan import Place
from vap_gym.data.conventions import CARTESIAN, GRIPPER, JOINTS, camera_of, has_camera
from vap_gym.data.cropping import Crop, crop_for
from vap_gym.data.episodes import EpisodeSet
from vap_gym.data.layout import DataError
from vap_gym.errors import CheckpointError, unknown_name
from vap_gym.train.video_store import Store

Encode = Callable[[UInt8[np.ndarray, "T H W 3"]], Float32[np.ndarray, "F C h w"]]
ItemT = TypeVar("ItemT")
FORMAT = 1
SPOT = 0.06
"""So far may a picture's latents be from the cache's, in the mean: other threads and machines round otherwise."""

PROMPT_VIEW = "prompt"
COLUMNS: Mapping[str, tuple[tuple[str, slice | None], ...]] = {
    "commanded_q": (("nominal.joint_position", None),),
    "commanded_closed": (("nominal.gripper_position", None),),
    "commanded_pose": (("nominal.cartesian_position", None),),
    "achieved_q": ((JOINTS, None),),
    "achieved_closed": ((GRIPPER, None), ("observation.state", slice(6, 7))),
    "achieved_pose": ((CARTESIAN, None), ("observation.state", slice(0, 6))),
    "objects_m": (("objects_m", None),),
    "tool_m": (("tool_m", None),),
}
"""Where each column of the table is read: the first of these that the set has, and which part of it."""


def sha256_of(model: nn.Module) -> str:
    """A hash of a model's weights, by name: the same wherever and however they were stored."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Source:
    """One view of one data set, as models see it: pictures of one size, and a camera that goes with them.

    Args:
        root: folder of the set.
        view: may be left out where there is one beside the view `prompt`.
        frame_size_px: (width, height); recordings of other shapes are cropped about their centre, then resized.
    """

    def __init__(self, root: Path, *, view: str = "", frame_size_px: tuple[int, int] = (144, 96)) -> None:
        self.episodes = EpisodeSet(root)
        features = self.episodes.features
        views = [name for name in features.views if name != PROMPT_VIEW]
        if not view and len(views) != 1:
            raise DataError(f"'{root}' has the views {', '.join(views) or 'none'}: name one of them with `view`.")
        self.view = view or views[0]
        if self.view not in features.views:
            raise unknown_name("view", self.view, features.views)
        height, width = features.views[self.view]
        self.recorded_px, self.frame_size_px = (width, height), frame_size_px
        self.crop: Crop = crop_for(self.recorded_px, frame_size_px)
        self.has_prompts = PROMPT_VIEW in features.views
        self.columns = {
            name: found
            for name, places in COLUMNS.items()
            if (found := next((p for p in places if p[0] in features.columns), None)) is not None
        }
        self.layout = self._layout()

    def members(self, first: int = 0) -> list[int]:
        """Positions of the episodes, or of the first so many."""
        return list(range(min(first or len(self.episodes), len(self.episodes))))

    def frames(self, i: int) -> UInt8[np.ndarray, "T H W 3"]:
        """The pictures of the i-th episode."""
        frames = self.episodes.read(i, views=[self.view], labels=(), columns=()).frames[self.view]
        return self.crop.pictures(np.ascontiguousarray(frames))

    def prompts(self, i: int) -> UInt8[np.ndarray, "T H W 3"]:
        """The prompts that are stored as pictures."""
        frames = self.episodes.read(i, views=[PROMPT_VIEW], labels=(), columns=()).frames[PROMPT_VIEW]
        is_depth = self.episodes.info(i).get("prompt") == "depth"
        return self.crop.pictures(np.ascontiguousarray(frames), nearest=is_depth)

    def table(self, i: int) -> Float32[np.ndarray, "T X"]:
        """The figures of the i-th episode, laid out as `layout` says; NaN where it does not tell them."""
        names = {name for name, _ in self.columns.values()}
        wanted = names | {n for n in self.episodes.features.columns if n.startswith("camera.")}
        columns = self.episodes.read(i, views=(), labels=(), columns=sorted(wanted)).columns
        rows = self.episodes.length(i)
        table = np.full((rows, max(stop for _, stop in self.layout.values())), np.nan, np.float32)
        for name, (column, part) in self.columns.items():
            values = np.asarray(columns[column], np.float32).reshape(rows, -1)
            table[:, slice(*self.layout[name])] = values if part is None else values[:, part]
        if has_camera(columns, self.view):
            camera = self.crop.camera(camera_of(columns, self.view, self.recorded_px))
            table[:, slice(*self.layout["K"])] = camera.K.reshape(rows, 9).float().numpy()
            table[:, slice(*self.layout["T_world_camera"])] = camera.T_world_camera.reshape(rows, 16).float().numpy()
        return table

    def digest(self, i: int) -> str:
        """A short hash of what the set says of the i-th episode: length, task, and how it was made."""
        what = [self.episodes.length(i), self.episodes.task(i), self.episodes.info(i)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    def _layout(self) -> dict[str, tuple[int, int]]:
        """For each column of the table where it begins and ends."""
        features, layout, end = self.episodes.features, {}, 0
        widths = {"K": 9, "T_world_camera": 16}
        for name, (column, part) in self.columns.items():
            widths[name] = features.columns[column].width if part is None else part.stop - part.start
        for name, width in widths.items():
            layout[name] = (end, end + width)
            end += width
        return layout


def open_latents(root: Path, source: Source, *, codec_sha256: str, clips: Mapping[str, Any] | None = None) -> Store:
    """Open (or begin) the cache of a source's latents under `root`.

    Args:
        codec_sha256: `sha256_of` the codec.
        clips: for codecs that take several frames to a latent, what all clips have in common.

    Raises:
        CheckpointError: it was made with another codec, view or size, or it is damaged.
    """
    set_path = source.episodes.root.resolve()
    about = {"format": FORMAT, "data": str(set_path), "view": source.view, "frame_size_px": source.frame_size_px}
    about |= {"layout": source.layout} | ({"clips": dict(clips)} if clips else {})
    key = hashlib.sha256(json.dumps(about | {"codec_sha256": codec_sha256}, sort_keys=True).encode()).hexdigest()
    folder = root / f"{set_path.name}-{source.view}-{key[:10]}"
    return Store(folder, about=about | {"codec_sha256": codec_sha256}, what="latent cache")


def add_episodes(store: Store, source: Source, members: Sequence[int], encode: Encode) -> int:
    """Encode those of the episodes that are not in the cache yet; return how many. It may be stopped at any time.

    Raises:
        CheckpointError: an episode has changed since, or the codec gives other latents than those in the cache.
    """
    _check(store, source, members, encode)
    if all(_name(source, i) in store for i in members):
        return 0
    added = 0
    with store.writing() as writer:
        for i in _told(members, f"encoding {source.episodes.root}", lambda i: _name(source, i) in store):
            digest = source.digest(i)
            if (table := f"{_name(source, i)}/table") not in store:
                writer.append(table, source.table(i), digest=digest)
            writer.append(_name(source, i), encode(source.frames(i)).astype(np.float16), digest=digest)
            added += 1
    return added


def add_tables(store: Store, source: Source, members: Sequence[int]) -> None:
    """Add the figures of episodes without their latents."""
    if all(f"{_name(source, i)}/table" in store for i in members):
        return
    with store.writing() as writer:
        for i in _told(members, f"reading {source.episodes.root}", lambda i: f"{_name(source, i)}/table" in store):
            writer.append(f"{_name(source, i)}/table", source.table(i), digest=source.digest(i))


def add_clips(
    store: Store, source: Source, places: Iterable[Place], frames: Callable[[Place], NDArray[np.uint8]], encode: Encode
) -> int:
    """Encode the clips at these places that are not in the cache yet, from their frames; return how many.

    Raises:
        CheckpointError: an episode has changed since.
    """
    wanted = {clip_name(source, place): place for place in places}
    for name, place in wanted.items():
        if name in store:
            _same(store, source, place.episode, name)
    if all(name in store for name in wanted):
        return 0
    added = 0
    with store.writing() as writer:
        for name in _told(list(wanted), f"encoding clips of {store.folder.name}", lambda name: name in store):
            place = wanted[name]
            writer.append(name, encode(frames(place)).astype(np.float16), digest=source.digest(place.episode))
            added += 1
    return added


def clip_name(source: Source, place: Place) -> str:
    """The name of a clip's latents: where it lies, so that other settings never find the latents of another clip."""
    return f"clip-{_name(source, place.episode)}-{place.start}-{place.stride}"


def latents_of(store: Store, source: Source, i: int) -> Shaped[np.ndarray, "T C h w"]:
    """The latents of an episode, mapped."""
    return store[_name(source, i)]


def table_of(store: Store, source: Source, i: int) -> Float32[np.ndarray, "T X"]:
    """The figures of an episode, mapped."""
    return store[f"{_name(source, i)}/table"]


def add_prompts(
    root: Path, source: Source, members: Sequence[int], draw: Callable[[int], NDArray[np.uint8]], drawn: str
) -> Store:
    """Open the cache of drawn prompts and add those of episodes that are not in it yet.

    Args:
        draw: returns the prompts of an episode, uint8 (T, H, W, P).
        drawn: what the pictures depend on beside the data set: kind, robot, which states.
    """
    about = {"format": FORMAT, "data": str(source.episodes.root.resolve()), "view": source.view, "drawn": drawn}
    about["frame_size_px"] = source.frame_size_px
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:10]
    store = Store(root / f"{source.episodes.root.resolve().name}-prompts-{key}", about=about, what="prompt cache")
    done = [i for i in members if _name(source, i) in store]
    for i in done:
        _same(store, source, i)
    if done and not np.array_equal(unpacked(store[_name(source, done[0])]), draw(done[0])):
        raise CheckpointError(
            f"The prompt cache '{store.folder}' must hold what is drawn now, got other pictures of episode "
            f"{_name(source, done[0])}. Remove that folder to make it anew."
        )
    if len(done) < len(members):
        with store.writing() as writer:
            for i in _told(members, f"drawing {source.episodes.root}", lambda i: _name(source, i) in store):
                writer.append(_name(source, i), packed(draw(i)), digest=source.digest(i))
    return store


def packed(pictures: UInt8[np.ndarray, "T H W P"]) -> UInt8[np.ndarray, " bytes"]:
    """Pictures as one array of bytes, each by itself, so that some can be unpacked without the others."""
    parts = [zlib.compress(picture.tobytes(), 1) for picture in pictures]
    head = np.array([*pictures.shape, *(len(part) for part in parts)], np.uint32)
    return np.concatenate([head.view(np.uint8), np.frombuffer(b"".join(parts), np.uint8)])


def unpacked(data: UInt8[np.ndarray, " bytes"], frames: Sequence[int] | None = None) -> UInt8[np.ndarray, "T H W P"]:
    """All or some of the pictures that were packed."""
    count, height, width, channels = (int(n) for n in data[:16].view(np.uint32))
    ends = 16 + 4 * count + np.cumsum(data[16 : 16 + 4 * count].view(np.uint32).astype(np.int64))
    starts = np.concatenate([[16 + 4 * count], ends[:-1]])
    chosen = range(count) if frames is None else frames
    parts = [zlib.decompress(data[starts[t] : ends[t]].tobytes()) for t in chosen]
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, height, width, channels)


def _check(store: Store, source: Source, members: Sequence[int], encode: Encode) -> None:
    """Refuse a cache of another data set of the same name, and one that other code or another codec made."""
    done = [i for i in members if _name(source, i) in store]
    for i in done:
        _same(store, source, i)
    for i in {done[0], done[-1]} if done else ():
        kept = latents_of(store, source, i)[:1].astype(np.float32)
        frames = source.frames(i)
        if len(kept) != 1 or len(latents_of(store, source, i)) != len(frames):
            off = np.inf
        else:
            off = float(np.abs(encode(frames[:1]) - kept).mean())
        if not off <= SPOT:
            raise CheckpointError(
                f"The latent cache '{store.folder}' must hold what the codec gives, got latents of episode "
                f"{_name(source, i)} that are {off:.3g} away. Remove that folder to make it anew."
            )


def _same(store: Store, source: Source, i: int, name: str = "") -> None:
    name = name or _name(source, i)
    if store.entries[name].digest != source.digest(i):
        raise CheckpointError(
            f"The {store.what} '{store.folder}' holds another episode {name} than '{source.episodes.root}' has now: "
            "the set was written anew. Remove the cache's folder to make it anew."
        )


def _name(source: Source, i: int) -> str:
    return str(source.episodes.index(i))


def _told(items: Sequence[ItemT], what: str, done: Callable[[ItemT], bool]) -> Any:
    """The items that are not done, with a bar of progress."""
    from tqdm import tqdm

    return tqdm([i for i in items if not done(i)], desc=what, unit="item", mininterval=5)
