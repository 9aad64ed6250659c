"""Google robot and WidowX: where their published figures put tool and camera, and the two data sets' own actions."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vap_gym.cards import RobotCard, load_robot
from vap_gym.errors import ActionError, UnknownNameError
from vap_gym.geometry import Camera, rotation_from_xyz_euler, rotvec_from_rotation, xyz_euler_from_pose
from vap_gym.kinematics import Controller, RobotState, gripper_joint_values, load_chain, solve_ik
from vap_gym.prompts.skeleton import Skeleton

FLIP = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]], dtype=torch.float64)  # Bridge's: gripper straight down


def full_q(robot: RobotCard, closedness: float = 0.0) -> Tensor:
    home = torch.tensor(robot.home_q_rad, dtype=torch.float64)
    return torch.cat([home, gripper_joint_values(robot.gripper, home.new_tensor(closedness))])


def start(controller: Controller, closedness: float = 0.0) -> RobotState:
    home = torch.tensor(controller.robot.home_q_rad, dtype=torch.float64)
    return controller.start(home, home.new_tensor(closedness))


def action(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def moved(controller: Controller, before: RobotState, after: RobotState) -> Tensor:
    """Displacement of the tip in the base frame: m, rotation vector in rad."""
    a, b = controller.tip_pose(before), controller.tip_pose(after)
    return torch.cat([b[:3, 3] - a[:3, 3], rotvec_from_rotation(b[:3, :3] @ a[:3, :3].mT)])


# --- figures ---


def test_google_robot_stands_as_rt1_was_recorded() -> None:
    robot = load_robot("google_robot")
    chain = load_chain(robot)
    camera, tool = (chain.fk(full_q(robot), link) for link in ("link_camera", robot.tip_link))
    torch.testing.assert_close(camera[:3, 3], action(0.146, 0, 1.213), atol=0.003, rtol=0)
    assert math.degrees(math.asin(-float(camera[2, 2]))) == pytest.approx(45, abs=0.1)  # down
    torch.testing.assert_close(tool[:3, 3], action(0.439, -0.218, 0.962), atol=0.003, rtol=0)


def test_google_robots_camera_and_tool_are_those_of_the_recording(shared_data: Path) -> None:
    robot = load_robot("google_robot")
    chain = load_chain(robot)
    given = json.loads((shared_data / "rt1_google_robot" / "camera.json").read_text())
    joints = given["start_joint_positions"]
    q = torch.cat([action(*(joints[name] for name in robot.arm_joints)), action(0.0)])
    for link, key in (
        ("link_camera", "T_base_from_camera_at_start"),
        (robot.tip_link, "T_base_from_tool_centre_at_start"),
    ):
        np.testing.assert_allclose(chain.fk(q, link).numpy(), given[key], atol=2e-5)
    assert robot.home_q_rad == pytest.approx([joints[name] for name in robot.arm_joints], abs=1e-6)


def test_widowx_state_is_level_when_the_gripper_points_down() -> None:
    """The tip's rotation is the gripper's times the transposed flip, so that it is the identity over the table."""
    robot = load_robot("widowx")
    chain = load_chain(robot)
    q = torch.stack([full_q(robot)] * 50)
    q[:, :6] += 0.5 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gripper, tip = chain.fk(q, "ee_gripper_link"), chain.fk(q, robot.tip_link)
    torch.testing.assert_close(tip[:, :3, :3], gripper[:, :3, :3] @ FLIP.mT)
    torch.testing.assert_close(tip[:, :3, 3], gripper[:, :3, 3])
    down = action(0, 0, 0, 0, math.pi / 2, 0, 0.037)  # the wrist turns it to straight down
    torch.testing.assert_close(chain.fk(down, robot.tip_link)[:3, :3], torch.eye(3, dtype=torch.float64))
    assert float(xyz_euler_from_pose(chain.fk(full_q(robot), robot.tip_link))[3:].abs().max()) < 0.1


def test_widowx_reaches_every_state_of_the_recording(shared_data: Path) -> None:
    robot = load_robot("widowx")
    arm = load_chain(robot).subchain([robot.tip_link])
    for path in sorted((shared_data / "bridge_widowx").glob("decoded_*.npz")):
        states = torch.from_numpy(np.load(path)["state"]).double()
        T = torch.eye(4, dtype=torch.float64).repeat(len(states), 1, 1)
        T[:, :3, :3], T[:, :3, 3] = rotation_from_xyz_euler(states[:, 3:6]), states[:, :3]
        found = solve_ik(arm, robot.tip_link, T, action(*robot.home_q_rad), iterations=100)
        assert bool(found.converged.all()), path.name


def test_widowx_camera_is_that_of_the_recording(shared_data: Path) -> None:
    """Bridge's camera, and the finger tips in it: near the gripper in the picture, in the first frame of an episode."""
    given = json.loads((shared_data / "bridge_widowx" / "camera.json").read_text())
    robot = load_robot("widowx")
    T = load_chain(robot).fk(full_q(robot), "link_camera")
    torch.testing.assert_close(T[:3, 3], action(*given["camera_position_in_base_link"]))
    forward = action(*given["camera_forward_in_base_link"])
    torch.testing.assert_close(T[:3, 2], forward / forward.norm(), atol=1e-6, rtol=0)
    assert float(T[2, 0]) == pytest.approx(0, abs=1e-6)  # level
    camera = Camera(K=torch.tensor(given["K_640x480"], dtype=torch.float64), T_world_camera=T, frame_size_px=(640, 480))
    state = action(*np.load(shared_data / "bridge_widowx" / "decoded_00.npz")["state"][0].astype(float))
    uv, in_front = camera.project(state[None, :3])
    assert bool(in_front.all())
    assert 0 < float(uv[0, 0]) < 640
    assert 0 < float(uv[0, 1]) < 240  # the upper half, as in the picture


