"""Triangles: drawn exactly, cut in front of the camera, and fewer of them for the same surface."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vap_gym.prompts.decimate import MOST_FACES, collapsed, joined
from vap_gym.prompts.triangles import NEAR_M, rasterise

SIZE = (144, 96)
K = np.array([[150.0, 0, 72], [0, 150, 48], [0, 0, 1]])


def pixel_rays(K: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Directions with z = 1 through the centres of all pixels, (H, W, 3)."""
    v, u = np.mgrid[0 : size[1], 0 : size[0]] + 0.5
    return np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T


def test_depth_of_a_plane_is_exact_and_fills_the_picture() -> None:
    corners = np.array([[-50.0, -40, 3], [50, -40, 1.5], [50, 40, 1.8], [-50, 40, 3.3]])  # one plane, tilted
    normal = np.cross(corners[1] - corners[0], corners[3] - corners[0])
    expected = (normal @ corners[0]) / (pixel_rays(K, SIZE) @ normal)
    face, depth = rasterise((corners @ K.T)[None], np.array([[0, 1, 2], [0, 2, 3]]), SIZE)
    assert set(np.unique(face)) <= {0, 1}  # no gap along the diagonal
    np.testing.assert_allclose(depth[0], expected, rtol=1e-6)


def test_depth_of_a_ball_is_that_of_the_sphere() -> None:
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.2)
    centre = np.array([0.1, 0.05, 1.0])
    points = ((np.asarray(ball.vertices) + centre) @ K.T)[None]
    face, depth = rasterise(points, np.asarray(ball.faces), SIZE, one_sided=np.ones(len(ball.faces), bool))
    rays = pixel_rays(K, SIZE)
    a, b, c = (rays * rays).sum(-1), rays @ centre, centre @ centre - 0.2**2
    hit = b * b - a * c
    expected = np.where(hit > 0, (b - np.sqrt(np.maximum(hit, 0))) / a, 0)
    assert ((depth[0] > 0) != (expected > 0)).sum() <= 8  # of 2,958: the polyhedron is a hair smaller
    both = (depth[0] > 0) & (hit > 0.2**2 * 0.05)  # not at the rim, where a hair in the picture is a long way in depth
    np.testing.assert_allclose(depth[0][both], expected[both], atol=4e-4)
    np.testing.assert_array_equal(depth > 0, face >= 0)


def ray_cast(corners: np.ndarray, one_sided: bool) -> tuple[np.ndarray, np.ndarray]:
    """Nearest triangle (N, 3, 3) along every pixel's ray, by brute force, and by how much the ray clears all edges."""
    rays = pixel_rays(K, SIZE).reshape(-1, 3)
    near, clear = np.full(len(rays), np.inf), np.full(len(rays), np.inf)
    for a, b, c in corners:
        normal = np.cross(b - a, c - a)
        along = rays @ normal
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (a @ normal) / along
            hit = rays * z[:, None]
            inner = [
                np.cross(q - p, hit - p) @ normal / np.linalg.norm(normal) / np.linalg.norm(q - p)
                for p, q in ((a, b), (b, c), (c, a))
            ]
        inside = (np.min(inner, axis=0) >= 0) & (z >= NEAR_M) & ((along < 0) | (not one_sided))
        near = np.where(inside & (z < near), z, near)
        clear = np.minimum(clear, np.nan_to_num(np.abs(inner).min(0), nan=0.0))
        clear = np.minimum(clear, np.abs(np.nan_to_num(z, nan=0.0, posinf=1.0, neginf=1.0) - NEAR_M))
    return np.where(np.isfinite(near), near, 0).reshape(SIZE[::-1]), clear.reshape(SIZE[::-1])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), one_sided=st.booleans())
def test_triangles_that_cross_the_camera_s_plane_are_cut_not_lost(seed: int, one_sided: bool) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform((-1.0, -1.0, -0.6), (1.0, 1.0, 1.5), (12, 3, 3))  # before, behind and across it
    expected, clear = ray_cast(corners, one_sided)
    points = (corners.reshape(-1, 3) @ K.T)[None]
    sided = np.full(12, one_sided)
    _, depth = rasterise(points, np.arange(36).reshape(12, 3), SIZE, one_sided=sided)
    sure = clear > 1e-6
    assert sure.mean() > 0.99
    np.testing.assert_allclose(depth[0][sure], expected[sure], rtol=2e-4, atol=1e-6)


def test_fewer_triangles_keep_the_surface() -> None:
    import trimesh

    solid = trimesh.creation.capsule(radius=0.05, height=0.2, count=[24, 24])
    vertices, faces = joined(np.asarray(solid.vertices), np.asarray(solid.faces))
    fewer, fewer_faces, of = collapsed(vertices, faces, most_faces=150)
    simple = trimesh.Trimesh(fewer, fewer_faces, process=False)
    assert len(faces) > 900
    assert 140 <= len(fewer_faces) <= 150
    assert simple.is_watertight
    assert simple.volume == pytest.approx(solid.volume, rel=0.02)
    away = trimesh.proximity.closest_point_naive(simple, vertices)[1]
    assert np.abs(away).max() < 0.003
    assert np.linalg.norm(fewer - vertices[of], axis=1).max() < 0.05


def test_small_parts_go_before_the_large_one_is_spoilt() -> None:
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.1)
    bolts = [trimesh.creation.box((0.004, 0.004, 0.004)).apply_translation(0.1 * v) for v in ball.face_normals[::16]]
    whole = trimesh.util.concatenate([ball, *bolts])
    vertices, faces = joined(np.asarray(whole.vertices), np.asarray(whole.faces))
    fewer, fewer_faces, _ = collapsed(vertices, faces, most_faces=150)
    assert len(bolts) == 80  # with 960 triangles
    assert len(fewer_faces) <= 150
    away = trimesh.proximity.closest_point_naive(trimesh.Trimesh(fewer, fewer_faces, process=False), ball.vertices)[1]
    assert np.abs(away).mean() < 0.003


def test_very_many_triangles_are_merged_first() -> None:
    import trimesh

    solid = trimesh.creation.icosphere(subdivisions=6, radius=0.1)
    vertices, faces = joined(np.asarray(solid.vertices), np.asarray(solid.faces))
    assert len(solid.faces) > 80_000
    assert 500 < len(faces) <= MOST_FACES
    assert np.linalg.norm(vertices, axis=1) == pytest.approx(0.1, abs=0.004)
