"""VapEnv: what a step gives, chunks, snapshots, branches, clipping, and what it refuses."""

import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence

from vap_gym import VapEnv, read_state, write_state
from vap_gym.assets import robots_dir
from vap_gym.errors import ActionError, CheckpointError, VapError

ID = "VAP-DROID-v0"


def made(**kwargs: Any) -> VapEnv:
    """An env without wrappers, begun with seed 0."""
    env = gym.make(ID, **kwargs).unwrapped
    assert isinstance(env, VapEnv)
    env.reset(seed=0)
    return env


def some_actions(env: VapEnv, count: int, seed: int = 0) -> np.ndarray:
    """Random actions (count, A)."""
    env.action_space.seed(seed)
    return np.stack([env.action_space.sample() for _ in range(count)])


def test_a_step_tells_what_users_ask_for() -> None:
    env = made()
    _, info = env.reset(seed=0)
    assert info["is_success"] is False
    assert info["task_description"]
    observation, reward, terminated, truncated, info = env.step(some_actions(env, 1)[0])
    assert observation.shape == (96, 144, 3)  # type: ignore[union-attr]
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert type(info["is_success"]) is bool
    assert info["prompt"].shape == (96, 144, 3)
    assert info["prompt"].any()
    assert info["trust"]["adherence_px"] >= 0
    assert info["reward_source"] == "judge"
    assert min(info["timings_ms"].robot, info["timings_ms"].world, info["timings_ms"].judge) > 0
    assert {key: np.shape(value) for key, value in info["proprioception"].items()} == {
        "joint_position": (7,),
        "cartesian_position": (6,),
        "gripper_position": (),
    }


def test_proprioception_is_the_kinematics_own() -> None:
    env = made(obs_type="pixels_agent_pos")
    observation, *_, info = env.step(some_actions(env, 1)[0])
    assert isinstance(observation, dict)
    joints, closedness = observation["agent_pos"][:7], observation["agent_pos"][7]
    assert np.array_equal(joints, info["proprioception"]["joint_position"])
    assert closedness == np.float32(info["proprioception"]["gripper_position"])
    arm = env.stage.rig.controller.arm
    tip = arm.fk(torch.from_numpy(joints), "panda_link8")
    assert np.allclose(tip[:3, 3], info["proprioception"]["cartesian_position"][:3], atol=1e-6)


def test_a_chunk_gives_the_frames_of_single_steps() -> None:
    env = made()
    actions, begun = some_actions(env, 5), env.save()
    single = [env.step(action) for action in actions]
    env.load(begun)
    frames, rewards, terminated, truncated, infos = env.step_chunk(actions)
    assert np.array_equal(frames, np.stack([step[0] for step in single]))  # type: ignore[arg-type]
    assert rewards.tolist() == [step[1] for step in single]
    assert terminated.tolist() == [step[2] for step in single]
    assert not truncated.any()
    assert data_equivalence(infos, [step[4] for step in single], exact=True)


def test_a_chunk_of_dicts_is_a_dict_of_stacks() -> None:
    env = made(obs_type="pixels_agent_pos")
    observations = env.step_chunk(some_actions(env, 3))[0]
    assert isinstance(observations, dict)
    assert observations["pixels"].shape == (3, 96, 144, 3)
    assert observations["agent_pos"].shape == (3, 8)


def test_rewards_sum_to_progress() -> None:
    env = made()
    steps = [env.step(action) for action in some_actions(env, 6)]
    assert sum(step[1] for step in steps) == pytest.approx(steps[-1][4]["progress"], abs=1e-9)
    assert 0 <= steps[-1][4]["progress"] <= 1


def test_success_reward_is_one_exactly_where_it_is_solved() -> None:
    env = made(reward="success")
    for action in some_actions(env, 3):
        _, reward, terminated, _, info = env.step(action)
        assert reward == float(info["is_success"])
        assert terminated == info["is_success"]


def test_without_a_judge_there_is_no_reward_and_info_says_so() -> None:
    env = made(judge=None)
    _, reward, terminated, _, info = env.step(some_actions(env, 1)[0])
    assert (reward, terminated, info["is_success"]) == (0.0, False, False)
    assert info["trust"].keys() == {"expected_psnr_db", "object_risk", "unfamiliar"}  # which ask no judge
    assert info["reward_source"] == "none: made with judge=None"


def test_a_snapshot_brings_back_the_same_future() -> None:
    env = made()
    actions = some_actions(env, 4)
    env.step(actions[0])
    kept = env.save()
    first = [env.step(action) for action in actions[1:]]
    observation, info = env.load(kept)
    assert np.array_equal(observation, kept["frame"][0].numpy())  # type: ignore[arg-type]
    assert info["task_description"]
    again = [env.step(action) for action in actions[1:]]
    assert data_equivalence(first, again, exact=True)


def test_a_snapshot_goes_through_a_file_bit_for_bit(tmp_path: Path) -> None:
    env = made()
    env.step(some_actions(env, 1)[0])
    path, kept = tmp_path / "moment.safetensors", env.save()
    write_state(kept, path)
    read = read_state(path)
    assert set(read.keys()) == set(kept.keys())
    assert all(torch.equal(read[key].nan_to_num(), kept[key].nan_to_num()) for key in kept.keys())  # noqa: SIM118
    first = env.step(some_actions(env, 1, seed=5)[0])
    other = made()
    other.load(path)
    assert data_equivalence(first, other.step(some_actions(env, 1, seed=5)[0]), exact=True)


