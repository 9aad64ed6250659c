"""What a service plays: envs of one kind, as functions of slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Player(Protocol):
    """Envs of one kind. A slot is one env's state, and nobody else's business; all calls come from one thread."""

    def about(self) -> dict[str, Any]:
        """Return spaces, rate and the like, as plain values."""
        ...

    def slot(self, most_steps: int | None) -> Any:
        """Return a new slot, not yet reset; an episode is truncated after `most_steps`, 0: never, None: as usual."""
        ...

    def reset(self, slot: Any, seed: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Begin an episode in a slot; return {"observation", "info"}."""
        ...

    def actions(self, slot: Any, given: object, *, chunk: bool) -> Any:
        """Return the actions of a step, or of a chunk of steps, checked; they have a length. Raises ActionError."""
        ...

    def steps(self, work: Sequence[tuple[Any, Any, bool]]) -> list[dict[str, Any]]:
        """Step slots by as many actions each: (slot, actions, whether they are a chunk).

        Return {"observation", "reward", "terminated", "truncated", "info"} of each. No slot changes where it fails.
        """
        ...

    def copy(self, slot: Any, seed: int | None) -> Any:
        """Return a copy of a slot, with another noise where a seed is given."""
        ...
