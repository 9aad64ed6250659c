"""Planning by gradients: several sequences climb a differentiable score at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vap_gym.errors import VapError
from vap_gym.plan.planner import Bounds, Plan, Scorer, Search
from vap_gym.plan.sampling import check_counts


@dataclass(frozen=True, kw_only=True)
class GradientAscent:
    """Adam on the actions (Kingma and Ba 2015), moved back into the bounds after each step. The first candidate begins
    where it is told to, the others around it; returned is the best sequence seen.

    The score must be differentiable in the actions (`plan.gradients` makes such).

    Args:
        candidates: how many sequences climb side by side.
        iterations: steps of Adam.
        rate: length of a step, as a share of half the bounds' range.
        spread: standard deviation of the beginnings, as a share of half the range.
    """

    candidates: int = 8
    iterations: int = 30
    rate: float = 0.05
    spread: float = 0.3

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
        """See `Planner.plan`.

        Raises:
            VapError: also where the score carries no gradient.
        """
        search = Search(score, bounds, horizon, batch=batch, start=start, seed=seed, budget_s=budget_s)
        half, middle = bounds.half, bounds.middle
        begun = self.spread * search.noise(self.candidates)
        begun[:, 0] = 0.0
        unit = torch.where(half > 0, (search.mean - middle) / half.clamp_min(1e-12), 0.0)
        shares = (unit[:, None] + begun).clamp(-1.0, 1.0).requires_grad_()
        adam = torch.optim.Adam([shares], lr=self.rate)
        for _ in range(self.iterations):
            with torch.enable_grad():
                scores = search.evaluate(middle + half * shares)
                if not scores.requires_grad:
                    raise VapError(
                        "GradientAscent needs a score with gradients, got one without. Score with plan.gradients, or "
                        "plan with Cem, Icem or Mppi."
                    )
                (slope,) = torch.autograd.grad(scores[scores.isfinite()].sum(), shares)
            shares.grad = -slope.nan_to_num(0.0, 0.0, 0.0)
            adam.step()
            with torch.no_grad():
                shares.clamp_(-1.0, 1.0)
            if not search.may_go_on():
                break
        return search.plan()
