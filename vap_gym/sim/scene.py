"""The PyBullet scene: builds a SceneSpec, follows nominal robot states, renders pictures and tells the truth."""

from __future__ import annotations

import tempfile
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from vap_gym.cards import RobotCard
from vap_gym.errors import require
from vap_gym.geometry import Camera, swayed
from vap_gym.sim.furniture import Builder
from vap_gym.sim.spec import COLOURS, SceneSpec

LABELS = ("background", "arm", "gripper", "goal", *COLOURS, "drawer")
"""Meaning of the values in a label picture: index in this tuple."""
SUBSTEP_HZ = 240  # of the physics
LEAST_FORCE = 40.0  # of an arm's motors, N·m (N where they slide): wrists follow their nominal angles under load, too
FINGER_FORCE = {"robotiq_2f85": 1.2, "parallel": 12.0}  # N·m, N
RENDERER = 2  # of the pictures: raised whenever the same scene comes out otherwise (2: seen through pixels' centres)
SUPERSAMPLING = 1.5  # TinyRenderer has no anti-aliasing of its own; 2 costs 1.7 times as much


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is really so: world metres, radians and quaternions; objects by palette index, NaN where absent."""

    joints_rad: Float[np.ndarray, " n"]
    closedness: float
    tip: Float[np.ndarray, "4 4"]
    tool_m: Float[np.ndarray, " 3"]
    objects_m: Float[np.ndarray, "K 3"]
    objects_xyzw: Float[np.ndarray, "K 4"]
    objects_yaw_rad: Float[np.ndarray, " K"]
    touching: np.ndarray  # bool (K,): the gripper touches the object
    handle_m: Float[np.ndarray, " 3"]  # of the drawer; NaN where there is none

    def target_m(self, spec: SceneSpec) -> Float[np.ndarray, " 3"]:
        """Where that is which the task is about: the object, or the drawer's handle."""
        return self.handle_m if spec.is_about_drawer else np.asarray(self.objects_m[spec.target])


