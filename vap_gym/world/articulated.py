"""Where each bit of the robot was before: flow from the bones' places in two pictures, known from kinematics alone.

A bone is a capsule in the picture. A cell that it covers has a place along it and across it; the same place on the same
bone in an earlier picture is where the cell's content was, if that was in view. What is left to a network is what
kinematics cannot know: turning about a bone's own axis, light, and what hides what.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

BONE_FIGURES = 8  # of a bone: start u, v · end u, v · radius at start and end, all px · mean depth in m · 1 if in front
REACH_PX = 3.0  # cells so far outside a capsule still move with it: robots are no capsules


def robot_flow(
    now: Float[Tensor, "B S 8"], before: Float[Tensor, "B S 8"], size: tuple[int, int], stride_px: float
) -> tuple[Float[Tensor, "B 2 h w"], Float[Tensor, "B 1 h w"]]:
    """Return the flow of robot cells, from `now` to where they were in `before`, and how far it holds for a cell.

    Args:
        now, before: bones of one robot in two pictures, as `prompts.raster.bone_figures` gives them.
        size: (h, w) cells.
        stride_px: of a cell.

    Returns:
        the flow, x and y in cells, 0 where it holds for nothing; and its share in [0, 1], 0 where no bone is or where
        the content was outside the earlier picture.
    """
    B, S, _ = now.shape
    h, w = size
    if S == 0:
        return now.new_zeros(B, 2, h, w), now.new_zeros(B, 1, h, w)
    y, x = torch.meshgrid(
        torch.arange(h, device=now.device) + 0.5, torch.arange(w, device=now.device) + 0.5, indexing="ij"
    )
    at = torch.stack([x, y], -1).reshape(1, 1, h * w, 2) * stride_px
    along, across, beyond, radius = _on_bone(now[:, :, None], at)
    distance = (beyond.square() + across.square()).sqrt() * radius
    cover = ((radius + REACH_PX - distance) / stride_px + 0.5).clamp(0.0, 1.0) * now[:, :, 7, None]
    nearness = 10.0 - now[:, :, 6, None].clamp(0.0, 9.0)
    best = torch.where(cover >= 0.5, nearness.expand_as(cover), cover).argmax(1, keepdim=True)  # B 1 cells

    def on_best(values: Tensor) -> Tensor:
        return values.gather(1, best)[:, 0]

    then = before.gather(1, best[:, 0, :, None].expand(-1, -1, BONE_FIGURES))  # B cells 8
    source = _place_on_bone(then, on_best(along), on_best(across), on_best(beyond))
    inside = ((source > 0) & (source < source.new_tensor([w, h]) * stride_px)).all(-1)
    share = on_best(cover) * (inside & (then[..., 7] > 0))
    flow = (source - at[:, 0]) / stride_px * (share > 0)[..., None]
    return flow.mT.reshape(B, 2, h, w), share.reshape(B, 1, h, w)


def _on_bone(bones: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a point's share of the way along a bone, in [0, 1], and, in radii there: across it, and beyond its ends."""
    start, way = bones[..., 0:2], bones[..., 2:4] - bones[..., 0:2]
    length = way.norm(dim=-1).clamp_min(1e-3)
    ahead = way / length[..., None]
    off = at - start
    forward = (off * ahead).sum(-1)
    sideways = off[..., 1] * ahead[..., 0] - off[..., 0] * ahead[..., 1]
    along = (forward / length).clamp(0.0, 1.0)
    radius = torch.lerp(bones[..., 4].expand_as(along), bones[..., 5].expand_as(along), along).clamp_min(1e-3)
    return along, sideways / radius, (forward - along * length) / radius, radius


def _place_on_bone(bones: Tensor, along: Tensor, across: Tensor, beyond: Tensor) -> Tensor:
    """The inverse of `_on_bone`."""
    start, way = bones[..., 0:2], bones[..., 2:4] - bones[..., 0:2]
    ahead = way / way.norm(dim=-1, keepdim=True).clamp_min(1e-3)
    side = torch.stack([-ahead[..., 1], ahead[..., 0]], -1)
    radius = torch.lerp(bones[..., 4], bones[..., 5], along)
    return start + along[..., None] * way + (radius * across)[..., None] * side + (radius * beyond)[..., None] * ahead
