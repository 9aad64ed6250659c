"""What is shipped works elsewhere: sdist → wheel → install into another environment → smoke test."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SMOKE = """
import json, sys
from pathlib import Path
import gymnasium as gym
import vap_gym
from vap_gym.cards import known_envs, known_robots

env = gym.make("VAP-DROID-v0")
first, info = env.reset(seed=0)
second, *_ = env.step(env.action_space.sample())
print(json.dumps({
    "file": vap_gym.__file__,
    "torch": sys.modules["torch"].__file__,
    "robots": list(known_robots()),
    "envs": list(known_envs()),
    "frame": [str(second.dtype), *second.shape],
}))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command in a clean environment and return what it prints."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | environment
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from that sdist, not from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, repo, cwd=folder)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def tracked(repo: Path, *folders: str) -> set[str]:
    """The files that git knows in these folders."""
    return set(run("git", "ls-files", "-z", *folders, cwd=repo).split("\0")) - {""}


def test_all_shipped_weights_together_are_40_mb_at_most(repo: Path) -> None:
    sizes = {name: (repo / name).stat().st_size for name in tracked(repo, "*.safetensors")}
    assert {Path(name).parent.name for name in sizes} >= {"codec", "dynamics", "judge"}
    assert sum(sizes.values()) <= 40e6, sizes


def test_wheel_holds_code_robots_envs_weights_and_nothing_else(built: tuple[Path, Path], repo: Path) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
    assert {"vap_gym/__init__.py", "vap_gym/py.typed", "vap_gym/robots/panda_robotiq/robot.toml"} <= names
    assert any(name.startswith("vap_gym/weights/") and name.endswith(".safetensors") for name in names)
    expected = tracked(repo, "vap_gym") | {f"vap_gym/{name}" for name in tracked(repo, "robots", "envs")}
    assert expected <= names
    strangers = {name for name in names if not name.startswith("vap_gym") or "__pycache__" in name}
    assert not strangers


def test_sdist_holds_what_building_and_testing_need(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "constraints.txt", "LICENSE", "README.md", "Makefile", "tests/conftest.py"} <= names


@pytest.fixture(scope="module")
def elsewhere(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of another environment that has the wheel installed, and borrows its dependencies from ours."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, built[1], cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A .pth file comes after the environment's own packages, and .pth files in the folder it names are not followed:
    # our dependencies are seen, our editable vap_gym is not.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_installed_wheel_imagines_a_frame(elsewhere: Path) -> None:
    report = json.loads(run(elsewhere, "-I", "-c", SMOKE, cwd=elsewhere.parent).splitlines()[-1])
    assert Path(report["file"]).is_relative_to(elsewhere.parent.parent)
    assert not Path(report["torch"]).is_relative_to(elsewhere.parent.parent)
    assert "panda_robotiq" in report["robots"]
    assert "VAP-DROID-v0" in report["envs"]
    assert report["frame"] == ["uint8", 96, 144, 3]


def test_installed_wheel_has_the_command(elsewhere: Path) -> None:
    assert "vap-gym COMMAND --help" in run(elsewhere.parent / "vap-gym", "--help", cwd=elsewhere.parent)


def test_constraints_pin_every_direct_dependency(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {Requirement(line).name for line in [*project["dependencies"], *extras["dev"]]}
    lines = [line for line in (repo / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = {(pin := Requirement(line)).name: pin for line in lines}
    assert wanted <= pins.keys()
    assert len(pins) == len(lines), "a package is pinned twice"
    assert all(str(pin.specifier).startswith("==") for pin in pins.values())


def test_constraints_fit_the_open_ranges(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    pins = {
        (pin := Requirement(line)).name: str(pin.specifier).removeprefix("==")
        for line in (repo / "constraints.txt").read_text().splitlines()
        if line and line[0] != "#"
    }
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        assert Requirement(line).specifier.contains(pins[Requirement(line).name]), line


def test_nothing_installed_asks_for_torchvision() -> None:
    """Optional extras of others may name it; a plain requirement may not."""
    asking = {
        distribution.name
        for distribution in distributions()
        for line in distribution.requires or []
        if (wanted := Requirement(line)).name.lower() == "torchvision"
        and (wanted.marker is None or wanted.marker.evaluate({"extra": ""}))
    }
    assert not asking
