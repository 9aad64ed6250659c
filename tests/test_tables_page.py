"""The page of the tables: figures beside their references, doubts about the judge said, verdicts by rule."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vap_gym.evaluate.tables_page import Results, RunFact, page
from vap_gym.evaluate.tables_plan import Plan, load_plan
from vap_gym.evaluate.tables_scores import Scores
from vap_gym.evaluate.tables_strips import write_sheet

N = 12


def scores(psnr: float, px: float, masks: float = 0.9) -> Scores:
    rng = np.random.default_rng(0)
    spread = rng.normal(0, 0.1, N)
    found = {"psnr": psnr + spread, "ssim": 0.8 + 0.1 * spread, "st_iou": psnr / 50 + 0.1 * spread}
    found |= {"adherence_px": px + spread, **dict.fromkeys(("j_and_f", "j", "f"), masks + 0.1 * spread)}
    return found


@pytest.fixture
def plan(repo: Path) -> Plan:
    return load_plan(repo / "benchmarks" / "tables.toml")


def results(plan: Plan, **true: tuple[float, float]) -> Results:
    """Skeletons are best on all sets; `true` says what the judge's own adherence and J&F are, by set."""
    quality = {"text": 20.0, "raw_state": 24.0, "skeleton": 28.0, "unified": 27.0}
    measured = {}
    for name in plan.sets:
        px, masks = true.get(name, (1.0, 0.9))
        for split in ("known", "novel"):
            for row, psnr in quality.items():
                measured[row, name, split] = [scores(psnr, 30 - psnr, psnr / 40)]
            measured["frozen", name, split] = [scores(18, 20)]
            measured["true", name, split] = [scores(40, px, masks)]
    counts = {(name, split): N for name in plan.sets for split in ("known", "novel")}
    fact = RunFact(name="base", seed=0, steps=1200, samples=9600, hours=0.25, recipe="abcdef01")
    moving = {"droid": False, "rt1": False, "hand": True}
    return Results(measured=measured, moving=moving, episodes=counts, facts=[fact])


def test_figures_stand_beside_what_is_frozen_and_what_the_judge_sees_in_true_frames(plan: Plan) -> None:
    text = page(plan.only(["1"]), results(plan))
    block = text.split("**hand, known** (moving camera)")[1].split("\n\n")[1].splitlines()
    assert [line.split("|")[1].strip() for line in block[2:]] == [
        "text", "raw state", "skeleton", "unified skeleton", "first frame, frozen", "judge on true frames",
    ]  # fmt: skip
    assert block[0].split("|")[2].strip() == "PSNR, dB"
    assert block[-1].split("|")[2].strip() == ""  # the judge makes no frames
    assert "The camera moves in: hand. It stands still in: DROID-like, RT-1-like." in text
    assert "One seed: the intervals hold chance of the episodes, not of the training." in text
    assert "| base     | 0    | 1,200 | 9,600   | 0.25  | `abcdef01` |" in text
    assert "trial run" not in text


def test_verdicts_follow_from_the_figures(plan: Plan) -> None:
    text = page(plan.only(["1"]), results(plan))
    assert (
        "Skeleton above raw state above text, where the camera moves: this holds, with intervals apart, in all 6"
        in text
    )
    worse = "Joint training is not worse than training on DROID-like scenes alone: this does not hold at our scale. On "
    assert worse + "DROID-like, PSNR, dB: unified skeleton 27" in text
    assert "| does not hold |" in text


def test_a_judge_that_does_not_find_the_gripper_is_not_asked_for_it(plan: Plan) -> None:
    text = page(plan.only(["1"]), results(plan, hand=(40.0, 0.9)))
    block = text.split("**hand, known** (moving camera)")[1].split("| ordering")[0]
    assert "adherence, px" not in block
    assert "No adherence: the judge does not find this robot's gripper in true frames." in block
    assert "Left out, since the judge does not know what it would have to read there: adherence, px on hand." in text
    assert "where the camera moves: this holds" in text  # what could be measured does; and the table says:
    assert "| Table 1; must show | not measured  |" in text


def test_a_segmenter_below_what_it_must_have_is_said_beside_the_masks(plan: Plan) -> None:
    text = page(plan.only(["2"]), results(plan, rt1=(1.0, 0.6)))
    said = text.split("**RT-1-like, novel skill**")[1].split("**")[0]
    assert "own on true frames, 0.60, is below the 0.85 that it must have." in said
    said = text.split("**DROID-like, novel lab**")[1].split("**")[0]
    assert "own on true frames, 0.90, reaches the 0.85 that it must have." in said


def test_a_smaller_run_says_that_it_is_no_result(plan: Plan) -> None:
    small = plan.smaller(steps=10).only(["3"])
    text = page(small, replace(results(small), skipped=["mesh-droid, seed 0"]))
    assert "**A trial run, no result: 10 steps instead of 1800.**" in text
    assert "Not trained yet, and so missing below: mesh-droid, seed 0." in text


def test_a_sheet_has_a_row_for_each_clip(tmp_path: Path) -> None:
    from PIL import Image

    clip = np.zeros((25, 96, 144, 3), np.uint8)
    clip[24] = 200
    write_sheet(tmp_path / "sheets" / "a.png", {"true": clip, "text": clip[:13]})
    with Image.open(tmp_path / "sheets" / "a.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[0] == 2 * 98 + 14
    assert (pixels[14 + 40, -20] == 200).all()
    assert (pixels[14 + 98 + 40, -20] == 0).all()  # a shorter clip shows its last frame
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["a.png"]
