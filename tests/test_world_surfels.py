"""Points as surfaces: what is nearest is seen, where it is, without holes."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vap_gym.cards import load_robot
from vap_gym.geometry import Camera
from vap_gym.prompts.body import Body
from vap_gym.world.surfels import (
    FAR_M,
    Surfels,
    cameras,
    drawn,
    looked_at,
    near_pixels,
    projected,
    seen_points,
    turned_normals,
)

HEIGHT, WIDTH, FOCAL = 96, 144, 100.0
K = torch.tensor([[FOCAL + 5, 0.0, 72.0], [0.0, FOCAL, 48.0], [0.0, 0.0, 1.0]])


def patch(half_m: float = 0.1, gap_m: float = 0.009, links: int = 1) -> Surfels:
    """A square facing the camera (−z), one on every link."""
    at = torch.arange(-half_m, half_m + 1e-6, gap_m)
    points = torch.cartesian_prod(at, at, torch.zeros(1))
    normals = torch.tensor([0.0, 0.0, -1.0]).expand(len(points), -1)
    link = torch.arange(links).repeat_interleave(len(points))
    spacing = torch.full((links * len(points),), gap_m)
    return Surfels(points.repeat(links, 1), normals.repeat(links, 1), link, spacing)


def view(*places_m: tuple[float, float, float], turn: Tensor | None = None) -> Tensor:
    """Views of links that stand at these places before the camera."""
    R = torch.eye(3) if turn is None else turn
    return torch.stack([K @ torch.cat([R, torch.tensor(place)[:, None]], 1) for place in places_m])[None]


def test_a_square_is_seen_where_it_is_and_without_holes() -> None:
    for depth, gap in ((1.0, 0.009), (0.5, 0.009), (2.0, 0.009), (0.25, 0.004)):
        half = 0.08 * depth
        seen = seen_points(patch(half, gap), view((0.2 * depth, -0.1 * depth, depth)), (HEIGHT, WIDTH))
        middle = (seen.point[0, 33:43, 88:98] >= 0).float().mean()
        assert middle == 1.0, (depth, gap)
        assert (seen.depth_m[0, 0, 33:43, 88:98] - depth).abs().max() < 1e-3
        around = seen.point[0].clone()
        around[26:50, 80:106] = -1
        assert (around == -1).all()
        assert (seen.depth_m[0, 0, :20] == FAR_M).all()


def test_what_lies_behind_does_not_show_between_points() -> None:
    surfels = patch(half_m=0.06, gap_m=0.01, links=2)  # so near that a point is 2.5 px from the next
    seen = seen_points(surfels, view((0.0, 0.0, 0.4), (0.0, 0.0, 0.5)), (HEIGHT, WIDTH))
    front = surfels.link[seen.point[0, 38:58, 62:82]] == 0
    assert front.float().mean() > 0.99  # .64 where holes are left as they are


def test_a_surface_near_the_camera_has_no_holes_and_reaches_no_further_than_it_is() -> None:
    tilted = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, -0.866], [0.0, 0.866, 0.5]])
    for turn, high in ((torch.eye(3), 1.0), (tilted, 0.5)):
        surfels, depth = patch(half_m=0.05, gap_m=0.01), 0.18  # points are 5.6 px apart
        seen = seen_points(surfels, view((0.0, 0.0, depth), turn=turn), (HEIGHT, WIDTH)).point[0] >= 0
        half_px = 0.055 * FOCAL / depth  # half a spacing beyond the outermost points
        y, x = (torch.arange(n) + 0.5 - n / 2 for n in (HEIGHT, WIDTH))
        inside = (y.abs()[:, None] < 0.6 * high * half_px) & (x.abs() < 0.6 * half_px)
        outside = (y.abs()[:, None] > 1.6 * high * half_px + 3) | (x.abs() > 1.6 * half_px + 3)
        assert seen[inside].all()
        assert not seen[outside].any()
        away = surfels._replace(normals=-surfels.normals)  # what faces away is no surface to be seen: corners alone
        back = seen_points(away, view((0.0, 0.0, depth), turn=turn), (HEIGHT, WIDTH)).point[0] >= 0
        assert back[inside].float().mean() < 0.9


def test_more_points_are_told_apart_at_coarser_distances() -> None:
    surfels = patch(half_m=0.1, gap_m=0.001)  # forty thousand
    assert len(surfels.points_m) > 2**15
    seen = seen_points(surfels, view((0.0, 0.0, 1.0)), (HEIGHT, WIDTH))
    assert seen.point.max() < len(surfels.points_m)
    assert (seen.depth_m[0, 0, 44:52, 68:76] - 1.0).abs().max() < 2e-3


def test_the_nearer_of_two_squares_is_seen() -> None:
    surfels = patch(links=2)
    for near in (0, 1):
        places = [(0.0, 0.0, 2.0), (0.0, 0.0, 2.0)]
        places[near] = (0.0, 0.0, 1.0)
        seen = seen_points(surfels, view(*places), (HEIGHT, WIDTH))
        assert (surfels.link[seen.point[0, 40:56, 64:80]] == near).all()


def test_what_is_behind_the_camera_or_beside_the_picture_is_not_seen() -> None:
    for place in ((0.0, 0.0, -1.0), (0.0, 0.0, 0.0), (3.0, 0.0, 1.0), (0.0, -2.0, 1.0), (0.0, 0.0, 50.0)):
        assert (seen_points(patch(), view(place), (HEIGHT, WIDTH)).point == -1).all()
    nothing = torch.zeros(1, 1, 3, 4)  # no camera at all
    assert (seen_points(patch(), nothing, (HEIGHT, WIDTH)).point == -1).all()


def test_pictures_do_not_mix() -> None:
    views = torch.cat([view((0.1, 0.0, 1.0)), view((-0.2, 0.1, 1.5))])
    both = seen_points(patch(), views, (HEIGHT, WIDTH))
    for i in range(2):
        alone = seen_points(patch(), views[i : i + 1], (HEIGHT, WIDTH))
        assert torch.equal(both.point[i], alone.point[0])
        assert torch.equal(both.depth_m[i], alone.depth_m[0])


def test_pixels_near_a_surface_are_its_own_and_those_around_them() -> None:
    views = torch.cat([view((0.0, 0.0, 1.0)), view((0.1, 0.0, 2.0))])
    seen, near = seen_points(patch(), views, (HEIGHT, WIDTH)), near_pixels(drawn(patch(), views, (HEIGHT, WIDTH)))
    on = (seen.point >= 0)[:, None].float()
    around = F.max_pool2d(on, 3, 1, 1)[:, 0] > 0
    assert torch.equal(torch.stack(near[:3], 1), around.nonzero())
    at = near.picture, near.y, near.x
    assert torch.equal(near.there, seen.point[at] >= 0)
    assert torch.equal(near.amid, F.avg_pool2d(on, 3, 1, 1)[:, 0][at] > 0.99)
    assert torch.equal(near.point[near.there], seen.point[at][near.there])
    assert torch.equal(near.depth_m[near.there], seen.depth_m[:, 0][at][near.there])
    assert 40 < (~near.there).sum() < 200
    beside = torch.stack(looked_at(patch(), views, near.picture, near.point)[:2].unbind(), 1) / near.depth_m[:, None]
    off = (beside - torch.stack([near.x, near.y], 1) - 0.5).abs().amax(1)
    assert off[near.there].max() < 1.0
    assert off[~near.there].max() < 2.0


def test_a_surface_that_leaves_the_picture_ends_at_its_edge() -> None:
    view_px = view(((0 - 72) / 105, (0 - 48) / 100, 1.0))  # its middle is the first pixel's corner
    near = near_pixels(drawn(patch(), view_px, (HEIGHT, WIDTH)))
    assert near.there[(near.x < 8) & (near.y < 8)].all()
    assert not near.amid[(near.x == 0) | (near.y == 0)].any(), "what is outside is not known"
    assert near.amid[(near.x > 0) & (near.y > 0) & (near.x < 8) & (near.y < 8)].all()


def test_views_that_are_no_numbers_show_nothing() -> None:
    assert (seen_points(patch(), torch.full((1, 1, 3, 4), torch.nan), (HEIGHT, WIDTH)).point == -1).all()


def test_the_camera_is_found_in_the_views_and_normals_turn_with_the_link() -> None:
    angle = torch.tensor(0.4)
    turn = torch.tensor([[angle.cos(), 0.0, angle.sin()], [0.0, 1.0, 0.0], [-angle.sin(), 0.0, angle.cos()]])
    views = view((0.0, 0.0, 1.0), turn=turn)
    focal, centre = cameras(views)
    assert focal[0].tolist() == pytest.approx([FOCAL + 5, FOCAL], rel=1e-4)
    assert centre[0].tolist() == pytest.approx([72.0, 48.0], rel=1e-4)
    first = torch.zeros(1, dtype=torch.int64)
    turned = turned_normals(patch(), views, first, first)
    torch.testing.assert_close(turned[0], turn @ torch.tensor([0.0, 0.0, -1.0]), atol=1e-5, rtol=0)


def test_points_of_a_robot_are_where_its_camera_sees_them() -> None:
    body = Body(load_robot("panda_robotiq"))
    q = torch.tensor([[0.1, -0.6, 0.2, -2.4, 0.1, 1.9, 0.3], [0.3, -0.2, -0.2, -2.0, 0.3, 1.7, -0.4]])
    closedness = torch.tensor([0.2, 0.9])
    T = torch.eye(4)
    T[:3, :3] = torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    T[:3, 3] = torch.tensor([1.6, 0.1, 0.5])
    camera = Camera(K=K, T_world_camera=T, frame_size_px=(WIDTH, HEIGHT))
    views = body.views(q, closedness, camera)
    surfels = Surfels(body.points_m, body.normals, body.link, body.spacing_m)
    at = projected(surfels, views)
    which, point = torch.tensor([1, 0, 1]), torch.tensor([5, 7000, 12000])
    torch.testing.assert_close(looked_at(surfels, views, which, point), at[which, :, point].mT)
    both = torch.cat([views, views.flip(0)], 2)
    torch.testing.assert_close(looked_at(surfels, both, which, point)[3:], at[1 - which, :, point].mT)
    from vap_gym.kinematics.urdf import load_chain

    chain = load_chain(body.robot).to(torch.float32)
    for name in ("panda_link4", "robotiq_base"):
        mine = body.link == body.links.index(name)
        T_link = chain.fk(torch.cat([q, torch.zeros(2, chain.size - 7)], 1), name)  # the gripper's joints come later
        world = body.points_m[mine] @ T_link[:, :3, :3].mT + T_link[:, None, :3, 3]
        expected, _ = camera.project(world)
        torch.testing.assert_close((at[:, :2, mine] / at[:, 2:, mine]).mT, expected, atol=1e-2, rtol=1e-4)
    many = body.views(q.expand(5, 2, 7), closedness.expand(5, 2), camera)
    torch.testing.assert_close(many[3], views)
