"""Triangles into pictures: which one is seen at each pixel's centre, and how far it is; numpy, many pictures at once.

Vertices come as (u·z, v·z, z), so that triangles can be cut in front of the camera before the division. 1/z is linear
in the picture, which makes depth exact at every pixel's centre. Triangles are walked row by row; the runs of pixels of
all triangles of all pictures are laid end to end, so that numpy handles them in one go.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32
from numpy.typing import NDArray

NEAR_M = 0.01
"""Triangles are cut at this depth in front of the camera, as the skeleton's bones are."""

LEAST_AREA_PX2 = 1e-7
"""Twice the area below which a triangle, seen edge-on, is left out."""

CHUNK_PX = 4 * 96 * 144
"""Pixels of the pictures drawn at once: few enough for the caches, enough to hide the cost of a call."""


def rasterise(
    points: Float[np.ndarray, "B V 3"],
    faces: Int[np.ndarray, "F 3"],
    frame_size_px: tuple[int, int],
    *,
    one_sided: Bool[np.ndarray, " F"] | None = None,
) -> tuple[Int32[np.ndarray, "B H W"], Float32[np.ndarray, "B H W"]]:
    """Return the nearest triangle at the centre of every pixel (-1: none) and its depth [m] (0: none).

    A pixel is covered where its centre lies in a triangle or on its edge: meshes without gaps have none in the picture.

    Args:
        points: vertices of B pictures as (u·z, v·z, z): pixel coordinates times depth, and depth [m].
        faces: three vertices each.
        frame_size_px: (width, height).
        one_sided: triangles that are seen only from the side from which their vertices run counter-clockwise. Half of a
            closed surface need not be drawn then. Default: none.
    """
    width, height = frame_size_px
    count = len(points)
    face = np.full((count, height, width), -1, np.int32)
    depth = np.zeros((count, height, width), np.float32)
    if not len(faces):
        return face, depth
    sided = np.zeros(len(faces), bool) if one_sided is None else one_sided
    chunk = max(1, CHUNK_PX // (width * height))
    for begin in range(0, count, chunk):
        piece = slice(begin, begin + chunk)
        u, v, w, picture, index = _triangles(points[piece].astype(np.float64), faces, sided, width, height)
        nearest = np.zeros(len(face[piece]) * height * width, np.int64)
        pixel, inverse_depth, of = _fragments(u, v, w, picture, width, height)
        # A positive float's bits grow with it: of integers of 1/z, then the triangle, the largest is nearest.
        key = (inverse_depth.view(np.int32).astype(np.int64) << 32) | (index[of] + 1)
        np.maximum.at(nearest, pixel, key)
        face[piece] = ((nearest & 0xFFFFFFFF) - 1).reshape(-1, height, width)
        (seen,) = np.nonzero(nearest)
        depth[piece].reshape(-1)[seen] = 1 / (nearest[seen] >> 32).astype(np.int32).view(np.float32)
    return face, depth


def _triangles(
    points: NDArray[np.float64],
    faces: NDArray[np.integer],
    one_sided: NDArray[np.bool_],
    width: int,
    height: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.integer], NDArray[np.integer]]:
    """Project, cut and choose: u, v [px] and w = 1/z of the corners (3, N) of what is to be seen, picture and face."""
    in_front = points[..., 2] >= NEAR_M
    w = 1 / np.where(in_front, points[..., 2], 1.0)
    projected = np.stack([points[..., 0] * w, points[..., 1] * w, w])
    corners = projected[:, :, faces.T]  # (u v w, picture, corner, face)
    picture = np.repeat(np.arange(len(points)), len(faces))
    face = np.tile(np.arange(len(faces)), len(points))
    corners = corners.transpose(0, 2, 1, 3).reshape(3, 3, -1)
    if not in_front.all():
        front = in_front[:, faces.T].transpose(1, 0, 2).reshape(3, -1).sum(0)
        (whole,), (cut,) = np.nonzero(front == 3), np.nonzero((front == 1) | (front == 2))
        pieces, of = _cut_near(points[picture[cut, None], faces[face[cut]]])
        corners = np.concatenate([corners[..., whole], pieces], axis=-1)
        picture, face = (np.concatenate([x[whole], x[cut][of]]) for x in (picture, face))
    u, v, w = corners
    area = (u[1] - u[0]) * (v[2] - v[0]) - (u[2] - u[0]) * (v[1] - v[0])  # below 0: seen from the front (v is down)
    shown = np.where(one_sided[face], -area, np.abs(area)) > LEAST_AREA_PX2
    shown &= np.ceil(np.maximum(v.min(0), 0) - 0.5) <= np.floor(np.minimum(v.max(0), height) - 0.5)
    shown &= np.ceil(np.maximum(u.min(0), 0) - 0.5) <= np.floor(np.minimum(u.max(0), width) - 0.5)
    (kept,) = np.nonzero(shown)
    u, v, w = corners[..., kept]
    return u, v, w, picture[kept], face[kept]


