"""Planners: what they find where the best is known, and that they keep to bounds, seeds, time and batch."""

import math
import time
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from vap_gym.errors import ActionError, VapError
from vap_gym.plan.gradient import GradientAscent
from vap_gym.plan.icem import Icem, amplitudes, coloured
from vap_gym.plan.planner import Bounds, Plan, Planner, Search
from vap_gym.plan.sampling import Cem, Mppi, RandomShooting

T, A = 6, 3
BOUNDS = Bounds(low=torch.full((A,), -1.0), high=torch.full((A,), 1.0))
BEST = torch.rand(T, A, generator=torch.Generator().manual_seed(3)) * 1.2 - 0.6
PLANNERS: dict[str, Any] = {
    "shooting": RandomShooting,
    "cem": Cem,
    "icem": Icem,
    "mppi": Mppi,
    "gradient": GradientAscent,
}
LONG: dict[str, Planner] = {
    "cem": Cem(candidates=200, iterations=40, elites=20),
    "icem": Icem(candidates=200, iterations=40, elites=20, colour=0.5, shrink=1.0),
    "mppi": Mppi(candidates=400, iterations=40, narrowing=0.9, temperature=0.05),
    "gradient": GradientAscent(candidates=2, iterations=300, rate=0.02),
}


def bowl(actions: Tensor) -> Tensor:
    """A badly scaled quadratic: its best is 0, at BEST; later steps count a tenth."""
    weight = torch.logspace(0, -1, T)[:, None]
    return -(weight * (actions - BEST) ** 2).sum((-1, -2))


@pytest.mark.parametrize("name", LONG)
def test_the_top_of_a_quadratic_is_found(name: str) -> None:
    plan = LONG[name].plan(bowl, BOUNDS, T, seed=1)
    assert float((plan.actions - BEST).abs().max()) < 0.05
    assert float(plan.score) > -2e-3
    assert torch.isclose(bowl(plan.actions[None])[0], plan.score)


def test_the_gradient_finds_it_to_many_digits_and_the_others_do_with_more_iterations() -> None:
    fine = GradientAscent(candidates=1, iterations=1000, rate=0.005).plan(bowl, BOUNDS, T)
    assert float((fine.actions - BEST).abs().max()) < 1e-4
    off = [
        float((Cem(candidates=200, iterations=n, elites=20).plan(bowl, BOUNDS, T).actions - BEST).norm())
        for n in (2, 8, 32)
    ]
    assert off[0] > 3 * off[1] > 9 * off[2]


@pytest.mark.parametrize("name", LONG)
def test_where_the_top_is_out_of_bounds_the_plan_ends_at_them(name: str) -> None:
    outside = torch.tensor([2.0, -3.0, 0.2])

    def score(actions: Tensor) -> Tensor:
        return -((actions - outside) ** 2).sum((-1, -2))

    found = LONG[name].plan(score, BOUNDS, T, seed=2).actions
    off = (found - torch.tensor([1.0, -1.0, 0.2])).abs()
    assert float(off[:, :2].max()) < 0.02
    assert float(off[:, 2].max()) < 0.15
    assert bool((found.abs() <= 1.0).all())


def test_random_shooting_gets_nearer_as_the_number_of_draws_says() -> None:
    """In one dimension the best of N even draws is 1 / N of the range off, on average."""
    one = Bounds(low=torch.zeros(1), high=torch.ones(1))

    def off(candidates: int) -> float:
        planner = RandomShooting(candidates=candidates, iterations=1)
        plans = planner.plan(lambda a: -(a[..., 0, 0] - 0.5).abs(), one, 1, batch=400)
        return float((plans.actions - 0.5).abs().mean())

    assert off(10) == pytest.approx(0.5 / 11, rel=0.15)
    assert off(100) == pytest.approx(0.5 / 101, rel=0.15)


