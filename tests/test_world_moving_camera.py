"""Cameras that move and robots that were never trained on: the table is seen anew, the robot keeps its own pixels."""

import numpy as np
import pytest
import torch
from torch import Tensor

from vap_gym.cards import load_robot
from vap_gym.geometry import Camera, inverse
from vap_gym.prompts.body import Body
from vap_gym.world.appearance import FirstSight, RobotAppearance, first_sight
from vap_gym.world.model import WorldModel
from vap_gym.world.posing import background_seen, posed_picture
from vap_gym.world.surfels import Surfels
from vap_gym.world.things import ThingFinder
from vap_gym.world.views import on_plane

HEIGHT, WIDTH = 96, 144


def camera(eye: tuple[float, float, float], target: tuple[float, float, float] = (0.45, 0.0, 0.0)) -> Camera:
    return Camera.look_at(torch.tensor(eye), torch.tensor(target), vertical_fov_rad=0.8, frame_size_px=(WIDTH, HEIGHT))


def base_view(of: Camera) -> Tensor:
    return (of.K @ inverse(of.T_world_camera)[:3])[None, None]


def table(P: Tensor) -> Tensor:
    """Paint the table as a camera sees it: a smooth pattern in world coordinates."""
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    at = on_plane(P, torch.stack([x, y], -1).reshape(1, -1, 2), torch.zeros(1, HEIGHT * WIDTH))[0]
    wave = torch.stack([(12 * at[:, 0]).sin(), (9 * at[:, 1]).cos(), (7 * (at[:, 0] + at[:, 1])).sin()])
    return 0.8 * wave.reshape(1, 3, HEIGHT, WIDTH)


def sight_of(views: Tensor) -> FirstSight:
    nothing = torch.zeros(1, 1, HEIGHT, WIDTH)
    return FirstSight(
        picture=table(views[:, 0]), mask=nothing, plate=table(views[:, 0]), filled=nothing, views=views,
        depth_m=nothing + 20.0, light=torch.tensor([[1.0, 0, 0, 0, 1, 1, 1]]),
        there=torch.zeros(1, 2, dtype=torch.bool),
        things_m=torch.zeros(1, 2, 3), shape=torch.zeros(1, 2, 6),
        owner=torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8), alpha=nothing[:, 0],
        whole=table(views[:, 0]),
    )  # fmt: skip


def test_a_camera_that_stands_still_sees_the_very_same_background() -> None:
    views = base_view(camera((1.1, 0.3, 0.7)))
    plate, filled = background_seen(sight_of(views), views.clone(), 0)
    assert torch.equal(plate, table(views[:, 0]))
    assert not filled.any()


@pytest.mark.parametrize("eye", [(1.05, 0.35, 0.72), (1.1, 0.2, 0.6), (0.95, 0.3, 0.8)])
def test_a_camera_that_moves_sees_the_table_from_where_it_is(eye: tuple[float, float, float]) -> None:
    first, now = base_view(camera((1.1, 0.3, 0.7))), base_view(camera(eye))
    plate, filled = background_seen(sight_of(first), now, 0)
    known = (filled < 0.5).expand_as(plate)
    assert 0.6 < known.float().mean() < 1.0
    apart = (plate - table(now[:, 0])).abs()[known]
    assert apart.mean() < 0.01
    assert (table(first[:, 0]) - table(now[:, 0])).abs()[known].mean() > 0.05


def test_only_the_slot_whose_camera_moved_changes() -> None:
    first = base_view(camera((1.1, 0.3, 0.7)))
    both = FirstSight(*(torch.cat([value, value]) for value in sight_of(first)))
    plate, _ = background_seen(both, torch.cat([first, base_view(camera((1.0, 0.3, 0.7)))]), 0)
    assert torch.equal(plate[:1], table(first[:, 0]))
    assert not torch.equal(plate[1:], plate[:1])


def test_a_robot_never_seen_moves_as_its_surface_moves() -> None:
    card = load_robot("widowx")
    body = Body(card)
    surfels = Surfels(points_m=body.points_m, normals=body.normals, link=body.link, spacing_m=body.spacing_m)
    seen_by = camera((0.9, 0.5, 0.5), (0.2, 0.0, 0.15))
    q = torch.tensor([card.home_q_rad, card.home_q_rad])
    q[1, 0] += 0.4
    views = body.views(q, torch.zeros(2), seen_by)
    appearance = RobotAppearance.of_surface(surfels, torch.full((len(body.link), 3), 0.9), len(body.links)).eval()
    finder = ThingFinder(widths=(4, 8), blocks=1).eval()
    for weight in finder.parameters():
        weight.detach().zero_()
    background = torch.full((1, 3, HEIGHT, WIDTH), -0.5)

    def painted(i: int) -> Tensor:
        blank = first_sight(appearance, finder, background, views[i : i + 1])
        return torch.where(blank.mask > 0.5, torch.tensor([0.7, 0.1, -0.9])[:, None, None], background)

    sight = first_sight(appearance, finder, painted(0), views[:1])
    places, turns = torch.zeros_like(sight.things_m), torch.eye(3).expand(*sight.things_m.shape[:2], 3, 3)
    posed = posed_picture(appearance, sight, places, turns, views[1:]).picture
    robot = painted(1)[:, :1] > 0.0
    assert robot.sum() > 300
    here = posed[:, :1] > 0.0
    assert (robot & here).sum() / (robot | here).sum() > 0.85
    assert (painted(0)[:, :1] > 0.0).ne(robot).sum() > 200, "the arm has moved"


