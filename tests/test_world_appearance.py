"""What the robot looks like: its atlas and its mask, and pictures of it in another pose."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vap_gym.cards import load_robot
from vap_gym.geometry import Camera
from vap_gym.prompts.raster import bone_figures
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.sim.scene import LABELS
from vap_gym.train.appearance import Sights, fill_atlas
from vap_gym.world.appearance import FirstSight, RobotAppearance, background, carried_along, first_sight, posed_picture
from vap_gym.world.articulated import bone_places, robot_cover, robot_flow
from vap_gym.world.model import WorldModel

HEIGHT, WIDTH = 96, 144
GREY, ROBOT = -0.6, 0.8


def bone(start: tuple[float, float], end: tuple[float, float], *, radius: float = 8.0) -> Tensor:
    """One bone of one picture."""
    return torch.tensor([*start, *end, radius, radius, 1.0, 1.0])[None, None]


def scene(bones: Tensor, *, robot: float = ROBOT) -> tuple[Tensor, Tensor]:
    """A grey picture with the robot's capsules in it, and their mask."""
    mask = (robot_cover(bones, (HEIGHT, WIDTH), 1.0, 0.0) > 0.5).float()
    return torch.lerp(torch.full((len(bones), 3, HEIGHT, WIDTH), GREY), torch.full_like(mask, robot), mask), mask


@pytest.fixture(scope="module")
def painted() -> RobotAppearance:
    """A robot of one bone whose atlas was counted on pictures of it."""
    bones = torch.cat([bone((20.0 + i, 30.0), (70.0 + i, 40.0 + i)) for i in range(12)])
    pictures, mask = scene(bones)
    frames = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    labels = (mask[:, 0] * LABELS.index("arm")).to(torch.uint8)
    model = RobotAppearance(bones=1, widths=(4, 8))
    fill_atlas(model, Sights(frames=frames, labels=labels, bones=bones), torch.arange(12).repeat(30))
    return model.eval().requires_grad_(False)


def test_the_atlas_is_of_the_robots_pixels_alone(painted: RobotAppearance) -> None:
    full = painted.presence > 0.99
    assert full.sum() > 50
    torch.testing.assert_close(painted.colour[full], torch.full((int(full.sum()), 3), ROBOT), atol=0.02, rtol=0)
    assert (painted.presence == 0).any()  # nothing is seen there, or too little was counted


def test_cells_of_the_atlas_are_as_many_as_there_are_places() -> None:
    model = RobotAppearance(bones=2, along=5, across=4, ends=2, widths=(4, 8))
    bones = torch.cat([bone((30.0, 20.0), (110.0, 20.0)), bone((30.0, 70.0), (110.0, 70.0))], 1)
    places = bone_places(bones, (HEIGHT, WIDTH), 1.0)
    cells = model.atlas_cells(places)[places.cover > 0.5]
    assert cells.min() >= 0
    assert cells.max() < 2 * (5 + 2 * 2) * 4
    assert len(cells.unique()) > 0.7 * 2 * 9 * 4
    everywhere = model.atlas_cells(places).reshape(HEIGHT, WIDTH)
    assert everywhere[20, 32] != everywhere[20, 108]  # along
    assert everywhere[16, 70] != everywhere[24, 70]  # across
    assert everywhere[20, 70] != everywhere[70, 70]  # another bone
    assert everywhere[20, 24] != everywhere[20, 32]  # beyond the end


class TrueMask(RobotAppearance):
    """An appearance that knows which pixels are the robot's."""

    def told(self, mask: Tensor) -> "TrueMask":
        self.truth = mask
        return self

    def mask(self, picture: Tensor, bones: Tensor) -> Tensor:
        return self.truth


