"""Costs: adapters to and from `get_cost(info, (B, S, H, A)) → (B, S)`, the shape that stable-worldmodel plans with.

Its solvers hand over what is known of the environments (`info`) once for each of S candidates, tensors and arrays of
shape (B, S, …), and ask the model for its parameters to know their dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vap_gym.errors import ActionError
from vap_gym.plan.planner import Scorer


@runtime_checkable
class Costable(Protocol):
    """What such a solver asks of a model."""

    def get_cost(self, info: Any, actions: Tensor) -> Tensor:
        """Return the cost (B, S) of S action sequences (B, S, H, A) in each of B environments; lower is better."""
        ...


class ScoreAsCost:
    """A score of ours as a model of theirs: give it to their solvers.

    Args:
        score: from what the solver is told of the environments (`info`) to the score of actions there, (B, S, T, A) →
            (B, S); e.g. `lambda info: ForesightScore(…)`.
        action_size: A, the width of one action: solvers with an action block lay several side by side.
    """

    def __init__(self, score: Callable[[Mapping[str, Any]], Scorer], *, action_size: int) -> None:
        self._score, self._size = score, action_size

    def get_cost(self, info: Mapping[str, Any], actions: Float[Tensor, "B S H W"]) -> Float[Tensor, "B S"]:
        """Return minus the score. Raises ActionError for actions that are no whole number of ours."""
        *batch, horizon, width = actions.shape
        if width % self._size:
            raise ActionError(f"actions must be one or more of {self._size} entries each, got {width} entries.")
        return -self._score(info)(actions.reshape(*batch, horizon * width // self._size, self._size))

    def parameters(self) -> Iterator[Tensor]:
        """Yield a float32 number: solvers look at its dtype."""
        yield torch.zeros(())


def cost_as_score(model: Costable, info: Mapping[str, Any]) -> Scorer:
    """Return a model of theirs, in the situation `info` (tensors and arrays (B, …)), as a score for planners of ours:
    plan with `batch=B`."""

    def score(actions: Tensor) -> Tensor:
        return -model.get_cost({key: _for_each(value, actions.shape[1]) for key, value in info.items()}, actions)

    return score


def _for_each(value: Any, count: int) -> Any:
    if isinstance(value, Tensor):
        return value[:, None].expand(-1, count, *value.shape[1:])
    return np.repeat(value[:, None], count, axis=1) if isinstance(value, np.ndarray) else value
