"""What the robot looks like, and pictures of robot and things in other poses, made of a first picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vap_gym.cards import load_robot
from vap_gym.geometry import Camera
from vap_gym.prompts.body import Body
from vap_gym.sim.scene import LABELS
from vap_gym.train.appearance import Sights, fill_colours, of_bodies
from vap_gym.world.appearance import FirstSight, RobotAppearance, background, first_sight
from vap_gym.world.model import WorldModel
from vap_gym.world.posing import cell_means, posed_picture
from vap_gym.world.surfels import Seen, seen_points
from vap_gym.world.things import ThingFinder

HEIGHT, WIDTH = 96, 144
GREY, ROBOT = -0.6, 0.8
K = torch.tensor([[100.0, 0.0, 72.0], [0.0, 100.0, 48.0], [0.0, 0.0, 1.0]])


class Square(RobotAppearance):
    """A robot of one link: a square of 24 × 24 cm that faces the camera. It knows which pixels are its own."""

    def __init__(self, *, links: int = 1) -> None:
        at = torch.arange(-0.12, 0.1201, 0.008)
        points = torch.cartesian_prod(at, at, torch.zeros(1))
        super().__init__(points=len(points), links=links, widths=(4, 8))
        self.points_m.copy_(points)
        self.normals.copy_(torch.tensor([0.0, 0.0, -1.0]).expand(len(points), -1))
        self.spacing_m.fill_(0.008)
        self.colour.fill_(ROBOT * 0.5 + 0.5)

    def mask_logits(self, picture: Tensor, seen: Seen) -> Tensor:
        return 20.0 * (seen.point >= 0)[:, None].float() - 10.0


def view(x_px: float, y_px: float) -> Tensor:
    """The square, a metre away, around a pixel: it covers 24 × 24 of them."""
    place = torch.tensor([(x_px - 72) / 100, (y_px - 48) / 100, 1.0])
    return (K @ torch.cat([torch.eye(3), place[:, None]], 1))[None, None]


def scene(views: Tensor, *, robot: float = ROBOT) -> Tensor:
    """A grey picture with the square in it."""
    mask = (seen_points(Square().surfels, views, (HEIGHT, WIDTH)).point >= 0)[:, None].float()
    return torch.lerp(torch.full((len(views), 3, HEIGHT, WIDTH), GREY), torch.full_like(mask, robot), mask)


BLIND = ThingFinder(most=2, widths=(4, 8), blocks=1, links=99)  # it knows no robot, so it finds nothing


def seen_first(looks: RobotAppearance, picture: Tensor, views: Tensor) -> FirstSight:
    return first_sight(looks, BLIND, picture, views)


def still(sight: FirstSight) -> Tensor:
    return torch.eye(3).expand(*sight.there.shape, 3, 3)


def posed(looks: RobotAppearance, sight: FirstSight, views: Tensor) -> Tensor:
    """The picture with its things where they were."""
    return posed_picture(looks, sight, sight.things_m, still(sight), views).picture


def test_a_posed_picture_shows_the_robot_in_its_new_place_only() -> None:
    before, now = view(40, 40), view(100, 60)
    first, looks = scene(before), Square()
    sight = seen_first(looks, first, before)
    made = posed(looks, sight, now)
    torch.testing.assert_close(made, scene(now), atol=0.03, rtol=0)
    torch.testing.assert_close(posed(looks, sight, before), first, atol=0.03, rtol=0)


def test_what_is_seen_of_the_robot_goes_with_it() -> None:
    before, now = view(40, 40), view(60, 52)
    first, looks = scene(before), Square()
    first[..., 34:38, 36:40] = -0.9  # a mark on it
    made = posed(looks, seen_first(looks, first, before), now)
    assert (made[..., 46:50, 56:60] < -0.8).all()
    assert (made[..., 52:60, 62:68] > ROBOT - 0.05).all()


def test_where_the_robot_must_be_a_mistaken_mask_makes_no_hole() -> None:
    before, now = view(40, 40), view(100, 60)
    looks = Square()
    sight = seen_first(looks, scene(before), before)
    sight.mask[..., 34:44, 34:44] = 0.0  # by mistake, in the robot's middle
    made = posed(looks, sight, now)
    assert (made[..., 52:68, 92:108] > ROBOT - 0.12).all()


def test_what_the_first_picture_does_not_show_has_its_usual_colour_in_the_pictures_light() -> None:
    before, now = view(0, 40), view(60, 40)  # the left half was out of the picture
    for dark in (False, True):
        bright = 0.0 if dark else ROBOT
        looks = Square()
        made = posed(looks, seen_first(looks, scene(before, robot=bright), before), now)
        assert made[0, :, 40, 52] == pytest.approx(torch.full((3,), bright), abs=0.12)
        assert made[0, :, 40, 68] == pytest.approx(torch.full((3,), bright), abs=0.03)


def test_a_robot_that_is_not_known_stays_where_it_was() -> None:
    before, looks = view(40, 40), Square(links=9)
    first = scene(before)
    for views in (before, torch.zeros(1, 0, 3, 4)):
        sight = seen_first(looks, first, views)
        assert not sight.mask.any()
        assert torch.equal(sight.plate, first)
        torch.testing.assert_close(posed(looks, sight, views), first, atol=1e-5, rtol=0)
        assert not sight.there.any()


def test_pictures_do_not_mix() -> None:
    looks, before, now = Square(), torch.cat([view(40, 40), view(90, 30)]), torch.cat([view(60, 50), view(80, 60)])
    first = scene(before)
    first[1] *= 0.5
    both = posed(looks, seen_first(looks, first, before), now)
    for i in range(2):
        one = slice(i, i + 1)
        alone = posed(looks, seen_first(looks, first[one], before[one]), now[one])
        torch.testing.assert_close(both[one], alone, atol=1e-5, rtol=0)


# --- things ---


class Reaching(Square):
    """A base that is never seen, a metre before the camera's middle, and the square as a second link."""

    def __init__(self) -> None:
        super().__init__(links=2)
        self.link.fill_(1)


