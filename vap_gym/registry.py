"""Registers env cards with Gymnasium: the imagined env of each, and the oracle beside it."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium as gym

from vap_gym.cards import known_envs, load_env
from vap_gym.errors import VapError


def oracle_id(env_id: str) -> str:
    """`VAP-DROID-v0` → `VAP-DROID-Oracle-v0`: the same env with PyBullet in the place of the world model."""
    return re.sub(r"(-v\d+)?$", r"-Oracle\1", env_id, count=1)


def register_env(path: str | Path) -> str:
    """Register a card of one's own and return its id: `gym.make` then knows it, and its oracle (`oracle_id`).

    Its start states are looked for beside it, in `<id>.starts.npz`: see `oracle_env.make_starts` and `save_starts`.

    Args:
        path: of a TOML file like those in envs/, named as its id.

    Raises:
        CardError: the card cannot be read.
        VapError: its id is registered already, by something else.
    """
    card = load_env(Path(path))
    where = str(card.folder / f"{card.id}.toml")
    for name in (card.id, oracle_id(card.id)):
        taken = gym.registry.get(name)
        if taken is not None and taken.kwargs.get("card") != where:
            raise VapError(f"'{name}' is an env already. Give '{where}' another id and file name.")
    _register(card.id, where, card.max_episode_steps)
    return card.id


def register_envs() -> None:
    """Register one id per shipped card, and its oracle; ids that are registered already stay as they are."""
    for env_id in known_envs():
        _register(env_id, env_id, load_env(env_id).max_episode_steps)


def _register(env_id: str, card: str, max_episode_steps: int) -> None:
    """`card` is a string, so that spec.to_json() works."""
    if env_id not in gym.registry:
        gym.register(
            env_id,
            entry_point="vap_gym.env:VapEnv",
            vector_entry_point="vap_gym.vector:VapVectorEnv",
            max_episode_steps=max_episode_steps,
            kwargs={"card": card},
        )
    if oracle_id(env_id) not in gym.registry:
        gym.register(
            oracle_id(env_id),
            entry_point="vap_gym.oracle_env:OracleEnv",
            max_episode_steps=max_episode_steps,
            kwargs={"card": card},
        )
