"""Metrics: how near an imagined clip comes to the true one, in plain numpy, with intervals.

Clips are uint8 RGB of shape (T, H, W, 3). What is named *_per_frame returns a figure per frame, the rest one per clip.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray

from vap_gym.errors import VapError

Clip = NDArray[Any]  # uint8 (T, H, W, 3); not in the type, since a wrong clip is to be our error, checked or not
Masks = NDArray[Any]  # bool (T, H, W), likewise

PSNR_CAP_DB = 40.0
"""Equal frames have infinite PSNR; frames this near count as equal."""

MOTION_RATE, MOTION_THRESHOLD = 0.3, 10
"""Running-average rate and grey-level threshold of the motion masks, as in physics-IQ-benchmark."""


# --- pictures ---------------------------------------------------------------------------------------------------------


def psnr_per_frame(prediction: Clip, truth: Clip, *, cap_db: float = PSNR_CAP_DB) -> Float[np.ndarray, "T"]:
    """Return the peak signal-to-noise ratio of each frame in dB, on [0, 1], capped."""
    _check_clips(prediction, truth)
    difference = prediction.astype(np.float32) - truth.astype(np.float32)
    mse = np.square(difference, out=difference).mean(axis=(1, 2, 3), dtype=np.float64) / 255.0**2
    capped: NDArray[np.float64] = np.minimum(-10 * np.log10(np.maximum(mse, 1e-12)), cap_db)
    return capped


def psnr(prediction: Clip, truth: Clip, *, cap_db: float = PSNR_CAP_DB) -> float:
    """Return the mean over frames of `psnr_per_frame`."""
    return float(psnr_per_frame(prediction, truth, cap_db=cap_db).mean())


def ssim_per_frame(
    prediction: Clip, truth: Clip, *, window: Literal["gaussian", "uniform"] = "gaussian"
) -> Float[np.ndarray, "T"]:
    """Return the structural similarity of each frame: mean over channels and over pixels whose window fits the frame.

    "gaussian" is Wang et al. 2004 (11×11, σ 1.5, population covariance); "uniform" is scikit-image's default (7×7,
    sample covariance). They differ by up to .015: never compare one with the other.
    """
    _check_clips(prediction, truth)
    if window == "gaussian":
        kernel = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
        unbias = 1.0
    else:
        kernel = np.ones(7)
        unbias = 49 / 48
    kernel = kernel / kernel.sum()
    if min(truth.shape[1:3]) < len(kernel):
        raise VapError(
            f"SSIM's {window} window is {len(kernel)} px wide, but frames are {truth.shape[2]} x {truth.shape[1]}. "
            f"Give frames of at least {len(kernel)} x {len(kernel)} px."
        )
    down, across = (_band(kernel, size) for size in truth.shape[1:3])
    c1, c2 = 0.01**2, 0.03**2
    scores = np.empty(len(truth))
    for t in range(len(truth)):
        x, y = (clip[t].transpose(2, 0, 1) / np.float32(255) for clip in (prediction, truth))
        means = down @ np.stack([x, y, x * x + y * y, x * y]) @ across.T
        mean_x, mean_y = means[:2]
        power = (means[2] - mean_x**2 - mean_y**2) * unbias
        covariance = (means[3] - mean_x * mean_y) * unbias
        similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        scores[t] = (similar / ((mean_x**2 + mean_y**2 + c1) * (power + c2))).mean(dtype=np.float64)
    return scores


def ssim(prediction: Clip, truth: Clip, *, window: Literal["gaussian", "uniform"] = "gaussian") -> float:
    """Return the mean over frames of `ssim_per_frame`."""
    return float(ssim_per_frame(prediction, truth, window=window).mean())


def _band(kernel: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """Return the matrix that correlates `size` samples with a kernel where it fits: a product, which BLAS does fast."""
    band = np.zeros((size - len(kernel) + 1, size), np.float32)
    for k, weight in enumerate(kernel):
        band[np.arange(len(band)), np.arange(len(band)) + k] = weight
    return band


# --- motion -----------------------------------------------------------------------------------------------------------


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
    _check_clip(clip, "clip")
    grey = (clip.astype(np.int32) @ np.array([4899, 9617, 1868], np.int32) + 8192) >> 14
    smooth = _gaussian_5x5(grey)
    average = smooth[0].astype(np.float32)
    masks = np.zeros(clip.shape[:3], bool)
    for t in range(1, len(clip)):
        average = average * np.float32(1 - MOTION_RATE) + smooth[t].astype(np.float32) * np.float32(MOTION_RATE)
        masks[t] = np.abs(smooth[t] - np.rint(average)) > MOTION_THRESHOLD
    opened = _dilate_5x5(~_dilate_5x5(~masks))
    closed: Masks = ~_dilate_5x5(~_dilate_5x5(opened))
    return closed


def motion_iou(prediction: Clip, truth: Clip) -> MotionIou:
    """Return all three motion scores of a clip, from one pass over it."""
    _check_clips(prediction, truth)
    return mask_motion_iou(motion_masks(prediction), motion_masks(truth))


def mask_motion_iou(prediction: Masks, truth: Masks) -> MotionIou:
    """As `motion_iou`, from motion masks: useful where the true clip's are needed more than once."""
    _check_masks(prediction, truth)
    both, either = (prediction & truth).sum(axis=(1, 2)), (prediction | truth).sum(axis=(1, 2))
    weight_p, weight_t = prediction.mean(axis=0), truth.mean(axis=0)
    return MotionIou(
        spatio_temporal=float(_share(both, either).mean()),
        spatial=float(_share((prediction.any(0) & truth.any(0)).sum(), (prediction.any(0) | truth.any(0)).sum())),
        weighted_spatial=float(_share(np.minimum(weight_p, weight_t).sum(), np.maximum(weight_p, weight_t).sum())),
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


def _share(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    """part / whole, 1 where the whole is nothing."""
    whole = np.asarray(whole, np.float64)
    share: NDArray[np.float64] = np.divide(part, whole, out=np.ones_like(whole), where=whole > 0)
    return share


def _gaussian_5x5(grey: NDArray[np.int32]) -> NDArray[np.int32]:
    """Blur (T, H, W) by [1 4 6 4 1]² / 256, rounded; mirrored at the border."""
    padded = np.pad(grey, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    height, width = grey.shape[1:]
    rows = np.zeros((len(grey), height, width + 4), np.int32)
    blurred = np.full_like(grey, 128)  # a half, for rounding
    for k, tap in enumerate((1, 4, 6, 4, 1)):
        rows += tap * padded[:, k : k + height]
    for k, tap in enumerate((1, 4, 6, 4, 1)):
        blurred += tap * rows[:, :, k : k + width]
    return blurred >> 8


def _dilate_5x5(masks: Masks) -> Masks:
    """Grow (T, H, W) masks by two pixels in every direction; what lies outside the frame is empty."""
    for axis in (1, 2):
        grown = masks.copy()
        for shift in (1, 2):
            ahead = [slice(None)] * 3
            behind = [slice(None)] * 3
            ahead[axis], behind[axis] = slice(shift, None), slice(None, -shift)
            grown[tuple(ahead)] |= masks[tuple(behind)]
            grown[tuple(behind)] |= masks[tuple(ahead)]
        masks = grown
    return masks


# --- masks ------------------------------------------------------------------------------------------------------------


def region_j_per_frame(prediction: Masks, truth: Masks) -> Float[np.ndarray, "T"]:
    """Return DAVIS' J of each frame: the IoU of two masks, 1 where both are empty."""
    _check_masks(prediction, truth)
    return _share((prediction & truth).sum(axis=(1, 2)), (prediction | truth).sum(axis=(1, 2)))


def boundary_f_per_frame(prediction: Masks, truth: Masks, *, tolerance: float = 0.008) -> Float[np.ndarray, "T"]:
    """Return DAVIS' F of each frame: how much of either mask's outline lies near the other's.

    `tolerance` is a share of the frame's diagonal, rounded up to whole pixels. F is the harmonic mean of precision and
    recall; 1 where neither mask has an outline.
    """
    _check_masks(prediction, truth)
    radius = math.ceil(tolerance * math.hypot(*truth.shape[1:]))
    outline_p, outline_t = _outlines(prediction), _outlines(truth)
    near_p, near_t = _dilate_disk(outline_p, radius), _dilate_disk(outline_t, radius)
    precision = _share((outline_p & near_t).sum(axis=(1, 2)), outline_p.sum(axis=(1, 2)))
    recall = _share((outline_t & near_p).sum(axis=(1, 2)), outline_t.sum(axis=(1, 2)))
    return _share(2 * precision * recall, np.where(precision + recall > 0, precision + recall, 1.0))


def _outlines(masks: Masks) -> Masks:
    """Return the pixels that differ from their neighbour to the right, below, or right below."""
    padded = np.pad(masks, ((0, 0), (0, 1), (0, 1)), mode="edge")
    right, below, both = padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
    outlines: Masks = (masks ^ right) | (masks ^ below) | (masks ^ both)
    return outlines


def _dilate_disk(masks: Masks, radius: int) -> Masks:
    """Grow masks by a disk: for each of its rows, by a run as wide as the disk is there."""
    height, width = masks.shape[1:]
    counts = np.pad(masks, ((0, 0), (radius, radius), (radius + 1, radius))).cumsum(axis=2, dtype=np.int32)
    grown = np.zeros_like(masks)
    for dy in range(-radius, radius + 1):
        half = math.isqrt(radius * radius - dy * dy)
        rows = counts[:, radius + dy : radius + dy + height]
        ahead, behind = radius + 1 + half, radius - half
        grown |= rows[:, :, ahead : ahead + width] > rows[:, :, behind : behind + width]
    return grown


# --- what is judged ---------------------------------------------------------------------------------------------------


def adherence_px(commanded_px: NDArray[np.floating], seen_px: NDArray[np.floating]) -> Float[np.ndarray, "*batch"]:
    """Return how far in pixels the gripper that a judge sees is from where it was commanded: (*batch, 2) → (*batch).

    NaN where there is no command (commanded is NaN); infinite where the judge sees no gripper (seen is NaN), so that a
    vanished gripper is never left out of a median.
    """
    return _distance(seen_px, commanded_px, "seen_px", "commanded_px", 2)


def object_error_m(
    judged_world_m: NDArray[np.floating], true_world_m: NDArray[np.floating]
) -> Float[np.ndarray, "*batch"]:
    """Return how far in metres judged objects are from the true ones: (*batch, 3) → (*batch).

    NaN where there is no such object (true is NaN); infinite where it exists and the judge finds none (judged is NaN).
    """
    return _distance(judged_world_m, true_world_m, "judged_world_m", "true_world_m", 3)


def _distance(
    judged: NDArray[np.floating], true: NDArray[np.floating], judged_name: str, true_name: str, size: int
) -> NDArray[np.float64]:
    if judged.shape != true.shape or judged.shape[-1:] != (size,):
        raise VapError(
            f"{judged_name} and {true_name} must have one shape (*batch, {size}), got {judged.shape} and {true.shape}. "
            f"Mark what is absent by NaN instead of leaving it out."
        )
    distance = np.linalg.norm(judged.astype(np.float64) - true, axis=-1)
    missed = np.isnan(judged).any(-1)
    return np.where(np.isnan(true).any(-1), np.nan, np.where(missed, np.inf, distance))


# --- intervals --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and the interval that it lies in."""

    value: float
    low: float
    high: float
    level: float
    samples: int

    def __str__(self) -> str:
        """Return e.g. "0.612 [0.588, 0.634]"."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap_interval(
    values: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    statistic: Callable[[NDArray[np.float64]], float] | None = None,
) -> Interval:
    """Return a figure over n independent samples (episodes, not frames) and its percentile-bootstrap interval.

    Args:
        values: shape (n, ...); whole rows are drawn with replacement.
        statistic: from rows (n, ...) to a float; e.g. `np.median`, or a ratio of two columns' means. Default: the mean.

    Raises:
        VapError: no samples, NaN among them, or a level outside (0, 1).
    """
    rows = np.asarray(values, np.float64)
    if rows.ndim == 0 or len(rows) == 0 or np.isnan(rows).any():
        raise VapError(
            f"bootstrap needs at least one sample and no NaN, got {rows.shape} with {int(np.isnan(rows).sum())} NaN. "
            "Drop what does not apply first, e.g. values[~np.isnan(values)]."
        )
    if not 0 < level < 1:
        raise VapError(f"level must be between 0 and 1, got {level}. Try 0.95.")
    pick = np.random.default_rng(seed).integers(0, len(rows), (resamples, len(rows)))
    if statistic is None:
        statistic = np.mean
        drawn = rows[pick].mean(axis=tuple(range(1, rows.ndim + 1)))
    else:
        drawn = np.array([statistic(rows[one]) for one in pick])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(statistic(rows)), low=float(low), high=float(high), level=level, samples=len(rows))


def paired_bootstrap_interval(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean of a − b over n paired samples (the same episodes under two conditions) and its interval."""
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if left.shape != right.shape:
        raise VapError(f"Paired samples must have one shape, got {left.shape} and {right.shape}. Pair them by episode.")
    return bootstrap_interval(left - right, level=level, resamples=resamples, seed=seed)


# --- input ------------------------------------------------------------------------------------------------------------


def _check_clip(clip: Clip, name: str) -> None:
    if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
        given = f"{clip.dtype} {tuple(clip.shape)}" if isinstance(clip, np.ndarray) else type(clip).__name__
        raise VapError(
            f"{name} must be a uint8 array of shape (T, H, W, 3), got {given}. "
            "Float frames in [0, 1]: (255 * frames).round().astype(np.uint8); a tensor: .numpy()."
        )
    if 0 in clip.shape:
        raise VapError(f"{name} must have at least one frame and one pixel, got {clip.shape}. Was the video read?")


def _check_masks(prediction: Masks, truth: Masks) -> None:
    for name, masks in (("prediction", prediction), ("truth", truth)):
        if masks.dtype != np.bool_ or masks.ndim != 3 or masks.shape != truth.shape or 0 in masks.shape:
            raise VapError(
                f"{name} must be bool masks of shape (T, H, W), both alike, got {masks.dtype} {masks.shape} "
                f"(truth: {truth.dtype} {truth.shape}). From labels: labels == the object's number."
            )


def _check_clips(prediction: Clip, truth: Clip) -> None:
    _check_clip(prediction, "prediction")
    _check_clip(truth, "truth")
    if prediction.shape != truth.shape:
        raise VapError(
            f"prediction and truth must have one shape (T, H, W, 3), got {prediction.shape} and {truth.shape}. "
            "Cut both to the same frames and size first."
        )
