"""Where the loss of a clip weighs more: around the gripper or the hands, from the geometry that draws the prompt.

A weight is 1 far from them and 1 + `extra` on them. Robots: those bones of the card's skeleton that move when the
gripper does, as thick as they are plus a margin in metres. Hands: all bones of the 21 joints, with the margin taken
from the hand's own size in the picture.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from vap_gym.cards import RobotCard
from vap_gym.data.layout import DataError
from vap_gym.geometry import Camera
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton

MARGIN_M = 0.03
PALM_M = 0.09  # wrist to middle knuckle of a grown hand: what turns metres into pixels where depth is not known
HAND_EDGES = tuple((4 * f + i if i else 0, 4 * f + i + 1) for f in range(5) for i in range(4))


class GripperRegion:
    """The region around a robot's gripper: settings only.

    Args:
        robot: whose skeleton has key-points that move with the gripper; if none does, all of it counts.
        margin_m: how far the region reaches beyond the bones.
    """

    def __init__(self, robot: RobotCard, *, margin_m: float = MARGIN_M) -> None:
        card = robot.skeleton
        moving = _moves_with_gripper(robot)
        bones = [bone for bone in card.bones if bone.start in moving or bone.end in moving] or list(card.bones)
        self.bones = tuple((bone.start, bone.end) for bone in bones)
        white = tuple(replace(b, radius_m=b.radius_m + margin_m, colour_rgb=(255, 255, 255)) for b in bones)
        self._skeleton = Skeleton(replace(robot, skeleton=replace(card, bones=white, drop_from=())))

    def mask(
        self, q: Float[Tensor, "T n"], gripper: Float[Tensor, " T"], camera: Camera
    ) -> Float32[np.ndarray, "T H W"]:
        """Return coverage in [0, 1] at the camera's size: robots at arm joints [rad] and closedness (0 .. 1)."""
        drawn = draw(self._skeleton.at_joints(q, gripper), camera, self._skeleton, thickness_px=0.01)
        return drawn[..., 0].astype(np.float32) / 255


def hand_mask(
    joints_px: Float[np.ndarray, "T hands 21 2"], *, frame_size_px: tuple[int, int], margin_m: float = MARGIN_M
) -> Float32[np.ndarray, "T H W"]:
    """Return 1 around the bones of hands and 0 elsewhere; joints with NaN have no bones. `frame_size_px` is (w, h)."""
    from PIL import Image, ImageDraw

    masks = []
    for hands in joints_px:
        picture = Image.new("L", frame_size_px)
        pen = ImageDraw.Draw(picture)
        for joints in hands:
            palm_px = float(np.linalg.norm(joints[9] - joints[0]))
            spread_px = float(np.nanmax(np.ptp(joints, axis=0))) if np.isfinite(joints).all() else palm_px
            radius = margin_m * max(palm_px / PALM_M, spread_px / (2 * PALM_M))  # a palm seen end on is short
            if not np.isfinite(radius):
                continue
            for start, end in HAND_EDGES:
                ends = joints[[start, end]]
                if np.isfinite(ends).all():
                    pen.line([tuple(ends[0]), tuple(ends[1])], fill=255, width=max(1, round(2 * radius)))
                    for u, v in ends:
                        pen.ellipse((u - radius, v - radius, u + radius, v + radius), fill=255)
        masks.append(np.asarray(picture, np.float32) / 255)
    return np.stack(masks)


def at_latents(weights: Float32[np.ndarray, "T H W"], *, frames: int = 4, px: int = 8) -> Float32[np.ndarray, "t h w"]:
    """Return the mean weight of each latent of a causal video codec: the first frame alone, then `frames` together.

    So 25 frames are 7 latents (CogVideoX). Height and width must be multiples of `px`, T one more than of `frames`.
    """
    T, H, W = weights.shape
    if (T - 1) % frames or H % px or W % px:
        raise DataError(
            f"Latents need 1 + a multiple of {frames} frames and multiples of {px} px, got {T} frames of {W} x {H} px. "
            "25 frames of 144 x 96 are right."
        )
    pooled = weights.reshape(T, H // px, px, W // px, px).mean((2, 4))
    later = pooled[1:].reshape((T - 1) // frames, frames, H // px, W // px).mean(1)
    return np.concatenate([pooled[:1], later]).astype(np.float32)


def _moves_with_gripper(robot: RobotCard) -> set[str]:
    """Names of the key-points that are elsewhere when the gripper is open and when it is closed."""
    figure = Skeleton(robot, dtype=torch.float64)
    q = torch.tensor(robot.home_q_rad, dtype=torch.float64)
    opened, closed = (figure.at_joints(q, torch.tensor(g, dtype=torch.float64)) for g in (0.0, 1.0))
    moved = (opened - closed).norm(dim=-1) > 1e-4
    return {name for name, moves in zip(figure.keypoint_names, moved.tolist(), strict=True) if moves}
