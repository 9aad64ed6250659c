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
    parts_m: Float[Tensor, "N G P 3"],
    place_m: Float[Tensor, "N 3"],
    turn: Float[Tensor, "N 3 3"],
    shape: Float[Tensor, "N 6"],
    frame: Float[Tensor, "N 3 3"],
) -> Float[Tensor, "N G 4"]:
    """Tell of N things and each part of the gripper how far outside of the thing its nearest point is, and the
    direction of the thing's surface there, in the gripper's frame.

    A thing is the box or upright cylinder that its shape says. Where neither side is longer, a box is taken to stand as
    the gripper does: so those who grasp it turn the gripper. Distances d are told as d / (|d| + NEAR_M): negative
    within the thing; directions as unit vectors, less the further away: exp(−|d| / SIDE_M).

    Args:
        parts_m: P points on each of G parts, in the base frame.
        place_m, turn, shape: of the things, as in `motion.ThingState`.
        frame: axes of the gripper's base in the base frame.
    """
    axes = _axes(turn, shape, frame)
    half = shape[:, None, None, :3]
    local = ((parts_m - place_m[:, None, None]).flatten(1, 2) @ axes).unflatten(1, parts_m.shape[1:3])
    radius = (local[..., :2].square().sum(-1) + 1e-10).sqrt()
    across = local[..., :2].abs() - half[..., :2]
    upright = shape[:, None, None, 3] > 0.5
    wide = torch.where(upright, radius - half[..., 0], across[..., 0])
    narrow = torch.where(upright, -1.0, across[..., 1])
    beyond = torch.stack([wide, narrow, local[..., 2].abs() - half[..., 2]], -1)
    outside = (beyond.clamp_min(0.0).square().sum(-1) + 1e-12).sqrt()
    distance, nearest = (outside + beyond.amax(-1).clamp_max(0.0)).min(-1)  # N G
    chosen = nearest[..., None, None].expand(-1, -1, 1, 3)
    beyond, local = (x.gather(2, chosen)[:, :, 0] for x in (beyond, local))
    deepest = torch.nn.functional.one_hot(beyond.argmax(-1), 3).to(beyond)
    share = torch.where((beyond > 0.0).any(-1, keepdim=True), beyond.clamp_min(0.0), deepest)
    share = share / share.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    around = share[..., :1] * local[..., :2] / radius.gather(-1, nearest[..., None])
    flat = torch.where(upright, around, share[..., :2] * local[..., :2].sign())
    side = torch.cat([flat, share[..., 2:] * local[..., 2:].sign()], -1)
    seen = side @ (axes.mT @ frame)
    fading = torch.exp(-distance.abs() / SIDE_M)[..., None]
    return torch.cat([(distance / (distance.abs() + NEAR_M))[..., None], fading * seen], -1)


def _axes(turn: Tensor, shape: Tensor, frame: Tensor) -> Float[Tensor, "N 3 3"]:
    """The axes of things in the base frame: along the longer side, the shorter one, and up as they stood at first."""
    x, y = shape[..., 4], shape[..., 5]
    heading = torch.atan2(frame[:, 1, 0], frame[:, 0, 0])
    turned = torch.atan2(turn[..., 1, 0] - turn[..., 0, 1], turn[..., 0, 0] + turn[..., 1, 1])
    known = x.square() + y.square() > LONGISH**2
    angle = torch.where(known, 0.5 * torch.atan2(y, torch.where(known, x, 1.0)), heading - turned)
    c, s, o = angle.cos(), angle.sin(), torch.zeros_like(angle)
    first = torch.stack([c, -s, o, s, c, o, o, o, torch.ones_like(o)], -1).unflatten(-1, (3, 3))
    axes: Tensor = turn @ first
    return axes
