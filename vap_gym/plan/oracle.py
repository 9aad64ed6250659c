"""Foresight in the simulator: a scene of its own is kept in step with an episode, and tries out every candidate."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vap_gym.cards import RobotCard
from vap_gym.errors import VapError
from vap_gym.kinematics import Controller, RobotState
from vap_gym.plan.foresight import Foreseen, moments
from vap_gym.sim.scene import Scene
from vap_gym.sim.spec import COLOURS
from vap_gym.starts import Start


class OracleForesight:
    """What PyBullet says follows from candidates: the same scene, controller and motors as `OracleEnv`'s.

    It holds a copy of an episode: `begin` builds it, `act` takes it on by what was done, and a call tries candidates
    from there. PyBullet's saved states come back a millimetre or so off where things touch, so that the copy is told
    the whole episode again before each call after the first.

    Args:
        robot: whose scene it is.
        action_mode: of the actions.
        every: control steps from one moment that is told to the next; the last step always is.

    Raises:
        MissingDependencyError: pybullet is not installed.
    """

    slots = 1

    def __init__(self, robot: RobotCard, action_mode: str, *, every: int = 4) -> None:
        self._controller = Controller(robot, action_mode)
        self._scene = Scene(robot)
        self._every = every
        self._robot: RobotState | None = None

    def begin(self, start: Start) -> None:
        """Build the scene of a start. Raises VapError for a picture without a scene."""
        if start.scene is None:
            raise VapError("The simulator needs a start with a scene, got a picture alone. Plan in imagination.")
        self._start, self._path, self._told = start, list[tuple[np.ndarray, float]](), -1
        q = torch.from_numpy(np.asarray(start.q_rad, np.float32))[None]
        self._robot = self._controller.start(q, torch.tensor([start.closedness]))

    def act(self, action: Float[np.ndarray, " A"]) -> None:
        """Note what was done in the episode."""
        robot, _ = self._controller.step(self._now, torch.from_numpy(np.asarray(action, np.float32))[None])
        self._robot = robot
        self._path.append((robot.q[0].double().numpy(), float(robot.gripper[0])))

    def __call__(self, actions: Float[Tensor, "M T A"]) -> Foreseen:
        """Return the futures of M action sequences at some moments."""
        M, T, _ = actions.shape
        robot = RobotState(**{name: value.expand(M, *value.shape[1:]) for name, value in vars(self._now).items()})
        ways: list[RobotState] = []
        for t in range(T):
            robot, _ = self._controller.step(robot, actions[:, t])
            ways.append(robot)
        present = self._present()
        rows = moments(range(1, T + 1), self._every)
        tool = np.zeros((M, len(rows), 3), np.float32)
        objects = np.zeros((M, len(rows), len(COLOURS), 3), np.float32)
        for m in range(M):
            self._scene.load(present)
            for t, way in enumerate(ways):
                self._scene.step(way.q[m].double().numpy(), float(way.gripper[m]))
                if t in rows:
                    truth, row = self._scene.truth(), rows.index(t)
                    tool[m, row], objects[m, row] = truth.tool_m, truth.objects_m
        return Foreseen(
            tool_m=torch.from_numpy(tool),
            closedness=torch.stack([ways[t].gripper for t in rows], 1),
            objects_m=torch.from_numpy(objects),
            steps=tuple(t + 1 for t in rows),
        )

    def _present(self) -> tuple[int, np.ndarray, int]:
        """Bring the copy to where the episode is, and return its saved state: again the same while nothing is done."""
        if self._told != len(self._path):
            assert self._start.scene is not None
            self._scene.reset(self._start.scene, self._start.q_rad, self._start.closedness)
            for q_rad, closedness in self._path:
                self._scene.step(q_rad, closedness)
            self._told, self._saved = len(self._path), self._scene.save()
        return self._saved

    def close(self) -> None:
        """Leave PyBullet."""
        self._scene.close()

    @property
    def _now(self) -> RobotState:
        if self._robot is None:
            raise VapError("The simulator's copy has no episode yet. Call begin(start) first.")
        return self._robot