def test_two_hills_the_higher_is_found_by_those_that_draw() -> None:
    """A gradient that begins near the lower hill stays there; candidates elsewhere see the higher one."""

    def score(actions: Tensor) -> Tensor:
        x = actions[..., 0].mean(-1)
        return torch.exp(-((x + 0.5) ** 2) / 0.02) + 0.5 * torch.exp(-((x - 0.3) ** 2) / 0.02)

    line = Bounds(low=-torch.ones(1), high=torch.ones(1))
    start = GradientAscent(iterations=1).plan(score, line, 1)
    start = Plan(**{**start.__dict__, "actions": torch.full((1, 1), 0.35)})
    climbed = GradientAscent(candidates=1, iterations=100).plan(score, line, 1, start=start)
    assert float(climbed.actions[0, 0]) == pytest.approx(0.3, abs=0.02)
    for planner in (Cem(iterations=10), Icem(iterations=10), RandomShooting(iterations=10)):
        found = planner.plan(score, line, 1, start=start)
        assert float(found.actions[0, 0]) == pytest.approx(-0.5, abs=0.1), planner


@pytest.mark.parametrize("name", PLANNERS)
def test_the_same_seed_gives_the_same_plan_and_another_one_another(name: str) -> None:
    one, again, other = (PLANNERS[name]().plan(bowl, BOUNDS, T, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(one.actions, again.actions)
    assert torch.equal(one.candidates, again.candidates)
    assert not torch.equal(one.candidates, other.candidates)


@pytest.mark.parametrize("name", PLANNERS)
def test_a_batch_of_environments_is_planned_as_each_alone(name: str) -> None:
    goals = torch.stack([BEST, -BEST, 0.5 * BEST])

    def score(actions: Tensor) -> Tensor:
        return -((actions - goals[:, None]) ** 2).sum((-1, -2))

    together = PLANNERS[name]().plan(score, BOUNDS, T, batch=3, seed=7)
    assert together.actions.shape == (3, T, A)
    assert together.scores.shape == together.candidates.shape[:2]
    for i in range(3):
        alone = PLANNERS[name]().plan(lambda a, i=i: score(a.expand(3, *a.shape))[i], BOUNDS, T, seed=7 + i)
        assert torch.allclose(together.actions[i], alone.actions, atol=1e-6)


@pytest.mark.parametrize("name", PLANNERS)
def test_affine_changes_of_the_score_change_no_plan(name: str) -> None:
    plain = PLANNERS[name]().plan(bowl, BOUNDS, T, seed=1)
    other = PLANNERS[name]().plan(lambda a: 40.0 * bowl(a) - 3.0, BOUNDS, T, seed=1)
    assert torch.allclose(plain.actions, other.actions, atol=1e-3)


@pytest.mark.parametrize("name", PLANNERS)
def test_entries_that_are_held_stay_and_no_candidate_leaves_the_bounds(name: str) -> None:
    bounds = BOUNDS.held({1: 0.25})
    seen: list[Tensor] = []

    def score(actions: Tensor) -> Tensor:
        seen.append(actions.detach())
        return bowl(actions)

    plan = PLANNERS[name](candidates=16).plan(score, bounds, T)
    assert all(bool((a[..., 1] == 0.25).all()) for a in (*seen, plan.actions))
    assert all(bool((a.abs() <= 1.0 + 1e-6).all()) for a in seen)


def test_the_best_only_rises_and_counts_are_told() -> None:
    plan = Icem(candidates=40, iterations=5, elites=5, shrink=1.25).plan(bowl, BOUNDS, T)
    assert plan.best.shape == (5,)
    assert bool((plan.best.diff() >= 0).all())
    drawn = [40, 32, 26, 20, 16]
    assert plan.evaluations == sum(drawn) + 4 * 2  # elites are kept from the second iteration on
    assert float(plan.score) == float(plan.best[-1]) == float(plan.best.max())
    assert plan.seconds > 0


def test_a_plan_that_begins_from_the_last_one_is_better_than_one_from_nothing() -> None:
    """Receding horizon: the goal moves on by a step, and the last plan shifted by one fits it already."""
    path = torch.stack([torch.sin(torch.arange(12.0) + k) for k in range(A)], -1) * 0.8

    def following(begin: int) -> Any:
        return lambda a: -((a - path[begin : begin + T]) ** 2).sum((-1, -2))

    for planner in (Cem(), Icem(), Mppi(), GradientAscent(iterations=5)):
        first = LONG["gradient"].plan(following(0), BOUNDS, T)
        warm = planner.plan(following(2), BOUNDS, T, start=first.ahead(2))
        cold = planner.plan(following(2), BOUNDS, T)
        assert float(warm.score) > float(cold.score), planner
    assert torch.equal(first.ahead(2).actions[:-2], first.actions[2:])
    assert torch.equal(first.ahead(2).actions[-1], first.actions[-1])


def test_icem_remembers_the_best_of_the_last_plan() -> None:
    first = Icem(candidates=30, iterations=3, elites=10, remembered=0.3).plan(bowl, BOUNDS, T)
    seen: list[Tensor] = []

    def score(actions: Tensor) -> Tensor:
        seen.append(actions)
        return bowl(actions)

    Icem(candidates=30, iterations=1, elites=10, remembered=0.3).plan(score, BOUNDS, T, start=first.ahead(1))
    assert torch.equal(seen[0][-3:], first.ahead(1).best_candidates(3))


def test_time_that_is_up_ends_the_search_after_an_iteration() -> None:
    def slow(actions: Tensor) -> Tensor:
        time.sleep(0.02)
        return bowl(actions)

    for name in PLANNERS:
        hurried = PLANNERS[name](iterations=50).plan(slow, BOUNDS, T, budget_s=0.01)
        assert hurried.best.shape[-1] <= 2, name  # MPPI scores its mean, too
        assert float(hurried.score) >= float(hurried.scores[0])


@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 9, 64])
def test_coloured_noise_has_unit_variance(colour: float, steps: int) -> None:
    search = Search(bowl, BOUNDS, steps, batch=1, start=None, seed=0, budget_s=None)
    noise = coloured(search, 3000, colour)
    assert noise.shape == (1, 3000, steps, A)
    assert bool(((noise.var((0, 1)) - 1.0).abs() < 0.15).all())
    assert float(noise.mean().abs()) < 0.05


