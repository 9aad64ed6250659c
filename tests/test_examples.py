"""Every example runs and writes what it says: here on tiny budgets."""

import runpy
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vap_gym.data.video import read_video

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@dataclass(frozen=True, kw_only=True)
class Case:
    """How to run an example quickly. OUT stands for a new folder, DATA for the real recordings."""

    words: str
    writes: tuple[str, ...]  # in OUT: videos and pictures that show something, other files that are not empty
    says: str  # in what it prints
    frames: int = 0  # of its video
    simulator: bool = False


CASES = {
    "01_first_steps": Case(
        words="--out OUT/a.mp4 --steps 3", writes=("a.mp4", "a.png"), says="trust: object_risk", frames=4
    ),
    "02_skeleton_on_real_video": Case(
        words="--droid DATA/droid --out OUT/a.mp4 --scale 1", writes=("a.mp4",), says="real | prompt | overlay"
    ),
    "03_real_start": Case(
        words="--droid DATA/droid --frames 4 --out OUT/a.png", writes=("a.png",), says="4 frames of newsetup_0012"
    ),
    "04_branch_and_chunk": Case(
        words="--out OUT/a.png --steps 2", writes=("a.png",), says="a chunk of 4 gives the frames of 4 steps: True"
    ),
    "05_calibrate_a_camera": Case(
        words="--droid DATA/droid --frames 18 --out OUT",
        writes=("clicks.png", "outlines.png", "cameras.json"),
        says="px (median) from the clicks it never saw",
    ),
    "06_any_urdf": Case(
        words="--out OUT/arm.mp4 --steps 3",
        writes=("arm.mp4", "arm.png", "arm/robot.toml", "arm/check.png"),
        says="joint1",
        frames=4,
        simulator=True,
    ),
    "07_real_sources": Case(words="hands --data DATA --out OUT", writes=("hands/table.md",), says="## hands"),
    "08_other_robots_and_views": Case(
        words="--out OUT/a.mp4 --steps 2",
        writes=("a.mp4",),
        says="imagined above, true below",
        frames=2,
        simulator=True,
    ),
    "09_evaluate_policies": Case(
        words="--out OUT --starts 1 --steps 12",
        writes=("imagined/report.json", "true/report.html", "true/episodes/beside/meta/info.json"),
        says="  random     imagined 0.000  true 0.000",
        simulator=True,
    ),
    "10_plan": Case(
        words="--out OUT/a.png --task reach --candidates 8 --iterations 1 --steps 2",
        writes=("a.png",),
        says="after 2 steps and 1 plans",
    ),
    "11_serve": Case(words="--out OUT/a.png --clients 2 --steps 1", writes=("a.png",), says="by HTTP: reward"),
    "12_train_in_imagination": Case(
        words="--out OUT --episodes 8 --experts 1 --steps 1024 --starts 1 --try-steps 2",
        writes=("recorded/meta/info.json", "cloned/agent.json", "trained/policy.pt", "evaluated/report.html"),
        says="| trained",
        simulator=True,
    ),
    "13_paper_model": Case(
        words="--out OUT --frames 5 --steps 4",
        writes=("frames.png", "model/model_index.json"),
        says="the env draws the same prompts: True",
    ),
}


def test_no_example_is_forgotten() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_example_runs_and_writes_what_it_says(
    name: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = CASES[name]
    if case.simulator and find_spec("pybullet") is None:
        pytest.skip("pybullet is not installed")
    data = request.getfixturevalue("shared_data").resolve() if "DATA" in case.words else Path()
    words = [word.replace("OUT", str(tmp_path)).replace("DATA", str(data)) for word in case.words.split()]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")  # in this process: torch is imported once
    assert case.says in capsys.readouterr().out
    for written in case.writes:
        path = tmp_path / written
        if path.suffix == ".mp4":
            frames = read_video(path)
            assert frames.std() > 10
            assert len(frames) == case.frames or not case.frames
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                assert np.asarray(picture).std() > 10
        else:
            assert path.stat().st_size > 0
    assert not list(tmp_path.rglob(".*")), "something temporary is left"
