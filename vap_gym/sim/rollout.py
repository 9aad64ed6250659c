"""One oracle episode: a scene, a behaviour and the nominal controller, stepped together and recorded."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from vap_gym.cards import RobotCard
from vap_gym.data import Episode
from vap_gym.errors import VapError
from vap_gym.geometry import Camera, inverse, pose, xyz_euler_from_pose
from vap_gym.kinematics.control import Controller, RobotState
from vap_gym.kinematics.ik import solve_ik
from vap_gym.rotations import rotation_from_rotvec
from vap_gym.sim import tasks
from vap_gym.sim.experts import ScriptedPolicy
from vap_gym.sim.scene import Scene, Truth
from vap_gym.sim.spec import SceneSpec

VIEW = "front"


class NominalRobot:
    """The controller model beside one oracle: nominal tip pose and tool centre as numpy, for scripts and recording."""

    def __init__(self, robot: RobotCard, mode: str = "cartesian_velocity") -> None:
        self.controller = Controller(robot, mode, dtype=torch.float64)
        chain = self.controller.chain
        home = torch.tensor(robot.home_q_rad, dtype=torch.float64)
        full = self.controller.full_q(self.controller.start(home[None], home.new_zeros(1)))
        tip, tool = (chain.fk(full, link)[0] for link in (robot.tip_link, robot.gripper.tool_link))
        self._home_turn = tool[:3, :3]
        self.tip_from_tool = (inverse(tip) @ tool).numpy()
        self.home = home

    def start(
        self, tool_m: Any, yaw_rad: float, tilt_rad: Any, closedness: float, *, as_home: bool = False
    ) -> RobotState:
        """Arm at rest (batch of one): tool centre at `tool_m`, pointing down (or as it does in the card's home
        position), turned by `yaw_rad` and tilted."""
        down = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]], dtype=torch.float64)
        down = self._home_turn if as_home else down
        turn = rotation_from_rotvec(torch.tensor([0.0, 0.0, yaw_rad], dtype=torch.float64))
        tilt = rotation_from_rotvec(torch.tensor([*tilt_rad, 0.0], dtype=torch.float64))
        tool = pose(tilt @ turn @ down, torch.tensor(tool_m, dtype=torch.float64))
        target = tool @ inverse(torch.as_tensor(self.tip_from_tool))
        solved = solve_ik(
            self.controller.arm, self.controller.robot.tip_link, target[None], self.home[None], iterations=80
        )
        if float(solved.position_error_m[0]) > 5e-3:
            raise VapError(
                f"The arm cannot reach tool_m={tuple(tool_m)} with yaw {yaw_rad:.2f} rad: it ends "
                f"{1000 * float(solved.position_error_m[0]):.0f} mm away. Choose a start within its reach "
                "(a Panda's: 0.3 to 0.68 m)."
            )
        return self.controller.start(solved.q, torch.tensor([closedness], dtype=torch.float64))

    def tip(self, state: RobotState) -> Float[np.ndarray, "4 4"]:
        """Nominal tip pose in the world."""
        return np.asarray(self.controller.tip_pose(state)[0].numpy())

    def tool(self, state: RobotState) -> Float[np.ndarray, "4 4"]:
        """Nominal pose of the centre between the finger ends in the world; fingers open along its y."""
        return np.asarray(self.tip(state) @ self.tip_from_tool)

    def tool_m(self, state: RobotState) -> Float[np.ndarray, " 3"]:
        """Nominal centre between the finger ends, world metres."""
        return self.tool(state)[:3, 3]


def start_episode(scene: Scene, nominal: NominalRobot, spec: SceneSpec) -> RobotState:
    """Build the scene of `spec` and return the nominal state the arm starts in."""
    as_home = spec.layout != "table"
    state = nominal.start(
        spec.start_tool_m, spec.start_yaw_rad, spec.start_tilt_rad, spec.start_closedness, as_home=as_home
    )
    scene.reset(spec, state.q[0].numpy(), float(state.gripper[0]))
    return state


def record(
    scene: Scene, nominal: NominalRobot, spec: SceneSpec, behaviour: str, *, frames: int, render: bool = True
) -> Episode:
    """Play one episode and return it in the layout of `vap_gym.data`.

    Columns (T rows; row t is the moment of frame t, `action` leads to t + 1): `action` (7), `observation.state`
    (achieved xyz + Euler + closedness), `observation.joint_position`, `nominal.cartesian_position`,
    `nominal.joint_position`, `nominal.gripper_position`, `objects_m` (K, 3), `objects_xyzw` (K, 4),
    `touching` (K), `tool_m` (3, nominal),
    `camera.K`, `camera.T_world_camera`, `next.progress`, `next.success`; in the kitchen `drawer_open_m` (NaN: none).

    Args:
        frames: T ≥ 2.
        render: False leaves the pictures out, for searching episodes quickly.
    """
    state = start_episode(scene, nominal, spec)
    policy = ScriptedPolicy(spec, behaviour, spec.seed, controller=nominal.controller.robot.controller)
    rows: list[dict[str, Any]] = []
    pictures, labels, cameras = [], [], []
    first: Truth | None = None
    for t in range(frames):
        truth = scene.truth()
        first = first or truth
        cameras.append(scene.camera)
        if render:
            rgb, label = scene.render()
            pictures.append(rgb)
            labels.append(label)
        tip, tool = nominal.tip(state), nominal.tool_m(state)
        action = policy(truth, nominal.tool(state)) if t < frames - 1 else np.zeros(7, np.float32)
        rows.append(row_of(spec, truth, first, state, tip, tool, action))
        if t < frames - 1:
            state, _ = nominal.controller.step(state, torch.as_tensor(action, dtype=torch.float64)[None])
            scene.step(state.q[0].numpy(), float(state.gripper[0]))
    return episode_of(scene, spec, behaviour, rows=rows, cameras=cameras, pictures=pictures, labels=labels)


def episode_of(
    scene: Scene,
    spec: SceneSpec,
    behaviour: str,
    *,
    rows: list[dict[str, Any]],
    cameras: list[Camera],
    pictures: list[np.ndarray],
    labels: list[np.ndarray],
) -> Episode:
    """Return moments (`row_of`) as an episode; no pictures: one without."""
    columns = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    columns["camera.K"] = np.stack([camera.K.numpy() for camera in cameras]).astype(np.float32)
    columns["camera.T_world_camera"] = np.stack([c.T_world_camera.numpy() for c in cameras]).astype(np.float32)
    moved = np.nanmax(np.linalg.norm(columns["objects_m"] - columns["objects_m"][:1], axis=-1))
    return Episode(
        frames={VIEW: np.stack(pictures)} if pictures else {},
        labels={VIEW: np.stack(labels)} if pictures else {},
        columns=columns,
        task=spec.instruction,
        info={
            "scene": json.loads(spec.to_json()),
            "behaviour": behaviour,
            "robot": scene.robot.name,
            "lab": f"oracle {spec.layout}",
            "skill": spec.task,
            "success": bool(columns["next.success"].any()),
            "moved_m": round(float(moved), 4),
        },
    )


def row_of(
    spec: SceneSpec,
    truth: Truth,
    first: Truth,
    state: RobotState,
    tip: np.ndarray,
    tool: np.ndarray,
    action: np.ndarray,
) -> dict[str, Any]:
    """Return what is recorded of a moment: the columns of `record`, without the camera's."""
    scored = {"start_tool_m": first.tool_m, "start_object_m": first.target_m(spec)}
    target = truth.target_m(spec)
    closed_m = np.nan if spec.drawer is None else spec.drawer.handle_m[0]
    drawer = {"drawer_open_m": np.float32(closed_m - truth.handle_m[0])} if spec.layout == "kitchen" else {}
    return drawer | {
        "action": action,
        "observation.state": np.array([*_six(truth.tip), truth.closedness], np.float32),
        "observation.joint_position": truth.joints_rad.astype(np.float32),
        "nominal.cartesian_position": _six(tip).astype(np.float32),
        "nominal.joint_position": state.q[0].numpy().astype(np.float32),
        "nominal.gripper_position": np.array([state.gripper[0].item()], np.float32),
        "objects_m": truth.objects_m.astype(np.float32),
        "objects_xyzw": truth.objects_xyzw.astype(np.float32),
        "touching": truth.touching,
        "tool_m": tool.astype(np.float32),
        "next.progress": np.float32(tasks.progress(spec, truth.tool_m, target, **scored)),
        "next.success": np.bool_(tasks.success(spec, truth.tool_m, target, **scored)),
    }


def _six(transform: np.ndarray) -> np.ndarray:
    return np.asarray(xyz_euler_from_pose(torch.as_tensor(transform)).numpy())


def spec_as_dict(spec: SceneSpec) -> dict[str, Any]:
    """The specification as plain containers."""
    return dataclasses.asdict(spec)
