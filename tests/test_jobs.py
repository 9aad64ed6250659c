"""Jobs: the same bytes whoever runs them; failures stay apart, killed runs go on, killed workers are replaced."""

import hashlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vap_gym.data import Episode, EpisodeSet, EpisodeWriter, finalise
from vap_gym.data.adopt import adopt
from vap_gym.data.layout import DataError
from vap_gym.errors import UnknownNameError, VapError
from vap_gym.jobs import Outcome, run_jobs

SCRIPT = '''
"""Writes eight episodes; two workers are killed, before and after they write; the last item has no episode."""
import os, signal, sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Write:
    root: Path
    killed: Path

    def __call__(self, item):
        import numpy as np
        from vap_gym.data import Episode, EpisodeWriter
        from vap_gym.errors import VapError

        i = item["index"]
        if i == 7:
            raise VapError("Episode 7 must be whole, got none. Leave it out.")
        self.die_once(i == 2, "before")
        rng = np.random.default_rng(i)
        frames = rng.integers(0, 255, (5, 32, 48, 3), dtype=np.uint8)
        q = np.linalg.svd(rng.random((5, 7, 7)))[1]
        writer = EpisodeWriter(self.root, episodes_per_file=3)
        if i not in writer.written():
            writer.write(i, Episode(frames={"v": frames}, columns={"q": q}, task="t"))
        self.die_once(i == 4, "after")
        return {"index": i, "sum": float(q.sum()), "nested": {"b": [1.5], "a": None}}

    def die_once(self, here, name):
        flag = self.killed / name
        if here and self.killed.is_dir() and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from vap_gym.data import finalise
    from vap_gym.jobs import run_jobs

    root, executor, killed = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    items = {f"episode {i}": {"index": i} for i in range(8)}
    found = run_jobs(Write(root, killed), items, manifest=root / "meta/run.jsonl", executor=executor, workers=2)
    finalise(root)
    print([outcome.key for outcome in found if outcome.error is None])
'''


def run_script(folder: Path, executor: str, killed: Path) -> dict[str, str]:
    """Run the script in a fresh interpreter and return the hashes of all files of its set."""
    root = folder / executor
    done = run_python(folder / "write_episodes.py", SCRIPT, str(root), executor, str(killed))
    assert done == str([f"episode {i}" for i in range(7)])
    return hashes(root)


