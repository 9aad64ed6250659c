"""Agreement of imagined and true outcomes: its figures, their intervals, and what a perfect simulator would score."""

import numpy as np
import pytest
from scipy import stats

from vap_gym import metrics
from vap_gym.errors import VapError
from vap_gym.evaluate.agreement import _figures, kruskal_of, outcome_agreement, perfect_simulator


def outcomes(
    rng: np.random.Generator, *, policies: int = 8, trials: int = 60, wrong: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Imagined and true outcomes of policies from .1 to .9; so many imagined ones are the opposite of the true ones."""
    true = rng.uniform(size=(policies, trials)) < np.linspace(0.1, 0.9, policies)[:, None]
    return np.where(rng.uniform(size=true.shape) < wrong, ~true, true).astype(float), true.astype(float)


def test_figures_are_those_of_the_mean_scores() -> None:
    imagined, true = outcomes(np.random.default_rng(0))
    found = outcome_agreement(imagined, true, resamples=200)
    sim, real = imagined.mean(1), true.mean(1)
    assert found.pearson.value == pytest.approx(stats.pearsonr(sim, real).statistic)
    assert found.spearman.value == pytest.approx(stats.spearmanr(sim, real).statistic)
    assert found.mmrv.value == pytest.approx(metrics.mmrv(sim, real))
    for interval in (found.pearson, found.spearman, found.mmrv):
        assert interval.low < interval.high
        assert interval.samples == 60
    assert found.differ is not None
    assert found.differ.p == pytest.approx(stats.kruskal(*true).pvalue)
    assert found.policies[2].kruskal.p == pytest.approx(stats.kruskal(imagined[2], true[2]).pvalue)


def test_a_simulator_that_is_always_right_agrees_fully() -> None:
    _, true = outcomes(np.random.default_rng(1))
    found = outcome_agreement(true, true, resamples=100)
    assert found.pearson.low == pytest.approx(1.0)
    assert (found.mmrv.value, found.mmrv.high) == (0, 0)
    assert all(
        one.bias.value == 0 and one.bias.low < 0 < one.bias.high and one.kruskal.p == pytest.approx(1)
        for one in found.policies
    )
    assert found.perfect is not None
    assert found.perfect.pearson.value < 1  # who draws new outcomes has luck of their own


def test_the_bias_of_a_policy_is_found_and_its_interval_is_paired() -> None:
    """A hundred starts, half of them hard: alone, a mean is known to ± .1; the difference much better."""
    rng = np.random.default_rng(2)
    true = np.tile(np.repeat([0.0, 1.0], 50), (3, 1))
    true[1, :20], true[2, :40] = 1.0, 1.0
    imagined = true.copy()
    imagined[:, rng.choice(50, 5, replace=False) + 50] = 0.0  # five successes of each are missed
    found = outcome_agreement(imagined, true, names=["a", "b", "c"])
    for one in found.policies:
        assert one.bias.value == pytest.approx(-0.05)
        assert one.bias.low <= -0.05 <= one.bias.high <= 0.0
        assert one.bias.high - one.bias.low < 0.1
    assert [one.name for one in found.policies] == ["a", "b", "c"]
    assert "a" in str(found)
    assert "perfect" in str(found)


def test_trials_that_are_unknown_on_one_side_count_on_neither() -> None:
    imagined, true = outcomes(np.random.default_rng(3))
    hole = imagined.copy()
    hole[0, :10], hole[4, 5] = np.nan, np.nan
    found = outcome_agreement(hole, true, resamples=100)
    known = np.isfinite(hole)
    sim = [row[k].mean() for row, k in zip(imagined, known)]
    real = [row[k].mean() for row, k in zip(true, known)]
    assert found.pearson.value == pytest.approx(np.corrcoef(sim, real)[0, 1])
    assert found.policies[0].trials == 50
    assert found == outcome_agreement(imagined, np.where(known, true, np.nan), resamples=100)


def test_starts_are_drawn_whole() -> None:
    """Ten seeds of a start that all tell the same are worth no more than one: the interval must not become narrower."""
    imagined, true = outcomes(np.random.default_rng(4), trials=30)
    once = outcome_agreement(imagined, true)
    many = outcome_agreement(np.repeat(imagined, 10, 1), np.repeat(true, 10, 1), starts=np.repeat(range(30), 10))
    alone = outcome_agreement(np.repeat(imagined, 10, 1), np.repeat(true, 10, 1))
    assert many.pearson.low == pytest.approx(once.pearson.low)
    assert many.pearson.samples == 30
    assert alone.pearson.low > once.pearson.low + 0.01


def test_mean_scores_alone_are_resampled_over_policies() -> None:
    imagined, true = outcomes(np.random.default_rng(5))
    found = outcome_agreement(imagined.mean(1), true.mean(1))
    assert found.resampled == "policies"
    assert found.policies == ()
    assert found.perfect is None
    assert found.pearson.low <= found.pearson.value <= found.pearson.high
    assert found.pearson.low < found.pearson.high


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """The true bias of imagination is known here: 30 % of true successes are missed."""
    rng = np.random.default_rng(6)
    rates = np.array([0.1, 0.3, 0.6])
    held = []
    for _ in range(200):
        true = rng.uniform(size=(3, 60)) < rates[:, None]
        imagined = true & (rng.uniform(size=true.shape) > 0.3)
        for i, one in enumerate(outcome_agreement(imagined, true, resamples=300).policies):
            held.append(one.bias.low <= -0.3 * rates[i] <= one.bias.high)
    assert 0.9 <= np.mean(held) <= 0.99


def test_a_perfect_simulator_scores_what_chance_leaves() -> None:
    """Uniform qualities, 16 policies, 75 starts: near .976 and .045, as with rates that are known."""
    rng = np.random.default_rng(7)
    medians = []
    for _ in range(12):
        true = rng.uniform(size=(16, 75)) < rng.uniform(size=16)[:, None]
        found = perfect_simulator(true, draws=200)
        medians.append((found.mmrv.value, found.pearson.value))
    mmrv, pearson = np.mean(medians, axis=0)
    assert mmrv == pytest.approx(0.045, abs=0.008)
    assert pearson == pytest.approx(0.976, abs=0.008)


def test_with_several_seeds_a_start_a_perfect_simulator_knows_which_starts_are_hard() -> None:
    """Where the start decides everything there is no luck, and nothing is lost."""
    true = np.repeat(np.array([[0, 0, 1], [0, 1, 1], [1, 1, 1]], float), 4, axis=1)
    found = perfect_simulator(true, starts=np.repeat(range(3), 4), draws=50)
    assert (found.pearson.low, found.mmrv.high) == (pytest.approx(1), 0)
    assert perfect_simulator(true, draws=50).pearson.low < 0.99


def test_figures_of_many_draws_at_once_are_those_of_each_alone() -> None:
    rng = np.random.default_rng(8)
    sims, reals = rng.integers(0, 4, (2, 30, 5)) / 4  # few levels, so that ties are usual
    reals[0] = 0.5
    found = _figures(sims, reals)
    differ = [(s, r) for s, r in zip(sims, reals) if np.ptp(s) > 0 and np.ptp(r) > 0]
    assert len(differ) < 30
    assert found["mmrv"] == pytest.approx([metrics.mmrv(s, r) for s, r in zip(sims, reals)])
    assert found["pearson"] == pytest.approx([metrics.pearson(s, r) for s, r in differ])
    assert found["spearman"] == pytest.approx([metrics.spearman(s, r) for s, r in differ])


def test_kruskal_is_scipys_and_has_an_answer_where_scipy_has_none() -> None:
    a, b = np.array([0.0, 1, 1, 0, 1]), np.array([0.0, 0, 0, 1, 0])
    assert kruskal_of([a, b]).p == pytest.approx(stats.kruskal(a, b).pvalue)
    assert kruskal_of([np.ones(3), np.ones(4)]).p == 1.0


def test_bad_outcomes_are_refused() -> None:
    good = np.eye(3)
    with pytest.raises(VapError, match=r"one shape, .*got \(3, 3\) and \(3, 2\)"):
        outcome_agreement(good, good[:, :2])
    with pytest.raises(VapError, match=r"imagined must be finite, or NaN"):
        outcome_agreement(np.full((3, 3), np.inf), good)
    with pytest.raises(VapError, match=r"got none of: b\. Leave"):
        outcome_agreement(np.array([[1, 0], [np.nan, 0]]), np.array([[1, 0], [1, np.nan]]), names=["a", "b"])
    with pytest.raises(VapError, match=r"scores that differ, got real"):
        outcome_agreement(np.triu(good + 1), np.ones((3, 3)))
    with pytest.raises(VapError, match=r"starts must have a label for each of 3 trials, got 2"):
        outcome_agreement(good, good, starts=[1, 2])
