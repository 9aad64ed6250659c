"""Arenas: several episodes side by side, imagined in one batch or simulated one by one, behind one small protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium.utils import seeding
from jaxtyping import Float, UInt8
from tensordict import TensorDict

from vap_gym.cards import load_env, load_robot
from vap_gym.errors import VapError
from vap_gym.evaluate.policies_trials import Setting, Trial
from vap_gym.loading import StartSource, build_stage
from vap_gym.observations import FRONT
from vap_gym.oracle_env import OracleEnv
from vap_gym.outcome import Outcome
from vap_gym.policies import Observations, Site, site_of
from vap_gym.rig import Rig
from vap_gym.stage import Stage
from vap_gym.starts import Start

Array = np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """What one episode shows after a step, and how it stands."""

    pixels: Mapping[str, UInt8[Array, "H W 3"]]  # by view
    agent_pos: Float[Array, " m"]  # joints [rad] and closedness
    tip: Float[Array, " 6"]
    target_m: Float[Array, " 3"]
    instruction: str
    progress: float
    success: bool
    source: str  # who says so: "judge", "truth", or "none: …" and why
    trust: Mapping[str, float]
    prompt: UInt8[Array, "H W 3"] | None = None  # of the first view, where the arena keeps them


@runtime_checkable
class Arena(Protocol):
    """Several episodes side by side. One batch at a time."""

    @property
    def site(self) -> Site:
        """What it shows and takes."""
        ...

    def begin(self, trials: Sequence[Trial]) -> tuple[list[Start], list[Moment]]:
        """Begin an episode for each trial; those before are over."""
        ...

    def step(self, rows: Sequence[int], actions: Float[Array, "b A"]) -> list[Moment]:
        """Go on with some of the episodes, by their places among the trials; the others are over."""
        ...


class ImaginedArena:
    """Episodes that are imagined in one batch. One that has ended leaves it."""

    def __init__(self, setting: Setting, *, prompts: bool = False) -> None:
        self._prompts = prompts
        self._stage: Stage = build_stage(
            setting.card,
            world_model=setting.world_model or None,
            device=setting.device,
            action_mode=setting.action_mode,
            obs_type="pixels_agent_pos",
            judge=setting.judge,
            views=setting.views,
        )
        if self._stage.chunk != 1:
            raise VapError(
                "Policies are evaluated with world models that imagine single steps, got one that imagines "
                f"{self._stage.chunk} at once. Use another world_model."
            )
        self._source = StartSource(
            self._stage.rig, self._stage.card, camera=None, task=setting.task, starts=setting.starts_file or None,
            viewpoints=self._stage.extra.viewpoints,
        )  # fmt: skip
        self._state: TensorDict | None = None
        self._rows: list[int] = []
        self._site = site_of(self._stage.rig, self._stage.card.fps, setting.views)

    @property
    def site(self) -> Site:
        """What it shows and takes."""
        return self._site

    def begin(self, trials: Sequence[Trial]) -> tuple[list[Start], list[Moment]]:
        """Begin as `VapEnv.reset(seed=trial.world_seed, options={"start": trial.start})` does."""
        starts, noises = [], []
        for trial in trials:
            rng, _ = seeding.np_random(trial.world_seed)
            noises.append(int(rng.integers(2**63 - 1)))
            starts.append(self._source.choose({"start": trial.start}, rng))
        self._state, self._rows = self._stage.begin(starts, noises), list(range(len(trials)))
        infos = self._stage.reset_infos(self._state, self._rows)
        return starts, [self._moment(self._state, i, info) for i, info in enumerate(infos)]

    def step(self, rows: Sequence[int], actions: Float[Array, "b A"]) -> list[Moment]:
        """Imagine one step of these episodes."""
        assert self._state is not None
        state = self._state
        if list(rows) != self._rows:
            state = state[torch.tensor([self._rows.index(row) for row in rows])]
        outcome: Outcome
        self._state, outcome = self._stage.advance(state, torch.from_numpy(actions)[:, None])
        self._rows = list(rows)
        infos = [self._stage.info(self._state, outcome, i) for i in range(len(rows))]
        return [self._moment(self._state, i, info) for i, info in enumerate(infos)]

    def _moment(self, state: TensorDict, i: int, info: Mapping[str, Any]) -> Moment:
        seen_m = state["object_m"][i].double().numpy().copy()
        return _moment(self._stage.observation(state, i), info, seen_m, prompts=self._prompts)


class OracleArena:
    """Episodes that are simulated, each in an env of its own; these are kept from batch to batch."""

    def __init__(self, setting: Setting, *, prompts: bool = False) -> None:
        self._setting, self._prompts = setting, prompts
        self._envs: list[OracleEnv] = [self._env()]
        card = load_env(setting.card)
        robot = load_robot(card.robot)
        rig = Rig(robot, action_mode=setting.action_mode, frame_size_px=card.frame_size_px)
        self._site = site_of(rig, card.fps, setting.views)

    @property
    def site(self) -> Site:
        """What it shows and takes."""
        return self._site

    def begin(self, trials: Sequence[Trial]) -> tuple[list[Start], list[Moment]]:
        """Begin every trial in an env of its own."""
        while len(self._envs) < len(trials):
            self._envs.append(self._env())
        moments = []
        for env, trial in zip(self._envs, trials):
            observation, info = env.reset(seed=trial.world_seed, options={"start": trial.start})
            moments.append(_moment(observation, info, _target_m(env), prompts=self._prompts))
        return [env.start for env in self._envs[: len(trials)]], moments

    def step(self, rows: Sequence[int], actions: Float[Array, "b A"]) -> list[Moment]:
        """Step these envs."""
        moments = []
        for row, action in zip(rows, actions, strict=True):
            env = self._envs[row]
            observation, _, _, _, info = env.step(action)
            moments.append(_moment(observation, info, _target_m(env), prompts=self._prompts))
        return moments

    def _env(self) -> OracleEnv:
        setting = self._setting
        return OracleEnv(
            setting.card, action_mode=setting.action_mode, obs_type="pixels_agent_pos", task=setting.task,
            starts=setting.starts_file or None, views=setting.views,
        )  # fmt: skip


@lru_cache(maxsize=4)
def arena_of(setting: Setting, *, prompts: bool = False) -> Arena:
    """Return the arena of a setting; every batch of this process shares it. With `prompts` moments have theirs."""
    return OracleArena(setting, prompts=prompts) if setting.oracle else ImaginedArena(setting, prompts=prompts)


def observations_of(moments: Sequence[Moment], slots: Sequence[int]) -> Observations:
    """Return what several episodes show as the batch that a policy sees."""
    agent_pos = np.stack([moment.agent_pos for moment in moments])
    return Observations(
        slots=tuple(slots),
        pixels={view: np.stack([moment.pixels[view] for moment in moments]) for view in moments[0].pixels},
        joints_rad=agent_pos[:, :-1],
        closedness=agent_pos[:, -1],
        tip=np.stack([moment.tip for moment in moments]),
        target_m=np.stack([moment.target_m for moment in moments]),
    )


def _moment(observation: Any, info: Mapping[str, Any], target_m: Array, *, prompts: bool) -> Moment:
    pixels = observation["pixels"]
    return Moment(
        pixels=pixels if isinstance(pixels, dict) else {FRONT: pixels},
        agent_pos=observation["agent_pos"],
        tip=np.asarray(info["proprioception"]["cartesian_position"]),
        target_m=target_m,
        instruction=info["task_description"],
        progress=float(info["progress"]),
        success=bool(info["is_success"]),
        source=info["reward_source"],
        trust={name: float(value) for name, value in info["trust"].items() if np.isfinite(value)},
        prompt=info["prompt"] if prompts else None,
    )


def _target_m(env: OracleEnv) -> Array:
    scene = env.start.scene
    assert scene is not None
    return np.asarray(env.truth.target_m(scene), np.float64).copy()
