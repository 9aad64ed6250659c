"""Drawing surfaces that are given as points: which point is seen in each pixel (surfels, after Pfister et al. 2000)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

NEAR_M = 0.05
FAR_M = 20.0
PER_M = 8192.0  # depths are told apart to an eighth of a millimetre
CORNERS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))  # a point is drawn as so many, in its spacings
IDS = 2**20
NOTHING = float(2**52)  # farther than any point
CLOSED = 2  # how often holes are closed
MOSTLY = 5 / 9  # a pixel is a hole where so much around it is surface


class Surfels(NamedTuple):
    """P points on the surface of a robot of L links, see `prompts.body.Body`."""

    points_m: Float[Tensor, "P 3"]
    normals: Float[Tensor, "P 3"]
    link: Int64[Tensor, " P"]
    spacing_m: Float[Tensor, " P"]


class Seen(NamedTuple):
    """Which point is seen in each pixel (−1: none), and how far away it is, in m (FAR_M where there is none)."""

    point: Int64[Tensor, "B h w"]
    depth_m: Float[Tensor, "B 1 h w"]


def seen_points(surfels: Surfels, views: Float[Tensor, "B L 3 4"], size: tuple[int, int]) -> Seen:
    """Draw the surface as cameras see it whose `views` of the links are given (`prompts.body.Body.views`)."""
    h, w = size
    at = projected(surfels, views)
    depth = at[..., 2]
    pixel = at[..., :2] / depth.clamp_min(NEAR_M)[..., None]
    apart = surfels.spacing_m * focal_px(views)[:, None] / depth.clamp_min(NEAR_M)
    key = (depth.clamp(0.0, FAR_M) * PER_M).double().floor() * IDS + torch.arange(depth.shape[1], device=at.device)
    in_front = (depth > NEAR_M) & (depth < FAR_M)
    nearest = key.new_full((len(views), h * w + 1), NOTHING)
    for corner in CORNERS:
        cell = (pixel + apart[..., None] * pixel.new_tensor(corner)).floor()
        inside = in_front & (cell >= 0).all(-1) & (cell[..., 0] < w) & (cell[..., 1] < h)
        where = torch.where(inside, cell[..., 1] * w + cell[..., 0], float(h * w)).long()
        nearest.scatter_reduce_(1, where, torch.where(inside, key, NOTHING), "amin")
    nearest = nearest[:, :-1].reshape(-1, 1, h, w)
    for _ in range(CLOSED):
        around = F.avg_pool2d((nearest < NOTHING).float(), 3, 1, 1)
        hole = (nearest == NOTHING) & (around >= MOSTLY - 1e-4)
        nearest = torch.where(hole, _nearest_around(nearest), nearest)
    return _read(nearest)


def widened(seen: Seen) -> Seen:
    """Return what is seen with the surface reaching one pixel further."""
    key = (seen.depth_m * PER_M).double().floor() * IDS + seen.point[:, None]
    nearest = torch.where(seen.point[:, None] >= 0, key, NOTHING)
    return _read(torch.where(nearest == NOTHING, _nearest_around(nearest), nearest))


def projected(surfels: Surfels, views: Float[Tensor, "B L 3 4"]) -> Float[Tensor, "B P 3"]:
    """Return (u·z, v·z, z) of all points in each picture: u and v in px, z in m."""
    at = views.new_empty(len(views), len(surfels.points_m), 3)
    links, counts = torch.unique_consecutive(surfels.link, return_counts=True)
    begin = 0
    for link, count in zip(links.tolist(), counts.tolist(), strict=True):  # a link's points lie together: one product
        part = slice(begin, begin + count)
        at[:, part] = surfels.points_m[part] @ views[:, link, :, :3].mT + views[:, link, None, :, 3]
        begin += count
    return at


def looked_at(
    surfels: Surfels, views: Float[Tensor, "B L 3 4"], picture: Int64[Tensor, " N"], point: Int64[Tensor, " N"]
) -> tuple[Float[Tensor, "N 2"], Float[Tensor, " N"]]:
    """Return where N points are in their pictures, in px, and how far away, in m."""
    M = views[picture, surfels.link[point]]
    at = (M[..., :3] * surfels.points_m[point][:, None, :]).sum(-1) + M[..., 3]
    return at[:, :2] / at[:, 2:].clamp_min(1e-3), at[:, 2]


def turned_normals(
    surfels: Surfels, views: Float[Tensor, "B L 3 4"], picture: Int64[Tensor, " N"], point: Int64[Tensor, " N"]
) -> Float[Tensor, "N 3"]:
    """Return the normals of points in the frame of their picture's camera."""
    R = torch.linalg.solve(intrinsics(views), views[..., :3])
    turned: Tensor = (R[picture, surfels.link[point]] * surfels.normals[point][:, None, :]).sum(-1)
    return turned


def focal_px(views: Float[Tensor, "B L 3 4"]) -> Float[Tensor, " B"]:
    """Return the focal length along v of the cameras that see the links."""
    focal: Tensor = intrinsics(views)[:, 0, 1, 1]
    return focal


def intrinsics(views: Tensor) -> Float[Tensor, "B 1 3 3"]:
    """K from K·R of the first link: R cancels in K·R·(K·R)ᵀ = K·Kᵀ. (No skew.) The identity where nothing is seen."""
    M = views[:, :1, :, :3].double()
    S = M @ M.mT
    cx, cy = S[..., 0, 2], S[..., 1, 2]
    fx, fy = (S[..., 0, 0] - cx**2).clamp_min(1.0).sqrt(), (S[..., 1, 1] - cy**2).clamp_min(1.0).sqrt()
    zero, one = torch.zeros_like(cx), torch.ones_like(cx)
    K: Tensor = torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], -1).unflatten(-1, (3, 3)).to(views)
    return K


def _nearest_around(nearest: Tensor) -> Tensor:
    return -F.max_pool2d(-nearest, 3, 1, 1)


def _read(nearest: Tensor) -> Seen:
    nothing = nearest >= NOTHING
    depth = torch.where(nothing, FAR_M, torch.div(nearest, IDS, rounding_mode="floor") / PER_M)
    point = torch.where(nothing, -1.0, torch.remainder(nearest, IDS)).long()
    return Seen(point=point[:, 0], depth_m=depth.float())
