"""The experiment of agents: gains of made-up outcomes; what other weights gave is not mixed in; a run of few steps."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vap_gym.assets import weights_dir
from vap_gym.cards import load_robot
from vap_gym.data import EpisodeWriter
from vap_gym.errors import UnknownNameError, VapError
from vap_gym.evaluate.report import filled
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.rollout import NominalRobot, record
from vap_gym.sim.scene import Scene

ID = "VAP-DROID-v0"
PAGE = "# Agents\n\n<!-- rl -->\nold\n<!-- /rl -->\n"


@pytest.fixture(scope="module")
def bench(repo: Path) -> Iterator[SimpleNamespace]:
    """The benchmark and its figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repo / "benchmarks"))
        import rl
        import rl_figures

        yield SimpleNamespace(rl=rl, figures=rl_figures)


def made_up(*, starts: int = 160, seeds: int = 3) -> dict[str, np.ndarray]:
    """A clone that solves 3 of 10, agents of imagination 8 and of the simulator 9 of 10."""
    place = np.arange(starts) % 10
    found = {"cloned": (place < 3).astype(float)}
    for seed in range(seeds):
        found[f"imagined-{seed}"] = (place < 8).astype(float)
        found[f"oracle-{seed}"] = (place < 9).astype(float)
    return found


def part(bench: SimpleNamespace, outcomes: dict[str, np.ndarray]) -> dict[str, Any]:
    """What rl.json holds of a part."""
    return {
        "outcomes": {name: bench.figures.text_of(values) for name, values in outcomes.items()},
        "training": dict.fromkeys(outcomes, 0.15),
    }


# --- figures ---


def test_gains_are_paired_and_over_seeds_whole_starts_are_drawn(bench: SimpleNamespace) -> None:
    outcomes = made_up()
    gained = bench.figures.gains(outcomes, "cloned")
    assert gained["imagined-1"].value == pytest.approx(0.5)
    assert gained["imagined, all seeds"].value == pytest.approx(0.5)
    assert gained["oracle, all seeds"].value == pytest.approx(0.6)
    assert gained["imagined, all seeds"].samples == 160  # three seeds of a start are no three starts
    assert 0.4 < gained["imagined, all seeds"].low < gained["imagined, all seeds"].high < 0.6
    outcomes["imagined-2"][5] = np.nan
    assert bench.figures.gains(outcomes, "cloned")["imagined, all seeds"].samples == 159


def test_the_share_of_the_simulators_gain_is_a_ratio_of_gains(bench: SimpleNamespace) -> None:
    outcomes = made_up()
    share = bench.figures.share_of_oracle(outcomes, "cloned")
    assert share.value == pytest.approx(5 / 6)
    assert 0.7 < share.low < share.value < share.high < 1.0
    useless = {name: outcomes["cloned"] if "oracle" in name else values for name, values in outcomes.items()}
    assert bench.figures.share_of_oracle(useless, "cloned") is None
    alone = {name: values for name, values in outcomes.items() if "oracle" not in name}
    assert bench.figures.share_of_oracle(alone, "cloned") is None
    assert "oracle, all seeds" not in bench.figures.gains(alone, "cloned")


def test_what_is_asked_stands_beside_what_was_measured(bench: SimpleNamespace) -> None:
    rows = bench.figures.against("push", made_up())
    assert [row[-1] for row in rows] == ["must", "must", "aim"]
    assert rows[2][2].startswith("83 % [")
    worse = made_up()
    for seed in range(3):
        worse[f"imagined-{seed}"] = worse["cloned"]
    assert [row[-1] for row in bench.figures.against("push", worse)] == ["must", "no", "no"]
    easy = made_up() | {"cloned": np.ones(160)}
    assert bench.figures.against("push", easy)[0][-1] == "no"
    (reach,) = bench.figures.against("reach", {f"imagined-{seed}": np.ones(160) for seed in range(3)})
    assert reach[-1] == "must, with its interval"
    (reach,) = bench.figures.against("reach", {f"imagined-{seed}": np.arange(160) % 10 < 8 for seed in range(3)})
    assert reach[-1] == "no"


