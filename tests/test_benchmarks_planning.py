"""The planning experiment: shares of made-up rows, what is kept and refused, and a run of a few steps."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vap_gym.errors import UnknownNameError, VapError
from vap_gym.evaluate.report import filled

SETTINGS = {"imagination": {"candidates": 8}, "oracle": {"candidates": 4}, "steps": 100, "first_seed": 1}
PLAN = {"planner": "icem", "candidates": 8, "iterations": 2, "foresight": "things", "horizon": {"actions": 8}}
RUN = {"machine": "a machine", "commit": "1", "date": "today", "minutes": 3.0, "workers": 2}


@pytest.fixture(scope="module")
def bench(repo: Path) -> Iterator[SimpleNamespace]:
    """The benchmark, its figures, and what tells whether a bound is met."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repo / "benchmarks"))
        import asked
        import planning
        import planning_figures

        yield SimpleNamespace(run=planning, figures=planning_figures, asked=asked)


def row(task: str, kind: str, start: int, success: bool, plan_s: tuple[float, ...] = (1.0, 2.0)) -> dict[str, Any]:
    return {
        "task": task, "dynamics": kind, "start": start, "success": success, "steps": 40, "most_progress": 0.5,
        "plan_s": list(plan_s) if kind != "none" else [], "evaluations": [],
    }  # fmt: skip


def rows(task: str, kind: str, solved: int, count: int = 75) -> list[dict[str, Any]]:
    return [row(task, kind, 3 * i, i < solved) for i in range(count)]


