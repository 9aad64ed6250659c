"""Robust least squares behind a calibration: cameras, and the unknown offset of a marker, from pixels of moving points.

Everything here is numpy and scipy, in float64. A camera is searched for over rotations first: with the rotation given,
its position (and a marker's offset) follow from linear equations, so no starting guess is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Free = Literal["pose", "focal", "fx_fy", "intrinsics"]
INTRINSICS: dict[str, tuple[str, ...]] = {
    "pose": (),
    "focal": ("focal",),  # fx and fy by one factor
    "fx_fy": ("fx", "fy"),
    "intrinsics": ("fx", "fy", "cx", "cy"),
}
POSE = ("rx", "ry", "rz", "tx", "ty", "tz")
ROTATIONS = 1024  # tried as starts: about 20 degrees from one to the next
REFINED = 12  # of these, the best are refined,
AGREEING = 2  # until so many more in a row end where the best one did
FOCAL_FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the given focal length, tried where it is free
OFFSET_PRIOR_M = 1.0  # keeps the search for starts from offsets of kilometres; the fit itself has no prior
NEAREST_M = 0.01  # no point is nearer to the camera


@dataclass(frozen=True, kw_only=True, eq=False)
class Sight:
    """What one camera saw of N points: point i is at anchor_m[i] + turn[i] @ offset in the base frame."""

    pixels: Float[np.ndarray, "N 2"]
    anchor_m: Float[np.ndarray, "N 3"]
    turn: Float[np.ndarray, "N 3 3"] | None = None  # None: the points are known, there is no offset
    K: Float[np.ndarray, "3 3"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Guess:
    """One camera: R and t of T_camera_base, K, and the offset (zero where there is none)."""

    R: Float[np.ndarray, "3 3"]
    t_m: Float[np.ndarray, "3"]
    K: Float[np.ndarray, "3 3"]
    offset_m: Float[np.ndarray, "3"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """The fit of all cameras: `normal` is J'WJ of the parameters (each camera's pose and intrinsics, then offset)."""

    guesses: tuple[Guess, ...]
    residual_px: tuple[Float[np.ndarray, "_ 2"], ...]  # reprojected − seen
    normal: Float[np.ndarray, "p p"]
    variance_px2: float  # of a pixel coordinate, outliers weighted down
    cost: float


def points_of(sight: Sight, offset_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the points in the base frame."""
    return sight.anchor_m if sight.turn is None else sight.anchor_m + sight.turn @ offset_m


