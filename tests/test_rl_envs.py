"""Vector envs to train in: hysteresis, short horizons, giving up; TorchRL's own checks; recorded moments as starts."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO

from vap_gym.cards import load_robot
from vap_gym.data import EpisodeSet, EpisodeWriter
from vap_gym.errors import ActionError, UnknownNameError, VapError
from vap_gym.loading import build_stage, load_starts
from vap_gym.metrics import psnr
from vap_gym.oracle_env import OracleEnv
from vap_gym.policies.seen import FEATURES, NEAR_M, Seen, answers_of, commands, features, heading
from vap_gym.rl import (
    ImaginedThings,
    PicturedThings,
    Sb3VecEnv,
    ShortVectorEnv,
    SimulatedThings,
    Steady,
    ThingVectorEnv,
    moments_of,
)
from vap_gym.rl.dynamics import ThingDynamics
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.rollout import NominalRobot, record
from vap_gym.sim.scene import Scene
from vap_gym.stage import Stage
from vap_gym.starts import Start, save_starts
from vap_gym.vector import VapVectorEnv

ID = "VAP-DROID-v0"


@pytest.fixture(scope="module")
def stage() -> Stage:
    return build_stage(ID, action_mode="cartesian_velocity")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short episodes of experts that reach, with pictures."""
    root = tmp_path_factory.mktemp("recorded") / "set"
    robot = load_robot("panda_robotiq")
    writer = EpisodeWriter(root, fps=15, robot_type="panda_robotiq")
    with Scene(robot) as scene:
        for i in range(3):
            spec = draw_scene(i, task="reach", near=False)
            writer.write(i, record(scene, NominalRobot(robot), spec, "expert", frames=10))
    return root


def shipped(task: str, count: int) -> list[Start]:
    """The first starts of a task."""
    starts = load_starts(ID, None)
    return [starts[i] for i in starts.of_task(task)[:count]]


def straight(observation: np.ndarray) -> np.ndarray:
    """Answers that lead straight to the object, as fast as may be near it."""
    return (8.0 * NEAR_M * observation[:, :3]).clip(-1.0, 1.0)


def test_progress_counts_when_enough_readings_agree() -> None:
    steady = Steady(2, 3)
    memory, told = steady.begin(1), []
    for reading in (0.4, 1.0, 0.2, 1.0, float("nan"), 0.1):
        memory, value = steady(memory, np.array([reading]))
        told.append(float(value[0]))
    assert told == [0.0, 0.4, 0.4, 1.0, 1.0, 1.0]  # a vague reading counts as the one before it
    memory, value = Steady(1, 1)(Steady(1, 1).begin(2), np.array([0.3, 1.0]))
    assert value.tolist() == [0.3, 1.0]
    with pytest.raises(VapError, match=r"1 ≤ agree ≤ of, got 4 of 3"):
        Steady(4, 3)


def test_answers_are_told_in_a_frame_that_turns_with_the_task() -> None:
    rng = np.random.default_rng(0)

    def seen(turn: np.ndarray) -> Seen:
        places = {
            name: np.array([[*(turn @ xy), z]])
            for name, (*xy, z) in {
                "tool_m": (0.1, 0.2, 0.3),
                "before_m": (0.1, 0.19, 0.3),
                "object_m": (0.2, 0.2, 0.02),
            }.items()
        }
        return Seen(
            **places, closedness=np.ones(1), yaw_rad=np.array([0.3 + np.arctan2(turn[1, 0], turn[0, 0])]),
            size_m=np.array([0.02]), goal_m=(turn @ [0.3, 0.25])[None], table_z_m=np.zeros(1),
        )  # fmt: skip

    c, s = np.cos(1.1), np.sin(1.1)
    plain, turned = seen(np.eye(2)), seen(np.array([[c, -s], [s, c]]))
    assert np.allclose(features(plain, "push")[:, :13], features(turned, "push")[:, :13], atol=1e-5)
    assert np.allclose(np.linalg.norm(heading(turned, "push"), axis=1), 1.0)
    actions = rng.uniform(-0.6, 0.6, (1, 7)).astype(np.float32)
    actions[:, 3:6], actions[:, 6] = 0.0, 1.0
    assert np.allclose(commands(answers_of(actions, turned, "push"), turned, "push"), actions, atol=1e-6)


