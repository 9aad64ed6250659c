"""Where each bit of the robot was before: flow from the bones' places in two pictures, known from kinematics alone.

A bone is a capsule in the picture. A cell that it covers has a place along it and across it; the same place on the same
bone in an earlier picture is where the cell's content was, if that was in view. What is left to a network is what
kinematics cannot know: turning about a bone's own axis, light, and what hides what.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

BONE_FIGURES = 8  # of a bone: start u, v · end u, v · radius at start and end, all px · mean depth in m · 1 if in front
REACH_PX = 3.0  # cells so far outside a capsule still belong to it: robots are no capsules


class BonePlaces(NamedTuple):
    """Where each cell lies on the robot: on which bone (the nearest to the camera of those that cover it), what share
    of the way along it, in [0, 1]; in radii there how far across it and beyond its ends; and how far it is covered."""

    bone: Int64[Tensor, "B cells"]
    along: Float[Tensor, "B cells"]
    across: Float[Tensor, "B cells"]
    beyond: Float[Tensor, "B cells"]
    cover: Float[Tensor, "B cells"]


def bone_places(
    bones: Float[Tensor, "B S 8"], size: tuple[int, int], stride_px: float, reach_px: float = REACH_PX
) -> BonePlaces:
    """Return each cell's place on a robot of at least one bone; arguments as for `robot_flow`."""
    along, across, beyond, cover = _on_bone(
        bones[:, :, None], centres(size, stride_px, bones.device), stride_px, reach_px
    )
    nearness = 10.0 - bones[:, :, 6, None].clamp(0.0, 9.0)
    best = torch.where(cover >= 0.5, nearness.expand_as(cover), cover).argmax(1, keepdim=True)  # B 1 cells
    return BonePlaces(best[:, 0], *(values.gather(1, best)[:, 0] for values in (along, across, beyond, cover)))


def places_before(
    places: BonePlaces, before: Float[Tensor, "B S 8"], size_px: tuple[int, int]
) -> tuple[Float[Tensor, "B cells 2"], Bool[Tensor, "B cells"]]:
    """Return where the same places on the same bones are in another picture, x and y in px, and whether that is inside
    it (`size_px`: its height and width)."""
    then = before.gather(1, places.bone[..., None].expand(-1, -1, BONE_FIGURES))  # B cells 8
    source = _place_on_bone(then, places.along, places.across, places.beyond)
    inside = ((source > 0) & (source < source.new_tensor([size_px[1], size_px[0]]))).all(-1)
    return source, inside & (then[..., 7] > 0)


def robot_flow(
    now: Float[Tensor, "B S 8"],
    before: Float[Tensor, "B S 8"],
    size: tuple[int, int],
    stride_px: float,
    reach_px: float = REACH_PX,
) -> tuple[Float[Tensor, "B 2 h w"], Float[Tensor, "B 1 h w"]]:
    """Return the flow of robot cells, from `now` to where they were in `before`, and how far it holds for a cell.

    Args:
        now, before: bones of one robot in two pictures, as `prompts.raster.bone_figures` gives them.
        size: (h, w) cells.
        stride_px: of a cell.
        reach_px: how far outside a capsule its flow still holds.

    Returns:
        the flow, x and y in cells, 0 where it holds for nothing; and its share in [0, 1], 0 where no bone is or where
        the content was outside the earlier picture.
    """
    B, S, _ = now.shape
    h, w = size
    if S == 0:
        return now.new_zeros(B, 2, h, w), now.new_zeros(B, 1, h, w)
    places = bone_places(now, size, stride_px, reach_px)
    source, known = places_before(places, before, (round(h * stride_px), round(w * stride_px)))
    share = places.cover * known
    flow = (source - centres(size, stride_px, now.device)[:, 0]) / stride_px * (share > 0)[..., None]
    return flow.mT.reshape(B, 2, h, w), share.reshape(B, 1, h, w)


