"""Poses and pinhole cameras: `p_world = T_world_camera @ p_camera`, OpenCV axes, batched and differentiable.

Lengths in metres, angles in radians; pixel (0, 0) is the picture's top-left corner, not the middle of its first pixel,
so that resizing scales coordinates. Dtypes are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.rotations import (
    quaternion_xyzw_from_rotation,
    rotation_from_quaternion_xyzw,
    rotation_from_rotvec,
    rotation_from_xyz_euler,
    rotvec_from_rotation,
    skew,
    xyz_euler_from_rotation,
)

__all__ = [
    "Camera", "CameraMount", "centre_crop_32", "inverse", "pose", "pose_from_xyz_euler",
    "quaternion_xyzw_from_rotation", "rotation_from_quaternion_xyzw", "rotation_from_rotvec",
    "rotation_from_xyz_euler", "rotvec_from_rotation", "skew", "swayed", "transform", "xyz_euler_from_pose",
    "xyz_euler_from_rotation",
]  # fmt: skip


def pose(
    rotation: Float[Tensor, "*#batch 3 3"], translation_m: Float[Tensor, "*#batch 3"]
) -> Float[Tensor, "*batch 4 4"]:
    """Return the homogeneous matrix [R t; 0 1]."""
    shape = torch.broadcast_shapes(rotation.shape[:-2], translation_m.shape[:-1])
    top = torch.cat([rotation.expand(*shape, 3, 3), translation_m.expand(*shape, 3).unsqueeze(-1)], -1)
    bottom = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=top.dtype, device=top.device).expand(*shape, 1, 4)
    return torch.cat([top, bottom], -2)


def inverse(T_a_b: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Return T_b_a of a rigid pose (by transposition, not by elimination)."""
    R_b_a = T_a_b[..., :3, :3].mT
    return pose(R_b_a, -(R_b_a @ T_a_b[..., :3, 3:]).squeeze(-1))


def transform(
    T_a_b: Float[Tensor, "*#batch 4 4"], points_b: Float[Tensor, "*#batch points 3"]
) -> Float[Tensor, "*batch points 3"]:
    """Return `points_b` in frame a."""
    return points_b @ T_a_b[..., :3, :3].mT + T_a_b[..., None, :3, 3]


