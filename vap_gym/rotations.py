"""Rotations as matrices, rotation vectors, quaternions and Euler angles: batched, differentiable torch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_TINY = 1e-12


def skew(v: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return the matrix [v]× with [v]× w = v × w."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(*v.shape, 3)


def rotation_from_rotvec(rotvec_rad: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return the rotation about `rotvec_rad` by its length (Rodrigues; smooth through zero)."""
    angle_squared = (rotvec_rad * rotvec_rad).sum(-1, keepdim=True).unsqueeze(-1)
    small = angle_squared < 1e-8
    angle = torch.where(small, 1.0, angle_squared).sqrt()  # the unused branch must not give NaN gradients
    a = torch.where(small, 1.0 - angle_squared / 6.0, angle.sin() / angle)
    half = (0.5 * angle).sin() / angle
    b = torch.where(small, 0.5 - angle_squared / 24.0, 2.0 * half * half)
    cross = skew(rotvec_rad)
    identity = torch.eye(3, dtype=rotvec_rad.dtype, device=rotvec_rad.device)
    return identity + a * cross + b * (cross @ cross)


def quaternion_xyzw_from_rotation(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Return the unit quaternion (x, y, z, w) with w ≥ 0 of a rotation matrix.

    Each row of 4·q·qᵀ is a multiple of q; that with the largest pivot is used, so that no angle is badly conditioned.
    """
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = rotation.flatten(-2).unbind(-1)
    pivots = torch.stack([1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22, 1 + m00 + m11 + m22], -1)
    rows = torch.stack(
        [
            torch.stack([pivots[..., 0], m10 + m01, m02 + m20, m21 - m12], -1),
            torch.stack([m10 + m01, pivots[..., 1], m21 + m12, m02 - m20], -1),
            torch.stack([m02 + m20, m21 + m12, pivots[..., 2], m10 - m01], -1),
            torch.stack([m21 - m12, m02 - m20, m10 - m01, pivots[..., 3]], -1),
        ],
        -2,
    )
    best = pivots.argmax(-1)[..., None, None].expand(*pivots.shape[:-1], 1, 4)
    q = rows.gather(-2, best).squeeze(-2)
    q = q / q.norm(dim=-1, keepdim=True)
    return torch.where(q[..., 3:] < 0, -q, q)


def rotation_from_quaternion_xyzw(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Return the rotation matrix of a quaternion (x, y, z, w), which is normalised first."""
    x, y, z, w = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, -1).reshape(*quaternion.shape[:-1], 3, 3)


def rotvec_from_rotation(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Return the rotation vector, of length in [0, π] rad, of a rotation matrix (well conditioned at 0 and at π)."""
    q = quaternion_xyzw_from_rotation(rotation)
    v, w = q[..., :3], q[..., 3:]
    squared = (v * v).sum(-1, keepdim=True)
    small = squared < 1e-8
    length = torch.where(small, 1.0, squared).sqrt()
    scale = torch.where(small, 2.0 + squared / 3.0, 2.0 * torch.atan2(length, w) / length)
    return scale * v


def rotation_from_xyz_euler(euler_rad: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return R_z(c) R_y(b) R_x(a) for extrinsic-xyz Euler angles (a, b, c), DROID's convention."""
    (sa, sb, sc), (ca, cb, cc) = euler_rad.sin().unbind(-1), euler_rad.cos().unbind(-1)
    entries = [
        cc * cb, cc * sb * sa - sc * ca, cc * sb * ca + sc * sa,
        sc * cb, sc * sb * sa + cc * ca, sc * sb * ca - cc * sa,
        -sb, cb * sa, cb * ca,
    ]  # fmt: skip
    return torch.stack(entries, -1).reshape(*euler_rad.shape, 3)


def xyz_euler_from_rotation(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Return extrinsic-xyz Euler angles: a, c in [−π, π], b in [−π/2, π/2]; c is 0 where b = ±π/2."""
    r00, r10, r20 = rotation[..., 0, 0], rotation[..., 1, 0], rotation[..., 2, 0]
    r11, r12 = rotation[..., 1, 1], rotation[..., 1, 2]
    cb_squared = r00 * r00 + r10 * r10
    locked = cb_squared < _TINY
    cb = torch.where(locked, 1.0, cb_squared).sqrt()
    b = torch.atan2(-r20, torch.where(locked, torch.zeros_like(cb), cb))
    one, zero = torch.ones_like(cb), torch.zeros_like(cb)
    a_free = torch.atan2(torch.where(locked, zero, rotation[..., 2, 1]), torch.where(locked, one, rotation[..., 2, 2]))
    a_locked = torch.atan2(torch.where(locked, -r12, zero), torch.where(locked, r11, one))
    c = torch.atan2(torch.where(locked, zero, r10), torch.where(locked, one, r00))
    return torch.stack([torch.where(locked, a_locked, a_free), b, c], -1)
