"""Pictures, frame by frame: PSNR, and SSIM as scikit-image gives it."""

from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vap_gym.errors import VapError
from vap_gym.metrics.checks import Clip, check_clips

PSNR_CAP_DB = 40.0
"""Equal frames have infinite PSNR; frames this near count as equal."""

BLOCK = 32
"""Samples that SSIM averages in one matrix product."""


def psnr_per_frame(prediction: Clip, truth: Clip, *, cap_db: float = PSNR_CAP_DB) -> Float[np.ndarray, "T"]:
    """Return the peak signal-to-noise ratio of each frame in dB, on [0, 1], capped."""
    check_clips(prediction, truth)
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
    check_clips(prediction, truth)
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
    c1, c2 = 0.01**2, 0.03**2
    scores = np.empty(len(truth))
    for t in range(len(truth)):
        x, y = (clip[t].transpose(2, 0, 1) / np.float32(255) for clip in (prediction, truth))
        means = _windowed(np.stack([x, y, x * x + y * y, x * y]), kernel)
        mean_x, mean_y = means[:2]
        power = (means[2] - mean_x**2 - mean_y**2) * unbias
        covariance = (means[3] - mean_x * mean_y) * unbias
        similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        scores[t] = (similar / ((mean_x**2 + mean_y**2 + c1) * (power + c2))).mean(dtype=np.float64)
    return scores


def ssim(prediction: Clip, truth: Clip, *, window: Literal["gaussian", "uniform"] = "gaussian") -> float:
    """Return the mean over frames of `ssim_per_frame`."""
    return float(ssim_per_frame(prediction, truth, window=window).mean())


def _windowed(pictures: NDArray[np.float32], kernel: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the means of (..., H, W) under a separable window, where it fits.

    A correlation of BLOCK samples is a small product with a banded matrix, which BLAS does faster than numpy shifts
    and adds; one product with the whole axis would mostly multiply by zero.
    """
    reach = len(kernel) - 1
    band = np.zeros((BLOCK, BLOCK + reach), np.float32)
    for k, weight in enumerate(kernel):
        band[np.arange(BLOCK), np.arange(BLOCK) + k] = weight
    *rest, height, width = pictures.shape
    across = np.empty((*rest, height, width - reach), np.float32)
    for i in range(0, width - reach, BLOCK):
        n = min(BLOCK, width - reach - i)
        np.matmul(pictures[..., i : i + n + reach], band[:n, : n + reach].T, out=across[..., i : i + n])
    means = np.empty((*rest, height - reach, width - reach), np.float32)
    for i in range(0, height - reach, BLOCK):
        n = min(BLOCK, height - reach - i)
        np.matmul(band[:n, : n + reach], across[..., i : i + n + reach, :], out=means[..., i : i + n, :])
    return means
