"""World key-points → picture segments: projected, clipped, ordered far to near; what both rasterisers draw."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.geometry import Camera
from vap_gym.prompts.skeleton import Skeleton, Strokes

NEAR_M = 0.01
"""Bones are cut at this depth in front of the camera, so that one end behind it does not lose the other."""

THICKEST = 0.25
"""No bone is drawn with a larger radius than this share of the picture's height, not even one close to the lens."""

HIDDEN_RADIUS_PX = -1.0
"""Radius of a segment that is not drawn: no pixel is nearer to it than that."""


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Capsules in the picture, first drawn first; B pictures of S segments each.

    Pixel coordinates put the centre of the top-left pixel at (0.5, 0.5). Colours are in [0, 1]. The radius changes
    linearly from start to end. A segment that is not to be seen has negative radii.
    """

    start_px: Float[Tensor, "B S 2"]
    end_px: Float[Tensor, "B S 2"]
    radius_px: Float[Tensor, "B S 2"]  # at start and end
    colour: Float[Tensor, "B S 3"]


def project_segments(
    keypoints_world: Float[Tensor, "B P 3"],
    camera: Camera,
    skeleton: Skeleton,
    *,
    thickness_px: float,
) -> Segments:
    """Project a skeleton's bones, drop line and foot into the camera's picture.

    Order: the drop line and its foot first, then the bones from far to near (mean depth of what is left of a bone after
    near clipping; at equal depth, in the card's order). Nearer bones thus lie on top.

    Args:
        keypoints_world: metres, in the skeleton's key-point order.
        camera: its K and T_world_camera have no batch dimension, or B of them.
        thickness_px: least width of a bone, which is drawn as wide as its `radius_m` appears from the camera where
            that is more; the drop line is thinner (`DROP_THICKNESS`).
    """
    strokes = skeleton.strokes(keypoints_world)
    homogeneous = _project(strokes.points_world, camera)
    a, b = homogeneous[:, strokes.start], homogeneous[:, strokes.end]
    a, b, in_front = _clip_near(a, b)
    uv_a, uv_b = a[..., :2] / a[..., 2:], b[..., :2] / b[..., 2:]
    radius = _radius_px(a, b, strokes, camera, thickness_px)
    width, height = camera.frame_size_px
    frame = torch.tensor((width, height), dtype=uv_a.dtype, device=uv_a.device)
    margin = radius.detach().amax(-1, keepdim=True) + 2.0
    uv_a, uv_b, share, in_picture = _clip_rectangle(uv_a, uv_b, -margin, frame + margin)
    radius = radius[..., :1] + share * (radius[..., 1:] - radius[..., :1])
    seen = (in_front & in_picture)[..., None]
    radius = torch.where(seen, radius, torch.full_like(radius, HIDDEN_RADIUS_PX))
    depth = torch.where(strokes.is_ground, torch.inf, a[..., 2] + b[..., 2])
    order = torch.argsort(depth.detach(), dim=-1, descending=True, stable=True)
    pick = order[..., None]
    return Segments(
        start_px=torch.take_along_dim(uv_a, pick, dim=1),
        end_px=torch.take_along_dim(uv_b, pick, dim=1),
        radius_px=torch.take_along_dim(radius, pick, dim=1),
        colour=strokes.colour[order],
    )


def _radius_px(
    a: Float[Tensor, "B S 3"], b: Float[Tensor, "B S 3"], strokes: Strokes, camera: Camera, thickness_px: float
) -> Float[Tensor, "B S 2"]:
    """Radii in the picture at both ends: as large as they appear there, within the least and the largest drawn."""
    least = (strokes.width * (thickness_px / 2))[:, None]
    appears = camera.K[..., 1, 1].reshape(-1, 1, 1).to(a) * strokes.radius_m[:, None]
    radius = torch.maximum(appears / torch.stack([a[..., 2], b[..., 2]], dim=-1), least)
    return torch.minimum(radius, least.clamp(min=THICKEST * camera.frame_size_px[1]))


def _project(points_world: Float[Tensor, "B N 3"], camera: Camera) -> Float[Tensor, "B N 3"]:
    """Return (u·z, v·z, z): linear in the points, so that bones can be cut before the division."""
    rotation = camera.T_world_camera[..., :3, :3]
    K_R = camera.K @ rotation.mT
    offset = K_R @ camera.T_world_camera[..., :3, 3:]
    return points_world @ K_R.mT.to(points_world) - offset.mT.to(points_world)


def _clip_near(
    a: Float[Tensor, "B S 3"], b: Float[Tensor, "B S 3"]
) -> tuple[Float[Tensor, "B S 3"], Float[Tensor, "B S 3"], Tensor]:
    """Cut segments at depth NEAR_M; those wholly behind it become points in front and are flagged False."""
    za, zb = a[..., 2:], b[..., 2:]
    visible = (za >= NEAR_M) | (zb >= NEAR_M)
    crosses = (za < NEAR_M) != (zb < NEAR_M)
    cut = (NEAR_M - za) / torch.where(crosses, zb - za, torch.ones_like(za))
    at_plane = a + cut * (b - a)
    at_plane = torch.cat([at_plane[..., :2], torch.full_like(za, NEAR_M)], dim=-1)
    dummy = torch.ones_like(a)
    new_a = torch.where(visible, torch.where(za < NEAR_M, at_plane, a), dummy)
    new_b = torch.where(visible, torch.where(zb < NEAR_M, at_plane, b), dummy)
    return new_a, new_b, visible[..., 0]


def _clip_rectangle(
    a: Float[Tensor, "B S 2"], b: Float[Tensor, "B S 2"], low: Float[Tensor, "B S 1"], high: Float[Tensor, "B S 2"]
) -> tuple[Float[Tensor, "B S 2"], Float[Tensor, "B S 2"], Float[Tensor, "B S 2"], Tensor]:
    """Cut segments at the rectangles [low, high] (Liang–Barsky); those wholly outside are flagged False.

    Also returns where along the old segment the new ends lie, in [0, 1].
    """
    d = b - a
    flat = d.abs() < 1e-9
    safe = torch.where(flat, torch.ones_like(d), d)
    t_low, t_high = (low - a) / safe, (high - a) / safe
    inside = (a >= low) & (a <= high)
    enter = torch.where(flat, torch.zeros_like(d), torch.minimum(t_low, t_high)).amax(-1).clamp(min=0)
    leave = torch.where(flat, torch.ones_like(d), torch.maximum(t_low, t_high)).amin(-1).clamp(max=1)
    visible = (enter <= leave) & (~flat | inside).all(-1)
    keep = visible[..., None]
    new_a = torch.where(keep, a + enter[..., None] * d, torch.zeros_like(a))
    new_b = torch.where(keep, a + leave[..., None] * d, torch.zeros_like(a))
    return new_a, new_b, torch.stack([enter, leave], dim=-1), visible


def check_keypoints(keypoints_world: Tensor, skeleton: Skeleton) -> None:
    """Raise VapError unless the key-points are finite floats of shape (*batch, P, 3)."""
    names = skeleton.keypoint_names
    if keypoints_world.ndim < 2 or tuple(keypoints_world.shape[-2:]) != (len(names), 3):
        raise VapError(
            f"key-points must have shape (*batch, {len(names)}, 3), got {tuple(keypoints_world.shape)}. "
            f"The skeleton's key-points are {', '.join(names)}; `Skeleton.keypoints(state)` computes them."
        )
    if not torch.is_floating_point(keypoints_world):
        raise VapError(f"key-points must be floating point (metres), got {keypoints_world.dtype}. Try `.float()`.")
    finite = torch.isfinite(keypoints_world)
    if not bool(finite.all()):
        bad = sorted({names[int(i)] for i in torch.nonzero(~finite)[:, -2]})
        raise VapError(
            f"key-points must be finite, got NaN or infinity at {', '.join(bad)}. Check the robot state they come from."
        )
