"""Scripted policies: the simulator's experts, told where the task's object is, as good or as bad as you like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from vap_gym.cards import load_robot
from vap_gym.errors import unknown_name
from vap_gym.kinematics import RobotState
from vap_gym.policies.protocol import Conventions, EpisodeStart, Observations, PolicyError
from vap_gym.scripted import resting_truth
from vap_gym.sim.experts import BEHAVIOURS, ScriptedPolicy
from vap_gym.sim.rollout import NominalRobot
from vap_gym.sim.scene import Truth
from vap_gym.sim.spec import SceneSpec

Array = np.ndarray


@dataclass(kw_only=True, eq=False)
class _Playing:
    """One running episode: its script, and the robot as the script's own commands move it."""

    scene: SceneSpec
    script: ScriptedPolicy
    state: RobotState
    truth: Truth  # as things stand at first; the task's object is where it is seen
    error_m: Float[Array, " 3"]


class ScriptedExpert:
    """An expert that knows the scene and is told where the task's object is: by the judge in imagination, truly in the
    simulator. The other objects it takes to stay where they were, and all to stay turned as they were.

    Args:
        robot: the robot's name or folder.
        behaviour: "expert", "failing", "play", "random" or "noop".
        noise: standard deviation of the smooth noise on its motion; 0: none, .35: the most that training saw.
        bias_m: how far beside its true place it sees the object, in a direction of each episode's own.
    """

    def __init__(
        self, robot: str | Path = "panda_robotiq", *, behaviour: str = "expert", noise: float = 0.0, bias_m: float = 0.0
    ) -> None:
        if behaviour not in BEHAVIOURS:
            raise unknown_name("behaviour", behaviour, BEHAVIOURS)
        if noise < 0 or bias_m < 0:
            raise PolicyError(f"noise and bias_m must be 0 or more, got {noise} and {bias_m}. Try 0.2 and 0.02.")
        self.robot, self.behaviour, self.noise, self.bias_m = robot, behaviour, noise, bias_m
        self._nominal: NominalRobot | None = None
        self._playing: dict[int, _Playing] = {}

    @property
    def conventions(self) -> Conventions:
        """DROID's velocities; the env is made to take them."""
        return Conventions(action_mode="cartesian_velocity", convert=("action_mode", "gripper"))

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Begin a script for each episode.

        Raises:
            PolicyError: a start without a scene: there is nothing to script.
        """
        if self._nominal is None:
            self._nominal = NominalRobot(load_robot(self.robot))
        for episode in episodes:
            start, scene = episode.start, episode.start.scene
            if scene is None:
                raise PolicyError(
                    f"A scripted expert needs a start with a scene, got start {episode.number}, a picture alone. Use "
                    "the shipped starts, or another policy."
                )
            nominal = self._nominal
            q = torch.from_numpy(np.asarray(start.q_rad, np.float64))[None]
            state = nominal.controller.start(q, torch.tensor([start.closedness], dtype=torch.float64))
            angle = np.random.default_rng([episode.seed, 5557]).uniform(-np.pi, np.pi)
            script = ScriptedPolicy(
                scene, self.behaviour, episode.seed, noise=self.noise, controller=nominal.controller.robot.controller
            )
            self._playing[episode.slot] = _Playing(
                scene=scene,
                script=script,
                state=state,
                truth=resting(scene, nominal, state),
                error_m=self.bias_m * np.array([np.cos(angle), np.sin(angle), 0.0]),
            )

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next actions."""
        return np.stack(
            [self._next(slot, seen_m) for slot, seen_m in zip(observations.slots, observations.target_m, strict=True)]
        )

    def _next(self, slot: int, seen_m: Float[Array, " 3"]) -> Float[Array, " 7"]:
        playing, nominal = self._playing[slot], self._nominal
        assert nominal is not None
        action = playing.script(sighted(playing, seen_m), nominal.tool(playing.state))
        playing.state, _ = nominal.controller.step(playing.state, torch.from_numpy(action).double()[None])
        return action

    def __getstate__(self) -> dict[str, object]:
        """Its settings: scripts that are running stay behind."""
        return {**self.__dict__, "_nominal": None, "_playing": {}}


def resting(scene: SceneSpec, nominal: NominalRobot, state: RobotState) -> Truth:
    """Return where things are before anything moved, from the scene's specification alone."""
    truth = resting_truth(scene, nominal.tip(state), nominal.tool_m(state))
    objects_m = truth.objects_m.copy()
    for item in scene.objects:
        objects_m[item.index, 2] = scene.table_z_m + item.half_extents_m[0 if item.lying else 2]
    handle_m = truth.handle_m
    if scene.drawer is not None:
        handle_m = np.array(scene.drawer.handle_m) - [scene.drawer.opening_m, 0.0, 0.0]
    return replace(truth, objects_m=objects_m, handle_m=handle_m)


def sighted(playing: _Playing, seen_m: Float[Array, " 3"]) -> Truth:
    """Return the resting truth with the task's object where it is seen, beside its place by the episode's error."""
    truth, scene = playing.truth, playing.scene
    if scene.is_about_drawer:
        place = seen_m if np.isfinite(seen_m).all() else truth.handle_m
        return replace(truth, handle_m=place + playing.error_m)
    objects_m = truth.objects_m.copy()
    if np.isfinite(seen_m).all():
        objects_m[scene.target] = seen_m
    objects_m[scene.target] += playing.error_m
    return replace(truth, objects_m=objects_m)
