"""The controller answers as DROID's arm does: a fifth of a command per step, a step late; limits kept, slots apart."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vap_gym.cards import RobotCard, load_robot
from vap_gym.errors import ActionError, UnknownNameError, VapError
from vap_gym.geometry import pose_from_xyz_euler, rotvec_from_rotation, xyz_euler_from_pose
from vap_gym.kinematics import Controller, RobotState

MODES = ("cartesian_velocity", "cartesian_delta", "cartesian_pose", "joint_velocity", "joint_position")


@pytest.fixture(scope="module")
def robot() -> RobotCard:
    return load_robot("panda_robotiq")


def at_home(controller: Controller, *batch: int, gripper: float = 0.0) -> RobotState:
    home = torch.tensor(controller.robot.home_q_rad, dtype=torch.float64)
    return controller.start(home.expand(*batch, 7), torch.full(batch, gripper, dtype=torch.float64))


def action(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def roll(controller: Controller, state: RobotState, command: Tensor, steps: int) -> list[RobotState]:
    states = [state]
    for _ in range(steps):
        state, _ = controller.step(state, command)
        states.append(state)
    return states


@pytest.mark.parametrize("axis", range(6))
def test_steady_state_realises_a_fifth_of_the_command(robot: RobotCard, axis: int) -> None:
    controller = Controller(robot, dtype=torch.float64)
    command = torch.zeros(7, dtype=torch.float64)
    command[axis] = 0.5
    states = roll(controller, at_home(controller), command, 12)
    before, after = (controller.tip_pose(state) for state in states[-2:])
    moved = torch.cat([after[:3, 3] - before[:3, 3], rotvec_from_rotation(after[:3, :3] @ before[:3, :3].mT)])
    expected = torch.zeros(6, dtype=torch.float64)
    expected[axis] = 0.2 * 0.5 * (0.075 if axis < 3 else 0.15)
    torch.testing.assert_close(moved, expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(states[-1].twist, expected, atol=1e-5, rtol=0)


def test_mean_lag_is_one_step(robot: RobotCard) -> None:
    """An impulse is realised in full (gain · command), on average one step after it would be without lag."""
    controller = Controller(robot, dtype=torch.float64)
    state, _ = controller.step(at_home(controller), action(1, 0, 0, 0, 0, 0, 0))
    realised = [float(state.twist[0])]
    for _ in range(40):
        state, _ = controller.step(state, torch.zeros(7, dtype=torch.float64))
        realised.append(float(state.twist[0]))
    total = sum(realised)
    assert total == pytest.approx(0.2 * 0.075)
    assert sum(k * v for k, v in enumerate(realised)) / total == pytest.approx(1.0, abs=1e-6)


def test_motion_is_in_the_base_frame_and_turns_on_the_spot(robot: RobotCard) -> None:
    controller = Controller(robot, dtype=torch.float64)
    start = at_home(controller)
    T0 = controller.tip_pose(start)
    T1 = controller.tip_pose(roll(controller, start, action(0, 0, 0.5, 0, 0, 0, 0), 20)[-1])
    assert float(T1[2, 3] - T0[2, 3]) == pytest.approx(19 * 0.2 * 0.5 * 0.075, abs=1e-3)
    assert float((T1[:2, 3] - T0[:2, 3]).norm()) < 1e-3
    assert float(rotvec_from_rotation(T1[:3, :3] @ T0[:3, :3].mT).norm()) < 2e-3
    T2 = controller.tip_pose(roll(controller, start, action(0, 0, 0, 0, 0, 0.5, 0), 20)[-1])
    assert float((T2[:3, 3] - T0[:3, 3]).norm()) < 1e-3
    turned = rotvec_from_rotation(T2[:3, :3] @ T0[:3, :3].mT)
    torch.testing.assert_close(turned, action(0, 0, 19 * 0.2 * 0.5 * 0.15), atol=2e-3, rtol=0)


def test_velocity_commands_are_norm_clipped_as_on_droid(robot: RobotCard) -> None:
    controller = Controller(robot, dtype=torch.float64)
    state, clipped = controller.step(at_home(controller), action(1, 1, 0, 0.3, 0, 0, 0))
    assert clipped.action.tolist() == [True, True, True, False, False, False, False]
    assert bool(clipped.any)
    assert float(state.twist[:3].norm()) == pytest.approx(0.5 * 0.2 * 0.075)
    assert float(state.twist[0]) == pytest.approx(float(state.twist[1]))
    _, clipped = controller.step(at_home(controller), action(1, 0, 0, 0, -1, 0, 1))
    assert not bool(clipped.any)


def test_delta_is_velocity_in_metres_and_radians(robot: RobotCard) -> None:
    velocity, delta = Controller(robot, dtype=torch.float64), Controller(robot, "cartesian_delta", dtype=torch.float64)
    a, _ = velocity.step(at_home(velocity), action(0.4, -0.2, 0.1, 0.3, 0, -0.5, 0.7))
    scale = action(*[0.075] * 3, *[0.15] * 3, 1.0)
    b, _ = delta.step(at_home(delta), scale * action(0.4, -0.2, 0.1, 0.3, 0, -0.5, 0.7))
    torch.testing.assert_close(a.q, b.q)
    torch.testing.assert_close(a.gripper, b.gripper)


def test_pose_targets_are_reached_without_overshoot(robot: RobotCard) -> None:
    controller = Controller(robot, "cartesian_pose", dtype=torch.float64)
    start = at_home(controller)
    T0 = controller.tip_pose(start)
    target = xyz_euler_from_pose(T0) + action(0.03, -0.02, 0.04, 0, 0.05, 0.1)
    states = roll(controller, start, torch.cat([target, action(0.6)]), 60)
    T_target = pose_from_xyz_euler(target)
    assert float((controller.tip_pose(states[-1]) - T_target).abs().max()) < 1e-5
    assert float(states[-1].gripper) == pytest.approx(0.6, abs=1e-4)
    toward = (T_target - T0)[:3, 3]
    progress = [float((controller.tip_pose(s) - T0)[:3, 3] @ toward / (toward @ toward)) for s in states]
    assert max(progress) < 1.005
    assert max(float(s.gripper) for s in states) <= 0.6 + 1e-9
    assert progress[1:4] == pytest.approx([0.1, 0.24, 0.386], abs=1e-2)  # v' = v / 2 + rest / 10


def test_joint_modes_move_the_joints_they_name(robot: RobotCard) -> None:
    controller = Controller(robot, "joint_velocity", dtype=torch.float64)
    start = at_home(controller)
    states = roll(controller, start, action(0, 0.5, 0, 0, 0, 0, -1, 0), 12)
    torch.testing.assert_close(states[-1].joint_rate, action(0, 0.02, 0, 0, 0, 0, -0.04), atol=1e-4, rtol=0)
    moved = controller.tip_pose(states[-1])[:3, 3] - controller.tip_pose(states[-2])[:3, 3]
    torch.testing.assert_close(states[-1].twist[:3], moved, atol=5e-4, rtol=0)
    controller = Controller(robot, "joint_position", dtype=torch.float64)
    target = start.q + 0.1
    state = roll(controller, start, torch.cat([target, action(1.0)]), 80)[-1]
    torch.testing.assert_close(state.q, target, atol=1e-5, rtol=0)
    assert float(state.gripper) == pytest.approx(1.0, abs=1e-4)
    _, clipped = controller.step(start, torch.cat([start.q + 0.5, action(0.0)]))
    assert clipped.action.tolist() == [True] * 7 + [False]


@pytest.mark.parametrize("mode", ["cartesian_velocity", "cartesian_delta", "joint_velocity"])
def test_gripper_closes_with_plus_and_stops_at_its_ends(robot: RobotCard, mode: str) -> None:
    controller = Controller(robot, mode, dtype=torch.float64)
    command = torch.zeros(controller.action_size, dtype=torch.float64)
    command[-1] = 1.0
    states = roll(controller, at_home(controller), command, 8)
    assert all(float(b.gripper) >= float(a.gripper) for a, b in pairwise(states))
    gripper_gain = robot.controller.gripper_gain
    assert float(states[1].gripper) == pytest.approx(0.5 * gripper_gain * 0.25)
    states = roll(controller, states[-1], command, 40)
    assert float(states[-1].gripper) == 1.0
    opened = roll(controller, states[-1], -command, 2)[-1]
    assert float(opened.gripper) < 1.0  # at once: nothing has wound up at the end


def test_joint_limits_hold_and_are_reported(robot: RobotCard) -> None:
    controller = Controller(robot, "joint_velocity")
    state = at_home(controller)
    for _ in range(120):
        state, clipped = controller.step(state, torch.ones(8))
    torch.testing.assert_close(state.q, controller.arm.upper)
    assert clipped.position.tolist() == [True] * 7
    assert float(state.joint_rate.abs().max()) == 0.0


def test_speed_limits_hold(robot: RobotCard) -> None:
    controller = Controller(robot)
    limit = controller.arm.velocity / robot.controller.control_hz
    generator = torch.Generator().manual_seed(0)
    q = torch.tensor(robot.home_q_rad) + 0.3 * torch.randn(64, 7, generator=generator)
    state = controller.start(q, torch.zeros(64))
    seen = False
    for step in range(150):
        if step % 25 == 0:
            command = torch.randn(64, 7, generator=generator)
        before = state
        state, clipped = controller.step(state, command)
        assert bool(((state.q - before.q).abs() <= limit + 1e-6).all())
        assert bool(((state.q >= controller.arm.lower) & (state.q <= controller.arm.upper)).all())
        seen = seen or bool(clipped.speed.any())
    assert seen


def test_pushing_beyond_the_reach_ends_still(robot: RobotCard) -> None:
    controller = Controller(robot)
    directions = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    command = torch.cat([torch.nn.functional.normalize(directions, dim=-1), torch.zeros(32, 4)], -1)
    command[0, :3] = torch.tensor([1.0, 0.0, 0.0])
    states = roll(controller, at_home(controller, 32), command, 250)
    for a, b in pairwise(states[-20:]):
        swings = (a.joint_rate * b.joint_rate < 0) & (a.joint_rate.abs() > 0.01) & (b.joint_rate.abs() > 0.01)
        assert not bool(swings.any())
    assert all(bool(torch.isfinite(state.q).all()) for state in states)


def test_orientation_does_not_drift_over_a_table(robot: RobotCard) -> None:
    controller = Controller(robot)
    state = at_home(controller, 64)
    start = controller.tip_pose(state)
    unit = torch.rand(64, 3, generator=torch.Generator().manual_seed(2))
    target = torch.tensor([0.3, -0.35, 0.15]) + unit * torch.tensor([0.35, 0.7, 0.35])
    for _ in range(100):
        toward = (target - controller.tip_pose(state)[:, :3, 3]) / robot.controller.linear_step_m
        state, _ = controller.step(state, torch.cat([toward, torch.zeros(64, 4)], -1))
    end = controller.tip_pose(state)
    assert float((end[:, :3, 3] - target).norm(dim=-1).max()) < 1e-3
    drift = rotvec_from_rotation(end[:, :3, :3] @ start[:, :3, :3].mT).norm(dim=-1)
    assert float(drift.max()) < 0.005


@pytest.mark.parametrize("mode", MODES)
def test_slot_does_not_depend_on_its_batch_mates(robot: RobotCard, mode: str) -> None:
    controller = Controller(robot, mode)
    unit = torch.rand(5, 12, controller.action_size, generator=torch.Generator().manual_seed(3))
    low, high = controller.action_space_low, controller.action_space_high
    commands = low + unit * (high - low)
    together, alone = at_home(controller, 5), [at_home(controller, 1) for _ in range(5)]
    for step in range(12):
        together, _ = controller.step(together, commands[:, step])
        alone = [controller.step(alone[i], commands[i : i + 1, step])[0] for i in range(5)]
    torch.testing.assert_close(together.q, torch.cat([state.q for state in alone]), atol=2e-4, rtol=0)
    again = at_home(controller, 5)
    for step in range(12):
        again, _ = controller.step(again, commands[:, step])
    assert torch.equal(again.q, together.q)  # same batch, same bits


@pytest.mark.parametrize("mode", MODES)
def test_spaces_and_gradients_of_every_mode(robot: RobotCard, mode: str) -> None:
    controller = Controller(robot, mode, dtype=torch.float64)
    low, high = controller.action_space_low, controller.action_space_high
    assert low.shape == high.shape == (controller.action_size,)
    assert controller.action_size == (8 if mode.startswith("joint") else 7)
    assert bool((low < high).all())
    assert (float(low[-1]), float(high[-1])) == ((0.0, 1.0) if mode in MODES[2::2] else (-1.0, 1.0))
    state = at_home(controller)
    centre = {
        "cartesian_pose": torch.cat([xyz_euler_from_pose(controller.tip_pose(state)), action(0.0)]),
        "joint_position": torch.cat([state.q, action(0.0)]),
    }.get(mode, torch.zeros(controller.action_size, dtype=torch.float64))
    small = (centre + 0.01 + 0.002 * torch.arange(controller.action_size)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: controller.step(state, a)[0].q, (small,), atol=1e-5)


def test_no_op_stays_put_for_ever(robot: RobotCard) -> None:
    controller = Controller(robot)
    start = at_home(controller, gripper=0.3)
    end = roll(controller, start, torch.zeros(7), 200)[-1]
    assert torch.equal(end.q, start.q)
    assert torch.equal(end.gripper, start.gripper)


def test_links_hold_arm_and_gripper(robot: RobotCard) -> None:
    controller = Controller(robot)
    state = controller.start(torch.tensor(robot.home_q_rad).repeat(2, 1), torch.tensor([0.0, 1.0]))
    links = controller.links(state)
    assert links.shape == (2, len(controller.chain.link_names), 4, 4)
    torch.testing.assert_close(links[:, controller.chain.link_index("panda_link8")], controller.tip_pose(state))
    left, right = (links[:, controller.chain.link_index(f"{side}_finger_end"), :3, 3] for side in ("left", "right"))
    gap = (left - right).norm(dim=-1)
    torch.testing.assert_close(gap, torch.tensor([0.093, 0.008]), atol=3e-3, rtol=0)


def test_partial_reset_touches_its_slot_only(robot: RobotCard) -> None:
    controller = Controller(robot)
    moved = roll(controller, at_home(controller, 3), torch.full((3, 7), 0.3), 5)[-1]
    mixed = moved.where(torch.tensor([False, True, False]), at_home(controller, 3))
    assert torch.equal(mixed.q[1], at_home(controller).q)
    assert torch.equal(mixed.index(2).q, moved.index(2).q)
    assert float(mixed.twist[1].abs().max()) == 0.0
    assert torch.equal(mixed.gripper_rate[[0, 2]], moved.gripper_rate[[0, 2]])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            torch.zeros(1, 6),
            r"action must have shape \(1, 7\) \(the state's batch, then cartesian_velocity .*got \(1, 6\)\.",
        ),
        (torch.zeros(7), r"action must have shape \(1, 7\) .*got \(7,\)\."),
        (torch.zeros(2, 7), r"got \(2, 7\)\."),
        (torch.zeros(1, 7, dtype=torch.int64), r"must be a floating-point tensor of shape \(1, 7\), got torch\.int64"),
        (torch.tensor([[0, 0, float("nan"), 0, 0, 0, 0]]), r"must be finite, got nan at index \[0, 2\]; send zeros"),
        (torch.tensor([[0, 0, 0, 0, 0, 0, float("-inf")]]), r"must be finite, got -inf at index \[0, 6\]"),
    ],
)
def test_bad_action_is_refused(robot: RobotCard, bad: Tensor, message: str) -> None:
    controller = Controller(robot)
    with pytest.raises(ActionError, match=message):
        controller.step(at_home(controller, 1), bad)


def test_bad_start_and_unknown_mode_are_refused(robot: RobotCard) -> None:
    controller = Controller(robot)
    with pytest.raises(
        VapError, match=r"q must have shape \(\*batch, 7\) and gripper \(\*batch\), got \(2, 7\) and \(3,\)"
    ):
        controller.start(torch.zeros(2, 7), torch.zeros(3))
    with pytest.raises(VapError, match="must be finite"):
        controller.start(torch.full((7,), float("nan")), torch.zeros(()))
    with pytest.raises(
        UnknownNameError, match=r"No action mode of 'panda_robotiq' named 'cartesian_velocty'\. Did you mean"
    ):
        Controller(robot, "cartesian_velocty")


@pytest.mark.parametrize("log", ["subset_1", "subset_3", "subset_5", "subset_899"])
def test_real_targets_lead_the_model_along_the_real_path(shared_data: Path, robot: RobotCard, log: str) -> None:
    """Open loop over 12 to 24 s: fed with the logged targets, the model stays within 15 mm (mean) of the real arm."""
    data = {k: torch.from_numpy(v) for k, v in np.load(shared_data / "droid" / log / "log.npz").items()}
    controller = Controller(robot, "cartesian_pose", dtype=torch.float64)
    state = controller.start(data["joint_position"][0], data["gripper_position"][0])
    commands = torch.cat([data["action_cartesian_position"], data["action_gripper_position"][:, None]], -1)
    away = []
    for command, logged in zip(commands[:-1], data["cartesian_position"][1:], strict=True):
        state, _ = controller.step(state, command)
        away.append(float((controller.tip_pose(state)[:3, 3] - logged[:3]).norm()))
    assert float(np.mean(away)) < 0.015
    assert float(np.quantile(away, 0.95)) < 0.03


@pytest.mark.parametrize("log", ["subset_1", "subset_3", "subset_5", "subset_899"])
def test_cards_gain_is_what_the_real_arm_realises(shared_data: Path, robot: RobotCard, log: str) -> None:
    """Regressed over each log: displacement per step against the commanded offset one step before."""
    data = np.load(shared_data / "droid" / log / "log.npz")
    position = data["cartesian_position"][:, :3]
    offset = (data["action_cartesian_position"][:, :3] - position)[:-2].ravel()
    moved = np.diff(position, axis=0)[1:].ravel()
    assert np.corrcoef(offset, moved)[0, 1] > 0.85
    assert abs(float(offset @ moved / (offset @ offset)) - robot.controller.gain) < 0.04