def _cut_near(corners: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
    """Cut triangles (N, corner, 3) that cross the near plane; return what is in front as (u v w, corner, n), and whose.

    One corner in front leaves a triangle, two leave a quadrangle, which makes two triangles.
    """
    in_front = corners[..., 2] >= NEAR_M
    alone = np.where(in_front.sum(1) == 1, in_front.argmax(1), (~in_front).argmax(1))
    turned = np.take_along_axis(corners, ((alone[:, None] + np.arange(3)) % 3)[..., None], axis=1)
    a, b, c = turned[:, 0], turned[:, 1], turned[:, 2]  # a is the one on its side of the plane

    def crossing(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
        at = p + (q - p) * ((NEAR_M - p[:, 2:]) / (q[:, 2:] - p[:, 2:]))
        at[:, 2] = NEAR_M
        return at

    ab, ac = crossing(a, b), crossing(a, c)
    one = in_front.sum(1) == 1
    (single,), (double,) = np.nonzero(one), np.nonzero(~one)
    pieces = np.concatenate([
        np.stack([a[single], ab[single], ac[single]], axis=1),
        np.stack([ab[double], b[double], c[double]], axis=1),
        np.stack([ab[double], c[double], ac[double]], axis=1),
    ])  # fmt: skip
    of = np.concatenate([single, double, double])
    w = 1 / pieces[..., 2]
    return np.stack([pieces[..., 0] * w, pieces[..., 1] * w, w]).transpose(0, 2, 1), of


def _fragments(
    u: NDArray[np.float64],
    v: NDArray[np.float64],
    w: NDArray[np.float64],
    picture: NDArray[np.integer],
    width: int,
    height: int,
) -> tuple[NDArray[np.integer], NDArray[np.float32], NDArray[np.integer]]:
    """Return for each covered pixel of each triangle: its place in the chunk, 1/z there, and the triangle."""
    order = np.argsort(
        v, axis=0, kind="stable"
    )  # top, middle, bottom: an edge is then walked alike from both its sides
    u, v, w = (np.take_along_axis(x, order, axis=0) for x in (u, v, w))
    du1, dv1, dw1, du2, dv2, dw2 = u[1] - u[0], v[1] - v[0], w[1] - w[0], u[2] - u[0], v[2] - v[0], w[2] - w[0]
    area = du1 * dv2 - du2 * dv1
    w_by_u, w_by_v = (dw1 * dv2 - dw2 * dv1) / area, (du1 * dw2 - du2 * dw1) / area
    long = du2 / dv2
    upper = du1 / np.where(dv1 == 0, 1.0, dv1)
    lower = (u[2] - u[1]) / np.where(v[2] == v[1], 1.0, v[2] - v[1])

    first = np.ceil(np.maximum(v[0], 0) - 0.5).astype(np.int64)
    last = np.floor(np.minimum(v[2], height) - 0.5).astype(np.int64)
    of, row = _runs(first, last - first + 1)
    y = row + 0.5
    fall = y - v[0][of]
    x_long = u[0][of] + fall * long[of]
    is_upper = y < v[1][of]
    x_short = np.where(is_upper, u[0][of] + fall * upper[of], u[1][of] + (y - v[1][of]) * lower[of])
    left = np.ceil(np.maximum(np.minimum(x_long, x_short), 0) - 0.5).astype(np.int64)
    right = np.floor(np.minimum(np.maximum(x_long, x_short), width) - 0.5).astype(np.int64)
    (kept,) = np.nonzero(right >= left)
    of, row, left, right, fall = of[kept], row[kept], left[kept], right[kept], fall[kept]

    start_w = (w[0][of] + (left + 0.5 - u[0][of]) * w_by_u[of] + fall * w_by_v[of]).astype(np.float32)
    slope_w = w_by_u[of].astype(np.float32)
    place = (picture[of] * height + row) * width + left
    run, step = _runs(np.zeros_like(left), right - left + 1)
    inverse_depth = start_w[run] + step.astype(np.float32) * slope_w[run]
    return place[run] + step, np.maximum(inverse_depth, np.float32(1e-30)), of[run]


def _runs(first: NDArray[np.integer], length: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Lay the ranges [first, first + length) end to end: which range each element is of, and the element."""
    of = np.repeat(np.arange(len(first)), length)
    return of, np.arange(len(of)) + (first - (np.cumsum(length) - length))[of]