def test_fewer_seeds_and_starts_than_are_asked_for_are_told(bench: SimpleNamespace) -> None:
    rows = bench.figures.against("push", made_up(seeds=1, starts=100))
    assert rows[0][-1] == "must (so far: 100 of 150 starts)"
    assert rows[1][-1] == "must (so far: 1 of 3 seeds, 100 of 150 starts)"
    assert [row[2] for row in bench.figures.against("push", {"cloned": made_up()["cloned"]})][1:] == 2 * [
        "not measured"
    ]


def test_tables_are_made_from_what_is_kept(bench: SimpleNamespace) -> None:
    outcomes = made_up(seeds=1)
    outcomes["imagined-0"][0] = np.nan
    kept = json.loads(json.dumps({"push": part(bench, outcomes)}))
    again = bench.figures.outcomes_of(kept["push"])
    assert all(np.array_equal(again[name], values, equal_nan=True) for name, values in outcomes.items())
    text = bench.figures.tables(kept)
    assert "its share of the gain in the simulator" in text
    assert "| push | imagined, all seeds |" in text
    assert "15 %" in text


def test_the_first_mediocre_clone_is_taken(bench: SimpleNamespace, tmp_path: Path) -> None:
    for number, solved in ((2, 0.1), (4, 0.4), (6, 0.3)):
        folder = tmp_path / f"cloned-{number}"
        folder.mkdir()
        (folder / "agent.json").write_text("{}")
        (folder / "chosen.json").write_text(str(solved))
    given: dict[str, Any] = {"data": tmp_path, "env": ID, "hold": 2, "count": 1, "after": 1}
    assert bench.rl.mediocre(tmp_path, episodes=(2, 4, 6), **given) == (tmp_path / "cloned-4", {"2": 0.1, "4": 0.4})
    with pytest.raises(VapError, match="20% to 50% is needed"):
        bench.rl.mediocre(tmp_path, episodes=(2,), **given)


# --- weights ---


def test_other_weights_have_another_mark(bench: SimpleNamespace, tmp_path: Path) -> None:
    copy = tmp_path / "tiny"
    shutil.copytree(weights_dir() / "tiny", copy)
    mine = bench.rl.weights_of(ID, "")
    assert bench.rl.marked(bench.rl.weights_of(ID, "tiny")) == bench.rl.marked(mine)
    (copy / "model_index.json").write_bytes((copy / "model_index.json").read_bytes() + b" ")
    assert bench.rl.marked(bench.rl.weights_of(ID, str(copy))) != bench.rl.marked(mine)