def reprojected(sight: Sight, guess: Guess) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where the points appear [px], and how far in front of the camera they are [m]."""
    q = points_of(sight, guess.offset_m) @ guess.R.T + guess.t_m
    depth = np.maximum(q[:, 2], NEAREST_M)
    return q[:, :2] / depth[:, None] @ guess.K[:2, :2].T + guess.K[:2, 2], q[:, 2]


def solve(sights: Sequence[Sight], starts: Sequence[Guess], *, free: Free, loss: str, scale_px: float) -> Solution:
    """Fit all cameras at once from one start each; they share the offset if their sights have one.

    `loss` and `scale_px` are scipy's: what a residual beyond `scale_px` counts.
    """
    from scipy.optimize import least_squares

    shared = np.mean([start.offset_m for start in starts], axis=0)
    guesses = [replace(start, offset_m=shared) for start in starts]
    size = len(guesses) * _width(free) + 3 * (sights[0].turn is not None)
    zero = np.zeros(size)

    def at(step: NDArray[np.float64]) -> list[Guess]:
        return [moved(guess, part, free) for guess, part in zip(guesses, _parts(step, len(guesses), free), strict=True)]

    def residual(step: NDArray[np.float64]) -> NDArray[np.float64]:
        pairs = zip(sights, at(step), strict=True)
        return np.concatenate([(reprojected(sight, guess)[0] - sight.pixels).ravel() for sight, guess in pairs])

    def jacobian(step: NDArray[np.float64]) -> NDArray[np.float64]:
        return jacobian_of(sights, guesses, step, free)

    found = least_squares(
        residual, zero, jac=jacobian, loss=loss, f_scale=scale_px, x_scale="jac", max_nfev=100, xtol=1e-9, ftol=1e-9
    )
    guesses = at(found.x)
    flat, J = residual(zero), jacobian(zero)
    weight = _weights(flat / scale_px, loss)
    normal = J.T @ (weight[:, None] * J)
    spare = max(weight.sum() - size, 1.0)
    ends = np.cumsum([2 * len(sight.pixels) for sight in sights])[:-1]
    return Solution(
        guesses=tuple(guesses),
        residual_px=tuple(part.reshape(-1, 2) for part in np.split(flat, ends)),
        normal=normal,
        variance_px2=float((weight * flat**2).sum() / spare),
        cost=float(found.cost),
    )


def searched(sight: Sight, *, free: Free, loss: str, scale_px: float) -> Solution | None:
    """Fit one camera without a start; None where no start puts the points in front of the camera."""
    from scipy.spatial.transform import Rotation

    R = Rotation.random(ROTATIONS, rng=np.random.default_rng(0)).as_matrix()
    guesses: list[tuple[float, Guess]] = []
    for factor in FOCAL_FACTORS if free != "pose" else (1.0,):
        K = sight.K.copy()
        K[:2, :2] *= factor
        guesses += _linear(replace(sight, K=K), R, scale_px)
    guesses.sort(key=lambda pair: pair[0])
    best: Solution | None = None
    agreeing = 0
    for _, guess in guesses[:REFINED]:
        found = solve([sight], [guess], free=free, loss=loss, scale_px=scale_px)
        if reprojected(sight, found.guesses[0])[1].min() <= NEAREST_M:
            continue
        agreeing = agreeing + 1 if best is not None and abs(found.cost - best.cost) < 1e-4 * best.cost else 0
        if best is None or found.cost < best.cost:
            best = found
        if agreeing >= AGREEING:
            break
    return best


def _linear(sight: Sight, R: Float[np.ndarray, "B 3 3"], scale_px: float) -> list[tuple[float, Guess]]:
    """For each rotation, solve for position and offset, outliers weighted down; return those in front, with a cost.

    A point q = R (a + A m) + t seen at the normalised (x, y) has x q_z − q_x = 0 and y q_z − q_y = 0: linear in t, m.
    """
    focal = np.array([sight.K[0, 0], sight.K[1, 1]])
    xy = (sight.pixels - sight.K[:2, 2]) / focal
    count = len(xy)
    rows = xy[None, :, :, None] * R[:, None, 2:3, :] - R[:, None, :2, :]  # (B, N, 2, 3), for points in the base
    A = np.zeros((len(R), count, 2, 6))
    A[..., 0, 0] = A[..., 1, 1] = -1
    A[..., 2] = xy
    if sight.turn is not None:
        A[..., 3:] = rows @ sight.turn
    b = -np.einsum("bnij,nj->bni", rows, sight.anchor_m)
    ridge = np.diag([1e-9] * 3 + [1e-6 / OFFSET_PRIOR_M**2] * 3)
    weight = np.ones((len(R), count))
    turn = np.zeros((count, 3, 3)) if sight.turn is None else sight.turn
    for _ in range(4):
        WA = weight[..., None, None] * A
        solved = np.linalg.solve(
            np.einsum("bnij,bnik->bjk", WA, A) + ridge, np.einsum("bnij,bni->bj", WA, b)[..., None]
        )[..., 0]
        points = sight.anchor_m + np.einsum("nij,bj->bni", turn, solved[:, 3:])
        q = points @ R.mT + solved[:, None, :3]
        depth = q[..., 2]
        off = (q[..., :2] / np.maximum(depth, NEAREST_M)[..., None] - xy) * focal
        error = np.linalg.norm(off, axis=-1) / (8 * scale_px)  # wide: a rotation of the grid is 10 degrees off
        weight = 1 / (1 + error**2)
    cost = np.where((depth > NEAREST_M).all(1), np.log1p(error**2).sum(1), np.inf)
    return [
        (float(cost[i]), Guess(R=R[i], t_m=solved[i, :3], K=sight.K, offset_m=solved[i, 3:]))
        for i in np.argsort(cost)[:REFINED]
        if np.isfinite(cost[i])
    ]


def _width(free: Free) -> int:
    return 6 + len(INTRINSICS[free])


def _parts(step: NDArray[np.float64], cameras: int, free: Free) -> list[NDArray[np.float64]]:
    """Split a step into each camera's own part, the shared offset's at its end (zeros where there is none)."""
    width = _width(free)
    offset = step[cameras * width :] if len(step) > cameras * width else np.zeros(3)
    return [np.concatenate([step[c * width : (c + 1) * width], offset]) for c in range(cameras)]


def moved(guess: Guess, step: NDArray[np.float64], free: Free) -> Guess:
    """Turn by exp(step[:3]), shift by step[3:6], scale focal lengths by exp(…), shift the principal point, …"""
    from scipy.spatial.transform import Rotation

    inner = step[6:-3]
    K = guess.K.copy()
    if len(inner):
        K[0, 0] *= np.exp(inner[0])
        K[1, 1] *= np.exp(inner[min(1, len(inner) - 1)])
    if len(inner) == 4:
        K[:2, 2] += inner[2:]
    return Guess(
        R=Rotation.from_rotvec(step[:3]).as_matrix() @ guess.R,
        t_m=guess.t_m + step[3:6],
        K=K,
        offset_m=guess.offset_m + step[-3:],
    )


def jacobian_of(
    sights: Sequence[Sight], guesses: Sequence[Guess], step: NDArray[np.float64], free: Free
) -> NDArray[np.float64]:
    """Derivatives of all residuals by the step, at the step."""
    width, cameras = _width(free), len(guesses)
    blocks = []
    for c, (sight, guess, part) in enumerate(zip(sights, guesses, _parts(step, cameras, free), strict=True)):
        now = moved(guess, part, free)
        turned = points_of(sight, now.offset_m) @ now.R.T
        q = turned + now.t_m
        depth = np.maximum(q[:, 2], NEAREST_M)
        fx, fy = now.K[0, 0], now.K[1, 1]
        by_q = np.zeros((len(q), 2, 3))
        by_q[:, 0, 0], by_q[:, 1, 1] = fx / depth, fy / depth
        by_q[:, 0, 2], by_q[:, 1, 2] = -fx * q[:, 0] / depth**2, -fy * q[:, 1] / depth**2
        by_q[:, :, 2] *= (q[:, 2] > NEAREST_M)[:, None]
        block = np.zeros((len(q), 2, len(step)))
        own = block[:, :, c * width : (c + 1) * width]
        own[..., :3] = by_q @ -cross(turned) @ _left_jacobian(part[:3])
        own[..., 3:6] = by_q
        along = np.stack([fx * q[:, 0] / depth, fy * q[:, 1] / depth], -1)
        inner = len(INTRINSICS[free])
        if inner == 1:
            own[..., 6] = along
        elif inner:
            own[:, 0, 6], own[:, 1, 7] = along[:, 0], along[:, 1]
        if inner == 4:
            own[:, 0, 8] = own[:, 1, 9] = 1
        if sight.turn is not None:
            block[..., -3:] = by_q @ now.R @ sight.turn
        blocks.append(block.reshape(-1, len(step)))
    return np.concatenate(blocks)


def cross(v: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = np.moveaxis(v, -1, 0)
    o = np.zeros_like(x)
    return np.stack([np.stack([o, -z, y], -1), np.stack([z, o, -x], -1), np.stack([-y, x, o], -1)], -2)


def _left_jacobian(w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return J with exp(w + d) ≈ exp(J d) exp(w)."""
    angle = float(np.linalg.norm(w))
    W = cross(w)
    first, second = (
        (0.5, 1 / 6) if angle < 1e-4 else ((1 - np.cos(angle)) / angle**2, (angle - np.sin(angle)) / angle**3)
    )
    made: NDArray[np.float64] = np.eye(3) + first * W + second * W @ W
    return made


def _weights(ratio: NDArray[np.float64], loss: str) -> NDArray[np.float64]:
    """Derivative of scipy's robust losses: how much a residual counts."""
    if loss == "cauchy":
        return 1 / (1 + ratio**2)
    if loss == "soft_l1":
        return 1 / np.sqrt(1 + ratio**2)
    assert loss == "linear", loss
    return np.ones_like(ratio)
