"""Load test of the server: many clients at once, some of them dead or slow; is anything lost, mixed up, or left behind?

The server is a process of its own (`vap-gym serve`). Clients are threads of this one; each plays one session of its own
seed. Then every session is played again by a local env and compared frame by frame. Dead clients leave in a step, slow
ones take no answers; both must be gone at the end, and the memory with them. The same server is loaded several times,
one load after the other: what its memory grows by from one to the next would grow for ever. Writes a table into
docs/serving.md.

    python benchmarks/serving.py --clients 64 --steps 20
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

import vap_gym  # noqa: F401 (registers the ids)
from vap_gym.errors import VapError
from vap_gym.evaluate import report
from vap_gym.serve import Connection, RemoteEnv
from vap_gym.serve.messages import encoded

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
HEAD = (
    "sessions", "steps each", "loads", "lost", "mixed up", "steps/s", "p50 [ms]", "p99 [ms]", "steps a call",
    "farthest from local", "MiB before / peak", "MiB after each load", "dead, slow evicted",
)  # fmt: skip


ROUNDING = 2  # grey levels at p99 by which batches of other sizes may be off


@dataclass(frozen=True, kw_only=True, eq=False)
class Played:
    """What one client saw."""

    frames: np.ndarray  # uint8 (K + 1, H, W, 3), fewer where it broke off
    took_s: tuple[float, ...]
    error: str | None


@contextmanager
def server(*arguments: str) -> Any:
    """A server of the command line; yields its address."""
    command = [sys.executable, "-m", "vap_gym", "serve", "--json", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait()


def figures(url: str) -> dict[str, Any]:
    """What the server tells of itself."""
    with urllib.request.urlopen(f"{url}/sessions", timeout=600) as response:
        told: dict[str, Any] = json.load(response)
    return told


def play(url: str, env_id: str, seed: int, steps: int, exact: bool, together: threading.Barrier) -> Played:
    """Play one session; all clients begin to step at the same moment."""
    frames, took, error = [], [], None
    try:
        with RemoteEnv(url, env_id, exact=exact, timeout_s=600.0) as env:
            env.action_space.seed(seed)
            frames.append(env.reset(seed=seed)[0])
            together.wait()
            for _ in range(steps):
                began = time.perf_counter()
                frames.append(env.step(env.action_space.sample())[0])
                took.append(time.perf_counter() - began)
    except VapError as lost:
        together.abort()
        error = str(lost)
    except threading.BrokenBarrierError:
        error = "another client was lost before the first step"
    return Played(frames=np.stack(frames) if frames else np.zeros((0, 1, 1, 3)), took_s=tuple(took), error=error)


@cache
def locally(env_id: str, seed: int, steps: int) -> np.ndarray:
    """The frames of a local env, uint8 (K + 1, H, W, 3)."""
    env = gym.make(env_id, disable_env_checker=True)
    env.action_space.seed(seed)
    frames = [env.reset(seed=seed)[0], *[env.step(env.action_space.sample())[0] for _ in range(steps)]]
    env.close()
    return np.stack(frames)


def leave_in_a_step(url: str, env_id: str) -> None:
    """A client that dies: it sends a step, and is gone."""
    raw = _asked(url, env_id, "step", np.zeros(7, np.float32), times=1)
    raw.close()


def take_nothing(url: str, env_id: str) -> socket.socket:
    """A client that asks for much and takes none of it."""
    return _asked(url, env_id, "step_chunk", np.zeros((16, 7), np.float32), times=12)


def _asked(url: str, env_id: str, op: str, actions: np.ndarray, *, times: int) -> socket.socket:
    line = Connection(url, timeout_s=600.0)
    session = line.ask({"op": "open", "env": env_id})["session"]
    line.ask({"op": "reset", "session": session, "count": 0, "seed": 0})
    line.close()
    host, port = url.removeprefix("http://").split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    raw.sendall(HANDSHAKE)
    raw.recv(2**12)
    name = "action" if op == "step" else "actions"
    for count in range(1, 1 + times):
        data = encoded({"op": op, "session": session, "count": count, name: actions})
        raw.sendall(bytes((0x82, 0x80 | 126)) + len(data).to_bytes(2, "big") + bytes(4) + data)
    return raw


def loaded(env_id: str, clients: int, steps: int, *, exact: bool, rounds: int, dead: int, slow: int) -> list[str]:
    """Load one server several times; return a row of the table."""
    idle_s, slow_s = 20.0, 2.0
    limits = ("--max-sessions", str(clients + dead + slow), "--idle-s", str(idle_s), "--slow-s", str(slow_s))
    took_s, jobs, calls, after_mib = 0.0, 0, 0, []
    lost: list[str] = []
    times: list[float] = []
    mixed, farthest = 0, 0.0
    with server("--envs", env_id, *limits) as url:
        before = figures(url)["memory_mib"]["now"]
        for _ in range(rounds):
            played, seconds, did = load(url, env_id, clients, steps, exact=exact, dead=dead, slow=slow)
            now = figures(url)
            took_s, jobs, calls = took_s + seconds, jobs + did["jobs"], calls + did["calls"]
            after_mib.append(now["memory_mib"]["now"])
            lost += [one.error or "steps are missing" for one in played if one.error or len(one.frames) != steps + 1]
            times += [1e3 * s for one in played for s in one.took_s]
            astray, off = compared(env_id, played, steps)
            mixed, farthest = mixed + astray, max(farthest, off)
            print(f"load {len(after_mib)}: {after_mib[-1]:.0f} MiB", flush=True)
        peak, gone = now["memory_mib"]["peak"], now["gone"]
    for why in sorted(set(lost)):
        print(f"lost: {why}")
    return [
        str(clients), str(steps), str(rounds), str(len(lost)), f"{mixed} of {rounds * clients}",
        f"{len(times) / took_s:.1f}", f"{np.percentile(times, 50):.0f}", f"{np.percentile(times, 99):.0f}",
        f"{jobs / calls:.1f}", "0, to the bit" if farthest == 0 else f"{farthest:.0f} grey levels at p99",
        f"{before:.0f} / {peak:.0f}", ", ".join(f"{mib:.0f}" for mib in after_mib),
        f"{gone['idle']} of {rounds * dead}, {gone['slow']} of {rounds * slow}",
    ]  # fmt: skip


def load(
    url: str, env_id: str, clients: int, steps: int, *, exact: bool, dead: int, slow: int
) -> tuple[list[Played], float, dict[str, int]]:
    """Run one load, until no session is left; return what clients saw, how long they stepped, s, and how many jobs and
    calls of the model that took."""
    for _ in range(dead):
        leave_in_a_step(url, env_id)
    deaf = [take_nothing(url, env_id) for _ in range(slow)]
    together = threading.Barrier(clients + 1)
    with ThreadPoolExecutor(clients) as pool:
        playing = [pool.submit(play, url, env_id, seed, steps, exact, together) for seed in range(clients)]
        together.wait()
        began, model = time.perf_counter(), figures(url)["model"]
        played = [one.result() for one in playing]
        took_s = time.perf_counter() - began
    did = {key: figures(url)["model"][key] - model[key] for key in ("jobs", "calls")}
    while figures(url)["sessions"]["open"]:
        time.sleep(1.0)
    for one in deaf:
        one.close()
    return played, took_s, did


def compared(env_id: str, played: list[Played], steps: int) -> tuple[int, float]:
    """Return how many sessions are not those of their seed (their place in the list), as far as they went, and how far
    the others are off at most, grey levels at p99."""
    mixed, farthest = 0, 0.0
    for seed, one in enumerate(played):
        if not len(one.frames):
            continue
        expected = locally(env_id, seed, steps)[: len(one.frames)]
        off = float(np.percentile(np.abs(one.frames.astype(int) - expected.astype(int)), 99))
        if off > ROUNDING:
            mixed += 1
        else:
            farthest = max(farthest, off)
    return mixed, farthest


def main(
    out: Path = Path("docs/serving.md"),
    *,
    env: str = "VAP-DROID-v0",
    clients: int = 64,
    steps: int = 20,
    rounds: int = 3,
    dead: int = 4,
    slow: int = 2,
    exact: bool = True,
    write: bool = True,
) -> None:
    """Run the loads with sessions that step together, then with sessions that step alone; write the table.

    Args:
        out: the page, between whose marks the table goes.
        env: what is served.
        clients: sessions that play at once.
        steps: of each.
        rounds: so many loads of one server, one after the other.
        dead, slow: clients that leave in a step, and that take no answers.
        exact: also the load in which sessions step alone.
        write: into the page; else print only.
    """
    busy, rows = report.load_average(), []
    for alone in (False, True) if exact else (False,):
        row = loaded(env, clients, steps, exact=alone, rounds=rounds, dead=dead, slow=slow)
        rows.append(["alone" if alone else "together", *row])
        print(*rows[-1], sep=" | ", flush=True)
    text = f"{report.table(('', *HEAD), rows)}\n\n{report.stamp(env=env, load_before=busy)}"
    if write:
        report.write(out, report.filled(out.read_text(encoding="utf-8"), "serving", text))
    print(text)


if __name__ == "__main__":
    tyro.cli(main)
