"""Pictures cut and scaled to the size that a model takes, and the camera with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn.functional import interpolate

from vap_gym.data.layout import DataError
from vap_gym.geometry import Camera, centre_crop_32


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A rectangle of the recorded picture [px], and the (width, height) that it is scaled to."""

    left: int
    top: int
    width: int
    height: int
    frame_size_px: tuple[int, int]

    def pictures(self, frames: UInt8[np.ndarray, "T H W 3"], *, nearest: bool = False) -> UInt8[np.ndarray, "T h w 3"]:
        """Return frames cut and scaled with anti-aliasing, or (`nearest`) without mixing pixels, as codes of depth."""
        cut = np.ascontiguousarray(frames[:, self.top : self.top + self.height, self.left : self.left + self.width])
        if self.frame_size_px == (self.width, self.height):
            return cut
        size = (self.frame_size_px[1], self.frame_size_px[0])
        # torch's kernels for bytes are ten times as fast as Pillow's here, and within two grey levels of them
        pixels = torch.from_numpy(cut).permute(0, 3, 1, 2)
        if nearest:
            scaled = interpolate(pixels, size=size, mode="nearest-exact")
        else:
            scaled = interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
        return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).numpy())

    def camera(self, camera: Camera) -> Camera:
        """Return the camera of the pictures so made."""
        return camera.cropped(self.left, self.top, self.width, self.height).resized(self.frame_size_px)

    def pixels(self, uv_px: np.ndarray) -> np.ndarray:
        """Return where points (…, 2) of the recorded picture [px] are in the pictures so made."""
        scale = np.array([self.frame_size_px[0] / self.width, self.frame_size_px[1] / self.height])
        moved: np.ndarray = (uv_px - np.array([self.left, self.top])) * scale
        return moved


def crop_for(
    recorded_px: tuple[int, int],
    frame_size_px: tuple[int, int],
    *,
    rng: np.random.Generator | None = None,
    least_share: float = 1.0,
) -> Crop:
    """Return the largest centred rectangle of the shape of `frame_size_px`; with `rng`, a random one of that shape.

    Sizes are (width, height). For 3:2 it is `centre_crop_32`. A random rectangle is between `least_share` of the
    largest one's sides and all of it, anywhere in the picture.
    """
    width, height = recorded_px
    shape_w, shape_h = frame_size_px
    if min(width, height, shape_w, shape_h) < 2 or not 0 < least_share <= 1:
        raise DataError(
            "A crop needs pictures and frames of at least 2 x 2 px and a least share in (0, 1], got "
            f"{recorded_px}, {frame_size_px} and {least_share}. Try (144, 96) and 0.8."
        )
    if 2 * shape_w == 3 * shape_h:
        left, top, w, h = centre_crop_32(width, height)
    else:
        w, h = min(width, round(height * shape_w / shape_h)), min(height, round(width * shape_h / shape_w))
        left, top = (width - w) // 2, (height - h) // 2
    if rng is not None:
        share = rng.uniform(least_share, 1.0)
        w, h = max(2, round(w * share)), max(2, round(h * share))
        left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return Crop(left=left, top=top, width=w, height=h, frame_size_px=(shape_w, shape_h))
