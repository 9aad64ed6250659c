"""Clips and masks from whatever they are kept in: a video, a .npz or .npy, a folder of pictures, or a folder of those.

A file of several arrays is told which by a colon: `masks.npz:annotation`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vap_gym.data.layout import DataError
from vap_gym.data.video import read_video

VIDEOS, ARRAYS, PICTURES = (".mp4", ".mkv", ".mov", ".avi", ".webm"), (".npz", ".npy"), (".png", ".jpg", ".jpeg")
KINDS = "a video (.mp4), an array (.npz, .npy), a folder of pictures (.png, .jpg), or a folder of videos or arrays"
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ClipFile:
    """Where one clip is: a file or a folder of pictures, and which array of a file."""

    path: Path
    key: str | None = None


def find_clips(place: str) -> dict[str, ClipFile] | ClipFile:
    """Return the one clip at a place, or the clips of a folder by name (without its ending).

    Raises:
        DataError: nothing is there, or nothing that is a clip, or both pictures and videos.
    """
    path, key = Path(place), None
    if not path.exists() and ":" in place:
        before, _, after = place.rpartition(":")
        if Path(before).suffix in ARRAYS and after:
            path, key = Path(before), after
    if path.is_file():
        if path.suffix.lower() not in VIDEOS + ARRAYS:
            raise DataError(f"'{path}' must be a clip, got a file ending in '{path.suffix}'. Give {KINDS}.")
        return ClipFile(path=path, key=key)
    if not path.is_dir():
        raise DataError(f"No clip at '{path}', got no such file. Give {KINDS}.")
    inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    clips = [p for p in inside if p.suffix.lower() in VIDEOS + ARRAYS]
    clips += [p for p in inside if p.is_dir() and _pictures(p)]
    if _pictures(path) and not clips:
        return ClipFile(path=path)
    if not clips or _pictures(path):
        given = "pictures beside clips" if clips else f"{len(inside)} files of other kinds"
        raise DataError(f"'{path}' must hold either pictures or clips, got {given}. Give {KINDS}.")
    named = {p.stem if p.is_file() else p.name: ClipFile(path=p) for p in clips}
    if len(named) < len(clips):
        twice = sorted({p.stem for p in clips if sum(q.stem == p.stem for q in clips) > 1})
        raise DataError(
            f"'{path}' must hold each clip once, got {', '.join(twice[:4])} several times. Remove the others."
        )
    return named


def paired(a: str, b: str) -> dict[str, tuple[ClipFile, ClipFile]]:
    """Return the pairs to compare, by name: one of two clips, or those of two folders by their names.

    Raises:
        DataError: a clip against a folder of clips, or folders with other names in them.
    """
    left, right = find_clips(a), find_clips(b)
    if isinstance(left, ClipFile) and isinstance(right, ClipFile):
        return {left.path.stem: (left, right)}
    if not isinstance(left, Mapping) or not isinstance(right, Mapping):
        one, many = (a, b) if isinstance(left, ClipFile) else (b, a)
        raise DataError(
            f"Two clips or two folders of clips can be compared, got the clip '{one}' and the folder '{many}'."
        )
    alone = sorted(left.keys() ^ right.keys())
    if alone:
        told = ", ".join(f"{name} (only in '{a if name in left else b}')" for name in alone[:4])
        more = f" and {len(alone) - 4} more" if len(alone) > 4 else ""
        raise DataError(f"Both folders must hold clips of the same names, got {told}{more}. Rename or remove them.")
    return {name: (left[name], right[name]) for name in sorted(left)}


def read_frames(clip: ClipFile) -> Array:
    """Return a clip's frames, uint8 RGB (T, H, W, 3).

    Raises:
        DataError: it cannot be read, or holds no such array.
    """
    if clip.path.suffix.lower() in VIDEOS:
        return read_video(clip.path)
    if clip.path.is_dir():
        return _stacked([_opened(p, "RGB") for p in _pictures(clip.path)], clip.path)
    return _chosen(clip, "uint8 frames (T, H, W, 3)", lambda x: x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] == 3)


def read_masks(clip: ClipFile) -> Array:
    """Return a clip's masks, bool (T, H, W): what is not 0 in arrays and pictures, what is light in a video.

    Raises:
        DataError: it cannot be read, or holds no such array.
    """
    if clip.path.suffix.lower() in VIDEOS:
        return np.asarray(read_video(clip.path).mean(axis=3) > 127)
    if clip.path.is_dir():
        pictures = [_opened(p, None) for p in _pictures(clip.path)]
        return _stacked([p if p.ndim == 2 else p[..., :3].max(axis=2) for p in pictures], clip.path) > 0
    return (
        _chosen(clip, "masks (T, H, W) of bool or whole numbers", lambda x: x.dtype.kind in "biu" and x.ndim == 3) > 0
    )


def _pictures(folder: Path) -> list[Path]:
    """Pictures of a folder in the order of the numbers in their names: 2.png before 10.png."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
    return sorted(found, key=lambda p: [(part.isdigit(), part.zfill(20)) for part in re.split(r"(\d+)", p.name)])


def _opened(path: Path, mode: str | None) -> Array:
    """A picture's pixels as `mode`, or as stored: of a palette picture its numbers, which are labels."""
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert(mode) if mode else picture)
    except Exception as error:  # a damaged file can raise about anything; whatever it is, the file is to blame
        raise DataError(f"'{path}' cannot be read as a picture: {error}. It is damaged: write it again.") from error


def _stacked(pictures: list[Array], folder: Path) -> Array:
    sizes = sorted({p.shape[:2] for p in pictures})
    if len(sizes) > 1:
        told = ", ".join(f"{w}x{h}" for h, w in sizes[:4])
        raise DataError(f"The pictures of '{folder}' must have one size, got {told}. Leave only a clip's frames there.")
    return np.stack(pictures)


def _chosen(clip: ClipFile, wanted: str, fits: Any) -> Array:
    """The array of a file that is asked for, or the only one that fits."""
    try:
        stored = np.load(clip.path, allow_pickle=False)
        arrays = {name: stored[name] for name in stored.files} if hasattr(stored, "files") else {"": stored}
    except Exception as error:  # likewise: zlib, zip and header errors share no base
        raise DataError(f"'{clip.path}' cannot be read: {error}. It is damaged: write it again.") from error
    fitting = [name for name, array in arrays.items() if fits(array) and array.size]
    told = ", ".join(f"{name or 'one array'} {array.dtype} {array.shape}" for name, array in arrays.items())
    if clip.key is not None and clip.key not in fitting:
        raise DataError(f"'{clip.path}' must hold {wanted} under '{clip.key}', got {told}.")
    if clip.key is None and len(fitting) != 1:
        example = f"'{clip.path}:{fitting[0]}'" if fitting else "a file that holds them"
        raise DataError(f"'{clip.path}' must hold {wanted} once, got {told or 'nothing'}. Name {example}.")
    return np.asarray(arrays[clip.key if clip.key is not None else fitting[0]])
