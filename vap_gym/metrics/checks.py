"""What a metric may be given: clips and masks of the right type and of one shape, or a three-part error."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vap_gym.errors import VapError

Clip = NDArray[Any]  # uint8 (T, H, W, 3); not in the type, since a wrong clip is to be our error, checked or not
Masks = NDArray[Any]  # bool (T, H, W), likewise


def check_clip(clip: Clip, name: str) -> None:
    """Raise VapError unless `clip` is uint8 (T, H, W, 3) with at least one frame and one pixel."""
    if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
        given = f"{clip.dtype} {tuple(clip.shape)}" if isinstance(clip, np.ndarray) else type(clip).__name__
        raise VapError(
            f"{name} must be a uint8 array of shape (T, H, W, 3), got {given}. "
            "Float frames in [0, 1]: (255 * frames).round().astype(np.uint8); a tensor: .numpy()."
        )
    if 0 in clip.shape:
        raise VapError(f"{name} must have at least one frame and one pixel, got {clip.shape}. Was the video read?")


def check_clips(prediction: Clip, truth: Clip, *, names: tuple[str, str] = ("prediction", "truth")) -> None:
    """Raise VapError unless both are clips of one shape."""
    check_clip(prediction, names[0])
    check_clip(truth, names[1])
    if prediction.shape != truth.shape:
        raise VapError(
            f"{names[0]} and {names[1]} must have one shape (T, H, W, 3), got {prediction.shape} and {truth.shape}. "
            "Cut both to the same frames and size first."
        )


def check_masks(prediction: Masks, truth: Masks) -> None:
    """Raise VapError unless both are bool (T, H, W) of one shape."""
    for name, masks in (("prediction", prediction), ("truth", truth)):
        if masks.dtype != np.bool_ or masks.ndim != 3 or masks.shape != truth.shape or 0 in masks.shape:
            raise VapError(
                f"{name} must be bool masks of shape (T, H, W), both alike, got {masks.dtype} {masks.shape} "
                f"(truth: {truth.dtype} {truth.shape}). From labels: labels == the object's number."
            )
