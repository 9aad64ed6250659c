"""TorchRL takes the envs as they are: its own checks, single and batched."""

import gymnasium as gym
import pytest

torchrl_envs = pytest.importorskip("torchrl.envs")
ID = "VAP-DROID-v0"


@pytest.mark.parametrize("obs_type", ["pixels", "pixels_agent_pos"])
@pytest.mark.filterwarnings("error:::vap_gym", "error:::gymnasium")
def test_specs_fit(obs_type: str) -> None:
    env = torchrl_envs.GymEnv(ID, obs_type=obs_type)
    torchrl_envs.check_env_specs(env, seed=0)


def test_a_native_batch_fits() -> None:
    env = torchrl_envs.GymWrapper(gym.make_vec(ID, num_envs=2, autoreset_mode="Disabled", max_episode_steps=2))
    torchrl_envs.check_env_specs(env)
    rolled = env.rollout(5, break_when_any_done=False)
    assert tuple(rolled.batch_size) == (2, 5)
    assert rolled["next", "done"][:, :, 0].tolist() == [[False, True, False, True, False]] * 2