def reaching(x_px: float, y_px: float, *, depth_m: float = 1.0) -> Tensor:
    place = torch.tensor([(x_px - 72) / 100, (y_px - 48) / 100, 1.0]) * depth_m
    square = K @ torch.cat([torch.eye(3), place[:, None]], 1)
    return torch.stack([view(72, 48)[0, 0], square])[None]


def with_thing(views: Tensor, *, u: int = 30, v: int = 60, depth_m: float = 0.0) -> FirstSight:
    """The square, and a thing of 8 × 12 px around a pixel: dark, its left half white."""
    looks, picture = Reaching(), scene(views[:, 1:])
    owner = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8)
    owner[:, v - 6 : v + 6, u - 4 : u + 4] = 1
    thing = torch.where(torch.arange(WIDTH) < u, 1.0, -1.0).expand(1, 3, HEIGHT, WIDTH)
    picture = torch.where(owner[:, None] > 0, thing, picture)
    sight = seen_first(looks, picture, views)
    at = torch.tensor([(u - 72) / 100, (v - 48) / 100, 0.0]) * (1 + depth_m) + torch.tensor([0.0, 0.0, depth_m])
    plate = torch.where(owner[:, None] > 0, GREY, sight.plate)
    there = torch.tensor([[True, False]])
    things_m = torch.stack([at, torch.zeros(3)])[None]
    return sight._replace(plate=plate, owner=owner, alpha=(owner > 0).float(), there=there, things_m=things_m)


def moved(sight: FirstSight, views: Tensor, way_m: tuple[float, float, float], turn: Tensor | None = None) -> Tensor:
    place, turned = sight.things_m.clone(), still(sight).clone()
    place[:, 0] += torch.tensor(way_m)
    if turn is not None:
        turned[:, 0] = turn
    return posed_picture(Reaching(), sight, place, turned, views).picture


def test_a_thing_at_rest_is_left_as_it_was() -> None:
    views = reaching(110, 30)
    sight = with_thing(views)
    assert torch.equal(moved(sight, views, (0.0, 0.0, 0.0))[..., 50:70, 20:40], sight.picture[..., 50:70, 20:40])


def test_a_thing_that_moved_is_cut_out_and_its_place_is_filled_in() -> None:
    views = reaching(110, 30)
    sight = with_thing(views)
    picture = moved(sight, views, (0.2, -0.1, 0.0))  # 20 px to the right, 10 up
    torch.testing.assert_close(picture[..., 45:55, 47:53], sight.picture[..., 55:65, 27:33], atol=0.02, rtol=0)
    assert (picture[..., 54:66, 26:34] - GREY).abs().max() < 0.01


def test_a_thing_that_comes_nearer_grows() -> None:
    views = reaching(110, 30)
    sight = with_thing(views, u=72, v=48)
    wide = [(moved(sight, views, (0.0, 0.0, z)) - GREY).abs().amax(1)[0, 48] > 0.3 for z in (0.0, -0.5, 1.0)]
    assert [int(row[50:95].sum()) for row in wide] == pytest.approx([8, 16, 4], abs=2)  # edges are soft


