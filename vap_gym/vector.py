"""VapVectorEnv: a batch of imagined robots as a Gymnasium vector env, one call of the world model per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float
from tensordict import TensorDict

from vap_gym.errors import VapError, unknown_name
from vap_gym.imagine import actions_tensor
from vap_gym.interfaces import Judge, World
from vap_gym.loading import StartSource, build_stage
from vap_gym.observations import Observation, stacked
from vap_gym.outcome import Outcome
from vap_gym.photo import RESET_OPTIONS, check_names
from vap_gym.stage import Stage, fitting_snapshot

Flags = Bool[np.ndarray, " B"]
Rewards = Float[np.ndarray, " B"]


class VapVectorEnv(VectorEnv[Observation, np.ndarray, np.ndarray]):
    """B imagined robots that share one world model; every slot has its own start, camera, task, noise and clock.

    Made by `gym.make_vec("VAP-DROID-v0", num_envs=16, …)`. A slot does what `VapEnv` does with the same seed, up to the
    rounding of other batch sizes (2 grey levels at p99 over 24 steps).

    Args:
        num_envs: B, the number of slots.
        max_episode_steps: a slot is truncated after so many steps; None: never.
        autoreset_mode: "NextStep" (a slot that ended begins anew at the next step, its action ignored), "SameStep" (at
            once, the last observation in `info["final_obs"]`) or "Disabled" (you reset it by
            `reset(options={"reset_mask": mask})`; until then it goes on).
        card, world_model, …, reward: as for `VapEnv`.
        render_mode: "rgb_array" or None.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["rgb_array"],
        "render_fps": 15,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        card: str = "VAP-DROID-v0",
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        world_model: str | Path | World | None = None,
        world_model_kwargs: Mapping[str, Any] | None = None,
        device: str = "cpu",
        dtype: str | None = None,
        prompt: str | None = None,
        action_mode: str | None = None,
        obs_type: str | None = None,
        robot: str | Path | None = None,
        camera: object = None,
        judge: str | Path | Judge | None = "tiny",
        task: str | None = None,
        starts: str | Path | None = None,
        reward: str = "progress",
        trust_samples: int = 0,
        max_adherence_px: float | None = None,
        min_trust: float | None = None,
        views: Sequence[str] | Mapping[str, object] = (),
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise VapError(f"num_envs must be at least 1, got {num_envs}.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise unknown_name("render_mode of a vector env", str(render_mode), self.metadata["render_modes"])
        self._made_with: dict[str, Any] = {
            "card": card, "world_model": world_model, "world_model_kwargs": world_model_kwargs, "device": device,
            "dtype": dtype, "prompt": prompt, "action_mode": action_mode, "obs_type": obs_type, "robot": robot,
            "judge": judge, "reward": reward, "trust_samples": trust_samples, "max_adherence_px": max_adherence_px,
            "min_trust": min_trust, "views": views,
        }  # fmt: skip
        self._own: dict[str, Any] = {"camera": camera, "task": task, "starts": starts}
        self._stage = build_stage(**self._made_with)
        self._source = StartSource(
            self._stage.rig, self._stage.card, viewpoints=self._stage.extra.viewpoints, **self._own
        )
        self._state: TensorDict | None = None
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int] = [-1] * num_envs
        self._ended = np.zeros(num_envs, bool)
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.autoreset_mode = checked_autoreset_mode(autoreset_mode)
        self.metadata = {  # type: ignore[misc]
            **self.metadata, "render_fps": self._stage.card.fps, "autoreset_mode": self.autoreset_mode
        }  # fmt: skip
        self.single_observation_space = self._stage.observation_space
        self.single_action_space = self._stage.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = render_mode

    @property
    def stage(self) -> Stage:
        """Imagination, judge and task: for planners, which run them on states of their own."""
        return self._stage

    @property
    def state(self) -> TensorDict:
        """The present state, batch size [B]. Do not write into it; `save` gives a copy."""
        if self._state is None:
            raise VapError("The env has no state yet. Call reset() first.")
        return self._state

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of every slot, −1 where it was never given."""
        return tuple(self._seeds)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of every slot: it draws starts and noise seeds."""
        return tuple(self._generator(i) for i in range(self.num_envs))

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every slot, or in those of `options["reset_mask"]` (bool (B,)) and in no other.

        An integer seed gives slot i `seed + i`, a sequence one each. The other options are `VapEnv.reset`'s, for every
        slot that is reset; `options["per_slot"]`, a sequence of B such dicts, gives each slot its own.
        """
        given = dict(options or {})
        mask = self._checked_mask(given.pop("reset_mask", None))
        each = given.pop("per_slot", None)
        check_names("reset option", given, (*RESET_OPTIONS, "reset_mask", "per_slot"))
        if each is not None and (given or len(each) != self.num_envs):
            raise VapError(
                f"per_slot must be {self.num_envs} dicts and the only option beside reset_mask, "
                f"got {len(each)} and {list(given)}."
            )
        for i, slot_seed in enumerate(self._checked_seeds(seed)):
            if mask[i] and slot_seed is not None:
                self._generators[i], self._seeds[i] = seeding.np_random(slot_seed)
        slots = np.flatnonzero(mask).tolist()
        self._begin(slots, [given if each is None else each[i] for i in slots])
        self._ended[slots] = False
        infos: dict[str, Any] = {}
        self._add_reset_infos(infos, slots)
        return self._observations(), infos

    def step(self, actions: object) -> tuple[Observation, Rewards, Flags, Flags, dict[str, Any]]:
        """Imagine one control step in every slot; actions (B, A) are clipped to their range.

        Raises:
            ActionError: actions of the wrong shape or type, or not finite.
        """
        rows = actions_tensor(actions, shape=(self.num_envs, *self._stage.action_space.shape))
        self._state, outcome = self._stage.advance(self.state, rows.reshape(self.num_envs, -1, rows.shape[-1]))
        rewards, success = outcome.reward[:, 0].copy(), outcome.success[:, 0]
        terminated = success & self._stage.card.terminate_on_success
        truncated = self._truncated() | outcome.untrusted[:, 0]
        anew = np.zeros(self.num_envs, bool)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            anew = self._ended
            rewards[anew], terminated[anew], truncated[anew] = 0.0, False, False
        elif self.autoreset_mode is AutoresetMode.SAME_STEP:
            anew = terminated | truncated
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            for i in np.flatnonzero(anew).tolist():
                final = {"final_obs": self._observation(i), "final_info": self._info(i, outcome)}
                infos = self._add_info(infos, final, i)
        for i in np.flatnonzero(~anew).tolist():
            infos = self._add_info(infos, self._info(i, outcome), i)
        slots = np.flatnonzero(anew).tolist()
        if slots:
            self._begin(slots, [{}] * len(slots))
            self._add_reset_infos(infos, slots)
        self._ended = terminated | truncated
        return self._observations(), rewards, terminated, truncated, infos

    def save(self) -> TensorDict:
        """Return a snapshot: the whole state, batch size [B], without the generators that draw the next starts."""
        return self.state.clone()

    def load(self, snapshot: TensorDict | str | Path) -> tuple[Observation, dict[str, Any]]:
        """Return to a snapshot of B slots (or a file of one): the same actions then give the same frames."""
        self._state = fitting_snapshot(snapshot, self._stage, slots=self.num_envs)
        self._ended[:] = False
        infos: dict[str, Any] = {}
        self._add_reset_infos(infos, range(self.num_envs))
        return self._observations(), infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the newest frame of every slot with render_mode "rgb_array", else None."""
        return None if self.render_mode is None else tuple(frame.numpy().copy() for frame in self.state["frame"])

    def _begin(self, slots: Sequence[int], options: Sequence[dict[str, Any]]) -> None:
        """Start the given slots; the others are not touched."""
        starts, noises = [], []
        for i, given in zip(slots, options, strict=True):
            generator = self._generator(i)
            noises.append(int(generator.integers(2**63 - 1)))
            starts.append(self._source.choose(given, generator))
        fresh = self._stage.begin(starts, noises)
        if self._state is None or len(slots) == self.num_envs:
            if len(slots) != self.num_envs:
                raise VapError(
                    f"The first reset must be of all {self.num_envs} slots, got a reset_mask of {len(slots)}."
                )
            self._state = fresh
        else:
            state = self._state.clone()
            state[torch.tensor(slots)] = fresh
            self._state = state

    def _generator(self, i: int) -> np.random.Generator:
        generator = self._generators[i]
        if generator is None:
            generator, self._seeds[i] = seeding.np_random()
            self._generators[i] = generator
        return generator

    def _truncated(self) -> np.ndarray:
        if self.max_episode_steps is None:
            return np.zeros(self.num_envs, bool)
        return np.asarray(self.state["step"].numpy() // self._stage.chunk >= self.max_episode_steps)

    def _observation(self, i: int) -> Observation:
        return self._stage.observation(self.state, i)

    def _observations(self) -> Observation:
        return stacked([self._observation(i) for i in range(self.num_envs)])

    def _info(self, i: int, outcome: Outcome) -> dict[str, Any]:
        return self._stage.info(self.state, outcome, i)

    def _add_reset_infos(self, infos: dict[str, Any], slots: Sequence[int]) -> None:
        for i, info in zip(slots, self._stage.reset_infos(self.state, slots), strict=True):
            self._add_info(infos, info, i)

    def _checked_seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise VapError(f"seed must be an integer or one per slot ({self.num_envs}), got {len(seed)}.")
        return seed

    def _checked_mask(self, mask: object) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, bool)
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise VapError(
                f"reset_mask must be a bool numpy array of shape ({self.num_envs},) with a True in it, got {got}."
            )
        return mask

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what names load again: a world model given by name is not pickled."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_stage", "_source")}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._stage = build_stage(**self._made_with)
        self._source = StartSource(
            self._stage.rig, self._stage.card, viewpoints=self._stage.extra.viewpoints, **self._own
        )


def checked_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """Return Gymnasium's autoreset mode of that name ("NextStep", "SameStep", "Disabled")."""
    names = [known.value for known in AutoresetMode]
    if isinstance(mode, AutoresetMode):
        return mode
    if mode not in names:
        raise unknown_name("autoreset mode", mode, names)
    return AutoresetMode(mode)