def pose_from_xyz_euler(xyz_euler: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 4 4"]:
    """Return the pose of (x, y, z [m], a, b, c [rad]) with R = R_z(c) R_y(b) R_x(a), as in DROID's logs."""
    return pose(rotation_from_xyz_euler(xyz_euler[..., 3:]), xyz_euler[..., :3])


def xyz_euler_from_pose(T: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 6"]:
    """Return (x, y, z [m], a, b, c [rad]), the inverse of `pose_from_xyz_euler`."""
    return torch.cat([T[..., :3, 3], xyz_euler_from_rotation(T[..., :3, :3])], -1)


def swayed(
    T_world_camera: Float[Tensor, "*batch 4 4"],
    sway: Float[Tensor, "*batch 8"],
    seconds: float | Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch 4 4"]:
    """Return where a camera on a head is `seconds` after it was at `T_world_camera`.

    `sway` holds amplitudes along the camera's axes [m], about them [rad], the period [s] and a phase [rad]; zeros: it
    stands still. Each axis swings with a phase of its own, and x, y, z in .7, 1 and 1.3 of the period.
    """
    seconds = torch.as_tensor(seconds, dtype=sway.dtype, device=sway.device).expand(sway.shape[:-1])
    period = torch.where(sway[..., 6:7] > 0, sway[..., 6:7], 1.0)
    rate = 2 * math.pi / (period * sway.new_tensor([0.7, 1.0, 1.3, 1.3, 0.7, 1.0]))
    phase = sway[..., 7:] + torch.arange(6, dtype=sway.dtype, device=sway.device)

    def away(t: Tensor) -> Tensor:
        offset = sway[..., :6] * (rate * t[..., None] + phase).sin()
        return pose(rotation_from_rotvec(offset[..., 3:]), offset[..., :3])

    still = (sway[..., :6] == 0).all(-1)[..., None, None]
    return torch.where(still, T_world_camera, T_world_camera @ inverse(away(torch.zeros_like(seconds))) @ away(seconds))


def centre_crop_32(width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) in px of the largest centred 3:2 rectangle.

    The one rule for pictures of other shapes: centre crop, then resize.
    """
    if width_px < 3 or height_px < 2:
        raise VapError(f"A picture must be at least 3 x 2 px, got {width_px} x {height_px}.")
    if 2 * width_px >= 3 * height_px:
        width, height = round(height_px * 3 / 2), height_px
    else:
        width, height = width_px, round(width_px * 2 / 3)
    return (width_px - width) // 2, (height_px - height) // 2, width, height


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """A pinhole camera: intrinsics in px of the frame, and its pose in the world (x right, y down, z forward).

    `K` and `T_world_camera` broadcast against each other; `frame_size_px` is (width, height).
    """

    K: Float[Tensor, "*#batch 3 3"]
    T_world_camera: Float[Tensor, "*#batch 4 4"]
    frame_size_px: tuple[int, int]

    @property
    def batch_shape(self) -> torch.Size:
        """The leading shape of the camera; () is a single camera."""
        return torch.Size(torch.broadcast_shapes(self.K.shape[:-2], self.T_world_camera.shape[:-2]))

    def project(
        self, points_world: Float[Tensor, "*batch points 3"]
    ) -> tuple[Float[Tensor, "*batch points 2"], Float[Tensor, "*batch points"]]:
        """Return pixels (u right, v down) and depth [m] along the optical axis. Nothing is clipped: behind is ≤ 0."""
        in_camera = self.points_in_camera(points_world)
        depth = in_camera[..., 2]
        safe = torch.where(depth.abs() < 1e-9, torch.full_like(depth, 1e-9), depth)
        normalised = in_camera[..., :2] / safe.unsqueeze(-1)
        uv = normalised @ self.K[..., :2, :2].mT + self.K[..., None, :2, 2]
        return uv, depth

    def points_in_camera(self, points_world: Float[Tensor, "*batch points 3"]) -> Float[Tensor, "*batch points 3"]:
        """Return world points in the camera's frame [m]."""
        return (points_world - self.T_world_camera[..., None, :3, 3]) @ self.T_world_camera[..., :3, :3]

    def ray(
        self, uv_px: Float[Tensor, "*batch points 2"]
    ) -> tuple[Float[Tensor, "*batch points 3"], Float[Tensor, "*batch points 3"]]:
        """Return origin [m] and unit direction, both in the world, of the ray through each pixel."""
        toward = self._direction_camera(uv_px) @ self.T_world_camera[..., :3, :3].mT
        origin = self.T_world_camera[..., None, :3, 3].expand_as(toward)
        return origin, toward / toward.norm(dim=-1, keepdim=True)

    def unproject(
        self, uv_px: Float[Tensor, "*batch points 2"], depth_m: Float[Tensor, "*batch points"]
    ) -> Float[Tensor, "*batch points 3"]:
        """Return the world points seen at `uv_px` at the given depth along the optical axis."""
        return transform(self.T_world_camera, self._direction_camera(uv_px) * depth_m.unsqueeze(-1))

    def unproject_to_plane(
        self, uv_px: Float[Tensor, "*batch points 2"], z_world_m: float | Tensor
    ) -> Float[Tensor, "*batch points 3"]:
        """Return where each pixel's ray meets the plane z = `z_world_m`; NaN where that is not in front."""
        origin, direction = self.ray(uv_px)
        fall = direction[..., 2]
        distance = (z_world_m - origin[..., 2]) / torch.where(fall == 0, torch.full_like(fall, math.nan), fall)
        distance = torch.where(distance > 0, distance, torch.full_like(distance, math.nan))
        return origin + distance.unsqueeze(-1) * direction

    def _direction_camera(self, uv_px: Tensor) -> Tensor:
        """Rays in the camera's frame with z = 1."""
        centred = (uv_px - self.K[..., None, :2, 2]) @ torch.linalg.inv(self.K[..., :2, :2]).mT
        return torch.cat([centred, torch.ones_like(centred[..., :1])], -1)

    def resized(self, frame_size_px: tuple[int, int]) -> Camera:
        """Return the camera of the picture scaled to (width, height)."""
        scale_x = frame_size_px[0] / self.frame_size_px[0]
        scale_y = frame_size_px[1] / self.frame_size_px[1]
        scale = torch.tensor([[scale_x], [scale_y], [1.0]], dtype=self.K.dtype, device=self.K.device)
        return replace(self, K=self.K * scale, frame_size_px=frame_size_px)

    def cropped(self, left_px: int, top_px: int, width_px: int, height_px: int) -> Camera:
        """Return the camera of the picture cut to the rectangle with that corner and size."""
        shift = torch.zeros(3, 3, dtype=self.K.dtype, device=self.K.device)
        shift[0, 2], shift[1, 2] = left_px, top_px
        return replace(self, K=self.K - shift, frame_size_px=(width_px, height_px))

    @classmethod
    def look_at(
        cls,
        eye: Float[Tensor, "*#batch 3"],
        target: Float[Tensor, "*#batch 3"],
        *,
        vertical_fov_rad: float | Float[Tensor, "*#batch"],
        frame_size_px: tuple[int, int],
        roll_rad: float | Float[Tensor, "*#batch"] = 0.0,
    ) -> Camera:
        """Return a camera at `eye` [m] that has `target` in its centre and the world's z upward in the picture.

        Looking straight up or down, the world's x is upward instead. `roll_rad` turns the camera about its optical axis
        (x toward y). Pixels are square.
        """
        eye, target = torch.broadcast_tensors(eye, target)
        forward = target - eye
        length = forward.norm(dim=-1, keepdim=True)
        if bool((length < 1e-9).any()):
            raise VapError("A camera's eye and target must differ, got the same point twice.")
        forward = forward / length
        up = torch.zeros_like(forward) + forward.new_tensor([0.0, 0.0, 1.0])
        steep = forward[..., :2].norm(dim=-1, keepdim=True) < 1e-6
        up = torch.where(steep, forward.new_tensor([1.0, 0.0, 0.0]), up)
        right = torch.linalg.cross(forward, up)
        right = right / right.norm(dim=-1, keepdim=True)
        down = torch.linalg.cross(forward, right)
        roll = torch.as_tensor(roll_rad, dtype=eye.dtype, device=eye.device).unsqueeze(-1)
        x_axis = roll.cos() * right + roll.sin() * down
        y_axis = roll.cos() * down - roll.sin() * right
        rotation = torch.stack([x_axis, y_axis, forward], -1)
        width, height = frame_size_px
        fov = torch.as_tensor(vertical_fov_rad, dtype=eye.dtype, device=eye.device)
        focal = (0.5 * height / (0.5 * fov).tan()).expand(rotation.shape[:-2])
        zero, one = torch.zeros_like(focal), torch.ones_like(focal)
        entries = [focal, zero, one * width / 2, zero, focal, one * height / 2, zero, zero, one]
        K = torch.stack(entries, -1).reshape(*focal.shape, 3, 3)
        return cls(K=K, T_world_camera=pose(rotation, eye), frame_size_px=frame_size_px).checked()

    def checked(self) -> Camera:
        """Return self, or raise VapError where K is singular, the pose is not rigid, or shapes do not fit."""
        for name, value, shape in (("K", self.K, (3, 3)), ("T_world_camera", self.T_world_camera, (4, 4))):
            if tuple(value.shape[-2:]) != shape:
                raise VapError(
                    f"Camera {name} must have shape (*batch, {shape[0]}, {shape[1]}), got {tuple(value.shape)}."
                )
            if not bool(torch.isfinite(value).all()):
                raise VapError(f"Camera {name} must be finite, got NaN or infinity in {value.tolist()}.")
        if min(self.frame_size_px) < 1:
            raise VapError(f"Camera frame_size_px must be (width, height) of at least 1 px, got {self.frame_size_px}.")
        bottom = self.K.new_tensor([0.0, 0.0, 1.0])
        if bool(
            (self.K[..., 0, 0] <= 0).any() or (self.K[..., 1, 1] <= 0).any() or (self.K[..., 2, :] != bottom).any()
        ):
            raise VapError(
                f"Camera K is singular or no pinhole matrix: got {self.K.tolist()}. "
                "It must be [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in px with fx, fy > 0."
            )
        R = self.T_world_camera[..., :3, :3]
        off = (R @ R.mT - torch.eye(3, dtype=R.dtype, device=R.device)).abs().amax()
        last = self.T_world_camera.new_tensor([0.0, 0.0, 0.0, 1.0])
        is_affine = bool((self.T_world_camera[..., 3, :] - last).abs().amax() < 1e-6)
        if float(off) > 1e-3 or bool((torch.linalg.det(R) < 0).any()) or not is_affine:
            raise VapError(
                f"Camera T_world_camera is not rigid, got {self.T_world_camera.tolist()}. It must be [R t; 0 0 0 1], R "
                "a right-handed rotation with the camera's axes in the world as columns: x right, y down, z forward."
            )
        return self

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Camera:
        """Return the camera with its tensors in another dtype or on another device."""
        return replace(
            self,
            K=self.K.to(dtype=dtype, device=device),
            T_world_camera=self.T_world_camera.to(dtype=dtype, device=device),
        )

    def index(self, i: int | slice | Tensor) -> Camera:
        """Return the camera(s) at index `i` of the leading batch dimension."""
        shape = self.batch_shape
        return replace(
            self, K=self.K.expand(*shape, 3, 3)[i], T_world_camera=self.T_world_camera.expand(*shape, 4, 4)[i]
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CameraMount:
    """A camera that may move by a rule: it stands still, rides on the robot's tip link, or sways as a head does.

    Batch (B,). `T_anchor_camera` is its first pose: in the world, or in the tip link where it `rides`. `sway` is that
    of `swayed`; zeros: none.
    """

    K: Float[Tensor, "B 3 3"]
    T_anchor_camera: Float[Tensor, "B 4 4"]
    rides: Bool[Tensor, " B"]
    sway: Float[Tensor, "B 8"]
    frame_size_px: tuple[int, int]

    def at(self, T_world_tip: Float[Tensor, "B 4 4"], seconds: Float[Tensor, " B"]) -> Camera:
        """Return the cameras when the tip is there, `seconds` after the start."""
        moved = self.T_anchor_camera
        if bool(self.rides.any()) or bool(self.sway.any()):  # most cameras stand still
            anchored = swayed(self.T_anchor_camera, self.sway, seconds)
            moved = torch.where(self.rides[:, None, None], T_world_tip @ anchored, anchored)
        return Camera(K=self.K, T_world_camera=moved, frame_size_px=self.frame_size_px)
