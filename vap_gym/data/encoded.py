"""Pictures as their source stores them: an mp4 to copy, or JPEG and PNG files to keep."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vap_gym.data.layout import DataError


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """Frames `start` to `stop` (excluded, None for the end; in order of showing) of an mp4, stored untouched.

    `start` must be a key frame of the file, since its packets are copied as they are.
    """

    path: Path
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, kw_only=True)
class PictureBytes:
    """One JPEG or PNG file per frame, as bytes, stored untouched; all of the same height and width."""

    files: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.files)


def picture_size(file: bytes, what: str = "a picture") -> tuple[int, int]:
    """Return (height, width) of a JPEG or PNG without decoding it. Raises DataError where it is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file), formats=("JPEG", "PNG")) as picture:
            return picture.height, picture.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged(what, file, error) from error


def decode_picture(file: bytes, what: str = "a picture") -> NDArray[np.uint8]:
    """Return a JPEG or PNG as uint8 (H,W,3) RGB. Raises DataError where it cannot be decoded."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file), formats=("JPEG", "PNG")) as picture:
            return np.asarray(picture.convert("RGB"), np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged(what, file, error) from error


def decode_pictures(files: Sequence[bytes], what: str = "picture") -> NDArray[np.uint8]:
    """Return T pictures as uint8 (T,H,W,3) RGB. Raises DataError where one is damaged or of another size."""
    decoded = [decode_picture(file, f"{what} {number}") for number, file in enumerate(files)]
    for number, picture in enumerate(decoded):
        if picture.shape != decoded[0].shape:
            raise DataError(
                f"{what} {number} must be {decoded[0].shape[0]}x{decoded[0].shape[1]} px like the first, "
                f"got {picture.shape[0]}x{picture.shape[1]}. Give every size a view of its own."
            )
    return np.stack(decoded)


def check_pictures(files: Sequence[bytes], what: str = "picture", samples: int = 16) -> NDArray[np.uint8]:
    """Decode all pictures and return about `samples` of them as (S,H,W,3). Raises DataError where one is damaged."""
    every = max(1, len(files) // samples)
    kept = []
    for number, file in enumerate(files):
        picture = decode_picture(file, f"{what} {number}")
        if number % every == 0:
            kept.append(picture)
    return np.stack(kept)


def _damaged(what: str, file: bytes, error: object) -> DataError:
    return DataError(
        f"{what} must be a whole JPEG or PNG, got {len(file)} bytes that cannot be decoded ({error}). "
        "Fetch it again, or leave its episode out."
    )
