"""Episodes of things as a Gymnasium vector env: short, rewarded by the task, seen as a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float

from vap_gym.errors import VapError
from vap_gym.imagine import actions_tensor
from vap_gym.plan.goals import BEHIND_M, LOW_M, PUSH_HEIGHT_M
from vap_gym.policies.seen import FEATURES, Seen, answer_size, checked_task, commands, features
from vap_gym.rl.dynamics import Now, ThingDynamics
from vap_gym.rl.steady import Steady
from vap_gym.sim.spec import SceneSpec
from vap_gym.sim.tasks import progress
from vap_gym.vector import checked_autoreset_mode

Array = np.ndarray
APPROACH_M = 0.3  # a way that counts as much as `approach`
DEEP = 10.0  # what a metre below the height that no operator goes costs in a step
RESIDUE = 0.8  # of the corner's distance, at which a push touches (see `plan.goals.push_from`)


class ThingVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """B short episodes of one task over `ThingDynamics`: imagined, simulated or pictured, and otherwise the same.

    An agent sees `policies.seen.features` and answers with a velocity of the tool in the task's own frame (and one of
    the gripper, to lift). The reward of a step is by how much the steady progress of the task grew, plus `bonus` where
    that solved it (by progress alone, an agent slows down before the goal and hovers there), plus, to push and to lift,
    `approach` for each 30 cm that the tool came nearer to where it must be; going lower than a table allows costs. An
    episode is terminated where the task is solved, and truncated at the horizon or where it is untrusted.

    Args:
        dynamics: what it runs in; all its starts have one task.
        horizon: control steps of an episode.
        hold: control steps that a decision lasts; a step of the env is one decision.
        steady: how many readings must agree.
        approach, bonus: see above.
        autoreset_mode: "SameStep" (for SB3) or "Disabled" (for TorchRL; `reset(options={"reset_mask": mask})`).

    Raises:
        VapError: starts of several tasks, a horizon that is no multiple of hold, or another autoreset mode.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # type: ignore[misc]

    def __init__(
        self,
        dynamics: ThingDynamics,
        *,
        horizon: int = 20,
        hold: int = 1,
        steady: Steady | None = None,
        approach: float = 0.5,
        bonus: float = 1.0,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        tasks = sorted({scene_of(dynamics, i).task for i in range(len(dynamics.starts))})
        if len(tasks) != 1:
            raise VapError(f"A ThingVectorEnv has one task, got starts of {', '.join(tasks)}. Give those of one.")
        if hold < 1 or horizon < hold or horizon % hold:
            raise VapError(f"horizon must be a multiple of hold, both at least 1, got {horizon} and {hold}.")
        mode = checked_autoreset_mode(autoreset_mode)
        if mode is AutoresetMode.NEXT_STEP:
            raise VapError("A ThingVectorEnv resets in the 'SameStep' or 'Disabled', got 'NextStep'.")
        self.dynamics, self.task, self.horizon, self.hold = dynamics, checked_task(tasks[0]), horizon, hold
        self.steady, self.approach = steady or Steady(), 0.0 if self.task == "reach" else approach
        self.bonus = bonus
        self.num_envs, self.autoreset_mode = dynamics.slots, mode
        self.metadata = {"autoreset_mode": mode}  # type: ignore[misc]
        size = answer_size(self.task)
        self.single_observation_space = spaces.Box(-20.0, 20.0, (FEATURES,), np.float32)
        self.single_action_space = spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._rng = np.random.default_rng()
        B = self.num_envs
        self._which = np.zeros(B, np.int64)
        self._tool_start_m, self._object_start_m, self._before_m = (np.zeros((B, 3)) for _ in range(3))
        self._goal_m, self._table_z_m = np.zeros((B, 2)), np.zeros(B)
        self._memory, self._progress = self.steady.begin(B), np.zeros(B)
        self._potential, self._total, self._clock = np.zeros(B), np.zeros(B), np.zeros(B, np.int64)
        self._now: Now | None = None

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Float[Array, "B F"], dict[str, Any]]:
        """Begin an episode in every slot, or in those of `options["reset_mask"]`; `seed` is of what is drawn from now
        on (an integer, or one per slot). `options["which"]`: numbers of `dynamics.starts`, one per slot that begins."""
        given = [] if seed is None else [seed] if isinstance(seed, int | np.integer) else list(seed)
        if any(part is not None for part in given):
            self._rng = np.random.default_rng([0 if part is None else int(part) for part in given])
        mask = (options or {}).get("reset_mask")
        if mask is not None and (getattr(mask, "shape", None) != (self.num_envs,) or mask.dtype != bool):
            raise VapError(f"reset_mask must be bool of shape ({self.num_envs},), got {getattr(mask, 'shape', mask)}.")
        rows = list(range(self.num_envs)) if mask is None else np.flatnonzero(mask).tolist()
        which = (options or {}).get("which")
        known = len(self.dynamics.starts)
        if which is not None and (len(which) != len(rows) or not all(0 <= number < known for number in which)):
            raise VapError(f"which must be {len(rows)} numbers of starts from 0 to {known - 1}, got {list(which)}.")
        self._begin(rows, which)
        return self._observation(), {}

    def step(
        self, actions: object
    ) -> tuple[Float[Array, "B F"], Float[Array, " B"], Bool[Array, " B"], Bool[Array, " B"], dict[str, Any]]:
        """Let a decision in every slot last its control steps; actions (B, a) are clipped to [−1, 1].

        Raises:
            ActionError: actions of the wrong shape or type, or not finite.
        """
        assert self.single_action_space.shape is not None
        answers = actions_tensor(actions, shape=(self.num_envs, *self.single_action_space.shape)).numpy()
        told = commands(answers.clip(-1.0, 1.0), self._seen(), self.task)
        self._before_m = self._current().tool_m
        rewards, over = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        solved, lost = over.copy(), over.copy()
        for _ in range(self.hold):
            self.dynamics.step(told)
            self._now = self.dynamics.now()
            gained, done = self._score(~over)
            rewards += gained
            lost |= self._now.untrusted & ~over
            solved |= done & ~over & ~lost  # what nobody can know is no success
            over = solved | lost
        rewards += self.bonus * solved
        self._clock += self.hold
        self._total += rewards
        truncated = lost | ((self._clock >= self.horizon) & ~solved)
        infos: dict[str, Any] = {}
        observation = self._observation()
        ended = solved | truncated
        if self.autoreset_mode is AutoresetMode.SAME_STEP and ended.any():
            infos = self._ended(observation, ended, solved, lost)
            self._begin(np.flatnonzero(ended).tolist())
            observation = self._observation()
        elif self.autoreset_mode is AutoresetMode.DISABLED:
            every = np.ones(self.num_envs, bool)
            infos = {"is_success": solved, "_is_success": every, "untrusted": lost, "_untrusted": every}
        return observation, rewards, solved, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Give back what the dynamics hold."""
        self.dynamics.close()

    def _begin(self, rows: Sequence[int], given: Sequence[int] | None = None) -> None:
        """Begin in some slots, each from a start that is drawn, or given."""
        rows = list(rows)
        drawn = self._rng.integers(len(self.dynamics.starts), size=len(rows))
        which = drawn if given is None else np.asarray(given, np.int64)
        self.dynamics.begin(rows, which.tolist(), self._rng)
        self._now = now = self.dynamics.now()
        self._which[rows] = which
        scenes = [scene_of(self.dynamics, number) for number in which.tolist()]
        self._goal_m = _put(self._goal_m, rows, np.array([scene.goal_xy_m for scene in scenes]))
        self._table_z_m = _put(self._table_z_m, rows, np.array([scene.table_z_m for scene in scenes]))
        self._tool_start_m = _put(self._tool_start_m, rows, now.reached_m[rows])
        self._object_start_m = _put(self._object_start_m, rows, now.object_m[rows])
        self._before_m = _put(self._before_m, rows, now.tool_m[rows])
        self._memory = _put(self._memory, rows, self.steady.begin(len(rows)))
        self._potential = _put(self._potential, rows, self._nearness()[rows])
        for name in ("_progress", "_total", "_clock"):
            setattr(self, name, _put(getattr(self, name), rows, np.zeros(len(rows))))

    def _score(self, running: Bool[Array, " B"]) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
        """The rewards of a control step of the slots that still run, and whether they are solved."""
        now, readings = self._current(), np.zeros(self.num_envs)
        for i in np.flatnonzero(running).tolist():
            readings[i] = progress(
                scene_of(self.dynamics, int(self._which[i])), now.reached_m[i], now.object_m[i],
                start_tool_m=self._tool_start_m[i], start_object_m=self._object_start_m[i],
            )  # fmt: skip
        self._memory, steady = self.steady(self._memory, readings)
        nearness = self._nearness()
        deep = np.maximum(self._table_z_m + LOW_M - now.tool_m[:, 2], 0.0)
        gained = steady - self._progress + nearness - self._potential - DEEP * deep
        self._progress, self._potential = np.where(running, steady, self._progress), nearness
        return np.where(running, gained, 0.0), steady >= 1.0

    def _nearness(self) -> Float[Array, " B"]:
        """How near the tool is to where it must be before it can change anything: a potential."""
        if not self.approach:
            return np.zeros(self.num_envs)
        now = self._current()
        aim = now.object_m.copy()
        if self.task == "push":
            way = self._goal_m - aim[:, :2]
            ahead = way / (np.linalg.norm(way, axis=-1, keepdims=True) + 1e-3)
            aim[:, :2] -= (RESIDUE * np.sqrt(2.0) * now.size_m + BEHIND_M)[:, None] * ahead
            aim[:, 2] = self._table_z_m + PUSH_HEIGHT_M
        return np.asarray(-self.approach * np.linalg.norm(aim - now.tool_m, axis=-1) / APPROACH_M)

    def _current(self) -> Now:
        if self._now is None:
            raise VapError("The env has no state yet. Call reset() first.")
        return self._now

    def _seen(self) -> Seen:
        now = self._current()
        return Seen(
            tool_m=now.tool_m, before_m=self._before_m, closedness=now.closedness, yaw_rad=now.yaw_rad,
            object_m=now.seen_m, size_m=now.size_m, goal_m=self._goal_m, table_z_m=self._table_z_m,
        )  # fmt: skip

    def _observation(self) -> Float[Array, "B F"]:
        return features(self._seen(), self.task)

    def _ended(self, observation: Array, ended: Array, solved: Array, lost: Array) -> dict[str, Any]:
        """The infos of slots that ended, as Gymnasium's vector envs give them."""
        last = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(ended).tolist():
            last[i] = observation[i]
        told = {
            "is_success": solved, "untrusted": lost, "progress": self._progress.copy(),
            "steps": self._clock.copy(), "reward_sum": self._total.copy(), "start": self._which.copy(),
        }  # fmt: skip
        final: dict[str, Any] = {}
        for name, values in told.items():
            final |= {name: values, f"_{name}": ended}
        return {"final_obs": last, "_final_obs": ended, "final_info": final, "_final_info": ended}


def scene_of(dynamics: ThingDynamics, number: int) -> SceneSpec:
    """Return the scene of a start. Raises VapError for a picture alone."""
    scene = dynamics.starts[number].scene
    if scene is None:
        raise VapError(f"Start {number} must have a scene with a task, got a picture alone.")
    return scene


def _put(values: Array, rows: Sequence[int], fresh: Array) -> Array:
    """A copy with some rows replaced."""
    values = values.copy()
    values[list(rows)] = fresh
    return values
