"""iCEM: the cross-entropy method with smooth noise and memory (Pinneri et al. 2020, arXiv 2008.06389)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vap_gym.plan.planner import Bounds, Plan, Scorer, Search, top
from vap_gym.plan.sampling import check_counts, check_elites


@dataclass(frozen=True, kw_only=True)
class Icem:
    """The cross-entropy method, improved: noise that is correlated in time, fewer candidates from iteration to
    iteration, elites that are kept for the next iteration and for the next plan, and the mean among the last
    candidates. Returned is the best sequence seen.

    Args:
        candidates: N in the first iteration.
        iterations: how often.
        elites: how many of the best mean and spread are fitted to.
        spread: standard deviation at first, as a share of half the bounds' range.
        keep: share of the old mean and spread that is kept in each iteration (the paper's α).
        colour: exponent β of the noise's spectrum 1 / f^β; 0 is white, 2 wanders.
        shrink: by which the number of candidates falls from iteration to iteration (γ), never below twice the elites.
        remembered: share of the elites that are candidates again in the next iteration, and in the next plan (ξ).
    """

    candidates: int = 64
    iterations: int = 3
    elites: int = 8
    spread: float = 0.5
    keep: float = 0.1
    colour: float = 2.0
    shrink: float = 1.25
    remembered: float = 0.3

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
        many = math.ceil(self.remembered * self.elites)
        kept = search.memory(many)
        for i in range(self.iterations):
            count = min(self.candidates, max(2 * self.elites, round(self.candidates * self.shrink**-i)))
            candidates = bounds.clip(mean[:, None] + std[:, None] * coloured(search, count, self.colour))
            candidates = torch.cat([candidates, kept], 1)
            if i in (0, self.iterations - 1):
                candidates[:, 0] = mean
            scores = search.evaluate(candidates)
            elites = top(candidates, scores, self.elites)
            kept = elites[:, :many]
            mean = torch.lerp(elites.mean(1), mean, self.keep)
            std = torch.lerp(elites.std(1, correction=0), std, self.keep)
            if not search.may_go_on():
                break
        return search.plan()


def coloured(search: Search, count: int, colour: float) -> Float[Tensor, "B N T A"]:
    """Return noise of unit variance whose power falls with frequency as 1 / f^colour (Timmer and König 1995).

    What is slower than the horizon counts as the slowest wave that fits it.
    """
    T = search.horizon
    scale = amplitudes(T, colour)
    waves = search.noise(count, shape=(search.size, *scale.shape))
    waves = waves * scale
    noise = torch.fft.irfft(torch.complex(waves[..., 0, :], waves[..., 1, :]), n=T)
    along_time: Tensor = noise.mT.contiguous()
    return along_time


def amplitudes(T: int, colour: float) -> Float[Tensor, "2 F"]:
    """Return the standard deviations of the real and imaginary parts of a spectrum whose inverse has unit variance."""
    frequency = torch.fft.rfftfreq(T).clamp_min(1.0 / T)
    power = frequency**-colour
    real, imaginary = power.clone(), power.clone()
    alone = [0] if T % 2 else [0, len(power) - 1]  # frequencies that have no conjugate partner are real
    real[alone], imaginary[alone] = 2.0 * power[alone], 0.0
    weight = torch.full_like(power, 4.0)
    weight[alone] = 1.0
    variance = (weight * torch.where(imaginary > 0, power, real)).sum() / T**2
    return (torch.stack([real, imaginary]) / variance).sqrt()
