"""How much of what changes in a clip is the rendered robot's doing: evidence that a still picture cannot give.

Where the robot's silhouette comes and goes, the colour should change with it. Of the variance of all pixels over time
the share is taken that is between frames in which the silhouette covers the pixel and frames in which it does not
(one-way analysis of variance). The same for shifted silhouettes tells whether the right place is where it was rendered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray

from vap_gym.errors import VapError, require

MOST_FRAMES = 48  # of a clip, evenly spread
LEAST_FRAMES = 4
COARSE_PX, FINE_PX = 4, 2  # picture px per px at which variances are taken: to search, and to refine
LEAST_COVER = 1.0  # frames with, and frames without the robot, that a pixel must have
STILL = 2.0  # grey levels: pictures whose pixels vary less over time hold no evidence


@dataclass(frozen=True, kw_only=True)
class MotionShare:
    """The share of motion that the silhouettes explain: where they were rendered, and at each shift around it."""

    shares: Float[np.ndarray, "S S"]  # by shift down, across
    shifts_px: NDArray[np.int64]

    @property
    def here(self) -> float:
        """The share explained where the robot was rendered, in [0, 1]."""
        middle = len(self.shifts_px) // 2
        return float(self.shares[middle, middle])

    @property
    def ratio(self) -> float:
        """The same (a step to the side is as good) as a share of what the best shift explains, in [0, 1]."""
        middle, best = len(self.shifts_px) // 2, float(self.shares.max())
        near = self.shares[middle - 1 : middle + 2, middle - 1 : middle + 2]
        return float(near.max()) / best if best > 0 else 0.0

    def best_shift_px(self, *, within_px: float) -> tuple[float, float]:
        """Return the shift (right, down) that explains most, of those that are not longer."""
        across, down = np.meshgrid(self.shifts_px, self.shifts_px)
        best = int(np.where(np.hypot(across, down) <= within_px, self.shares, -1.0).argmax())
        return float(across.flat[best]), float(down.flat[best])


def motion_share(
    frames: UInt8[np.ndarray, "T H W 3"], masks: Bool[np.ndarray, "T H W"], *, reach_px: int = 24
) -> MotionShare | None:
    """Return how much of the change in `frames` the silhouettes explain; None where nothing moves.

    The camera must stand still: undo its drift first. Silhouettes that never come and go explain nothing.
    """
    small, cover = _shrunk(frames, masks, COARSE_PX)
    total = float((small**2).sum())
    if total <= STILL**2 * small.size or len(small) < LEAST_FRAMES:
        return None
    reach = reach_px // COARSE_PX
    shifts = np.arange(-reach, reach + 1)
    padded = np.pad(cover, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    height, width = cover.shape[1:]

    def share(down: int, across: int) -> float:
        shifted = padded[:, reach - down : reach - down + height, reach - across : reach - across + width]
        return _explained(small, shifted) / total

    shares = np.array([[share(down, across) for across in shifts.tolist()] for down in shifts.tolist()])
    return MotionShare(shares=shares, shifts_px=shifts * COARSE_PX)


def refined_shift(
    frames: UInt8[np.ndarray, "T H W 3"], masks: Bool[np.ndarray, "T H W"], start_px: tuple[float, float]
) -> tuple[float, float]:
    """Return the shift (right, down) in px near `start_px` at which the silhouettes explain most, to .2 px."""
    from scipy.optimize import minimize

    cv2 = require("cv2", "[data]", "Aligning prompts")
    small, cover = _shrunk(frames, masks, FINE_PX)
    total = max(float((small**2).sum()), 1e-9)
    size = (cover.shape[2], cover.shape[1])

    def unexplained(shift_px: NDArray[np.float64]) -> float:
        across, down = np.clip(shift_px / FINE_PX, -max(size), max(size))
        move = np.array([[1, 0, across], [0, 1, down]])
        shifted = np.stack([cv2.warpAffine(m, move, size, borderMode=cv2.BORDER_REPLICATE) for m in cover])
        return -_explained(small, shifted) / total

    corner = np.array(start_px, np.float64)
    simplex = corner + np.array([[0, 0], [FINE_PX, 0], [0, FINE_PX]], np.float64)
    options = {"xatol": 0.2, "fatol": 1e-4, "maxiter": 60, "initial_simplex": simplex}
    found = minimize(unexplained, corner, method="Nelder-Mead", options=options)
    return float(found.x[0]), float(found.x[1])


def _shrunk(
    frames: NDArray[np.uint8], masks: NDArray[np.bool_], scale: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Some of the frames, smaller and without their mean over time, and how much of each pixel the robot covers."""
    if len(frames) != len(masks) or frames.shape[1:3] != masks.shape[1:]:
        raise VapError(
            f"frames and masks must be of one length and size, got {frames.shape} and {masks.shape}. "
            "Render the robot with the camera of these frames."
        )
    cv2 = require("cv2", "[data]", "Measuring motion")
    some = np.unique(np.linspace(0, len(frames) - 1, MOST_FRAMES).round().astype(np.int64))
    size = (max(1, frames.shape[2] // scale), max(1, frames.shape[1] // scale))
    small = np.stack([cv2.resize(frames[t], size, interpolation=cv2.INTER_AREA) for t in some]).astype(np.float32)
    cover = np.stack([cv2.resize(masks[t].astype(np.float32), size, interpolation=cv2.INTER_AREA) for t in some])
    return small - small.mean(axis=0), cover


def _explained(small: NDArray[np.float32], cover: NDArray[np.float32]) -> float:
    """Sum of squares between frames in which the robot covers a pixel and those in which it does not."""
    covered = cover.sum(axis=0)
    free = len(cover) - covered
    sums = np.einsum("thw,thwc->hwc", cover, small)  # those of the other frames are their negative
    varies = (covered >= LEAST_COVER) & (free >= LEAST_COVER)
    squares = (sums**2).sum(axis=-1)[varies]
    return float((squares / covered[varies] + squares / free[varies]).sum())