def run_python(script: Path, code: str, *arguments: str) -> str:
    """Run a script in a fresh interpreter, as a user does, and return the last line that it prints."""
    script.write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    command = [sys.executable, "-W", "error:::vap_gym", str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def hashes(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("serial")
    return run_script(folder, "serial", folder / "nobody is killed")


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes", "ray"])
def test_two_workers_that_are_killed_give_the_bytes_of_one_process(
    executor: str, serial: dict[str, str], tmp_path: Path
) -> None:
    if executor == "ray" and find_spec("ray") is None:
        pytest.skip("ray is not installed")
    killed = tmp_path / "killed"
    killed.mkdir()
    found = run_script(tmp_path, executor, killed)
    assert {path.name for path in killed.iterdir()} == {"before", "after"}
    assert len(serial) > 8
    assert found == serial


DEADLY = """
import os, signal, sys
from pathlib import Path


def die(i):
    if i == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"i": i}


if __name__ == "__main__":
    from vap_gym.jobs import run_jobs

    found = run_jobs(die, {str(i): i for i in range(3)}, manifest=Path(sys.argv[1]), executor=sys.argv[2], workers=2)
    print([outcome.error or outcome.result for outcome in found])
"""


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes", "ray"])
def test_an_item_that_kills_every_worker_fails_and_the_others_do_not(executor: str, tmp_path: Path) -> None:
    if executor == "ray" and find_spec("ray") is None:
        pytest.skip("ray is not installed")
    output = run_python(tmp_path / "deadly.py", DEADLY, str(tmp_path / "run.jsonl"), executor)
    assert output.startswith("[{'i': 0}, 'The worker process died 3 times at this item.")
    assert output.endswith("{'i': 2}]")


BREAKS_MEANWHILE = """
import os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wait:
    flag: Path

    def __call__(self, i):
        if i == 1 and not (died := self.flag.with_suffix(".died")).exists():
            while not self.flag.exists():
                time.sleep(0.01)
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"i": i}


if __name__ == "__main__":
    from vap_gym.jobs import run_jobs

    flag = Path(sys.argv[1]) / "told"

    def tell(outcome):
        if outcome.key == "0":
            flag.touch()
            time.sleep(1.0)  # the pool breaks before the next item is handed to it

    items = {str(i): i for i in range(5)}
    manifest = flag.with_name("run.jsonl")
    found = run_jobs(Wait(flag), items, manifest=manifest, executor="processes", workers=2, tell=tell)
    print([outcome.result for outcome in found])
"""


@pytest.mark.slow
def test_a_pool_that_breaks_while_an_outcome_is_told_loses_nothing(tmp_path: Path) -> None:
    output = run_python(tmp_path / "breaks.py", BREAKS_MEANWHILE, str(tmp_path))
    assert output == str([{"i": i} for i in range(5)])


def write_one(root: Path) -> Any:
    def task(i: int) -> dict[str, Any]:
        writer = EpisodeWriter(root)
        if i not in writer.written():
            frames = np.full((3, 16, 16, 3), 10 * i, np.uint8)
            writer.write(i, Episode(frames={"v": frames}, columns={"x": np.arange(3.0) + i}, task=f"task {i}"))
        return {"i": i, "mean": i / 3}

    return task


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_killed_run_goes_on_to_the_same_bytes(cut: int, tmp_path: Path) -> None:
    items = {str(i): i for i in range(6)}
    run_jobs(write_one(tmp_path / "whole"), items, manifest=tmp_path / "whole/run.jsonl", settings={"a": [1]})
    finalise(tmp_path / "whole")
    asked: list[int] = []

    def killed(i: int) -> dict[str, Any]:
        asked.append(i)
        found: dict[str, Any] = write_one(tmp_path / "part")(i)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return found

    manifest = tmp_path / "part/run.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_jobs(killed, items, manifest=manifest, settings={"a": [1]})
    if cut:
        manifest.write_bytes(manifest.read_bytes()[:-cut])
    found = run_jobs(killed, items, manifest=manifest, settings={"a": [1]})
    finalise(tmp_path / "part")
    assert asked == [0, 1, 2, 3, *([2] if cut > 1 else []), 3, 4, 5]
    assert [outcome.result for outcome in found] == [{"i": i, "mean": i / 3} for i in range(6)]
    assert hashes(tmp_path / "part") == hashes(tmp_path / "whole")
    again = run_jobs(killed, items, manifest=manifest, settings={"a": [1]})
    assert again == found
    assert len(asked) == 7 + (cut > 1)


def test_failures_are_kept_apart_and_tried_again(tmp_path: Path) -> None:
    is_mended = False

    def task(i: int) -> dict[str, Any]:
        if i == 1 and not is_mended:
            raise DataError("Frame 3 of 'a.mp4' must be whole, got half. Fetch it again.")
        if i == 2 and not is_mended:
            raise ZeroDivisionError("by zero")
        if i == 3:
            return {"x": float("nan")}
        return {} if i else {"x": (1, 2)}

    items = {f"e{i}": i for i in range(5)}
    told: list[Outcome] = []
    found = run_jobs(task, items, manifest=tmp_path / "run.jsonl", tell=told.append)
    assert [outcome.error is None for outcome in found] == [True, False, False, False, True]
    assert found == told
    assert found[0].result == {"x": [1, 2]}
    assert found[1].error == "Frame 3 of 'a.mp4' must be whole, got half. Fetch it again."
    assert found[2].error is not None
    assert found[2].error.startswith("ZeroDivisionError: by zero (")
    assert "test_jobs.py:" in found[2].error
    assert "in task)" in found[2].error
    assert "must return plain JSON without NaN" in str(found[3].error)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line.get("status") for line in lines] == [None, "done", "failed", "failed", "failed", "done"]
    is_mended = True
    told.clear()
    found = run_jobs(task, items, manifest=tmp_path / "run.jsonl", tell=told.append)
    assert [outcome.key for outcome in told] == ["e1", "e2", "e3"]
    assert [outcome.error is None for outcome in found] == [True, True, True, False, True]


def test_a_result_that_was_tampered_with_is_made_again(tmp_path: Path) -> None:
    manifest, asked = tmp_path / "run.jsonl", []

    def task(i: int) -> dict[str, Any]:
        asked.append(i)
        return {"value": i}

    run_jobs(task, {"a": 1, "b": 2}, manifest=manifest)
    manifest.write_text(manifest.read_text().replace('"value": 2', '"value": 3'))
    found = run_jobs(task, {"a": 1, "b": 2}, manifest=manifest)
    assert [outcome.result for outcome in found] == [{"value": 1}, {"value": 2}]
    assert asked == [1, 2, 2]


def test_other_settings_executors_and_tasks_are_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "run.jsonl"
    run_jobs(lambda i: {}, {"a": 1}, manifest=manifest, settings={"view": "cam0", "px": (3, 2)})
    with pytest.raises(
        DataError, match=r'of a run with other settings, \{"view": "cam0"\}, got \{"view": "cam1"\}\. Giv'
    ):
        run_jobs(lambda i: {}, {"a": 1}, manifest=manifest, settings={"view": "cam1", "px": (3, 2)})
    (tmp_path / "other").write_text("hello\n")
    with pytest.raises(DataError, match="must be the manifest of a run, got something else"):
        run_jobs(lambda i: {}, {"a": 1}, manifest=tmp_path / "other")
    with pytest.raises(UnknownNameError, match="No executor named 'proceses'. Did you mean 'processes'?"):
        run_jobs(lambda i: {}, {"a": 1}, manifest=tmp_path / "x.jsonl", executor="proceses")
    with pytest.raises(VapError, match=r"must be picklable, got function: .*Use a function of a module"):
        run_jobs(lambda i: {}, {"a": 1}, manifest=tmp_path / "y.jsonl", executor="processes")
    with pytest.raises(VapError, match="at least 1 worker, got 0"):
        run_jobs(lambda i: {}, {"a": 1}, manifest=tmp_path / "z.jsonl", workers=0)


def test_adopted_episodes_are_those_written_under_the_new_index(tmp_path: Path) -> None:
    staged, root, straight = tmp_path / "staged", tmp_path / "root", tmp_path / "straight"
    rng = np.random.default_rng(0)
    episodes = {
        i: Episode(
            frames={"v": rng.integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)},
            columns={"x": rng.random((4, 3))},
            labels={"v": rng.integers(0, 3, (4, 16, 16), dtype=np.uint8)},
            task=f"task {i}",
            info={"number": i},
        )
        for i in (7, 2, 9)
    }
    for i, episode in episodes.items():
        EpisodeWriter(staged).write(i, episode)
    for new, i in enumerate(sorted(episodes)):
        EpisodeWriter(straight).write(new, episodes[i])
        adopt(staged, i, root, new)
    assert len(EpisodeSet(staged)) == 0
    finalise(root)
    finalise(straight)
    assert hashes(root) == hashes(straight)
    with pytest.raises(DataError, match=r"needs a written episode and a free index, got no .*episode-000002"):
        adopt(staged, 2, root, 3)
    EpisodeWriter(staged).write(1, episodes[2])
    with pytest.raises(DataError, match=r"free index, got 0, which '.*' holds already"):
        adopt(staged, 1, root, 0)
    EpisodeWriter(tmp_path / "fast", fps=30).write(0, episodes[2])
    with pytest.raises(DataError, match=r"must be a set like .*, got another 'fps'"):
        adopt(tmp_path / "fast", 0, root, 3)
