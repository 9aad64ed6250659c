"""Policies' servers in processes of their own: killed in the middle of a step and back; and such as lie about sizes."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vap_gym.policies import Conventions, EpisodeStart, HttpPolicy, Observations, OpenpiPolicy, PolicyError, openpi
from vap_gym.policies.wire import MOST_BYTES, packed
from vap_gym.starts import StartSet, starts_path

VELOCITY = Conventions(action_mode="cartesian_velocity")
NAMES = {"front": "picture", "instruction": "prompt"}
REPO = Path(__file__).resolve().parent.parent
SERVER = '''
"""A server that never answers its first question for actions, and says so in a file: then it answers."""
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

kind, port, flag = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])


def actions(rows):
    if not flag.exists():
        flag.touch()
        time.sleep(600)
    return [[0.5] * 7 for _ in range(rows)]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"actions": actions(len(told["slots"]))} if self.path == "/act" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *told):
        pass


if kind == "http":
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    told = server.server_address[1]
else:
    import msgpack
    from websockets.sync.server import serve

    def handle(connection):
        connection.send(msgpack.packb({}))
        for message in connection:
            connection.send(msgpack.packb({"actions": actions(1)}))

    server = serve(handle, "127.0.0.1", port, max_size=None)
    told = server.socket.getsockname()[1]
print(told, flush=True)
server.serve_forever()
'''


def shown(rows: int = 1) -> Observations:
    """Observations of so many episodes."""
    return Observations(
        slots=tuple(range(rows)), pixels={"front": np.zeros((rows, 96, 144, 3), np.uint8)},
        joints_rad=np.zeros((rows, 7), np.float32), closedness=np.zeros(rows, np.float32),
        tip=np.zeros((rows, 6), np.float32), target_m=np.full((rows, 3), np.nan),
    )  # fmt: skip


@pytest.fixture(scope="module")
def episodes() -> list[EpisodeStart]:
    """An episode from a shipped start."""
    return [EpisodeStart(slot=0, seed=7, number=0, start=StartSet(starts_path("VAP-DROID-v0"))[0])]


def started(script: Path, kind: str, port: int, flag: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a server; return it and its port."""
    command = [sys.executable, str(script), kind, str(port), str(flag)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPO)})
    assert server.stdout is not None
    return server, int(server.stdout.readline())


@pytest.mark.parametrize("kind", ["http", "openpi"])
def test_a_server_that_is_killed_in_a_step_and_comes_back_is_asked_again(
    kind: str, episodes: list[EpisodeStart], tmp_path: Path
) -> None:
    script, flag = tmp_path / "server.py", tmp_path / "asked"
    script.write_text(SERVER)
    first, port = started(script, kind, 0, flag)
    running = [first]

    def kill_and_start_again() -> None:
        while not flag.exists():
            time.sleep(0.02)
        first.kill()
        first.wait()
        running.append(started(script, kind, port, flag)[0])

    settings = {"tries": 9, "wait_s": 0.2, "timeout_s": 120.0}
    policy = (
        HttpPolicy(f"http://127.0.0.1:{port}", VELOCITY, **settings)
        if kind == "http"
        else OpenpiPolicy(f"127.0.0.1:{port}", VELOCITY, names=NAMES, execute=1, **settings)
    )
    policy.reset(episodes)
    thread = threading.Thread(target=kill_and_start_again)
    thread.start()
    assert policy.act(shown(), ["go"]).tolist() == [[0.5] * 7]
    thread.join()
    assert len(running) == 2
    for server in running:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


@contextmanager
def raw_server(reply: bytes) -> Iterator[str]:
    """A server that reads a little and sends these bytes, whatever was asked, and closes. Yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(reply)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000000\r\n\r\n{}", r"at most 67,108,864 bytes, got 1000"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}", r"could not be reached in 2 tries: IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{\"action_mode\": 1}", r"must answer JSON, got b'{\"a'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", r"must tell 'action_mode'.*got nothing"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n{}", r"could not be reached in 2 tries"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 9999999\r\n\r\nno", r"refused with status 500: no"),
        (b"what?\r\n\r\n", r"could not be reached in 2 tries"),
        (b"", r"could not be reached in 2 tries"),
    ],
)  # fmt: skip
def test_http_servers_that_lie_about_sizes_are_refused(reply: bytes, told: str) -> None:
    with raw_server(reply) as url, pytest.raises(PolicyError, match=told):
        HttpPolicy(url, tries=2, wait_s=0.01, timeout_s=5.0).conventions  # noqa: B018 (asks the server)


def test_answers_without_a_length_are_read_no_further_than_is_sensible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vap_gym.policies.http.MOST_BYTES", 1000)
    body = json.dumps({"action_mode": "cartesian_velocity"}).encode()
    with raw_server(b"HTTP/1.0 200 OK\r\n\r\n" + body) as url:
        assert HttpPolicy(url).conventions == VELOCITY
    with (
        raw_server(b"HTTP/1.0 200 OK\r\n\r\n" + body + b" " * 2000) as url,
        pytest.raises(PolicyError, match=r"at most 1,000 bytes, got more"),
    ):
        HttpPolicy(url).conventions  # noqa: B018


@pytest.mark.parametrize(
    ("conventions", "told"),
    [
        ({"action_mode": 3}, r"'action_mode' as a string, got 3"),
        ({"action_mode": "cartesian_velocity", "views": "front"}, r"'views' as a list of strings, got \"front\""),
        ({"action_mode": "cartesian_velocity", "frame_size_px": [1, 2, 3]}, r"'frame_size_px' as \[width, height\]"),
        ({"action_mode": "cartesian_velocity", "chunk": True}, r"'chunk' as a whole number, got true"),
        ({"action_mode": "cartesian_velocity", "action_size": 0}, r"action_size must be at least 1"),
        ({"action_mode": "cartesian_velocity", "rate_hz": "fast"}, r"'rate_hz' as a number, got \"fast\""),
    ],
)
def test_conventions_of_the_wrong_kind_are_refused(conventions: dict, told: str) -> None:
    body = json.dumps(conventions).encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with raw_server(reply) as url, pytest.raises(PolicyError, match=told):
        HttpPolicy(url).conventions  # noqa: B018


def test_websocket_messages_are_read_no_further_than_is_sensible(
    episodes: list[EpisodeStart], monkeypatch: pytest.MonkeyPatch
) -> None:
    from websockets.sync.server import ServerConnection, serve

    monkeypatch.setattr(openpi, "MOST_BYTES", 2000)
    assert MOST_BYTES > 10**7

    def handle(connection: ServerConnection) -> None:
        connection.send(packed({}))
        for _ in connection:
            connection.send(packed({"actions": np.zeros((1000, 7), np.float32)}))

    with serve(handle, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.socket.getsockname()[1]}"
        policy = OpenpiPolicy(address, VELOCITY, names=NAMES, execute=1, tries=2, wait_s=0.01, timeout_s=10.0)
        policy.reset(episodes)
        with pytest.raises(PolicyError, match=r"could not be reached in 2 tries: .*(too big|1009|exceeds)"):
            policy.act(shown(), ["go"])
        policy.close()
        server.shutdown()
