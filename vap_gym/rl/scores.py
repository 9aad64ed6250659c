"""Trying agents: each start once, without exploration, and whether it was solved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from vap_gym.errors import VapError
from vap_gym.rl.things_env import ThingVectorEnv


def tried(policy: Any, env: ThingVectorEnv, numbers: Sequence[int] | None = None) -> list[bool]:
    """Play an SB3 policy once from each start of an env, its likeliest actions; return which were solved.

    Args:
        policy: with `predict`.
        env: made with autoreset_mode="Disabled".
        numbers: of `env.dynamics.starts`; None: all.
    """
    if env.autoreset_mode is not AutoresetMode.DISABLED:
        raise VapError(
            f"Trying needs autoreset_mode 'Disabled', got '{env.autoreset_mode.value}'. Make the env with that."
        )
    wanted = list(range(len(env.dynamics.starts))) if numbers is None else list(numbers)
    found: list[bool] = []
    for first in range(0, len(wanted), env.num_envs):
        part = wanted[first : first + env.num_envs]
        padded = part + [part[0]] * (env.num_envs - len(part))
        observation, _ = env.reset(seed=0, options={"which": padded})
        solved, over = np.zeros(env.num_envs, bool), np.zeros(env.num_envs, bool)
        while not over.all():
            answers, _ = policy.predict(observation, deterministic=True)
            observation, _, terminated, truncated, _ = env.step(answers)
            solved |= terminated & ~over
            over |= terminated | truncated
        found += solved[: len(part)].tolist()
    return found