def test_short_episodes_of_pictures_end_and_begin_anew() -> None:
    env = ShortVectorEnv(VapVectorEnv(2, autoreset_mode="Disabled", task="reach"), horizon=2, steady=Steady(1, 2))
    env.reset(seed=3)
    still = np.zeros((2, 7), np.float32)
    _, _, terminated, truncated, infos = env.step(still)
    assert not (terminated | truncated).any()
    last, _, _, truncated, infos = env.step(still)
    assert truncated.all()
    assert infos["final_obs"][0].shape == (96, 144, 3)
    assert not np.array_equal(infos["final_obs"][0], last[0])
    assert not infos["final_info"]["is_success"].any()
    env.reset(seed=3)
    PPO("CnnPolicy", Sb3VecEnv(env), n_steps=2, batch_size=4, n_epochs=1, seed=0).learn(4)
    with pytest.raises(VapError, match="needs autoreset_mode 'Disabled'"):
        ShortVectorEnv(VapVectorEnv(2))


def test_torchrls_own_checks_pass_on_pictures_and_on_things(stage: Stage) -> None:
    pytest.importorskip("torchrl")
    from torchrl.envs.utils import check_env_specs

    from vap_gym.rl import TorchRLEnv

    pictures = TorchRLEnv(
        gym.make_vec(ID, num_envs=2, max_episode_steps=2, autoreset_mode="Disabled", obs_type="pixels_agent_pos")
    )
    check_env_specs(pictures, seed=0)
    rolled = pictures.rollout(5, break_when_any_done=False)
    assert tuple(rolled.batch_size) == (2, 5)
    assert rolled["next", "done"][:, :, 0].tolist() == [[False, True, False, True, False]] * 2
    dynamics = ImaginedThings(stage, shipped("reach", 3), 3)
    things = TorchRLEnv(ThingVectorEnv(dynamics, horizon=4, hold=2, autoreset_mode="Disabled"))
    check_env_specs(things, seed=0)
    assert things.rollout(3, break_when_any_done=False)["observation"].shape == (3, 3, FEATURES)
    with pytest.raises(VapError, match="TorchRL needs autoreset_mode 'Disabled', got 'SameStep'"):
        TorchRLEnv(ThingVectorEnv(dynamics))


def test_going_straight_reaches_in_all_worlds(stage: Stage) -> None:
    starts = shipped("reach", 4)
    worlds: list[ThingDynamics] = [
        ImaginedThings(stage, starts, 4, noise=False),
        SimulatedThings(load_robot("panda_robotiq"), starts, 4, noise=False),
        PicturedThings(stage, starts[:2], 2),
    ]
    for dynamics in worlds:
        env = ThingVectorEnv(dynamics, horizon=60, hold=3, autoreset_mode="Disabled")
        observation, _ = env.reset(seed=0, options={"which": range(len(dynamics.starts))})
        over = np.zeros(env.num_envs, bool)
        for _ in range(20):
            observation, rewards, terminated, *_ = env.step(straight(observation))
            over |= terminated
            assert np.isfinite(rewards).all()
            assert observation.dtype == np.float32
            assert np.isfinite(observation).all()
            if over.all():
                break
        env.close()
        assert over.mean() >= 0.5, type(dynamics).__name__


def test_a_solved_task_is_worth_the_bonus_and_nothing_else_is(stage: Stage) -> None:
    rewards, ends = [], []
    for bonus in (0.0, 2.0):
        dynamics = ImaginedThings(stage, shipped("reach", 4), 4, noise=False)
        env = ThingVectorEnv(dynamics, horizon=60, hold=3, bonus=bonus, autoreset_mode="Disabled")
        observation, _ = env.reset(seed=0)
        told, ended = [], np.zeros(4, bool)
        for _ in range(20):
            observation, reward, terminated, *_ = env.step(straight(observation))
            told.append(np.where(ended, 0.0, reward))
            ended |= terminated
        rewards.append(np.sum(told, 0))
        ends.append(ended)
    assert ends[0].any()
    assert np.array_equal(*ends)
    assert np.allclose(rewards[1] - rewards[0], 2.0 * ends[0])