class Scene:
    """One PyBullet world at a time. Use as a context manager or call `close`.

    Args:
        robot: a robot card whose URDF has the links named there.
        frame_size_px: (width, height) of the pictures that `render` returns by default.
        shadow: cast shadows; doubles the cost of a picture.
    """

    def __init__(self, robot: RobotCard, *, frame_size_px: tuple[int, int] = (144, 96), shadow: bool = False) -> None:
        self._bullet: Any = require("pybullet", "pybullet", "The oracle")
        self.robot = robot
        self.frame_size_px = frame_size_px
        self.shadow = shadow
        self._scratch = tempfile.TemporaryDirectory(prefix="vap_gym_scene_")
        self._urdf = _resolved_urdf(robot, Path(self._scratch.name))
        self._client = self._bullet.connect(self._bullet.DIRECT)
        self._disconnect = weakref.finalize(self, self._bullet.disconnect, self._client)  # where nobody calls close
        self._disconnect.atexit = False
        self._builder = Builder(self._bullet, self._client, Path(self._scratch.name))
        self._substeps = round(SUBSTEP_HZ / robot.controller.control_hz)
        self._steps = 0
        self._scale_of_joint = gripper_scales(robot)

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect from PyBullet and remove scratch files; harmless when called twice."""
        if self._client >= 0:
            self._disconnect()
            self._client = -1
            self._scratch.cleanup()

    # --- building ---

    def reset(self, spec: SceneSpec, joints_rad: Float[np.ndarray, " n"], closedness: float) -> None:
        """Build the scene with the arm at rest in `joints_rad` and the gripper at `closedness` (0 open, 1 closed)."""
        b, c = self._bullet, self._client
        b.resetSimulation(physicsClientId=c)
        b.setGravity(0, 0, -9.81, physicsClientId=c)
        b.setPhysicsEngineParameter(
            fixedTimeStep=1 / 240, numSolverIterations=60, deterministicOverlappingPairs=1, physicsClientId=c
        )
        self.spec = spec
        self._table, self._covered = self._builder.table(spec), False
        self._goal = self._builder.goal(spec)
        self._arm = b.loadURDF(str(self._urdf), useFixedBase=True, physicsClientId=c)
        self._index_joints()
        self._objects = {item.index: self._builder.thing(item, spec.table_z_m) for item in spec.objects}
        self._cabinet = -1 if spec.drawer is None else self._builder.cabinet(spec.drawer)
        self._first_camera = camera_of(spec, self.frame_size_px)
        self.place(joints_rad, closedness)
        self._steps = 0

    def place(self, joints_rad: Float[np.ndarray, " n"], closedness: float) -> None:
        """Put the arm to rest in `joints_rad` and the gripper at `closedness`, without a way from where it was; three
        control steps pass, in which the objects settle."""
        b, c = self._bullet, self._client
        self._q = np.asarray(joints_rad, dtype=np.float64).copy()
        for joint, value in zip(self._arm_joints, self._q, strict=True):
            b.resetJointState(self._arm, joint, value, physicsClientId=c)
        for joint, value in self._gripper_targets(closedness).items():
            b.resetJointState(self._arm, joint, value, physicsClientId=c)
        for _ in range(3):
            self.step(self._q, closedness)

    @property
    def camera(self) -> Camera:
        """The scene's own camera, as it is now."""
        sway = self.spec.camera.sway
        if not sway:
            return self._first_camera
        seconds = self._steps / self.robot.controller.control_hz
        moved = swayed(self._first_camera.T_world_camera, torch.tensor(sway, dtype=torch.float64), seconds)
        return replace(self._first_camera, T_world_camera=moved)

    def _index_joints(self) -> None:
        b, c = self._bullet, self._client
        names, self._link_of_name = {}, {}
        for i in range(b.getNumJoints(self._arm, physicsClientId=c)):
            info = b.getJointInfo(self._arm, i, physicsClientId=c)
            names[info[1].decode()] = i
            self._link_of_name[info[12].decode()] = i
        self._arm_joints = [names[name] for name in self.robot.arm_joints]
        self._finger_joints = {names[name]: scale for name, scale in self._scale_of_joint.items()}
        self._hangs_on = self._gripper_parents()
        self._tip_link = self._link_of_name[self.robot.tip_link]
        self._tool_link = self._link_of_name[self.robot.gripper.tool_link]
        self._gripper_links = self._below(self._link_of_name[self.robot.gripper.base_link])
        info = [b.getJointInfo(self._arm, joint, physicsClientId=c) for joint in self._arm_joints]
        self._forces = [max(LEAST_FORCE, float(entry[10])) for entry in info]
        for link in self._gripper_links:
            b.changeDynamics(
                self._arm, link, lateralFriction=1.3, spinningFriction=0.02, rollingFriction=0.001, physicsClientId=c
            )

    def _below(self, link: int) -> set[int]:
        """A link and all that hang on it."""
        b, c = self._bullet, self._client
        found = {link}
        for i in range(link + 1, b.getNumJoints(self._arm, physicsClientId=c)):  # parents come before their children
            if b.getJointInfo(self._arm, i, physicsClientId=c)[16] in found:
                found.add(i)
        return found

    def _gripper_parents(self) -> dict[int, int]:
        """For each gripper joint that hangs on another one: that other one (a finger tip on its knuckle)."""
        b, c = self._bullet, self._client
        parents = {}
        for joint in self._finger_joints:
            above = b.getJointInfo(self._arm, joint, physicsClientId=c)[16]
            while above >= 0 and above not in self._finger_joints:
                above = b.getJointInfo(self._arm, above, physicsClientId=c)[16]
            if above >= 0:
                parents[joint] = above
        return parents

    # --- moving ---

    def _gripper_targets(self, closedness: float) -> dict[int, float]:
        return {joint: offset + gain * closedness for joint, (offset, gain) in self._finger_joints.items()}

    def step(self, joints_rad: Float[np.ndarray, " n"], closedness: float) -> None:
        """Advance one control step (1/15 s on DROID) while the motors follow the nominal joints and closedness."""
        b, c = self._bullet, self._client
        start, end = self._q, np.asarray(joints_rad, dtype=np.float64)
        velocity = (end - start) * self.robot.controller.control_hz
        n = len(start)
        fingers = self._gripper_targets(closedness)
        for i in range(self._substeps):
            target = start + (end - start) * ((i + 1) / self._substeps)
            b.setJointMotorControlArray(
                self._arm, self._arm_joints, b.POSITION_CONTROL, targetPositions=target, targetVelocities=velocity,
                positionGains=[0.4] * n, velocityGains=[1.0] * n, forces=self._forces, physicsClientId=c,
            )  # fmt: skip
            if i % 4 == 0:
                self._drive_fingers(fingers)
            b.stepSimulation(physicsClientId=c)
        self._q = end.copy()
        self._steps += 1

    def _drive_fingers(self, targets: dict[int, float]) -> None:
        b, c = self._bullet, self._client
        for joint, target in targets.items():
            if joint in self._hangs_on:  # a tip follows its knuckle as it is, so that the pads stay parallel in a grasp
                knuckle = self._hangs_on[joint]
                offset, gain = self._finger_joints[knuckle]
                share = (b.getJointState(self._arm, knuckle, physicsClientId=c)[0] - offset) / gain
                target = self._finger_joints[joint][0] + self._finger_joints[joint][1] * share
            b.setJointMotorControl2(
                self._arm, joint, b.POSITION_CONTROL, targetPosition=target, force=self._finger_force(joint),
                positionGain=0.25, velocityGain=1.0, maxVelocity=6.0, physicsClientId=c,
            )  # fmt: skip

    def _finger_force(self, joint: int) -> float:
        return FINGER_FORCE.get(self.robot.gripper.kind, 0.8)

    # --- looking ---

    def render(self, camera: Camera | None = None) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
        """Return the picture (RGB) and the label picture (indices into LABELS) from `camera` or the scene's own."""
        b = self._bullet
        if not self._covered:
            self._builder.cover(self._table, self.spec)
            self._covered = True
        camera = camera or self.camera
        size = width, height = camera.frame_size_px
        fine_width, fine_height = round(width * SUPERSAMPLING), round(height * SUPERSAMPLING)
        view, projection = _opengl_matrices(camera, (fine_width, fine_height))
        _, _, rgba, _, bodies = b.getCameraImage(
            fine_width, fine_height, view, projection,
            renderer=b.ER_TINY_RENDERER, shadow=int(self.shadow), flags=b.ER_SEGMENTATION_MASK_OBJECT_AND_LINKINDEX,
            lightDirection=self.spec.light_direction, lightColor=self.spec.light_colour,
            lightAmbientCoeff=self.spec.light_ambient, lightDiffuseCoeff=self.spec.light_diffuse,
            lightSpecularCoeff=0.05, lightDistance=2.0, physicsClientId=self._client,
        )  # fmt: skip
        fine = np.reshape(rgba, (fine_height, fine_width, 4))[..., :3].astype(np.uint8)
        empty = np.reshape(bodies, (fine_height, fine_width)) < 0
        fine[empty] = self._surroundings(camera, (fine_width, fine_height))[empty]
        picture = np.asarray(Image.fromarray(fine).resize(size, Image.Resampling.BOX))
        rows = ((np.arange(height) + 0.5) * SUPERSAMPLING).astype(int)
        columns = ((np.arange(width) + 0.5) * SUPERSAMPLING).astype(int)
        return picture, self._labels(np.reshape(bodies, (fine_height, fine_width))[np.ix_(rows, columns)])

    def _surroundings(self, camera: Camera, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
        """Floor below the horizon, wall above it: painted, since a floor in PyBullet costs a third of the picture."""
        width, height = size
        column, row = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
        K, T = camera.K.double().numpy(), camera.T_world_camera.double().numpy()
        x = (column * camera.frame_size_px[0] - K[0, 2]) / K[0, 0]
        y = (row * camera.frame_size_px[1] - K[1, 2]) / K[1, 1]
        upward = (T[2, 0] * x + T[2, 1] * y + T[2, 2]) / np.sqrt(x * x + y * y + 1)
        floor = np.asarray(self.spec.floor_colour)
        wall = 0.5 * floor + 0.5
        share = np.clip(0.5 + upward / 0.02, 0, 1)[..., None]
        return np.asarray(255 * (floor + (wall - floor) * share), np.uint8)

    def _labels(self, bodies: np.ndarray) -> UInt8[np.ndarray, "H W"]:
        body, link = bodies & ((1 << 24) - 1), (bodies >> 24) - 1
        empty = bodies < 0
        labels = np.zeros(bodies.shape, np.uint8)
        labels[(body == self._arm) & ~empty] = 1
        labels[(body == self._arm) & np.isin(link, list(self._gripper_links)) & ~empty] = 2
        if self._goal >= 0:
            labels[(body == self._goal) & ~empty] = 3
        for index, uid in self._objects.items():
            labels[(body == uid) & ~empty] = 4 + index
        if self._cabinet >= 0:
            labels[(body == self._cabinet) & (link == 0) & ~empty] = LABELS.index("drawer")
        return labels

    def truth(self) -> Truth:
        """Where the robot and the objects really are."""
        b, c = self._bullet, self._client
        states = b.getJointStates(self._arm, self._arm_joints, physicsClientId=c)
        objects = np.full((len(COLOURS), 3), np.nan)
        turns, yaws = np.full((len(COLOURS), 4), np.nan), np.full(len(COLOURS), np.nan)
        touching = np.zeros(len(COLOURS), bool)
        for index, uid in self._objects.items():
            place, turn = b.getBasePositionAndOrientation(uid, physicsClientId=c)
            objects[index], turns[index] = place, turn
            yaws[index] = b.getEulerFromQuaternion(turn)[2]
            contacts = b.getContactPoints(self._arm, uid, physicsClientId=c)
            touching[index] = any(contact[3] in self._gripper_links for contact in contacts)
        return Truth(
            joints_rad=np.array([s[0] for s in states]),
            closedness=self._closedness(),
            tip=self._link_pose(self._tip_link),
            tool_m=self._link_pose(self._tool_link)[:3, 3],
            objects_m=objects,
            objects_xyzw=turns,
            objects_yaw_rad=yaws,
            touching=touching,
            handle_m=self._handle(),
        )

    def _handle(self) -> Float[np.ndarray, " 3"]:
        if self.spec.drawer is None:
            return np.full(3, np.nan)
        opening = self._bullet.getJointState(self._cabinet, 0, physicsClientId=self._client)[0]
        handle: Float[np.ndarray, " 3"] = np.asarray(self.spec.drawer.handle_m) - [opening, 0.0, 0.0]
        return handle

    def _closedness(self) -> float:
        values = [
            (self._bullet.getJointState(self._arm, joint, physicsClientId=self._client)[0] - offset) / gain
            for joint, (offset, gain) in self._finger_joints.items()
            if joint not in self._hangs_on and abs(gain) > 1e-6
        ]
        return float(np.clip(np.mean(values), 0.0, 1.0))

    def _link_pose(self, link: int) -> Float[np.ndarray, "4 4"]:
        b = self._bullet
        state = b.getLinkState(self._arm, link, computeForwardKinematics=1, physicsClientId=self._client)
        pose = np.eye(4)
        pose[:3, :3] = np.reshape(b.getMatrixFromQuaternion(state[5]), (3, 3))
        pose[:3, 3] = state[4]
        return pose

    # --- branching ---

    def save(self) -> tuple[int, np.ndarray, int]:
        """Keep the present state in memory; `load` returns to it within the same scene (until the next reset)."""
        return self._bullet.saveState(physicsClientId=self._client), self._q.copy(), self._steps

    def load(self, snapshot: tuple[int, np.ndarray, int]) -> None:
        """Return to what `save` gave."""
        self._bullet.restoreState(stateId=snapshot[0], physicsClientId=self._client)
        self._q = snapshot[1].copy()
        self._steps = snapshot[2]


def camera_of(spec: SceneSpec, frame_size_px: tuple[int, int]) -> Camera:
    """The scene's camera at a frame size."""
    c = spec.camera
    return Camera.look_at(
        torch.tensor(c.eye_m, dtype=torch.float64),
        torch.tensor(c.target_m, dtype=torch.float64),
        vertical_fov_rad=c.vertical_fov_rad,
        frame_size_px=frame_size_px,
        roll_rad=c.roll_rad,
    )


def _opengl_matrices(
    camera: Camera, drawn_px: tuple[int, int], near_m: float = 0.05, far_m: float = 6.0
) -> tuple[list[float], list[float]]:
    """OpenCV camera → the column-major view and projection lists that PyBullet takes to draw (width, height) pixels.

    TinyRenderer looks through the lower left corner of each pixel: the picture is shifted by half a pixel to mend that.
    """
    width, height = camera.frame_size_px
    K = camera.K.double().numpy()
    flip = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV looks along +z with y down, OpenGL along −z with y up
    view = flip @ np.linalg.inv(camera.T_world_camera.double().numpy())
    projection = np.zeros((4, 4))
    projection[0, 0] = 2 * K[0, 0] / width
    projection[1, 1] = 2 * K[1, 1] / height
    projection[0, 2] = 1 - 2 * K[0, 2] / width + 1 / drawn_px[0]
    projection[1, 2] = 2 * K[1, 2] / height - 1 + 1 / drawn_px[1]
    projection[2, 2] = -(far_m + near_m) / (far_m - near_m)
    projection[2, 3] = -2 * far_m * near_m / (far_m - near_m)
    projection[3, 2] = -1.0
    return view.T.reshape(-1).tolist(), projection.T.reshape(-1).tolist()


def _resolved_urdf(robot: RobotCard, folder: Path) -> Path:
    """A copy of the card's URDF whose meshes have whole paths: package://pybullet_data is the installed folder."""
    data = require("pybullet_data", "pybullet", "The oracle")
    tree = ElementTree.parse(robot.urdf_path)
    for mesh in tree.getroot().iter("mesh"):
        name = str(mesh.get("filename")).replace("package://pybullet_data", data.getDataPath())
        beside = robot.urdf_path.parent / name
        mesh.set("filename", str(beside) if beside.is_file() else name)
    target = folder / "robot.urdf"
    tree.write(target, encoding="unicode")
    return target


def gripper_scales(robot: RobotCard) -> dict[str, tuple[float, float]]:
    """Per gripper joint of the URDF, mimics included: (position when open, change from open to closed)."""
    scales = {j.name: (j.open_position, j.closed_position - j.open_position) for j in robot.gripper.joints}
    for joint in ElementTree.parse(robot.urdf_path).getroot().iter("joint"):
        mimic = joint.find("mimic")
        if mimic is not None:
            multiplier, offset = float(mimic.get("multiplier", "1")), float(mimic.get("offset", "0"))
            opened, change = scales[str(mimic.get("joint"))]
            scales[str(joint.get("name"))] = (multiplier * opened + offset, multiplier * change)
    return scales
