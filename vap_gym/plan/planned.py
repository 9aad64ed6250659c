"""Planned policies: named settings → a policy that plans, for one env or for `evaluate` with many episodes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vap_gym.errors import VapError, unknown_name
from vap_gym.loading import build_stage
from vap_gym.observations import FRONT
from vap_gym.plan.foresight import Goal
from vap_gym.plan.goals import PictureGoal, read_goal
from vap_gym.plan.gradient import GradientAscent
from vap_gym.plan.icem import Icem
from vap_gym.plan.oracle import OracleForesight
from vap_gym.plan.outlook import ImaginedOutlook, OracleOutlook, of_latents, of_things
from vap_gym.plan.planner import Bounds, Planner
from vap_gym.plan.policy import Driver, Horizon, MpcPolicy, StraightLine, by_task
from vap_gym.plan.sampling import Cem, Mppi, RandomShooting
from vap_gym.policies.known import arrays_digest, sight_digest
from vap_gym.policies.protocol import Conventions, EpisodeStart, Observations
from vap_gym.stage import Stage

DYNAMICS = ("imagination", "oracle", "none")
FORESIGHTS = {"things": of_things, "latents": of_latents}
ELITES = 10  # of so many candidates one is an elite


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What a policy plans with.

    Args:
        card: of the env whose robot, actions and tasks these are.
        dynamics: "imagination" (sees pictures only), "oracle" (plans in a simulator of its own), or "none" (a straight
            line).
        planner: "shooting", "cem", "icem", "mppi" or "gradient" (in imagination, with foresight of things).
        candidates, iterations: of the planner.
        foresight: "things" or "latents": how imagination looks ahead.
        horizon: how far, and how often.
        world_model, judge: names or folders; the card's world model by default.
        device: where the world model runs.
        action_mode: "cartesian_velocity" or "cartesian_delta": bounds of tasks are told in these.
        goal: path of a picture to arrive at, of the world model's size, in the place of the task (in imagination, with
            foresight of latents); "": the task. Bounds of actions, and whether it is solved, stay the task's.
    """

    card: str = "VAP-DROID-v0"
    dynamics: str = "imagination"
    planner: str = "icem"
    candidates: int = 128
    iterations: int = 5
    foresight: str = "things"
    horizon: Horizon = field(default_factory=Horizon)
    world_model: str = ""
    judge: str = "tiny"
    device: str = "cpu"
    action_mode: str = "cartesian_velocity"
    goal: str = field(default="", repr=False)  # policies are known by the picture, not by its path: see PlannedPolicy

    def __post_init__(self) -> None:
        for kind, given, known in (
            ("dynamics", self.dynamics, DYNAMICS),
            ("planner", self.planner, PLANNERS),
            ("foresight", self.foresight, FORESIGHTS),
            ("action mode to plan in", self.action_mode, ("cartesian_velocity", "cartesian_delta")),
        ):
            if given not in known:
                raise unknown_name(kind, given, known)
        if self.goal and (self.dynamics, self.foresight) != ("imagination", "latents"):
            raise VapError(
                "A goal picture is compared with imagined ones: it takes dynamics='imagination' and "
                f"foresight='latents', got '{self.dynamics}' and '{self.foresight}'."
            )

    def stage(self) -> Stage:
        """Return imagination and judge."""
        return build_stage(self.card, world_model=self.world_model or None, judge=self.judge, device=self.device,
            action_mode=self.action_mode,
        )  # fmt: skip

    def sight(self) -> str:
        """Return what world model and judge are known by (see `sight_digest`); "" where no picture is looked at."""
        return "" if self.dynamics == "oracle" else sight_digest(self.card, self.world_model, self.judge)

    def make(self, stage: Stage | None = None, *, chunk: int = 1) -> Driver:
        """Return a policy with a memory of its own.

        Args:
            stage: as `stage()` gives it, if it is there already.
            chunk: control steps that the env takes at once.

        Raises:
            VapError: a goal picture that is missing or has another size.
        """
        stage = self.stage() if stage is None else stage
        bounds = by_task(Bounds.of(stage.action_space))
        seen = ImaginedOutlook(stage, goal=self._goal(stage), foresight=FORESIGHTS[self.foresight])
        if self.dynamics == "none":
            return StraightLine(seen)
        planner: Planner = PLANNERS[self.planner](self.candidates, self.iterations)
        if self.dynamics == "imagination":
            return MpcPolicy(seen, planner, bounds, horizon=self.horizon, chunk=chunk)
        simulated = OracleForesight(stage.rig.robot, stage.rig.controller.mode, every=self.horizon.hold)
        return MpcPolicy(OracleOutlook(simulated), planner, bounds, horizon=self.horizon, chunk=chunk)

    def _goal(self, stage: Stage) -> Goal | None:
        if not self.goal:
            return None
        return PictureGoal(stage.imagination.world, read_goal(self.goal, stage.imagination.world.frame_size_px))


def _elites(candidates: int) -> int:
    return min(candidates, max(4, candidates // ELITES))


PLANNERS: dict[str, Any] = {
    "shooting": lambda n, i: RandomShooting(candidates=n, iterations=i),
    "cem": lambda n, i: Cem(candidates=n, iterations=i, elites=_elites(n)),
    "icem": lambda n, i: Icem(candidates=n, iterations=i, elites=_elites(n)),
    "mppi": lambda n, i: Mppi(candidates=n, iterations=i),
    "gradient": lambda n, i: GradientAscent(candidates=n, iterations=i),
}


class PlannedPolicy:
    """A planning policy among others (`policies.Policy`): each running episode has a planner's memory of its own, and
    with dynamics "oracle" a simulator, which the next episode in its slot goes on with; `close` leaves them.

    Args:
        settings: what it plans with; default: `PlanSettings()`.

    Raises:
        VapError: no picture at the goal's path.
    """

    def __init__(self, settings: PlanSettings | None = None) -> None:
        self.settings = settings or PlanSettings()
        self.looks_through = self.settings.sight()
        self.goal = arrays_digest([("goal", read_goal(self.settings.goal))]) if self.settings.goal else ""
        self._stage: Stage | None = None
        self._driving: dict[int, Driver] = {}

    @property
    def conventions(self) -> Conventions:
        """Velocities, in which tasks are planned; the env is made to take them."""
        return Conventions(action_mode=self.settings.action_mode, convert=("action_mode", "gripper"))

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Begin these episodes."""
        for episode in episodes:
            if episode.slot not in self._driving:
                self._driving[episode.slot] = self.settings.make(self._opened())
            self._driving[episode.slot].begin(episode.start, seed=episode.seed)

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[np.ndarray, "B A"]:
        """Return the next action of every episode that is shown."""
        frames = observations.pixels[FRONT]
        return np.stack([self._driving[slot](frame) for slot, frame in zip(observations.slots, frames, strict=True)])

    def close(self) -> None:
        """End all episodes and leave their simulators; `reset` begins others. Harmless when called twice."""
        for driver in self._driving.values():
            driver.close()
        self._driving = {}

    def _opened(self) -> Stage:
        if self._stage is None:
            self._stage = self.settings.stage()
        return self._stage

    def __getstate__(self) -> dict[str, object]:
        """Its settings: weights and episodes stay behind."""
        return {**self.__dict__, "_stage": None, "_driving": {}}


def card_of(env_id: str) -> str:
    """Return the card's id of an imagined env or its oracle; a card's path is its own."""
    return env_id if Path(env_id).suffix else env_id.replace("-Oracle-", "-")
