"""Made-up hands whose truth is known: two hands that move, flex and cross, and what a faulty detector sees of them.

For tests and timings of the pipeline; nothing here is meant to look real.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vap_gym.recover.hands.detections import Detections, detections

FINGER_ROOTS_M = np.array(
    [[-0.022, -0.022, 0.0], [-0.024, -0.088, 0.0], [-0.003, -0.09, 0.0], [0.015, -0.086, 0.0], [0.031, -0.078, 0.0]]
)
"""First joints of the five fingers of a right hand seen from its back, fingers up in the picture (wrist at 0)."""

FINGER_TURN_RAD = np.array([-0.75, -0.16, -0.02, 0.1, 0.22])
"""How far each finger points to the side of straight up."""

BONES_M = np.array(
    [[0.04, 0.032, 0.027], [0.042, 0.026, 0.021], [0.046, 0.03, 0.022], [0.042, 0.028, 0.021], [0.034, 0.02, 0.019]]
)

PALM_M = np.concatenate([np.zeros((1, 3)), FINGER_ROOTS_M])


@dataclass(frozen=True, kw_only=True, eq=False)
class TrueHands:
    """Left (0) and right (1) hand in every frame, in the camera (m) and in the picture (px)."""

    joints_m: Float[np.ndarray, "T 2 21 3"]
    joints_px: Float[np.ndarray, "T 2 21 2"]
    K: Float[np.ndarray, "3 3"]
    frame_size_px: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What is wrong with a detector: shares of detections, noise in px."""

    missed: float = 0.2
    flipped: float = 0.1
    mirrored: bool = False  # a flipped detection also has its joints mirrored, as a fit of the wrong hand's mesh may
    noise_px: float = 1.5
    third_hand: float = 0.0  # share of the video in which a stranger's hand is seen
    doubles: float = 0.0  # share of detections that are reported twice
    hidden_m: float = (
        0.0  # the farther hand is not seen where both are less than this apart in the picture, at its depth
    )


def shaped(flex: Float[np.ndarray, "*batch 5"]) -> Float[np.ndarray, "*batch 21 3"]:
    """Return right hands with fingers bent by `flex` radians a joint, wrist at 0, fingers up (−y), back to us."""
    batch = flex.shape[:-1]
    points = np.zeros((*batch, 5, 4, 3))
    points[..., 0, :] = FINGER_ROOTS_M
    bend = np.zeros((*batch, 5))
    for bone in range(3):
        bend = bend + flex
        up, away = np.cos(bend), np.sin(bend)
        along = np.stack([np.sin(FINGER_TURN_RAD) * up, -np.cos(FINGER_TURN_RAD) * up, away], -1)
        points[..., bone + 1, :] = points[..., bone, :] + BONES_M[:, bone, None] * along
    return np.concatenate([np.zeros((*batch, 1, 3)), points.reshape(*batch, 20, 3)], axis=-2)


def crossing_hands(
    frames: int, *, seed: int, rate_hz: float = 30.0, frame_size_px: tuple[int, int] = (640, 480), crossing: bool = True
) -> TrueHands:
    """Return two hands that swing sideways past one another every few seconds, turning and flexing as they go."""
    rng = np.random.default_rng(seed)
    width, height = frame_size_px
    K = np.array([[0.9 * width, 0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]])
    time = np.arange(frames) / rate_hz
    joints = np.empty((frames, 2, 21, 3))
    period = rng.uniform(3, 6)
    for side in range(2):
        sign = 1 if side else -1
        phase, wave = rng.uniform(-0.4, 0.4), rng.uniform(2, 5, size=8)
        swing = np.cos(2 * np.pi * time / period + phase)
        x = sign * (0.12 * swing if crossing else 0.13 + 0.02 * swing)
        y = 0.06 + 0.03 * np.sin(2 * np.pi * time / wave[0] + phase)
        z = 0.5 + sign * 0.04 + 0.04 * np.sin(2 * np.pi * time / wave[1])
        flex = 0.35 + 0.3 * np.sin(2 * np.pi * time[:, None] / wave[2:7] + np.arange(5))
        hand = shaped(flex)
        if not side:
            hand = hand * np.array([-1.0, 1.0, 1.0])
        turn = 0.3 * np.sin(2 * np.pi * time / wave[7])
        rotation = np.zeros((frames, 3, 3))
        rotation[:, 0, 0], rotation[:, 0, 1] = np.cos(turn), -np.sin(turn)
        rotation[:, 1, 0], rotation[:, 1, 1], rotation[:, 2, 2] = np.sin(turn), np.cos(turn), 1
        joints[:, side] = hand @ rotation.swapaxes(1, 2) + np.stack([x, y, z], -1)[:, None]
    return TrueHands(joints_m=joints, joints_px=projected(joints, K), K=K, frame_size_px=frame_size_px)