def test_figures_of_other_or_unknown_weights_are_left_out(
    bench: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "rl.json"
    assert bench.rl.still_true(kept, {"tiny": "a"}) == {}
    kept.write_text(json.dumps({"push": {"rates": {}}, "reach": {"weights": {"tiny": "a"}}}))
    assert list(bench.rl.still_true(kept, {"tiny": "a"})) == ["reach"]
    assert "push: " in capsys.readouterr().out
    assert bench.rl.still_true(kept, {"tiny": "b"}) == {}


# --- a run ---


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short episodes of experts that reach, with pictures."""
    root = tmp_path_factory.mktemp("recorded") / "set"
    robot = load_robot("panda_robotiq")
    writer = EpisodeWriter(root, fps=15, robot_type="panda_robotiq")
    with Scene(robot) as scene:
        for i in range(3):
            spec = draw_scene(i, task="reach", near=False)
            writer.write(i, record(scene, NominalRobot(robot), spec, "expert", frames=8))
    return root


@pytest.fixture(scope="module")
def run(bench: SimpleNamespace, recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A reach, trained for one round from recorded moments and tried from one start; another one lies there already."""
    out = tmp_path_factory.mktemp("agents")
    (out / "reach-imagined-0").mkdir()
    (out / "reach-imagined-0" / "agent.json").write_text("{}")  # of unknown weights: cannot even be read
    docs = out / "rl.md"
    docs.write_text(PAGE)
    given: dict[str, Any] = {
        "data": recordings, "parts": ("reach",), "seeds": 1, "starts": 1, "reach_steps": 64, "moments": 3, "horizon": 4,
        "max_spread_m": 0.0, "docs": docs,
    }  # fmt: skip
    bench.rl.main(out / "runs", **given)
    return SimpleNamespace(out=out / "runs", docs=docs, given=given)


def test_a_run_trains_tries_and_writes_the_page(bench: SimpleNamespace, run: SimpleNamespace) -> None:
    kept = json.loads((run.out / "rl.json").read_text())
    mark = bench.rl.marked(kept["reach"]["weights"])
    assert kept["reach"]["weights"] == bench.rl.weights_of(ID, "")
    assert (run.out / f"reach-imagined-0-{mark}" / "agent.json").is_file()
    assert (run.out / f"evaluated-reach-{mark}" / "report.json").is_file()
    assert set(kept["reach"]["outcomes"]["imagined-0"]) <= {"0", "1"}
    page = run.docs.read_text()
    assert "solved, learned from scratch" in page
    assert "1 of 3 seeds, 1 of 150 starts" in page
    assert "old" not in page
    assert filled(page, "rl", "old") == PAGE


def test_what_is_there_is_taken_and_nothing_of_other_settings(bench: SimpleNamespace, run: SimpleNamespace) -> None:
    policies = {path: path.stat().st_mtime_ns for path in run.out.rglob("policy.pt")}
    before = (run.out / "rl.json").read_text()
    bench.rl.main(run.out, **run.given)
    assert {path: path.stat().st_mtime_ns for path in run.out.rglob("policy.pt")} == policies
    assert json.loads((run.out / "rl.json").read_text())["reach"]["outcomes"] == json.loads(before)["reach"]["outcomes"]
    with pytest.raises(VapError, match="steps 64, got 128"):
        bench.rl.main(run.out, **run.given | {"reach_steps": 128})
    with pytest.raises(UnknownNameError):
        bench.rl.main(run.out, **run.given | {"parts": ("lift",)})


def test_an_agent_of_other_weights_is_left_alone_and_trained_anew(
    bench: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {
        "task": "reach",
        "steps": 16,
        "slots": 2,
        "round_steps": 8,
        "horizon": 4,
        "max_spread_m": 0.0,
    }
    for name in ("reach-0", "reach-0-0123abcd", "reach-00-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "agent.json").write_text("{}")
    folder = bench.rl.trained(tmp_path, "reach-0", mark="4567abcd", **given)
    assert folder == tmp_path / "reach-0-4567abcd"
    assert (folder / "policy.pt").is_file()
    told = capsys.readouterr().out
    assert "reach-0' was trained with other weights" in told
    assert "reach-0-0123abcd' was" in told
    assert "reach-00" not in told
    assert bench.rl.trained(tmp_path, "reach-0", mark="4567abcd", **given) == folder
    assert capsys.readouterr().out == ""


def test_curves_show_what_was_imagined_beside_what_was_simulated(bench: SimpleNamespace, tmp_path: Path) -> None:
    picture = tmp_path / "img" / "curves.png"
    assert not bench.figures.draw_curves(tmp_path, picture, title="A push")
    rows = [{"step": 64, "success": 0.1}, {"step": 128, "success": 0.2, "imagined": 0.5, "oracle": 0.4}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert bench.figures.draw_curves(tmp_path, picture, title="A push")
    assert picture.stat().st_size > 5_000
    assert bench.figures.told(tmp_path) == pytest.approx(0.15)
