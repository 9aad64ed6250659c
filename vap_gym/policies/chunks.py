"""Chunks: a policy that decides on several actions at once is asked again when those of an episode are used up."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from vap_gym.policies.protocol import Observations, PolicyError

Ask = Callable[[Observations, Sequence[str]], object]
"""From what some episodes show to the actions that each decides on: (b, n, A), or (b, A) for one each."""


class ChunkQueue:
    """Actions that are decided on but not yet played, by slot.

    Args:
        execute: how many actions of a chunk are played before the policy is asked again; None: all.
    """

    def __init__(self, execute: int | None = None) -> None:
        if execute is not None and execute < 1:
            raise PolicyError(f"execute must be at least 1, or None for a whole chunk, got {execute}.")
        self.execute = execute
        self._left: dict[int, deque[np.ndarray]] = {}

    def reset(self, slots: Iterable[int]) -> None:
        """Forget what was decided on for these slots."""
        for slot in slots:
            self._left[slot] = deque()

    def act(self, observations: Observations, instructions: Sequence[str], ask: Ask) -> Float[np.ndarray, "B A"]:
        """Return the next action of every episode; those that have none left are asked for together.

        Raises:
            PolicyError: what the policy decided on is no (b, n, A), or fewer actions than are to be played.
        """
        empty = [i for i, slot in enumerate(observations.slots) if not self._left.get(slot)]
        if empty:
            chunks = self._checked(ask(observations.rows(empty), [instructions[i] for i in empty]), len(empty))
            for i, chunk in zip(empty, chunks, strict=True):
                self._left[observations.slots[i]] = deque(chunk[: self.execute])
        return np.stack([self._left[slot].popleft() for slot in observations.slots])

    def _checked(self, chunks: object, count: int) -> Float[np.ndarray, "b n A"]:
        try:
            found = np.asarray(chunks, np.float32)
        except (TypeError, ValueError) as error:
            raise PolicyError(f"A policy must return numbers, got {type(chunks).__name__}: {error}.") from error
        if found.ndim == 2:
            found = found[:, None]
        least = self.execute or 1
        if found.ndim != 3 or len(found) != count or found.shape[1] < least:
            raise PolicyError(
                f"A policy must return actions of shape ({count}, A), or chunks ({count}, n ≥ {least}, A), got "
                f"{np.shape(found)}."
            )
        return found
