"""What the robot looks like: the colours of its surface and its mask, and pictures of it in another pose."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vap_gym.cards import load_robot
from vap_gym.geometry import Camera
from vap_gym.prompts.body import Body
from vap_gym.sim.scene import LABELS
from vap_gym.train.appearance import Sights, fill_colours, of_body
from vap_gym.world.appearance import FirstSight, RobotAppearance, background, carried_along, first_sight, posed_picture
from vap_gym.world.model import WorldModel
from vap_gym.world.surfels import Seen, seen_points

HEIGHT, WIDTH = 96, 144
GREY, ROBOT = -0.6, 0.8
K = torch.tensor([[100.0, 0.0, 72.0], [0.0, 100.0, 48.0], [0.0, 0.0, 1.0]])
STILL = torch.zeros(1, 2, HEIGHT // 4, WIDTH // 4)


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
    model = of_body(body, widths=(4, 8))
    assert torch.equal(model.points_m, body.points_m)
    assert torch.equal(model.surfels.link, body.link)
    assert model.knows(torch.zeros(1, len(body.links), 3, 4))
    assert not model.knows(torch.zeros(1, 2, 3, 4))


def test_a_posed_picture_shows_the_robot_in_its_new_place_only() -> None:
    before, now = view(40, 40), view(100, 60)
    first, looks = scene(before), Square()
    sight = first_sight(looks, first, before)
    posed = posed_picture(looks, sight, STILL, now)
    torch.testing.assert_close(posed, scene(now), atol=0.03, rtol=0)
    torch.testing.assert_close(posed_picture(looks, sight, STILL, before), first, atol=0.03, rtol=0)


def test_what_is_seen_of_the_robot_goes_with_it() -> None:
    before, now = view(40, 40), view(60, 52)
    first, looks = scene(before), Square()
    first[..., 34:38, 36:40] = -0.9  # a mark on it
    posed = posed_picture(looks, first_sight(looks, first, before), STILL, now)
    assert (posed[..., 46:50, 56:60] < -0.8).all()
    assert (posed[..., 52:60, 62:68] > ROBOT - 0.05).all()


def test_what_the_first_picture_does_not_show_has_its_usual_colour_in_the_pictures_light() -> None:
    before, now = view(0, 40), view(60, 40)  # the left half was out of the picture
    for dark in (False, True):
        bright = 0.0 if dark else ROBOT
        looks = Square()
        posed = posed_picture(looks, first_sight(looks, scene(before, robot=bright), before), STILL, now)
        assert posed[0, :, 40, 52] == pytest.approx(torch.full((3,), bright), abs=0.12)
        assert posed[0, :, 40, 68] == pytest.approx(torch.full((3,), bright), abs=0.03)


def test_what_is_carried_along_stays_behind_the_robot() -> None:
    before, looks = view(40, 40), Square()
    first = scene(before)
    first[..., 70:88, 100:112] = 0.1  # an object
    way = STILL.clone()
    way[:, 0, 8:14, 3:15], way[:, 1, 8:14, 3:15] = 14.0, 8.0  # around the square: from 56 px right and 32 px below
    posed = posed_picture(looks, first_sight(looks, first, before), way, before)
    assert (posed[..., 40:50, 44:50] > ROBOT - 0.05).all()
    assert (posed[..., 53:56, 46:54] - 0.1).abs().max() < 0.05


def test_a_robot_that_is_not_known_stays_where_it_was() -> None:
    before, looks = view(40, 40), Square(links=9)
    first = scene(before)
    for views in (before, torch.zeros(1, 0, 3, 4)):
        sight = first_sight(looks, first, views)
        assert not sight.mask.any()
        assert torch.equal(sight.plate, first)
        torch.testing.assert_close(posed_picture(looks, sight, STILL, views), first, atol=1e-5, rtol=0)
    torch.testing.assert_close(background(first, sight.mask), first)


def test_pictures_do_not_mix() -> None:
    looks, before, now = Square(), torch.cat([view(40, 40), view(90, 30)]), torch.cat([view(60, 50), view(80, 60)])
    first = scene(before)
    first[1] *= 0.5
    both = posed_picture(looks, first_sight(looks, first, before), STILL.expand(2, -1, -1, -1), now)
    for i in range(2):
        one = slice(i, i + 1)
        alone = posed_picture(looks, first_sight(looks, first[one], before[one]), STILL, now[one])
        torch.testing.assert_close(both[one], alone, atol=1e-5, rtol=0)


def test_a_displacement_carries_whole_cells_and_leaves_the_others() -> None:
    plate = torch.rand(1, 3, 32, 48)
    displacement = torch.zeros(1, 2, 8, 12)
    displacement[:, 0, 4, 6], displacement[:, 1, 4, 6] = -3.0, 1.5  # fetched 12 px from the left, 6 px from below
    moved = carried_along(plate, displacement)
    torch.testing.assert_close(moved[..., 16:20, 24:28], plate[..., 22:26, 12:16], atol=1e-5, rtol=0)
    moved[..., 16:20, 24:28] = plate[..., 16:20, 24:28]
    torch.testing.assert_close(moved, plate, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_shipped_appearance_poses_the_oracles_robot() -> None:
    """No dynamics: the error on the robot's pixels falls to a quarter of the frozen frame's, and the mask finds it."""
    pytest.importorskip("pybullet")
    from vap_gym.sim.rollout import VIEW, NominalRobot, record
    from vap_gym.sim.scene import Scene
    from vap_gym.sim.spec import draw_scene

    card, looks = load_robot("panda_robotiq"), WorldModel.from_pretrained("tiny").appearance
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
            mask = first_sight(looks, frames, views).mask[:, 0] > 0.5
            overlaps.append((mask & robot).sum() / (mask | robot).sum())
            first = first_sight(looks, frames[:1], views[:1])
            sight = FirstSight(*(x.expand(len(frames), *x.shape[1:]) for x in first))
            posed = posed_picture(looks, sight, STILL.expand(len(frames), -1, -1, -1), views)
            late = robot.clone()
            late[:8] = False
            errors.append(torch.stack([(x - frames).square().mean(1)[late].mean() for x in (posed, frames[:1])]))
    posed_error, frozen = torch.stack(errors).mean(0)
    assert posed_error < frozen / 4
    assert torch.stack(overlaps).mean() > 0.85


def test_surface_and_colours_travel_with_the_weights(tmp_path: Path) -> None:
    model = of_body(Body(load_robot("panda_robotiq")), widths=(4, 8))
    model.colour.uniform_()
    model.save_pretrained(tmp_path)
    again = RobotAppearance.from_pretrained(tmp_path)
    for name in ("points_m", "normals", "spacing_m", "link", "colour"):
        assert torch.equal(getattr(again, name), getattr(model, name)), name
