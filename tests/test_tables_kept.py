"""Scores of the tables that another checkout made: taken where they are of the same, refused or made anew elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="held-out clips are played in the oracle")

from vap_gym.errors import CheckpointError, VapError
from vap_gym.evaluate import tables
from vap_gym.evaluate.report import stamp
from vap_gym.evaluate.tables_clips import held_out_clips
from vap_gym.evaluate.tables_kept import Kept
from vap_gym.evaluate.tables_page import page
from vap_gym.evaluate.tables_plan import load_plan
from vap_gym.evaluate.tables_runs import MISSING, jobs_of, state_of


def figures(path: Path) -> str:
    """A page but for the line that says where and when it was made."""
    return path.read_text().replace(path.read_text().strip().splitlines()[-1], "")


def changed(plan: Path, tmp_path: Path, old: str, new: str) -> Path:
    (tmp_path / "changed.toml").write_text(plan.read_text().replace(old, new))
    return tmp_path / "changed.toml"


@pytest.fixture
def elsewhere(tables_runs: Path, tmp_path: Path) -> Path:
    """A checkout with the scores of Table 1 and nothing else but the clips, which are played by the same code."""
    folder = tmp_path / "runs"
    (folder / "heldout").mkdir(parents=True)
    for path in (*(tables_runs / "heldout").iterdir(), tables_runs / "tables.json"):
        (folder / path.relative_to(tables_runs)).write_bytes(path.read_bytes())
    return folder


def test_what_was_scored_elsewhere_is_not_trained_here(
    tables_runs: Path, tables_plan: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tables.main(plan=tables_plan, runs=elsewhere, only=("1",))
    assert {one["state"] for one in told["trainings"]} == {tables.ELSEWHERE}
    said = capsys.readouterr().out
    assert "video step" not in said
    assert "scoring" not in said
    assert not (elsewhere / "references").exists()
    assert figures(elsewhere / "tables.md") == figures(tables_runs / "tables.md")
    assert (elsewhere / "tables.json").read_bytes() == (tables_runs / "tables.json").read_bytes()


def test_the_page_is_made_from_the_scores_alone(tables_runs: Path, tables_plan: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"plan": tables_plan, "only": ("1",), "out": tmp_path / "page.md"}
    told = tables.main(runs=tmp_path / "none", source=tables_runs / "tables.json", **given)
    assert figures(tmp_path / "page.md") == figures(tables_runs / "tables.md")
    kept = Kept.load(tables_runs / "tables.json")
    kept.origin = "Measured elsewhere."
    kept.save(tmp_path / "other.json")
    tables.main(runs=tmp_path / "none", source=tmp_path / "other.json", **given)
    assert (tmp_path / "page.md").read_text().endswith("Measured elsewhere.\n")
    assert told["trainings"] == []
    assert not (tmp_path / "none").exists()
    with pytest.raises(VapError, match="no such file"):
        tables.main(source=tmp_path / "none.json", **given)


def test_only_what_nothing_else_needs_is_left_untrained(
    tables_runs: Path, tables_plan: Path, elsewhere: Path, tmp_path: Path
) -> None:
    def todo(path: Path, tables_: tuple[str, ...]) -> list[str]:
        plan = load_plan(path).only(tables_)
        jobs = jobs_of(plan, elsewhere)
        assert {state_of(job) for job in jobs} == {MISSING}
        found = tables.kept_elsewhere(plan, jobs, Kept.load(elsewhere / "tables.json"), elsewhere)
        return [job.run.name for job in jobs if job.name not in found]

    assert todo(tables_plan, ("1",)) == []
    assert todo(tables_plan, ("3",)) == ["base", "skeleton-droid", "mesh-droid"]  # mesh goes on with skeleton
    other = changed(tables_plan, tmp_path, "lora_rank = 2", "lora_rank = 4")
    assert todo(other, ("1",)) == ["base", "text-droid", "skeleton-droid"]
    more = load_plan(tables_plan).only(("1",)).smaller(clips=4)  # three episodes were scored, of 256
    held_out_clips(more.sets["droid"], "known", 4, folder=elsewhere / "heldout", workers=1)
    kept = Kept.load(elsewhere / "tables.json")
    assert tables.kept_elsewhere(more, jobs_of(more, elsewhere), kept, elsewhere) == frozenset()


def test_scores_on_other_clips_are_not_taken(tables_runs: Path, tables_plan: Path, elsewhere: Path) -> None:
    path = elsewhere / "tables.json"
    path.write_text(path.read_text().replace('"mark":"', '"mark":"0'))
    job = next(job for job in jobs_of(load_plan(tables_plan), elsewhere) if job.run.name == "text-droid")
    assert Kept.load(path).of_job(job, "droid/known", "any") is None
    mark = json.loads(path.read_text())["trainings"]["text-droid/3"]["scores"]["droid/known"]["mark"]
    scores = Kept.load(path).of_job(job, "droid/known", mark)
    assert scores is not None
    assert len(scores["psnr"]) == 3
    assert np.isfinite(scores["psnr"]).all()
    tables.main(plan=tables_plan, runs=elsewhere, only=("1",), budget=1e-9)  # as if another judge had scored them
    said = (elsewhere / "tables.md").read_text()
    assert "Not trained yet, and so missing below: text-droid, seed 3, skeleton-droid, seed 3." in said


def test_rows_that_start_from_two_trainings_of_a_base_say_so(tables_runs: Path, tables_plan: Path) -> None:
    plan = load_plan(tables_plan).only(("1",))
    kept = Kept.load(tables_runs / "tables.json")
    assert "not all rows start" not in page(plan, kept.results(plan))
    kept.trainings["text-droid/3"]["started_from"] = "another day"
    assert "Table 1, seed 3: `base` was trained 2 times" in page(plan, kept.results(plan))


def test_what_two_processes_score_is_kept_together(tables_runs: Path, tmp_path: Path) -> None:
    whole, path = Kept.load(tables_runs / "tables.json"), tmp_path / "tables.json"
    one, two = (Kept.load(tables_runs / "tables.json") for _ in range(2))
    del one.trainings["text-droid/3"], two.trainings["skeleton-droid/3"], two.references["frozen/droid/known"]
    two.trainings["text-droid/3"]["scores"] = {}
    for part in (one, two, Kept(trainings={"text-droid/3": whole.trainings["text-droid/3"]}, origin=whole.origin)):
        part.save(path)
    assert path.read_bytes() == (tables_runs / "tables.json").read_bytes()
    other = {**whole.trainings["text-droid/3"], "finished": "later", "scores": {}}
    Kept(trainings={"text-droid/3": other}).save(path)
    assert Kept.load(path).trainings["text-droid/3"]["scores"] == {}  # of another training: those before are of no use


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tables.json"
    for text in ("[1]", "{", '{"format": "another"}', json.dumps({"format": "vap_gym tables 1"})):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="holds no scores of the tables"):
            Kept.load(path)
    assert not Kept.load(tmp_path / "none.json").trainings


def test_the_stamp_is_a_line_of_its_own() -> None:
    assert len(stamp().splitlines()) == 1  # which `figures` leaves out
