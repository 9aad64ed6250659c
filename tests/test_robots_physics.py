"""The new robots in PyBullet: they load whole, stay calm, and their motors reach what is asked for."""

from typing import Any

import numpy as np
import pytest

from vap_gym.cards import RobotCard, load_robot
from vap_gym.sim.scene import gripper_scales

NEW = ("google_robot", "widowx", "hand_21", "hand_21_left")


class Driven:
    """A robot alone under gravity, its motors limited to the URDF's speeds and forces."""

    def __init__(self, bullet: Any, robot: RobotCard) -> None:
        self.b, self.robot = bullet, robot
        self.client = bullet.connect(bullet.DIRECT)
        bullet.setGravity(0, 0, -9.81, physicsClientId=self.client)
        self.body = bullet.loadURDF(str(robot.urdf_path), useFixedBase=True, physicsClientId=self.client)
        count = bullet.getNumJoints(self.body, physicsClientId=self.client)
        infos = [bullet.getJointInfo(self.body, i, physicsClientId=self.client) for i in range(count)]
        self.joint = {info[1].decode(): (info[0], info[10], info[11]) for info in infos}

    def targets(self, q: np.ndarray, closedness: float) -> dict[str, float]:
        fingers = {name: opened + change * closedness for name, (opened, change) in gripper_scales(self.robot).items()}
        return dict(zip(self.robot.arm_joints, map(float, q), strict=True)) | fingers

    def place(self, targets: dict[str, float]) -> None:
        for name, value in targets.items():
            self.b.resetJointState(self.body, self.joint[name][0], value, physicsClientId=self.client)

    def drive(self, targets: dict[str, float], steps: int) -> float:
        """Hold the targets; return the largest speed on the way, as a share of the joint's own limit."""
        peak = 0.0
        for _ in range(steps):
            for name, value in targets.items():
                index, force, speed = self.joint[name]
                self.b.setJointMotorControl2(
                    self.body, index, self.b.POSITION_CONTROL, targetPosition=value, force=force, maxVelocity=speed,
                    positionGain=0.3, physicsClientId=self.client,
                )  # fmt: skip
            self.b.stepSimulation(physicsClientId=self.client)
            peak = max([peak, *(abs(self.state(name)[1]) / self.joint[name][2] for name in targets)])
        return peak

    def state(self, name: str) -> tuple[float, float]:
        return self.b.getJointState(self.body, self.joint[name][0], physicsClientId=self.client)[:2]

    def error(self, targets: dict[str, float]) -> float:
        return max(abs(self.state(name)[0] - value) for name, value in targets.items())


@pytest.mark.parametrize("name", NEW)
def test_motors_hold_the_start_and_reach_a_target_without_a_jolt(name: str) -> None:
    bullet = pytest.importorskip("pybullet")
    robot = load_robot(name)
    driven = Driven(bullet, robot)
    try:
        home = np.array(robot.home_q_rad)
        rest = driven.targets(home, 0.0)
        driven.place(rest)
        assert driven.drive(rest, 60) < 0.05
        assert driven.error(rest) < 0.003
        away = driven.targets(home + 0.2 * np.resize([1, -1], home.shape), 1.0)
        assert driven.error(away) > 0.15
        assert driven.drive(away, 300) < 1.5
        assert driven.error(away) < 0.01
    finally:
        bullet.disconnect(driven.client)


@pytest.mark.parametrize("name", NEW)
def test_links_are_seen_and_solid_and_coloured(name: str) -> None:
    bullet = pytest.importorskip("pybullet")
    driven = Driven(bullet, load_robot(name))
    try:
        shapes = bullet.getVisualShapeData(driven.body, physicsClientId=driven.client)
        seen = {shape[1] for shape in shapes}
        solid = {
            link
            for link in range(-1, len(driven.joint))
            if bullet.getCollisionShapeData(driven.body, link, physicsClientId=driven.client)
        }
        assert seen == solid
        assert len(seen) >= 9
        assert len({shape[7] for shape in shapes}) >= 3, "a robot of one colour"
    finally:
        bullet.disconnect(driven.client)
