"""Importing several episodes at once: the same bytes as one by one, bad episodes and killed runs included."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vap_gym.data import EpisodeSet, write_video
from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.run import Report, import_source, one_by_one
from vap_gym.data.importing.source import Options
from vap_gym.jobs import AtOnce, importing

EPISODES = 8


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DROID folders: e0 and e3 are damaged, e4 runs at another rate, e5 has other views, e6 a half of its video."""
    root = tmp_path_factory.mktemp("recording") / "in"
    for i in range(EPISODES):
        folder, count = root / f"e{i}", 4 + i % 3
        folder.mkdir(parents=True)
        rng = np.random.default_rng(i)
        joints, gripper, pose = rng.normal(size=(count, 7)), rng.random(count), rng.normal(size=(count, 6))
        np.savez(folder / "log.npz", joint_position=joints, gripper_position=gripper, cartesian_position=pose)
        rate = 20.0 if i == 4 else 10.0
        (folder / "episode.json").write_text(json.dumps({"instruction": f"task {i % 2}", "log_rate_hz": rate}))
        frames = np.broadcast_to(rng.integers(0, 200, (1, 32, 32, 3)), (count, 32, 32, 3)).astype(np.uint8)
        for view in ("cam0", "cam1")[: 1 if i == 5 else 2]:
            write_video(folder / f"{view}.mp4", frames, int(rate))
    for i in (0, 3):
        (root / f"e{i}/log.npz").write_bytes((root / f"e{i}/log.npz").read_bytes()[:200])
    (root / "e6/cam1.mp4").write_bytes((root / "e6/cam1.mp4").read_bytes()[:900])
    return root


def imported(recording: Path, out: Path, *, at_once: bool = False, only: str = "*") -> Report:
    """Import here, one by one or in the way of many processes; the command's test has real ones."""
    write = AtOnce(executor="serial", workers=1) if at_once else one_by_one
    return import_source(open_source("droid", recording, Options()), recording, out, only=only, write=write)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set, imported one by one."""
    out = tmp_path_factory.mktemp("whole") / "set"
    report = imported(recording, out)
    assert [outcome.index for outcome in report.outcomes] == [None, 0, 1, None, None, None, None, 2]
    return out


def same(out: Path, whole: Path) -> bool:
    """Whether two sets hold the same bytes; reasons of failures name the set's folder."""
    found, wanted = files(out), files(whole)
    return {name: value.replace(bytes(out), b"SET") for name, value in found.items()} == {
        name: value.replace(bytes(whole), b"SET") for name, value in wanted.items()
    }


def test_the_command_gives_the_same_bytes_with_processes(recording: Path, whole: Path, tmp_path: Path) -> None:
    words = ["data", "import", "droid", str(recording), str(tmp_path / "set"), "--executor", "processes"]
    command = [sys.executable, "-m", "vap_gym", *words, "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1, done.stderr  # some failed
    assert "3 episodes" in done.stdout
    assert same(tmp_path / "set", whole)


def test_a_killed_import_goes_on_one_by_one_or_at_once(
    recording: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(staged: Path, number: int, root: Path, index: int) -> None:
        if index == 2:
            raise KeyboardInterrupt
        real_adopt(staged, number, root, index)

    real_adopt = importing.adopt
    for after in (False, True):
        out = tmp_path / f"set {after}"
        with monkeypatch.context() as patch:
            patch.setattr(importing, "adopt", killed)
            with pytest.raises(KeyboardInterrupt):
                imported(recording, out, at_once=True)
        episodes = EpisodeSet(out)
        assert [episodes.info(i)["source"]["episode"] for i in range(len(episodes))] == ["e1", "e2"]
        (out / ".staged/1").mkdir(parents=True)
        (out / ".staged/1/left").touch()
        imported(recording, out, at_once=after)
        assert same(out, whole)


def test_a_finished_set_is_added_to_at_once(recording: Path, tmp_path: Path) -> None:
    sets = [tmp_path / "one by one", tmp_path / "at once"]
    for at_once, out in enumerate(sets):
        imported(recording, out, only="e[0-2]")
        imported(recording, out, at_once=bool(at_once))
    assert same(sets[1], sets[0])
    assert not (sets[1] / ".staged").exists()