def held(*parts: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What planning.json holds."""
    every = [one for part in parts for one in part]
    settings = {"imagination": PLAN, "oracle": PLAN}
    return {"settings": settings, "weights": {"world_model": "abc"}, "runs": [RUN], "rows": every, **more}


# --- figures ---


def test_the_share_is_of_the_simulators_success_from_the_same_starts(bench: SimpleNamespace) -> None:
    made = rows("push", "imagination", 45) + rows("push", "oracle", 60, 80)
    share = bench.figures.share(made, "push")
    assert (share.value, share.samples) == (pytest.approx(0.75), 75)
    assert 0.6 < share.low < 0.75 < share.high < 0.9
    assert bench.figures.share(rows("push", "imagination", 45), "push") is None
    assert bench.figures.share(made, "reach") is None
    assert bench.figures.share(rows("push", "imagination", 5) + rows("push", "oracle", 0), "push") is None
    few = bench.figures.share([*made, *rows("push", "few", 30)], "push", "few")
    assert few.value == pytest.approx(0.5)


def test_a_reach_is_asked_for_by_itself_and_a_push_as_a_share(bench: SimpleNamespace) -> None:
    made = held(
        rows("reach", "imagination", 75), rows("reach", "oracle", 75), rows("push", "imagination", 50),
        rows("push", "oracle", 70), rows("push", "none", 10),
    )  # fmt: skip
    found = {(one[0], one[1]): one[2:] for one in bench.figures.against(made)}
    assert found["reach", "success, planned in imagination"][2:] == ("≥ 90 %", "≥ 95 %", "aim, with its interval")
    assert found["push", "success, planned in imagination"][2:] == ("", "", "")
    share = found["push", "the same, as a share of planned in the simulator"]
    assert share[0].startswith("71 % [")
    assert share[2:] == ("≥ 60 %", "≥ 90 %", "must, with its interval")
    assert found["reach", "the same, as a share of planned in the simulator"][2:] == ("", "", "")
    assert found["push", "longest plan, s"] == ("2.00", "75", "≤ 5", "", "must")
    assert found["push", "most plans of an episode"][0] == "2"
    text = bench.figures.page(made)
    assert "| push  | no model" in text
    assert "Weights world model abc" in text


def test_what_falls_short_and_what_is_partial_is_told(bench: SimpleNamespace) -> None:
    slow = [row("reach", "imagination", 3 * i, i < 8, (6.0,) * 9) for i in range(10)]
    found = bench.figures.against(held(slow))
    assert [one[-1] for one in found] == ["no (so far: 10 of 75 starts)", "", "no", "no"]
    assert found[1][2] == "not known"
    good = bench.figures.against(held(rows("reach", "imagination", 10, 10)))
    assert good[0][-1] == "aim (so far: 10 of 75 starts)"


def test_one_plan_is_timed_against_its_own_bounds(bench: SimpleNamespace) -> None:
    seconds = {"things": {"p50_s": 0.5, "worst_s": 0.6}, "latents": {"p50_s": 5.0, "worst_s": 7.0}}
    timed = {"seconds": seconds, "machine": "an idle one", "load": "0.1"}
    found = bench.figures.against(held(timed_plan=timed))
    assert [(one[2], one[4], one[5], one[6]) for one in found] == [
        ("0.50 / 0.60", "≤ 20", "≤ 6", "aim"), ("5.00 / 7.00", "≤ 20", "≤ 6", "must"),
    ]  # fmt: skip
    assert "an idle one, load 0.1" in bench.figures.page(held(rows("push", "none", 3), timed_plan=timed))


# --- what is kept ---


def opened(bench: SimpleNamespace, path: Path, weights: str = "abc", **given: Any) -> Any:
    settings = {**SETTINGS, **given.pop("settings", {})}
    return bench.run.Results.opened(path, settings, {"tiny": weights}, **{"keep": True, "forget": ()} | given)


def test_rows_are_kept_and_other_settings_are_refused(bench: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "planning.json"
    file = opened(bench, path, keep=False)
    file.write(rows=[row("push", "oracle", 1, True), row("push", "imagination", 1, False)])
    again = opened(bench, path)
    assert again.table == file.table
    assert len(path.read_text().splitlines()) < 30
    with pytest.raises(VapError, match="--keep"):
        opened(bench, path, keep=False)
    with pytest.raises(VapError, match="steps 100, got 50"):
        opened(bench, path, settings={"steps": 50})


def test_rows_of_other_weights_are_refused_or_forgotten_but_those_that_know_none(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    path = tmp_path / "planning.json"
    file = opened(bench, path)
    file.write(rows=[row("push", kind, 1, True) for kind in ("oracle", "imagination", "none")], timed_plan={})
    with pytest.raises(VapError, match=r"'abc'.*'new'.*--forget imagination none"):
        opened(bench, path, "new")
    with pytest.raises(VapError, match="--forget none"):
        opened(bench, path, "new", forget=("imagination",))
    left = opened(bench, path, "new", forget=("imagination", "none")).table
    assert [one["dynamics"] for one in left["rows"]] == ["oracle"]
    assert left["weights"] == {"tiny": "new"}
    assert "timed_plan" not in left
    old = json.loads(path.read_text())
    del old["weights"]
    path.write_text(json.dumps(old))
    with pytest.raises(VapError, match="other weights: unknown"):
        opened(bench, path)


# --- a run ---


@pytest.fixture(scope="module")
def run(bench: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A reach from one start, three steps long: nothing in time, then planned in imagination, then the rest."""
    out = tmp_path_factory.mktemp("planning")
    given: dict[str, Any] = {
        "docs": out / "docs" / "page.md", "tasks": ("reach",), "starts": 1, "steps": 3, "candidates": 4,
        "iterations": 1, "actions": 2, "hold": 2, "execute": 2, "oracle_candidates": 3, "oracle_iterations": 1,
        "budget_s": 0.0,
    }  # fmt: skip
    late = bench.run.main(out / "a", **given, minutes=1e-9)
    first = bench.run.main(out / "a", **given, dynamics=("imagination",), keep=True)
    kept = json.loads((out / "docs" / "page.json").read_text())["rows"]
    done = bench.run.main(out / "a", **given, keep=True, fan=True)
    return SimpleNamespace(out=out, docs=out / "docs" / "page.md", given=given, left=(late, first, done), first=kept)


def test_a_run_is_stopped_and_gone_on_with(bench: SimpleNamespace, run: SimpleNamespace) -> None:
    assert run.left == (4, 0, 0)
    held = json.loads(run.docs.with_suffix(".json").read_text())
    assert held["rows"][0] == run.first[0]
    assert [one["dynamics"] for one in held["rows"]] == ["imagination", "few", "oracle", "none"]
    assert [len(one["plan_s"]) for one in held["rows"]] == [2, 2, 2, 0]
    assert held["rows"][1]["evaluations"] == held["rows"][2]["evaluations"]
    assert len(held["runs"]) == 3
    assert held["weights"] == bench.asked.weights_of("VAP-DROID-v0", "")
    text = run.docs.read_text()
    assert "(so far: 1 of 75 starts)" in text
    assert "| reach | no model" in text
    assert filled(text, "planning", "").startswith("# Planning")
    assert (run.docs.parent / "img" / "fan.png").stat().st_size > 10_000


def test_nothing_is_mixed_up_or_written_over(bench: SimpleNamespace, run: SimpleNamespace) -> None:
    with pytest.raises(VapError, match="--keep"):
        bench.run.main(run.out / "a", **run.given)
    with pytest.raises(VapError, match="steps 3, got 4"):
        bench.run.main(run.out / "a", **run.given | {"steps": 4}, keep=True)
    for wrong in ({"tasks": ("lift",)}, {"dynamics": ("dreams",)}, {"forget": ("dreams",)}):
        with pytest.raises(UnknownNameError):
            bench.run.main(run.out / "a", **run.given | wrong, keep=True)


def test_processes_play_the_same_episodes(bench: SimpleNamespace, run: SimpleNamespace, tmp_path: Path) -> None:
    given = run.given | {"docs": tmp_path / "page.md", "dynamics": ("imagination",)}
    assert bench.run.main(run.out / "a", **given, workers=2) == 0
    (again,) = json.loads((tmp_path / "page.json").read_text())["rows"]
    assert again | {"plan_s": 0} == run.first[0] | {"plan_s": 0}


def test_bounds_are_met_with_or_without_the_interval(bench: SimpleNamespace) -> None:
    solved = bench.figures.success(rows("reach", "imagination", 70))
    assert bench.asked.met(solved, must=0.8, aim=0.9) == "aim"
    assert bench.asked.met(solved, must=0.8) == "must, with its interval"
    assert bench.asked.met(solved, aim=0.95) == "no"
    assert bench.asked.percent(solved).startswith("93 % [")
    assert bench.asked.so_far(starts=(75, 75), seeds=(1, 3)) == " (so far: 1 of 3 seeds)"
