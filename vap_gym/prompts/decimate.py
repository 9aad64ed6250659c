"""Fewer triangles: vertices merged by cells where there are very many, then edges collapsed by least squares.

The second step is the quadric error measure of Garland and Heckbert (Surface Simplification Using Quadric Error
Metrics, 1997): every vertex keeps the sum of squared distances to the planes that met there, and the edge whose
collapse costs least goes first.
"""

from __future__ import annotations

import heapq
import itertools

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

MOST_FACES = 5000
"""More triangles than this are merged by cells first: collapsing edges one by one is slow."""


def joined(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], *, cell_m: float = 1e-7
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    """Make the vertices of each cell one, at their mean; drop triangles that lose a side or come twice.

    Where more than `MOST_FACES` triangles are left, the cells are made larger until there are fewer, or until they are
    a sixteenth of the whole.
    """
    extent = float(np.ptp(vertices, axis=0).max()) if len(vertices) else 0.0
    vertices, faces = _merged(vertices.astype(np.float64), faces.astype(np.int64), cell_m)
    for cells in (256, 128, 96, 64, 48, 32, 24, 16):
        if len(faces) <= MOST_FACES:
            break
        vertices, faces = _merged(vertices, faces, extent / cells)
    return vertices, faces


def _merged(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], cell_m: float
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    keys = np.round(vertices / cell_m).astype(np.int64)
    _, place = np.unique(keys, axis=0, return_inverse=True)
    place = place.reshape(-1)
    count = np.bincount(place)
    mean = np.stack([np.bincount(place, vertices[:, k]) / count for k in range(3)], axis=1)
    new = place[faces]
    new = new[(new[:, 0] != new[:, 1]) & (new[:, 1] != new[:, 2]) & (new[:, 2] != new[:, 0])]
    turned = np.take_along_axis(new, (new.argmin(1)[:, None] + np.arange(3)) % 3, axis=1)  # smallest vertex first
    kept, place = np.unique(np.unique(turned, axis=0), return_inverse=True)
    return mean[kept], place.reshape(-1, 3)


