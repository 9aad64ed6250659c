"""Registers every env card with Gymnasium: the imagined env, and the oracle beside it."""

from __future__ import annotations

import re

import gymnasium as gym

from vap_gym.cards import known_envs, load_env


def oracle_id(env_id: str) -> str:
    """`VAP-DROID-v0` → `VAP-DROID-Oracle-v0`: the same env with PyBullet in the place of the world model."""
    return re.sub(r"(-v\d+)?$", r"-Oracle\1", env_id, count=1)


def register_envs() -> None:
    """Register one id per card, and its oracle; ids that are registered already stay as they are."""
    for env_id in known_envs():
        steps = load_env(env_id).max_episode_steps
        kwargs = {"card": env_id}  # a string, so that spec.to_json() works
        if env_id not in gym.registry:
            gym.register(
                env_id,
                entry_point="vap_gym.env:VapEnv",
                vector_entry_point="vap_gym.vector:VapVectorEnv",
                max_episode_steps=steps,
                kwargs=dict(kwargs),
            )
        if oracle_id(env_id) not in gym.registry:
            gym.register(
                oracle_id(env_id),
                entry_point="vap_gym.oracle_env:OracleEnv",
                max_episode_steps=steps,
                kwargs=dict(kwargs),
            )
