"""Policies behind servers: real ones on this machine, that answer, fail, are late, close, and come back."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgpack
import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from vap_gym.policies import Conventions, EpisodeStart, HttpPolicy, Observations, OpenpiPolicy, PolicyError
from vap_gym.policies.wire import frame_of_text, packed, unpacked
from vap_gym.starts import StartSet, starts_path

SIMPLE = Conventions(action_mode="joint_velocity", gripper="closed", chunk=4)
NAMES = {"front": "picture", "joints": "joints", "gripper": "gripper", "instruction": "prompt"}


def shown(rows: int = 2) -> Observations:
    """Observations of so many episodes, each frame of a grey of its own."""
    frames = np.zeros((rows, 96, 144, 3), np.uint8) + np.arange(rows, dtype=np.uint8)[:, None, None, None]
    return Observations(
        slots=tuple(range(rows)), pixels={"front": frames}, joints_rad=np.full((rows, 7), 0.25, np.float32),
        closedness=np.full(rows, 0.5, np.float32), tip=np.zeros((rows, 6), np.float32),
        target_m=np.full((rows, 3), np.nan),
    )  # fmt: skip


@pytest.fixture(scope="module")
def episodes() -> list[EpisodeStart]:
    """Two episodes from shipped starts."""
    starts = StartSet(starts_path("VAP-DROID-v0"))
    return [EpisodeStart(slot=i, seed=7 + i, number=i, start=starts[i]) for i in range(2)]


# --- the format of openpi's messages ---


def test_arrays_are_packed_as_openpi_packs_them_and_come_back() -> None:
    sent = {
        "picture": np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
        "x": np.float32(0.5),
        "words": "go",
        "n": [1, None],
    }
    raw = msgpack.unpackb(packed(sent))
    assert raw["picture"] == {
        b"__ndarray__": True, b"data": bytes(range(6)), b"dtype": "|u1", b"shape": [1, 2, 3],
    }  # fmt: skip
    assert raw["x"] == {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}
    back = unpacked(packed(sent))
    assert np.array_equal(back["picture"], sent["picture"])
    assert (back["words"], back["n"], back["x"]) == ("go", [1, None], 0.5)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        packed({"a": 1})[:-1],
        msgpack.packb({b"__ndarray__": True, b"data": b"abc", b"dtype": "<f4", b"shape": [1]}),
        msgpack.packb({b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": [0]}),
        msgpack.packb({b"__ndarray__": True}),
        msgpack.packb({b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [2**63, 2**63]}),
        msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|i1"}),
        b"\xdd\xff\xff\xff\xff",  # a list of four thousand million things, of which none comes
        b"\xc6\xff\xff\xff\xffabc",  # likewise bytes
        b"\x91" * 2000,  # lists in lists
    ],
)
def test_damaged_messages_are_refused(data: bytes) -> None:
    with pytest.raises(PolicyError, match=r"must send msgpack, got \d+ bytes"):
        unpacked(data)


@pytest.mark.parametrize("value", [object(), np.array([object()]), np.array([1j])])
def test_what_cannot_be_sent_is_told(value: object) -> None:
    with pytest.raises(PolicyError, match=r"plain"):
        packed({"x": value})


# --- openpi's websocket ---

Answer = Callable[[dict, int], bytes | str | None]
"""From a question and the number of the connection to a reply; None: close without one."""


@contextmanager
def openpi_server(answer: Answer) -> Iterator[tuple[str, list[str | None]]]:
    """A server as openpi's: metadata first, then a reply to each message. Yields its address and who has connected."""
    connected: list[str | None] = []

    def handle(connection: ServerConnection) -> None:
        connected.append(connection.request.headers.get("Authorization"))
        number = len(connected)
        connection.send(packed({"name": "test"}))
        for message in connection:
            reply = answer(unpacked(message), number)
            if reply is None:
                return
            connection.send(reply)

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.socket.getsockname()[1]}", connected
        server.shutdown()


def chunk(question: dict, number: int) -> bytes:
    """Four actions that tell the picture's grey and the step."""
    level = float(question["picture"].max())
    return packed({"actions": level + 10 * np.arange(4)[:, None] * np.ones(8), "policy_timing": {"infer_ms": 1.0}})