def _quadrics(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "V 4 4"]:
    """For each vertex the sum of area · plane planeᵀ over its triangles, borders held by planes that stand on them."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    length = np.linalg.norm(normal, axis=1)
    unit = normal / np.maximum(length, 1e-300)[:, None]
    planes = np.concatenate([unit, -(unit * a).sum(1, keepdims=True)], axis=1)
    own = (length / 2)[:, None, None] * planes[:, :, None] * planes[:, None, :]
    total = np.zeros((len(vertices), 4, 4))
    for k in range(3):
        np.add.at(total, faces[:, k], own)
    sides = np.concatenate([faces[:, [k, (k + 1) % 3]] for k in range(3)])
    of = np.tile(np.arange(len(faces)), 3)
    _, first, times = np.unique(np.sort(sides, axis=1), axis=0, return_index=True, return_counts=True)
    border = first[times == 1]
    start, end = vertices[sides[border, 0]], vertices[sides[border, 1]]
    wall = np.cross(end - start, unit[of[border]])
    size = np.linalg.norm(wall, axis=1, keepdims=True)
    wall = wall / np.maximum(size, 1e-300)
    planes = np.concatenate([wall, -(wall * start).sum(1, keepdims=True)], axis=1)
    held = (size**2)[..., None] * planes[:, :, None] * planes[:, None, :]
    for k in range(2):
        np.add.at(total, sides[border, k], held)
    return total


def collapsed(
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    *,
    most_faces: int,
    weight: Float[np.ndarray, " V"] | None = None,
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, " v"]]:
    """Collapse edges, the cheapest first, until `most_faces` are left or no edge can go without a fold.

    Surfaces may pinch and small parts vanish: for pictures that is better than triangles spent on bolts.

    Args:
        vertices, faces: triangle meshes, several side by side if wanted: triangles then stay where they are worth most.
        most_faces: of all together.
        weight: how much an error at a vertex counts; 1 if none is given.

    Returns:
        vertices, faces, and for each vertex the index of one of those that it stands for.
    """
    if len(faces) <= most_faces:
        return vertices, faces, np.arange(len(vertices))
    place, quadric = vertices.astype(np.float64), _quadrics(vertices, faces)
    if weight is not None:
        quadric *= weight[:, None, None]
    corners = {i: list(map(int, face)) for i, face in enumerate(faces)}
    around: list[set[int]] = [set() for _ in place]  # the triangles at a vertex
    for i, face in corners.items():
        for vertex in face:
            around[vertex].add(i)
    age = [0] * len(place)
    heap: list[tuple[float, int, int, int, int, list[float]]] = []

    def neighbours(vertex: int) -> set[int]:
        return {other for face in around[vertex] for other in corners[face]} - {vertex}

    def push(edges: list[tuple[int, int]]) -> None:
        first, second = np.array(edges).T
        costs, targets = _cheapest(quadric[first] + quadric[second], place[first], place[second])
        for (a, b), cost, target in zip(edges, costs.tolist(), targets.tolist(), strict=True):
            heapq.heappush(heap, (cost, a, b, age[a], age[b], target))

    push(sorted({(min(p, q), max(p, q)) for f in corners.values() for p, q in itertools.combinations(f, 2)}))
    while heap and len(corners) > most_faces:
        _, a, b, age_a, age_b, target = heapq.heappop(heap)
        if (age_a, age_b) != (age[a], age[b]):
            continue  # one end has moved since
        shared = around[a] & around[b]
        new = np.array(target)
        moved = (around[a] | around[b]) - shared
        if not shared or (moved and _folds(place, np.array([corners[face] for face in moved]), (a, b), new)):
            continue
        for gone in shared:
            for vertex in corners.pop(gone):
                around[vertex].discard(gone)
        for kept in around[b]:
            corners[kept] = [a if vertex == b else vertex for vertex in corners[kept]]
        around[a], around[b] = around[a] | around[b], set()
        place[a], quadric[a] = new, quadric[a] + quadric[b]
        age[a], age[b] = age[a] + 1, age[b] + 1
        if others := neighbours(a):
            push([(min(a, other), max(a, other)) for other in others])
    used, new_faces = np.unique(np.array(list(corners.values()), np.int64).reshape(-1, 3), return_inverse=True)
    return place[used], new_faces.reshape(-1, 3), used


def _cheapest(
    quadric: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of N edges a b with quadrics (N, 4, 4): what collapsing each costs, and to which place near it, (N, 3)."""
    matrix = quadric[:, :3, :3]
    size = np.maximum(np.trace(matrix, axis1=1, axis2=2), 1e-300)
    is_regular = np.abs(np.linalg.det(matrix)) > 1e-9 * size**3
    middle = (a + b) / 2
    best = middle.copy()
    best[is_regular] = np.linalg.solve(matrix[is_regular], -quadric[is_regular, :3, 3:])[..., 0]
    far = np.linalg.norm(best - middle, axis=1) > 2 * np.linalg.norm(b - a, axis=1)
    best[far] = middle[far]
    candidates = np.stack([best, middle, a, b], axis=1)
    homogeneous = np.concatenate([candidates, np.ones((*candidates.shape[:2], 1))], axis=2)
    costs = ((homogeneous @ quadric) * homogeneous).sum(-1)
    chosen = costs.argmin(1)
    each = np.arange(len(chosen))
    return costs[each, chosen], candidates[each, chosen]


def _folds(
    place: NDArray[np.float64], faces: NDArray[np.int64], moved: tuple[int, int], new: NDArray[np.float64]
) -> bool:
    """Whether a triangle turns by more than about 80 degrees, or vanishes, when its `moved` corner goes to `new`."""
    before = place[faces]
    after = np.where(((faces == moved[0]) | (faces == moved[1]))[..., None], new, before)
    n, m = (np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]) for p in (before, after))
    nm, nn, mm = (n * m).sum(1), (n * n).sum(1), (m * m).sum(1)
    return bool(((nm <= 0.2 * np.sqrt(nn * mm)) | (mm < 1e-24)).any())