def filled_in(picture: Float[Tensor, "B C H W"], known: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B C H W"]:
    """Return the picture where `known` is 1; elsewhere averages of ever wider surroundings that are known.

    (Pull-push interpolation, after Gortler et al. 1996, "The Lumigraph", Sec. 3.4.)
    """
    levels = [(picture * known, known)]
    while min(levels[-1][0].shape[-2:]) > 1:
        colour, weight = levels[-1]
        levels.append((F.avg_pool2d(colour, 2, ceil_mode=True), F.avg_pool2d(weight, 2, ceil_mode=True)))
    colour, weight = levels.pop()
    filled = colour / weight.clamp_min(1e-6)
    while levels:
        colour, weight = levels.pop()
        filled = F.interpolate(filled, size=colour.shape[-2:], mode="bilinear", align_corners=False)
        share = weight if not levels else (4.0 * weight).clamp(max=1.0)  # a quarter known is known well enough
        filled = torch.lerp(filled, colour / weight.clamp_min(1e-6), share)
    return filled


def warp(picture: Float[Tensor, "B C h w"], flow_cells: Float[Tensor, "B 2 h w"]) -> Float[Tensor, "B C h w"]:
    """Sample `picture` at each cell plus its flow (x, y in cells), bilinear, edges repeated."""
    _, _, h, w = picture.shape
    x = torch.arange(w, device=picture.device, dtype=picture.dtype)
    y = torch.arange(h, device=picture.device, dtype=picture.dtype)[:, None]
    grid = torch.stack(
        [(x + flow_cells[:, 0] + 0.5) * (2.0 / w) - 1.0, (y + flow_cells[:, 1] + 0.5) * (2.0 / h) - 1.0], dim=-1
    )
    return F.grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=False)


def centres(size: tuple[int, int], stride_px: float, device: torch.device) -> Float[Tensor, "1 1 cells 2"]:
    """Return the middle of every cell, x and y in px."""
    y, x = torch.meshgrid(*(torch.arange(n, device=device) + 0.5 for n in size), indexing="ij")
    return torch.stack([x, y], -1).reshape(1, 1, -1, 2) * stride_px


def _on_bone(bones: Tensor, at: Tensor, stride_px: float, reach_px: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return of each point the share of the way along each bone, in [0, 1]; in radii there how far it lies across the
    bone and beyond its ends; and how far the bone covers it."""
    start, way = bones[..., 0:2], bones[..., 2:4] - bones[..., 0:2]
    length = way.norm(dim=-1).clamp_min(1e-3)
    ahead = way / length[..., None]
    off = at - start
    forward = (off * ahead).sum(-1)
    sideways = off[..., 1] * ahead[..., 0] - off[..., 0] * ahead[..., 1]
    along = (forward / length).clamp(0.0, 1.0)
    radius = torch.lerp(bones[..., 4].expand_as(along), bones[..., 5].expand_as(along), along).clamp_min(1e-3)
    beyond = forward - along * length
    distance = (beyond.square() + sideways.square()).sqrt()
    cover = ((radius + reach_px - distance) / stride_px + 0.5).clamp(0.0, 1.0) * bones[..., 7]
    return along, sideways / radius, beyond / radius, cover


def _place_on_bone(bones: Tensor, along: Tensor, across: Tensor, beyond: Tensor) -> Tensor:
    """The inverse of `_on_bone`."""
    start, way = bones[..., 0:2], bones[..., 2:4] - bones[..., 0:2]
    ahead = way / way.norm(dim=-1, keepdim=True).clamp_min(1e-3)
    side = torch.stack([-ahead[..., 1], ahead[..., 0]], -1)
    radius = torch.lerp(bones[..., 4], bones[..., 5], along)
    off = (radius * across)[..., None] * side + (radius * beyond)[..., None] * ahead
    place: Tensor = start + along[..., None] * way + off
    return place
