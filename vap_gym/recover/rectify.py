"""Rectification: the homography that takes a prompt to the observed frame, applied to the camera, not to the pixels.

The prompt of the nominal camera K [R|t] moved by a homography H is what H K [R|t] sees. H K = K' Q with K' upper
triangular and Q a rotation (RQ decomposition), so H K [R|t] = K' (Q [R|t]): again a pinhole camera, turned on the spot,
with other intrinsics. Prompts of any kind are then drawn anew by that camera, exactly and crisply, while warped
pixels would blur, thicken and fray thin bones; and whoever reads the data set gets a camera that fits its frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from vap_gym.errors import VapError, require
from vap_gym.geometry import Camera
from vap_gym.recover.drift import similarity
from vap_gym.recover.matching import Matches

LEAST_MATCHES = 60  # of a whole clip, to move its prompts
OUTLIER_PX = 3.0
ROUNDS = 8  # of reweighting


def rectified_camera(camera: Camera, homography: Float[np.ndarray, "T 3 3"]) -> Camera:
    """Return the T cameras that see what `camera` (one, or T) sees after homographies of its picture, float64.

    Raises VapError where a homography is singular or mirrors the picture: no camera sees that.
    """
    det = np.linalg.det(np.where(np.isfinite(homography), homography, 0.0))
    if not np.isfinite(homography).all() or (det / np.maximum(np.abs(homography).max((1, 2)), 1e-12) ** 3 < 1e-9).any():
        raise VapError(
            f"homographies must be finite, with positive determinants, got determinants {det.min():.3g} to "
            f"{det.max():.3g}. They take px of the nominal picture to px of the frame, without mirroring it."
        )
    M = homography @ camera.K.double().numpy()
    # RQ from QR: of the transposed matrix with its rows reversed.
    q, r = np.linalg.qr(M[:, ::-1].swapaxes(1, 2))
    K, Q = r.swapaxes(1, 2)[:, ::-1, ::-1], q.swapaxes(1, 2)[:, ::-1]
    sign = np.sign(np.diagonal(K, axis1=1, axis2=2))
    K, Q = K * sign[:, None, :], Q * sign[:, :, None]
    turned = np.tile(np.eye(4), (len(M), 1, 1))
    turned[:, :3, :3] = Q.swapaxes(1, 2)
    return replace(
        camera,
        K=torch.from_numpy(K / K[:, 2:, 2:]),
        T_world_camera=camera.T_world_camera.double() @ torch.from_numpy(turned),
    )


def moved(
    points_px: Float[np.ndarray, "*batch N 2"], homography: Float[np.ndarray, "*batch 3 3"]
) -> NDArray[np.float64]:
    """Return where homographies take points, in px."""
    at = np.concatenate([points_px, np.ones_like(points_px[..., :1])], -1) @ homography.swapaxes(-1, -2)
    placed: NDArray[np.float64] = at[..., :2] / at[..., 2:]
    return placed


def common_shift(matches: Sequence[Matches]) -> Float[np.ndarray, "3 3"]:
    """Return the similarity that best takes all frames' rendered points to their observed ones.

    Robust: a random half of wrong matches does little harm. The identity where there are too few.
    """
    cv2 = require("cv2", "[data]", "Aligning prompts")
    a = np.concatenate([np.zeros((0, 2)), *(m.rendered_px for m in matches)])
    b = np.concatenate([np.zeros((0, 2)), *(m.observed_px for m in matches)])
    confidence = np.concatenate([np.zeros(0), *(m.confidence for m in matches)])
    known = confidence > 0
    a, b, confidence = a[known], b[known], confidence[known]
    if len(a) < LEAST_MATCHES:
        return np.eye(3)
    start, _ = cv2.estimateAffinePartial2D(a, b, method=cv2.RANSAC, ransacReprojThreshold=OUTLIER_PX, maxIters=500)
    if start is None:
        return np.eye(3)
    H = np.vstack([start, [0, 0, 1]])
    for _ in range(ROUNDS):
        error = np.linalg.norm(moved(a, H) - b, axis=-1)
        H = similarity(a, b, confidence / (1 + (error / OUTLIER_PX) ** 2))
    return H
