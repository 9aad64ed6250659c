"""Drawing surfaces that are given as points: which point is seen in each pixel (surfels, after Pfister et al. 2000)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

NEAR_M = 0.05
FAR_M = 20.0
CLOSED = 2  # how often holes are closed
MOSTLY = 5  # a pixel is a hole where so many of the eight around it are nearer …
BEHIND_M = 0.015  # … by this
NOTHING = 0  # the key of no point: above that of any
APART_PX = 2.0  # points that are farther apart than this are drawn as pieces of a plane, …
FINENESS = (3, 4, 6, 9, 20)  # … of so many times so many points, one for each pixel or more, …
PIECE = 1.3  # … so many times as wide as their spacing
BESIDE = 1e30  # what this is added to is beside every picture


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


class Near(NamedTuple):
    """N pixels in which a surface is seen, or next to which it is: of which picture, and where in it; which point is
    seen there or, the nearest, next to there, and how far away; whether it is there itself, and in all nine pixels."""

    picture: Int64[Tensor, " N"]
    y: Int64[Tensor, " N"]
    x: Int64[Tensor, " N"]
    point: Int64[Tensor, " N"]
    depth_m: Float[Tensor, " N"]
    there: Bool[Tensor, " N"]
    amid: Bool[Tensor, " N"]


class _Keys(NamedTuple):
    """Distance and number of a point in 31 bits, below zero: the distance first, so that the least is the nearest."""

    id_bits: int

    @property
    def per_m(self) -> float:
        """Steps of distance: of .15 mm for ten thousand points."""
        return float((2 ** (31 - self.id_bits) - 2) / FAR_M)

    def of(self, depth_m: Float[Tensor, "*N P"], number: Int32[Tensor, " P"]) -> Int32[Tensor, "*N P"]:
        steps = (depth_m * self.per_m).int()
        return steps.bitwise_left_shift_(self.id_bits).bitwise_or_(number).bitwise_or_(-(2**31))

    def read(self, key: Int32[Tensor, "*n"]) -> tuple[Int64[Tensor, "*n"], Float[Tensor, "*n"]]:
        """Return numbers and distances in m of keys that are not NOTHING."""
        far: Tensor = (key.bitwise_and(2**31 - 1) >> self.id_bits) / self.per_m
        return key.bitwise_and(2**self.id_bits - 1).long(), far


class Drawing(NamedTuple):
    """In each pixel of B pictures the key of the point that is seen there.

    `cells` are the pictures one after the other, each with a border of one pixel in which nothing is seen, and a margin
    before and after all: whatever is in a picture has eight neighbours, at the same offsets.
    """

    cells: Int32[Tensor, " cells"]
    shape: tuple[int, int, int]  # B, h, w
    keys: _Keys

    @property
    def wide(self) -> int:
        """How many cells make a row."""
        return self.shape[2] + 2

    @property
    def bordered(self) -> Int32[Tensor, " cells"]:
        """The cells without the margins."""
        return self.cells[self.wide + 1 : -self.wide - 1]

    def pictures(self, values: Tensor) -> Tensor:
        """Return values of bordered cells as pictures (B, h, w)."""
        batch, h, w = self.shape
        return values.view(batch, h + 2, w + 2)[:, 1:-1, 1:-1]


def seen_points(surfels: Surfels, views: Float[Tensor, "B L 3 4"], size: tuple[int, int]) -> Seen:
    """Draw the surface as cameras see it whose `views` of the links are given (`prompts.body.Body.views`)."""
    drawing = drawn(surfels, views, size)
    key = drawing.pictures(drawing.bordered)
    point, depth = drawing.keys.read(key)
    nothing = key == NOTHING
    return Seen(point=point.masked_fill_(nothing, -1), depth_m=depth.masked_fill_(nothing, FAR_M)[:, None])


def near_pixels(drawing: Drawing) -> Near:
    """Return where the surface is seen, and the pixels around that."""
    _, h, w = drawing.shape
    cells, least = drawing.bordered, _least_of_nine(drawing.cells, drawing.wide)
    picture, y, x = drawing.pictures(least).nonzero().unbind(1)
    at = (picture * (h + 2) + y).mul_(w + 2).add_(x).add_(w + 3)
    own = cells.index_select(0, at)
    there = own.bool()
    point, depth = drawing.keys.read(torch.where(there, own, least.index_select(0, at)))
    amid = _least_of_nine(drawing.cells.bool(), drawing.wide).index_select(0, at)
    return Near(picture=picture, y=y, x=x, point=point, depth_m=depth, there=there, amid=amid)


def drawn(surfels: Surfels, views: Float[Tensor, "B L 3 4"], size: tuple[int, int]) -> Drawing:
    """Draw the surface: each point at the corners of a square as wide as half its spacing, one near the camera as a
    piece of its tangent plane; then holes are closed."""
    (h, w), batch = size, len(views)
    keys = _Keys(max(1, (len(surfels.points_m) - 1).bit_length()))
    empty = views.new_zeros((batch * (h + 2) + 2) * (w + 2) + 2, dtype=torch.int32)
    drawing = Drawing(cells=empty, shape=(batch, h, w), keys=keys)
    views = views.nan_to_num(0.0, 0.0, 0.0)
    x, y, depth = projected(surfels, views).unbind(1)
    safe = depth.clamp(NEAR_M, FAR_M)
    outside = safe - depth  # 0 unless too near or too far: then the point is put beside the picture
    key = keys.of(safe, torch.arange(x.shape[1], dtype=torch.int32, device=x.device))
    reach = (0.25 * surfels.spacing_m * cameras(views)[0][:, 1:]).div_(safe)
    x, y = x / safe, (y / safe).add_(outside, alpha=BESIDE)
    columns = [side.floor_().clamp_(-1, w).int() for side in (x - reach, x + reach)]
    pictures = drawing.bordered.view(batch, -1)
    for side in (y - reach, y + reach):
        row = side.floor_().clamp_(-1, h).add_(1).mul_(w + 2).add_(1).int()
        for column in columns:
            pictures.scatter_reduce_(1, (row + column).long(), key, "amin")
    _draw_pieces(drawing, surfels, views, x, y, safe, reach.mul_(4.0))
    bordered = pictures.view(batch, h + 2, w + 2)
    for border in (bordered[:, 0], bordered[:, -1], bordered[:, :, 0], bordered[:, :, -1]):
        border.zero_()
    for _ in range(CLOSED):
        _close(drawing)
    return drawing


def _draw_pieces(
    drawing: Drawing,
    surfels: Surfels,
    views: Float[Tensor, "B L 3 4"],
    x_px: Float[Tensor, "B P"],
    y_px: Float[Tensor, "B P"],
    depth_m: Float[Tensor, "B P"],
    apart_px: Float[Tensor, "B P"],
) -> None:
    """Draw what is near, where four corners would leave holes: pieces of tangent planes, as finely as pixels are.

    Points are at these places and distances, and so far apart.
    """
    _, h, w = drawing.shape
    beside = torch.maximum((x_px - 0.5 * w).abs_().sub_(0.5 * w), (y_px - 0.5 * h).abs_().sub_(0.5 * h))
    wide = (torch.minimum(apart_px - APART_PX, apart_px - beside) > 0).view(-1).nonzero()[:, 0]
    if not len(wide):
        return
    picture, point = wide // x_px.shape[1], wide % x_px.shape[1]
    row = surfels.link[point].add_(picture, alpha=views.shape[1])
    outwards = (surfels.normals[point] * (surfels.points_m[point] - _eyes(views).flatten(0, 1)[row])).sum(1)
    facing = (outwards < 0).nonzero()[:, 0]  # the others are hidden by these
    if not len(facing):
        return
    across_px, order = (PIECE * apart_px.view(-1)[wide[facing]]).sort()
    facing = facing[order]
    wide, picture, point, row = (values[facing] for values in (wide, picture, point, row))
    normal = surfels.normals[point]
    across = torch.linalg.cross(normal, torch.eye(3, device=normal.device)[normal.abs().argmin(1)])
    across *= (surfels.spacing_m[point] / across.norm(dim=1))[:, None]
    sides = torch.stack([across, torch.linalg.cross(normal, across)], 2)
    sides = (views.flatten(0, 1)[row][:, :, :3] @ sides).permute(2, 1, 0)
    x, y, depth = (values.view(-1)[wide] for values in (x_px, y_px, depth_m))
    plane = torch.cat([torch.stack([x * depth, y * depth, depth])[None], sides])
    first, number = (picture * ((h + 2) * (w + 2)) + 1).int(), point.int()
    ends = torch.searchsorted(across_px, across_px.new_tensor(FINENESS[:-1]), right=True).tolist()
    for fine, begin, end in zip(FINENESS, [0, *ends], [*ends, len(point)], strict=True):
        if begin < end:
            _draw_fine(drawing, plane[:, :, begin:end], first[begin:end], number[begin:end], fine)


def _draw_fine(
    drawing: Drawing,
    plane: Float[Tensor, "3 3 N"],
    first: Int32[Tensor, " N"],
    number: Int32[Tensor, " N"],
    fine: int,
) -> None:
    """Draw pieces of planes (their middles and two sides, as in `projected`) as `fine` times `fine` points each."""
    _, h, w = drawing.shape
    offset = PIECE * ((torch.arange(fine, device=plane.device) + 0.5) / fine - 0.5)
    middle, right, down = plane.unbind()
    at = (middle[:, None] + offset[:, None] * right[:, None])[:, None] + (offset[:, None] * down[:, None])[:, :, None]
    x, y, z = at.unbind()
    depth = z.clamp(NEAR_M, FAR_M)
    column = x.div_(depth).add_(depth - z, alpha=BESIDE).floor_().clamp_(-1, w)
    row = y.div_(depth).floor_().clamp_(-1, h).add_(1)
    cell = row.mul_(w + 2).add_(column).int().add_(first)
    drawing.bordered.scatter_reduce_(0, cell.long().flatten(), drawing.keys.of(depth, number).flatten(), "amin")


def _eyes(views: Float[Tensor, "B L 3 4"]) -> Float[Tensor, "B L 3"]:
    """Return where the cameras are in the frame of each link: −(K·R)⁻¹·(K·t), by cofactors."""
    M, t = views[..., :3], views[..., 3:]
    cofactors = torch.linalg.cross(M.roll(-1, 2), M.roll(-2, 2))
    eyes: Tensor = -(cofactors * t).sum(2) / (cofactors * M)[:, :, 0].sum(2, keepdim=True)
    return eyes


def projected(surfels: Surfels, views: Float[Tensor, "B L 3 4"]) -> Float[Tensor, "B 3 P"]:
    """Return (u·z, v·z, z) of all points in each picture: u and v in px, z in m."""
    links, counts = torch.unique_consecutive(surfels.link, return_counts=True)  # a link's points lie together
    points = torch.cat([surfels.points_m.T, torch.ones_like(surfels.points_m[None, :, 0])])
    parts, seen = points.expand(len(views), -1, -1).split(counts.tolist(), 2), views.unbind(1)
    return torch.cat([torch.bmm(seen[link], part) for link, part in zip(links.tolist(), parts, strict=True)], 2)


def looked_at(
    surfels: Surfels, views: Float[Tensor, "B L R 4"], picture: Int64[Tensor, " N"], point: Int64[Tensor, " N"]
) -> Float[Tensor, "R N"]:
    """Return what R rows of views make of N points of their pictures: (u·z, v·z, z) of each view, see `projected`."""
    row = surfels.link.index_select(0, point).add_(picture, alpha=views.shape[1])
    mine, at = views.flatten(0, 1).index_select(0, row), surfels.points_m.index_select(0, point)
    return torch.baddbmm(mine[:, :, 3:], mine[:, :, :3], at[:, :, None])[:, :, 0].T


def turned_normals(
    surfels: Surfels, views: Float[Tensor, "B L 3 4"], picture: Int64[Tensor, " N"], point: Int64[Tensor, " N"]
) -> Float[Tensor, "N 3"]:
    """Return the normals of points in the frame of their picture's camera."""
    turned: Tensor = (rotations(views)[picture, surfels.link[point]] * surfels.normals[point][:, None, :]).sum(-1)
    return turned


