"""Data generation: the same set whoever writes it and whenever it is killed, and never from the benchmarks' seeds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vap_gym.cards import load_robot
from vap_gym.data import EpisodeSet, finalise
from vap_gym.errors import UnknownNameError, VapError
from vap_gym.sim.generate import HELDOUT_FIRST_SEED, MIX, behaviour_of, main
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.rollout import NominalRobot, record
from vap_gym.sim.scene import Scene
from vap_gym.sim.spec import SceneSpec

pytest.importorskip("pybullet", reason="the oracle needs pybullet")
EPISODES, FRAMES = 3, 6


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that one process wrote."""
    folder = tmp_path_factory.mktemp("generated") / "one"
    main(folder, episodes=EPISODES, frames=FRAMES, workers=1)
    return folder


def test_two_workers_write_what_one_writes(by_one: Path, tmp_path: Path) -> None:
    main(tmp_path / "two", episodes=EPISODES, frames=FRAMES, workers=2)
    assert contents(tmp_path / "two") == contents(by_one)


def test_the_set_holds_the_seeds_episodes(by_one: Path) -> None:
    episodes = EpisodeSet(by_one)
    assert len(episodes) == EPISODES
    card = load_robot("panda_robotiq")
    with Scene(card) as scene:
        for i in range(EPISODES):
            assert episodes.info(i)["scene"] == json.loads(draw_scene(i).to_json())
            assert episodes.info(i)["behaviour"] == behaviour_of(i)
            again = record(scene, NominalRobot(card), draw_scene(i), behaviour_of(i), frames=FRAMES)
            for name, values in episodes[i].columns.items():
                np.testing.assert_array_equal(values, again.columns[name], err_msg=name)
            np.testing.assert_array_equal(episodes[i].labels["front"], again.labels["front"])


def test_a_killed_run_goes_on_to_the_same_set(by_one: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    script = (
        f"from pathlib import Path; from vap_gym.sim.generate import main\n"
        f"if __name__ == '__main__': main(Path({str(out)!r}), episodes={EPISODES}, frames={FRAMES}, workers=1)"
    )
    (tmp_path / "run.py").write_text(script)
    path = os.pathsep.join([str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py")],
        env={**os.environ, "PYTHONPATH": path}, start_new_session=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and process.poll() is None and not list(out.rglob("episode.parquet")):
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the run and its workers, which share a session of their own
        process.wait()
    assert len(list(out.rglob("*"))) > 0
    main(out, episodes=EPISODES, frames=FRAMES, workers=1)
    assert contents(out) == contents(by_one)


def test_remains_of_a_run_killed_amid_a_meta_file_are_gathered_up(by_one: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    shutil.copytree(by_one, out)
    (out / "meta" / ".info.json.123.tmp").write_text("{")
    finalise(out)
    assert contents(out) == contents(by_one)


@pytest.mark.parametrize(("first", "episodes"), [(-1, 3), (HELDOUT_FIRST_SEED - 2, 3), (HELDOUT_FIRST_SEED, 1)])
def test_seeds_of_the_benchmarks_are_refused(first: int, episodes: int, tmp_path: Path) -> None:
    with pytest.raises(VapError, match=r"Seeds .* must lie within 0 to 1000000. .* kept for benchmarks"):
        main(tmp_path / "set", episodes=episodes, first_seed=first)
    assert not (tmp_path / "set").exists()


def test_too_few_frames_and_unknown_robots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VapError, match="frames must be 2 or more, got 1"):
        main(tmp_path / "set", frames=1)
    with pytest.raises(UnknownNameError, match="Did you mean 'panda_hand'"):
        main(tmp_path / "set", robot="panda_hnd", episodes=1, frames=2)
    assert not (tmp_path / "set").exists()


def test_the_mix_is_what_it_says() -> None:
    assert sum(MIX.values()) == pytest.approx(1.0)
    drawn = [behaviour_of(seed) for seed in range(2000)]
    for name, share in MIX.items():
        assert drawn.count(name) / len(drawn) == pytest.approx(share, abs=0.04)
    assert MIX["expert"] <= 0.7  # the rest mostly does not succeed: at least 30 % of the data
    assert behaviour_of(5) == behaviour_of(5)


def test_specifications_of_a_set_can_be_read_back(by_one: Path) -> None:
    for i in range(EPISODES):
        assert SceneSpec.from_json(json.dumps(EpisodeSet(by_one).info(i)["scene"])) == draw_scene(i)


def test_one_behaviour_may_be_asked_for(tmp_path: Path) -> None:
    main(tmp_path / "set", episodes=2, frames=3, pictures=False, behaviour="clumsy", workers=1)
    assert [EpisodeSet(tmp_path / "set").info(i)["behaviour"] for i in range(2)] == ["clumsy", "clumsy"]
