"""MMRV, Pearson and Spearman: their definitions, what must not change them, and how far chance alone takes them."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from vap_gym import metrics
from vap_gym.errors import VapError

scores = st.lists(st.integers(0, 8), min_size=3, max_size=9).flatmap(  # few levels, so that ties are usual
    lambda sim: st.tuples(st.just(sim), st.lists(st.integers(0, 8), min_size=len(sim), max_size=len(sim)))
)


def mmrv_by_loops(sim: list[int], real: list[int]) -> float:
    """The definition, word by word."""
    worst = []
    for s_i, r_i in zip(sim, real):
        worst.append(max(abs(r_i - r_j) * ((s_i > s_j) != (r_i > r_j)) for s_j, r_j in zip(sim, real)))
    return sum(worst) / len(worst)


@given(scores)
def test_mmrv_is_what_it_is_defined_as(pair: tuple[list[int], list[int]]) -> None:
    sim, real = pair
    assert metrics.mmrv(sim, real) == pytest.approx(mmrv_by_loops(sim, real))


def test_mmrv_of_a_known_case_and_with_its_arguments_swapped() -> None:
    sim, real = [0.1, 0.9, 0.5], [0.2, 0.3, 0.9]  # policies 1 and 2 change places: .6 apart in reality, .4 in sim
    assert metrics.mmrv(sim, real) == pytest.approx((0 + 0.6 + 0.6) / 3)
    assert metrics.mmrv(real, sim) == pytest.approx((0 + 0.4 + 0.4) / 3)


@given(scores, st.randoms())
def test_the_order_of_policies_does_not_matter(pair: tuple[list[int], list[int]], random) -> None:
    sim, real = map(np.array, pair)
    order = list(range(len(sim)))
    random.shuffle(order)
    assert metrics.mmrv(sim[order], real[order]) == pytest.approx(metrics.mmrv(sim, real))
    assume(np.ptp(sim) > 0 and np.ptp(real) > 0)
    for figure in (metrics.pearson, metrics.spearman):
        assert figure(sim[order], real[order]) == pytest.approx(figure(sim, real), abs=1e-12)
        assert figure(sim, real) == pytest.approx(figure(real, sim), abs=1e-12)


@given(scores)
def test_a_perfect_simulator_and_any_with_its_order_score_the_best(pair: tuple[list[int], list[int]]) -> None:
    real = np.array(pair[1], float)
    assert metrics.mmrv(real, real) == 0
    assert metrics.mmrv(np.exp(real) - 7, real) == 0
    assume(np.ptp(real) > 0)
    assert metrics.pearson(3 * real - 7, real) == pytest.approx(1)
    assert metrics.spearman(np.exp(real), real) == pytest.approx(1)
    assert metrics.spearman(-real, real) == pytest.approx(-1)


@given(scores)
def test_correlations_equal_scipys_ties_included(pair: tuple[list[int], list[int]]) -> None:
    sim, real = pair
    assume(np.ptp(sim) > 0 and np.ptp(real) > 0)
    assert metrics.pearson(sim, real) == pytest.approx(stats.pearsonr(sim, real).statistic, abs=1e-12)
    assert metrics.spearman(sim, real) == pytest.approx(stats.spearmanr(sim, real).statistic, abs=1e-12)


@settings(max_examples=20)
@given(st.floats(1e-250, 1e250))
def test_correlations_do_not_depend_on_the_unit(unit: float) -> None:
    sim, real = np.array([0.1, 0.5, 0.2, 0.9]), np.array([0.2, 0.4, 0.4, 0.7])
    assert metrics.pearson(unit * sim, real) == pytest.approx(metrics.pearson(sim, real))


def test_chance_alone_keeps_a_perfect_simulator_from_a_perfect_score() -> None:
    """16 policies of uniform quality, 75 starts, drawn for sim and real: MMRV near .045, Pearson .976 (medians)."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(800):
        quality = rng.uniform(size=16)
        sim, real = (rng.binomial(75, quality) / 75 for _ in range(2))
        found.append((metrics.mmrv(sim, real), metrics.pearson(sim, real)))
    mmrv, pearson = np.median(found, axis=0)
    assert mmrv == pytest.approx(0.045, abs=0.003)
    assert pearson == pytest.approx(0.976, abs=0.003)


def test_agreement_carries_intervals_that_more_trials_narrow() -> None:
    rng = np.random.default_rng(1)
    quality = np.linspace(0.1, 0.9, 6)[:, None]

    def agreement(trials: int) -> metrics.RankAgreement:
        luck = rng.uniform(size=(6, trials))  # the start decides for both: paired
        return metrics.rank_agreement(luck < quality, luck < quality - 0.05, resamples=200)

    few, many = agreement(20), agreement(500)
    assert (many.policies, many.trials) == (6, 500)
    for name in ("mmrv", "pearson", "spearman"):
        interval = getattr(many, name)
        assert interval.low <= interval.value <= interval.high
        assert interval.samples == 500
    assert many.pearson.high - many.pearson.low < few.pearson.high - few.pearson.low


def test_agreement_is_seeded_and_survives_draws_in_which_all_policies_tie() -> None:
    sim, real = _same_trials()
    assert metrics.rank_agreement(sim, real, resamples=100) == metrics.rank_agreement(sim, real, resamples=100)
    single = metrics.rank_agreement([[1, 0], [0, 0]], [[1, 0], [0, 0]], resamples=50)  # half the draws tie
    assert single.pearson.value == single.pearson.low == single.pearson.high == 1


def _same_trials() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(size=(4, 12)).round(1), rng.uniform(size=(4, 12)).round(1)


def test_bad_scores_are_refused_in_three_parts() -> None:
    with pytest.raises(VapError, match=r"finite scores of the same two or more policies.*got \(2,\) and \(3,\)"):
        metrics.mmrv([1, 2], [1, 2, 3])
    with pytest.raises(VapError, match=r"with 1 NaN or infinite\. Give one mean score per policy"):
        metrics.spearman([1, np.nan], [1, 2])
    with pytest.raises(VapError, match=r"scores that differ, got real = 0\.5 for all 3 policies\. Score more"):
        metrics.pearson([1, 2, 3], [0.5, 0.5, 0.5])
    with pytest.raises(VapError, match=r"\(policies ≥ 2, trials ≥ 1\), got \(2, 3\) and \(2, 4\)\. Run every policy"):
        metrics.rank_agreement(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(VapError, match=r"level must be between 0 and 1, got 95.0"):
        metrics.rank_agreement(np.eye(2), np.eye(2), level=95.0)