def test_a_thing_turns_with_its_picture() -> None:
    views = reaching(110, 30)
    sight = with_thing(views, u=72, v=48)
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # x towards y
    picture = moved(sight, views, (0.0, 0.0, 0.0), quarter)
    assert (picture[..., 45:47, 68:76] > 0.9).all()  # what was left is above
    assert (picture[..., 49:51, 68:76] < -0.9).all()
    tilted = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # about the picture's y axis: unseen
    torch.testing.assert_close(moved(sight, views, (0.0, 0.0, 0.0), tilted), sight.picture, atol=0.02, rtol=0)


@pytest.mark.parametrize("depth_m", [-0.2, 0.2])
def test_what_is_nearer_hides_what_is_farther(depth_m: float) -> None:
    before, now = reaching(110, 30), reaching(30, 60)
    sight = with_thing(before, depth_m=depth_m)
    middle = moved(sight, now, (0.0, 0.0, 0.0))[..., 56:64, 31:33]
    assert ((middle < -0.9) if depth_m < 0 else (middle > ROBOT - 0.05)).all()
    pushed = moved(sight, now, (0.03, 0.0, 0.0))[..., 56:64, 34:36]
    assert ((pushed < -0.9) if depth_m < 0 else (pushed > ROBOT - 0.05)).all()


def test_of_two_moved_things_the_nearer_is_seen() -> None:
    views = reaching(110, 30)
    for depths in ((0.0, 0.3), (0.3, 0.0)):
        sight = with_thing(views)
        owner, alpha, picture = sight.owner.clone(), sight.alpha.clone(), sight.picture.clone()
        owner[:, 10:22, 10:18], alpha[:, 10:22, 10:18], picture[..., 10:22, 10:18] = 2, 1.0, 0.0
        places = [torch.tensor([(u - 72) / 100, (v - 48) / 100, 0.0]) for u, v in ((30, 60), (14, 16))]
        sight = sight._replace(
            owner=owner, alpha=alpha, picture=picture, whole=picture, there=torch.ones(1, 2, dtype=torch.bool),
            things_m=torch.stack(places)[None],
        )  # fmt: skip
        together = torch.stack([torch.tensor([0.0, 0.0, z]) for z in depths])[None]  # in the picture's middle
        made = posed_picture(Reaching(), sight, together, still(sight), views).picture
        assert made[0, 0, 48, 73] == pytest.approx(-1.0 if depths[0] < depths[1] else 0.0, abs=0.02)


def test_the_robot_that_a_thing_hid_looks_as_usual() -> None:
    before, now = reaching(30, 60), reaching(100, 30)
    sight = with_thing(before, depth_m=-0.2)
    picture = moved(sight, now, (0.0, 0.0, 0.0))
    assert (picture[..., 24:36, 92:108] > ROBOT - 0.12).all()


def test_what_the_robot_hid_of_a_thing_is_seen_when_it_leaves() -> None:
    before, after = reaching(42, 60), reaching(110, 30)
    sight = with_thing(before, depth_m=-0.05)  # its centre is nearer than the robot, which hides its right half
    hidden = sight.mask > 0.5
    sight = sight._replace(whole=sight.picture, picture=torch.where(hidden, ROBOT, sight.picture))
    for way_m in (0.0, 0.02):
        at = slice(31 + round(100 * way_m), 33 + round(100 * way_m))
        assert (moved(sight, before, (way_m, 0.0, 0.0))[..., 56:64, at] > ROBOT - 0.05).all()
        assert (moved(sight, after, (way_m, 0.0, 0.0))[..., 56:64, at] < -0.9).all()


