"""Policies that plan: model predictive control with a limit on how often, and a straight line to compare with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8

from vap_gym.env import VapEnv
from vap_gym.errors import VapError
from vap_gym.observations import FRONT, Observation, read_about
from vap_gym.oracle_env import OracleEnv
from vap_gym.plan.goals import push_from
from vap_gym.plan.outlook import SEEDS, ImaginedOutlook, Outlook
from vap_gym.plan.planner import Bounds, Plan, Planner, held
from vap_gym.starts import Start


@runtime_checkable
class Driver(Protocol):
    """Drives one robot, one episode at a time."""

    def begin(self, start: Start, *, seed: int = 0) -> None:
        """Begin an episode."""
        ...

    def __call__(self, observation: Observation, info: Mapping[str, Any] | None = None) -> np.ndarray:
        """Return the next action."""
        ...

    def close(self) -> None:
        """Let go of what it holds, such as a simulator; it is not used again."""
        ...


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """How far ahead a policy plans, how finely, and how often.

    Args:
        actions: of a plan; each is held for `hold` control steps.
        hold: control steps.
        execute: control steps of a plan that are done before the next one is made.
        most_plans: in an episode; after the last one, it is done to its end, and then nothing more.
        budget_s: of a plan; None: as long as it takes.
    """

    actions: int = 8
    hold: int = 4
    execute: int = 12
    most_plans: int = 8
    budget_s: float | None = 5.0

    def __post_init__(self) -> None:
        if min(self.actions, self.hold, self.execute, self.most_plans) < 1 or self.execute > self.steps:
            raise VapError(
                f"actions, hold, execute and most_plans must be at least 1, and execute at most actions·hold "
                f"({self.steps}), got {self.actions}, {self.hold}, {self.execute} and {self.most_plans}."
            )
        if self.execute % self.hold:
            raise VapError(f"execute must be a multiple of hold ({self.hold}), got {self.execute}.")

    @property
    def steps(self) -> int:
        """Control steps of a plan."""
        return self.actions * self.hold


class MpcPolicy:
    """Model predictive control as a policy: `policy.begin(start)`, then `action = policy(observation)` step by step.

    It plans when the last plan's share is done, from what it sees then, beginning the search from what is left of the
    last plan. An action is (A,), or with `chunk` (c, A), as the env's action space is.

    Args:
        outlook: what it knows of the episode, and how it looks ahead.
        planner: how it searches.
        bounds: of actions; or what they are in an episode that begins there, as `by_task` makes it.
        horizon: how far and how often.
        chunk: control steps that the env takes at once.
    """

    def __init__(
        self,
        outlook: Outlook,
        planner: Planner,
        bounds: Bounds | Callable[[Start], Bounds],
        *,
        horizon: Horizon | None = None,
        chunk: int = 1,
    ) -> None:
        self.outlook, self.planner, self.chunk = outlook, planner, chunk
        self._bounds = bounds
        self.horizon = horizon or Horizon()
        self.plans: list[Plan] = []
        self._left: list[np.ndarray] | None = None

    def begin(self, start: Start, *, seed: int = 0) -> None:
        """Begin an episode; `start_of(env)` tells the start of an env that was reset."""
        self.outlook.begin(start, seed)
        self.bounds = self._bounds if isinstance(self._bounds, Bounds) else self._bounds(start)
        self.plans, self._left, self._done, self._seed = [], [], 0, seed

    def __call__(self, observation: Observation, info: Mapping[str, Any] | None = None) -> np.ndarray:
        """Return the next action, float32. Raises VapError before `begin`."""
        if self._left is None:
            raise VapError("The policy has no episode yet. Call begin(start) first, e.g. begin(start_of(env)).")
        actions = np.stack([self._next(front_of(observation)) for _ in range(self.chunk)])
        return actions if self.chunk > 1 else actions[0]

    def close(self) -> None:
        """Let go of what its outlook holds."""
        self.outlook.close()

    def _next(self, frame: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, " A"]:
        assert self._left is not None
        due = self._done % self.horizon.execute == 0 and len(self.plans) < self.horizon.most_plans
        if due:
            self._left = list(self._plan(frame))
        self._done += 1
        rest = self.bounds.clip(torch.zeros_like(self.bounds.low)).numpy()
        action = self._left.pop(0) if self._left else rest
        self.outlook.act(action)
        return action

    def _plan(self, frame: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "T A"]:
        began, horizon = time.perf_counter(), self.horizon
        last = self.plans[-1].ahead(horizon.execute // horizon.hold) if self.plans else None
        score = self.outlook.score(frame, hold=horizon.hold)
        looked_s = time.perf_counter() - began
        plan = self.planner.plan(
            score, self.bounds, horizon.actions, start=last, seed=(1000 * self._seed + len(self.plans)) % SEEDS,
            budget_s=None if horizon.budget_s is None else horizon.budget_s - looked_s,
        )  # fmt: skip
        self.plans.append(replace(plan, seconds=looked_s + plan.seconds))
        return held(plan.actions, horizon.hold).numpy().astype(np.float32)


class StraightLine:
    """No model: goes straight to where the first picture shows the object; to push, straight to behind it, then to the
    goal. What happens on the way it does not see.

    Args:
        outlook: reads the first picture, and knows where the commands lead the tool.
    """

    def __init__(self, outlook: ImaginedOutlook) -> None:
        self.outlook = outlook
        self._way: list[np.ndarray] | None = None

    def begin(self, start: Start, *, seed: int = 0) -> None:
        """Look at the first picture. Raises VapError for other tasks than reach and push."""
        if start.scene is None or start.scene.task not in ("reach", "push"):
            task = None if start.scene is None else start.scene.task
            raise VapError(f"A straight line can reach and push, got the task {task}. Plan instead.")
        mode = self.outlook.stage.rig.controller.mode
        if mode != "cartesian_velocity":
            raise VapError(f"A straight line is told in cartesian_velocity, got an env that takes {mode}.")
        self.outlook.begin(start, seed)
        object_m = self.outlook.objects_m[0, start.scene.target]
        self._way, self._closing = [object_m.numpy()], 0.0
        if start.scene.task == "push":
            behind = push_from(start.scene, object_m).numpy()
            radius = 0.8 * float(np.hypot(*start.scene.target_object.half_extents_m[:2]))
            goal = np.array([*start.scene.goal_xy_m, behind[2]])
            ahead = (goal - behind) / max(float(np.linalg.norm(goal - behind)), 1e-6)
            self._way, self._closing = [behind, goal - radius * ahead], 1.0  # the object's centre is that far ahead

    def __call__(self, observation: Observation, info: Mapping[str, Any] | None = None) -> np.ndarray:
        """Return the next action, float32 (7,), in DROID's velocities."""
        if self._way is None:
            raise VapError("The policy has no episode yet. Call begin(start) first, e.g. begin(start_of(env)).")
        imagination = self.outlook.stage.imagination
        tool_m = imagination.look(self.outlook.state).tool_m[0, 0].numpy()
        if len(self._way) > 1 and float(np.linalg.norm(self._way[0] - tool_m)) < 0.015:
            self._way.pop(0)
        card = imagination.rig.robot.controller
        move = 0.3 / (card.gain * card.linear_step_m) * (self._way[0] - tool_m)
        move = move / max(float(np.linalg.norm(move)), 1.0)
        action = np.array([*move, 0.0, 0.0, 0.0, self._closing], np.float32)
        self.outlook.act(action)
        return action

    def close(self) -> None:
        """Let go of what its outlook holds."""
        self.outlook.close()


