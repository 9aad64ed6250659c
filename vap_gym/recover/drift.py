"""How the camera drifted during a clip: homographies from frame 0 to each frame, from background features alone.

Features (SIFT) on the robot are left out, since it moves by itself. A frame is registered to the first that has
features, or where too little of that is left, to the last one that was registered. The map is a similarity unless an
affine map or a homography has clearly more features on its side: on plain walls a few features in a corner, or on a
thing that was pushed, must not bend the rest of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray

from vap_gym.errors import VapError, require

AROUND_ROBOT_PX = 9  # also left out: cables, cameras on the wrist, the robot's shadow on what is close
CONTRAST = 0.015  # of SIFT: plain tables and curtains have faint features only
RATIO = 0.8  # nearest to second-nearest descriptor
OUTLIER_PX = 1.5
LEAST_INLIERS = 12
LEAST_SPREAD = 0.12  # standard deviation of the features, as a share of the picture's diagonal
FREER = 0.1  # share of its inliers that an affine map must have more than a similarity, and a homography than that
STILL_PX = 0.6  # a camera whose corners move less than this, in the median, stands still
SMOOTH_FRAMES = 1.0


@dataclass(frozen=True, kw_only=True)
class Drift:
    """T homographies that take px of frame 0 to px of frame t, and how each was found."""

    homography: Float[np.ndarray, "T 3 3"]
    inliers: NDArray[np.int64]  # background features that agree; 0 where none was found
    is_registered: Bool[np.ndarray, " T"]

    @property
    def share(self) -> float:
        """The share of frames that were registered."""
        return float(self.is_registered.mean())


class _Features(NamedTuple):
    at_px: NDArray[np.float64]
    descriptor: NDArray[np.float32]


def no_drift(frames: int) -> Drift:
    """What is known of the drift of a camera whose pose is logged at every frame: nothing to add."""
    return Drift(
        homography=np.tile(np.eye(3), (frames, 1, 1)),
        inliers=np.zeros(frames, np.int64),
        is_registered=np.ones(frames, bool),
    )


def find_drift(frames: UInt8[np.ndarray, "T H W 3"], robot: Bool[np.ndarray, "T H W"]) -> Drift:
    """Register every frame to frame 0 by its background; `robot` is where the robot may be.

    Frames without enough features (blank, covered, blurred) are not registered and take what lies between their
    neighbours. A camera that stands still gets exact identities, so that registration adds no noise.
    """
    if len(frames) != len(robot) or frames.shape[1:3] != robot.shape[1:]:
        raise VapError(
            f"frames and robot must be of one length and size, got {frames.shape} and {robot.shape}. "
            "Render the robot with the camera of these frames."
        )
    cv2 = require("cv2", "[data]", "Registering frames")
    sift = cv2.SIFT_create(contrastThreshold=CONTRAST)
    count, height, width = robot.shape
    seen = [_features(cv2, sift, frame, mask) for frame, mask in zip(frames, robot, strict=True)]
    enough = [t for t in range(count) if len(seen[t].at_px) >= LEAST_INLIERS]
    H, inliers, registered = np.tile(np.eye(3), (count, 1, 1)), np.zeros(count, np.int64), np.zeros(count, bool)
    if not enough:
        return Drift(homography=H, inliers=inliers, is_registered=registered)
    anchor = last = enough[0]
    registered[anchor], inliers[anchor] = True, len(seen[anchor].at_px)
    for t in enough[1:]:
        for known in dict.fromkeys((anchor, last)):
            found = _register(cv2, seen[known], seen[t], diagonal_px=float(np.hypot(height, width)))
            if found is not None:
                H[t], inliers[t], registered[t], last = found[0] @ H[known], found[1], True, t
                break
    H = smoothed(H, registered * np.sqrt(inliers), (width, height), frames=SMOOTH_FRAMES)
    H = H @ np.linalg.inv(H[0])
    moved = np.linalg.norm(corners(H, (width, height)) - corners(np.eye(3)[None], (width, height)), axis=-1)
    if np.median(moved.max(-1)[registered]) < STILL_PX:
        H = np.tile(np.eye(3), (count, 1, 1))
    return Drift(homography=H / H[:, 2:, 2:], inliers=inliers, is_registered=registered)


def corners(homography: Float[np.ndarray, "T 3 3"], size_px: tuple[int, int]) -> Float[np.ndarray, "T 4 2"]:
    """Return where homographies take the corners of a picture of (width, height)."""
    width, height = size_px
    at = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], np.float64)
    moved = at @ homography.swapaxes(1, 2)
    placed: NDArray[np.float64] = moved[..., :2] / moved[..., 2:]
    return placed


def from_corners(corners_px: Float[np.ndarray, "T 4 2"], size_px: tuple[int, int]) -> Float[np.ndarray, "T 3 3"]:
    """Return the homographies that take the corners of a picture to the given places: the inverse of `corners`."""
    cv2 = require("cv2", "[data]", "Fitting homographies")
    width, height = size_px
    at = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    return np.stack([cv2.getPerspectiveTransform(at, to.astype(np.float32)) for to in corners_px]).astype(np.float64)


def smoothed(
    homography: Float[np.ndarray, "T 3 3"], weight: Float[np.ndarray, " T"], size_px: tuple[int, int], *, frames: float
) -> Float[np.ndarray, "T 3 3"]:
    """Smooth homographies over time by a Gaussian of that many frames, on the paths of the picture's corners.

    Frames of weight 0 take what their neighbours in time say. Identities where no frame has weight.
    """
    if not (weight > 0).any():
        return np.tile(np.eye(3), (len(homography), 1, 1))
    known = np.flatnonzero(weight > 0)
    paths = corners(homography, size_px).reshape(len(homography), 8)
    every = np.arange(len(homography))
    paths = np.stack([np.interp(every, known, path[known]) for path in paths.T], axis=-1)
    weight = np.where(weight > 0, weight, 0.05 * weight[known].mean())
    near = np.exp(-0.5 * ((every[:, None] - every) / frames) ** 2) * weight
    # Of a line through the neighbours, not their mean: a mean would lag where the path ends.
    smooth = np.empty_like(paths)
    for t in every:
        shift = every - t
        w = near[t]
        m0, m1, m2 = w.sum(), (w * shift).sum(), (w * shift**2).sum()
        spread = m0 * m2 - m1**2
        line = (m2 - m1 * shift) / spread if spread > 1e-6 * m0**2 else np.full(len(every), 1 / m0)
        smooth[t] = (w * line) @ paths
    return from_corners(smooth.reshape(-1, 4, 2), size_px)


def _features(cv2: Any, sift: Any, frame: NDArray[np.uint8], robot: NDArray[np.bool_]) -> _Features:
    size = 2 * AROUND_ROBOT_PX + 1
    free = cv2.erode((~robot).astype(np.uint8), np.ones((size, size), np.uint8), borderValue=1) * 255
    points, descriptor = sift.detectAndCompute(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), free)
    if descriptor is None:
        return _Features(np.zeros((0, 2)), np.zeros((0, 128), np.float32))
    return _Features(np.array([p.pt for p in points]) + 0.5, np.sqrt(descriptor / 512.0))  # OpenCV counts from centres


def _register(
    cv2: Any, old: _Features, new: _Features, *, diagonal_px: float
) -> tuple[NDArray[np.float64], int] | None:
    """Return the map from px of `old` to px of `new` and how many features agree; None where too few do."""
    if min(len(old.at_px), len(new.at_px)) < LEAST_INLIERS:
        return None
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(old.descriptor, new.descriptor, k=2)
    good = [a for a, b in pairs if a.distance < RATIO * b.distance]
    if len(good) < LEAST_INLIERS:
        return None
    a = old.at_px[[m.queryIdx for m in good]]
    b = new.at_px[[m.trainIdx for m in good]]
    found = best_map(a, b)
    if found is None:
        return None
    H, inside = found
    spread = np.linalg.norm(a[inside].std(axis=0))
    if inside.sum() < LEAST_INLIERS or spread < LEAST_SPREAD * diagonal_px:
        return None
    return H, int(inside.sum())


def best_map(
    a: Float[np.ndarray, "N 2"], b: Float[np.ndarray, "N 2"]
) -> tuple[Float[np.ndarray, "3 3"], Bool[np.ndarray, " N"]] | None:
    """Return the map from points a to points b (px), and which of them agree with it; None where none is found.

    A similarity, unless a freer map makes so many more points agree that it has earned its parameters.
    """
    cv2 = require("cv2", "[data]", "Fitting homographies")
    options = {"ransacReprojThreshold": OUTLIER_PX, "maxIters": 2000, "confidence": 0.999}
    tried = (
        (0.0, cv2.estimateAffinePartial2D(a, b, method=cv2.RANSAC, refineIters=20, **options)),
        (FREER, cv2.estimateAffine2D(a, b, method=cv2.RANSAC, refineIters=20, **options)),
        (2 * FREER, cv2.findHomography(a, b, cv2.USAC_MAGSAC, **options)),
    )
    best, best_worth = None, 0.0
    for price, (H, kept) in tried:
        if H is None or kept is None or not np.isfinite(H).all():
            continue
        H = np.vstack([H, [0, 0, 1]]) if len(H) == 2 else H
        inside = kept.ravel() > 0
        worth = inside.sum() * (1 - price) - 20 * price
        if worth > best_worth:
            best, best_worth = (np.asarray(H / H[2, 2], np.float64), inside), worth
    return best


def similarity(
    a: Float[np.ndarray, "N 2"], b: Float[np.ndarray, "N 2"], weight: Float[np.ndarray, " N"] | None = None
) -> Float[np.ndarray, "3 3"]:
    """Return the similarity (turn, scale, shift) that takes points a to b with the least squared error."""
    w = np.ones(len(a)) if weight is None else weight
    w = w / w.sum()
    mean_a, mean_b = w @ a, w @ b
    za, zb = (a - mean_a) @ [1, 1j], (b - mean_b) @ [1, 1j]
    power = float(w @ np.abs(za) ** 2)
    z = (w * np.conj(za)) @ zb / power if power > 1e-12 else 1.0 + 0j
    turn = np.array([[z.real, -z.imag], [z.imag, z.real]])
    H = np.eye(3)
    H[:2, :2], H[:2, 2] = turn, mean_b - turn @ mean_a
    return H


def stabilised(frames: UInt8[np.ndarray, "T H W 3"], homography: Float[np.ndarray, "T 3 3"]) -> NDArray[np.uint8]:
    """Return the frames as frame 0's camera would have taken them: the drift undone."""
    if np.array_equal(homography, np.broadcast_to(np.eye(3), homography.shape)):
        return frames
    cv2 = require("cv2", "[data]", "Undoing drift")
    size = (frames.shape[2], frames.shape[1])
    from_centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV counts from pixels' centres
    maps = np.linalg.inv(from_centre) @ homography @ from_centre
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.stack(
        [
            cv2.warpPerspective(frame, H, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
            for frame, H in zip(frames, maps, strict=True)
        ]
    )