def test_sources_say_what_each_pixel_is() -> None:
    before, now = reaching(110, 30), reaching(60, 30)
    sight = with_thing(before)
    place = sight.things_m.clone()
    place[:, 0, 0] += 0.2
    source = posed_picture(Reaching(), sight, place, still(sight), now).source
    assert (source >= 0).all()
    assert (source.sum(1) <= 1 + 1e-5).all()
    seen, guessed, thing, filled = source[0]
    assert seen[30, 60] > 0.99
    assert guessed[30, 60] < 0.01
    assert thing[60, 50] > 0.99
    assert filled[30, 110] > 0.99
    assert source[0, :, 90, 5].sum() == 0  # background that was seen
    assert cell_means(source, (HEIGHT // 4, WIDTH // 4)).shape == (1, 4, HEIGHT // 4, WIDTH // 4)


@torch.no_grad()
def test_the_shipped_appearance_poses_the_oracles_robot() -> None:
    """No dynamics: the error on the robot's pixels falls to a quarter of the frozen frame's, and the mask finds it."""
    pytest.importorskip("pybullet")
    from vap_gym.sim.layouts import draw_scene
    from vap_gym.sim.rollout import VIEW, NominalRobot, record
    from vap_gym.sim.scene import Scene

    card, world = load_robot("panda_robotiq"), WorldModel.from_pretrained("tiny")
    looks = world.appearance
    body, nominal = Body(card), NominalRobot(card)
    errors, overlaps = [], []
    with Scene(card) as oracle:
        for seed in (1, 4, 6):
            episode = record(oracle, nominal, draw_scene(seed), "play", frames=16)
            columns = {k: torch.from_numpy(v) for k, v in episode.columns.items()}
            camera = Camera(
                K=columns["camera.K"], T_world_camera=columns["camera.T_world_camera"], frame_size_px=(WIDTH, HEIGHT)
            )
            views = body.views(columns["nominal.joint_position"], columns["nominal.gripper_position"][:, 0], camera)
            frames = torch.from_numpy(episode.frames[VIEW]).float().permute(0, 3, 1, 2) / 127.5 - 1
            labels = torch.from_numpy(np.asarray(episode.labels[VIEW]))
            robot = (labels == LABELS.index("arm")) | (labels == LABELS.index("gripper"))
            mask = first_sight(looks, world.things, frames, views).mask[:, 0] > 0.5
            overlaps.append((mask & robot).sum() / (mask | robot).sum())
            first = first_sight(looks, world.things, frames[:1], views[:1])
            sight = FirstSight(*(x.expand(len(frames), *x.shape[1:]) for x in first))
            posed = posed_picture(looks, sight, sight.things_m, still(sight), views).picture
            late = robot.clone()
            late[:8] = False
            errors.append(torch.stack([(x - frames).square().mean(1)[late].mean() for x in (posed, frames[:1])]))
    posed_error, frozen = torch.stack(errors).mean(0)
    assert posed_error < frozen / 4
    assert torch.stack(overlaps).mean() > 0.85


# --- what it looks like ---


def test_colours_are_means_of_the_robots_pixels_alone() -> None:
    views = torch.cat([view(40.0 + i, 40.0) for i in range(24)])
    pictures = scene(views)
    frames = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    labels = (pictures[:, 0] > 0).to(torch.uint8) * LABELS.index("arm")
    labels[:, 40:] = LABELS.index("goal")  # something else hides the lower half
    frames[:, 40:] = 0
    model = Square()
    model.colour.zero_()
    fill_colours(model, Sights(frames=frames, labels=labels, views=views), torch.arange(24))
    torch.testing.assert_close(model.colour, torch.full_like(model.colour, ROBOT * 0.5 + 0.5), atol=0.01, rtol=0)


def test_an_appearance_is_made_of_the_cards_body() -> None:
    body = Body(load_robot("panda_robotiq"))
    model = of_bodies({"panda_robotiq": body}, widths=(4, 8))
    assert torch.equal(model.points_m, body.points_m)
    assert torch.equal(model.surfels.link, body.link)
    assert model.knows(torch.zeros(1, len(body.links), 3, 4))
    assert not model.knows(torch.zeros(1, 2, 3, 4))


def test_the_background_is_the_picture_where_nothing_stands_before_it() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, HEIGHT), torch.linspace(-1, 1, WIDTH), indexing="ij")
    picture = torch.stack([x, y, 0.5 * (x + y)])[None]
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    plate, filled = background(picture, mask)
    assert torch.equal(plate, picture)
    assert not filled.any()
    mask[..., 30:50, 60:80] = 1.0
    plate, filled = background(torch.where(mask > 0, 1.0, picture), mask)
    assert (filled - mask).sum() == 22**2 - 20**2  # and a pixel around it
    assert torch.equal(plate * (1 - filled), picture * (1 - filled))
    assert (plate - picture).abs().max() < 0.2  # a smooth scene is guessed well


def test_surface_and_colours_travel_with_the_weights(tmp_path: Path) -> None:
    model = of_bodies({"panda_robotiq": Body(load_robot("panda_robotiq"))}, widths=(4, 8))
    model.colour.uniform_()
    model.save_pretrained(tmp_path)
    again = RobotAppearance.from_pretrained(tmp_path)
    for name in ("points_m", "normals", "spacing_m", "link", "colour"):
        assert torch.equal(getattr(again, name), getattr(model, name)), name
