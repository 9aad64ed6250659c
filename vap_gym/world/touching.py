"""How near the parts of a gripper are to the surfaces of things, and on which side of them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

NEAR_M = 0.01  # half of what a distance tells is told of the first so many metres
SIDE_M = 0.02  # a surface's direction fades with such a distance
LONGISH = 0.1  # the share by which one side must be longer for its direction to be known
TOLD = 4  # figures of each part


def touch(
    parts_m: Float[Tensor, "B G P 3"],
    place_m: Float[Tensor, "B K 3"],
    turn: Float[Tensor, "B K 3 3"],
    shape: Float[Tensor, "B K 6"],
    frame: Float[Tensor, "B 3 3"],
) -> Float[Tensor, "B K G 4"]:
    """Tell of each thing and part of the gripper how far outside of the thing its nearest point is, and the direction
    of the thing's surface there, in the gripper's frame.

    A thing is the box or upright cylinder that its shape says. Where neither side is longer, a box is taken to stand as
    the gripper does: so those who grasp it turn the gripper. Distances d are told as d / (|d| + NEAR_M): negative
    within the thing; directions as unit vectors, less the further away: exp(−|d| / SIDE_M).

    Args:
        parts_m: P points on each of G parts, in the base frame.
        place_m, turn, shape: of K things, as in `motion.ThingState`.
        frame: axes of the gripper's base in the base frame.
    """
    axes = _axes(turn, shape, frame)
    half = shape[..., None, None, :3]
    local = (parts_m[:, None] - place_m[:, :, None, None]) @ axes[:, :, None]  # B K G P 3
    radius = (local[..., :2].square().sum(-1) + 1e-10).sqrt()
    up = local[..., 2].abs() - half[..., 2]
    box = torch.cat([local[..., :2].abs() - half[..., :2], up[..., None]], -1)
    round_ = torch.stack([radius - half[..., 0], torch.full_like(up, -1.0), up], -1)
    upright = shape[..., 3, None, None] > 0.5
    beyond = torch.where(upright[..., None], round_, box)
    outside = (beyond.clamp_min(0.0).square().sum(-1) + 1e-12).sqrt()
    distance, nearest = (outside + beyond.amax(-1).clamp_max(0.0)).min(-1)  # B K G
    chosen = nearest[..., None, None]
    beyond = beyond.gather(-2, chosen.expand(*chosen.shape[:-1], 3))[..., 0, :]
    local = local.gather(-2, chosen.expand(*chosen.shape[:-1], 3))[..., 0, :]
    deepest = torch.nn.functional.one_hot(beyond.argmax(-1), 3).to(beyond)
    share = torch.where((beyond > 0.0).any(-1, keepdim=True), beyond.clamp_min(0.0), deepest)
    share = share / share.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    around = local[..., :2] / radius.gather(-1, nearest[..., None])
    radial = torch.cat([share[..., :1] * around, share[..., 2:] * local[..., 2:].sign()], -1)
    side = torch.where(upright, radial, share * local.sign())
    seen = (side @ axes.mT) @ frame[:, None]
    fading = torch.exp(-distance.abs() / SIDE_M)[..., None]
    return torch.cat([(distance / (distance.abs() + NEAR_M))[..., None], fading * seen], -1)


def _axes(turn: Tensor, shape: Tensor, frame: Tensor) -> Float[Tensor, "B K 3 3"]:
    """The axes of things in the base frame: along the longer side, the shorter one, and up as they stood at first."""
    x, y = shape[..., 4], shape[..., 5]
    heading = torch.atan2(frame[:, 1, 0], frame[:, 0, 0])[:, None]
    turned = torch.atan2(turn[..., 1, 0] - turn[..., 0, 1], turn[..., 0, 0] + turn[..., 1, 1])
    known = x.square() + y.square() > LONGISH**2
    angle = torch.where(known, 0.5 * torch.atan2(y, torch.where(known, x, 1.0)), heading - turned)
    c, s, o = angle.cos(), angle.sin(), torch.zeros_like(angle)
    first = torch.stack([c, -s, o, s, c, o, o, o, torch.ones_like(o)], -1).unflatten(-1, (3, 3))
    axes: Tensor = turn @ first
    return axes