def projected(joints_m: Float[np.ndarray, "*batch 3"], K: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "*batch 2"]:
    """Return pixels of points in front of the camera."""
    uvw = joints_m @ K.T
    uv: NDArray[np.float64] = uvw[..., :2] / uvw[..., 2:]
    return uv


def seen(truth: TrueHands, faults: Faults, *, seed: int) -> Detections:
    """Return what a faulty detector reports of true hands."""
    rng = np.random.default_rng(seed)
    frames = len(truth.joints_px)
    every = np.arange(frames)
    hands = [(every, np.full(frames, s), truth.joints_px[:, s], truth.joints_m[:, s]) for s in (0, 1)]
    if faults.hidden_m:
        middle, depth = truth.joints_px.mean(2), truth.joints_m[..., 2].mean(2)
        apart_m = np.linalg.norm(middle[:, 0] - middle[:, 1], axis=-1) * depth.max(1) / truth.K[0, 0]
        clear = [(apart_m >= faults.hidden_m) | (depth[:, s] <= depth[:, 1 - s]) for s in (0, 1)]
        hands = [(hand[0][c], hand[1][c], hand[2][c], hand[3][c]) for hand, c in zip(hands, clear)]
    if faults.third_hand:
        length = max(1, round(faults.third_hand * frames))
        begin = int(rng.integers(0, frames - length + 1))
        flex = np.full((length, 5), 0.2)
        path = np.stack([0.1 * np.sin(np.arange(length) / 25), np.full(length, -0.16), np.full(length, 0.75)], -1)
        stranger = -shaped(flex) * np.array([1.0, 1.0, -1.0]) + path[:, None]  # fingers down: from across the table
        as_side = np.full(length, int(rng.integers(2)))
        hands.append((np.arange(begin, begin + length), as_side, projected(stranger, truth.K), stranger))
    frame, side, joints_px, joints_m = (np.concatenate([hand[i] for hand in hands]) for i in range(4))
    if faults.doubles:
        twice = rng.random(len(frame)) < faults.doubles
        frame, side, joints_px, joints_m = (np.concatenate([x, x[twice]]) for x in (frame, side, joints_px, joints_m))
    stays = rng.random(len(frame)) >= faults.missed
    frame, side, joints_px, joints_m = (x[stays] for x in (frame, side, joints_px, joints_m))
    joints_px = joints_px + rng.normal(0, 1, joints_px.shape) * faults.noise_px
    low, high = joints_px.min(1), joints_px.max(1)
    margin = 0.1 * (high - low)
    flipped = rng.random(len(frame)) < faults.flipped
    if faults.mirrored:
        joints_px[flipped, :, 0] = (low + high)[flipped, :1] - joints_px[flipped, :, 0]
    return detections(
        frames,
        frame=frame,
        box_px=np.concatenate([low - margin, high + margin], -1).reshape(-1, 4),
        confidence=rng.uniform(0.5, 0.95, len(frame)),
        right=np.where(flipped, 1 - side, side).astype(np.float64),
        joints_px=joints_px,
        joints_m=joints_m,
    )
