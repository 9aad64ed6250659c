"""Reports of evaluations, and the agreement of two: made by hand, so that what must come out is known."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import vap_gym
from vap_gym.cli import main
from vap_gym.errors import VapError
from vap_gym.evaluate.agreement_corrected import corrected_rate
from vap_gym.evaluate.agreement_reports import abstention, corrected_rates
from vap_gym.evaluate.policies_page import chosen
from vap_gym.evaluate.policies_report import Report, Row
from vap_gym.evaluate.policies_trials import Trial, batches
from vap_gym.evaluate.trials import trials_for_agreement, trials_for_width, trials_to_tell_apart, wilson
from vap_gym.evaluate.true_trials import read_trials

ABOUT = {"card": "VAP-DROID-v0", "task": "reach", "steps": 50, "starts_file": ""}


def row(i: int, verdict: str, *, trust: float | None = None, fault: str | None = None) -> Row:
    """A row in which only this matters."""
    return Row(trial=i, verdict=verdict, fault=fault, steps=5, progress=0.5, trust=trust, adherence_px=None)


def report(
    outcomes: np.ndarray, *, world: str = "oracle", trust: np.ndarray | None = None, seeds: int = 1, **about
) -> Report:
    """A report of policies a, b, … with these outcomes (P, N); NaN is unknown."""
    P, N = outcomes.shape
    words = {1.0: "success", 0.0: "failure"}
    rows = {
        chr(97 + p): tuple(
            row(i, words.get(outcomes[p, i], "unknown"), trust=None if trust is None else float(trust[p, i]))
            for i in range(N)
        )
        for p in range(P)
    }
    trials = tuple(Trial(start=i // seeds, seed=i % seeds) for i in range(N))
    return Report(world=world, about={**ABOUT, **about}, trials=trials, rows=rows, lost={})


def drawn(seed: int = 0, *, trials: int = 60) -> np.ndarray:
    """Outcomes of four policies of different quality."""
    return (np.random.default_rng(seed).uniform(size=(4, trials)) < np.array([[0.9], [0.2], [0.6], [0.4]])).astype(
        float
    )


def test_rates_ranks_and_differences_follow_from_the_rows() -> None:
    outcomes = drawn()
    found = report(outcomes)
    assert found.ranked() == ["a", "c", "d", "b"]
    assert found.rate("a") == wilson(int(outcomes[0].sum()), 60)
    gap = found.difference("a", "b")
    assert gap.value == pytest.approx(outcomes[0].mean() - outcomes[1].mean())
    assert 0 < gap.low < gap.value < gap.high
    assert found.correlation("a", "b") == pytest.approx(np.corrcoef(outcomes[:2])[0, 1])
    assert "| a " in str(found)


def test_unknown_and_unplayed_trials_count_as_neither() -> None:
    outcomes = np.array([[1, 0, np.nan, 1], [1, 1, 1, 1]])
    found = report(outcomes)
    rows = {**found.rows, "c": (None,) * 4, "a": (None, *found.rows["a"][1:])}
    found = Report(world="oracle", about=ABOUT, trials=found.trials, rows=rows, lost={"c": "no space left."})
    assert (found.rate("a").value, found.rate("a").samples) == (0.5, 2)
    assert found.ranked() == ["b", "a"]
    with pytest.raises(VapError, match=r"none of 'c': no space left"):
        found.rate("c")
    with pytest.raises(VapError, match=r"No policy named 'd'"):
        found.difference("a", "d")
    assert "unknown" in str(found)


def test_seeds_of_a_start_are_no_starts_of_their_own() -> None:
    outcomes = np.repeat(drawn(trials=20), 5, axis=1)
    many = report(outcomes, seeds=5).rate("a")
    assert many.samples == 20
    assert many.high - many.low > wilson(int(outcomes[0].sum()), 100).high - wilson(int(outcomes[0].sum()), 100).low


def test_a_report_comes_back_from_its_file_and_nothing_else_does(tmp_path) -> None:
    found = report(drawn())
    found.save(tmp_path / "report.json")
    assert Report.load(tmp_path) == found == Report.load(tmp_path / "report.json")
    first = (tmp_path / "report.json").read_bytes()
    Report.load(tmp_path).save(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_bytes() == first
    held = json.loads(first)
    assert held["success"]["a"]["value"] == found.rate("a").value
    assert [one["better"] for one in held["differences"]] == ["a", "c", "d"]
    for text in ("", "[]", '{"format": "other"}', json.dumps({**held, "rows": 3})):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(VapError, match=r"must be a report of an evaluation, got"):
            Report.load(tmp_path)
    with pytest.raises(VapError, match=r"No report at"):
        Report.load(tmp_path / "none")


def test_failures_are_shown_first_and_policies_take_turns() -> None:
    rows = {
        "a": (row(0, "failure"), row(1, "failure"), row(2, "success")),
        "b": (row(0, "success"), row(1, "failure", fault="NaN"), row(2, "unknown")),
        "c": (row(0, "failure"), None, row(2, "success")),
    }
    trials = tuple(Trial(start=i, seed=0) for i in range(3))
    found = Report(world="imagination", about=ABOUT, trials=trials, rows=rows, lost={})
    order = chosen(found, 100)
    assert order == [("b", 1), ("a", 0), ("c", 0), ("a", 1), ("b", 2), ("a", 2), ("b", 0), ("c", 2)]
    assert chosen(found, 2) == order[:2]


def test_trials_are_told_apart_and_batched_in_order() -> None:
    seeds = {Trial(start=s, seed=k).world_seed for s in range(50) for k in range(4)}
    assert len(seeds) == 200
    trials = [Trial(start=s, seed=0) for s in range(5)]
    assert batches(trials, 2) == [[0, 1], [2, 3], [4]]
    with pytest.raises(VapError, match=r"batch must be at least 1"):
        batches(trials, 0)


# --- two reports ---


def test_agreement_finds_common_policies_and_trials_by_name() -> None:
    true = drawn()
    imagined = true.copy()
    imagined[:, :6] = 0.0
    sim, real = report(imagined, world="imagination"), report(true)
    shuffled = Report(
        world="oracle", about=ABOUT, trials=real.trials[::-1],
        rows={name: real.rows[name][::-1] for name in ("c", "a", "b")}, lost={},
    )  # fmt: skip
    found = vap_gym.agreement(sim, shuffled, resamples=100)
    assert [one.name for one in found.policies] == ["a", "b", "c"]
    assert [one.imagined for one in found.policies] == pytest.approx(imagined[:3].mean(1))
    assert [one.true for one in found.policies] == pytest.approx(true[:3].mean(1))
    arrays = vap_gym.agreement(imagined[:3], true[:3], resamples=100)
    assert (found.pearson, found.mmrv) == (arrays.pearson, arrays.mmrv)


def test_verdicts_of_little_trust_are_left_out_when_asked_and_their_risk_is_told() -> None:
    true, rng = drawn(), np.random.default_rng(1)
    wrong = rng.uniform(size=true.shape) < 0.3
    trust = np.where(wrong, 0.2, 0.8)
    sim, real = report(np.where(wrong, 1 - true, true), trust=trust), report(true)
    curve = abstention(sim, real)
    assert curve.area_chance == pytest.approx(wrong.mean())
    assert curve.at_most(0.0) == (0.8, pytest.approx(1 - wrong.mean()))
    sure = vap_gym.agreement(sim, real, least_trust=0.5, resamples=50)
    assert sure.pearson.value == pytest.approx(1)
    assert sure.pearson.value > vap_gym.agreement(sim, real, resamples=50).pearson.value
    with pytest.raises(VapError, match=r"Abstention needs verdicts whose trust is known"):
        abstention(report(true), real)


def test_rates_are_corrected_by_few_true_trials_of_the_same_starts() -> None:
    true = drawn(trials=200)
    imagined = true.copy()
    imagined[:, ::5] = 0.0  # every fifth success is missed
    few = report(true[:, :40])
    found = corrected_rates(report(imagined, world="imagination"), few)
    assert list(found) == ["a", "b", "c", "d"]
    assert found["a"].imagined.value == pytest.approx(imagined[0].mean())
    assert abs(found["a"].rate.value - true[0].mean()) < abs(imagined[0].mean() - true[0].mean())
    assert found["a"].rate.samples == 40
    with pytest.raises(VapError, match=r"starts that were tried once each, got several seeds"):
        corrected_rates(report(imagined, seeds=2), report(true[:, :40], seeds=2))


def test_reports_of_other_settings_are_not_compared() -> None:
    sim = report(drawn())
    with pytest.raises(VapError, match=r"if their task is the same, got 'reach' and 'push'"):
        vap_gym.agreement(sim, report(drawn(), task="push"))
    other = Report(world="oracle", about=ABOUT, trials=sim.trials, rows={"z": sim.rows["a"]}, lost={})
    with pytest.raises(VapError, match=r"got 0 and 60 in common: a, b, c, d and z"):
        vap_gym.agreement(sim, other)
    with pytest.raises(VapError, match=r"Two reports, or two arrays"):
        vap_gym.agreement(sim, drawn())


def test_starts_are_the_same_where_their_files_hold_the_same_wherever_they_lie() -> None:
    here, there = {"starts_file": "/here/starts.npz"}, {"starts_file": "/there/starts.npz"}
    sim = report(drawn(), **here, starts_digest="aa")
    found = vap_gym.agreement(sim, report(drawn(), **there, starts_digest="aa"), resamples=20)
    assert found.pearson.value == pytest.approx(1)
    for other in ({**here, "starts_digest": "bb"}, {**there, "starts_digest": "bb"}, there):
        with pytest.raises(VapError, match=r"if their starts are the same, got /here/starts\.npz \(contents aa\) and"):
            vap_gym.agreement(sim, report(drawn(), **other))
    old = report(drawn(), **here)  # of a version that did not note it
    assert vap_gym.agreement(sim, old, resamples=20).pearson.value == pytest.approx(1)


# --- the command ---


def test_agree_prints_what_there_is_to_know(tmp_path, capsys) -> None:
    true = drawn()
    imagined = true.copy()
    imagined[:, :6] = 0.0
    report(imagined, world="imagination", trust=np.where(imagined == true, 0.9, 0.4)).save(tmp_path / "imagined.json")
    report(true).save(tmp_path / "true.json")
    paths = [str(tmp_path / name) for name in ("imagined.json", "true.json")]
    assert main(["agree", *paths]) == 0
    told = capsys.readouterr().out
    for part in ("pearson", "mmrv", "a perfect simulator", "bias", "risk–coverage", "to tell a from c"):
        assert part in told
    assert main(["agree", *paths, "--json", "--picture", str(tmp_path / "agree.png")]) == 0
    held = json.loads(capsys.readouterr().out)
    assert held["agreement"]["mmrv"]["value"] == pytest.approx(vap_gym.agreement(imagined, true).mmrv.value)
    assert len(held["trials_to_tell_apart"]) == 3
    assert (tmp_path / "agree.png").read_bytes()[1:4] == b"PNG"
    assert main(["agree", *paths, "--correct"]) == 0
    assert "worth" in capsys.readouterr().out
    assert main(["agree", *paths, "--correct", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["a"]["rate"]["samples"] == 60
    assert main(["agree", paths[0], str(tmp_path / "none.json")]) == 2
    assert "No report at" in capsys.readouterr().err


# --- trials of a robot ---


def trials_file(path: Path, lines: Iterable[str], header: str = "policy,start,verdict") -> Path:
    """A CSV file as people write it."""
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8-sig")
    return path


def test_imagined_rates_are_corrected_by_a_robots_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    true = drawn(trials=200)
    imagined = true.copy()
    imagined[:, ::5] = 0.0
    sim = report(imagined, world="imagination", starts_file="/there/starts.npz", starts_digest="aa")
    sim.save(tmp_path / "report.json")
    tried = np.random.default_rng(0).permutation(200)[:40]
    words = {1.0: "success", 0.0: "F"}
    lines = [f"a,{start},{words[true[0, start]]}" for start in tried]
    path = trials_file(tmp_path / "trials.csv", [*lines, "a,199,", "c,3,yes", "c,4,no", "c,5,1"])
    assert 199 not in tried
    assert main(["agree", str(tmp_path), str(path), "--correct", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    known = np.full(200, np.nan)
    known[tried] = true[0, tried]
    assert list(told) == ["a", "c"]
    assert told["a"] == json.loads(json.dumps(asdict(corrected_rate(imagined[0], known))))
    assert told["c"]["true"]["value"] == pytest.approx(2 / 3)
    trials_file(path, lines[:2])
    assert main(["agree", str(tmp_path), str(path), "--correct"]) == 2
    assert "'a': A correction needs at least three true trials, got 2." in capsys.readouterr().err


def test_a_robots_trials_are_compared_as_a_report_is(tmp_path: Path) -> None:
    true = drawn()
    sim, real = report(true, seeds=2, world="imagination"), report(true, seeds=2)
    lines = [
        f"{name},{trial.start},{trial.seed},{'success' if true[i, k] else 'failure'},{'well' * k}"
        for i, name in enumerate("abcd")
        for k, trial in enumerate(sim.trials)
    ]
    path = trials_file(tmp_path / "t.csv", lines[::-1], header="policy,start,seed,verdict,remark")
    found = read_trials(path, sim)
    assert found.world == "robot"
    assert vap_gym.agreement(sim, found, resamples=20) == vap_gym.agreement(sim, real, resamples=20)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("policy,verdict\na,success\n", r"must have the columns policy, start, verdict .*, it lacks start\."),
        ("policy,start,verdict\n", r"must hold one trial or more, got none\."),
        ("policy,start,verdict\na,0,maybe\n", r"line 2: a verdict is success, failure or empty, got 'maybe'\."),
        ("policy,start,verdict\na,x,success\n", r"line 2: start must be a whole number, got 'x'\."),
        ("policy,start,verdict\na,9,s\n", r"line 2: start 9 was not imagined\. Imagined were: 0, 1, 2, 3\."),
        ("policy,start,verdict\naa,0,s\n", r"line 2: No policy in the imagined report named 'aa'\. Did you mean 'a'"),
        ("policy,start,verdict\na,1,s\n\na,1,f\n", r"line 4: a, start 1, seed 0 has a line already\."),
        ("policy,start,seed,verdict\na,0,7,s\n", r"line 2: start 0 was imagined with seed 0, got 7\."),
        ("policy,start,verdict\na\n", r"line 2: start must be a whole number, got ''\."),
        ("policy,start,verdict\na,0,\xff\n", r"must be a CSV file in UTF-8, got:"),
    ],
)
def test_true_trials_that_cannot_be_read_are_told_with_their_line(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "trials.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(VapError, match=rf"trials\.csv'.*{told}"):
        read_trials(tmp_path / "trials.csv", report(drawn(trials=4)))


def test_true_trials_that_are_missing_or_of_one_seed_among_several_are_told(tmp_path: Path) -> None:
    with pytest.raises(VapError, match=r"No true trials at '.*none\.csv'\. Write a line for each"):
        read_trials(tmp_path / "none.csv", report(drawn()))
    path = trials_file(tmp_path / "t.csv", ["a,0,s"])
    with pytest.raises(VapError, match=r"line 2: start 0 was imagined with 2 seeds, got no seed\. Add the column seed"):
        read_trials(path, report(drawn(), seeds=2))


# --- how many it takes ---


def test_trials_are_planned_before_any_is_played(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trials", "0.3", "0.8", "0.6", "--half-width", "0.08", "--correlation", "0.2", "--most-mmrv", "0.1"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["trials"] for one in told["rates"]] == [trials_for_width(rate, 0.08) for rate in (0.3, 0.8, 0.6)]
    assert [(one["better"], one["worse"]) for one in told["tell_apart"]] == [(0.8, 0.6), (0.6, 0.3)]
    assert told["tell_apart"][0]["starts"] == trials_to_tell_apart(0.8, 0.6, correlation=0.2)
    assert told["agreement"]["trials"] == trials_for_agreement([0.3, 0.8, 0.6], most_mmrv=0.1)
    assert main(words) == 0
    lines = capsys.readouterr().out
    assert f"to tell 0.8 from 0.6 (80 % power): {told['tell_apart'][0]['starts']} starts" in lines
    assert f"(50 % likely, were imagination perfect): {told['agreement']['trials']} trials of each" in lines
    assert main(["trials", "0.5"]) == 0
    assert capsys.readouterr().out == f"to know a rate of 0.5 to ± 0.1: {trials_for_width(0.5, 0.1)} trials\n"
    for wrong, reason in [
        (["trials"], "needs one or more expected success rates, got none"),
        (["trials", "1.5"], "rate must be between 0 and 1, got 1.5"),
        (["trials", "0.5", "0.5", "--least-pearson", "0.9"], "rates must be two or more in [0, 1] that differ"),
    ]:
        assert main(wrong) == 2
        assert reason in capsys.readouterr().err
