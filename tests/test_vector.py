"""VapVectorEnv: slots like single envs, partial resets, autoreset as Gymnasium has it, and what it refuses."""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode

from vap_gym import StartSet, VapVectorEnv
from vap_gym.errors import ActionError, VapError
from vap_gym.starts import starts_path

ID = "VAP-DROID-v0"


def made(num_envs: int = 3, **kwargs: Any) -> VapVectorEnv:
    """A native vector env."""
    env = gym.make_vec(ID, num_envs=num_envs, **kwargs)
    assert isinstance(env, VapVectorEnv)
    return env


def some_actions(env: Any, count: int, seed: int = 0) -> list[np.ndarray]:
    """Random batches of actions."""
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(count)]


def as_list(env: Any, infos: dict[str, Any]) -> list[dict[str, Any]]:
    """Infos slot by slot, by Gymnasium's own wrapper."""
    return gym.wrappers.vector.DictInfoToList(env)._convert_info_to_list(infos)


def test_make_vec_takes_the_native_env() -> None:
    env = made(4)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert env.observation_space.shape == (4, 96, 144, 3)
    assert env.spec is not None
    again = gym.make_vec(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert isinstance(again, VapVectorEnv)
    assert again.num_envs == 4


@pytest.mark.filterwarnings("error")
def test_slots_do_what_single_envs_do() -> None:
    native, single = made(), gym.make_vec(ID, num_envs=3, vectorization_mode="sync")
    first, infos = native.reset(seed=[4, 9, 2])
    second, single_infos = single.reset(seed=[4, 9, 2])  # type: ignore[arg-type]
    assert np.array_equal(first, second)  # type: ignore[arg-type]
    assert infos.keys() == single_infos.keys()
    for actions in some_actions(native, 6):
        mine, theirs = native.step(actions), single.step(actions)
        apart = np.abs(mine[0].astype(int) - theirs[0].astype(int))  # type: ignore[union-attr]
        assert np.percentile(apart, 99) <= 2
        assert np.allclose(mine[1], theirs[1], atol=0.02)
        assert np.array_equal(mine[2], theirs[2])
        assert np.array_equal(mine[3], theirs[3])
        assert mine[4].keys() == theirs[4].keys()
        for one, other in zip(as_list(native, mine[4]), as_list(native, theirs[4]), strict=True):
            assert one["task_description"] == other["task_description"]
            assert np.allclose(
                one["proprioception"]["joint_position"], other["proprioception"]["joint_position"], atol=1e-4
            )
            assert one["clipped"] == other["clipped"]
    assert (mine[1].dtype, mine[2].dtype, mine[3].dtype) == (np.float64, np.bool_, np.bool_)


def test_the_same_seed_gives_the_same_batch() -> None:
    first, second = made(), made()
    assert data_equivalence(first.reset(seed=7), second.reset(seed=7), exact=True)
    for actions in some_actions(first, 3):
        assert data_equivalence(first.step(actions), second.step(actions), exact=True)


def test_an_integer_seed_counts_up_over_the_slots() -> None:
    env = made()
    env.reset(seed=5)
    assert env.np_random_seed == (5, 6, 7)
    frames = env.state["frame"]
    env.reset(seed=[5, 6, 7])
    assert torch.equal(frames, env.state["frame"])


def test_a_masked_reset_touches_its_slots_and_no_other() -> None:
    env = made()
    env.reset(seed=0)
    for actions in some_actions(env, 2):
        env.step(actions)
    before = env.save()
    observation, infos = env.reset(seed=40, options={"reset_mask": np.array([False, True, False])})
    assert env.state["step"].tolist() == [2, 0, 2]
    for i in (0, 2):
        assert all(torch.equal(env.state[key][i].nan_to_num(), before[key][i].nan_to_num()) for key in before.keys())  # noqa: SIM118
    assert infos["_is_success"].tolist() == [False, True, False]
    assert np.array_equal(observation[1], env.state["frame"][1].numpy())  # type: ignore[index]
    alone = gym.make(ID).unwrapped
    assert np.array_equal(observation[1], alone.reset(seed=41)[0])  # type: ignore[index]


def test_slots_can_begin_from_options_of_their_own() -> None:
    env, starts = made(), StartSet(starts_path(ID))
    env.reset(options={"per_slot": [{"start": 3}, {"start": 1}, {"start": 2, "instruction": "wave"}]})
    assert [frame.tobytes() for frame in env.state["frame"].numpy()] == [starts[i].frame.tobytes() for i in (3, 1, 2)]
    _, infos = env.reset(options={"start": 4})
    assert set(infos["task_description"]) == {starts[4].instruction}


def test_next_step_autoreset_is_gymnasiums() -> None:
    native = made(max_episode_steps=2)
    single = gym.make_vec(ID, num_envs=3, vectorization_mode="sync", max_episode_steps=2)
    native.reset(seed=3)
    single.reset(seed=3)
    for step, actions in enumerate(some_actions(native, 4)):
        mine, theirs = native.step(actions), single.step(actions)
        assert np.array_equal(mine[2], theirs[2])
        assert np.array_equal(mine[3], theirs[3])
        if step == 2:  # the step after the end: actions ignored, a first frame, no reward
            assert np.array_equal(mine[0], theirs[0])  # type: ignore[arg-type]
            assert mine[1].tolist() == [0, 0, 0]
            assert native.state["step"].tolist() == [0, 0, 0]
        assert mine[4].keys() == theirs[4].keys()


def test_same_step_autoreset_keeps_the_last_observation() -> None:
    env, never = (
        made(max_episode_steps=2, autoreset_mode="SameStep"),
        made(max_episode_steps=2, autoreset_mode="Disabled"),
    )
    env.reset(seed=3)
    never.reset(seed=3)
    for actions in some_actions(env, 2):
        mine, theirs = env.step(actions), never.step(actions)
    assert mine[3].all()
    assert env.state["step"].tolist() == [0, 0, 0]
    assert np.array_equal(np.stack(mine[4]["final_obs"]), theirs[0])  # type: ignore[arg-type]
    assert mine[4]["final_info"]["_is_success"].all()
    assert "timings_ms" not in mine[4]  # the infos are those of the new episodes
    assert np.array_equal(mine[0], env.state["frame"].numpy())  # type: ignore[arg-type]


def test_only_the_finished_slot_begins_anew() -> None:
    env = made(max_episode_steps=2)
    env.reset(seed=0)
    actions = some_actions(env, 4)
    env.step(actions[0])
    env.reset(options={"reset_mask": np.array([False, False, True])})
    assert env.step(actions[1])[3].tolist() == [True, True, False]
    _, rewards, _, truncated, _ = env.step(actions[2])
    assert env.state["step"].tolist() == [0, 0, 2]
    assert rewards[:2].tolist() == [0, 0]
    assert truncated.tolist() == [False, False, True]


def test_without_autoreset_a_slot_waits_for_its_mask() -> None:
    env = made(max_episode_steps=1, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    for actions in some_actions(env, 2):
        assert env.step(actions)[3].all()
    assert env.state["step"].tolist() == [2, 2, 2]


@pytest.mark.filterwarnings("error")
def test_gymnasiums_statistics_wrapper_counts_slots() -> None:
    env: Any = gym.wrappers.vector.RecordEpisodeStatistics(made(max_episode_steps=2))
    env.reset(seed=0)
    for actions in some_actions(env, 2):
        *_, infos = env.step(actions)
    assert infos["episode"]["l"].tolist() == [2, 2, 2]


def test_snapshots_and_pickles_go_on_alike() -> None:
    env = made(obs_type="pixels_agent_pos")
    env.reset(seed=0)
    actions = some_actions(env, 2)
    env.step(actions[0])
    kept, twin = env.save(), pickle.loads(pickle.dumps(env))
    ahead = env.step(actions[1])
    assert data_equivalence(ahead, twin.step(actions[1]), exact=True)
    env.load(kept)
    assert data_equivalence(ahead, env.step(actions[1]), exact=True)


@pytest.mark.slow
def test_processes_of_their_own_give_the_same_starts() -> None:
    env = gym.make_vec(ID, num_envs=2, vectorization_mode="async", vector_kwargs={"context": "spawn"})
    native = made(2)
    assert np.array_equal(env.reset(seed=3)[0], native.reset(seed=3)[0])  # type: ignore[arg-type]
    assert np.allclose(env.step(env.action_space.sample())[1], 0, atol=1)
    env.close()


def test_rendering_gives_a_frame_per_slot() -> None:
    env = made(render_mode="rgb_array")
    env.reset(seed=0)
    frames: Any = env.render()
    assert len(frames) == 3
    assert np.array_equal(frames[1], env.state["frame"][1].numpy())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([True, False, False], "got list"),
        (np.array([1, 0, 0]), "bool numpy array"),
        (np.zeros(3, bool), "with a True in it"),
        (np.ones(2, bool), r"shape \(3,\)"),
    ],
)
def test_a_bad_mask_is_refused(mask: Any, message: str) -> None:
    env = made()
    env.reset(seed=0)
    with pytest.raises(VapError, match=message):
        env.reset(options={"reset_mask": mask})