def test_an_openpi_server_is_asked_for_chunks_of_every_episode(episodes: list[EpisodeStart]) -> None:
    asked = []

    def answer(question: dict, number: int) -> bytes:
        asked.append(question)
        return chunk(question, number)

    with openpi_server(answer) as (address, connected):
        policy = OpenpiPolicy(address, SIMPLE, names=NAMES, execute=2, api_key="secret")
        policy.reset(episodes)
        assert policy.metadata == {"name": "test"}
        played = [policy.act(shown(), ["push", "lift"])[:, 0].tolist() for _ in range(3)]
        policy.close()
    assert played == [[0, 1], [10, 11], [0, 1]]
    assert len(asked) == 4
    assert connected == ["Api-Key secret"]
    assert sorted(asked[0]) == ["gripper", "joints", "picture", "prompt"]
    assert (asked[0]["prompt"], asked[1]["prompt"]) == ("push", "lift")
    assert asked[0]["picture"].shape == (96, 144, 3)
    assert asked[0]["joints"].dtype == np.float32
    assert asked[0]["gripper"].tolist() == [0.5]


def test_a_lost_connection_is_made_again_and_the_question_asked_again(episodes: list[EpisodeStart]) -> None:
    with openpi_server(lambda question, number: None if number == 1 else chunk(question, number)) as (
        address,
        connected,
    ):
        policy = OpenpiPolicy(address, SIMPLE, names=NAMES, execute=1, wait_s=0.01)
        policy.reset(episodes)
        assert policy.act(shown(1), ["push"])[0, 0] == 0
        policy.close()
    assert len(connected) == 2


def test_a_late_reply_is_not_taken_for_the_next_one(episodes: list[EpisodeStart]) -> None:
    free = threading.Event()

    def answer(question: dict, number: int) -> bytes:
        if number == 1:
            free.wait(20)
            return packed({"actions": np.full((4, 8), 99.0)})
        return chunk(question, number)

    with openpi_server(answer) as (address, connected):
        policy = OpenpiPolicy(address, SIMPLE, names=NAMES, execute=1, timeout_s=1.0, tries=5, wait_s=0.01)
        policy.reset(episodes)
        found = policy.act(shown(1), ["push"])[0, 0]
        free.set()
        again = policy.act(shown(1), ["push"])[0, 0]
        policy.close()
    assert (found, again) == (0, 0)
    assert len(connected) >= 2


def test_what_a_server_does_wrong_is_told(episodes: list[EpisodeStart]) -> None:
    replies = ["Traceback (most recent call last):\nKeyError: 'observation/state'", packed({"action": 1}), packed([1])]
    replies += [packed({"actions": np.zeros(8)}), packed({"actions": [[1.0, 2.0], [3.0]]}), b"\xc1"]
    told = [r"failed: KeyError: 'observation/state'", r"'actions', got \['action'\]", r"got list", r"got shape \(8,\)"]
    told += [r"must answer numbers, got"]
    told += [r"must send msgpack"]
    left = iter(replies)
    with openpi_server(lambda question, number: next(left)) as (address, _):
        policy = OpenpiPolicy(address, SIMPLE, names=NAMES, execute=1)
        policy.reset(episodes)
        for reason in told:
            with pytest.raises(PolicyError, match=reason):
                policy.act(shown(1), ["push"])
        policy.close()


def test_a_server_that_is_not_there_is_told_before_the_first_step(episodes: list[EpisodeStart]) -> None:
    policy = OpenpiPolicy("127.0.0.1:1", SIMPLE, names=NAMES, tries=2, wait_s=0.01, timeout_s=1.0)
    with pytest.raises(PolicyError, match=r"The server ws://127\.0\.0\.1:1 could not be reached in 2 tries"):
        policy.reset(episodes)
    with pytest.raises(PolicyError, match=r"got none for wrist"):
        OpenpiPolicy("x:1", Conventions(action_mode="joint_velocity", views=("front", "wrist")), names=NAMES)


# --- HTTP and JSON ---


