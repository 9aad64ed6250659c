"""What is served: imagined robots of one kind over one stage; several of them step as one batch."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.utils import seeding
from tensordict import TensorDict
from torch import Tensor

from vap_gym.cards import known_robots
from vap_gym.errors import ActionError, VapError, unknown_name
from vap_gym.imagine import actions_tensor
from vap_gym.loading import StartSource, build_stage
from vap_gym.observations import stacked
from vap_gym.serve.errors import FullError, TooLargeError
from vap_gym.serve.messages import encoded, space_table

SETTINGS = (
    "action_mode", "camera", "judge", "max_adherence_px", "min_trust", "obs_type", "prompt", "reward", "robot", "task",
    "trust_samples", "views",
)  # fmt: skip
"""What a client may choose of `VapEnv`'s arguments: nothing that names a file of the server's."""
MOST_SAMPLES, MOST_VIEWS = 8, 4


@dataclass(kw_only=True, eq=False)
class Slot:
    """One imagined robot."""

    most_steps: int  # an episode is truncated after so many; 0: never
    state: TensorDict | None = None
    generator: np.random.Generator | None = None


class StagePlayer:
    """Imagined robots: what `VapEnv` is for one, with the same frames for the same seeds.

    Args:
        card: id of the env card.
        settings: of `SETTINGS`, as for `VapEnv`.
        world_model, device, dtype: the server's, as for `VapEnv`.
    """

    def __init__(
        self,
        card: str,
        settings: Mapping[str, Any],
        *,
        world_model: str | None = None,
        device: str = "cpu",
        dtype: str | None = None,
    ) -> None:
        given = checked_settings(settings)
        own = {key: given.pop(key) for key in ("camera", "task") if key in given}
        self.stage = build_stage(card, world_model=world_model, device=device, dtype=dtype, **given)
        self._source = StartSource(
            self.stage.rig,
            self.stage.card,
            camera=own.get("camera"),
            task=own.get("task"),
            starts=None,
            viewpoints=self.stage.extra.viewpoints,
        )

    def about(self) -> dict[str, Any]:
        """Return spaces, frame rate, steps of an episode, and control steps of an action."""
        return {
            "observation_space": space_table(self.stage.observation_space),
            "action_space": space_table(self.stage.action_space),
            "fps": self.stage.card.fps,
            "max_episode_steps": self.stage.card.max_episode_steps,
            "chunk": self.stage.chunk,
        }

    def slot(self, most_steps: int | None) -> Slot:
        """Return a slot; None is the card's own limit of steps."""
        return Slot(most_steps=self.stage.card.max_episode_steps if most_steps is None else most_steps)

    def reset(self, slot: Slot, seed: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Begin as `VapEnv.reset` does. Raises VapError for options that cannot be."""
        generator = slot.generator
        if seed is not None or generator is None:
            generator, _ = seeding.np_random(seed)
        noise = int(generator.integers(2**63 - 1))
        start = self._source.choose(options, generator)
        state = self.stage.begin([start], [noise])
        slot.state, slot.generator = state, generator
        return {"observation": self.stage.observation(state, 0), "info": self.stage.reset_infos(state, [0])[0]}

    def actions(self, slot: Slot, given: object, *, chunk: bool) -> Tensor:
        """Return actions (K, …) as `VapEnv.step` (K = 1) or `VapEnv.step_chunk` take them."""
        if slot.state is None:
            raise VapError("The session has no episode yet, got a step. Call reset first.")
        shape = self.stage.action_space.shape
        try:
            array = np.asarray(given)
        except ValueError as error:  # lists of unequal length
            raise ActionError(f"action must have shape {shape}, got lists that make no array: {error}.") from error
        return actions_tensor(array, shape=(None, *shape)) if chunk else actions_tensor(array, shape=shape)[None]

    def steps(self, work: Sequence[tuple[Slot, Tensor, bool]]) -> list[dict[str, Any]]:
        """Step all slots in one call of the world model; return what `VapEnv.step` or `step_chunk` would, of each."""
        states = [slot.state for slot, _, _ in work if slot.state is not None]
        rows = torch.stack([actions.reshape(-1, actions.shape[-1]) for _, actions, _ in work])
        state, outcome = self.stage.advance(states[0] if len(states) == 1 else torch.cat(states, 0), rows)
        replies, count = [], outcome.reward.shape[1]
        for i, (slot, _, chunk) in enumerate(work):
            after = int(state["step"][i]) // self.stage.chunk
            late = np.array([0 < slot.most_steps <= after - count + k + 1 for k in range(count)])
            whole = {
                "observation": [self.stage.observation_at(outcome, i, k) for k in range(count)],
                "reward": outcome.reward[i].copy(),
                "terminated": outcome.success[i] & self.stage.card.terminate_on_success,
                "truncated": outcome.untrusted[i] | late,
                "info": [self.stage.info(state, outcome, i, k) for k in range(count)],
            }
            replies.append(_chunk(whole) if chunk else _single(whole))
        for i, (slot, _, _) in enumerate(work):
            slot.state = state if len(work) == 1 else state[i : i + 1].clone()  # a clone: or each keeps all of them
        return replies

    def copy(self, slot: Slot, seed: int | None) -> Slot:
        """Return a copy as `VapEnv.branch` makes them; its next start is drawn anew."""
        if slot.state is None:
            raise VapError("The session has no episode yet, got a branch. Call reset first.")
        state = slot.state.clone()
        if seed is not None:
            state["world_seed"] = torch.tensor([seed], dtype=torch.int64, device=state["world_seed"].device)
        return Slot(most_steps=slot.most_steps, state=state)


class Players:
    """Players by env and settings: sessions of one kind share one, and all share the weights.

    Args:
        envs: the ids that are offered.
        world_model, device, dtype: as for `VapEnv`.
        kinds: so many may be in use at once.
    """

    def __init__(
        self,
        envs: Sequence[str],
        *,
        world_model: str | None = None,
        device: str = "cpu",
        dtype: str | None = None,
        kinds: int = 16,
    ) -> None:
        self.envs, self._kinds = tuple(envs), kinds
        self._world: dict[str, Any] = {"world_model": world_model, "device": device, "dtype": dtype}
        self._used: weakref.WeakValueDictionary[bytes, StagePlayer] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[bytes, StagePlayer] = OrderedDict()  # kept, also while nobody uses them

    def __call__(self, env: str, settings: Mapping[str, Any]) -> StagePlayer:
        """Return the player of an env, made where there is none yet.

        Raises:
            VapError: an env that is not offered, or settings that cannot be.
            FullError: too many kinds are in use.
        """
        if env not in self.envs:
            raise unknown_name("served env", env, self.envs)
        key = encoded([env, {name: settings[name] for name in sorted(settings)}])
        player = self._used.get(key)
        if player is None:
            if len(self._used) >= self._kinds:
                self._recent.clear()
                gc.collect()
            if len(self._used) >= self._kinds:
                raise FullError(
                    f"{len(self._used)} kinds of env are in use, and no more may be.", "Ask for settings of others."
                )
            player = self._used[key] = StagePlayer(env, settings, **self._world)
        self._recent[key] = player
        self._recent.move_to_end(key)
        if len(self._recent) > self._kinds // 2:
            self._recent.popitem(last=False)
        return player


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that a client may choose. Raises VapError for others, and TooLargeError for too much of one."""
    for name in settings:
        if name not in SETTINGS:
            raise unknown_name("setting of a served env", str(name), SETTINGS)
    robot, judge = settings.get("robot"), settings.get("judge", "tiny")
    if robot is not None and robot not in known_robots():
        raise unknown_name("robot of the server", str(robot), known_robots())
    if judge not in (None, "tiny"):
        raise unknown_name("judge of the server", str(judge), ("tiny",))
    samples, views = settings.get("trust_samples", 0), settings.get("views") or ()
    if not isinstance(samples, int) or samples > MOST_SAMPLES:
        raise TooLargeError(f"A served env may have {MOST_SAMPLES} trust_samples, got {samples}.", "Ask for fewer.")
    if isinstance(views, Sized) and len(views) > MOST_VIEWS:
        raise TooLargeError(f"A served env may have {MOST_VIEWS} further views, got {len(views)}.", "Ask for fewer.")
    return {name: value for name, value in settings.items() if value is not None or name == "judge"}


def _single(whole: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "observation": whole["observation"][0],
        "reward": float(whole["reward"][0]),
        "terminated": bool(whole["terminated"][0]),
        "truncated": bool(whole["truncated"][0]),
        "info": whole["info"][0],
    }


def _chunk(whole: Mapping[str, Any]) -> dict[str, Any]:
    return {**whole, "observation": stacked(whole["observation"])}
