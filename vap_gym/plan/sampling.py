"""Planners that draw candidates: random shooting, the cross-entropy method, and MPPI."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vap_gym.errors import VapError
from vap_gym.plan.planner import Bounds, Plan, Scorer, Search, top


def check_counts(**counts: int) -> None:
    """Raise VapError unless all are at least 1."""
    wrong = {name: count for name, count in counts.items() if count < 1}
    if wrong:
        raise VapError(f"{' and '.join(wrong)} must be at least 1, got {', '.join(map(str, wrong.values()))}.")


@dataclass(frozen=True, kw_only=True)
class RandomShooting:
    """Draws sequences evenly from the bounds and keeps the best; the one that it is given to start from is among them.

    Args:
        candidates: N, drawn in each iteration.
        iterations: how often.
    """

    candidates: int = 64
    iterations: int = 3

    def __post_init__(self) -> None:
        check_counts(candidates=self.candidates, iterations=self.iterations)

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
        """See `Planner.plan`."""
        search = Search(score, bounds, horizon, batch=batch, start=start, seed=seed, budget_s=budget_s)
        for i in range(self.iterations):
            candidates = search.uniform(self.candidates)
            if i == 0 and start is not None:
                candidates[:, 0] = search.mean
            search.evaluate(candidates)
            if not search.may_go_on():
                break
        return search.plan()


@dataclass(frozen=True, kw_only=True)
class Cem:
    """The cross-entropy method (Rubinstein 1999; de Boer et al. 2005): draw around a mean, fit mean and spread to the
    best, again. The mean itself is among the candidates; returned is the best sequence seen.

    Args:
        candidates: N, in each iteration.
        iterations: how often.
        elites: how many of the best the next mean and spread are fitted to.
        spread: standard deviation at first, as a share of half the bounds' range.
        keep: share of the old mean and spread that is kept in each iteration.
    """

    candidates: int = 64
    iterations: int = 3
    elites: int = 8
    spread: float = 0.5
    keep: float = 0.1

    def __post_init__(self) -> None:
        check_counts(candidates=self.candidates, iterations=self.iterations, elites=self.elites)
        check_elites(self.elites, self.candidates)

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
        """See `Planner.plan`."""
        search = Search(score, bounds, horizon, batch=batch, start=start, seed=seed, budget_s=budget_s)
        mean = search.mean
        std = (self.spread * bounds.half).expand_as(mean)
        for _ in range(self.iterations):
            candidates = bounds.clip(mean[:, None] + std[:, None] * search.noise(self.candidates))
            candidates[:, 0] = mean
            elites = top(candidates, search.evaluate(candidates), self.elites)
            mean = torch.lerp(elites.mean(1), mean, self.keep)
            std = torch.lerp(elites.std(1, correction=0), std, self.keep)
            if not search.may_go_on():
                break
        return search.plan()


@dataclass(frozen=True, kw_only=True)
class Mppi:
    """Model predictive path integral control (Williams et al. 2017, arXiv 1707.02342): the next mean is the candidates'
    mean, weighted by exp(score / λ). Returned is that mean, scored once more.

    λ is told as a share of the scores' standard deviation, so that plans do not depend on the score's unit; there is no
    cost of control but what the score says.

    Args:
        candidates: N, in each iteration.
        iterations: how often the mean moves.
        spread: standard deviation of the candidates, as a share of half the bounds' range.
        narrowing: the spread is multiplied by this after each iteration (1: as in the paper).
        temperature: λ over the standard deviation of the scores.
    """

    candidates: int = 64
    iterations: int = 3
    spread: float = 0.5
    narrowing: float = 0.7
    temperature: float = 0.1

    def __post_init__(self) -> None:
        check_counts(candidates=self.candidates, iterations=self.iterations)
        if not self.temperature > 0:
            raise VapError(f"temperature must be above 0, got {self.temperature}. Try 0.1.")

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
        """See `Planner.plan`."""
        search = Search(score, bounds, horizon, batch=batch, start=start, seed=seed, budget_s=budget_s)
        mean, std = search.mean, self.spread * bounds.half
        for _ in range(self.iterations):
            candidates = bounds.clip(mean[:, None] + std * search.noise(self.candidates))
            candidates[:, 0] = mean
            scores = search.evaluate(candidates)
            finite = torch.where(scores.isfinite(), scores, scores.amax(1, keepdim=True))
            warmth = self.temperature * finite.std(1, keepdim=True, correction=0).clamp_min(1e-12)
            weights = ((scores - scores.amax(1, keepdim=True)) / warmth).softmax(1)
            mean = bounds.clip((weights[..., None, None] * candidates).sum(1))
            std = self.narrowing * std
            if not search.may_go_on():
                break
        drawn, scored = search.candidates, search.scores
        last = search.evaluate(mean[:, None])[:, 0]
        search.candidates, search.scores = drawn, scored
        return search.plan(mean, last)


def check_elites(elites: int, candidates: int) -> None:
    """Raise VapError where there would be more elites than candidates."""
    if elites > candidates:
        raise VapError(f"elites must be at most candidates ({candidates}), got {elites}.")