def test_a_world_model_is_fitted_to_other_robots_and_left_alone_for_its_own() -> None:
    world = WorldModel.from_pretrained("tiny")
    for name, same in (("panda_robotiq", True), ("widowx", False), ("google_robot", False), ("hand_21", False)):
        body = Body(load_robot(name))
        surfels = Surfels(points_m=body.points_m, normals=body.normals, link=body.link, spacing_m=body.spacing_m)
        fitted = world.for_robot(surfels, body.colour, len(body.links))
        assert (fitted is world) == same, name
        assert fitted.dynamics is world.dynamics
        assert fitted.appearance.knows(torch.zeros(1, len(body.links), 3, 4))


@pytest.mark.parametrize("name", ["widowx", "google_robot", "hand_21"])
def test_the_known_gripper_stands_in_where_the_tool_centre_is_and_as_wide_open(name: str) -> None:
    card, known = load_robot(name), load_robot("panda_robotiq")
    plain, body = Body(card), Body(card, stand_in=known)
    assert body.links[: len(plain.links)] == plain.links
    assert body.stand_in_links == len(body.links) - len(plain.links) == 9
    seen_by, q = camera((0.9, 0.5, 0.5), (0.2, 0.0, 0.15)), torch.tensor([card.home_q_rad])
    E = seen_by.K @ inverse(seen_by.T_world_camera)[:3]
    views = {g: body.views(q, torch.tensor([g]), seen_by)[0] for g in (0.0, 1.0)}
    torch.testing.assert_close(views[0.0][: len(plain.links)], plain.views(q, torch.zeros(1), seen_by)[0])
    tips = [body.links.index(f"stand-in {side}_tip") for side in ("left", "right")]
    gaps = []
    for view in views.values():
        left, right = (torch.linalg.solve(E[:, :3], view[i][:, 3] - E[:, 3]) for i in tips)
        gaps.append(float((left - right).norm()))
    assert gaps[0] > gaps[1] + 0.5 * min(0.085, card.gripper.max_opening_m)


def test_the_motion_of_things_finds_the_grippers_links_among_other_ones() -> None:
    card, known = load_robot("panda_robotiq"), Body(load_robot("panda_robotiq"))
    own = WorldModel.from_pretrained("tiny").motion
    links = len(known.links) + 3
    other = own.for_links(tuple(int(i) + 3 for i in own.grippers[0]), links)
    assert own.knows(torch.zeros(1, len(known.links), 3, 4))  # the copy has a number of links of its own
    assert not other.knows(torch.zeros(1, len(known.links), 3, 4))
    assert not own.for_links((), 5).knows(torch.zeros(1, 5, 3, 4))
    q = torch.tensor([card.home_q_rad])
    views = known.views(q, torch.ones(1), camera((0.9, 0.5, 0.5)))
    shifted = torch.cat([views[:, :1], views[:, :3], views[:, 1:]], 1)  # other links before the gripper's
    torch.testing.assert_close(other.grip(shifted), own.grip(views))
    with pytest.raises(ValueError, match="gripper must be 9 links, got 2"):
        own.for_links((1, 2), 5)


def test_the_first_link_is_the_base_at_the_tables_height() -> None:
    for name in ("google_robot", "widowx", "hand_21", "panda_robotiq"):
        card = load_robot(name)
        body = Body(card)
        q = torch.tensor([card.home_q_rad])
        P = body.views(q, torch.zeros(1), camera((1.0, 0.2, 1.3)))[0, 0]
        x, y, z = (P @ torch.tensor([0.3, 0.1, 0.0, 1.0])).tolist()
        true, far = camera((1.0, 0.2, 1.3)).project(torch.tensor([[0.3, 0.1, card.skeleton.drop_to_z_m]]))
        np.testing.assert_allclose([x / z, y / z, z], [*true[0].tolist(), float(far[0])], rtol=1e-4)
