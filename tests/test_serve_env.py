"""Served robots are those of a local env: the same spaces, episodes, errors, infos; the server outlives its faults."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence

from vap_gym.errors import ActionError, CheckpointError, UnknownNameError, VapError
from vap_gym.serve import RemoteEnv
from vap_gym.serve.errors import ConnectionLostError, FullError, StoppingError, TooLargeError, UnknownSessionError
from vap_gym.serve.playing import Players
from vap_gym.serve.server import Server, serving
from vap_gym.serve.service import Limits, Service

ENVS = ("VAP-DROID-v0", "VAP-Bridge-v0")
STEPS = 3


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of two envs in a thread of this process."""
    with serving(Service(Players(ENVS, kinds=4), ENVS, Limits(sessions=16))) as served:
        yield served


def actions(env: gym.Env, count: int = STEPS, seed: int = 0) -> np.ndarray:
    """Actions that move, within the space."""
    assert isinstance(env.action_space, gym.spaces.Box)
    low, high = env.action_space.low, env.action_space.high
    return np.random.default_rng(seed).uniform(low, high, (count, *low.shape)).astype(np.float32)


def played(env: gym.Env, seed: int, steps: np.ndarray) -> list[Any]:
    """What reset and steps return."""
    return [env.reset(seed=seed), *[env.step(action) for action in steps]]


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal to the bit, types included."""
    return data_equivalence(one, other, exact=True)


@pytest.mark.parametrize("env_id", ENVS)
def test_an_episode_is_the_local_one_to_the_bit(server: Server, env_id: str) -> None:
    settings = {"obs_type": "pixels_agent_pos", "views": ["second"], "task": "push"}
    local = gym.make(env_id, disable_env_checker=True, **settings)
    with RemoteEnv(server.url, env_id, settings=settings) as remote:
        assert remote.observation_space == local.observation_space
        assert remote.action_space == local.action_space
        assert remote.metadata["render_fps"] == local.metadata["render_fps"]
        steps = actions(local)
        expected, found = played(local, 5, steps), played(remote, 5, steps)
        assert same(expected, found)
        assert same(local.reset(options={"start": 3}), remote.reset(options={"start": 3}))
        again = local.reset()[0], remote.reset()[0]  # without a seed: the generators go on alike
        assert same(*again)
    local.close()


BARE = """
import json, sys
import gymnasium as gym

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy!r}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Missing())
env = gym.make("vap_gym.serve:VAP-Remote-v0", url="{url}", max_episode_steps=100)
frames, action = [env.reset(seed=3)[0]], [0.5] * 7
frames.append((answer := env.step(action))[0])
with env.unwrapped as remote:
    (branch,) = remote.branch(1)
    frames += list(remote.step_chunk([action] * 2)[0])
    frames.append(branch.step(action)[0])
    branch.close()
