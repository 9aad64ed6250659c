"""A server of sessions: none lost or mixed up, nothing done twice; who is slow, greedy or lies is told or dropped."""

import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from vap_gym.errors import ActionError, VapError
from vap_gym.serve import Connection, RemoteEnv
from vap_gym.serve.errors import (
    BusyError,
    ConnectionLostError,
    FullError,
    OrderError,
    ServerFaultError,
    StoppingError,
    TokenError,
    UnknownSessionError,
)
from vap_gym.serve.messages import encoded, space_table
from vap_gym.serve.server import Server, serving
from vap_gym.serve.service import Limits, Service

ACTIONS = spaces.Box(-1, 1, (2,), np.float32)


class Adder:
    """An env whose frames tell its seed and the sum of its actions; `gate` holds steps up until it is set.

    An action of −1 makes the step that it is part of fail.
    """

    def __init__(self, size: int = 8) -> None:
        self.gate, self.reached, self.size = threading.Event(), threading.Semaphore(0), size
        self.gate.set()
        self.calls: list[int] = []  # slots of each

    def about(self) -> dict[str, Any]:
        box = spaces.Box(0, 255, (self.size, self.size, 3), np.uint8)
        return {
            "observation_space": space_table(box), "action_space": space_table(ACTIONS), "fps": 15.0, "chunk": 1,
            "max_episode_steps": 100,
        }  # fmt: skip

    def slot(self, most_steps: int | None) -> dict[str, float]:
        return {}

    def reset(self, slot: dict, seed: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
        slot |= {"seed": seed or 0, "sum": 0.0}
        return {"observation": self.frame(slot), "info": {}}

    def actions(self, slot: dict, given: object, *, chunk: bool) -> np.ndarray:
        rows = np.asarray(given, np.float32)
        if rows.shape != ((len(rows), 2) if chunk else (2,)):
            raise ActionError(f"action must have shape (2,), got {rows.shape}.")
        return rows if chunk else rows[None]

    def steps(self, work: Sequence[tuple[dict, np.ndarray, bool]]) -> list[dict[str, Any]]:
        self.reached.release()
        assert self.gate.wait(30)
        self.calls.append(len(work))
        if any((rows == -1).any() for _, rows, _ in work):
            raise RuntimeError("a fault")
        replies = []
        for slot, rows, chunk in work:
            slot["sum"] += float(rows.sum())
            frame = self.frame(slot)
            replies.append({
                "observation": np.repeat(frame[None], len(rows), 0) if chunk else frame,
                "reward": rows.sum(1) if chunk else slot["sum"],
                "terminated": np.zeros(len(rows), bool) if chunk else False,
                "truncated": np.zeros(len(rows), bool) if chunk else False,
                "info": [{"sum": slot["sum"]}] * len(rows) if chunk else {"sum": slot["sum"]},
            })  # fmt: skip
        return replies

    def copy(self, slot: dict, seed: int | None) -> dict:
        return {**slot, **({} if seed is None else {"seed": seed})}

    def frame(self, slot: dict) -> np.ndarray:
        return np.full((self.size, self.size, 3), (slot["seed"] * 16 + slot["sum"]) % 256, np.uint8)


@contextmanager
def served(token: str | None = None, size: int = 8, **limits: Any) -> Iterator[tuple[Server, Adder]]:
    """A server of `Adder` in a thread."""
    adder = Adder(size)
    with serving(Service(lambda env, given: adder, ("VAP-DROID-v0",), Limits(**limits)), token=token) as server:
        try:
            yield server, adder
        finally:
            adder.gate.set()


def until(true: Any, seconds: float = 20.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def test_sessions_at_once_are_not_mixed_up_and_step_together() -> None:
    with served() as (server, adder):
        adder.gate.clear()

        def played(seed: int) -> list[int]:
            with RemoteEnv(server.url) as env:
                frames = [env.reset(seed=seed)[0]]
                frames += [env.step(np.full(2, 0.5, np.float32))[0] for _ in range(5)]
                return [int(frame.max()) for frame in frames]

        with ThreadPoolExecutor(8) as pool:
            found = [pool.submit(played, seed) for seed in range(8)]
            until(lambda: server.service.figures()["queue"]["answering"] == 8)
            adder.gate.set()
        assert [one.result() for one in found] == [[16 * seed + k for k in range(6)] for seed in range(8)]
        assert sum(adder.calls) == 40
        assert max(adder.calls) > 1
        figures = server.service.figures()
        assert figures["sessions"] == {"open": 0, "most": 64, "opened": 8}
        assert figures["gone"] == {"closed": 8, "idle": 0, "slow": 0}


def test_an_exact_session_steps_alone() -> None:
    with served() as (server, adder):
        envs = [RemoteEnv(server.url, exact=exact) for exact in (False, True, False, True)]
        for env in envs:
            env.reset(seed=0)
        adder.gate.clear()
        with ThreadPoolExecutor(4) as pool:
            held = pool.submit(envs[0].step, np.ones(2))
            adder.reached.acquire()
            rest = [pool.submit(env.step, np.ones(2)) for env in envs[1:]]
            until(lambda: server.service.figures()["queue"]["waiting"] == 3)
            adder.gate.set()
        assert [one.result()[1] for one in (held, *rest)] == [2.0] * 4
        assert adder.calls == [1] * 4


def test_the_last_request_may_come_again_and_is_not_carried_out_again(asking: Any) -> None:
    with served() as (server, _), RemoteEnv(server.url) as env:
        env.reset(seed=1)
        asked, line = asking.question(env, "step", action=np.ones(2)), Connection(server.url)
        first, again = line.ask(asked), line.ask(asked)
        assert first["reward"] == again["reward"] == 2.0
        assert (first["count"], again["count"]) == (2, 2)
        for misplaced in (asked | {"action": np.zeros(2)}, asked | {"count": 0}, asked | {"count": 7}):
            with pytest.raises(OrderError, match=r"carried out 2 requests, got one that counts \d before it"):
                line.ask(misplaced)
        assert line.ask({**asked, "count": 2})["reward"] == 4.0
        line.close()


def test_a_late_answer_is_asked_for_again_and_the_step_is_done_once() -> None:
    with served() as (server, adder), RemoteEnv(server.url, timeout_s=0.3, tries=30, wait_s=0.0) as env:
        env.reset(seed=0)
        adder.gate.clear()
        threading.Timer(1.0, adder.gate.set).start()
        assert env.step(np.ones(2))[1] == 2.0
        assert adder.calls == [1]
        opened = {"op": "open", "env": "VAP-DROID-v0", "key": "k" * 20}
        line = Connection(server.url)
        assert line.ask(opened)["session"] == line.ask(opened)["session"]
        line.close()


def test_a_second_request_beside_a_running_one_is_refused(asking: Any) -> None:
    with served() as (server, adder), RemoteEnv(server.url) as env, ThreadPoolExecutor(1) as pool:
        env.reset(seed=0)
        adder.gate.clear()
        other = asking.question(env, "step", action=np.zeros(2))
        running = pool.submit(env.step, np.ones(2))
        adder.reached.acquire()
        line = Connection(server.url)
        with pytest.raises(OrderError, match="busy with another request"):
            line.ask(other)
        line.close()
        adder.gate.set()
        assert running.result()[1] == 2.0


def test_a_full_queue_refuses_and_loses_nothing() -> None:
    with served(queue=1) as (server, adder), ThreadPoolExecutor(2) as pool:
        envs = [RemoteEnv(server.url, tries=tries) for tries in (1, 1, 1)]
        for env in envs:
            env.reset(seed=0)
        adder.gate.clear()
        running = pool.submit(envs[0].step, np.ones(2))
        adder.reached.acquire()
        waiting = pool.submit(envs[1].step, np.ones(2))
        until(lambda: server.service.figures()["queue"]["waiting"] == 1)
        with pytest.raises(BusyError, match=r"The queue is full: 1 requests wait.*again later"):
            envs[2].step(np.ones(2))
        adder.gate.set()
        assert [running.result()[1], waiting.result()[1], envs[2].step(np.ones(2))[1]] == [2.0, 2.0, 2.0]
        assert server.service.refused == {"BusyError": 1}


def test_one_that_fails_in_a_batch_fails_alone() -> None:
    with served() as (server, adder), ThreadPoolExecutor(4) as pool:
        envs = [RemoteEnv(server.url) for _ in range(4)]
        for env in envs:
            env.reset(seed=0)
        adder.gate.clear()
        held = pool.submit(envs[0].step, np.ones(2))
        adder.reached.acquire()
        rest = [pool.submit(env.step, np.full(2, action)) for env, action in zip(envs[1:], (1, -1, 1))]
        until(lambda: server.service.figures()["queue"]["waiting"] == 3)
        adder.gate.set()
        assert [one.result()[1] for one in (held, rest[0], rest[2])] == [2.0] * 3
        with pytest.raises(ServerFaultError, match="not carried out"):
            rest[1].result()
        assert envs[2].step(np.ones(2))[1] == 2.0


def test_only_the_token_opens_the_door(asking: Any) -> None:
    with served(token="open sesame") as (server, _):
        for wrong in ("", "open", "ö"):
            with pytest.raises(TokenError, match="needs its token"):
                RemoteEnv(server.url, token=wrong)
        assert asking.http(f"{server.url}/health")[0] == 200
        assert asking.http(f"{server.url}/sessions")[0] == 401
        assert asking.http(f"{server.url}/open", {"env": "VAP-DROID-v0"})[1]["type"] == "TokenError"
        assert asking.http(f"{server.url}/sessions", Authorization="Bearer open sesame")[0] == 200
        with RemoteEnv(server.url, token="open sesame") as env:
            env.reset(seed=0)
    with served() as (server, _):  # without one no web page may ask
        assert asking.http(f"{server.url}/sessions", Origin="http://evil.example")[0] == 401
    with pytest.raises(VapError, match=r"needs a token, got host '0\.0\.0\.0' without one"):
        Server(server.service, token=None, host="0.0.0.0", port=0)
    with pytest.raises(VapError, match="token must be printable ASCII"):
        Server(server.service, token="ö", port=0)


def test_there_are_only_so_many_sessions() -> None:
    with served(sessions=3) as (server, _):
        first, second = RemoteEnv(server.url), RemoteEnv(server.url)
        first.reset(seed=1)
        with pytest.raises(FullError, match="may have 3 sessions and has 1 free, got a wish for 2"):
            first.branch(2)
        (third,) = first.branch(1)
        with pytest.raises(FullError, match="0 free"):
            RemoteEnv(server.url)
        second.close()
        with RemoteEnv(server.url) as fourth:
            fourth.reset()
        assert third.step(np.ones(2))[0].max() == 18
        assert first.step(np.zeros(2))[0].max() == 16
        with pytest.raises(VapError, match="was closed"):
            second.step(np.ones(2))


def test_an_idle_session_is_evicted_and_reset_opens_another() -> None:
    with served(idle_s=1.0) as (server, _), RemoteEnv(server.url) as env:
        env.reset(seed=1)
        until(lambda: len(server.service.sessions) == 0)
        with pytest.raises(UnknownSessionError, match=r"evicted after 1 s without a request\. Open a new one"):
            env.step(np.ones(2))
        assert env.reset(seed=2)[0].max() == 32


def test_a_client_that_takes_no_answers_is_dropped_and_others_go_on(asking: Any) -> None:
    with served(slow_s=0.5, size=128) as (server, _), RemoteEnv(server.url) as other:
        other.reset(seed=1)
        slow = RemoteEnv(server.url)
        slow.reset(seed=0)
        raw = asking.websocket(server.url)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for k in range(40):  # of 1.5 MB each, of which none is read
            asked = asking.question(slow, "step_chunk", actions=np.zeros((32, 2))) | {"count": 1 + k}
            raw.sendall(asking.message(encoded(asked)))
        until(lambda: server.service.sessions.gone["slow"] == 1)
        assert other.step(np.ones(2))[1] == 2.0
        with pytest.raises(UnknownSessionError, match=r"answer was not taken within 0\.5 s"):
            slow.step(np.ones(2))
        raw.close()


def test_a_server_that_stops_answers_what_it_took_on_and_nothing_new() -> None:
    with served() as (server, adder), ThreadPoolExecutor(1) as pool:
        env, other = RemoteEnv(server.url, tries=1), RemoteEnv(server.url, tries=1)
        for one in (env, other):
            one.reset(seed=0)
        adder.gate.clear()
        running = pool.submit(env.step, np.ones(2))
        adder.reached.acquire()
        server.stop()
        until(lambda: server.service.draining)
        with pytest.raises(StoppingError, match=r"shutting down and takes on nothing new\. Connect again"):
            other.step(np.ones(2))
        with pytest.raises(StoppingError):
            RemoteEnv(server.url, tries=1)
        adder.gate.set()
        assert running.result()[1] == 2.0
        until(lambda: server.should_exit)
    with pytest.raises(ConnectionLostError, match="could not be reached in 1 tries"):
        env.step(np.ones(2))


def test_the_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAP_GYM_TOKEN", "from there")
    with served(token="from there") as (server, _), RemoteEnv(server.url) as env:
        env.reset(seed=0)
