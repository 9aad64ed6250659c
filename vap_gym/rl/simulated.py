"""Simulated things: the same episodes in PyBullet, without pictures: what training in imagination is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from vap_gym.cards import RobotCard
from vap_gym.errors import VapError
from vap_gym.kinematics import RobotState
from vap_gym.policies.things import any_camera, tool_and_yaw
from vap_gym.rig import Rig
from vap_gym.rl.dynamics import Now, noise_of
from vap_gym.sim.scene import Scene
from vap_gym.starts import Start
from vap_gym.trust.signals import PLACE_M

Array = np.ndarray


class SimulatedThings:
    """B scenes of the simulator. Places are true ones; with `noise` the agent sees objects beside theirs, as far as the
    finder errs.

    Args:
        robot: whose scenes they are.
        starts: where episodes may begin; each with a scene.
        slots: B; each is a PyBullet world of its own.
        noise: see above.

    Raises:
        MissingDependencyError: pybullet is not installed; VapError: a start without a scene.
    """

    def __init__(self, robot: RobotCard, starts: Sequence[Start], slots: int, *, noise: bool = True) -> None:
        if not starts or any(start.scene is None for start in starts):
            raise VapError("The simulator needs starts with a scene, got none, or pictures alone.")
        self.starts, self.slots = tuple(starts), slots
        self._noise_m = PLACE_M if noise else 0.0
        self._rig = Rig(robot, action_mode="cartesian_velocity", frame_size_px=(144, 96))
        self._camera = any_camera(self._rig)
        self._scenes = [Scene(robot) for _ in range(slots)]
        home = torch.tensor(robot.home_q_rad, dtype=torch.float32).expand(slots, -1)
        self._robot = self._rig.controller.start(home, torch.zeros(slots))
        self._beside_m = np.zeros((slots, 3))
        self._size_m = np.zeros(slots)

    def begin(self, rows: Sequence[int], which: Sequence[int], rng: np.random.Generator) -> None:
        """Build the scenes of some slots; the others are not touched."""
        self._beside_m[list(rows)] = noise_of(rng, len(rows), self._noise_m)
        q, closedness = self._robot.q.clone(), self._robot.gripper.clone()
        for row, number in zip(rows, which, strict=True):
            start = self.starts[number]
            assert start.scene is not None
            self._scenes[row].reset(start.scene, start.q_rad, start.closedness)
            q[row] = torch.from_numpy(np.asarray(start.q_rad, np.float32))
            closedness[row] = start.closedness
            half = start.scene.target_object.half_extents_m if start.scene.target >= 0 else (0.0, 0.0)
            self._size_m[row] = float(np.mean(half[:2]))
        fresh = torch.zeros(self.slots, dtype=torch.bool)
        fresh[list(rows)] = True
        self._robot = self._robot.where(fresh, self._rig.controller.start(q, closedness))

    def step(self, actions: Float[Array, "B 7"]) -> None:
        """Move on by a control step."""
        self._robot, _ = self._rig.controller.step(self._robot, torch.from_numpy(np.asarray(actions, np.float32)))
        q, closedness = self._robot.q.double().numpy(), self._robot.gripper.tolist()
        for i, scene in enumerate(self._scenes):
            scene.step(q[i], closedness[i])

    def now(self) -> Now:
        """Return how the slots stand."""
        truths = [scene.truth() for scene in self._scenes]
        tool_m, yaw_rad = tool_and_yaw(self._rig, self.robot)
        object_m = np.stack([truth.target_m(scene.spec) for truth, scene in zip(truths, self._scenes, strict=True)])
        return Now(
            tool_m=tool_m,
            reached_m=np.stack([truth.tool_m for truth in truths]),
            closedness=self.robot.gripper.double().numpy(),
            yaw_rad=yaw_rad,
            object_m=object_m,
            seen_m=object_m + self._beside_m,
            size_m=self._size_m.copy(),
            untrusted=np.zeros(self.slots, bool),
        )

    @property
    def robot(self) -> RobotState:
        """The robots as they are commanded, batch (B,)."""
        return self._robot

    def close(self) -> None:
        """Leave PyBullet."""
        for scene in self._scenes:
            scene.close()
