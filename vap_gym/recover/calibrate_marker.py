"""Eye-hand calibration: cameras that look at a marker fixed to the hand, whose offset from the hand is unknown too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vap_gym.recover.calibrate import (
    LOSS,
    LOSS_PER_NOISE,
    Calibration,
    CalibrationError,
    calibration_of,
    checked_K,
    inverted,
    least_points,
    seen_rows,
)
from vap_gym.recover.calibrate_solve import Free, Sight, searched, solve

LITTLE_TURN_DEG = 10.0  # between hand poses, about the second axis
POOR_OFFSET_M = 0.005


@dataclass(frozen=True, kw_only=True, eq=False)
class Lens:
    """A camera's intrinsics [px] and the size (width, height) of its pictures."""

    K: Float[np.ndarray, "3 3"]
    frame_size_px: tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class EyeHand:
    """Cameras in the base frame, and where the marker is in the frame of the hand."""

    cameras: Mapping[str, Calibration]
    marker_hand_m: Float[np.ndarray, "3"]
    marker_std_m: Float[np.ndarray, "3"]  # one standard error per axis
    marker_alone_m: Mapping[str, Float[np.ndarray, "3"]]  # where each camera puts it when fitted alone
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """Return the figures, one line per camera, and the warnings."""
        x, y, z = 1e3 * self.marker_hand_m
        lines = [f"marker in the hand's frame: {x:.1f}, {y:.1f}, {z:.1f} mm (± {1e3 * self.marker_std_m.max():.1f})"]
        lines += [f"{name}: {calibration.summary()}" for name, calibration in self.cameras.items()]
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])


def fit_eye_hand(
    T_base_hand: Float[np.ndarray, "N 4 4"],
    pixels: Mapping[str, Float[np.ndarray, "N 2"]],
    lenses: Mapping[str, Lens],
    *,
    free: Free = "pose",
    noise_px: float = 0.5,
) -> EyeHand:
    """Fit the pose of each camera and the one offset of the marker that all of them see.

    Each camera is first fitted alone, then all together. No starting guess is needed.

    Args:
        T_base_hand: poses of the hand (any link that the marker is fixed to) in the base.
        pixels: per camera, where the marker was seen in each pose; NaN where it was not.
        lenses: per camera, its intrinsics (only a start where `free` lets them go).
        free, noise_px: see `calibrate.fit_camera`.

    Raises:
        CalibrationError: no camera, one without a lens, too few sightings, or hand poses without turns, from which the
            offset cannot be told from the camera's place.
    """
    if not pixels or set(pixels) - set(lenses):
        raise CalibrationError(
            f"Each camera needs pixels and a lens, got pixels of {', '.join(pixels) or 'none'} and lenses of "
            f"{', '.join(lenses) or 'none'}. Give both under the same names."
        )
    scale_px = LOSS_PER_NOISE * noise_px
    sights, rows, starts = [], [], []
    for name, seen in pixels.items():
        lens = lenses[name]
        least = least_points(free, offset=True)
        what = f"fit camera '{name}' and a marker's offset"
        index = seen_rows(T_base_hand[:, :3, 3], seen, None, lens.frame_size_px, least=least, what=what)
        refuse_little_turn(T_base_hand[index, :3, :3], name)
        sight = Sight(
            pixels=seen[index].astype(np.float64),
            anchor_m=T_base_hand[index, :3, 3].astype(np.float64),
            turn=T_base_hand[index, :3, :3].astype(np.float64),
            K=checked_K(lens.K),
        )
        alone = searched(sight, free=free, loss=LOSS, scale_px=scale_px)
        if alone is None:
            raise CalibrationError(
                f"No camera '{name}' has the marker in front of it in all {len(index)} poses. Are the pixels of these "
                "poses, in this order, and the poses T_base_hand, in metres?"
            )
        sights.append(sight)
        rows.append(index)
        starts.append(alone.guesses[0])
    found = solve(sights, starts, free=free, loss=LOSS, scale_px=scale_px)
    cameras = {
        name: calibration_of(found, c, sights[c], rows[c], lenses[name].frame_size_px, free=free, noise_px=noise_px)
        for c, name in enumerate(pixels)
    }
    variance = found.variance_px2 * np.diag(inverted(found.normal))[-3:]
    warnings = []
    if (worst := float(np.sqrt(variance.max()))) > POOR_OFFSET_M:
        warnings.append(f"the marker's offset is uncertain by {1e3 * worst:.0f} mm: add poses that turn the hand more")
    apart = max(float(np.linalg.norm(a.offset_m - b.offset_m)) for a in starts for b in starts)
    if apart > 2 * POOR_OFFSET_M:
        warnings.append(f"fitted alone, the cameras put the marker {1e3 * apart:.0f} mm apart: is it the same corner?")
    return EyeHand(
        cameras=cameras,
        marker_hand_m=found.guesses[0].offset_m,
        marker_std_m=np.sqrt(variance),
        marker_alone_m={name: start.offset_m for name, start in zip(pixels, starts, strict=True)},
        warnings=tuple(warnings),
    )


def refuse_little_turn(R_base_hand: Float[np.ndarray, "N 3 3"], name: str) -> None:
    """Raise CalibrationError unless the hand turns about two axes: else the offset hides in the camera's place."""
    turned_deg = turns_deg(R_base_hand)
    if turned_deg[1] < LITTLE_TURN_DEG:
        raise CalibrationError(
            f"Poses seen by camera '{name}' must turn the hand by {LITTLE_TURN_DEG:g} degrees or more about at "
            f"least two axes, got {turned_deg[0]:.1f} and {turned_deg[1]:.1f} degrees. "
            "Add poses with the hand rolled and tilted."
        )


def turns_deg(R_base_hand: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "3"]:
    """Return how far poses turn about the axis they turn most about, and about the two across it [deg]."""
    from scipy.spatial.transform import Rotation

    all_ = Rotation.from_matrix(R_base_hand)
    away = (all_ * all_.mean().inv()).as_rotvec()
    _, _, axes = np.linalg.svd(away, full_matrices=True)
    turned_deg: Float[np.ndarray, "3"] = np.degrees(np.ptp(away @ axes.T, axis=0))
    return turned_deg