print(json.dumps([type(answer[4]["timings_ms"]).__name__, *[int(frame.sum()) for frame in frames]]))
"""
HEAVY = (
    "torch", "diffusers", "transformers", "tensordict", "accelerate", "peft", "kornia", "safetensors", "scipy", "av",
    "matplotlib", "pyarrow", "pybullet", "stable_baselines3", "starlette", "uvicorn", "yourdfpy",
)  # fmt: skip


def test_a_client_plays_where_neither_torch_nor_a_server_is_installed(server: Server) -> None:
    command = [sys.executable, "-W", "error", "-c", BARE.format(heavy=HEAVY, url=server.url)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    kind, *sums = json.loads(done.stdout)
    assert kind == "Timings"
    with RemoteEnv(server.url) as env:
        steps = np.full((3, 7), 0.5)
        frames = [env.reset(seed=3)[0], env.step(steps[0])[0], *env.step_chunk(steps[1:])[0]]
    assert sums == [int(frame.sum()) for frame in (*frames, frames[2])]


def test_chunks_and_branches_are_the_local_ones(server: Server) -> None:
    local = gym.make(ENVS[0], disable_env_checker=True).unwrapped
    with RemoteEnv(server.url) as remote, ExitStack() as closed:
        steps = actions(local, 4)
        local.reset(seed=2)
        remote.reset(seed=2)
        assert same(local.step_chunk(steps), remote.step_chunk(steps))
        saved = local.save()
        branches = [closed.enter_context(one) for one in remote.branch(2)]
        for one, action in zip(branches, actions(local, 2, seed=7), strict=True):
            local.load(saved)
            assert same(local.step(action), one.step(action))
        (other,) = [closed.enter_context(one) for one in remote.branch(1, seeds=[99])]
        local.load(saved)
        resampled = local.branch(1, seeds=[99])
        assert same(resampled.step(steps[:1])[0][0], other.step(steps[0])[0])
        assert same(local.step(steps[0]), remote.step(steps[0]))


@pytest.mark.filterwarnings("error")
def test_gymnasium_checker_finds_nothing(server: Server) -> None:
    env = gym.make("vap_gym.serve:VAP-Remote-v0", url=server.url, disable_env_checker=True).unwrapped
    check_env(env)
    env.close()


def test_sessions_that_step_together_are_near_the_local_env_and_not_each_other(server: Server) -> None:
    seeds, found = (1, 2, 3, 4), {}
    envs = [RemoteEnv(server.url) for _ in seeds]
    steps = actions(envs[0], 4)
    for env, seed in zip(envs, seeds, strict=True):
        env.reset(seed=seed)
    model = server.service.figures()["model"]
    start = threading.Barrier(len(envs))

    def play(env: RemoteEnv, seed: int) -> None:
        start.wait()
        found[seed] = np.stack([env.step(action)[0] for action in steps])
        env.close()

    threads = [threading.Thread(target=play, args=pair) for pair in zip(envs, seeds, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = server.service.figures()["model"]
    assert now["calls"] - model["calls"] < now["jobs"] - model["jobs"] == len(seeds) * len(steps)
    local = gym.make(ENVS[0], disable_env_checker=True)
    for seed in seeds:
        local.reset(seed=seed)
        expected = np.stack([local.step(action)[0] for action in steps]).astype(int)
        assert np.percentile(np.abs(found[seed] - expected), 99) <= 2
        assert min(np.abs(found[other] - expected).mean() for other in seeds if other != seed) > 5


def test_time_limits_and_pictures(server: Server) -> None:
    with RemoteEnv(server.url, max_episode_steps=2, render_mode="rgb_array") as env:
        with pytest.raises(VapError, match="no episode yet"):
            env.step(env.action_space.sample())
        with pytest.raises(VapError, match="no picture yet"):
            env.render()
        observation, _ = env.reset(seed=0)
        assert (env.render() == observation).all()
        assert [env.step(action)[3] for action in actions(env, 3)] == [False, True, True]
        env.reset(seed=0)
        assert env.step_chunk(actions(env, 3))[3].tolist() == [False, True, True]
        assert env.took_ms > 0
    with pytest.raises(UnknownNameError, match="render_mode"):
        RemoteEnv(server.url, render_mode="human")


def test_actions_that_are_none_are_refused_and_cost_nothing(server: Server) -> None:
    with RemoteEnv(server.url) as env:
        env.reset(seed=0)
        for wrong in (np.zeros(8), np.full(7, np.nan), "up", [[0.0], [0.0, 1.0]], np.zeros((2, 7)), None):
            with pytest.raises(ActionError, match="action must"):
                env.step(wrong)
        local = gym.make(ENVS[0], disable_env_checker=True)
        local.reset(seed=0)
        assert same(local.step(np.zeros(7)), env.step(np.zeros(7)))


def test_a_client_may_choose_no_file_and_not_too_much(server: Server) -> None:
    for settings, kind, told in (
        ({"world_model": "/etc/passwd"}, UnknownNameError, "No setting of a served env named 'world_model'"),
        ({"starts": "x.npz"}, UnknownNameError, "starts"),
        ({"robot": "/tmp/robot"}, UnknownNameError, "No robot of the server"),
        ({"judge": "/tmp/judge"}, UnknownNameError, "No judge of the server"),
        ({"trust_samples": 1000}, TooLargeError, "may have 8 trust_samples"),
        ({"action_mode": "telekinesis"}, VapError, "telekinesis"),
    ):
        with pytest.raises(kind, match=told):
            RemoteEnv(server.url, settings=settings)
    with pytest.raises(UnknownNameError, match="Did you mean 'VAP-DROID-v0'"):
        RemoteEnv(server.url, "VAP-DROID-v1")


def test_kinds_of_env_are_bounded_and_those_in_use_are_kept() -> None:
    players = Players(ENVS[:1], kinds=2)
    kept = players(ENVS[0], {}), players(ENVS[0], {"task": "push"})
    assert players(ENVS[0], {}) is kept[0]
    with pytest.raises(FullError, match="2 kinds of env are in use"):
        players(ENVS[0], {"task": "lift"})
    del kept
    assert players(ENVS[0], {"task": "lift"}).about()["fps"] == 15.0


def test_a_world_model_of_other_actions_is_told_before_the_first_step(server: Server) -> None:
    with RemoteEnv(server.url, settings={"action_mode": "joint_velocity"}) as env:
        wide = env.action_space
    before = len(server.service.sessions)
    with pytest.raises(CheckpointError, match=r"takes actions of Box.*\(7,\).* wanted was Box.*\(8,\)"):
        RemoteEnv(server.url, action_space=wide)
    assert len(server.service.sessions) == before


def started(*more: str) -> tuple[subprocess.Popen[str], str]:
    """A server of the command line, and its address."""
    command = [sys.executable, "-m", "vap_gym", "serve", "--json", "--envs", ENVS[0], *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["url"]


def until_busy(url: str) -> None:
    """Wait until a server is at a request."""
    while True:
        with urllib.request.urlopen(f"{url}/sessions", timeout=20) as response:
            if json.load(response)["queue"]["answering"]:
                return
        time.sleep(0.01)


def test_a_server_killed_in_a_step_and_one_told_to_end() -> None:
    process, url = started("--port", "0")
    env = RemoteEnv(url, tries=2, timeout_s=20.0)
    first = env.reset(seed=1)
    answers: list[Any] = []

    def chunk() -> None:
        try:
            answers.append(env.step_chunk(actions(env, 32)))
        except VapError as error:
            answers.append(error)

    running = threading.Thread(target=chunk)
    running.start()
    until_busy(url)
    process.kill()
    running.join()
    process.wait()
    assert isinstance(answers.pop(), ConnectionLostError)

    process, _ = started("--port", url.rsplit(":", 1)[1])
    with pytest.raises(UnknownSessionError, match="No session of that name"):
        env.step(np.zeros(7))
    assert same(env.reset(seed=1), first)
    running = threading.Thread(target=chunk)
    running.start()
    until_busy(url)
    os.kill(process.pid, signal.SIGTERM)
    running.join()
    assert process.wait(30) == 0
    assert len(answers.pop()[1]) == 32
    with pytest.raises((StoppingError, ConnectionLostError)):
        env.step(np.zeros(7))


def test_the_command_tells_what_it_cannot_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vap_gym.commands.serve import main

    monkeypatch.delenv("VAP_GYM_TOKEN", raising=False)
    with pytest.raises(VapError, match="needs a token, got host '0.0.0.0'"):
        main(host="0.0.0.0", port=0)
    with pytest.raises(UnknownNameError, match="Did you mean"):
        main(envs=("VAP-DROID-v1",))
    with pytest.raises(VapError, match="limit idle_s must be above 0"):
        main(idle_s=0.0)
    with pytest.raises(CheckpointError):
        main(port=0, world_model=str(tmp_path), envs=ENVS[:1])
