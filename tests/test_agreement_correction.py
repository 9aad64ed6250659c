"""Correction by true trials, abstention by trust, and how many trials are needed: each against a simulation of it."""

import numpy as np
import pytest
from scipy import stats

from vap_gym.errors import VapError
from vap_gym.evaluate.agreement_corrected import corrected_rate
from vap_gym.evaluate.agreement_trust import risk_coverage
from vap_gym.evaluate.trials import (
    paired_difference,
    trials_for_agreement,
    trials_for_width,
    trials_to_tell_apart,
    wilson,
)
from vap_gym.metrics import mmrv


def trial(
    rng: np.random.Generator, *, rate: float, n: int, N: int = 200, missed: float = 0.3, made_up: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Imagined outcomes of N starts, and true ones of n; imagination misses successes and makes some up."""
    y = rng.uniform(size=N) < rate
    f = np.where(y, rng.uniform(size=N) >= missed, rng.uniform(size=N) < made_up)
    true = np.full(N, np.nan)
    chosen = rng.choice(N, n, replace=False)
    true[chosen] = y[chosen]
    return f.astype(float), true


# --- correction ---


def test_the_plain_estimate_is_the_papers_formula() -> None:
    f, true = trial(np.random.default_rng(0), rate=0.6, n=25)
    tried = np.isfinite(true)
    found = corrected_rate(f, true, weight=1.0)
    assert found.rate.value == pytest.approx(f[~tried].mean() + (true[tried] - f[tried]).mean())
    assert found.imagined.value == pytest.approx(f.mean())
    assert found.true.value == pytest.approx(true[tried].mean())
    assert found.rate.samples == 25


@pytest.mark.parametrize("n", [10, 30])
def test_intervals_hold_the_true_rate_where_imagination_is_biased_and_its_own_do_not(n: int) -> None:
    rng = np.random.default_rng(n)
    held, naive, values = [], [], []
    for _ in range(300):
        found = corrected_rate(*trial(rng, rate=0.6, n=n))
        held.append(found.rate.low <= 0.6 <= found.rate.high)
        naive.append(found.imagined.low <= 0.6 <= found.imagined.high)
        values.append(found.rate.value)
    assert np.mean(held) >= 0.93
    assert np.mean(naive) < 0.3
    assert np.mean(values) == pytest.approx(0.6, abs=0.02)  # right on average


def test_good_imagination_is_worth_true_trials_and_a_useless_one_costs_hardly_any() -> None:
    rng = np.random.default_rng(2)
    good = [corrected_rate(*trial(rng, rate=0.5, n=30, missed=0.05)) for _ in range(60)]
    useless = [corrected_rate(*trial(rng, rate=0.5, n=30, missed=0.5, made_up=0.5)) for _ in range(60)]
    assert np.mean([one.worth for one in good]) > 50
    assert np.mean([one.worth for one in useless]) > 26
    assert np.mean([one.weight for one in useless]) < 0.15 < 0.4 < np.mean([one.weight for one in good])


def test_few_trials_that_imagination_got_right_by_luck_do_not_make_it_certain() -> None:
    f = np.tile([1.0, 0.0], 100)
    true = np.full(200, np.nan)
    true[:6] = f[:6]
    found = corrected_rate(f, true)
    assert found.rate.high - found.rate.low > 0.3


def test_where_everything_was_tried_the_true_rate_stands() -> None:
    f, y = np.array([1.0, 0, 1, 0, 1]), np.array([1.0, 1, 1, 0, 0])
    found = corrected_rate(f, y)
    assert (found.rate.value, found.weight) == (pytest.approx(0.6), 0.0)


def test_corrections_without_enough_truth_are_refused() -> None:
    with pytest.raises(VapError, match=r"at least three true trials, got 2"):
        corrected_rate([1, 0, 1, 1], [1, 0, np.nan, np.nan])
    with pytest.raises(VapError, match=r"one shape \(trials,\), got \(2,\) and \(3,\)"):
        corrected_rate([1, 0], [1, 0, 1])
    with pytest.raises(VapError, match=r"weight must be between 0 and 1"):
        corrected_rate([1, 0, 1], [1, 0, 1], weight=2.0)


# --- abstention ---


def test_risk_falls_with_coverage_where_trust_tells_something() -> None:
    rng = np.random.default_rng(3)
    trust = rng.uniform(size=4000)
    wrong = rng.uniform(size=4000) < 0.6 * (1 - trust)
    curve = risk_coverage(trust, wrong)
    assert curve.coverage[-1] == 1.0
    assert curve.risk[-1] == pytest.approx(wrong.mean()) == pytest.approx(curve.area_chance)
    assert curve.area_best < curve.area < 0.6 * curve.area_chance
    threshold, coverage = curve.at_most(0.15) or (0.0, 0.0)
    assert wrong[trust >= threshold].mean() <= 0.15
    assert (trust >= threshold).mean() == pytest.approx(coverage)
    assert coverage == pytest.approx(0.5, abs=0.08)


def test_a_known_curve_with_ties_and_an_unknown_verdict() -> None:
    curve = risk_coverage([0.9, 0.5, 0.5, 0.1, 0.7], [0, 1, 0, 1, np.nan])
    assert curve.threshold.tolist() == [0.9, 0.5, 0.1]
    assert curve.coverage.tolist() == [0.25, 0.75, 1.0]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 3, 1 / 2])
    assert curve.area == pytest.approx((0 + 2 / 3 + 1 / 2) / 4)
    assert curve.area_best == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)
    assert curve.at_most(0.4) == (0.5, 0.75)
    assert risk_coverage([0.5], [1]).at_most(0.4) is None


def test_trust_that_is_unknown_is_refused() -> None:
    with pytest.raises(VapError, match=r"trust always known.*1 NaN"):
        risk_coverage([0.5, np.nan], [0, 1])


# --- differences ---


@pytest.mark.parametrize(("both", "only_a", "only_b"), [(0.3, 0.3, 0.1), (0.45, 0.03, 0.02), (0.05, 0.0, 0.01)])
def test_a_paired_difference_holds_the_truth_also_where_two_hardly_differ(
    both: float, only_a: float, only_b: float
) -> None:
    rng, held = np.random.default_rng(4), []
    cells = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], float)
    for _ in range(300):
        a, b = cells[rng.choice(4, 60, p=[both, only_a, only_b, 1 - both - only_a - only_b])].T
        found = paired_difference(a, b)
        assert found.value == pytest.approx(a.mean() - b.mean())
        held.append(found.low <= only_a - only_b <= found.high)
    assert np.mean(held) >= 0.93


def test_seeds_of_one_start_are_no_trials_of_their_own() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 2, (2, 30)).astype(float)
    once = paired_difference(a, b)
    whole = paired_difference(np.repeat(a, 8), np.repeat(b, 8), starts=np.repeat(range(30), 8))
    assert whole.samples == once.samples == 30
    assert whole.high - whole.low == pytest.approx(once.high - once.low, rel=0.2)
    assert whole.value == pytest.approx(once.value)
    b[3] = np.nan
    assert paired_difference(a, b).samples == 29
    with pytest.raises(VapError, match=r"got \(2,\) and \(3,\)"):
        paired_difference([0, 1], [0, 1, 1])


# --- how many trials ---


def test_wilsons_interval_is_scipys_and_has_room_at_the_ends() -> None:
    found = wilson(0, 10)
    assert (found.value, found.low) == (0.0, 0.0)
    assert 0.2 < found.high < 0.35
    with pytest.raises(VapError, match=r"got 3 of 2"):
        wilson(3, 2)


@pytest.mark.parametrize(("rate", "half_width"), [(0.5, 0.1), (0.1, 0.05), (0.0, 0.02)])
def test_so_many_trials_give_an_interval_that_narrow_and_one_less_does_not(rate: float, half_width: float) -> None:
    n = trials_for_width(rate, half_width)
    for trials, enough in ((n, True), (n - 1, False)):
        z2 = stats.norm.ppf(0.975) ** 2
        width = np.sqrt(z2 * (trials * rate * (1 - rate) + z2 / 4)) / (trials + z2)
        assert bool(width <= half_width) is enough
    assert abs(trials_for_width(0.5, 0.1) - 93) <= 1


@pytest.mark.parametrize(("a", "b", "correlation"), [(0.5, 0.7, 0.0), (0.5, 0.7, 0.5), (0.3, 0.45, 0.6)])
def test_policies_are_told_apart_as_often_as_promised(a: float, b: float, correlation: float) -> None:
    n = trials_to_tell_apart(a, b, correlation=correlation)
    both = a * b + correlation * np.sqrt(a * (1 - a) * b * (1 - b))
    cells = np.random.default_rng(5).multinomial(n, [both, a - both, b - both, 1 - a - b + both], 4000)
    only_a, only_b = cells[:, 1], cells[:, 2]
    chi = (only_a - only_b) ** 2 / np.maximum(only_a + only_b, 1)
    assert np.mean(chi > stats.chi2.ppf(0.95, 1)) == pytest.approx(0.8, abs=0.05)


def test_pairing_saves_trials() -> None:
    assert trials_to_tell_apart(0.5, 0.7, correlation=0.6) < 0.6 * trials_to_tell_apart(0.5, 0.7)
    with pytest.raises(VapError, match=r"can have a correlation of -0\.6\d to 0\.6\d, got 0\.9"):
        trials_to_tell_apart(0.5, 0.7, correlation=0.9)
    with pytest.raises(VapError, match=r"Two different rates"):
        trials_to_tell_apart(0.5, 0.5)


def test_trials_for_an_agreement_are_those_with_which_luck_allows_it() -> None:
    rates = np.linspace(0.1, 0.9, 9)
    n = trials_for_agreement(rates, most_mmrv=0.04, draws=200)
    rng = np.random.default_rng(9)

    def median(trials: int) -> float:
        sim, real = rng.binomial(trials, rates, (2, 400, 9)) / trials
        return float(np.median([mmrv(s, r) for s, r in zip(sim, real)]))

    assert median(n) < 0.05
    assert median(n // 2) > 0.04
    assert trials_for_agreement(rates, least_pearson=0.9, draws=100) < n
    assert trials_for_agreement(rates, least_pearson=0.9, most_mmrv=0.04, draws=100) >= n - 6
    with pytest.raises(VapError, match=r"A bound is needed"):
        trials_for_agreement(rates)
