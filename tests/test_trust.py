"""Trust: samples imagined side by side, and episodes cut short where the gripper is not where it should be."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from vap_gym import VapEnv, VapVectorEnv
from vap_gym.errors import VapError

ID = "VAP-DROID-v0"


def made(**kwargs: Any) -> VapEnv:
    env = gym.make(ID, **kwargs).unwrapped
    assert isinstance(env, VapEnv)
    env.reset(seed=0)
    return env


def made_vector(**kwargs: Any) -> VapVectorEnv:
    envs = gym.make_vec(ID, **kwargs).unwrapped
    assert isinstance(envs, VapVectorEnv)
    envs.reset(seed=0)
    return envs


def some_actions(env: VapEnv, count: int) -> np.ndarray:
    env.action_space.seed(0)
    return np.stack([env.action_space.sample() for _ in range(count)])


def test_samples_with_other_noise_come_apart_and_leave_the_frames_alone() -> None:
    plain, env = made(), made(trust_samples=3)
    actions = some_actions(env, 4)
    spreads = []
    for action in actions:
        alone, watched = plain.step(action), env.step(action)
        assert np.array_equal(alone[0], watched[0])  # type: ignore[arg-type]
        assert "spread_grey" not in alone[4]["trust"]
        spreads.append(watched[4]["trust"]["spread_grey"])
    assert all(0 < spread < 60 for spread in spreads)
    seeds = env.state["sample_seed"].flatten().tolist() + env.state["world_seed"].tolist()
    assert len(set(seeds)) == 3


def test_samples_with_the_same_noise_stay_together() -> None:
    env = made(trust_samples=3)
    state = env.save()
    state["sample_seed"] = state["world_seed"][:, None].expand(-1, 2).clone()
    env.load(state)
    for action in some_actions(env, 3):
        assert env.step(action)[4]["trust"]["spread_grey"] < 0.5  # rounding at another batch size


def test_the_spread_is_the_same_in_chunks_after_snapshots_and_in_branches() -> None:
    env = made(trust_samples=2)
    actions, begun = some_actions(env, 3), env.save()
    single = [env.step(action)[4] for action in actions]
    env.load(begun)
    assert data_equivalence(env.step_chunk(actions)[4], single, exact=True)
    env.load(begun)
    copies = env.branch(2)
    infos = copies.step(np.stack([actions[0]] * 2))[4]
    spread = infos["trust"]["spread_grey"]
    assert spread == pytest.approx([single[0]["trust"]["spread_grey"]] * 2, rel=0.1)


def test_a_partial_reset_touches_its_slots_samples_only() -> None:
    envs = made_vector(num_envs=3, trust_samples=2)
    envs.step(np.stack([envs.single_action_space.sample()] * 3))
    before = envs.save()
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    for key in (key for key in before.keys() if key.startswith("sample_")):  # noqa: SIM118
        assert (envs.state[key][[0, 2]] == before[key][[0, 2]]).all(), key
    assert (envs.state["sample_step"][1] == 0).all()
    assert (envs.state["sample_seed"][1] != before["sample_seed"][1]).all()


def test_a_snapshot_without_samples_is_refused_where_they_are_needed() -> None:
    snapshot = made().save()
    with pytest.raises(VapError, match="of another env: it lacks .*sample_latent"):
        made(trust_samples=2).load(snapshot)


def test_an_episode_is_truncated_where_the_gripper_is_too_far_off() -> None:
    strict, lenient = made(max_adherence_px=1e-6), made(max_adherence_px=500.0)
    actions = some_actions(strict, 3)
    _, _, _, truncated, info = strict.step(actions[0])
    assert truncated == (info["trust"]["adherence_px"] > 1e-6)
    assert truncated
    assert not lenient.step(actions[0])[3]
    assert strict.step_chunk(actions)[3].tolist() == [True] * 3
    envs = made_vector(num_envs=2, max_adherence_px=1e-6)
    assert envs.step(np.stack([actions[0]] * 2))[3].tolist() == [True, True]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"trust_samples": 1}, r"trust_samples must be 0 \(off\) or at least 2, got 1"),
        ({"max_adherence_px": 0.0}, "max_adherence_px must be above 0 .* got max_adherence_px=0.0"),
        ({"max_adherence_px": 5.0, "judge": None}, "needs a judge .* got no judge"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(VapError, match=told):
        made(**wrong)
