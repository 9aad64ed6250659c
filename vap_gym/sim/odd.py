"""Odd things: unions of a few boxes, cylinders and balls at random.

No world model is trained on them, and no experiment is made of them: what is to be taken for strange is learned from
them (`train.familiar`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from vap_gym.errors import VapError
from vap_gym.sim.spec import SceneSpec

PREFIX = "odd-"  # of the names of their shapes; a number follows that says which
KINDS = ("box", "cylinder", "ball")
FULL = 0.7  # of the box around it at most: a cylinder fills .79 of its own, so what is less full is none of the known
EMPTY = 0.2  # at least
POINTS = 2000  # by which that is measured
TRIES = 500


@dataclass(frozen=True, kw_only=True)
class Solid:
    """A part of an odd thing, upright in its frame. Of cylinders and balls the first half extent is the radius."""

    kind: str  # of KINDS
    half_m: tuple[float, float, float]
    at_m: tuple[float, float, float]

    def holds(self, points_m: Float[np.ndarray, "N 3"]) -> np.ndarray:
        """Say which points lie within; bool (N,)."""
        away = np.abs(points_m - self.at_m)
        if self.kind == "box":
            return np.asarray((away <= self.half_m).all(-1))
        flat = away[:, :2] if self.kind == "cylinder" else away
        return np.asarray((np.linalg.norm(flat, axis=-1) <= self.half_m[0]) & (away[:, 2] <= self.half_m[2]))


def odd_solids(shape: str, half_extents_m: tuple[float, float, float]) -> tuple[Solid, ...]:
    """Return the two to four parts of the odd thing `shape` ("odd-" and a number); together they reach to all sides of
    a box of these half extents, and fill .2 to .7 of it.

    Raises:
        VapError: another name.
    """
    number = shape.removeprefix(PREFIX)
    if not shape.startswith(PREFIX) or not number.isdecimal():
        raise VapError(f"An odd shape is named '{PREFIX}' and a number ≥ 0, got '{shape}'. Try {PREFIX}7.")
    rng = np.random.default_rng([int(number), 7741])
    half = np.asarray(half_extents_m, float)
    points = rng.uniform(-1.0, 1.0, (POINTS, 3)) * half
    for _ in range(TRIES):
        solids = tuple(_drawn(rng, half) for _ in range(rng.integers(2, 5)))
        low = np.min([np.subtract(s.at_m, s.half_m) for s in solids], 0)
        high = np.max([np.add(s.at_m, s.half_m) for s in solids], 0)
        full = np.any([s.holds(points) for s in solids], 0).mean()
        if (low <= -0.95 * half).all() and (high >= 0.95 * half).all() and EMPTY <= full <= FULL:
            return solids
    raise VapError(f"'{shape}' fits no box of half extents {half_extents_m} m. Take sides that differ less.")


def with_odd_things(spec: SceneSpec, seed: int, *, share: float = 0.5) -> SceneSpec:
    """Return a scene in which about this share of the things is odd, as wide and high as before."""
    rng = np.random.default_rng([seed, 7742])
    odd = [bool(rng.random() < share) for _ in spec.objects]
    numbers = rng.integers(0, 2**31, len(odd))
    return replace(
        spec,
        objects=tuple(
            replace(item, shape=f"{PREFIX}{number}") if is_odd else item
            for item, is_odd, number in zip(spec.objects, odd, numbers, strict=True)
        ),
    )


def _drawn(rng: np.random.Generator, half: np.ndarray) -> Solid:
    """A part that touches one or more sides of the box."""
    kind = str(rng.choice(KINDS, p=(0.55, 0.3, 0.15)))
    size = rng.uniform(0.2, 1.0, 3) * half
    if kind != "box":
        size[:2] = size[:2].min()
    if kind == "ball":
        size[:] = size.min()
    at = np.clip(rng.uniform(-1.6, 1.6, 3), -1.0, 1.0) * (half - size)
    return Solid(kind=kind, half_m=tuple(size.tolist()), at_m=tuple(at.tolist()))
