"""Stable-Baselines3 takes the envs: its checker without a warning, and learning on the native batch."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import VecMonitor

from vap_gym.errors import VapError
from vap_gym.rl import Sb3VecEnv

ID = "VAP-DROID-v0"


@pytest.mark.parametrize("env_id", [ID, "VAP-DROID-Oracle-v0"])
@pytest.mark.parametrize("obs_type", ["pixels", "pixels_agent_pos"])
@pytest.mark.filterwarnings("error")
def test_sb3s_checker_finds_nothing(env_id: str, obs_type: str) -> None:
    check_env(gym.make(env_id, obs_type=obs_type, render_mode="rgb_array"), warn=True, skip_render_check=False)


def batch(**kwargs: Any) -> Sb3VecEnv:
    """Two slots with episodes of two steps."""
    return Sb3VecEnv(gym.make_vec(ID, num_envs=2, max_episode_steps=2, autoreset_mode="SameStep", **kwargs))  # type: ignore[arg-type]


def test_the_batch_ends_episodes_as_sb3_expects() -> None:
    env = batch(render_mode="rgb_array")
    env.seed(3)
    first = env.reset()
    assert env.reset_infos[1]["task_description"]
    still = np.zeros((2, 7), np.float32)
    _, rewards, done, infos = env.step(still)
    assert (done.tolist(), rewards.dtype) == ([False, False], np.float32)
    assert "terminal_observation" not in infos[0]
    observations, _, done, infos = env.step(still)
    assert done.tolist() == [True, True]
    for i in range(2):
        assert infos[i]["TimeLimit.truncated"] is True
        assert infos[i]["terminal_observation"].shape == (96, 144, 3)
        assert not np.array_equal(infos[i]["terminal_observation"], observations[i])
        assert "adherence_px" in infos[i]["trust"]
    assert len(env.get_images()) == 2
    env.seed(3)
    assert np.array_equal(env.reset(), first)


def test_ppo_learns_on_the_native_batch() -> None:
    env = VecMonitor(batch(obs_type="pixels_agent_pos"))
    PPO("MultiInputPolicy", env, n_steps=4, batch_size=8, n_epochs=1, seed=0).learn(8)


def test_another_autoreset_mode_is_refused() -> None:
    with pytest.raises(VapError, match="SB3 needs autoreset_mode 'SameStep', got 'NextStep'"):
        Sb3VecEnv(gym.make_vec(ID, num_envs=2))  # type: ignore[arg-type]
    with pytest.raises(VapError, match="no method 'save' of their own"):
        batch().env_method("save")
