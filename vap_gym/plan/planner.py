"""Planners: search over action sequences, given only a score. What they have in common: bounds, plans, the search.

B: environments planned for at once; N candidates; T steps; A action width. A planner holds settings only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vap_gym.errors import ActionError, VapError

Scorer = Callable[[Tensor], Tensor]
"""(N, T, A) → (N,), as `interfaces.Score`; or for B environments at once (B, N, T, A) → (B, N). Higher is better."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounds:
    """The least and the greatest action; an entry whose two are equal is not searched over."""

    low: Float[Tensor, " A"]
    high: Float[Tensor, " A"]

    def __post_init__(self) -> None:
        if self.low.shape != self.high.shape or not bool((self.low <= self.high).all()):
            raise VapError(
                f"low must not be above high, both of shape (A,), got {self.low.tolist()} and {self.high.tolist()}."
            )

    @staticmethod
    def of(space: Any) -> Bounds:
        """Return the bounds of a Gymnasium box of actions (A,), or of chunks (c, A) of them, which are alike."""
        low, high = (torch.as_tensor(x).float().reshape(-1, space.shape[-1])[0] for x in (space.low, space.high))
        return Bounds(low=low, high=high)

    def held(self, entries: Mapping[int, float]) -> Bounds:
        """Return the bounds with some entries of the action held at a value, e.g. {3: 0.0}."""
        low, high = self.low.clone(), self.high.clone()
        for i, value in entries.items():
            if not bool(low[i] <= value <= high[i]):
                raise VapError(
                    f"Entry {i} of an action must be held within [{float(low[i])}, {float(high[i])}], got {value}."
                )
            low[i] = high[i] = value
        return Bounds(low=low, high=high)

    @property
    def middle(self) -> Float[Tensor, " A"]:
        """Halfway between the two: for velocities, standing still."""
        return 0.5 * (self.low + self.high)

    @property
    def half(self) -> Float[Tensor, " A"]:
        """Half the range."""
        return 0.5 * (self.high - self.low)

    def clip(self, actions: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """Return the actions, moved into the bounds."""
        return actions.clamp(self.low.to(actions), self.high.to(actions))


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What a planner found: `*batch` is (B,) if it planned for B environments, else ()."""

    actions: Float[Tensor, "*batch T A"]
    score: Float[Tensor, "*batch"]
    candidates: Float[Tensor, "*batch N T A"]  # of the last iteration
    scores: Float[Tensor, "*batch N"]
    best: Float[Tensor, "*batch I"]  # the highest score seen up to each iteration
    evaluations: int  # sequences that were scored for an environment
    seconds: float

    def ahead(self, steps: int) -> Plan:
        """Return the plan as it stands `steps` later, to begin the next search from: what is done is cut off, the last
        action repeated."""

        def shifted(actions: Tensor) -> Tensor:
            T = actions.shape[-2]
            return actions[..., [min(t + steps, T - 1) for t in range(T)], :]

        return replace(self, actions=shifted(self.actions), candidates=shifted(self.candidates))

    def best_candidates(self, count: int) -> Float[Tensor, "*batch K T A"]:
        """Return the candidates of the last iteration with the highest scores, best first."""
        return top(self.candidates, self.scores, min(count, self.scores.shape[-1]))


@runtime_checkable
class Planner(Protocol):
    """Finds action sequences of high score."""

    def plan(
        self,
        score: Scorer,
        bounds: Bounds,
        horizon: int,
        *,
        batch: int | None = None,
        start: Plan | None = None,
        seed: int = 0,
        budget_s: float | None = None,
    ) -> Plan:
        """Search for `horizon` actions within bounds.

        Args:
            score: (N, T, A) → (N,), or with `batch` (B, N, T, A) → (B, N). NaN counts as the lowest.
            batch: plan for so many environments at once; each one's plan is the same as if it was planned for alone
                with `seed` + its number.
            start: where to begin: an earlier plan, see `Plan.ahead`. None: the middle of the bounds.
            seed: of the candidates.
            budget_s: begin no iteration that would, if as long as the last one, end later than this. The first is
                always made.

        Raises:
            VapError: a score of another shape, or NaN (or −inf) for all candidates.
            ActionError: a `start` of another shape.
        """
        ...


def top(
    candidates: Float[Tensor, "*batch N T A"], scores: Float[Tensor, "*batch N"], count: int
) -> Float[Tensor, "*batch K T A"]:
    """Return the candidates with the highest scores, best first."""
    order = scores.topk(count, dim=-1).indices
    return torch.take_along_dim(candidates, order[..., None, None], dim=-3)


class Search:
    """One search while it lasts: draws noise, scores candidates, remembers the best, watches the clock."""

    def __init__(
        self,
        score: Scorer,
        bounds: Bounds,
        horizon: int,
        *,
        batch: int | None,
        start: Plan | None,
        seed: int,
        budget_s: float | None,
    ) -> None:
        if horizon < 1 or (batch is not None and batch < 1):
            raise VapError(f"horizon and batch must be at least 1, got {horizon} and {batch}.")
        self._score, self.bounds, self._single, self._budget_s = score, bounds, batch is None, budget_s
        self.batch, self.horizon, self.size = batch or 1, horizon, len(bounds.low)
        self._rngs = [torch.Generator().manual_seed(seed + i) for i in range(self.batch)]
        shape = (self.batch, horizon, self.size)
        self.start = start
        if start is None:
            self.mean: Tensor = bounds.middle.expand(*shape).clone()
        else:
            given = start.actions[None] if self._single else start.actions
            if tuple(given.shape) != shape:
                raise ActionError(
                    f"start must be a plan of {shape[1:]} for {self.batch} environment(s), got actions of shape "
                    f"{tuple(start.actions.shape)}. Plan with the same horizon, bounds and batch as before."
                )
            self.mean = bounds.clip(given)
        self.actions = self.mean.clone()
        self._highest = torch.full((self.batch,), -torch.inf)
        self._best: list[Tensor] = []
        self._evaluations, self._longest_s = 0, 0.0
        self._began = self._mark = time.perf_counter()

    def noise(self, count: int, *, shape: tuple[int, ...] | None = None) -> Float[Tensor, "B N *shape"]:
        """Return standard normal numbers, each environment's from its own generator; by default of shape (T, A)."""
        shape = (self.horizon, self.size) if shape is None else shape
        return torch.stack([torch.randn(count, *shape, generator=rng) for rng in self._rngs])

    def uniform(self, count: int) -> Float[Tensor, "B N T A"]:
        """Return actions drawn evenly from the bounds."""
        shape = (count, self.horizon, self.size)
        share = torch.stack([torch.rand(*shape, generator=rng) for rng in self._rngs])
        return self.bounds.low + share * (self.bounds.high - self.bounds.low)

    def memory(self, count: int) -> Float[Tensor, "B K T A"]:
        """Return the best candidates of the plan that was begun from; none without one."""
        if self.start is None or count < 1:
            return self.mean.new_zeros(self.batch, 0, self.horizon, self.size)
        kept = self.start.best_candidates(count)
        return self.bounds.clip(kept[None] if self._single else kept)

    def evaluate(self, candidates: Float[Tensor, "B N T A"]) -> Float[Tensor, "B N"]:
        """Score candidates; what is returned may carry gradients, and NaN is −inf in it."""
        scores = self._score(candidates[0] if self._single else candidates)
        wanted = tuple(candidates.shape[1:2] if self._single else candidates.shape[:2])
        if tuple(scores.shape) != wanted:
            raise VapError(
                f"A score must give one number for each candidate, {wanted}, got shape {tuple(scores.shape)}."
            )
        scores = (scores[None] if self._single else scores).float()
        scores = torch.where(scores.isnan(), -torch.inf, scores)
        known = scores.detach()
        highest, which = known.max(1)
        better = highest > self._highest
        chosen = self.bounds.clip(candidates.detach()[torch.arange(self.batch), which])  # rounding may have left them
        self.actions = torch.where(better[:, None, None], chosen, self.actions)
        self._highest = torch.maximum(highest, self._highest)
        if not bool(self._highest.isfinite().all()):
            raise VapError(
                "A score must be a number for at least one candidate, got "
                f"{known[~self._highest.isfinite()][0, 0]} for all {known.shape[1]}."
            )
        self._best.append(self._highest.clone())
        self.candidates, self.scores = candidates.detach(), known
        self._evaluations += candidates.shape[1]
        return scores

    def may_go_on(self) -> bool:
        """Whether there is time for an iteration as long as the longest so far."""
        now = time.perf_counter()
        self._longest_s, self._mark = max(self._longest_s, now - self._mark), now
        return self._budget_s is None or now - self._began + self._longest_s <= self._budget_s

    def plan(self, actions: Float[Tensor, "B T A"] | None = None, score: Float[Tensor, " B"] | None = None) -> Plan:
        """Return what was found: the best candidate seen, or other actions with their score."""
        found: dict[str, Tensor] = {
            "actions": self.actions if actions is None else actions,
            "score": self._highest if score is None else score,
            "candidates": self.candidates,
            "scores": self.scores,
            "best": torch.stack(self._best, -1),
        }
        if self._single:
            found = {name: value[0] for name, value in found.items()}
        return Plan(**found, evaluations=self._evaluations, seconds=time.perf_counter() - self._began)


def held(actions: Float[Tensor, "*batch T A"], steps: int) -> Float[Tensor, "*batch _ A"]:
    """Return a sequence in which each action is held for so many steps."""
    return actions.repeat_interleave(steps, dim=-2)