def test_a_broken_or_foreign_snapshot_is_refused(tmp_path: Path) -> None:
    env = made()
    path = tmp_path / "moment.safetensors"
    write_state(env.save(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="No readable state at"):
        env.load(path)
    with pytest.raises(CheckpointError, match="No readable state at"):
        env.load(tmp_path / "missing.safetensors")
    with pytest.raises(VapError, match=r"snapshot of 1 slot\(s\) is needed, got batch size \(2,\)"):
        env.load(env.save().expand(2).clone())
    with pytest.raises(VapError, match=r"another env: it lacks \['frame'\]"):
        env.load(env.save().exclude("frame"))


def test_a_branch_shares_noise_and_leaves_the_env_alone() -> None:
    env = made()
    env.step(some_actions(env, 1)[0])
    before = env.save()
    copies = env.branch(3)
    same = np.repeat(some_actions(env, 1, seed=2), 3, axis=0)
    frames: Any = copies.step(same)[0]
    assert np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[0], frames[2])
    assert torch.equal(env.state["frame"], before["frame"])
    assert int(env.state["step"][0]) == 1
    assert copies.state["step"].tolist() == [2, 2, 2]


def test_a_branch_with_seeds_draws_other_noise() -> None:
    env = made()
    copies = env.branch(3, seeds=[1, 1, 2])
    assert copies.state["world_seed"].tolist() == [1, 1, 2]
    with pytest.raises(VapError, match="n=3 and 2 seeds"):
        env.branch(3, seeds=[1, 2])


def test_a_branch_never_resets_itself() -> None:
    env = made()
    copies = env.branch(2)
    for _ in range(3):
        copies.step(copies.action_space.sample())
    assert copies.state["step"].tolist() == [3, 3]


@pytest.mark.parametrize("mode", ["cartesian_velocity", "joint_velocity"])
def test_what_is_out_of_range_is_clipped_and_told(mode: str) -> None:
    env = made(action_mode=mode)
    begun, action = env.save(), np.zeros(env.action_space.shape or (), np.float32)
    action[0] = 1.0
    exact = env.step(action)
    assert exact[4]["clipped_action"].any() == np.False_
    env.load(begun)
    over = env.step(40 * action)
    assert over[4]["clipped"] is True
    assert over[4]["clipped_action"][0] == np.True_
    assert np.array_equal(over[0], exact[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.full(7, np.nan, np.float32), "must be finite"),
        (np.array([np.inf, 0, 0, 0, 0, 0, 0], np.float32), "must be finite"),
        (np.zeros(6, np.float32), r"must have shape \(7,\), got \(6,\)"),
        (np.zeros((1, 7), np.float32), r"must have shape \(7,\), got \(1, 7\)"),
        (np.array(["left"] * 7), "must be numbers"),
        (np.zeros(7, bool), "must be numbers"),
        (None, "must be numbers"),
    ],
)
def test_a_bad_action_is_refused_and_nothing_moves(action: Any, message: str) -> None:
    env = made()
    before = env.save()
    with pytest.raises(ActionError, match=message):
        env.step(action)
    with pytest.raises(ActionError):
        env.step_chunk([action, action])
    assert torch.equal(env.state["step"], before["step"])


def test_an_empty_chunk_is_refused() -> None:
    with pytest.raises(ActionError, match="shape"):
        made().step_chunk(np.zeros((0, 7), np.float32))


def test_a_list_of_numbers_is_an_action() -> None:
    made().step([0.0] * 7)


def test_stepping_before_the_first_reset_is_refused() -> None:
    env = gym.make(ID).unwrapped
    with pytest.raises(VapError, match=r"no state yet. Call reset\(\) first"):
        env.step(np.zeros(7, np.float32))


def test_the_world_model_is_loaded_once_for_all_envs() -> None:
    assert made().stage.imagination.world is made().stage.imagination.world


def test_a_robot_without_a_body_is_told_of_and_is_none_whose_gripper_the_judge_knows(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(robots_dir() / "panda_hand", tmp_path / "bare"))
    card = (folder / "robot.toml").read_text()
    (folder / "robot.toml").write_text("\n".join(row for row in card.splitlines() if not row.startswith("body")))
    with pytest.warns(UserWarning, match=r"'panda_hand' has no body, so that imagined frames do not show it move"):
        env = made(robot=str(folder))
    assert not env.stage.rig.body.links
    assert env.step(some_actions(env, 1)[0])[4]["trust"] == {}
    with pytest.raises(VapError, match="needs a judge to see the gripper, got one that never saw a 'panda_hand'"):
        made(robot="panda_hand", max_adherence_px=10.0)


def test_another_world_model_object_can_be_given() -> None:
    world = made().stage.imagination.world
    env = made(world_model=world)
    assert env.stage.imagination.world is world


def test_no_prompt_is_a_black_one() -> None:
    env = made(prompt="none")
    assert not env.step(some_actions(env, 1)[0])[4]["prompt"].any()
