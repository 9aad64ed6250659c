"""Faults that end a whole run or a policy's server: kills, a full disk, lost workers; the report comes out the same."""

import hashlib
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vap_gym
from vap_gym.cli import main
from vap_gym.evaluate.policies_claims import claim
from vap_gym.evaluate.policies_report import Report
from vap_gym.policies import Conventions, FunctionPolicy, HttpPolicy, ReplayPolicy

ORACLE = "VAP-DROID-Oracle-v0"
VELOCITY = Conventions(action_mode="cartesian_velocity")
WAITING = '''
"""A policy that waits for a file, but not in an episode from start 0, and after which the disk may be full."""
import os, resource, time
from pathlib import Path

import numpy as np

from vap_gym.policies import Conventions

HERE = Path(__file__).parent


class Waits:
    conventions = Conventions(action_mode="cartesian_velocity")

    def reset(self, episodes):
        self.is_first = episodes[0].number == 0

    def act(self, observations, instructions):
        if not self.is_first:
            (HERE / f"waits-{os.getpid()}").touch()
            while not (HERE / "go").exists():
                time.sleep(0.05)
        if (HERE / "full").exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        return np.full((len(instructions), 7), 0.1)
'''
DIES = '''
"""A policy's server that never answers its third question, and says so in a file."""
import json, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    asked = 0

    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/act":
            Handler.asked += 1
            if Handler.asked == 3:
                Path(sys.argv[1]).touch()
                time.sleep(600)
        body = json.dumps({"actions": [[0.1] * 7 for _ in told["slots"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *told):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
'''


def until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for something that must happen."""
    for _ in range(6000):
        if is_so():
            return
        time.sleep(0.05)
    pytest.fail(f"{what} did not happen in 300 s")


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.is_file() or stat.read_text().rsplit(")", 1)[1].split()[0] not in "ZX"


def hashes(root: Path) -> dict[str, str]:
    """What every file of a folder holds."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the policy that waits, which can be imported from there."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "vap_gym_waiting.py").write_text(WAITING)
    sys.path.insert(0, str(folder))
    return folder


def words(out: Path) -> list[str]:
    """An evaluation of two policies, in batches of one."""
    return [
        "evaluate", "waits=python:vap_gym_waiting:Waits", "dice=random", "--env", ORACLE, "--task", "reach",
        "--starts", "3", "--steps", "2", "--batch", "1", "--act-timeout-s", "0", "--out", str(out),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, str]:
    """What the files of an evaluation hold that nothing went wrong with."""
    (place / "go").touch()
    assert main(words(place / "whole")) == 0
    return hashes(place / "whole")


def environment(place: Path) -> dict[str, str]:
    """That of a process of its own."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(place)}


def test_a_killed_run_of_two_workers_leaves_none_behind_and_goes_on_to_the_same_bytes(
    place: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    for path in (place / "go", *place.glob("waits-*")):
        path.unlink()
    ours, theirs = pty.openpty()  # a terminal, so that there is a bar
    termios.tcsetwinsize(theirs, (24, 100))
    command = [sys.executable, "-B", "-m", "vap_gym", *words(tmp_path / "out"), "--workers", "2"]
    run = subprocess.Popen(command, env=environment(place), stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    until(lambda: len([*place.glob("waits-*")]) == 2, "that both workers wait")
    workers = [int(path.name.removeprefix("waits-")) for path in place.glob("waits-*")]
    assert run.pid not in workers
    manifest = tmp_path / "out" / "manifest.jsonl"
    until(lambda: len(manifest.read_text().splitlines()) == 2, "that one batch is done")
    run.send_signal(signal.SIGKILL)
    run.wait()
    shown = b""
    while select.select([ours], [], [], 1.0)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # nobody writes there any more
            break
    assert "1/6" in shown.decode()
    os.close(ours)
    until(lambda: not any(map(is_running, workers)), "that the workers end")
    assert not (tmp_path / "out" / "report.json").exists()
    (place / "go").touch()
    assert main(words(tmp_path / "out")) == 0  # here, and in one process
    assert hashes(tmp_path / "out") == whole


def test_a_full_disk_loses_what_did_not_fit_and_it_is_played_when_there_is_room(
    place: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    for name in ("go", "full"):
        (place / name).touch()
    command = [sys.executable, "-B", "-m", "vap_gym", *words(tmp_path / "out"), "--clips", "0"]
    found = subprocess.run(command, env=environment(place), capture_output=True, text=True, timeout=300, check=False)
    (place / "full").unlink()
    assert found.returncode == 2
    assert "Episodes of waits, dice were not played" in found.stderr
    assert "Make room on the disk" in found.stderr
    lost = Report.load(tmp_path / "out")
    assert lost.rows == {"waits": (None,) * 3, "dice": (None,) * 3}
    assert main(words(tmp_path / "out")) == 0
    assert hashes(tmp_path / "out") == whole


def test_a_server_that_is_killed_in_the_middle_of_a_step_fails_its_own_policy_only(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(DIES)
    flag = tmp_path / "asked"
    command = [sys.executable, str(tmp_path / "dies.py"), str(flag)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(server.stdout.readline())}"

    def kill() -> None:
        until(flag.exists, "the third question")
        server.kill()

    threading.Thread(target=kill, daemon=True).start()
    policies = {
        "remote": HttpPolicy(url, VELOCITY, tries=2, wait_s=0.01, timeout_s=300.0),
        "still": FunctionPolicy(lambda seen, told: np.zeros(7), VELOCITY),
    }
    report = vap_gym.evaluate(
        policies, ORACLE, 2, out=tmp_path / "out", task="reach", steps=4, act_timeout_s=None, clips=0
    )
    server.wait()
    server.stdout.close()
    assert [row.verdict for row in report.rows["remote"] if row] == ["failure", "failure"]
    assert all("could not be reached in 2 tries" in str(row.fault) for row in report.rows["remote"] if row)
    assert [(row.fault, row.steps) for row in report.rows["still"] if row] == [(None, 4), (None, 4)]


def test_what_a_policy_is_known_by_is_compared_but_not_what_older_notes_lack(tmp_path: Path) -> None:
    actions = np.zeros((2, 7), np.float32)
    claim(tmp_path, "p", ReplayPolicy({0: actions}, VELOCITY))
    claim(tmp_path, "p", ReplayPolicy({0: actions}, VELOCITY))
    with pytest.raises(vap_gym.VapError, match=r"another policy named 'p': it differs in recording\."):
        claim(tmp_path, "p", ReplayPolicy({0: actions + 1}, VELOCITY))
    with pytest.raises(vap_gym.VapError, match=r"it differs in conventions\.rate_hz"):
        claim(tmp_path, "p", ReplayPolicy({0: actions}, Conventions(action_mode="cartesian_velocity", rate_hz=15.0)))
    note = tmp_path / "policies" / "p.json"
    note.write_text(note.read_text().replace('"action_size": 7, ', "").replace('"recording"', '"kept"'))
    claim(tmp_path, "p", ReplayPolicy({0: actions + 1}, VELOCITY))