def test_the_spectrum_of_coloured_noise_falls_as_its_colour_says() -> None:
    search = Search(bowl, BOUNDS, 256, batch=1, start=None, seed=0, budget_s=None)
    frequency = torch.fft.rfftfreq(256)[2:100].log()
    for colour in (0.0, 1.0, 2.0):
        power = torch.fft.rfft(coloured(search, 300, colour), dim=2).abs().square().mean((0, 1, 3))[2:100].log()
        x, y = frequency - frequency.mean(), power - power.mean()
        assert float((x * y).sum() / (x * x).sum()) == pytest.approx(-colour, abs=0.1)
    assert amplitudes(7, 1.0).shape == (2, 4)


def test_candidates_that_cannot_be_scored_are_passed_over() -> None:
    def score(actions: Tensor) -> Tensor:
        return torch.where(actions[..., 0, 0] > 0, math.nan, bowl(actions))

    for name in PLANNERS:
        plan = PLANNERS[name]().plan(score, BOUNDS, T)
        assert bool(plan.score.isfinite()), name
        assert float(plan.actions[0, 0]) <= 0.0, name


def test_mistakes_are_told() -> None:
    with pytest.raises(VapError, match="at least one candidate"):
        Cem().plan(lambda a: torch.full(a.shape[:-2], math.nan), BOUNDS, T)
    with pytest.raises(VapError, match=r"one number for each candidate, \(64,\), got shape \(64, 6\)"):
        Cem().plan(lambda a: a.sum(-1), BOUNDS, T)
    with pytest.raises(VapError, match="without"):
        GradientAscent().plan(lambda a: bowl(a.detach()), BOUNDS, T)
    with pytest.raises(ActionError, match="start must be a plan"):
        Cem().plan(bowl, BOUNDS, T, start=Cem().plan(lambda a: a.sum((-1, -2)), BOUNDS, T + 1))
    with pytest.raises(VapError, match="elites must be at most"):
        Cem(candidates=4, elites=8)
    with pytest.raises(VapError, match="iterations must be at least 1"):
        Mppi(iterations=0)
    with pytest.raises(VapError, match="held within"):
        BOUNDS.held({0: 2.0})
    with pytest.raises(VapError, match="must not be above"):
        Bounds(low=torch.ones(2), high=torch.zeros(2))


def test_bounds_of_spaces() -> None:
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0])
    for space in (spaces.Box(low.numpy(), high.numpy()), spaces.Box(low.tile(4, 1).numpy(), high.tile(4, 1).numpy())):
        bounds = Bounds.of(space)
        assert torch.equal(bounds.low, low)
        assert torch.equal(bounds.high, high)
    assert bounds.middle.tolist() == [0.0, 1.0]


def test_planners_are_planners() -> None:
    assert all(isinstance(make(), Planner) for make in PLANNERS.values())
