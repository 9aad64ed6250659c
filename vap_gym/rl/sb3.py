"""Stable-Baselines3 on the native vector envs: one call of the world model per step, in place of one per slot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv

from vap_gym.errors import VapError
from vap_gym.observations import Observation
from vap_gym.rl.infos import slot_infos

Indices = None | int | Iterable[int]


class Sb3VecEnv(VecEnv):
    """A vector env of ours as SB3's VecEnv: `PPO("CnnPolicy", Sb3VecEnv(gym.make_vec(…, autoreset_mode="SameStep")))`.

    That is a `VapVectorEnv`, a `ShortVectorEnv` over one, or a `ThingVectorEnv`.

    Raises:
        VapError: the env has another autoreset mode; SB3 resets in the step that ends an episode.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise VapError(
                f"SB3 needs autoreset_mode 'SameStep', got '{getattr(mode, 'value', mode)}'. "
                "Make the env with gym.make_vec(…, autoreset_mode='SameStep')."
            )
        self.env = env
        self.metadata = env.metadata
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Observation:
        """Begin in every slot, with the seeds and options that `seed` and `set_options` left."""
        given = any(self._options)
        options = {"per_slot": [dict(slot) for slot in self._options]} if given else None
        seeds: Any = list(self._seeds)  # one each: gymnasium's types know of one for all
        observations, infos = self.env.reset(seed=seeds, options=options)
        self.reset_infos = slot_infos(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Observation, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step; a slot that ended has its last observation in `info["terminal_observation"]`."""
        observations, rewards, terminated, truncated, batch = self.env.step(self._actions)
        infos = slot_infos(batch, self.num_envs)
        done = terminated | truncated
        for i in np.flatnonzero(done).tolist():
            info = infos[i]
            last, final = info.pop("final_obs"), info.pop("final_info")
            self.reset_infos[i], infos[i] = info, {**final, "terminal_observation": last}
        for i, info in enumerate(infos):
            info["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return observations, rewards.astype(np.float32), done, infos

    def close(self) -> None:
        """Close the env."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return the newest frame of every slot."""
        shown: Any = self.env.render()
        return shown or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute of the vector env once per asked slot: the slots share it."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute for all slots; they cannot differ."""
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise VapError(f"set_attr('{attr_name}') sets all slots, got indices {indices}. Leave the indices out.")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse: the slots of a batch have no methods of their own."""
        raise VapError(
            f"The slots of a batch have no method '{method_name}' of their own. Call it on `.env`, the vector env."
        )

    def env_is_wrapped(self, wrapper_class: type, indices: Indices = None) -> list[bool]:
        """No slot is wrapped."""
        return [False for _ in self._get_indices(indices)]
