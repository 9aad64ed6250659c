"""The agreement experiment: figures of made-up outcomes, and what is kept and forgotten."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vap_gym.errors import CardError, CheckpointError, UnknownNameError, VapError
from vap_gym.evaluate.agreement_grid import WAYS, GoneWrong, read_grid
from vap_gym.evaluate.agreement_outcomes import Outcomes
from vap_gym.evaluate.agreement_page import study, tables
from vap_gym.evaluate.agreement_scatter import draw
from vap_gym.evaluate.agreement_starts import FIRST_SEED, shifted, starts_file
from vap_gym.evaluate.agreement_study import believed, compared, corrected, graded, strange
from vap_gym.evaluate.policies_report import Row
from vap_gym.evaluate.report import filled
from vap_gym.policies import EpisodeStart, Observations, ScriptedExpert
from vap_gym.sim.layouts import draw_scene
from vap_gym.starts import StartSet, starts_path

TASKS = ("reach", "push", "lift")
RATES = {"best": 0.95, "good": 0.7, "fair": 0.5, "poor": 0.3, "worst": 0.05}


@pytest.fixture(scope="module")
def bench(repo: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repo / "benchmarks"))
        import agreement

        yield agreement


def rows(successes: np.ndarray, trust: float | None = 0.9) -> list[Row]:
    """Trials with these verdicts; NaN is unknown. A wrong-looking one in ten is trusted a little less than the rest."""
    verdicts = ["unknown" if np.isnan(x) else "success" if x else "failure" for x in successes]
    return [
        Row(
            trial=i, verdict=verdict, fault=None, steps=5, progress=0.5, adherence_px=None,
            trust=None if trust is None else trust - 0.01 * (i % 10),
        )
        for i, verdict in enumerate(verdicts)
    ]  # fmt: skip


def made_up(*, starts: int = 60, wrong: float = 0.05, seed: int = 0) -> Outcomes:
    """Five policies; imagination is wrong in some trials; in what is strange it is wrong in half, and trusts less."""
    rng = np.random.default_rng(seed)
    found = Outcomes({"starts": starts, "curve_starts": 20})
    found.claim_policies("push", {name: {"text": name} for name in RATES}, list(RATES))
    found.claim_policies("push", {"mirrored": {"wrong": "mirrored"}}, ["mirrored"], section="wrong")
    for name, rate in RATES.items():
        truth = (rng.random(starts) < rate).astype(float)
        for condition, share in (("imagined", wrong), ("replay", wrong), ("model-early", 0.4), ("novel-imagined", 0.5)):
            flipped = np.where(rng.random(starts) < share, 1 - truth, truth)
            found.add(condition, "push", name, rows(flipped, 0.5 if "novel" in condition else 0.9), 2.0)
        for condition in ("oracle", "novel-oracle"):
            found.add(condition, "push", name, rows(truth, None), 1.0)
    found.add("wrong-oracle", "push", "mirrored", rows(np.zeros(20), None))
    found.add("wrong-imagined", "push", "mirrored", rows(np.zeros(20), 0.3))
    found.claim_weights("imagined", "tiny", "abc")
    found.runs.append({"machine": "a machine", "commit": "1", "date": "today", "load": "0.1", "minutes": 3.0})
    return found


# --- figures ---


def test_an_imagination_that_is_always_right_agrees_wholly() -> None:
    found = compared(made_up(wrong=0.0), "push", "imagined")
    assert found.agreement is not None
    assert found.right is not None
    assert (found.policies, found.trials, found.right.value) == (5, 300, 1.0)
    assert found.agreement.pearson.value == pytest.approx(1.0)
    assert found.agreement.mmrv.value == 0.0


def test_unknown_verdicts_are_left_out_and_trials_can_be_the_first_ones_alone() -> None:
    outcomes = made_up()
    outcomes.add("imagined", "push", "best", rows(np.full(60, np.nan)))
    found = compared(outcomes, "push", "imagined", trials=10)
    assert (found.policies, found.trials) == (4, 40)


def test_policies_that_tie_have_no_agreement_but_a_reason() -> None:
    outcomes = Outcomes({})
    outcomes.claim_policies("push", {"a": {}, "b": {}}, ["a", "b"])
    for condition in ("oracle", "imagined"):
        for name in ("a", "b"):
            outcomes.add(condition, "push", name, rows(np.zeros(4)))
    found = compared(outcomes, "push", "imagined")
    assert found.agreement is None
    assert "scores that differ" in found.why
    assert found.right is not None
    assert found.right.value == 1.0
    assert "scores that differ" in tables(outcomes, [study(outcomes, "push", true_trials=(8,))])


def test_policies_between_20_and_80_percent_are_counted() -> None:
    good, names = graded(made_up(), "push")
    assert good == ["good", "fair", "poor"]
    assert names == list(RATES)


def test_a_few_true_trials_set_an_imagination_right_that_turns_the_order_round() -> None:
    rng = np.random.default_rng(3)
    truth = (rng.random((5, 80)) < np.array(list(RATES.values()))[:, None]).astype(float)
    found = corrected(1 - truth, truth, 20, draws=20)
    assert found is not None
    assert found.imagined["pearson"].high < 0
    assert found.corrected["pearson"].low > 0.5
    assert found.alone["pearson"].value > 0.8


def test_a_good_imagination_makes_few_true_trials_worth_more() -> None:
    outcomes = made_up(wrong=0.05, starts=80)
    sim, real = (outcomes.outcomes(condition, "push", list(RATES)) for condition in ("imagined", "oracle"))
    found = corrected(sim, real, 15, draws=20)
    assert found is not None
    assert found.worth > 18
    assert found.corrected["mmrv"].value <= found.alone["mmrv"].value
    assert corrected(sim[:, :10], real[:, :10], 8) is None  # too few are left to be measured against


def test_where_it_is_strange_trust_falls_and_abstention_rises() -> None:
    outcomes = made_up()
    least = believed(outcomes, "push")
    assert least is not None
    assert 0.8 < least < 0.9
    for kind in ("novel", "wrong"):
        found = strange(outcomes, "push", kind)
        assert found is not None
        assert found.fall is not None
        assert found.more is not None
        assert found.abstained is not None
        assert found.fall.high < 0
        assert found.more.low > 0.5
        assert found.abstained.value == 1.0
    assert strange(outcomes, "push", "cameras") is None


def test_without_calibration_trust_is_not_known_and_the_page_says_so() -> None:
    outcomes = made_up()
    for condition in ("imagined", "novel-imagined"):
        for name in RATES:
            outcomes.add(condition, "push", name, rows(np.ones(60) * (name != "worst"), None))
    found = strange(outcomes, "push", "novel")
    assert believed(outcomes, "push") is None
    assert found is not None
    assert found.trust is None
    assert found.more is None
    assert "not known" in tables(outcomes, [study(outcomes, "push", true_trials=(8,))])


def test_the_page_tells_every_figure_and_its_bounds(tmp_path: Path) -> None:
    outcomes = made_up()
    one = study(outcomes, "push", true_trials=(8,))
    text = tables(outcomes, [one])
    assert one.main.agreement is not None
    assert str(one.main.agreement.pearson) in text
    assert list(one.models) == ["early", "imagined"]  # the worse one first
    assert one.models["imagined"].trials == 100  # of the same starts as the others
    assert "aim" in text
    assert "≥ 0.85" in text
    assert "≤ 0.08" in text
    assert text.count("not trained") == 3
    assert "5 qualities are wanted; of fewer: push (2)" in text
    assert one.risk is not None
    assert one.risk.risk_at(1.0) == pytest.approx(0.05, abs=0.03)
    assert f"| {100 * one.risk.gain:.0f} %" in text
    assert "Kruskal–Wallis" in text
    assert "unseen shapes" in text
    assert "policies gone wrong" in text
    json.dumps(one.to_json())
    draw(outcomes, [one], tmp_path / "agreement.png")
    assert (tmp_path / "agreement.png").stat().st_size > 10_000
    outcomes.units = {key: unit for key, unit in outcomes.units.items() if not key.startswith("replay/push/b")}
    assert "actions (4 of 5 policies)" in tables(outcomes, [study(outcomes, "push", true_trials=(8,))])
    page = "# Page\n\n<!-- agreement -->\nold\n<!-- /agreement -->\n\nAfter.\n"
    assert filled(page, "agreement", "new") == page.replace("old", "new")
    with pytest.raises(VapError, match="must hold"):
        filled("# Page", "agreement", "new")
    with pytest.raises(VapError, match="must hold"):
        filled("# Page\n<!-- agreement -->\nnever closed", "agreement", "new")


def test_models_of_other_qualities_are_compared_over_the_policies_that_all_of_them_had() -> None:
    outcomes = made_up()
    for name in ("best", "worst"):
        del outcomes.units[f"model-early/push/{name}"]
    one = study(outcomes, "push", true_trials=(8,))
    assert {name: (found.policies, found.trials) for name, found in one.models.items()} == {
        "early": (3, 60), "imagined": (3, 60),
    }  # fmt: skip
    assert one.main.policies == 5
    outcomes.forget(["model-early"])
    assert study(outcomes, "push", true_trials=(8,)).models == {}


def test_other_models_stand_beside_the_own_one_over_the_same_starts() -> None:
    outcomes = made_up()
    outcomes.forget(["replay"])
    assert study(outcomes, "push", true_trials=(8,)).same is None
    for name, rate in RATES.items():
        good = np.arange(20) < 20 * (1 - rate)  # the wrong way round
        outcomes.add("raw-state", "push", name, rows(good, None))
    one = study(outcomes, "push", true_trials=(8,))
    assert one.same is not None
    other = one.others["raw-state"]
    assert other is not None
    assert other.agreement is not None
    assert other.agreement.pearson.value < 0
    assert other.trials == one.same.trials == 20 * len(RATES)
    text = tables(outcomes, [one])
    assert "imagined, the first 20 starts" in text
    assert text.count("not trained") == 2


# --- what is kept ---


def test_outcomes_are_read_back_as_they_were_and_are_small(tmp_path: Path) -> None:
    outcomes = made_up()
    outcomes.save(tmp_path / "a.json")
    again = Outcomes.load(tmp_path / "a.json")
    assert vars(again) == vars(outcomes)
    assert again.seconds("imagined") == 2.0
    trials = sum(len(unit["verdicts"]) for unit in outcomes.units.values())
    assert (tmp_path / "a.json").stat().st_size < 20 * trials
    (tmp_path / "b.json").write_text('{"format": "other"}')
    with pytest.raises(CheckpointError, match="holds no outcomes"):
        Outcomes.load(tmp_path / "b.json")


def test_other_settings_and_other_weights_are_refused() -> None:
    outcomes = made_up()
    outcomes.claim({"starts": 60, "curve_starts": 20})
    with pytest.raises(VapError, match="starts 60, got 75"):
        outcomes.claim({"starts": 75, "curve_starts": 20})
    with pytest.raises(VapError, match="--forget imagined"):
        outcomes.claim_weights("imagined", "tiny", "other")
    outcomes.forget(["imagined"])
    outcomes.claim_weights("imagined", "tiny", "other")
    assert not outcomes.has("imagined", "push", "best")
    assert outcomes.has("oracle", "push", "best")
    with pytest.raises(VapError, match="No trials of 'imagined'"):
        outcomes.forget(["imagined"])


def test_trials_of_a_policy_that_is_another_one_now_are_forgotten_and_no_others() -> None:
    outcomes = made_up()
    assert outcomes.claim_policies("push", {"best": {"text": "best"}}, list(RATES)) == []
    assert outcomes.claim_policies("push", {"best": {"text": "other"}}, ["fair", "good", "best"]) == [
        "best", "poor", "worst",
    ]  # fmt: skip
    assert outcomes.names("push", "oracle") == ["fair", "good"]
    assert not outcomes.has("novel-imagined", "push", "best")
    assert outcomes.has("wrong-oracle", "push", "mirrored")


# --- policies and starts ---


def test_the_grid_has_sixteen_policies_of_each_task_and_clones_of_several_sizes_and_lengths(repo: Path) -> None:
    grid = read_grid(repo / "benchmarks" / "agreement.toml", TASKS)
    for task in TASKS:
        mine = [entry for entry in grid if task in entry.tasks and not entry.wrong]
        clones = [entry.clone for entry in mine if entry.clone is not None]
        assert len(mine) >= 16
        assert len({one.episodes for one in clones}) >= 3
        assert len({one.epochs for one in clones}) >= 2
        assert {"failing", "random"} <= {entry.name for entry in mine}
    assert {entry.wrong for entry in grid if entry.wrong} == set(WAYS)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[[policy]]\nname = "a"\n', CardError),
        ('[[policy]]\nname = "a"\ntext = "expert"\nwrong = "mirrored"\n', CardError),
        ('[[policy]]\nname = "a"\ntext = "expert"\n\n[[policy]]\nname = "a"\ntext = "random"\n', CardError),
        ('[[policy]]\nname = "a"\ntext = "expert"\ntasks = ["pull"]\n', UnknownNameError),
        ('[[policy]]\nname = "a"\nwrong = "sideways"\n', UnknownNameError),
        ('[[policy]]\nname = "a"\nspeed = 2\n', CardError),
        ("[policy", CardError),
    ],
)
def test_a_grid_that_says_too_little_or_too_much_is_refused(text: str, error: type, tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(error):
        read_grid(path, TASKS)


@pytest.mark.parametrize("way", WAYS)
def test_a_policy_goes_wrong_after_its_steps(way: str) -> None:
    shipped = StartSet(starts_path("VAP-DROID-v0"))
    number = shipped.of_task("push")[0]
    episode = EpisodeStart(slot=3, seed=5, number=number, start=shipped[number])
    policy, expert = GoneWrong(way, after=2), ScriptedExpert()
    seen = Observations(
        slots=(3,), pixels={}, joints_rad=np.zeros((1, 7)), closedness=np.zeros(1), tip=np.zeros((1, 6)),
        target_m=np.full((1, 3), np.nan),
    )  # fmt: skip
    policy.reset([episode])
    expert.reset([episode])
    done, meant = (np.stack([one.act(seen, [""])[0] for _ in range(5)]) for one in (policy, expert))
    assert (done[:2] == meant[:2]).all()
    if way == "mirrored":
        assert (done[2:, :2] == -meant[2:, :2]).all()
        assert (done[2:, 2:] == meant[2:, 2:]).all()
    elif way == "runaway":
        assert (np.abs(done[2:]) == 1).all()
        assert (done[2:] == done[2]).all()
    else:
        assert len(np.unique(done[2:], axis=0)) == 3
    with pytest.raises(UnknownNameError):
        GoneWrong("sideways")


def test_shifted_cameras_stand_as_far_away_but_above_all_of_training_and_rolled() -> None:
    for seed in range(20):
        usual = draw_scene(seed).camera
        camera = shifted(usual, seed)
        away, before = (np.array(one.eye_m) - np.array(one.target_m) for one in (camera, usual))
        assert np.linalg.norm(away) == pytest.approx(np.linalg.norm(before), abs=1e-3)
        assert 67 < np.rad2deg(np.arcsin(away[2] / np.linalg.norm(away))) < 81
        assert 0.19 < abs(camera.roll_rad - usual.roll_rad) < 0.41
        assert replace(camera, eye_m=usual.eye_m, roll_rad=usual.roll_rad) == usual


def test_starts_are_those_of_a_longer_file_and_of_the_split(tmp_path: Path) -> None:
    one, two = (StartSet(starts_file(tmp_path, "novel", "push", count, env="VAP-DROID-v0")) for count in (1, 2))
    assert (len(one), len(two), two.tasks()) == (1, 2, ("push",))
    assert (one[0].frame == two[0].frame).all()
    scenes = [start.scene for start in two]
    assert all(scene is not None and scene.split == "novel" and scene.seed >= FIRST_SEED for scene in scenes)
    with pytest.raises(UnknownNameError):
        starts_file(tmp_path, "other", "push", 1, env="VAP-DROID-v0")
