"""The hand as a robot: OpenPose's joints, a left that mirrors the right, a grasp, and an adult's proportions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vap_gym.cards import load_robot
from vap_gym.geometry import rotvec_from_rotation
from vap_gym.kinematics import Controller, gripper_joint_values, load_chain
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.recover.hands.joints import EDGES, FINGERS, NAMES, to_openpose
from vap_gym.recover.hands.skeleton21 import finger_colours

HANDS = ("hand_21_left", "hand_21")  # as `SIDES`: left, right
SKELETONS = {name: Skeleton(load_robot(name), dtype=torch.float64) for name in HANDS}
HOME = torch.zeros(6, dtype=torch.float64)
MIRROR = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
MIRROR_Q = torch.tensor([1.0, -1, 1, -1, 1, -1], dtype=torch.float64)  # y, yaw and roll change sign


def joints(name: str, closedness: float, q: Tensor = HOME) -> Tensor:
    """(21, 3) key-points in metres."""
    return SKELETONS[name].at_joints(q, torch.tensor(closedness, dtype=torch.float64))


def bone_lengths(points: np.ndarray) -> np.ndarray:
    """(*batch, 21, 3) → (*batch, 20)."""
    parent, child = np.array(EDGES).T
    return np.asarray(np.linalg.norm(points[..., child, :] - points[..., parent, :], axis=-1))


@pytest.mark.parametrize("side", [0, 1])
def test_points_edges_and_colours_are_those_of_hands_found_in_videos(side: int) -> None:
    skeleton = SKELETONS[HANDS[side]]
    assert skeleton.keypoint_names == NAMES
    assert skeleton.bones == tuple((NAMES[a], NAMES[b]) for a, b in EDGES)
    colours = [bone.colour_rgb for bone in skeleton.robot.skeleton.bones]
    assert colours == [tuple(map(int, finger_colours()[side, i // 4])) for i in range(20)]


@settings(max_examples=25, deadline=None)
@given(
    q=st.lists(st.floats(-1, 1), min_size=6, max_size=6),
    closedness=st.floats(0, 1),
)
def test_left_is_the_mirror_image_of_right(q: list[float], closedness: float) -> None:
    pose = torch.tensor(q, dtype=torch.float64)
    right, left = joints("hand_21", closedness, pose), joints("hand_21_left", closedness, MIRROR_Q * pose)
    torch.testing.assert_close(left, right * MIRROR, atol=1e-6, rtol=0)


def test_thumb_of_the_right_hand_is_on_the_left_and_all_fingers_bend_to_the_palm() -> None:
    opened, closed = joints("hand_21", 0.0), joints("hand_21", 1.0)
    at = {name: i for i, name in enumerate(NAMES)}
    y = [float(opened[at[f"{finger}_1"], 1]) for finger in FINGERS]
    assert y[1:] == sorted(y[1:], reverse=True)  # index to little, palm down, fingers ahead
    assert float(opened[at["thumb_4"], 1]) > y[1]
    assert bool((opened[1:, 0] > 0).all())
    for finger in FINGERS:
        tip = at[f"{finger}_4"]
        assert float(closed[tip, 2]) < float(opened[tip, 2]) - 0.02, finger
    torch.testing.assert_close(opened[0], closed[0])


def test_closing_is_steady_and_ends_in_a_pinch() -> None:
    at = {name: i for i, name in enumerate(NAMES)}
    gaps = []
    for closedness in np.linspace(0, 1, 11):
        points = joints("hand_21", float(closedness))
        gaps.append(float((points[at["thumb_4"]] - (points[at["index_4"]] + points[at["middle_4"]]) / 2).norm()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] - gaps[-1] == pytest.approx(load_robot("hand_21").gripper.max_opening_m, abs=0.005)
    assert gaps[-1] < 0.02  # two finger-tips thick
    robot = load_robot("hand_21")
    q = torch.cat([HOME, gripper_joint_values(robot.gripper, torch.tensor(1.0, dtype=torch.float64))])
    T_tool = load_chain(robot).fk(q, robot.gripper.tool_link)
    local = (points - T_tool[:3, 3]) @ T_tool[:3, :3]
    assert float(local[at["thumb_4"], 1]) < 0 < float(local[at["index_4"], 1])  # the grasp opens along the tool's y
    assert float(local[at["wrist"], 2]) < -0.05  # and its z goes out, away from the wrist


@pytest.mark.parametrize("name", HANDS)
def test_closedness_runs_within_the_joints_limits(name: str) -> None:
    robot = load_robot(name)
    chain = load_chain(robot)
    for i, joint in enumerate(robot.gripper.joints, start=6):
        assert float(chain.lower[i]) <= joint.open_position < joint.closed_position <= float(chain.upper[i])


def test_seven_numbers_drive_the_hand() -> None:
    """A delta is realised at once and in full, in the base frame; the last entry closes."""
    controller = Controller(load_robot("hand_21"), "cartesian_delta", dtype=torch.float64)
    assert controller.action_size == 7
    home = torch.tensor(controller.robot.home_q_rad, dtype=torch.float64)
    state = controller.start(home, home.new_tensor(0.0))
    command = torch.tensor([0.02, -0.03, 0.01, 0.1, -0.05, 0.2, 1.0], dtype=torch.float64)
    after, clipped = controller.step(state, command)
    assert not bool(clipped.any)
    before, now = controller.tip_pose(state), controller.tip_pose(after)
    torch.testing.assert_close(now[:3, 3] - before[:3, 3], command[:3], atol=1e-3, rtol=0)
    turned = rotvec_from_rotation(now[:3, :3] @ before[:3, :3].mT)
    torch.testing.assert_close(turned, command[3:6], atol=5e-3, rtol=0)
    assert float(after.gripper) == pytest.approx(controller.robot.controller.gripper_step)


def test_proportions_are_those_of_real_hands(shared_data: Path) -> None:
    """Bone by bone, as shares of all, against the hands of InterHand2.6M's examples, which differ too."""
    recorded = json.loads((shared_data / "hands/interhand2.6m/test_interhand2.6m_joint_3d.json").read_text())
    lengths = []
    for capture in recorded.values():
        for frame in capture.values():
            points, seen = np.array(frame["world_coord"]), np.array(frame["joint_valid"]).reshape(42).astype(bool)
            hands = [hand for hand in (slice(0, 21), slice(21, 42)) if seen[hand].all()]
            lengths += [bone_lengths(to_openpose(points[hand], "interhand")) for hand in hands]  # mm
    real = np.array(lengths)
    assert len(real) >= 6
    own = 1000 * bone_lengths(joints("hand_21", 0.3).numpy())
    assert real.sum(1).min() < own.sum() < real.sum(1).max()
    shares = real / real.sum(1, keepdims=True)
    ratio = own / own.sum() / shares.mean(0)
    assert np.abs(np.delete(ratio, 1) - 1).max() < 0.12
    assert abs(ratio[1] - 1) < 0.25  # the thumb's metacarpal, whose root few agree on
    assert np.abs(ratio - 1).mean() < 0.08
