"""Poses are a group, conversions are inverses of each other, and a camera's pixels lead back to its points."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.geometry import (
    Camera,
    centre_crop_32,
    inverse,
    pose,
    pose_from_xyz_euler,
    quaternion_xyzw_from_rotation,
    rotation_from_quaternion_xyzw,
    rotation_from_rotvec,
    rotation_from_xyz_euler,
    rotvec_from_rotation,
    transform,
    xyz_euler_from_pose,
    xyz_euler_from_rotation,
)

settings.register_profile("geometry", deadline=None)  # the first call of a torch function can take seconds
settings.load_profile("geometry")

I4 = torch.eye(4, dtype=torch.float64)


def vectors(size: int, limit: float) -> st.SearchStrategy[Tensor]:
    entry = st.floats(-limit, limit, allow_subnormal=False)
    return st.lists(entry, min_size=size, max_size=size).map(lambda x: torch.tensor(x, dtype=torch.float64))


rotvecs = vectors(3, 6.0)
poses = st.builds(lambda r, t: pose(rotation_from_rotvec(r), t), rotvecs, vectors(3, 5.0))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@given(poses, poses, poses)
def test_poses_form_a_group(a: Tensor, b: Tensor, c: Tensor) -> None:
    close((a @ b) @ c, a @ (b @ c))
    close(a @ inverse(a), I4)
    close(inverse(a) @ a, I4)
    close(inverse(a @ b), inverse(b) @ inverse(a))
    close(a @ I4, a)
    R = (a @ b)[:3, :3]
    close(R @ R.mT, I4[:3, :3])
    assert float(torch.linalg.det(R)) == pytest.approx(1.0)


@given(poses, poses, vectors(6, 3.0))
def test_transform_acts_as_the_product_does(a: Tensor, b: Tensor, points: Tensor) -> None:
    points = points.reshape(2, 3)
    close(transform(a, transform(b, points)), transform(a @ b, points))
    close(transform(inverse(a), transform(a, points)), points)


@given(rotvecs)
def test_rotvec_and_quaternion_round_trip(rotvec: Tensor) -> None:
    R = rotation_from_rotvec(rotvec)
    back = rotvec_from_rotation(R)
    assert float(back.norm()) <= math.pi + 1e-9
    close(rotation_from_rotvec(back), R, 1e-8)
    if float(rotvec.norm()) < math.pi - 1e-6:
        close(back, rotvec, 1e-8)
    q = quaternion_xyzw_from_rotation(R)
    assert float(q.norm()) == pytest.approx(1.0)
    assert float(q[3]) >= 0
    close(rotation_from_quaternion_xyzw(q), R)
    close(rotation_from_quaternion_xyzw(-3.0 * q), R)


@given(vectors(6, 3.0))
def test_euler_round_trip(x: Tensor) -> None:
    T = pose_from_xyz_euler(x)
    back = xyz_euler_from_pose(T)
    close(pose_from_xyz_euler(back), T, 1e-7)
    if float(x[4].abs()) < math.pi / 2 - 1e-3:
        close(back, x, 1e-8)


@pytest.mark.parametrize("b", [math.pi / 2, -math.pi / 2])
def test_euler_at_gimbal_lock_still_gives_the_rotation(b: float) -> None:
    R = rotation_from_xyz_euler(torch.tensor([0.4, b, -0.9], dtype=torch.float64))
    euler = xyz_euler_from_rotation(R)
    assert float(euler[2]) == 0.0
    close(rotation_from_xyz_euler(euler), R, 1e-7)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 1e-4, 1.0, math.pi - 1e-6, math.pi])
@pytest.mark.parametrize("axis", [(1.0, 0, 0), (0, -1.0, 0), (0.6, 0.0, 0.8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotvec_is_accurate_and_smooth_at_every_angle(
    angle: float, axis: tuple[float, ...], dtype: torch.dtype
) -> None:
    rotvec = (angle * torch.tensor(axis, dtype=torch.float64)).to(dtype).requires_grad_()
    back = rotvec_from_rotation(rotation_from_rotvec(rotvec))
    assert back.dtype == dtype
    signs = (1.0, -1.0) if angle == math.pi else (1.0,)  # at π either sign is right
    error = min(float((back - sign * rotvec).detach().norm()) for sign in signs)
    assert error < (2e-6 if dtype == torch.float32 else 1e-8)
    back.sum().backward()
    assert rotvec.grad is not None
    assert bool(torch.isfinite(rotvec.grad).all())


def test_euler_is_extrinsic_xyz() -> None:
    a, b, c = 0.3, -0.5, 1.1
    axes = torch.eye(3, dtype=torch.float64)
    Rx, Ry, Rz = (rotation_from_rotvec(angle * axis) for angle, axis in zip((a, b, c), axes, strict=True))
    close(rotation_from_xyz_euler(torch.tensor([a, b, c], dtype=torch.float64)), Rz @ Ry @ Rx)


def test_rotations_have_right_gradients() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for function in (rotation_from_rotvec, rotation_from_xyz_euler):
        assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradcheck(lambda v: rotvec_from_rotation(rotation_from_rotvec(v)), (x,))
    assert torch.autograd.gradcheck(lambda v: xyz_euler_from_rotation(rotation_from_xyz_euler(v)), (x,))


def a_camera(batch: int | None = None) -> Camera:
    eye = torch.tensor([0.9, -0.6, 0.7], dtype=torch.float64)
    eye = (
        eye if batch is None else eye + 0.1 * torch.randn(batch, 3, generator=torch.Generator().manual_seed(1)).double()
    )
    target = torch.tensor([0.4, 0.0, 0.1], dtype=torch.float64)
    return Camera.look_at(eye, target, vertical_fov_rad=0.8, frame_size_px=(144, 96), roll_rad=0.1)


@settings(max_examples=50)
@given(vectors(6, 0.5), st.floats(0.2, 2.5), st.floats(-3.0, 3.0))
def test_pixels_lead_back_to_their_points(points: Tensor, fov: float, roll: float) -> None:
    points = points.reshape(2, 3)
    eye = torch.tensor([1.5, 0.8, 1.2], dtype=torch.float64)
    camera = Camera.look_at(eye, points.new_zeros(3), vertical_fov_rad=fov, frame_size_px=(144, 96), roll_rad=roll)
    uv, depth = camera.project(points)
    close(camera.unproject(uv, depth), points)
    origin, direction = camera.ray(uv)
    distance = (points - origin).norm(dim=-1, keepdim=True)
    close(origin + distance * direction, points)
    on_plane = camera.unproject_to_plane(uv, points[:, 2])
    close(on_plane, points, 1e-7)


def test_look_at_puts_the_target_in_the_centre_and_up_upward() -> None:
    camera = Camera.look_at(
        torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 0.0]), vertical_fov_rad=1.0, frame_size_px=(144, 96)
    )
    uv, depth = camera.project(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.1]]))
    torch.testing.assert_close(uv[0], torch.tensor([72.0, 48.0]))
    assert float(depth[0]) == pytest.approx(math.sqrt(3.0))
    assert float(uv[1, 1]) < 48.0  # higher in the world is higher in the picture
    edge = camera.unproject(torch.tensor([[72.0, 0.0]]), torch.tensor([1.0]))
    assert float(camera.points_in_camera(edge)[0, 1]) == pytest.approx(-math.tan(0.5), abs=1e-6)


def test_look_straight_down_has_x_upward() -> None:
    camera = Camera.look_at(
        torch.tensor([0.5, 0.0, 1.0]), torch.tensor([0.5, 0.0, 0.0]), vertical_fov_rad=1.0, frame_size_px=(144, 96)
    )
    uv, _ = camera.project(torch.tensor([[0.6, 0.0, 0.0]]))
    assert float(uv[0, 0]) == pytest.approx(72.0, abs=1e-4)
    assert float(uv[0, 1]) < 48.0


def test_behind_is_negative_depth_and_planes_behind_are_nan() -> None:
    camera = a_camera()
    backward = camera.T_world_camera[:3, 3] - camera.T_world_camera[:3, 2]
    uv, depth = camera.project(backward[None])
    assert float(depth) == pytest.approx(-1.0)
    assert bool(torch.isfinite(uv).all())
    assert bool(camera.unproject_to_plane(torch.tensor([[72.0, 48.0]]).double(), 5.0).isnan().all())


@given(st.integers(20, 2000), st.integers(20, 2000))
def test_crop_rule_gives_three_to_two_inside_the_picture(width: int, height: int) -> None:
    left, top, w, h = centre_crop_32(width, height)
    assert 0 <= left <= left + w <= width
    assert 0 <= top <= top + h <= height
    assert abs(w / h - 1.5) < 1.6 / h
    assert w == width or h == height
    assert abs(2 * left + w - width) <= 1
    assert abs(2 * top + h - height) <= 1


def test_crop_rule_on_known_pictures() -> None:
    assert centre_crop_32(1280, 720) == (100, 0, 1080, 720)
    assert centre_crop_32(640, 480) == (0, 26, 640, 427)
    assert centre_crop_32(320, 256) == (0, 21, 320, 213)
    assert centre_crop_32(144, 96) == (0, 0, 144, 96)


def test_resizing_follows_droid_intrinsics() -> None:
    K = torch.tensor([[531.73, 0, 636.15], [0, 531.73, 344.01], [0, 0, 1.0]], dtype=torch.float64)
    small = Camera(K=K, T_world_camera=I4, frame_size_px=(1280, 720)).resized((320, 192))
    expected = torch.tensor([[132.93, 0, 159.04], [0, 141.79, 91.74], [0, 0, 1.0]], dtype=torch.float64)
    close(small.K, expected, 0.006)
    assert small.frame_size_px == (320, 192)


@given(vectors(3, 0.5))
def test_crop_and_resize_move_pixels_as_they_move_the_picture(point: Tensor) -> None:
    camera = a_camera()
    uv, depth = camera.project(point[None])
    changed = camera.cropped(12, 8, 120, 80).resized((60, 20))
    uv_changed, depth_changed = changed.project(point[None])
    close(uv_changed, (uv - torch.tensor([12.0, 8.0])) * torch.tensor([0.5, 0.25]))
    close(depth_changed, depth)


def test_batched_cameras_agree_with_single_ones_and_broadcast() -> None:
    cameras = a_camera(5)
    points = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    uv, depth = cameras.project(points)
    for i in range(5):
        one_uv, one_depth = cameras.index(i).project(points[i])
        close(uv[i], one_uv)
        close(depth[i], one_depth)
    assert cameras.index(slice(1, 3)).batch_shape == (2,)
    assert a_camera().project(points)[0].shape == (5, 4, 2)  # one camera, many point sets
    mixed = Camera(K=a_camera().K, T_world_camera=cameras.T_world_camera, frame_size_px=(144, 96))
    assert mixed.index(3).K.shape == (3, 3)
    assert mixed.to(torch.float32).project(points.float())[0].dtype == torch.float32


def test_projection_has_right_gradients() -> None:
    camera = a_camera()
    points = (
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).mul(0.2).requires_grad_()
    )
    assert torch.autograd.gradcheck(lambda p: camera.project(p)[0], (points,))


@pytest.mark.parametrize(
    ("K", "T", "size", "message"),
    [
        (torch.zeros(3, 3), torch.eye(4), (144, 96), r"K is singular or no pinhole matrix: got .*fx, fy > 0"),
        (torch.eye(3) * float("nan"), torch.eye(4), (144, 96), r"K must be finite, got NaN"),
        (torch.eye(3), 2 * torch.eye(4), (144, 96), r"T_world_camera is not rigid, got .* right-handed"),
        (torch.eye(3), torch.diag(torch.tensor([1.0, 1, -1, 1])), (144, 96), r"is not rigid"),
        (
            torch.eye(3),
            torch.eye(4),
            (0, 96),
            r"frame_size_px must be \(width, height\) of at least 1 px, got \(0, 96\)",
        ),
    ],
)
def test_impossible_camera_is_refused(K: Tensor, T: Tensor, size: tuple[int, int], message: str) -> None:
    with pytest.raises(VapError, match=message):
        Camera(K=K, T_world_camera=T, frame_size_px=size).checked()


def test_camera_that_looks_at_itself_is_refused() -> None:
    with pytest.raises(VapError, match="eye and target must differ"):
        Camera.look_at(torch.zeros(3), torch.zeros(3), vertical_fov_rad=1.0, frame_size_px=(144, 96))