def test_bad_arguments_are_refused() -> None:
    env = made()
    with pytest.raises(VapError, match="first reset must be of all 3 slots"):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    with pytest.raises(VapError, match=r"no state yet. Call reset\(\)"):
        env.step(np.zeros((3, 7), np.float32))
    env.reset(seed=0)
    with pytest.raises(ActionError, match=r"must have shape \(3, 7\), got \(7,\)"):
        env.step(np.zeros(7, np.float32))
    with pytest.raises(ActionError, match="must be finite"):
        env.step(np.full((3, 7), np.nan, np.float32))
    with pytest.raises(VapError, match=r"one per slot \(3\), got 2"):
        env.reset(seed=[1, 2])
    with pytest.raises(VapError, match="per_slot must be 3 dicts"):
        env.reset(options={"per_slot": [{}]})
    with pytest.raises(VapError, match=r"Did you mean 'reset_mask'\?"):
        env.reset(options={"reset_masks": 1})
    with pytest.raises(VapError, match="num_envs must be at least 1, got 0"):
        made(0)
    with pytest.raises(VapError, match=r"No autoreset mode named 'NextStop'. Did you mean 'NextStep'\?"):
        made(autoreset_mode="NextStop")
    with pytest.raises(VapError, match="No render_mode of a vector env named 'human'"):
        made(render_mode="human")