STILL = torch.zeros(1, 2, HEIGHT // 4, WIDTH // 4)


def test_a_posed_picture_shows_the_robot_in_its_new_place_only() -> None:
    before = bone((20.0, 40.0), (60.0, 40.0))
    first, mask = scene(before)
    now = before + torch.tensor([60.0, 30.0, 60.0, 30.0, 0, 0, 0, 0])
    looks = TrueMask(bones=9, widths=(4, 8)).told(mask)  # its atlas is of another robot
    sight = first_sight(looks, first, before)
    posed = posed_picture(looks, sight, STILL, now)
    assert (posed[..., 64:76, 82:118] > ROBOT - 0.05).all()
    assert (posed[..., 34:46, 22:58] < GREY + 0.05).all()
    torch.testing.assert_close(posed_picture(looks, sight, STILL, before), first, atol=0.02, rtol=0)


def test_what_is_carried_along_stays_behind_the_robot() -> None:
    before = bone((20.0, 40.0), (60.0, 40.0))
    first, mask = scene(before)
    first[..., 70:88, 100:112] = 0.1  # an object
    looks = TrueMask(bones=9, widths=(4, 8)).told(mask)
    way = STILL.clone()
    way[:, 0, 8:13, 3:13], way[:, 1, 8:13, 3:13] = 14.0, 8.0  # all around the bone: from 56 px right and 32 px below
    posed = posed_picture(looks, first_sight(looks, first, before), way, before)
    assert (posed[..., 36:44, 22:58] > ROBOT - 0.05).all()
    assert (posed[..., 49:51, 46:51] - 0.1).abs().max() < 0.05


def test_what_the_first_picture_does_not_show_comes_from_the_atlas_in_its_light(painted: RobotAppearance) -> None:
    now = bone((30.0, 30.0), (100.0, 60.0))
    half = bone((-60.0, 30.0), (20.0, 30.0))
    for dark in (False, True):
        first, mask = scene(half, robot=0.0 if dark else ROBOT)
        known, unknown = TrueMask(bones=1, widths=(4, 8)).told(mask), TrueMask(bones=9, widths=(4, 8)).told(mask)
        known.load_state_dict(painted.state_dict())
        shown, lacking = (posed_picture(x, first_sight(x, first, half), STILL, now) for x in (known, unknown))
        where = shown[0, 0, 35, 38]  # near the bone's start, whose first picture was left of the frame
        assert where == pytest.approx(0.0 if dark else ROBOT, abs=0.15)
        assert lacking[0, 0, 35, 38] == pytest.approx(GREY, abs=0.02)


@torch.no_grad()
def test_without_bones_there_is_no_robot(painted: RobotAppearance) -> None:
    first, _ = scene(bone((20.0, 40.0), (60.0, 40.0)))
    none = torch.zeros(1, 0, 8)
    sight = first_sight(painted, first, none)
    assert not sight.mask.any()
    assert torch.equal(sight.plate, first)
    torch.testing.assert_close(posed_picture(painted, sight, STILL, none), first, atol=1e-5, rtol=0)
    torch.testing.assert_close(background(first, sight.mask), first)


@torch.no_grad()
def test_the_mask_reaches_no_further_than_the_bones(painted: RobotAppearance) -> None:
    first, robot = scene(bone((20.0, 40.0), (60.0, 40.0)))
    mask = painted.mask(first, bone((20.0, 40.0), (60.0, 40.0)))
    assert mask.shape == robot.shape
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert not mask[..., 60:, :].any()


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
    """No dynamics: the error on pixels of the robot falls to a third of the frozen frame's, and the mask finds it."""
    pytest.importorskip("pybullet")
    from vap_gym.sim.rollout import VIEW, NominalRobot, record
    from vap_gym.sim.scene import Scene
    from vap_gym.sim.spec import draw_scene

    card, looks = load_robot("panda_robotiq"), WorldModel.from_pretrained("tiny").appearance
    skeleton, nominal = Skeleton(card), NominalRobot(card)
    errors, overlaps = [], []
    with Scene(card) as oracle:
        for seed in (1, 4, 6):
            episode = record(oracle, nominal, draw_scene(seed), "play", frames=16)
            columns = {k: torch.from_numpy(v) for k, v in episode.columns.items()}
            camera = Camera(
                K=columns["camera.K"], T_world_camera=columns["camera.T_world_camera"], frame_size_px=(WIDTH, HEIGHT)
            )
            points = skeleton.at_joints(columns["nominal.joint_position"], columns["nominal.gripper_position"][:, 0])
            bones = bone_figures(points, camera, skeleton)
            assert bones.shape == (16, len(card.skeleton.bones), 8)
            frames = torch.from_numpy(episode.frames[VIEW]).float().permute(0, 3, 1, 2) / 127.5 - 1
            labels = torch.from_numpy(np.asarray(episode.labels[VIEW]))
            near = robot_cover(bones, (HEIGHT, WIDTH), 1.0, 4.0)[:, 0] > 0.5
            robot = ((labels == LABELS.index("arm")) | (labels == LABELS.index("gripper"))) & near
            masks = looks.mask(frames, bones)[:, 0] > 0.5
            overlaps.append((masks & robot).sum() / (masks | robot).sum())
            first = frames[:1].expand_as(frames)
            sight = FirstSight(*(x.expand(len(frames), *x.shape[1:]) for x in first_sight(looks, first[:1], bones[:1])))
            posed = posed_picture(looks, sight, STILL.expand(len(frames), -1, -1, -1), bones)
            _, share = robot_flow(bones, bones[:1].expand_as(bones), (HEIGHT, WIDTH), 1.0)
            late = robot & (share[:, 0] > 0.5)  # what the first picture shows, where it has moved for a while
            late[:8] = False
            errors.append(torch.stack([(x - frames).square().mean(1)[late].mean() for x in (posed, first)]))
    posed_error, frozen = torch.stack(errors).mean(0)
    assert posed_error < frozen / 3
    assert torch.stack(overlaps).mean() > 0.8


def test_the_atlas_travels_with_the_weights(painted: RobotAppearance, tmp_path: Path) -> None:
    painted.save_pretrained(tmp_path)
    again = RobotAppearance.from_pretrained(tmp_path)
    assert torch.equal(again.colour, painted.colour)
    assert torch.equal(again.presence, painted.presence)
