"""What bones tell: exact flow for rigid motion in the picture, a background without the robot, the robot posed anew."""

import math

import pytest
import torch
from torch import Tensor

from vap_gym.cards import load_robot
from vap_gym.geometry import Camera
from vap_gym.prompts.raster import bone_figures
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.world.articulated import background_plate, posed_picture, robot_cover, robot_flow

SIZE, STRIDE = (24, 36), 4.0


def bone(start: tuple[float, float], end: tuple[float, float], *, radius: float = 6.0, depth: float = 1.0) -> Tensor:
    return torch.tensor([*start, *end, radius, radius, depth, 1.0])


ARM = torch.stack([bone((40.0, 20.0), (40.0, 60.0)), bone((40.0, 60.0), (80.0, 64.0), radius=4.0, depth=0.8)])[None]


def turned(bones: Tensor, angle: float, scale: float, shift: tuple[float, float]) -> Tensor:
    """Bones turned about the origin, scaled and shifted in the picture."""
    rotation = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = bones[..., :4].unflatten(-1, (2, 2)) @ rotation.mT + torch.tensor(shift)
    return torch.cat([points.flatten(-2), scale * bones[..., 4:6], bones[..., 6:]], dim=-1)


def cells() -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    return torch.stack([x, y])[None]


def test_a_robot_that_rests_has_no_flow() -> None:
    flow, share = robot_flow(ARM, ARM, SIZE, STRIDE)
    assert (flow.shape, share.shape) == ((1, 2, *SIZE), (1, 1, *SIZE))
    torch.testing.assert_close(flow, torch.zeros_like(flow), atol=1e-4, rtol=0)
    assert share[0, 0, 10, 10] == 1  # on the first bone
    assert share[0, 0, 0, 30] == 0  # far from both
    assert not share[..., 22:, :].any()


@pytest.mark.parametrize(
    ("angle", "scale", "shift"), [(0.0, 1.0, (8.0, -4.0)), (0.3, 1.0, (10.0, 0.0)), (-0.2, 1.3, (-6.0, 3.0))]
)
def test_rigid_motion_in_the_picture_is_undone_exactly(angle: float, scale: float, shift: tuple[float, float]) -> None:
    now = turned(ARM, angle, scale, shift)
    flow, share = robot_flow(now, ARM, SIZE, STRIDE)
    at = cells() * STRIDE
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * scale
    offset = (at - torch.tensor(shift)[None, :, None, None]).permute(0, 2, 3, 1)
    expected = (torch.linalg.inv(rotation) @ offset[..., None])[..., 0].permute(0, 3, 1, 2)
    covered = (share > 0).expand_as(flow)
    assert covered.float().mean() > 0.05
    torch.testing.assert_close((cells() + flow)[covered] * STRIDE, expected[covered], atol=1e-3, rtol=0)


