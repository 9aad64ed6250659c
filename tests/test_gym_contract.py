"""What Gymnasium asks of an env: its own checker without a warning, determinism, pickling, rendering, bounds, specs."""

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.utils.env_match import check_environments_match

import vap_gym
from vap_gym.assets import envs_dir
from vap_gym.errors import UnknownNameError, VapError
from vap_gym.registry import oracle_id
from vap_gym.starts import Start, StartSet, starts_path

ID = "VAP-DROID-v0"
ORACLE = oracle_id(ID)
OTHERS = [env_id for env_id in vap_gym.known_envs() if env_id != ID]
BOTH = pytest.mark.parametrize("env_id", [ID, ORACLE])


def test_importing_registers_every_card_and_its_oracle() -> None:
    assert vap_gym.known_envs()
    for env_id in vap_gym.known_envs():
        assert env_id in gym.registry
        assert oracle_id(env_id) in gym.registry


@BOTH
@pytest.mark.parametrize("obs_type", ["pixels", "pixels_agent_pos"])
@pytest.mark.filterwarnings("error")
def test_gymnasium_checker_finds_nothing(env_id: str, obs_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # the checker makes an env of every render mode
    env = gym.make(env_id, obs_type=obs_type, disable_env_checker=True).unwrapped
    check_env(env)
    env.close()


@pytest.mark.parametrize("env_id", [name for env_id in OTHERS for name in (env_id, oracle_id(env_id))])
@pytest.mark.filterwarnings("error", "ignore:.*symmetric and normalized")  # RT-1's and Bridge's own units
def test_gymnasium_checker_finds_nothing_in_other_robots_envs(env_id: str) -> None:
    kwargs = {} if "Oracle" in env_id else {"judge": None}
    env = gym.make(env_id, disable_env_checker=True, **kwargs).unwrapped
    check_env(env, skip_render_check=True)
    env.close()


@BOTH
@pytest.mark.filterwarnings("error")
def test_two_envs_of_one_seed_match(env_id: str) -> None:
    first, second = (gym.make(env_id, render_mode="rgb_array") for _ in range(2))
    check_environments_match(first, second, num_steps=6, seed=3)


@BOTH
def test_rollouts_of_one_seed_are_equal_and_within_the_spaces(env_id: str) -> None:
    first, second = (gym.make(env_id, disable_env_checker=True, max_episode_steps=8) for _ in range(2))
    assert data_equivalence(first.reset(seed=0), second.reset(seed=0), exact=True)
    first.action_space.seed(0)
    for _ in range(12):
        action = first.action_space.sample()
        one, two = first.step(action), second.step(action)
        assert data_equivalence(one, two, exact=True)
        assert first.observation_space.contains(one[0])
        assert type(one[1]) is float
        assert type(one[2]) is bool
        assert type(one[3]) is bool
        if one[2] or one[3]:
            assert data_equivalence(first.reset(seed=0), second.reset(seed=0), exact=True)


def test_other_seeds_give_other_starts_and_other_noise() -> None:
    env = gym.make(ID).unwrapped
    frames = [env.reset(seed=seed)[0] for seed in range(4)]
    assert len({frame.tobytes() for frame in frames}) > 1
    env.reset(seed=0, options={"start": 0})
    noise = int(env.state["world_seed"][0])
    env.reset(seed=1, options={"start": 0})
    assert int(env.state["world_seed"][0]) != noise


@BOTH
@pytest.mark.parametrize("copied", [lambda env: pickle.loads(pickle.dumps(env)), copy.deepcopy])
def test_a_copy_goes_on_like_the_original(env_id: str, copied: Any) -> None:
    env = gym.make(env_id)
    env.reset(seed=1)
    env.action_space.seed(1)
    actions = [env.action_space.sample() for _ in range(4)]
    env.step(actions[0])
    twin = copied(env)
    for action in actions[1:]:
        assert data_equivalence(env.step(action), twin.step(action), exact=True)
    assert data_equivalence(env.reset(), twin.reset(), exact=True)


def test_pickling_leaves_named_weights_out() -> None:
    env = gym.make(ID)
    env.reset(seed=0)
    assert len(pickle.dumps(env)) < 2_000_000


@BOTH
def test_rgb_array_is_the_newest_frame(env_id: str) -> None:
    env = gym.make(env_id, render_mode="rgb_array")
    for take in (lambda: env.reset(seed=0)[0], lambda: env.step(env.action_space.sample())[0]):
        observation = take()
        frame: Any = env.render()
        assert frame.dtype == np.uint8
        assert frame.shape == (96, 144, 3)
        assert np.array_equal(frame, observation)


def test_a_list_of_frames_can_be_rendered() -> None:
    env = gym.make(ID, render_mode="rgb_array_list")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    frames: Any = env.render()
    assert len(frames) == 2


def test_human_mode_draws_on_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make(ID, render_mode="human")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert env.render() is None
    env.close()
    env.close()


@BOTH
def test_a_closed_env_opens_again_at_reset(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make(env_id, render_mode="human")
    first = env.reset(seed=0)[0]
    env.close()
    assert np.array_equal(env.reset(seed=0)[0], first)
    env.close()


@BOTH
@pytest.mark.skipif(sys.platform != "linux", reason="a display cannot be hidden on this system")
def test_human_mode_without_a_display_says_what_works(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(VapError, match=r"needs a display.*rgb_array.*SDL_VIDEODRIVER=dummy"):
        gym.make(env_id, render_mode="human")


def test_human_mode_without_pygame_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ImportError, match=r"render_mode='human' needs the package 'pygame'.*pip install pygame"):
        gym.make(ID, render_mode="human")


@BOTH
@pytest.mark.parametrize(
    "mode", ["cartesian_velocity", "cartesian_delta", "cartesian_pose", "joint_velocity", "joint_position"]
)
def test_the_corners_of_every_action_space_can_be_taken(env_id: str, mode: str) -> None:
    env = gym.make(env_id, action_mode=mode)
    env.reset(seed=0)
    space: Any = env.action_space
    assert space.shape == ((8,) if mode.startswith("joint") else (7,))
    for action in (space.low, space.high):
        observation, reward, *_ = env.step(action)
        assert env.observation_space.contains(observation)
        assert np.isfinite(reward)


@BOTH
def test_a_spec_goes_through_json(env_id: str) -> None:
    env = gym.make(env_id, obs_type="pixels_agent_pos", max_episode_steps=7)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.spec == env.spec
    assert again.observation_space == env.observation_space


def test_the_time_limit_is_the_cards() -> None:
    assert gym.spec(ID).max_episode_steps == vap_gym.load_env(ID).max_episode_steps
    env = gym.make(ID, max_episode_steps=2)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[3] is False
    assert env.step(env.action_space.sample())[3] is True


def test_a_card_of_ones_own_is_registered_with_its_oracle_and_its_starts(tmp_path: Path) -> None:
    text = (envs_dir() / f"{ID}.toml").read_text().replace(f'"{ID}"', '"Shelf-v0"').replace('"reach"', '"push"')
    card = tmp_path / "Shelf-v0.toml"
    card.write_text(text.replace("max_episode_steps = 100", "max_episode_steps = 3"))
    try:
        assert vap_gym.register_env(card) == "Shelf-v0" == vap_gym.register_env(card)  # again: the same
        with pytest.raises(VapError, match=r"No start states at '.*Shelf-v0\.starts\.npz'"):
            gym.make("Shelf-v0", judge=None).reset(seed=0)
        vap_gym.save_starts(tmp_path / "Shelf-v0.starts.npz", [next(iter(_starts_of("push")))])
        env, true = gym.make("Shelf-v0", judge=None), gym.make("Shelf-Oracle-v0")
        frame, info = env.reset(seed=0)
        assert np.array_equal(frame, true.reset(seed=0)[0])
        assert info["task_description"].startswith("push")
        assert [env.step(env.action_space.sample())[3] for _ in range(3)] == [False, False, True]
        assert gym.make_vec("Shelf-v0", num_envs=2, judge=None).reset(seed=0)[0].shape == (2, 96, 144, 3)
        (tmp_path / "other").mkdir()
        other = tmp_path / "other" / "Shelf-v0.toml"
        other.write_text(card.read_text())
        with pytest.raises(VapError, match="'Shelf-v0' is an env already"):
            vap_gym.register_env(other)
    finally:
        for name in ("Shelf-v0", "Shelf-Oracle-v0"):
            gym.registry.pop(name, None)


def _starts_of(task: str) -> list[Start]:
    shipped = StartSet(starts_path(ID))
    return [shipped[number] for number in shipped.of_task(task)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prompt": "skeletton"}, r"No prompt named 'skeletton'. Did you mean 'skeleton'\?"),
        ({"obs_type": "pixel"}, r"No obs_type named 'pixel'. Did you mean 'pixels'\?"),
        ({"action_mode": "cartesian_velocty"}, r"Did you mean 'cartesian_velocity'\?"),
        ({"robot": "panda_robotic"}, r"No robot named 'panda_robotic'. Did you mean 'panda_robotiq'\?"),
        ({"world_model": "tinny"}, r"No world model named 'tinny'. Did you mean 'tiny'\?"),
        ({"judge": "tinny"}, r"No judge named 'tinny'. Did you mean 'tiny'\?"),
        ({"card": "VAP-DROID-v1"}, r"No env named 'VAP-DROID-v1'. Did you mean 'VAP-DROID-v0'\?"),
        ({"reward": "sparse"}, r"No reward named 'sparse'"),
        ({"device": "cud"}, r"No device named 'cud'. Known here: cpu"),
        ({"device": "cuda:77"}, r"Device 'cuda:77' is not on this machine"),
        ({"dtype": "int8"}, r"dtype must be one of float32, bfloat16"),
    ],
)
def test_a_wrong_name_is_told_with_the_right_ones(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(VapError, match=message):
        gym.make(ID, **kwargs)


@pytest.mark.filterwarnings("ignore:.*render_mode")
def test_an_unknown_render_mode_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"No render_mode named 'rgb_aray'. Did you mean 'rgb_array'\?"):
        gym.make(ID, render_mode="rgb_aray")


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="frameskip"):
        gym.make(ID, frameskip=4)
