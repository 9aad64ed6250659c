"""The agreement experiment, a run of a few steps from end to end: played, kept, gone on with, and made anew."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tyro

from vap_gym.cards import load_env
from vap_gym.errors import CheckpointError, UnknownNameError, VapError
from vap_gym.evaluate.agreement_outcomes import Outcomes


@pytest.fixture(scope="module")
def bench(repo: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repo / "benchmarks"))
        import agreement

        yield agreement


@pytest.fixture(scope="module")
def run(bench: Any, repo: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two policies from two starts for three steps: the oracle alone, then the rest."""
    out = tmp_path_factory.mktemp("agreement")
    page = out / "docs" / "page.md"
    given: dict[str, Any] = {
        "page": page, "grid": repo / "benchmarks" / "agreement.toml", "tasks": ("reach",), "starts": 2, "steps": 3,
        "policies": ("expert", "failing"), "batch": 2, "parts": ("main", "replay"),
    }  # fmt: skip
    left = bench.main(out / "played", **given, dry_run=True)
    assert not page.exists()
    done = bench.main(out / "played", **given)
    return SimpleNamespace(out=out / "played", page=page, given=given, left=left, done=done)


def test_a_run_plays_all_conditions_and_writes_page_picture_and_outcomes(run: SimpleNamespace) -> None:
    assert (run.left, run.done) == (3, 0)
    outcomes = Outcomes.load(run.page.with_suffix(".json"))
    assert outcomes.conditions() == ["imagined", "oracle", "replay"]
    for condition in outcomes.conditions():
        assert outcomes.outcomes(condition, "reach", ["expert", "failing"]).shape == (2, 2)
        assert outcomes.seconds(condition) is not None
    assert outcomes.weights["imagined"]["name"] == load_env("VAP-DROID-v0").world_model
    text = run.page.read_text()
    assert "| reach | expert" in text
    assert "open-loop replay" in text
    assert "Measured on" in text
    assert (run.page.parent / "img" / "page.png").is_file()


def test_what_is_kept_is_not_played_again_in_another_folder(
    bench: Any, run: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(VapError, match="--keep"):
        bench.main(tmp_path / "other", **run.given)
    assert bench.main(tmp_path / "other", **run.given, keep=True) == 0
    assert not (tmp_path / "other").exists()
    with pytest.raises(VapError, match="starts 2, got 3"):
        bench.main(tmp_path / "other", **run.given | {"starts": 3}, keep=True)
    late = run.given | {"policies": ("expert", "failing", "play")}
    assert bench.main(tmp_path / "other", **late, keep=True, minutes=1e-9) == 3
    assert "3 of 3 parts are left" in capsys.readouterr().out


def test_true_episodes_that_another_checkout_played_are_played_here_to_be_replayed(
    bench: Any, run: SimpleNamespace, tmp_path: Path
) -> None:
    before = Outcomes.load(run.page.with_suffix(".json"))
    before.save(tmp_path / "page.json")
    given = run.given | {"page": tmp_path / "page.md"}
    assert bench.main(tmp_path / "other", **given, keep=True, forget=("replay",)) == 0
    after = Outcomes.load(tmp_path / "page.json")
    for key, unit in before.units.items():
        if not key.startswith("replay/"):
            assert after.units[key] == unit
    for name in ("expert", "failing"):
        was, now = (one.units[f"replay/reach/{name}"] for one in (before, after))
        assert (now["verdicts"], now["steps"]) == (was["verdicts"], was["steps"])
        assert now["progress"] == pytest.approx(was["progress"], abs=0.011)


def test_figures_are_made_anew_from_the_outcomes_alone(
    bench: Any, run: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = run.page.with_suffix(".json")
    page = tmp_path / "page.md"
    assert tyro.cli(bench.main, args=["--from", str(kept), "--page", str(page), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["reach"]
    assert page.read_text() == run.page.read_text()


def test_unknown_tasks_parts_and_checkpoints_are_refused(bench: Any, run: SimpleNamespace, tmp_path: Path) -> None:
    for wrong in ({"tasks": ("pull",)}, {"parts": ("all",)}):
        with pytest.raises(UnknownNameError):
            bench.main(tmp_path, **run.given | wrong)
    with pytest.raises(VapError, match="NAME=FOLDER"):
        bench.main(tmp_path, **run.given | {"checkpoints": ("runs/world",)})
    with pytest.raises(CheckpointError):
        bench.main(tmp_path, **run.given | {"checkpoints": (f"none={tmp_path}",), "parts": ("models",)}, keep=True)