def rotations(views: Float[Tensor, "B L 3 4"]) -> Float[Tensor, "B L 3 3"]:
    """Return R_camera_link of each link: K⁻¹·(K·R)."""
    focal, centre = (x[:, None, :, None] for x in cameras(views))
    ahead = views[:, :, 2:, :3]
    return torch.cat([(views[:, :, :2, :3] - centre * ahead) / focal, ahead], 2)


def cameras(views: Float[Tensor, "B L 3 4"]) -> tuple[Float[Tensor, "B 2"], Float[Tensor, "B 2"]]:
    """Return focal lengths and centres (along u and v, in px) of the cameras that see the links: of K·R of the first
    link, as R cancels in K·R·(K·R)ᵀ = K·Kᵀ. (No skew.) 1 and 0 where nothing is seen."""
    M = views[:, 0, :, :3].double()
    S = M @ M.mT
    centre = S[:, :2, 2]
    focal = (S.diagonal(dim1=1, dim2=2)[:, :2] - centre.square()).clamp_min_(1.0).sqrt_()
    return focal.to(views), centre.to(views)


def _close(drawing: Drawing) -> None:
    """Fill holes between points, in which there is nothing or what lies behind: most of what is around is nearer."""
    cells, wide, behind = drawing.bordered, drawing.wide, int(BEHIND_M * drawing.keys.per_m) << drawing.keys.id_bits
    deeper = _least_of_nine(drawing.cells, wide).sub_(cells).add_(behind).clamp_(max=0)
    hole = deeper.nonzero()[:, 0]  # something around it is nearer
    places = hole.new_tensor([0, 1, 2, wide, wide + 2, 2 * wide, 2 * wide + 1, 2 * wide + 2])
    around = drawing.cells.index_select(0, (hole + places[:, None]).flatten()).view(8, -1)
    filled = ((around < cells.index_select(0, hole) - behind).sum(0) >= MOSTLY).nonzero()[:, 0]
    cells[hole[filled]] = around.amin(0)[filled]


def _least_of_nine(cells: Tensor, wide: int) -> Tensor:
    """The least of each cell that is not in the margins and of the eight around it."""
    row = torch.minimum(torch.minimum(cells[:-2], cells[1:-1]), cells[2:])
    return torch.minimum(torch.minimum(row[: -2 * wide], row[wide:-wide]), row[2 * wide :])
