"""What is sent to a server of envs: msgpack or JSON, by websocket or POST; what lies about its size is refused."""

import json
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from vap_gym.errors import ActionError, UnknownNameError, VapError
from vap_gym.serve import Connection, RemoteEnv
from vap_gym.serve.errors import MessageError, TooLargeError
from vap_gym.serve.messages import decoded, encoded, json_text, read_json, read_space, space_table
from vap_gym.serve.server import Server, serving
from vap_gym.serve.service import Limits, Service


class Grey:
    """An env whose frames are as grey as its seed, and whose reward is the sum of the action."""

    def about(self) -> dict[str, Any]:
        frame, action = spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Box(-1, 1, (2,), np.float32)
        about = {"observation_space": space_table(frame), "action_space": space_table(action)}
        return {**about, "fps": 15.0, "chunk": 1, "max_episode_steps": 100}

    def slot(self, most_steps: int | None) -> dict[str, Any]:
        return {}

    def reset(self, slot: dict, seed: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
        slot["frame"] = np.full((8, 8, 3), seed or 0, np.uint8)
        return {"observation": slot["frame"], "info": {}}

    def actions(self, slot: dict, given: object, *, chunk: bool) -> np.ndarray:
        rows = np.atleast_2d(np.asarray(given, np.float32))
        if rows.shape[1:] != (2,):
            raise ActionError(f"action must have shape (2,), got {rows.shape}.")
        return rows

    def steps(self, work: Sequence[tuple[dict, np.ndarray, bool]]) -> list[dict[str, Any]]:
        (slot, rows, chunk) = work[0]
        flags, info = np.zeros(len(rows), bool), {}
        if not chunk:
            told = {"reward": float(rows.sum()), "terminated": False, "truncated": False, "info": info}
            return [{"observation": slot["frame"], **told}]
        frames = np.repeat(slot["frame"][None], len(rows), 0)
        told = {"reward": rows.sum(1), "terminated": flags, "truncated": flags, "info": [info] * len(rows)}
        return [{"observation": frames, **told}]

    def copy(self, slot: dict, seed: int | None) -> dict:
        return dict(slot)


@contextmanager
def served(**limits: Any) -> Iterator[Server]:
    """A server of `Grey` in a thread, whose sessions step one by one."""
    service = Service(lambda env, given: Grey(), ("VAP-DROID-v0",), Limits(batch=1, **limits))
    with serving(service) as server:
        yield server


def told(connection: socket.socket, sent: bytes, wanted: bytes) -> bool:
    """Whether a server answers something with `wanted` in it to bytes, before it closes the connection."""
    with connection:
        connection.sendall(sent)
        found = b""
        while wanted not in found and (part := connection.recv(2**16)):
            found += part
        return wanted in found


LIES = {
    "an array that says it is larger": {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": (10**9,)},
    "an array of another shape": {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": (3,)},
    "an array of objects": {b"__ndarray__": True, b"data": bytes(8), b"dtype": "O", b"shape": (1,)},
}


@pytest.mark.parametrize("lie", LIES)
def test_arrays_that_lie_about_their_size_are_refused(lie: str, asking: Any) -> None:
    with served() as server, RemoteEnv(server.url) as env:
        env.reset(seed=0)
        sent = msgpack.packb(asking.question(env, "step", action=LIES[lie]))
        with pytest.raises(MessageError, match="as large as they say"):
            decoded(sent)
        assert told(asking.websocket(server.url), asking.message(sent), b"MessageError")
        assert env.step(np.ones(2))[1] == 2.0


def test_messages_that_lie_about_their_size_are_refused(asking: Any) -> None:
    with served(message_bytes=4096, slow_s=0.5) as server, RemoteEnv(server.url) as env:
        env.reset(seed=0)
        post = b"POST /step HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: "
        assert told(asking.connected(server.url), post + b"999999999999\r\n\r\n", b" 413 ")
        assert told(asking.connected(server.url), post + b"400\r\n\r\n{}", b"has 400 bytes, got 2 within")
        chunked = post.replace(b"Content-Length: ", b"Transfer-Encoding: chunked")
        assert told(asking.connected(server.url), chunked + b"\r\n\r\n2000\r\n" + bytes(8192), b" 413 ")
        assert told(asking.websocket(server.url), asking.message(b"", says=2**40), struct.pack("!H", 1009))
        assert told(asking.websocket(server.url), asking.message(b"\xdd\xff\xff\xff\xff"), b"MessageError")
        with pytest.raises(TooLargeError, match="takes no message of"):
            env.reset(options={"image": np.zeros((64, 64, 3), np.uint8)})
        with pytest.raises(TooLargeError, match=r"may have 32 steps, got 33; none was carried out"):
            env.step_chunk(np.ones((33, 2)))
        with pytest.raises(ActionError, match="shape"):
            env.step(np.ones(3))
        assert env.step(np.ones(2))[1] == 2.0


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_whatever_bytes_come_they_are_a_table_or_a_message_error(data: bytes) -> None:
    for read in (decoded, read_json):
        with suppress(MessageError):
            assert isinstance(read(data), dict)


def test_the_same_by_post_for_clients_without_websockets(asking: Any) -> None:
    with served() as server:
        _, opened = asking.http(f"{server.url}/open", {"env": "VAP-DROID-v0"})
        at = {"session": opened["session"]}
        status, begun = asking.http(f"{server.url}/reset", {**at, "count": 0, "seed": 3})
        assert status == 200
        assert read_json(json.dumps(begun).encode())["observation"].tolist() == np.full((8, 8, 3), 3).tolist()
        assert asking.http(f"{server.url}/step", {**at, "count": 1, "action": [1, 0.5]})[1]["reward"] == 1.5
        chunk = asking.http(f"{server.url}/step_chunk", {**at, "count": 2, "actions": [[1, 1]] * 3})[1]
        assert (chunk["reward"], len(chunk["observation"])) == ([2.0] * 3, 3)
        assert len(asking.http(f"{server.url}/branch", {**at, "count": 3, "n": 2, "seeds": [1, 2]})[1]["sessions"]) == 2
        assert asking.http(f"{server.url}/step", {**at, "count": 0, "action": [1, 1]})[0] == 409
        assert asking.http(f"{server.url}/close", at)[1]["closed"] is True
        assert asking.http(f"{server.url}/step", {**at, "count": 4, "action": [1, 1]})[0] == 404
        for wrong in ("", "x", "step/1"):
            status, answer = asking.http(f"{server.url}/{wrong}", {})
            assert status in (400, 404, 405)
            assert set(answer) >= {"error", "type", "hint"}
        figures = asking.http(f"{server.url}/sessions")[1]
        assert figures["sessions"]["open"] == 2
        assert figures["memory_mib"]["peak"] > 1


def test_what_cannot_be_opened_is_told() -> None:
    with served() as server:
        line = Connection(server.url)
        for wrong, why in (
            ({"op": "opne"}, r"Did you mean 'open'\?"),
            ({"op": "open"}, "needs an env's id"),
            ({"op": "open", "env": "VAP-DROID-v0", "protocol": 99}, "speaks protocol 1, got 99"),
            ({"op": "step", "session": "x", "count": 0}, "No session of that name"),
        ):
            with pytest.raises(VapError, match=why):
                line.ask(wrong)
        with pytest.raises(UnknownNameError):
            line.ask({"op": "opne"})
        line.close()


def test_spaces_and_values_come_back_as_they_were() -> None:
    space = spaces.Dict({
        "pixels": spaces.Dict({"front": spaces.Box(0, 255, (4, 6, 3), np.uint8)}),
        "agent_pos": spaces.Box(np.array([-1.5, 0], np.float32), np.array([2, 1], np.float32)),
    })  # fmt: skip
    assert read_space(decoded(encoded(space_table(space)))) == space
    value = {"a": np.float64(0.1), "b": [1, None, "x"], "c": np.arange(6, dtype=np.float32).reshape(2, 3)}
    back = decoded(encoded(value))
    assert back["a"] == value["a"]
    assert back["b"] == value["b"]
    assert (back["c"] == value["c"]).all()
    assert json.loads(json_text({"nan": float("nan"), "c": value["c"]})) == {"nan": None, "c": [[0, 1, 2], [3, 4, 5]]}
    with pytest.raises(MessageError, match="plain values"):
        encoded({"a": object()})
