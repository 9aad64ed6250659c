"""The EnvHub folder loads as LeRobot loads it, and gives what its evaluation reads."""

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from vap_gym.errors import UnknownNameError, VapError


@pytest.fixture(scope="module")
def hub(repo: Path) -> ModuleType:
    """`env.py` as LeRobot imports it: by its path, under a name that no other import finds."""
    spec = importlib.util.spec_from_file_location("hub_env_user_repo", repo / "envhub" / "env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "hub_env_user_repo" not in sys.modules
    return module


def test_make_env_takes_what_lerobot_gives(hub: ModuleType) -> None:
    given = inspect.signature(hub.make_env).parameters
    assert list(given) == ["n_envs", "use_async_envs", "cfg"]
    assert [one.default for one in given.values()] == [1, False, None]


def test_all_tasks_of_a_suite_by_number(hub: ModuleType) -> None:
    suites = hub.make_env(n_envs=1, use_async_envs=False)
    assert list(suites) == ["VAP-DROID-v0"]
    tasks = suites["VAP-DROID-v0"]
    assert {number: env.envs[0].task for number, env in tasks.items()} == {0: "lift", 1: "push", 2: "reach"}
    assert all(isinstance(env, VectorEnv) for env in tasks.values())
    for env in tasks.values():
        env.close()


def test_a_rollout_reads_what_lerobots_evaluation_reads(hub: ModuleType) -> None:
    suites = hub.make_env(n_envs=2, use_async_envs=False, cfg=SimpleNamespace(task="VAP-Bridge-v0/push"))
    ((number, env),) = suites["VAP-Bridge-v0"].items()
    assert number == 1
    assert isinstance(env, SyncVectorEnv)
    assert env.num_envs == 2
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observation, _ = env.reset(seed=[7, 8])
    assert observation["pixels"].shape == (2, 96, 144, 3)
    assert observation["pixels"].dtype == np.uint8
    assert observation["agent_pos"].shape[0] == 2
    assert observation["agent_pos"].dtype == np.float32
    assert env.call("_max_episode_steps") == (60, 60)
    assert env.call("task") == ("push", "push")
    words = env.call("task_description")
    assert all(isinstance(one, str) and "push" in one.lower() for one in words)
    assert env.envs[0].task_description == words[0]
    observation, *_, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert observation["pixels"].shape == (2, 96, 144, 3)
    assert info["is_success"].tolist() == [False, False]
    assert env.envs[0].render().shape == (96, 144, 3)
    assert env.unwrapped.metadata["render_fps"] == 5.0
    for _ in range(59):  # to the end, where LeRobot looks into final_info
        *_, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert truncated.all()
    assert info["final_info"]["is_success"].tolist() == [False, False]
    env.close()


def test_slots_may_be_processes(hub: ModuleType) -> None:
    ((env,),) = (suite.values() for suite in hub.make_env(1, True, SimpleNamespace(task="reach")).values())
    assert isinstance(env, AsyncVectorEnv)
    observation, _ = env.reset(seed=[7])
    assert observation["pixels"].shape == (1, 96, 144, 3)
    assert env.call("task_description")[0]
    env.close()


def test_configs_choose_suite_and_task(hub: ModuleType) -> None:
    assert hub.chosen(None) == ("VAP-DROID-v0", None)
    assert hub.chosen("push") == ("VAP-DROID-v0", "push")
    assert hub.chosen("VAP-RT1-v0") == ("VAP-RT1-v0", None)
    assert hub.chosen("VAP-RT1-v0/knock_over") == ("VAP-RT1-v0", "knock_over")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'VAP-DROID-v0'"):
        hub.chosen("VAP-DROID-v1")
    with pytest.raises(UnknownNameError, match=r"No task of VAP-DROID-v0 named 'pusch'\. Did you mean 'push'"):
        hub.make_env(cfg=SimpleNamespace(task="pusch"))
    with pytest.raises(VapError, match="n_envs must be at least 1"):
        hub.make_env(n_envs=0)


def test_the_folder_is_what_a_hub_repository_needs(repo: Path) -> None:
    assert (repo / "envhub" / "requirements.txt").read_text().split() == ["vap-gym"]
    told = (repo / "envhub" / "README.md").read_text()
    assert all(env_id in told for env_id in gym.registry if env_id.startswith("VAP-") and "Oracle" not in env_id
               and env_id != "VAP-Remote-v0")  # fmt: skip
