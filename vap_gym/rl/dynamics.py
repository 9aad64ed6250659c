"""What episodes of things run in: imagined, simulated or pictured, behind one small protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from vap_gym.starts import Start

Array = np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Now:
    """How B slots stand. Metres in the robot's base frame."""

    tool_m: Float[Array, "B 3"]  # by kinematics
    reached_m: Float[Array, "B 3"]  # where the tool really is; in imagination the same
    closedness: Float[Array, " B"]
    yaw_rad: Float[Array, " B"]  # of the tip link about z
    object_m: Float[Array, "B 3"]  # the task's object, as rewards take it
    seen_m: Float[Array, "B 3"]  # as the agent sees it
    size_m: Float[Array, " B"]
    untrusted: Bool[Array, " B"]  # too little is known of what follows


@runtime_checkable
class ThingDynamics(Protocol):
    """Moves the robots and things of B slots."""

    @property
    def starts(self) -> Sequence[Start]:
        """Where episodes may begin; each has a scene."""
        ...

    @property
    def slots(self) -> int:
        """B."""
        ...

    def begin(self, rows: Sequence[int], which: Sequence[int], rng: np.random.Generator) -> None:
        """Begin in some slots, each from one of `starts`; the others are not touched."""
        ...

    def step(self, actions: Float[Array, "B 7"]) -> None:
        """Move on by a control step of DROID's velocities."""
        ...

    def now(self) -> Now:
        """Return how the slots stand."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


def noise_of(rng: np.random.Generator, rows: int, deviation: float) -> Float[Array, "rows 3"]:
    """Return normal numbers along the table, and none in height."""
    return np.concatenate([rng.normal(0.0, deviation, (rows, 2)), np.zeros((rows, 1))], 1)
