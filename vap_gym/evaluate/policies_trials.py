"""Trials: which starts and seeds policies are tried with, the same for all, and in which world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vap_gym.cards import EnvCard, load_env
from vap_gym.errors import VapError


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One start with one seed: the same world for every policy."""

    start: int  # its number in the file of starts
    seed: int

    @property
    def world_seed(self) -> int:
        """What `env.reset(seed=…, options={"start": …})` gets to imagine with the same noise."""
        return int(np.random.SeedSequence([self.seed, self.start]).generate_state(1)[0])


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The world that policies are tried in. Plain, so that it can be sent, compared and written down."""

    card: str  # id or path of the env card
    oracle: bool  # the simulator in the place of imagination
    task: str
    steps: int  # after so many control steps an episode has failed
    action_mode: str
    views: tuple[str, ...] = ()
    world_model: str = ""  # "": the card's own; of no meaning to the oracle
    judge: str = "tiny"  # likewise
    starts_file: str = ""  # "": the card's own
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        """Return plain containers."""
        return asdict(self) | {"views": list(self.views)}


def world_of(env_id: str) -> tuple[str, bool]:
    """Return the card of an env, and whether it is an oracle: of a registered id, or of the path of a card.

    Raises:
        VapError: an id of another kind of env.
    """
    import gymnasium as gym

    spec = gym.registry.get(env_id)
    if spec is None:
        load_env(env_id)  # says what is known
        return env_id, False
    worlds = {"vap_gym.env:VapEnv": False, "vap_gym.oracle_env:OracleEnv": True}
    if spec.entry_point not in worlds:
        raise VapError(f"Policies are evaluated in envs of vap-gym, got '{env_id}' of {spec.entry_point}.")
    return str(spec.kwargs["card"]), worlds[str(spec.entry_point)]


def trials_of(
    card: EnvCard, task: str, starts: int | Sequence[int], seeds: Sequence[int], starts_file: str
) -> tuple[Trial, ...]:
    """Return the trials: every seed of every start, seed after seed.

    Args:
        starts: how many of the task's starts, from the first on, or their numbers.

    Raises:
        VapError: more starts than there are, none, or a number or seed twice.
    """
    from vap_gym.loading import load_starts, task_starts

    known = load_starts(card, starts_file or None)
    if isinstance(starts, int):
        numbers = task_starts(known, task)
        if not 1 <= starts <= len(numbers):
            raise VapError(
                f"'{known.path}' has {len(numbers)} starts of the task '{task}', got starts={starts}. Ask for fewer, "
                "try each with several seeds, or make more: vap_gym.oracle_env.make_starts(path, count=…), "
                "then starts_file=path."
            )
        chosen = list(numbers[:starts])
    else:
        chosen = [int(number) for number in starts]
        for number in chosen:
            known[number]  # says what is known
    for name, values in (("starts", chosen), ("seeds", list(seeds))):
        if not values or len(set(values)) != len(values) or min(values) < 0:
            raise VapError(f"{name} must be one or more different numbers from 0 on, got {values}.")
    return tuple(Trial(start=number, seed=int(seed)) for seed in seeds for number in chosen)


def batches(trials: Sequence[Trial], size: int) -> list[list[int]]:
    """Return the numbers of the trials that are played together, in order."""
    if size < 1:
        raise VapError(f"batch must be at least 1, got {size}. 16 suits most machines.")
    return [list(range(first, min(first + size, len(trials)))) for first in range(0, len(trials), size)]


def starts_path_of(starts_file: str | Path | None) -> str:
    """Return a file of starts as a setting keeps it: in full, or "" for the card's own."""
    return "" if starts_file is None else str(Path(starts_file).resolve())
