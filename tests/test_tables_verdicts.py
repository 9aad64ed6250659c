"""Verdicts: an ordering holds where intervals are apart in all that it names; the sentence says what was measured."""

import numpy as np
import pytest

from vap_gym.evaluate.tables_plan import OrderingPlan
from vap_gym.evaluate.tables_verdicts import Place, Verdict, figure, verdict

RNG = np.random.default_rng(0)
N = 40
EPISODES = RNG.normal(20, 1, N)  # how hard each is: common to all rows


def scores(mean: float, spread: float = 1.0, *, metric: str = "psnr") -> dict[str, np.ndarray]:
    return {metric: mean + spread * (EPISODES - 20) + RNG.normal(0, 0.05, N)}


def judged(order: tuple[str, ...], measured: dict, *, metric: str = "psnr", apart: bool = True) -> Verdict:
    plan = OrderingPlan(
        claim="A above B", source="here", order=order, metrics=(metric,), must_be_apart=apart, sets=("droid",)
    )
    place = Place(set="droid", split="known", metric=metric)
    keyed = {(row, "droid", "known"): given for row, given in measured.items()}
    return verdict(plan, [place], {"droid": "DROID-like", "a": "row A", "b": "row B"}, keyed)


def test_holds_where_intervals_are_apart() -> None:
    said = judged(("a", "b"), {"a": [scores(25)], "b": [scores(20)]})
    assert said.holds is True
    assert said.word == "holds"
    assert said.sentence == "A above B: this holds, with intervals apart, in all 1 comparison(s)."


def test_does_not_hold_the_other_way_round_and_says_the_figures() -> None:
    said = judged(("a", "b"), {"a": [scores(20)], "b": [scores(25)]})
    assert said.holds is False
    assert "does not hold at our scale. On DROID-like, PSNR, dB: row A 19.9 [" in said.sentence
    assert said.sentence.endswith("it is the other way round.")


def test_overlapping_intervals_do_not_hold_though_pairs_differ() -> None:
    said = judged(("a", "b"), {"a": [scores(20.1)], "b": [scores(20.0)]})
    assert said.holds is False
    assert "the intervals overlap (the better, episode by episode)" in said.sentence
    same = [scores(20.0)]
    assert "no measurable difference" in judged(("a", "b"), {"a": same, "b": same}).sentence


def test_lower_is_better_for_adherence() -> None:
    near, far = [scores(2, 0.1, metric="adherence_px")], [scores(8, 0.1, metric="adherence_px")]
    assert judged(("a", "b"), {"a": near, "b": far}, metric="adherence_px").holds is True
    assert judged(("a", "b"), {"a": far, "b": near}, metric="adherence_px").holds is False


def test_not_worse_is_less_than_apart() -> None:
    same = {"a": [scores(20.0)], "b": [scores(20.0)]}
    assert judged(("a", "b"), same, apart=False).holds is True
    worse = judged(("a", "b"), {"a": [scores(19.8)], "b": [scores(20.0)]}, apart=False)
    assert worse.holds is False
    assert "measurably worse, episode by episode" in worse.sentence


def test_a_chain_fails_where_one_link_does() -> None:
    measured = {"a": [scores(25)], "b": [scores(20)], "c": [scores(22)]}
    assert judged(("a", "b", "c"), measured).holds is False
    assert judged(("a", "c", "b"), measured).holds is True


def test_what_was_not_measured_is_not_said_to_hold() -> None:
    said = judged(("a", "b"), {"a": [scores(25)]})
    assert said.holds is None
    assert "Not measured: PSNR, dB on DROID-like." in said.sentence
    empty = [{"psnr": np.full(N, np.nan)}]
    assert judged(("a", "b"), {"a": empty, "b": [scores(20)]}).holds is None


def test_figures_are_means_over_seeds_and_medians_for_adherence() -> None:
    one, other = {"psnr": np.arange(10.0)}, {"psnr": np.arange(10.0) + 2}
    said = figure([one, other], "psnr")
    assert said is not None
    assert said.interval.value == pytest.approx(5.5)
    assert said.seeds == (4.5, 6.5)
    assert str(said).endswith("(4.5, 6.5)")
    skewed = {"adherence_px": np.array([1.0, 1.0, 2.0, 90.0, np.nan])}
    assert figure([skewed], "adherence_px").interval.value == 1.5  # type: ignore[union-attr]
    assert figure([{"j": np.array([0.5, np.nan, np.nan])}], "j") is None
