"""The rig: actions → nominal robot motion → where it is in the picture → prompts, by kinematics alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vap_gym.cards import RobotCard
from vap_gym.geometry import Camera, CameraMount, xyz_euler_from_pose
from vap_gym.kinematics import Clipped, Controller, RobotState, gripper_joint_values
from vap_gym.prompts.body import Body
from vap_gym.prompts.kinds import Prompter

Batched = TypeVar("Batched", RobotState, Clipped, "Motion")


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """What was commanded in K steps, from kinematics alone: exact, and without contact."""

    robot: RobotState  # batch (B, K)
    T_base_tip: Float[Tensor, "B K 4 4"]
    cartesian: Float[Tensor, "B K 6"]  # the same as xyz [m] + extrinsic-xyz Euler [rad], as DROID logs it
    tool_m: Float[Tensor, "B K 3"]  # the centre between the finger ends, base frame
    tool_px: Float[Tensor, "B K 2"]  # the same in the frame
    prompts: UInt8[Tensor, "B K H W 3"]
    T_world_camera: Float[Tensor, "B K 4 4"]  # where the camera was
    views: Float[Tensor, "B K L 3 4"]  # how the camera sees the robot's links, see `prompts.body.Body.views`
    clipped: Clipped  # batch (B, K)

    @property
    def states(self) -> Float[Tensor, "B K 10"]:
        """Raw states, as models of condition "raw_state" are told them: the tip's place [m], two columns of its
        rotation, and closedness, in the base frame."""
        T = self.T_base_tip
        return torch.cat([T[..., :3, 3], T[..., :3, 0], T[..., :3, 1], self.robot.gripper[..., None]], -1)

    def at(self, k: int) -> Motion:
        """Return step k as a motion of one step."""
        return mapped(self, lambda x: x[:, k : k + 1])


class Rig:
    """A robot under a controller, seen by cameras: settings only."""

    def __init__(
        self,
        robot: RobotCard,
        *,
        action_mode: str,
        prompt: str = "skeleton",
        frame_size_px: tuple[int, int],
        height_cue: bool = True,
        stand_in: RobotCard | None = None,
    ) -> None:
        self._prompter = Prompter(robot, prompt, frame_size_px=frame_size_px, height_cue=height_cue)
        self.robot = robot
        self.controller = Controller(robot, action_mode)
        self.skeleton = self._prompter.skeleton
        self.body = Body(robot, stand_in=stand_in)
        self.prompt = prompt
        self.height_cue = height_cue
        self.frame_size_px = frame_size_px
        self._links = self.controller.chain.subchain([robot.tip_link, robot.gripper.tool_link])
        named = (*robot.arm_joints, *(joint.name for joint in robot.gripper.joints))
        self._joint_order = [named.index(name) for name in self._links.joint_names]

    def move(
        self,
        state: RobotState,
        camera: Camera | CameraMount,
        actions: Float[Tensor, "B K A"],
        *,
        step: Int64[Tensor, " B"] | None = None,
        draw: bool = True,
    ) -> Motion:
        """Follow K actions from `state`; `camera` is one per slot (batch B) or one for all.

        `step` counts the steps since each slot's start, for cameras that sway; None is 0. Without `draw` the prompts
        are left empty, (B, K, 0, 0, 3): all else is differentiable in the actions.

        Raises:
            ActionError: actions of the wrong shape or type, or not finite.
        """
        steps = []
        for k in range(actions.shape[1]):
            state, clipped = self.controller.step(state, actions[:, k])
            now = k + 1 if step is None else step + k + 1
            # one by one, as single steps are: the same bits
            steps.append(self.look(state, camera, clipped, step=now, draw=draw))
        return joined(steps)

    def look(
        self,
        robot: RobotState,
        camera: Camera | CameraMount,
        clipped: Clipped | None = None,
        *,
        step: int | Int64[Tensor, " B"] = 0,
        draw: bool = True,
    ) -> Motion:
        """Return poses, pixels and prompts of robot states of batch (B,), as a motion of one step (K = 1)."""
        T_tip, T_tool = self._links.links(self._joints(robot)).unbind(-3)
        if isinstance(camera, CameraMount):
            seconds = torch.as_tensor(step).expand(len(T_tip)).to(T_tip) / self.robot.controller.control_hz
            camera = camera.at(T_tip, seconds)
        tool_px, _ = camera.project(T_tool[:, None, :3, 3])
        if clipped is None:
            no = torch.zeros(len(robot.q), self.controller.action_size, dtype=torch.bool)
            clipped = Clipped(
                action=no,
                position=torch.zeros_like(robot.q, dtype=torch.bool),
                speed=torch.zeros_like(robot.q, dtype=torch.bool),
            )
        prompts = torch.zeros(len(robot.q), 0, 0, 3, dtype=torch.uint8)
        if draw:
            prompts = self._prompter.draw(robot.q, robot.gripper, camera)
        return Motion(
            robot=mapped(robot, lambda x: x[:, None]),
            T_base_tip=T_tip[:, None],
            cartesian=xyz_euler_from_pose(T_tip)[:, None],
            tool_m=T_tool[:, None, :3, 3],
            tool_px=tool_px,
            prompts=prompts[:, None],
            T_world_camera=camera.T_world_camera.to(T_tip).expand(len(T_tip), 4, 4)[:, None],
            views=self._views(robot, camera)[:, None],
            clipped=mapped(clipped, lambda x: x[:, None]),
        )

    def _joints(self, robot: RobotState) -> Tensor:
        gripper = gripper_joint_values(self.robot.gripper, robot.gripper)
        return torch.cat([robot.q, gripper], -1)[..., self._joint_order]

    def _views(self, robot: RobotState, camera: Camera) -> Float[Tensor, "B L 3 4"]:
        views = self.body.views(robot.q, robot.gripper, camera.resized(self.frame_size_px))
        return torch.zeros_like(views) if self.prompt == "none" else views


def mapped(value: Batched, function: Callable[[Tensor], Tensor]) -> Batched:
    """Return a robot state (or `Clipped`, or `Motion`) with every tensor replaced by `function` of it."""
    changed: dict[str, Any] = {}
    for f in fields(value):
        part = getattr(value, f.name)
        changed[f.name] = function(part) if isinstance(part, Tensor) else mapped(part, function)
    return type(value)(**changed)


def joined(motions: Sequence[Motion]) -> Motion:
    """Return motions one after the other, as one."""

    def join(values: Sequence[Any]) -> Any:
        if isinstance(values[0], Tensor):
            return torch.cat(list(values), 1)
        return type(values[0])(**{f.name: join([getattr(v, f.name) for v in values]) for f in fields(values[0])})

    whole: Motion = join(motions)
    return whole