@pytest.mark.parametrize("name", ["google_robot", "widowx"])
def test_fingers_open_along_the_tools_y_and_meet_at_the_tool(name: str) -> None:
    robot = load_robot(name)
    chain, skeleton = load_chain(robot), Skeleton(robot, dtype=torch.float64)
    names = skeleton.keypoint_names
    home = action(*robot.home_q_rad)
    T_tool = chain.fk(full_q(robot), robot.gripper.tool_link)
    gaps = []
    for closedness in (0.0, 0.5, 1.0):
        points = skeleton.at_joints(home, home.new_tensor(closedness))
        left, right, palm = (points[names.index(key)] for key in ("left_end", "right_end", "palm"))
        gap = T_tool[:3, :3].mT @ (left - right)
        assert float(gap[1]) > 0  # left to +y
        assert float(gap[[0, 2]].norm()) < 0.004
        gaps.append(float(gap[1]))
        reach = T_tool[:3, :3].mT @ ((left + right) / 2 - palm)
        assert float(reach[2]) > 0.05  # the fingers are before the palm, along the tool's z
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.025
    assert gaps[0] == pytest.approx(robot.gripper.max_opening_m, abs=0.02)
    assert float((T_tool[:3, 3] - (left + right) / 2).norm()) < 0.02


# --- RT-1's actions ---


def test_an_rt1_step_goes_where_it_says_in_metres_and_radians() -> None:
    controller = Controller(load_robot("google_robot"), "rt1", dtype=torch.float64)
    before = start(controller)
    command = action(0.04, -0.03, 0.05, 0.1, -0.05, 0.15, 0)
    after, clipped = controller.step(before, command)
    assert not bool(clipped.any)
    torch.testing.assert_close(moved(controller, before, after), command[:6], atol=0.003, rtol=0)
    still, _ = controller.step(after, action(0, 0, 0, 0, 0, 0, 0))
    assert float(moved(controller, after, still).abs().max()) < 1e-9  # no momentum


def test_rt1_gripper_is_relative_and_plus_closes() -> None:
    controller = Controller(load_robot("google_robot"), "rt1", dtype=torch.float64)
    state = start(controller, 0.2)
    closing, _ = controller.step(state, action(0, 0, 0, 0, 0, 0, 1))
    opening, _ = controller.step(state, action(0, 0, 0, 0, 0, 0, -1))
    holding, _ = controller.step(state, action(0, 0, 0, 0, 0, 0, 0))
    assert float(closing.gripper) > 0.5
    assert float(opening.gripper) == 0
    assert float(holding.gripper) == pytest.approx(0.2)


