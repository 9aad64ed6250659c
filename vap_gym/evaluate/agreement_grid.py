"""The policies of the agreement experiment: a grid of graded quality, fixed in a file, and policies gone wrong."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vap_gym.cards import EnvCard
from vap_gym.errors import CardError, unknown_name
from vap_gym.policies import Conventions, EpisodeStart, Observations, Policy, PolicyError, ScriptedExpert
from vap_gym.policies.known import weights_digest
from vap_gym.policies.named import policy_of
from vap_gym.policies.things import ThingsPolicy, read_agent

Array = np.ndarray
WAYS = ("mirrored", "runaway", "jerking")


@dataclass(frozen=True, kw_only=True)
class Cloned:
    """How much a cloned agent saw, and how long it learned."""

    episodes: int  # of experts
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One policy of the grid: exactly one of the three says what it is."""

    name: str
    tasks: tuple[str, ...]
    text: str = ""  # as the command line takes it, such as "expert:noise=0.2"
    clone: Cloned | None = None
    wrong: str = ""  # one of WAYS

    def to_json(self) -> dict[str, Any]:
        """Return what the policy is as plain JSON."""
        if self.clone is not None:
            return {"clone": {"episodes": self.clone.episodes, "epochs": self.clone.epochs}}
        return {"wrong": self.wrong} if self.wrong else {"text": self.text}


def read_grid(path: str | Path, tasks: Sequence[str]) -> tuple[Entry, ...]:
    """Read the policies of a file: tables [[policy]] with name, tasks (default: all) and text, clone or wrong.

    Raises:
        CardError: the file is missing, or an entry says too little, too much, or what another one says.
        UnknownNameError: a task or a way to go wrong that is not known.
    """
    try:
        rows = tomllib.loads(Path(path).read_text(encoding="utf-8"))["policy"]
        found = tuple(_entry(row, tuple(tasks)) for row in rows)
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise CardError(f"'{path}' must list policies as [[policy]] tables, got: {error}.") from error
    for entry in found:
        if sum([bool(entry.text), entry.clone is not None, bool(entry.wrong)]) != 1:
            raise CardError(f"Policy '{entry.name}' must have one of text, clone and wrong, got {entry}.")
        for task in entry.tasks:
            if task not in tasks:
                raise unknown_name("task", task, tasks)
        if entry.wrong and entry.wrong not in WAYS:
            raise unknown_name("way to go wrong", entry.wrong, WAYS)
    pairs = [(entry.name, task) for entry in found for task in entry.tasks]
    twice = sorted({name for name, task in pairs if pairs.count((name, task)) > 1})
    if twice:
        raise CardError(f"Every policy of a task needs a name of its own, got twice: {', '.join(twice)}.")
    return found


def _entry(row: Mapping[str, Any], tasks: tuple[str, ...]) -> Entry:
    fields = dict(row)
    clone = fields.pop("clone", None)
    own = tuple(fields.pop("tasks", tasks))
    return Entry(tasks=own, clone=None if clone is None else Cloned(**clone), **fields)


def policies_of(
    entries: Sequence[Entry], task: str, card: EnvCard, cloned: Callable[[str, Cloned], Path]
) -> tuple[dict[str, Policy], dict[str, dict[str, Any]]]:
    """Return the policies of a task by name, and what each one is, by which it is known again.

    Args:
        cloned: makes an agent of a task, or finds the one that was made, and returns its folder.
    """
    policies: dict[str, Policy] = {}
    told: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if task not in entry.tasks:
            continue
        told[entry.name] = entry.to_json()
        if entry.clone is not None:
            folder = cloned(task, entry.clone)
            policies[entry.name] = ThingsPolicy(folder, world_model=card.world_model)
            told[entry.name]["digest"] = digest_of(folder, card.world_model)
        elif entry.wrong:
            policies[entry.name] = GoneWrong(entry.wrong, robot=card.robot)
        else:
            policies[entry.name] = policy_of(entry.text, card)
    return policies, told


def digest_of(agent: Path, world_model: str) -> str:
    """Return what an agent's weights, and those that it sees with, are known by."""
    found = hashlib.sha256(weights_digest(world_model).encode())
    for value in read_agent(agent)[1].parameters():
        found.update(value.detach().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


class GoneWrong:
    """An expert that goes wrong after some steps, as policies do whose input is unlike what they learned from.

    Args:
        way: "mirrored": it moves the wrong way; "runaway": it goes on at full speed in a direction of each episode's
            own; "jerking": another way at every step.
        robot: its name or folder.
        after: steps that are an expert's.
    """

    def __init__(self, way: str, *, robot: str | Path = "panda_robotiq", after: int = 10) -> None:
        if way not in WAYS:
            raise unknown_name("way to go wrong", way, WAYS)
        if after < 0:
            raise PolicyError(f"after must be 0 steps or more, got {after}. Try 10.")
        self.way, self.robot, self.after = way, str(robot), after
        self._expert = ScriptedExpert(robot)
        self._playing: dict[int, tuple[int, np.random.Generator, Array]] = {}  # steps, chance, and a direction

    @property
    def conventions(self) -> Conventions:
        """The expert's."""
        return self._expert.conventions

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Begin as an expert. Raises PolicyError for a start without a scene."""
        self._expert.reset(episodes)
        for episode in episodes:
            rng = np.random.default_rng([episode.seed, 8821])
            self._playing[episode.slot] = (0, rng, rng.choice([-1.0, 1.0], 7))

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next actions."""
        actions = np.array(self._expert.act(observations, instructions), np.float32)
        for action, slot in zip(actions, observations.slots, strict=True):
            step, rng, direction = self._playing[slot]
            self._playing[slot] = (step + 1, rng, direction)
            if step < self.after:
                continue
            if self.way == "mirrored":
                action[:2] *= -1.0
            else:
                action[:] = direction if self.way == "runaway" else rng.uniform(-1.0, 1.0, len(action))
        return actions

    def __getstate__(self) -> dict[str, object]:
        """Its settings: episodes that are running stay behind."""
        return {**self.__dict__, "_playing": {}}
