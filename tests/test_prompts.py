"""The stick figure stands where the robot is: key-points by forward kinematics, from the card alone."""

import math

import pytest
import torch

from vap_gym.cards import load_robot
from vap_gym.errors import VapError
from vap_gym.kinematics.control import Controller
from vap_gym.prompts.skeleton import Skeleton

ROBOTS = ("panda_robotiq", "panda_hand")


def _state(name: str, closedness: float, batch: int = 3):
    robot = load_robot(name)
    controller = Controller(robot, dtype=torch.float64)
    q = torch.tensor(robot.home_q_rad, dtype=torch.float64) + 0.1 * torch.arange(batch)[:, None]
    return (
        Skeleton(robot, dtype=torch.float64),
        controller,
        controller.start(q, torch.full((batch,), closedness).double()),
    )


@pytest.mark.parametrize("name", ROBOTS)
def test_keypoints_from_a_state_equal_those_placed_on_the_controllers_links(name: str) -> None:
    skeleton, controller, state = _state(name, 0.3)
    poses = controller.links(state)
    picked = torch.stack([poses[:, controller.chain.link_index(link)] for link in skeleton.links], dim=1)
    torch.testing.assert_close(skeleton.place(picked, state.gripper), skeleton.keypoints(state), atol=1e-12, rtol=0)


def test_keypoints_from_joints_equal_those_of_a_state() -> None:
    skeleton, _, state = _state("panda_robotiq", 0.3)
    torch.testing.assert_close(skeleton.at_joints(state.q, state.gripper), skeleton.keypoints(state), atol=0, rtol=0)


def test_the_arm_is_drawn_from_shoulder_to_flange() -> None:
    skeleton, controller, state = _state("panda_robotiq", 0.3)
    points, poses = skeleton.keypoints(state), controller.links(state)
    for name, link in (("shoulder", "panda_link2"), ("elbow", "panda_link4"), ("flange", "panda_link8")):
        pose = poses[:, controller.chain.link_index(link)]
        card = next(k for k in skeleton.robot.skeleton.keypoints if k.name == name)
        assert math.hypot(*card.offset_m) < 0.06  # within the link
        offset = torch.tensor(card.offset_m).to(pose)
        expected = (pose[:, :3, :3] @ offset[:, None])[..., 0] + pose[:, :3, 3]
        torch.testing.assert_close(points[:, skeleton.keypoint_names.index(name)], expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize(("closedness", "gap_m"), [(0.0, 0.093), (1.0, 0.008), (-3.0, 0.093), (7.0, 0.008)])
def test_finger_ends_are_as_far_apart_as_the_real_gripper_opens(closedness: float, gap_m: float) -> None:
    skeleton, _, _ = _state("panda_robotiq", 0.5)
    poses = torch.eye(4).double().expand(len(skeleton.links), 4, 4)
    points = skeleton.place(poses, torch.tensor(closedness).double())
    left, right = (points[skeleton.keypoint_names.index(f"{side}_end")] for side in ("left", "right"))
    assert float((left - right).norm()) == pytest.approx(gap_m, abs=1e-9)
    assert float(left[1]) < 0 < float(right[1])  # the left finger opens along −y of the flange


@pytest.mark.parametrize("name", ROBOTS)
def test_left_and_right_fingers_have_colours_of_their_own(name: str) -> None:
    card = load_robot(name).skeleton
    side = {s: {bone.colour_rgb for bone in card.bones if bone.end.startswith(s)} for s in ("left", "right")}
    assert side["left"]
    assert side["right"]
    assert not side["left"] & side["right"]


def test_keypoints_carry_gradients_to_joints_and_gripper() -> None:
    skeleton, controller, state = _state("panda_robotiq", 0.4, batch=1)
    q, gripper = state.q.clone().requires_grad_(), state.gripper.clone().requires_grad_()

    def points(q, gripper):
        return skeleton.keypoints(controller.start(q, gripper))

    assert torch.autograd.gradcheck(points, (q, gripper))


def test_poses_of_another_shape_are_refused_by_name() -> None:
    skeleton, _, state = _state("panda_robotiq", 0.4)
    with pytest.raises(VapError, match=r"shape \(\*batch, 7, 4, 4\), one per link .*, got \(3, 9, 4, 4\)"):
        skeleton.place(torch.eye(4).double().expand(3, 9, 4, 4), state.gripper)
