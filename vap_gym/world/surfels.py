"""Drawing surfaces that are given as points: which point is seen in each pixel (surfels, after Pfister et al. 2000)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor
from torch.nn import functional as F

NEAR_M = 0.05
FAR_M = 20.0
CORNERS = ((-1, -1), (1, -1), (-1, 1), (1, 1))  # a point is drawn as so many, each a quarter of its spacing away
NOTHING = 2**31 - 1  # farther than any point
CLOSED = 2  # how often holes are closed
MOSTLY = 5  # a pixel is a hole where so many of the eight around it are nearer …
BEHIND_M = 0.015  # … by this


class Surfels(NamedTuple):
    """P points on the surface of a robot of L links, see `prompts.body.Body`."""

    points_m: Float[Tensor, "P 3"]
    normals: Float[Tensor, "P 3"]
    link: Int64[Tensor, " P"]
    spacing_m: Float[Tensor, " P"]


class Seen(NamedTuple):
    """Which point is seen in each pixel (−1: none), and how far away it is, in m (FAR_M where there is none); both from
    `key`, which orders points by distance."""

    point: Int64[Tensor, "B h w"]
    depth_m: Float[Tensor, "B 1 h w"]
    key: Int32[Tensor, "B 1 h w"]


class _Keys(NamedTuple):
    """Distance and number of a point in 31 bits: the distance first, so that the least key is the nearest point."""

    id_bits: int

    @property
    def per_m(self) -> float:
        """Steps of distance: of .15 mm for ten thousand points."""
        return float((2 ** (31 - self.id_bits) - 2) / FAR_M)

    def of(self, depth_m: Float[Tensor, "B P"]) -> Int32[Tensor, "B P"]:
        number = torch.arange(depth_m.shape[1], dtype=torch.int32, device=depth_m.device)
        return ((depth_m.clamp(0.0, FAR_M) * self.per_m).int() << self.id_bits) | number

    def read(self, key: Int32[Tensor, "B 1 h w"]) -> Seen:
        nothing = key == NOTHING
        depth = torch.where(nothing, FAR_M, (key >> self.id_bits) / self.per_m)
        point = torch.where(nothing, -1, key & (2**self.id_bits - 1))
        return Seen(point=point[:, 0].long(), depth_m=depth, key=key)


def _keys(surfels: Surfels) -> _Keys:
    return _Keys(max(1, (len(surfels.points_m) - 1).bit_length()))


def seen_points(surfels: Surfels, views: Float[Tensor, "B L 3 4"], size: tuple[int, int]) -> Seen:
    """Draw the surface as cameras see it whose `views` of the links are given (`prompts.body.Body.views`)."""
    h, w = size
    x, y, depth = projected(surfels, views).unbind(-1)
    safe = depth.clamp_min(NEAR_M)
    x, y, reach = x / safe, y / safe, 0.25 * surfels.spacing_m * focal_px(views)[:, None] / safe
    keys = _keys(surfels)
    key = keys.of(depth)
    in_front = (depth > NEAR_M) & (depth < FAR_M)
    nearest = key.new_full((len(views), h * w + 1), NOTHING)
    for right, down in CORNERS:
        column, row = torch.add(x, reach, alpha=right).floor(), torch.add(y, reach, alpha=down).floor()
        inside = in_front & (column >= 0) & (column < w) & (row >= 0) & (row < h)
        where = torch.where(inside, row * w + column, float(h * w)).long()
        nearest.scatter_reduce_(1, where, torch.where(inside, key, NOTHING), "amin")
    nearest = nearest[:, :-1].reshape(-1, 1, h, w)
    behind = int(BEHIND_M * keys.per_m) << keys.id_bits
    for _ in range(CLOSED):
        nearest = _closed(nearest, behind)
    return keys.read(nearest)


def widened(surfels: Surfels, seen: Seen) -> Seen:
    """Return what is seen with the surface reaching one pixel further."""
    least = seen.key
    for around in _around(seen.key):
        least = torch.minimum(least, around)
    return _keys(surfels).read(torch.where(seen.key == NOTHING, least, seen.key))


def _runs(link: Int64[Tensor, " P"]) -> list[tuple[int, slice]]:
    """Which points belong to which link: a link's points lie together."""
    links, counts = torch.unique_consecutive(link, return_counts=True)
    ends = counts.cumsum(0)
    return [
        (number, slice(end - count, end))
        for number, count, end in zip(links.tolist(), counts.tolist(), ends.tolist(), strict=True)
    ]


def projected(surfels: Surfels, views: Float[Tensor, "B L 3 4"]) -> Float[Tensor, "B P 3"]:
    """Return (u·z, v·z, z) of all points in each picture: u and v in px, z in m."""
    at = views.new_empty(len(views), len(surfels.points_m), 3)
    for link, part in _runs(surfels.link):  # one product for a link
        at[:, part] = surfels.points_m[part] @ views[:, link, :, :3].mT + views[:, link, None, :, 3]
    return at


def looked_at(
    surfels: Surfels, views: Float[Tensor, "B L 3 4"], picture: Int64[Tensor, " N"], point: Int64[Tensor, " N"]
) -> tuple[Float[Tensor, "N 2"], Float[Tensor, " N"]]:
    """Return where N points are in their pictures, in px, and how far away, in m."""
    at = projected(surfels, views)[picture, point]  # of all points: cheaper than N views of links
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


def _closed(nearest: Int32[Tensor, "B 1 h w"], behind: int) -> Int32[Tensor, "B 1 h w"]:
    """Fill holes between points, in which there is nothing or what lies behind: most of what is around is nearer."""
    limit, least, nearer = nearest - behind, nearest, torch.zeros_like(nearest, dtype=torch.uint8)
    for around in _around(nearest):
        nearer += around < limit
        least = torch.minimum(least, around)
    return torch.where(nearer >= MOSTLY, least, nearest)


def _around(nearest: Tensor) -> list[Tensor]:
    """The eight neighbours of each pixel."""
    _, _, h, w = nearest.shape
    padded = F.pad(nearest, (1, 1, 1, 1), value=NOTHING)
    places = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2))
    return [padded[..., y : y + h, x : x + w] for y, x in places]
