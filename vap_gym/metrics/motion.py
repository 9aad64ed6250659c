"""Motion: where, when and how often pixels move, and how well that agrees (Physics-IQ's three scores)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vap_gym.metrics.checks import Clip, Masks, check_clip, check_clips, check_masks
from vap_gym.metrics.morphology import dilate_box, share

MOTION_RATE, MOTION_THRESHOLD = 0.3, 10
"""Running-average rate and grey-level threshold of the motion masks, as in physics-IQ-benchmark."""

GREY_WEIGHTS = np.array([4899, 9617, 1868], np.float32)
"""Red, green and blue in grey, of 2^14: OpenCV's. Sums stay below 2^24, so float32 holds them exactly."""


@dataclass(frozen=True, kw_only=True)
class MotionIou:
    """How well motion agrees: where and when, where at all, and where how often; each in [0, 1]."""

    spatio_temporal: float
    spatial: float
    weighted_spatial: float


def motion_masks(clip: Clip) -> Masks:
    """Return which pixels move in each frame, as physics-IQ-benchmark defines it; none in the first.

    Grey, Gaussian 5×5, difference to a running average (rate .3, seeded with frame 0) above 10 grey levels; opened,
    then closed, by 5×5. Rounding follows OpenCV's 8-bit arithmetic: one pixel in a million differs from its masks.
    """
    check_clip(clip, "clip")
    masks = np.zeros(clip.shape[:3], bool)
    average = _gaussian_5x5(_grey(clip[0])).astype(np.float32)
    for t in range(1, len(clip)):  # frame by frame, so that what is worked on stays in the processor's cache
        smooth = _gaussian_5x5(_grey(clip[t])).astype(np.float32)
        average = average * np.float32(1 - MOTION_RATE) + smooth * np.float32(MOTION_RATE)
        moving = np.abs(smooth - np.rint(average)) > MOTION_THRESHOLD
        eroded = ~dilate_box(~moving, 2)
        masks[t] = ~dilate_box(~dilate_box(eroded, 4), 2)  # opening's growth and closing's are one, twice as wide
    return masks


def motion_iou(prediction: Clip, truth: Clip) -> MotionIou:
    """Return all three motion scores of a clip, from one pass over it."""
    check_clips(prediction, truth)
    return mask_motion_iou(motion_masks(prediction), motion_masks(truth))


def mask_motion_iou(prediction: Masks, truth: Masks) -> MotionIou:
    """As `motion_iou`, from motion masks: useful where the true clip's are needed more than once."""
    check_masks(prediction, truth)
    both, either = prediction & truth, prediction | truth
    weight_p, weight_t = prediction.mean(axis=0), truth.mean(axis=0)
    where = (prediction.any(0) & truth.any(0)).sum(), either.any(0).sum()
    return MotionIou(
        spatio_temporal=float(share(both.sum(axis=(1, 2)), either.sum(axis=(1, 2))).mean()),
        spatial=float(share(*where)),
        weighted_spatial=float(share(np.minimum(weight_p, weight_t).sum(), np.maximum(weight_p, weight_t).sum())),
    )


def st_iou(prediction: Clip, truth: Clip) -> float:
    """Return the spatio-temporal IoU of motion: mean over frames, 1 where nothing moves in either.

    A frozen clip therefore scores the share of frames whose true mask is empty, not 0.
    """
    return motion_iou(prediction, truth).spatio_temporal


def spatial_iou(prediction: Clip, truth: Clip) -> float:
    """Return the IoU of where anything moved at any time."""
    return motion_iou(prediction, truth).spatial


def weighted_spatial_iou(prediction: Clip, truth: Clip) -> float:
    """Return Σ min / Σ max of how often each pixel moved."""
    return motion_iou(prediction, truth).weighted_spatial


def _grey(frame: NDArray[np.uint8]) -> NDArray[np.uint16]:
    grey = frame.astype(np.float32) @ GREY_WEIGHTS + np.float32(1 << 13)  # a half, for rounding
    grey *= np.float32(2**-14)
    return grey.astype(np.uint16)


def _gaussian_5x5(grey: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Blur (H, W) by [1 4 6 4 1]² / 256, rounded; mirrored at the border. 255 · 256 + 128 still fits 16 bits."""
    four, six = np.uint16(4), np.uint16(6)
    padded = np.pad(grey, 2, mode="reflect")
    rows = padded[2:-2] * six + (padded[1:-3] + padded[3:-1]) * four + padded[:-4] + padded[4:]
    blurred = rows[:, 2:-2] * six + (rows[:, 1:-3] + rows[:, 3:-1]) * four + rows[:, :-4] + rows[:, 4:]
    rounded: NDArray[np.uint16] = (blurred + np.uint16(128)) >> np.uint16(8)
    return rounded
