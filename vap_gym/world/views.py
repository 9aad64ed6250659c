"""What views of a robot's links tell besides: the camera in the robot's base frame, and where the links are in it.

A view M (3 × 4) takes a point of a link, in metres, to (u·z, v·z, z), see `prompts.body.Body.views`. That of the base
link is the camera's projection matrix P = K·[R | t] in the base frame.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

BEHIND_M = 1e-3  # what is nearer than this is not in front of a camera


def project(
    P: Float[Tensor, "B 3 4"], points_m: Float[Tensor, "B N 3"]
) -> tuple[Float[Tensor, "B N 2"], Float[Tensor, "B N"]]:
    """Return where points of the base frame are in each picture, in px, and how far along the optical axis, in m."""
    at = points_m @ P[:, :, :3].mT + P[:, None, :, 3]
    return at[..., :2] / at[..., 2:].clamp_min(BEHIND_M), at[..., 2]


def rays(
    P: Float[Tensor, "B 3 4"], pixels: Float[Tensor, "B N 2"]
) -> tuple[Float[Tensor, "B 1 3"], Float[Tensor, "B N 3"]]:
    """Return where each camera is, and the ray of each pixel, both in the base frame; a ray's length is that of a
    metre along the optical axis."""
    back = inverse_or_zero(P[:, :, :3])
    ones = torch.ones_like(pixels[..., :1])
    return -(back @ P[:, :, 3:]).mT, torch.cat([pixels, ones], -1) @ back.mT


def on_plane(
    P: Float[Tensor, "B 3 4"], pixels: Float[Tensor, "B N 2"], height_m: Float[Tensor, "B N"]
) -> Float[Tensor, "B N 3"]:
    """Return where the rays of pixels meet planes z = `height_m`; far away where they rise."""
    origin, ray = rays(P, pixels)
    falls = ray[..., 2].clamp(max=-1e-3)
    return origin + ((height_m - origin[..., 2]) / falls)[..., None] * ray


def link_poses(
    views: Float[Tensor, "B L 3 4"], base: int, links: tuple[int, ...]
) -> tuple[Float[Tensor, "B N 3 3"], Float[Tensor, "B N 3"]]:
    """Return rotations and places (m) of some links in the frame of the base link."""
    P = views[:, base]
    back = inverse_or_zero(P[:, None, :, :3])
    chosen = views[:, list(links)]
    return back @ chosen[..., :3], (back @ (chosen[..., 3] - P[:, None, :, 3])[..., None])[..., 0]


def inverse_or_zero(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return the inverse; of a matrix that has none (views of nothing are 0), 0."""
    inverse, failed = torch.linalg.inv_ex(matrix)
    return torch.where((failed == 0)[..., None, None], inverse, 0.0)