def test_rt1_space_is_the_data_sets_and_long_steps_are_clipped() -> None:
    controller = Controller(load_robot("google_robot"), "rt1", dtype=torch.float64)
    torch.testing.assert_close(controller.action_space_high, action(1, 1, 1, *[math.pi / 2] * 3, 1))
    torch.testing.assert_close(controller.action_space_low, -controller.action_space_high)
    before = start(controller)
    after, clipped = controller.step(before, action(1, 0, 0, 0, 0, 0, 0))
    assert clipped.action.tolist() == [True] * 3 + [False] * 4
    assert float(moved(controller, before, after)[:3].norm()) < 0.36
    with pytest.raises(ActionError, match=r"action must have shape \(7,\)"):
        controller.step(before, torch.zeros(8, dtype=torch.float64))  # terminate_episode has no entry


# --- Bridge's actions ---


@functools.cache
def bridge() -> Controller:
    return Controller(load_robot("widowx"), "bridge", dtype=torch.float64)


def test_bridge_steps_are_realised_in_full_half_a_step_late() -> None:
    controller = bridge()
    state = start(controller)
    command = action(0.01, 0.005, -0.008, 0.02, 0.03, -0.04, 1)
    after, _ = controller.step(state, command)
    realised = [after.twist]
    for _ in range(12):
        after, _ = controller.step(after, action(0, 0, 0, 0, 0, 0, 1))
        realised.append(after.twist)
    total = torch.stack(realised).sum(0)
    torch.testing.assert_close(total[:3], command[:3], atol=1e-6, rtol=0)
    turn = rotvec_from_rotation(rotation_from_xyz_euler(command[3:6]))
    torch.testing.assert_close(total[3:], turn, atol=1e-6, rtol=0)
    lag = sum(k * float(twist[0]) for k, twist in enumerate(realised)) / float(total[0])
    assert lag == pytest.approx(0.5, abs=1e-4)
    torch.testing.assert_close(moved(controller, state, after)[:3], command[:3], atol=5e-4, rtol=0)


def test_bridge_gain_and_lag_are_those_of_the_recording(shared_data: Path) -> None:
    """Regress realised on commanded displacements of three episodes: half of this step's, half the last one's."""
    rows, realised = [], []
    for path in sorted((shared_data / "bridge_widowx").glob("decoded_*.npz")):
        log = np.load(path)
        commanded, step = log["action"][:, :3], np.diff(log["state"][:, :3], axis=0)
        rows.append(np.stack([commanded[1:-1], commanded[:-2]], -1).reshape(-1, 2))
        realised.append(step[1:].reshape(-1))
    share, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(realised), rcond=None)
    card = load_robot("widowx").controller
    assert share.sum() == pytest.approx(card.gain, abs=0.05)
    assert share[1] / share.sum() == pytest.approx(card.lag_steps, abs=0.1)


def test_bridge_gripper_is_absolute_and_one_is_open() -> None:
    controller = bridge()
    shut = opened = start(controller, 0.4)
    for _ in range(12):
        shut, _ = controller.step(shut, action(0, 0, 0, 0, 0, 0, 0))
        opened, _ = controller.step(opened, action(0, 0, 0, 0, 0, 0, 1))
    assert float(shut.gripper) == pytest.approx(1, abs=1e-3)
    assert float(opened.gripper) == pytest.approx(0, abs=1e-3)
    _, clipped = controller.step(opened, action(0, 0, 0, 0, 0, 0, -0.5))
    assert clipped.action.tolist() == [False] * 6 + [True]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=7, max_size=7))
def test_nothing_within_the_bridge_space_is_clipped(share: list[float]) -> None:
    controller = bridge()
    low, high = controller.action_space_low, controller.action_space_high
    torch.testing.assert_close(high, action(*[0.05] * 3, *[0.25] * 3, 1), atol=1e-4, rtol=0)
    _, clipped = controller.step(start(controller), low + action(*share) * (high - low))
    assert not bool(clipped.action.any())


def test_each_data_sets_actions_are_those_of_its_own_robot() -> None:
    with pytest.raises(UnknownNameError, match=r"No action mode of 'widowx' named 'rt1'\. .*Known: bridge, cart"):
        Controller(load_robot("widowx"), "rt1")
    with pytest.raises(UnknownNameError, match="No action mode of 'panda_robotiq' named 'bridge'"):
        Controller(load_robot("panda_robotiq"), "bridge")
