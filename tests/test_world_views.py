"""What views tell besides: the camera in the base frame, and the poses of links."""

import pytest
import torch

from vap_gym.cards import load_robot
from vap_gym.geometry import Camera
from vap_gym.prompts.body import Body
from vap_gym.world.views import inverse_or_zero, link_poses, on_plane, project, rays

CAMERA = Camera.look_at(
    torch.tensor([1.2, 0.4, 0.7]), torch.tensor([0.4, 0.0, 0.0]), vertical_fov_rad=0.9, frame_size_px=(144, 96)
)


@pytest.fixture(scope="module")
def body() -> Body:
    return Body(load_robot("panda_robotiq"))


def poses(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    home = torch.tensor(load_robot("panda_robotiq").home_q_rad)
    return home + 0.3 * torch.randn(count, 7, generator=rng), torch.rand(count, generator=rng)


def test_the_base_links_view_is_the_camera(body: Body) -> None:
    views = body.views(*poses(5), CAMERA)
    P = views[:, body.links.index("panda_link0")]
    points = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(1)) * 0.6
    pixels, depth = project(P, points)
    expected, far = CAMERA.project(points)
    torch.testing.assert_close(pixels, expected, atol=1e-2, rtol=0)
    torch.testing.assert_close(depth, far, atol=1e-4, rtol=0)
    origin, ray = rays(P, pixels)
    torch.testing.assert_close(origin + depth[..., None] * ray, points, atol=1e-3, rtol=0)
    torch.testing.assert_close(on_plane(P, pixels, points[..., 2]), points, atol=2e-3, rtol=0)


def test_links_are_where_forward_kinematics_puts_them(body: Body) -> None:
    nowhere = Camera(K=torch.eye(3), T_world_camera=torch.eye(4), frame_size_px=(2, 2))
    q, closedness = poses(5)
    exact = body.views(q, closedness, nowhere)  # without a camera views are poses
    turn, place = link_poses(body.views(q, closedness, CAMERA), body.links.index("panda_link0"), (3, 8, 15))
    torch.testing.assert_close(turn, exact[:, [3, 8, 15], :, :3], atol=1e-4, rtol=0)
    torch.testing.assert_close(place, exact[:, [3, 8, 15], :, 3], atol=1e-4, rtol=0)


def test_what_has_no_inverse_has_zero() -> None:
    matrix = torch.stack([torch.zeros(3, 3), 2.0 * torch.eye(3)])
    torch.testing.assert_close(inverse_or_zero(matrix), torch.stack([torch.zeros(3, 3), 0.5 * torch.eye(3)]))
