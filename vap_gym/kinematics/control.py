"""The controller model: action → nominal robot state, first-order tracking with a lag, as measured on DROID.

On DROID an arm realises about a fifth of a commanded offset per 1/15 s step, one step late. Here the displacement of a
step is `v' = λ v + (1 − λ) · gain · command` with λ = lag / (1 + lag), whose steady state is gain · command and whose
mean delay is the lag. States are nominal: what was commanded, without contact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vap_gym.cards import RobotCard
from vap_gym.errors import ActionError, VapError, unknown_name
from vap_gym.kinematics.chain import Chain
from vap_gym.kinematics.gripper import gripper_joint_values
from vap_gym.kinematics.ik import damped_step
from vap_gym.kinematics.urdf import load_chain
from vap_gym.rotations import rotation_from_rotvec, rotation_from_xyz_euler, rotvec_from_rotation

_DAMPING = 0.05  # still at the edge of the reach, where less makes the elbow swing; costs .1° over a table
_SLACK = 1e-5  # rounding that does not count as clipping


@dataclass(frozen=True, kw_only=True, eq=False)
class RobotState:
    """The nominal state of a batch of robots. All tensors share dtype and leading shape."""

    q: Float[Tensor, "*batch n"]  # arm joints, rad
    joint_rate: Float[Tensor, "*batch n"]  # rad in the last step
    twist: Float[Tensor, "*batch 6"]  # tip displacement of the last step in the base frame: m, rotation vector in rad
    gripper: Float[Tensor, "*batch"]  # closedness, 0 open .. 1 closed
    gripper_rate: Float[Tensor, "*batch"]  # closedness in the last step

    def index(self, i: int | slice | Tensor) -> RobotState:
        """Return the state(s) at index `i` of the leading batch dimension."""
        return RobotState(**{f.name: getattr(self, f.name)[i] for f in fields(self)})

    def where(self, mask: Bool[Tensor, " B"], other: RobotState) -> RobotState:
        """Return this state, with `other`'s slots where `mask` is true: a partial reset."""

        def pick(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *([1] * (mine.dim() - 1))), theirs, mine)

        return RobotState(**{f.name: pick(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> RobotState:
        """Return the state in another dtype or on another device."""
        return RobotState(**{f.name: getattr(self, f.name).to(dtype=dtype, device=device) for f in fields(self)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Clipped:
    """What a step could not grant: action entries beyond their range, joints at a limit, joints at full speed."""

    action: Bool[Tensor, "*batch A"]
    position: Bool[Tensor, "*batch n"]
    speed: Bool[Tensor, "*batch n"]

    @property
    def any(self) -> Bool[Tensor, "*batch"]:
        """True where anything was clipped."""
        return self.action.any(-1) | self.position.any(-1) | self.speed.any(-1)


class Controller:
    """A robot's controller model in one action mode. Holds settings only; one dtype and device.

    Modes; the last entry is always the gripper:
    - `cartesian_velocity` 6+1 in [−1, 1], DROID's own: xyz and rotation vector in the base frame, each norm-clipped;
      a norm of 1 asks for the card's `linear_step_m`, `rotation_step_rad`;
    - `cartesian_delta` 6+1, the same in m and rad;
    - `cartesian_pose` 6+1, the target: xyz and extrinsic-xyz Euler angles of the tip in the base frame;
    - `joint_velocity` n+1 in [−1, 1], 1 asks for `joint_step_rad`; `joint_position` n+1, the target in rad.
    - `rt1` 6+1, RT-1's own: xyz in m within [−1, 1] and rotation vector within ±π/2, base frame, the gripper a velocity
      in [−1, 1], + closes; to end an episode is the env's affair, so that RT-1's `terminate_episode` has no entry;
    - `bridge` 6+1, Bridge's own: xyz in m and extrinsic-xyz Euler angles in rad, base frame, and how open the gripper
      is to be in [0, 1], 1 = open.
    All are tracked alike, so a `cartesian_delta` too is realised to the share `gain` in each step that it is asked for;
    offsets are norm-clipped to `linear_step_m`, `rotation_step_rad`; the ranges of `bridge` are these over √3, so that
    none is clipped there. In velocity and delta modes the gripper entry is a velocity in [−1, 1], + closes; in
    pose and position modes it is the target closedness in [0, 1].
    """

    def __init__(
        self,
        robot: RobotCard,
        mode: str = "cartesian_velocity",
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if mode not in robot.action_modes:
            raise unknown_name(f"action mode of '{robot.name}'", mode, robot.action_modes)
        self.robot = robot
        self.mode = mode
        self.chain: Chain = load_chain(robot).to(dtype, device)
        self.arm: Chain = self.chain.subchain([robot.tip_link])
        card = robot.controller
        self._keep = card.lag_steps / (1.0 + card.lag_steps)  # λ
        self._max_rate = self.arm.velocity / card.control_hz
        n = self.arm.size
        low, high = self._ranges(n)
        self.action_space_low = torch.tensor(low, dtype=dtype, device=device)
        self.action_space_high = torch.tensor(high, dtype=dtype, device=device)
        steps = [[card.linear_step_m], [card.rotation_step_rad]]
        self._reach_of_step = torch.tensor(steps, dtype=dtype, device=device)
        self._zero = torch.zeros((), dtype=dtype, device=device)

    @property
    def action_size(self) -> int:
        """A, the width of an action, gripper included."""
        return len(self.action_space_low)

    def start(self, q: Tensor, gripper: Tensor) -> RobotState:
        """Return a state at rest from q (*batch, n) rad and closedness (*batch), both clipped to their ranges."""
        n = self.arm.size
        q, gripper = q.to(self._zero), gripper.to(self._zero)
        if q.shape != (*gripper.shape, n):
            raise VapError(
                f"q must have shape (*batch, {n}) and gripper (*batch), got {tuple(q.shape)} and "
                f"{tuple(gripper.shape)}."
            )
        if not bool(torch.isfinite(q).all() & torch.isfinite(gripper).all()):
            raise VapError("q and gripper must be finite, got NaN or infinity.")
        return RobotState(
            q=q.clamp(self.arm.lower, self.arm.upper),
            joint_rate=torch.zeros_like(q),
            twist=q.new_zeros(*q.shape[:-1], 6),
            gripper=gripper.clamp(0.0, 1.0),
            gripper_rate=torch.zeros_like(gripper),
        )

    def step(self, state: RobotState, action: Tensor) -> tuple[RobotState, Clipped]:
        """Return the state one control step later, and what was clipped.

        `action` is (*batch, A), with the state's batch; a wrong shape, dtype or a non-finite entry is an ActionError.
        """
        self._check(state, action)
        action = action.to(self._zero)
        command, gripper_command = action[..., :-1], action[..., -1]
        if self.mode in ("joint_velocity", "joint_position"):
            granted, q, twist, speed, position = self._step_joints(state, command)
        else:
            granted, q, twist, speed, position = self._step_cartesian(state, command)
        gripper_granted, gripper = self._step_gripper(state, gripper_command)
        return (
            RobotState(q=q, joint_rate=q - state.q, twist=twist, gripper=gripper, gripper_rate=gripper - state.gripper),
            Clipped(
                action=torch.cat([granted, gripper_granted.unsqueeze(-1)], -1),
                position=position,
                speed=speed,
            ),
        )

    def tip_pose(self, state: RobotState) -> Float[Tensor, "*batch 4 4"]:
        """Return T_base_tip."""
        return self.arm.fk(state.q, self.robot.tip_link)

    def full_q(self, state: RobotState) -> Float[Tensor, "*batch joints"]:
        """Return arm and gripper joints in the order of `chain.joint_names`."""
        return torch.cat([state.q, gripper_joint_values(self.robot.gripper, state.gripper)], -1)

    def links(self, state: RobotState) -> Float[Tensor, "*batch L 4 4"]:
        """Return T_base_link of every link, gripper included, in the order of `chain.link_names`."""
        return self.chain.links(self.full_q(state))

    def _step_cartesian(self, state: RobotState, command: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Filter the tip's displacement, then follow it with two damped least-squares steps from the current joints."""
        card, tip = self.robot.controller, self.robot.tip_link
        T_base_tip, jacobian = self.arm.fk_and_jacobian(state.q, tip)
        offset, clipped = self._offset(command, T_base_tip)
        twist = torch.lerp(card.gain * offset, state.twist, self._keep)
        aim_position = T_base_tip[..., :3, 3] + twist[..., :3]
        aim_rotation = rotation_from_rotvec(twist[..., 3:]) @ T_base_tip[..., :3, :3]
        q, _, position = self._move(state.q, damped_step(jacobian, twist, _DAMPING))
        T_base_tip, jacobian = self.arm.fk_and_jacobian(q, tip)
        jacobian = jacobian * (~position).to(jacobian.dtype).unsqueeze(-2)  # joints at a limit cannot help
        turn = aim_rotation @ T_base_tip[..., :3, :3].mT
        rest = torch.cat([aim_position - T_base_tip[..., :3, 3], small_rotvec(turn)], -1)
        q, speed, at_limit = self._move(state.q, q - state.q + damped_step(jacobian, rest, _DAMPING))
        return clipped, q, twist, speed, position | at_limit

    def _offset(self, command: Tensor, T_base_tip: Tensor) -> tuple[Tensor, Tensor]:
        """The displacement that is asked for (m, rad; base frame), its two halves norm-clipped to the card's steps."""
        if self.mode == "cartesian_pose":
            turn = rotation_from_xyz_euler(command[..., 3:]) @ T_base_tip[..., :3, :3].mT
            command = torch.cat([command[..., :3] - T_base_tip[..., :3, 3], rotvec_from_rotation(turn)], -1)
        offset = command.reshape(*command.shape[:-1], 2, 3)
        if self.mode == "cartesian_velocity":
            offset = offset * self._reach_of_step
        squared = (offset * offset).sum(-1, keepdim=True)
        limit = self._reach_of_step * self._reach_of_step
        over = squared > limit * (1.0 + 2.0 * _SLACK)
        offset = (offset * (limit / squared.maximum(limit)).sqrt()).flatten(-2)
        if self.mode == "bridge":  # what was clipped are its angles
            turn = rotation_from_xyz_euler(offset[..., 3:])
            offset = torch.cat([offset[..., :3], rotvec_from_rotation(turn)], -1)
        return offset, over.expand(*over.shape[:-1], 3).flatten(-2)

    def _step_joints(self, state: RobotState, command: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        card = self.robot.controller
        offset = command - state.q if self.mode == "joint_position" else command * card.joint_step_rad
        granted = offset.clamp(-card.joint_step_rad, card.joint_step_rad)
        step = torch.lerp(card.gain * granted, state.joint_rate, self._keep)
        q, speed, position = self._move(state.q, step)
        jacobian = self.arm.jacobian(state.q, self.robot.tip_link)
        twist = (jacobian @ (q - state.q).unsqueeze(-1)).squeeze(-1)
        return (offset - granted).abs() > _SLACK * card.joint_step_rad, q, twist, speed, position

    def _move(self, q: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Go by `step`, scaled down as a whole to the joints' speed limits, then clipped to their ranges."""
        ratio = step.abs() / self._max_rate
        worst = ratio.amax(-1, keepdim=True).clamp(min=1.0)
        wanted = q + step / worst
        moved = wanted.clamp(self.arm.lower, self.arm.upper)
        return moved, ratio > 1.0, moved != wanted

    def _step_gripper(self, state: RobotState, command: Tensor) -> tuple[Tensor, Tensor]:
        card = self.robot.controller
        if self.mode in ("cartesian_pose", "joint_position", "bridge"):
            granted = command.clamp(0.0, 1.0)
            target = 1.0 - granted if self.mode == "bridge" else granted
            offset = (target - state.gripper).clamp(-card.gripper_step, card.gripper_step)
            rate = (1.0 - self._keep) * card.gripper_gain * offset  # no momentum: at this gain it would overshoot
        else:
            granted = command.clamp(-1.0, 1.0)
            rate = torch.lerp(card.gripper_gain * card.gripper_step * granted, state.gripper_rate, self._keep)
        return (command - granted).abs() > _SLACK, (state.gripper + rate).clamp(0.0, 1.0)

    def _ranges(self, n: int) -> tuple[list[float], list[float]]:
        card = self.robot.controller
        if self.mode == "cartesian_pose":
            reach = float(self.arm.coefficients[0, :, :3, 3].norm(dim=-1).sum() + self.arm.link_offset[0, :3, 3].norm())
            high = [reach] * 3 + [math.pi] * 3
            return [*(-h for h in high), 0.0], [*high, 1.0]
        if self.mode == "joint_position":
            lower, upper = self.arm.lower.clamp(min=-2 * math.pi), self.arm.upper.clamp(max=2 * math.pi)
            return [*lower.tolist(), 0.0], [*upper.tolist(), 1.0]
        if self.mode == "bridge":
            high = [step / math.sqrt(3) for step in (card.linear_step_m, card.rotation_step_rad) for _ in range(3)]
            return [*(-h for h in high), 0.0], [*high, 1.0]
        if self.mode == "rt1":
            high = [1.0] * 3 + [math.pi / 2] * 3 + [1.0]
        elif self.mode == "cartesian_delta":
            high = [card.linear_step_m] * 3 + [card.rotation_step_rad] * 3 + [1.0]
        else:
            high = [1.0] * (n + 1 if self.mode == "joint_velocity" else 7)
        return [-h for h in high], high

    def _check(self, state: RobotState, action: Tensor) -> None:
        batch = tuple(state.gripper.shape)
        expected = (*batch, self.action_size)
        if not action.is_floating_point():
            raise ActionError(f"action must be a floating-point tensor of shape {expected}, got {action.dtype}.")
        if tuple(action.shape) != expected:
            raise ActionError(
                f"action must have shape {expected} (the state's batch, then {self.mode} with gripper), "
                f"got {tuple(action.shape)}."
            )
        if not bool(torch.isfinite(action).all()):
            where = (~torch.isfinite(action)).nonzero()[0].tolist()
            raise ActionError(
                f"action must be finite, got {float(action[tuple(where)])} at index {where}; send zeros for no motion."
            )


def small_rotvec(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Return sin(angle)·axis, the rotation vector of a small rotation to third order."""
    twice = rotation - rotation.mT
    return 0.5 * torch.stack([twice[..., 2, 1], twice[..., 0, 2], twice[..., 1, 0]], -1)