def task_bounds(space: Bounds, task: str) -> Bounds:
    """Return the bounds to plan a task in, of actions that are velocities of the tool and the gripper: turning is left
    out, and the gripper where it is not needed (closing to push, still to reach)."""
    last = len(space.low) - 1
    turning = dict.fromkeys(range(3, last), 0.0)
    gripper = {} if task not in ("reach", "push") else {last: float(space.high[-1]) if task == "push" else 0.0}
    return space.held(turning | gripper)


def by_task(space: Bounds) -> Callable[[Start], Bounds]:
    """Return `task_bounds` as they are in an episode that begins there."""

    def bounds(start: Start) -> Bounds:
        return task_bounds(space, "" if start.scene is None else start.scene.task)

    return bounds


def front_of(observation: Observation) -> UInt8[np.ndarray, "H W 3"]:
    """Return the front camera's picture of an observation of any kind."""
    pixels = observation["pixels"] if isinstance(observation, Mapping) else observation
    frame: np.ndarray = pixels[FRONT] if isinstance(pixels, Mapping) else pixels
    return frame


def start_of(env: Any) -> Start:
    """Return the moment in which an env is, of imagination or of the oracle, as a start: picture, camera, robot, task.

    Raises:
        VapError: another kind of env, or one that was not reset.
    """
    inner = env.unwrapped
    if isinstance(inner, OracleEnv):
        return inner.start
    if not isinstance(inner, VapEnv):
        raise VapError(f"start_of takes a VapEnv or an OracleEnv, got {type(inner).__name__}. Build a Start yourself.")
    state = inner.state
    instruction, scene = read_about(state["about"][0])
    camera = inner.stage.imagination.camera(state)
    return Start(
        frame=state["frame"][0].numpy(),
        camera=type(camera)(K=camera.K[0], T_world_camera=camera.T_world_camera[0], frame_size_px=camera.frame_size_px),
        q_rad=state["robot_q"][0].numpy().astype(np.float64),
        closedness=float(state["robot_gripper"][0]),
        instruction=instruction,
        scene=scene,
        sway=tuple(state["camera_sway"][0].tolist()),
    )
