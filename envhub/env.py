"""Imagined robots for LeRobot's EnvHub: `make_env` as LeRobot calls it, over vap-gym's own envs.

A suite is an env of vap-gym, its tasks are those of the env's shipped starts, in the order of their names.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import vap_gym
from vap_gym.errors import VapError, unknown_name
from vap_gym.loading import load_starts

DEFAULT = "VAP-DROID-v0"


class Described(gym.Wrapper[Any, Any, Any, Any]):
    """Tells the task's name, and its words as a policy is given them, where LeRobot looks for them."""

    def __init__(self, env: gym.Env[Any, Any], task: str) -> None:
        super().__init__(env)
        self.task, self.task_description = task, task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, whose words the info tells."""
        observation, info = super().reset(seed=seed, options=options)
        self.task_description = info["task_description"]
        return observation, info


def make_env(
    n_envs: int = 1, use_async_envs: bool = False, cfg: Any = None
) -> dict[str, dict[int, gym.vector.VectorEnv[Any, Any, Any]]]:
    """Return {suite: {task's number: vector env of n_envs}}.

    Args:
        n_envs: slots of each vector env.
        use_async_envs: a process for each slot, with the model in each; else all share one, which is faster on one GPU.
        cfg: LeRobot's EnvConfig; its `task` may name a suite ("VAP-RT1-v0"), a task of the default suite ("push"), or
            both ("VAP-RT1-v0/push"). None, or no task: all tasks of VAP-DROID-v0.

    Raises:
        VapError: an unknown suite or task.
    """
    if n_envs < 1:
        raise VapError(f"n_envs must be at least 1, got {n_envs}.")
    suite, task = chosen(getattr(cfg, "task", None))
    tasks = load_starts(suite, None).tasks()
    if task is not None and task not in tasks:
        raise unknown_name(f"task of {suite}", task, tasks)
    return {
        suite: {
            number: vector(suite, name, n_envs, use_async_envs)
            for number, name in enumerate(tasks)
            if task in (None, name)
        }
    }


def chosen(wanted: str | None) -> tuple[str, str | None]:
    """Return the suite and the task that a config names; None: all of them."""
    suite, _, task = (wanted or DEFAULT).partition("/")
    if suite in vap_gym.known_envs():
        return suite, task or None
    if task or suite.startswith("VAP-"):
        raise unknown_name("suite", suite, vap_gym.known_envs())
    return DEFAULT, suite


def vector(suite: str, task: str, n_envs: int, use_async_envs: bool) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Return a vector env that resets as LeRobot's own do: in the same step."""
    made = [partial(single, suite, task)] * n_envs
    if use_async_envs:
        return AsyncVectorEnv(made, context="forkserver", autoreset_mode=AutoresetMode.SAME_STEP)
    return SyncVectorEnv(made, autoreset_mode=AutoresetMode.SAME_STEP)


def single(suite: str, task: str) -> gym.Env[Any, Any]:
    """Return one env with LeRobot's observations: {"pixels", "agent_pos"}."""
    env: gym.Env[Any, Any] = gym.make(  # with the package's name, since a process of an async vector env begins bare
        f"vap_gym:{suite}", task=task, obs_type="pixels_agent_pos", render_mode="rgb_array", disable_env_checker=True
    )
    return Described(env, task)
