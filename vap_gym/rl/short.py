"""Short episodes of the picture env for training: a horizon, a judge with hysteresis, starts from a file of moments."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float

from vap_gym.errors import VapError
from vap_gym.observations import Observation
from vap_gym.rl.infos import row_of, slot_infos
from vap_gym.rl.steady import Steady
from vap_gym.vector import VapVectorEnv

Array = np.ndarray


class ShortVectorEnv(VectorEnv[Observation, np.ndarray, np.ndarray]):
    """A `VapVectorEnv` whose episodes are short, and whose judge must say things more than once.

    The reward of a step is by how much the steady progress grew (`Steady`), or with `reward="success"` of the env 1
    where it is solved; an episode is terminated where it is solved, and truncated after `horizon` steps or where the
    env itself gives it up (`min_trust`, `max_adherence_px`). `info["final_info"]` tells `is_success` and `progress` as
    they are steady. A slot that ended begins anew in the same step, as SB3 expects.

    Args:
        env: made with autoreset_mode="Disabled" and no time limit; `starts=` of a file that `save_starts(path,
            moments_of(…))` wrote begins in the midst of recorded episodes.
        horizon: steps of an episode.
        steady: how many readings must agree.

    Raises:
        VapError: another autoreset mode, a time limit of the env's own, no judge, or a horizon below 1.
    """

    def __init__(self, env: VapVectorEnv, *, horizon: int = 20, steady: Steady | None = None) -> None:
        if env.autoreset_mode is not AutoresetMode.DISABLED or env.max_episode_steps is not None:
            raise VapError(
                f"ShortVectorEnv needs autoreset_mode 'Disabled' and no max_episode_steps, got "
                f"'{env.autoreset_mode.value}' and {env.max_episode_steps}. Make the env with "
                "VapVectorEnv(…, autoreset_mode='Disabled')."
            )
        if env.stage.judge is None or horizon < 1:
            raise VapError(
                f"ShortVectorEnv needs a judge and a horizon of at least 1, got "
                f"{'judge=None' if env.stage.judge is None else horizon}."
            )
        self.env, self.horizon, self.steady = env, horizon, steady or Steady()
        self.num_envs = env.num_envs
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.autoreset_mode = AutoresetMode.SAME_STEP
        self.render_mode = env.render_mode
        self.single_observation_space, self.observation_space = env.single_observation_space, env.observation_space
        self.single_action_space, self.action_space = env.single_action_space, env.action_space
        self._memory, self._progress = self.steady.begin(self.num_envs), np.zeros(self.num_envs)
        self._clock = np.zeros(self.num_envs, np.int64)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every slot, as `VapVectorEnv.reset` does, or in those of `options["reset_mask"]`."""
        observations, infos = self.env.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        self._begin(np.ones(self.num_envs, bool) if mask is None else mask)
        return observations, infos

    def step(
        self, actions: object
    ) -> tuple[Observation, Float[Array, " B"], Bool[Array, " B"], Bool[Array, " B"], dict[str, Any]]:
        """Imagine one control step in every slot. Raises ActionError as `VapVectorEnv.step` does."""
        observations, _, _, untrusted, infos = self.env.step(actions)
        before = self._progress
        self._memory, self._progress = self.steady(self._memory, np.asarray(infos["progress"], np.float64))
        self._clock += 1
        terminated = (self._progress >= 1.0) & ~untrusted  # what nobody can know is no success
        truncated = untrusted | ((self._clock >= self.horizon) & ~terminated)
        by_success = self.env.stage.reward == "success"
        rewards = terminated.astype(np.float64) if by_success else self._progress - before
        told = slot_infos(infos, self.num_envs)
        for i, info in enumerate(told):
            info |= {"is_success": bool(terminated[i]), "progress": float(self._progress[i])}
        ended = terminated | truncated
        anew: list[dict[str, Any]] = told
        if ended.any():
            last = observations
            observations, fresh = self.env.reset(options={"reset_mask": ended})
            anew = slot_infos(fresh, self.num_envs)
            for i in np.flatnonzero(ended).tolist():
                anew[i] |= {"final_obs": row_of(last, i), "final_info": told[i] | {"untrusted": bool(untrusted[i])}}
            self._begin(ended)
        out: dict[str, Any] = {}
        for i in range(self.num_envs):
            out = self._add_info(out, anew[i] if ended[i] else told[i], i)
        return observations, rewards, terminated, truncated, out

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the newest frame of every slot, as the env does."""
        return self.env.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the env."""
        self.env.close()

    def _begin(self, mask: Bool[Array, " B"]) -> None:
        """Forget what was read in the slots of a mask."""
        self._memory = np.where(mask[:, None], self.steady.begin(self.num_envs), self._memory)
        self._progress = np.where(mask, 0.0, self._progress)
        self._clock = np.where(mask, 0, self._clock)