def test_an_episode_is_given_up_where_nobody_can_know_what_follows(stage: Stage) -> None:
    starts = shipped("push", 6)
    given_up = {}
    for limit in (None, 1e-4):
        dynamics = ImaginedThings(stage, starts, 4, noise=False, max_spread_m=limit)
        env = ThingVectorEnv(dynamics, horizon=60, hold=2)
        observation, _ = env.reset(seed=0)
        given_up[limit] = 0
        for _ in range(30):
            observation, _, terminated, truncated, infos = env.step(straight(observation))
            if "final_info" in infos:
                lost = infos["final_info"]["untrusted"]
                given_up[limit] += int(lost.sum())
                assert not (lost & terminated).any()
                assert (lost <= truncated).all()
    assert given_up[None] == 0
    assert given_up[1e-4] > 0


def test_moments_of_an_episode_are_starts_that_the_simulator_shows_alike(recordings: Path, tmp_path: Path) -> None:
    moments = moments_of(recordings, "push", count=4, seed=1)
    assert all(start.scene is not None and start.scene.task == "push" for start in moments)
    firsts = [EpisodeSet(recordings).read(i, stop=1, labels=(), columns=()).frames["front"][0] for i in range(3)]
    assert any(all(not np.array_equal(start.frame, first) for first in firsts) for start in moments)
    path = tmp_path / "moments.npz"
    save_starts(path, moments)
    oracle = OracleEnv(ID, task="push", starts=path)
    for i, start in enumerate(load_starts(ID, path)):
        frame, _ = oracle.reset(options={"start": i})
        assert (
            psnr(np.asarray(frame)[None], start.frame[None]) > 20.0
        )  # but for the mark of the goal, which is drawn anew
        assert start.scene is not None
        there = np.isfinite(oracle.truth.objects_m[:, 0])
        assert {item.index for item in start.scene.objects} == set(np.flatnonzero(there).tolist())
    oracle.close()
    env = VapVectorEnv(2, task="push", starts=path)
    _, infos = env.reset(seed=0)
    assert "pink mark" in infos["task_description"][0]
    assert len(moments_of(recordings, "reach", count=2, any_task=False, from_first=True)) == 2


def test_wrong_inputs_are_told(stage: Stage, recordings: Path, tmp_path: Path) -> None:
    starts = shipped("reach", 2)
    env = ThingVectorEnv(ImaginedThings(stage, starts, 2), hold=2)
    wrong: list[tuple[Any, str]] = [
        (lambda: env.step(np.zeros((2, 3), np.float32)), "no state yet"),
        (lambda: ThingVectorEnv(env.dynamics, horizon=5, hold=2), "multiple of hold"),
        (lambda: ThingVectorEnv(env.dynamics, autoreset_mode="NextStep"), "got 'NextStep'"),
        (lambda: ImaginedThings(stage, starts, 2, max_spread_m=-1.0), "max_spread_m must be above 0"),
        (lambda: ImaginedThings(build_stage(ID, action_mode="joint_velocity"), starts, 2), "and joint_velocity"),
        (lambda: SimulatedThings(load_robot("panda_robotiq"), [], 2), "needs starts with a scene"),
        (lambda: moments_of(recordings, "push", count=2, any_task=False), r"got 0 in .* \(0 episodes fit\)"),
        (lambda: env.reset(options={"reset_mask": np.ones(3, bool)}), r"bool of shape \(2,\)"),
        (lambda: env.reset(options={"which": [0, 9]}), "numbers of starts from 0 to 1"),
    ]
    for call, message in wrong:
        with pytest.raises(VapError, match=message):
            call()
    both = [*shipped("push", 1), *starts]
    with pytest.raises(VapError, match="starts of push, reach"):
        ThingVectorEnv(SimulatedThings(load_robot("panda_robotiq"), both, 1))
    with pytest.raises(UnknownNameError, match="No task that agents learn named 'pusch'. Did you mean 'push'"):
        moments_of(recordings, "pusch", count=1)
    env.reset(seed=0)
    with pytest.raises(ActionError):
        env.step(np.full((2, 3), np.nan, np.float32))