def test_the_nearer_bone_is_followed_where_two_cover_a_cell() -> None:
    far, near = bone((20.0, 48.0), (120.0, 48.0), depth=2.0), bone((70.0, 10.0), (70.0, 90.0), depth=1.0)
    now = torch.stack([far, near])[None]
    before = now.clone()
    before[:, 0, [0, 2]] += 4.0
    before[:, 1, [1, 3]] += 4.0
    flow, _ = robot_flow(now, before, SIZE, STRIDE)
    torch.testing.assert_close(flow[0, :, 12, 17], torch.tensor([0.0, 1.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(flow[0, :, 12, 8], torch.tensor([1.0, 0.0]), atol=1e-4, rtol=0)


def test_what_was_out_of_view_has_no_flow() -> None:
    before = turned(ARM, 0.0, 1.0, (-200.0, 0.0))
    behind = ARM.clone()
    behind[..., 7] = 0.0
    nothing = torch.zeros_like(ARM)
    for now, then in ((ARM, before), (ARM, behind), (behind, ARM), (nothing, nothing), (ARM[:, :0], ARM[:, :0])):
        flow, share = robot_flow(now, then, SIZE, STRIDE)
        assert flow.shape == (1, 2, *SIZE)
        assert not flow.any()
        assert not share.any()


def test_the_robot_is_painted_out_by_what_is_around_it() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 144), indexing="ij")
    scene = torch.stack([x, y, 0.5 * (x + y)])[None]
    robot = bone((40.0, 20.0), (100.0, 70.0), radius=7.0)[None, None]
    first = torch.where(robot_cover(robot, (96, 144), 1.0, 0.0) > 0, torch.tensor(0.0), scene)
    plate = background_plate(first, robot)
    assert (plate - scene).abs().max() < 0.12  # a smooth scene is guessed well
    far = robot_cover(robot, (96, 144), 1.0, 3.0) == 0
    assert torch.equal(plate[:, :, far[0, 0]], first[:, :, far[0, 0]])  # and what is not covered stays as it is
    nobody = robot.clone()
    nobody[..., 7] = 0.0
    torch.testing.assert_close(background_plate(first, nobody), first)
    torch.testing.assert_close(background_plate(first, robot[:, :0]), first)
    hidden = bone((0.0, 48.0), (144.0, 48.0), radius=200.0)[None, None]
    assert background_plate(first, hidden).isfinite().all()  # the robot fills the picture


def test_a_posed_picture_shows_the_robot_in_its_new_place_only() -> None:
    first = torch.full((1, 3, 96, 144), 0.2)
    before = bone((20.0, 40.0), (60.0, 40.0), radius=8.0)[None, None]
    first[..., 32:48, 14:66] = 0.9
    now = before + torch.tensor([60.0, 30.0, 60.0, 30.0, 0, 0, 0, 0])
    posed = posed_picture(background_plate(first, before), first, now, before)
    assert (posed[..., 64:76, 82:118] > 0.85).all()
    assert (posed[..., 34:46, 22:58] < 0.25).all()
    again = posed_picture(background_plate(first, before), first, before, before)
    torch.testing.assert_close(again, first, atol=1e-3, rtol=0)


def test_slots_do_not_mix() -> None:
    now = torch.cat([turned(ARM, 0.1, 1.0, (5.0, 5.0)), turned(ARM, -0.1, 1.1, (0.0, 0.0))])
    both, alone = robot_flow(now, ARM.expand(2, -1, -1), SIZE, STRIDE), robot_flow(now[1:], ARM, SIZE, STRIDE)
    torch.testing.assert_close(both[0][1:], alone[0])
    torch.testing.assert_close(both[1][1:], alone[1])


def test_the_first_frame_moved_along_shows_the_oracles_robot_where_it_is() -> None:
    """Kinematics alone, no network: the error on robot pixels falls to less than a third of the frozen frame's."""
    pytest.importorskip("pybullet")
    from vap_gym.sim.rollout import VIEW, NominalRobot, record
    from vap_gym.sim.scene import Scene
    from vap_gym.sim.spec import draw_scene

    card = load_robot("panda_robotiq")
    skeleton, nominal = Skeleton(card), NominalRobot(card)
    errors = []
    with Scene(card) as scene:
        for seed in (1, 4, 6):
            episode = record(scene, nominal, draw_scene(seed), "play", frames=16)
            columns = {k: torch.from_numpy(v) for k, v in episode.columns.items()}
            camera = Camera(
                K=columns["camera.K"], T_world_camera=columns["camera.T_world_camera"], frame_size_px=(144, 96)
            )
            points = skeleton.at_joints(columns["nominal.joint_position"], columns["nominal.gripper_position"][:, 0])
            bones = bone_figures(points, camera, skeleton)
            assert bones.shape == (16, len(card.skeleton.bones), 8)
            frames = torch.from_numpy(episode.frames[VIEW]).float().permute(0, 3, 1, 2) / 255
            first = frames[:1].expand_as(frames)
            _, share = robot_flow(bones, bones[:1].expand_as(bones), (96, 144), 1.0)
            plate = background_plate(first, bones[:1].expand_as(bones))
            posed = posed_picture(plate, first, bones, bones[:1].expand_as(bones))
            labels = torch.from_numpy(episode.labels[VIEW])
            robot = ((labels == 1) | (labels == 2)) & (share[:, 0] > 0.5)
            robot[:8] = False
            moved, frozen = ((x - frames).square().mean(1)[robot] for x in (posed, first))
            errors.append(torch.stack([moved.mean(), frozen.mean()]))
    moved, frozen = torch.stack(errors).mean(0)
    assert moved < frozen / 3
