"""Evaluation on a Ray cluster that runs already: the same bytes as here; and clusters that are not there."""

import hashlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from vap_gym.cli import main
from vap_gym.errors import VapError
from vap_gym.evaluate.policies import chosen_executor

CLUSTER = """
import sys
import ray

ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def hashes(root: Path) -> dict[str, str]:
    """What every file of a folder holds."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def words(out: Path) -> list[str]:
    """An evaluation of two policies in two batches each."""
    return [
        "evaluate", "noop", "dice=random", "--env", "VAP-DROID-Oracle-v0", "--task", "reach", "--starts", "2",
        "--steps", "2", "--batch", "1", "--clips", "1", "--out", str(out),
    ]  # fmt: skip


def test_where_batches_run_follows_from_what_is_asked_for() -> None:
    found = [chosen_executor("auto", workers, address) for workers, address in ((1, None), (4, None), (4, "head:6379"))]
    assert found == ["serial", "processes", "ray"]
    assert chosen_executor("processes", 1, None) == "processes"
    assert chosen_executor("ray", 2, "head:6379") == "ray"
    with pytest.raises(VapError, match=r"of a Ray cluster, got executor='processes' beside it"):
        chosen_executor("processes", 2, "head:6379")
    with pytest.raises(VapError, match=r"executor='serial' has one worker, got workers=2"):
        chosen_executor("serial", 2, None)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_a_cluster_that_runs_already_gives_the_bytes_of_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {**os.environ, "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 32}
    command = [sys.executable, "-c", CLUSTER]
    cluster = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    try:
        address = cluster.stdout.readline().strip()
        command = [sys.executable, "-m", "vap_gym", *words(tmp_path / "ray"), "--address", address, "--workers", "2"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    finally:
        cluster.stdin.close()
        cluster.wait()
        cluster.stdout.close()
    assert run.returncode == 0, run.stderr
    assert main(words(tmp_path / "here")) == 0
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "here")
    assert run.stdout.splitlines()[:-1] == capsys.readouterr().out.splitlines()[:-1]  # the last one names the folder


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words(tmp_path), "--address", "127.0.0.1:1"]) == 2
    assert "No Ray cluster at '127.0.0.1:1'" in capsys.readouterr().err
    assert os.environ.get("RAY_ADDRESS") is None
