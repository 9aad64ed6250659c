"""Simple policies: plain functions, chance, standing still, and actions that were recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vap_gym.policies.chunks import ChunkQueue
from vap_gym.policies.known import arrays_digest
from vap_gym.policies.protocol import Conventions, EpisodeStart, Observations, PolicyError

Array = np.ndarray
ABSOLUTE = ("cartesian_pose", "joint_position")  # modes in which zeros would not mean to stay


class FunctionPolicy:
    """A plain function as a policy.

    Args:
        function: from an observation and its instruction to an action (A,), or a chunk of them (n, A). Observations are
            those of an env with obs_type "pixels_agent_pos". With `batched`: from a batch (B, …) of them and B
            instructions to (B, A) or (B, n, A).
        conventions: what it takes and gives.
        batched: it takes all running episodes at once.
        execute: actions of a chunk that are played before it is asked again; None: all.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Any], Any], Any],
        conventions: Conventions,
        *,
        batched: bool = False,
        execute: int | None = None,
    ) -> None:
        self.function, self._conventions, self.batched = function, conventions, batched
        self._chunks = ChunkQueue(execute)

    @property
    def conventions(self) -> Conventions:
        """As they were given."""
        return self._conventions

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Forget the rest of chunks; the function itself remembers nothing."""
        self._chunks.reset(episode.slot for episode in episodes)

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next actions."""
        return self._chunks.act(observations, instructions, self._ask)

    def _ask(self, observations: Observations, instructions: Sequence[str]) -> object:
        if self.batched:
            return self.function(observations.as_env(), list(instructions))
        given = [
            np.asarray(self.function(observations.as_env(i), instruction), np.float32)
            for i, instruction in enumerate(instructions)
        ]
        shapes = {one.shape for one in given}
        if len(shapes) > 1:
            raise PolicyError(f"A policy must return actions of one shape, got {sorted(shapes)}. Pad its chunks.")
        return np.stack(given)


class RandomPolicy:
    """Uniform actions between `low` and `high` (A,), drawn from each episode's seed."""

    def __init__(self, low: Float[Array, " A"], high: Float[Array, " A"], conventions: Conventions) -> None:
        self.low, self.high = np.asarray(low), np.asarray(high)
        self._conventions = replace(conventions, action_size=len(self.low))
        self._rng: dict[int, np.random.Generator] = {}

    @property
    def conventions(self) -> Conventions:
        """As they were given, with the size of an action."""
        return self._conventions

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Begin with each episode's seed."""
        self._rng |= {episode.slot: np.random.default_rng([episode.seed, 4243]) for episode in episodes}

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next actions."""
        drawn = [self._rng[slot].uniform(self.low, self.high) for slot in observations.slots]
        return np.stack(drawn).astype(np.float32)


class ReplayPolicy:
    """Actions that were recorded, played again whatever is seen: open loop. After the last one it stays.

    Args:
        actions: (T, A) by the number of the start that they were recorded from.
        conventions: in which they were recorded.
    """

    def __init__(self, actions: Mapping[int, Float[Array, "_ A"]], conventions: Conventions) -> None:
        self.actions = {int(number): np.asarray(rows, np.float32) for number, rows in actions.items()}
        if not self.actions or any(rows.ndim != 2 or not len(rows) for rows in self.actions.values()):
            raise PolicyError(
                "A replay needs actions (T ≥ 1, A) of at least one start, got "
                f"{ {number: rows.shape for number, rows in self.actions.items()} }."
            )
        self.recording = arrays_digest((str(number), rows) for number, rows in sorted(self.actions.items()))
        self._conventions = replace(conventions, action_size=next(iter(self.actions.values())).shape[1])
        self._at: dict[int, tuple[int, int]] = {}  # by slot: start and step

    @classmethod
    def from_set(cls, folder: str | Path, conventions: Conventions | None = None) -> ReplayPolicy:
        """Return a replay of the episodes that an evaluation kept, the first of each start.

        Raises:
            PolicyError: episodes that do not say from which start they are, or in which action mode.
        """
        from vap_gym.data import EpisodeSet

        episodes = EpisodeSet(folder)
        actions: dict[int, Array] = {}
        modes: set[str] = set()
        for i in range(len(episodes)):
            info = episodes.info(i)
            if "start" not in info or "action_mode" not in info:
                raise PolicyError(
                    f"Episode {i} of '{folder}' must say its 'start' and 'action_mode', got "
                    f"{', '.join(info) or 'none'}. Give a set that an evaluation kept, or ReplayPolicy(actions, …)."
                )
            modes.add(str(info["action_mode"]))
            if int(info["start"]) not in actions:
                rows = episodes.read(i, views=(), labels=(), columns=["action"]).columns["action"]
                actions[int(info["start"])] = rows[:-1] if len(rows) > 1 else rows  # the last row leads nowhere
        if conventions is None and len(modes) != 1:
            raise PolicyError(f"The episodes of '{folder}' must be of one action mode, got {', '.join(sorted(modes))}.")
        return cls(actions, conventions or Conventions(action_mode=modes.pop(), convert=("action_mode",)))

    @property
    def conventions(self) -> Conventions:
        """Those of the recording, with the size of an action."""
        return self._conventions

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Begin with the first recorded action of each start."""
        for episode in episodes:
            if episode.number not in self.actions:
                known = ", ".join(map(str, sorted(self.actions)[:8]))
                raise PolicyError(f"No actions were recorded from start {episode.number}. Known starts: {known}, …")
            self._at[episode.slot] = (episode.number, 0)

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next recorded actions."""
        found = []
        for slot in observations.slots:
            number, step = self._at[slot]
            self._at[slot] = (number, step + 1)
            rows = self.actions[number]
            found.append(rows[step] if step < len(rows) else self._stay(rows[-1]))
        return np.stack(found)

    def _stay(self, last: Float[Array, " A"]) -> Float[Array, " A"]:
        stays = last.copy()
        if self._conventions.action_mode not in ABSOLUTE:
            moves = slice(None) if self._conventions.means_by_gripper in ("closing", "opening") else slice(-1)
            stays[moves] = 0.0
        return stays
