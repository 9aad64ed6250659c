"""A camera's calibration from points whose place in the robot's base frame is known, and where they were seen.

`fit_camera` finds the pose (and, if asked for, the intrinsics) by robust least squares, with no starting guess. Markers
of unknown offset are in `calibrate_marker`, pictures without any click in `calibrate_align`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from numpy.typing import NDArray

from vap_gym.data.layout import write_json
from vap_gym.errors import VapError
from vap_gym.geometry import Camera, inverse
from vap_gym.recover.calibrate_picture import with_residuals
from vap_gym.recover.calibrate_solve import INTRINSICS, POSE, Free, Sight, Solution, searched

CONVENTION = "OpenCV camera axes (x right, y down, z forward); base = the robot's base link, metres"
LOSS, LOSS_PER_NOISE = "cauchy", 2.0  # residuals beyond twice the noise count less and less
FLAT, NARROW = 0.03, 0.01  # third and second extent of the points as a share of the first
POOR_POSITION_M, POOR_ROTATION_DEG, POOR_FOCAL = 0.02, 1.5, 0.05  # one standard error
FEW_POINTS, OUTLIER = 8, 4.0


class CalibrationError(VapError):
    """Points, pixels or frames from which a camera cannot be found."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """A fitted camera and how well it explains what was seen; only rows that were seen are here, N of them.

    `covariance` (p, p) is of `parameters`: the rotation vector [rad] and translation [m] by which T_camera_base is
    turned and shifted (in the camera's axes), then log focal lengths and principal point [px] where these were free.
    It holds if the pixels' errors are independent; errors of the robot's model are not in it.
    """

    camera: Camera  # float64; the world is the robot's base
    points_base_m: Float[np.ndarray, "N 3"]
    pixels: Float[np.ndarray, "N 2"]
    residual_px: Float[np.ndarray, "N 2"]  # reprojected − seen
    index: Int64[np.ndarray, "N"]  # rows of the input that were used
    parameters: tuple[str, ...]
    covariance: Float[np.ndarray, "p p"]
    warnings: tuple[str, ...] = ()

    @property
    def error_px(self) -> Float[np.ndarray, "N"]:
        """How far each point is from where it was seen."""
        error_px: NDArray[np.float64] = np.linalg.norm(self.residual_px, axis=-1)
        return error_px

    @property
    def median_px(self) -> float:
        """Median of `error_px`."""
        return float(np.median(self.error_px))

    @property
    def mean_px(self) -> float:
        """Mean of `error_px`."""
        return float(self.error_px.mean())

    @property
    def rms_px(self) -> float:
        """Root of the mean square of `error_px`; outliers weigh heavily."""
        return float(np.sqrt((self.error_px**2).mean()))

    @property
    def position_std_m(self) -> float:
        """Standard error of the camera's position in the base, over the three axes together."""
        return float(np.sqrt(np.trace(_position_covariance(self.camera, self.covariance))))

    @property
    def rotation_std_deg(self) -> float:
        """Standard error of the camera's rotation, over the three axes together."""
        return float(np.degrees(np.sqrt(np.trace(self.covariance[:3, :3]))))

    def errors_px(self, points_base_m: Float[np.ndarray, "M 3"], pixels: Float[np.ndarray, "M 2"]) -> NDArray[Any]:
        """Return how far other points are from where they were seen: the test of a calibration on held-out clicks."""
        error_px: NDArray[np.float64] = np.linalg.norm(project(self.camera, points_base_m) - pixels, axis=-1)
        return error_px

    def summary(self) -> str:
        """Return the figures in one line, and the warnings below it."""
        fx, fy = float(self.camera.K[0, 0]), float(self.camera.K[1, 1])
        line = (
            f"{len(self.pixels)} points: median {self.median_px:.2f}, mean {self.mean_px:.2f}, rms {self.rms_px:.2f}, "
            f"max {self.error_px.max():.2f} px; standard error {1e3 * self.position_std_m:.1f} mm, "
            f"{self.rotation_std_deg:.2f} deg; fx {fx:.1f} fy {fy:.1f}"
        )
        return "\n".join([line, *(f"  warning: {text}" for text in self.warnings)])

    def picture(
        self, frame: UInt8[np.ndarray, "H W 3"], rows: Sequence[int] | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Return a frame with what was seen, where it was reprojected to, and each residual (four times as long).

        `rows` are rows of the input that are of this frame; all where None.
        """
        mine = np.ones(len(self.index), bool) if rows is None else np.isin(self.index, rows)
        return with_residuals(frame, self.pixels[mine], self.pixels[mine] + self.residual_px[mine])

    def table(self, *, method: str, valid_for_episodes: Sequence[str] = ()) -> dict[str, Any]:
        """Return the camera as an entry of cameras.json, which `vap_gym.photo.read_camera` reads."""
        figures = {
            "median": self.median_px,
            "mean": self.mean_px,
            "rms": self.rms_px,
            "max": float(self.error_px.max()),
        }
        said = f"{method}; standard error {1e3 * self.position_std_m:.1f} mm, {self.rotation_std_deg:.2f} deg"
        return camera_table(
            self.camera,
            method="; ".join([said, *self.warnings]),
            valid_for_episodes=valid_for_episodes,
            reprojection_px={**{k: round(v, 3) for k, v in figures.items()}, "points": len(self.pixels)},
        )


def fit_camera(
    points_base_m: Float[np.ndarray, "N 3"],
    pixels: Float[np.ndarray, "N 2"],
    *,
    K: Float[np.ndarray, "3 3"],
    frame_size_px: tuple[int, int],
    visible: Bool[np.ndarray, "N"] | None = None,
    free: Free = "pose",
    noise_px: float = 1.0,
) -> Calibration:
    """Fit a camera to points of the base frame and the pixels where they were seen.

    Args:
        points_base_m: in the robot's base frame, from forward kinematics.
        pixels: u right, v down, from the picture's top-left corner; rows that are NaN or not `visible` are left out.
        K: intrinsics in px; only a start where `free` lets them go.
        frame_size_px: (width, height).
        free: what is fitted: "pose" alone, or also one "focal" factor, "fx_fy", or all four "intrinsics".
        noise_px: how exact a pixel is, one standard deviation; from twice that on, errors count less and less.

    Raises:
        CalibrationError: too few points, points on a line, clicks outside the picture, NaN in points, or no camera
            that has the points in front of it.
    """
    index = seen_rows(points_base_m, pixels, visible, frame_size_px, least=least_points(free), what=f"fit '{free}'")
    points, seen = points_base_m[index].astype(np.float64), pixels[index].astype(np.float64)
    refuse_a_line(points)
    order = np.lexsort(np.concatenate([points, seen], 1).T)  # sums do not depend on the order in which clicks are given
    sight = Sight(pixels=seen[order], anchor_m=points[order], K=checked_K(K))
    found = searched(sight, free=free, loss=LOSS, scale_px=LOSS_PER_NOISE * noise_px)
    if found is None:
        raise CalibrationError(
            f"No camera has all {len(index)} points in front of it and near their pixels. Are the pixels of these "
            "points, in this order, and the points in metres in the base frame?"
        )
    return calibration_of(found, 0, sight, index[order], frame_size_px, free=free, noise_px=noise_px)


def least_points(free: Free, *, offset: bool = False) -> int:
    """Return how many points a fit needs: one more than there are unknowns for, two coordinates each."""
    return (len(POSE) + len(INTRINSICS[free]) + 3 * offset + 1) // 2 + 1


def calibration_of(
    found: Solution,
    which: int,
    sight: Sight,
    index: Int64[np.ndarray, "N"],
    frame_size_px: tuple[int, int],
    *,
    free: Free,
    noise_px: float,
) -> Calibration:
    """Return camera number `which` of a solution, with its rows in the order of the input."""
    guess = found.guesses[which]
    width = len(POSE) + len(INTRINSICS[free])
    own = slice(which * width, (which + 1) * width)
    covariance = found.variance_px2 * inverted(found.normal)[own, own]
    T_camera_base = np.eye(4)
    T_camera_base[:3, :3], T_camera_base[:3, 3] = guess.R, guess.t_m
    camera = Camera(
        K=torch.from_numpy(guess.K.copy()),
        T_world_camera=inverse(torch.from_numpy(T_camera_base)),
        frame_size_px=frame_size_px,
    ).checked()
    points = sight.anchor_m if sight.turn is None else sight.anchor_m + sight.turn @ guess.offset_m
    back = np.argsort(index)
    made = Calibration(
        camera=camera,
        points_base_m=points[back],
        pixels=sight.pixels[back],
        residual_px=found.residual_px[which][back],
        index=index[back],
        parameters=(*POSE, *INTRINSICS[free]),
        covariance=covariance,
    )
    return Calibration(**{**vars(made), "warnings": tuple(_doubts(made, noise_px))})


def inverted(normal: Float[np.ndarray, "p p"]) -> Float[np.ndarray, "p p"]:
    """Return the inverse of J'WJ, scaled first; raise CalibrationError where a direction is not determined."""
    scale = 1 / np.sqrt(np.maximum(np.diag(normal), 1e-30))
    scaled = normal * scale[:, None] * scale
    if np.linalg.cond(scaled) > 1e12:
        raise CalibrationError(
            "What was seen does not determine the camera: some move of it changes no residual. Give points at several "
            "depths and heights, and for a marker poses with turns about two axes."
        )
    return np.linalg.inv(scaled) * scale[:, None] * scale


def seen_rows(
    points_m: NDArray[Any],
    pixels: NDArray[Any],
    visible: NDArray[np.bool_] | None,
    frame_size_px: tuple[int, int],
    *,
    least: int,
    what: str,
) -> Int64[np.ndarray, "N"]:
    """Return the rows that were seen; raise CalibrationError for too few, NaN points, or pixels outside the picture."""
    if len(points_m) != len(pixels):
        raise CalibrationError(
            f"points and pixels must be as many, got {len(points_m)} and {len(pixels)}. Give each point its pixel, "
            "NaN where it was not seen."
        )
    seen = np.isfinite(pixels).all(-1) if visible is None else visible & np.isfinite(pixels).all(-1)
    index = np.flatnonzero(seen)
    if not np.isfinite(points_m[index]).all():
        raise CalibrationError(f"points must be finite, got NaN or infinity in row {_first_bad(points_m, index)}.")
    width, height = frame_size_px
    u, v = pixels[index].T if len(index) else np.zeros((2, 0))
    outside = index[(u < 0) | (v < 0) | (u > width) | (v > height)]
    if len(outside):
        row = int(outside[0])
        raise CalibrationError(
            f"pixels must lie in the picture of {width} x {height}, got {pixels[row].round(1).tolist()} in row {row} "
            f"({len(outside)} such). Were they clicked in a picture of another size? Scale them first."
        )
    if len(index) < least:
        raise CalibrationError(
            f"To {what} takes at least {least} points that were seen, got {len(index)}. Click more frames in which the "
            "robot stands elsewhere."
        )
    return index.astype(np.int64)


def refuse_a_line(points_m: Float[np.ndarray, "N 3"]) -> None:
    """Raise CalibrationError for points that coincide or lie on a line: a camera can turn about it unseen."""
    extent = np.linalg.svd(points_m - points_m.mean(0), compute_uv=False)
    if extent[0] < 1e-3 or extent[1] < NARROW * extent[0]:
        raise CalibrationError(
            f"points must not lie on one line, got extents of {np.round(extent, 4).tolist()} m. Click frames in which "
            "the robot stands elsewhere: left and right, near and far, high and low."
        )


def checked_K(K: NDArray[Any]) -> Float[np.ndarray, "3 3"]:
    """Return K as float64; raise CalibrationError unless it is [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], fx, fy > 0."""
    K = np.asarray(K, np.float64)
    good = K.shape == (3, 3) and np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0
    if not good or not np.allclose([K[0, 1], K[1, 0], *K[2]], [0, 0, 0, 0, 1], atol=1e-9):
        raise CalibrationError(
            f"K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in px with fx, fy > 0, got {K.tolist()}."
        )
    return K


def project(camera: Camera, points_base_m: Float[np.ndarray, "M 3"]) -> Float[np.ndarray, "M 2"]:
    """Return where points appear [px]."""
    pixels: Float[np.ndarray, "M 2"] = camera.project(torch.from_numpy(points_base_m))[0].numpy()
    return pixels


def camera_apart(a: Camera, b: Camera) -> tuple[float, float]:
    """Return how far two cameras are apart: position [m] and rotation [deg]."""
    A, B = a.T_world_camera.double(), b.T_world_camera.double()
    turn = A[:3, :3].T @ B[:3, :3]
    sine = torch.linalg.norm(turn - turn.T) / 8**0.5
    return float((A[:3, 3] - B[:3, 3]).norm()), float(torch.rad2deg(torch.atan2(sine, (turn.trace() - 1) / 2)))


def camera_table(
    camera: Camera, *, method: str, valid_for_episodes: Sequence[str], reprojection_px: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a camera as an entry of cameras.json."""
    return {
        "image_size_wh": list(camera.frame_size_px),
        "K": camera.K.tolist(),
        "T_camera_from_base": inverse(camera.T_world_camera).tolist(),
        "camera_position_in_base": camera.T_world_camera[:3, 3].tolist(),
        "convention": CONVENTION,
        "valid_for_episodes": list(valid_for_episodes),
        "method": method,
        "reprojection_px": dict(reprojection_px),
    }


def write_cameras(path: Path, cameras: Mapping[str, Mapping[str, Any]]) -> None:
    """Write cameras.json; cameras and notes that the file already holds stay, those of the same name are replaced.

    Raises:
        CalibrationError: the file there is no JSON object.
    """
    before: Any = {}
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CalibrationError(
                f"{path} must be JSON to add a camera to it, got {error}. Name another file."
            ) from error
        if not isinstance(before, dict):
            raise CalibrationError(f"{path} must hold a JSON object, got {type(before).__name__}. Name another file.")
    write_json(path, {**before, **cameras})


def _position_covariance(camera: Camera, covariance: Float[np.ndarray, "p p"]) -> Float[np.ndarray, "3 3"]:
    """Return the covariance of c = −R' t, moved by the rotation vector w and the shift s: dc = R' (w × t − s)."""
    T = inverse(camera.T_world_camera).numpy()
    R, (x, y, z) = T[:3, :3], T[:3, 3]
    by_turn = R.T @ -np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    J = np.concatenate([by_turn, -R.T], 1)
    made: Float[np.ndarray, "3 3"] = J @ covariance[:6, :6] @ J.T
    return made


def _doubts(made: Calibration, noise_px: float) -> list[str]:
    """Say what makes a calibration doubtful."""
    doubts = []
    count, points = len(made.pixels), made.points_base_m
    if count < FEW_POINTS:
        doubts.append(f"only {count} points: {FEW_POINTS} or more tell errors from mistakes")
    extent = np.linalg.svd(points - points.mean(0), compute_uv=False)
    if extent[2] < FLAT * extent[0]:
        doubts.append("all points lie in one plane: add some nearer to and farther from it")
    if made.position_std_m > POOR_POSITION_M or made.rotation_std_deg > POOR_ROTATION_DEG:
        doubts.append(
            f"the pose is uncertain by {1e3 * made.position_std_m:.0f} mm and {made.rotation_std_deg:.1f} deg (one "
            "standard error): add poses that differ more"
        )
    focal = [i for i, name in enumerate(made.parameters) if name in ("focal", "fx", "fy")]
    if focal and (worst := float(np.sqrt(made.covariance[focal, focal].max()))) > POOR_FOCAL:
        doubts.append(f"the focal length is uncertain by {100 * worst:.0f} %: give K, or points at more depths")
    outliers = int((made.error_px > OUTLIER * noise_px).sum())
    if outliers:
        doubts.append(f"{outliers} of {count} points are more than {OUTLIER * noise_px:g} px off: look at the picture")
    if made.median_px > 3 * noise_px:
        doubts.append(f"the median error of {made.median_px:.1f} px is far above the {noise_px:g} px expected")
    return doubts


def _first_bad(points_m: NDArray[Any], index: NDArray[np.int64]) -> int:
    return int(index[~np.isfinite(points_m[index]).all(-1)][0])