@contextmanager
def http_server(answer: Callable[[str, dict], tuple[int, object]]) -> Iterator[str]:
    """A server that answers (status, JSON) to a path and its content. Yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, content: dict) -> None:
            content["token"] = self.headers.get("Authorization")
            status, value = answer(self.path, content)
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *told: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *told: object) -> None:
            """Clients that have left are no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def served(path: str, content: dict) -> tuple[int, object]:
    """A policy of chunks of two, that tells each picture's grey."""
    if path == "/conventions":
        return 200, {"action_mode": "cartesian_velocity", "views": ["front"], "rate_hz": 15.0, "chunk": 2}
    if path == "/reset":
        return 200, {}
    levels = [float(frame_of_text(text).max()) for text in content["pixels"]["front"]]
    return 200, {"actions": [[[level + 10 * k] * 7 for k in range(2)] for level in levels]}


def test_an_http_server_tells_its_conventions_and_is_asked_for_all_episodes_at_once(
    episodes: list[EpisodeStart],
) -> None:
    asked = []

    def answer(path: str, content: dict) -> tuple[int, object]:
        asked.append((path, content))
        return served(path, content)

    with http_server(answer) as url:
        policy = HttpPolicy(url, token="secret")
        assert policy.conventions == Conventions(action_mode="cartesian_velocity", rate_hz=15.0, chunk=2)
        policy.reset(episodes)
        played = [policy.act(shown(), ["push", "lift"])[:, 0].tolist() for _ in range(3)]
    assert played == [[0, 1], [10, 11], [0, 1]]
    assert [path for path, _ in asked] == ["/conventions", "/reset", "/act", "/act"]
    assert {content["token"] for _, content in asked} == {"Bearer secret"}
    assert asked[1][1]["seeds"] == [7, 8]
    assert asked[2][1]["instructions"] == ["push", "lift"]
    assert np.shape(asked[2][1]["agent_pos"]) == (2, 8)
    assert [content["request"] for path, content in asked if path == "/act"] == [1, 2]


def test_a_busy_server_is_asked_again_with_the_same_request(episodes: list[EpisodeStart]) -> None:
    seen = []

    def answer(path: str, content: dict) -> tuple[int, object]:
        seen.append(content.get("request"))
        return (503, {"error": "loading"}) if len(seen) == 2 else served(path, content)

    with http_server(answer) as url:
        policy = HttpPolicy(url, Conventions(action_mode="cartesian_velocity"), wait_s=0.01)
        policy.reset(episodes)
        policy.act(shown(), ["push", "lift"])
    assert seen == [None, 1, 1]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ((500, {"error": "out of memory"}), r"status 500: out of memory"),
        ((400, b"<html>"), r"status 400: <html>"),
        ((503, {}), r"could not be reached in 2 tries: status 503"),
        ((200, b"not json"), r"must answer JSON, got b'not json'"),
        ((200, [1]), r"JSON object, got list"),
        ((200, {"action": []}), r"must answer 'actions', got action"),
        ((200, {"actions": [[0.0] * 7]}), r"shape \(2, A\)"),
    ],
)
def test_what_an_http_server_does_wrong_is_told(
    reply: tuple[int, object], told: str, episodes: list[EpisodeStart]
) -> None:
    with http_server(lambda path, content: reply if path == "/act" else served(path, content)) as url:
        policy = HttpPolicy(url, Conventions(action_mode="cartesian_velocity"), tries=2, wait_s=0.01)
        policy.reset(episodes)
        with pytest.raises(PolicyError, match=told):
            policy.act(shown(), ["push", "lift"])


def test_an_http_server_that_is_late_or_gone_is_given_up(episodes: list[EpisodeStart]) -> None:
    free = threading.Event()

    def answer(path: str, content: dict) -> tuple[int, object]:
        free.wait(20)
        return served(path, content)

    with http_server(answer) as url:
        policy = HttpPolicy(url, tries=2, wait_s=0.01, timeout_s=0.3)
        with pytest.raises(PolicyError, match=r"could not be reached in 2 tries: .*timed out"):
            policy.reset(episodes)
        free.set()
    with pytest.raises(PolicyError, match=r"could not be reached"):
        HttpPolicy(url, tries=1, timeout_s=1.0).reset(episodes)
    with pytest.raises(PolicyError, match=r"must begin with http"):
        HttpPolicy("localhost:80")


def test_conventions_that_a_server_cannot_have_are_refused() -> None:
    with (
        http_server(lambda path, content: (200, {"action_mode": "cartesian_velocity", "speed": 1})) as url,
        pytest.raises(PolicyError, match=r"must tell 'action_mode' and nothing but .*got action_mode, speed"),
    ):
        HttpPolicy(url).conventions  # noqa: B018 (asks the server)
