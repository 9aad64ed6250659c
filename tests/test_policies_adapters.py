"""Adapters: functions, chunks, replays, chance, SB3, LeRobot and scripted experts, each as a policy."""

import pickle
from collections import deque

import gymnasium as gym
import numpy as np
import pytest
import torch

import vap_gym
from vap_gym.data import Episode, EpisodeWriter
from vap_gym.policies import (
    Conventions,
    EpisodeStart,
    FunctionPolicy,
    LeRobotPolicy,
    Observations,
    PolicyError,
    RandomPolicy,
    ReplayPolicy,
    Sb3Policy,
    ScriptedExpert,
)

VELOCITY = Conventions(action_mode="cartesian_velocity")


def shown(rows: int = 2) -> Observations:
    """Observations of so many episodes, each frame of a grey of its own."""
    frames = np.zeros((rows, 96, 144, 3), np.uint8) + np.arange(rows, dtype=np.uint8)[:, None, None, None]
    return Observations(
        slots=tuple(range(rows)), pixels={"front": frames}, joints_rad=np.zeros((rows, 7), np.float32),
        closedness=np.full(rows, 0.5, np.float32), tip=np.zeros((rows, 6), np.float32),
        target_m=np.full((rows, 3), np.nan),
    )  # fmt: skip


def begin(policy, rows: int = 2) -> None:
    """Begin so many episodes, from starts that nobody looks at."""
    policy.reset([EpisodeStart(slot=i, seed=i, number=i, start=None) for i in range(rows)])  # type: ignore[arg-type]


def test_a_function_sees_what_an_env_shows_and_each_instruction() -> None:
    seen = []

    def function(observation: dict, instruction: str) -> list[float]:
        seen.append((observation["pixels"].mean(), observation["agent_pos"].shape, instruction))
        return [0.5] * 7

    policy = FunctionPolicy(function, VELOCITY)
    begin(policy)
    assert policy.act(shown(), ["a", "b"]).shape == (2, 7)
    assert seen == [(0.0, (8,), "a"), (1.0, (8,), "b")]
    together = FunctionPolicy(lambda observation, words: np.ones((len(words), 7)), VELOCITY, batched=True)
    begin(together, 3)
    assert together.act(shown(3), ["a", "b", "c"]).shape == (3, 7)


def test_chunks_are_played_to_the_end_and_asked_for_episode_by_episode() -> None:
    asked = []

    def function(observation: dict, words: list[str]) -> np.ndarray:
        asked.append(words)
        return np.arange(4.0)[None, :, None] * np.ones((len(words), 4, 7))

    policy = FunctionPolicy(function, VELOCITY, batched=True, execute=3)
    begin(policy)
    played = [policy.act(shown(), ["a", "b"])[:, 0].tolist() for _ in range(2)]
    assert played == [[0, 0], [1, 1]]
    policy.reset([EpisodeStart(slot=1, seed=0, number=0, start=None)])  # type: ignore[arg-type]
    assert policy.act(shown(), ["a", "b"])[:, 0].tolist() == [2, 0]
    assert policy.act(shown(), ["a", "b"])[:, 0].tolist() == [0, 1]
    assert asked == [["a", "b"], ["b"], ["a"]]


def test_chunks_that_are_too_short_or_none_are_refused() -> None:
    policy = FunctionPolicy(lambda seen, words: np.zeros((2, 7)), VELOCITY, execute=3)
    begin(policy)
    with pytest.raises(PolicyError, match=r"chunks \(2, n ≥ 3, A\), got \(2, 2, 7\)"):
        policy.act(shown(), ["a", "b"])
    uneven = FunctionPolicy(lambda seen, words: np.zeros(7 if words == "a" else 6), VELOCITY)
    begin(uneven)
    with pytest.raises(PolicyError, match=r"one shape, got \[\(6,\), \(7,\)\]"):
        uneven.act(shown(), ["a", "b"])


def test_chance_follows_from_each_episodes_seed_alone() -> None:
    policy = RandomPolicy(-np.ones(7), np.ones(7), VELOCITY)
    begin(policy)
    both = np.stack([policy.act(shown(), ["a", "b"]) for _ in range(3)], 1)
    policy.reset([EpisodeStart(slot=0, seed=1, number=0, start=None)])  # type: ignore[arg-type]
    alone = np.stack([policy.act(shown(1), ["a"])[0] for _ in range(3)])
    assert np.array_equal(alone, both[1])
    assert not np.array_equal(both[0], both[1])
    assert both.min() >= -1
    assert both.max() <= 1


# --- replays ---


def test_a_replay_plays_what_was_recorded_and_then_stays() -> None:
    rows = np.arange(14, dtype=np.float32).reshape(2, 7)
    policy = ReplayPolicy({0: rows, 1: -rows[:1]}, VELOCITY)
    begin(policy)
    played = [policy.act(shown(), ["a", "b"]) for _ in range(3)]
    assert np.array_equal(played[1][0], rows[1])
    assert np.array_equal(played[0][1], -rows[0])
    assert not played[2].any()
    still = ReplayPolicy({0: rows}, Conventions(action_mode="joint_position"))
    begin(still, 1)
    assert np.array_equal([still.act(shown(1), ["a"])[0] for _ in range(3)][2], rows[1])
    with pytest.raises(PolicyError, match=r"No actions were recorded from start 5\. Known starts: 0"):
        policy.reset([EpisodeStart(slot=0, seed=0, number=5, start=None)])  # type: ignore[arg-type]


def test_a_replay_is_read_from_a_set_and_its_last_row_leads_nowhere(tmp_path) -> None:
    writer = EpisodeWriter(tmp_path)
    actions = np.arange(21, dtype=np.float32).reshape(3, 7)
    info = {"start": 3, "action_mode": "joint_velocity"}
    writer.write(0, Episode(frames={}, columns={"action": actions}, task="push", info=info))
    policy = ReplayPolicy.from_set(tmp_path)
    assert policy.conventions.action_mode == "joint_velocity"
    assert np.array_equal(policy.actions[3], actions[:-1])
    writer.write(1, Episode(frames={}, columns={"action": actions}, task="push"))
    with pytest.raises(PolicyError, match=r"Episode 1 .* must say its 'start'"):
        ReplayPolicy.from_set(tmp_path)


# --- SB3 ---


@pytest.mark.parametrize("obs_type", ["pixels", "pixels_agent_pos"])
def test_an_sb3_model_acts_on_what_it_was_trained_on(obs_type: str, tmp_path) -> None:
    from stable_baselines3 import PPO

    env = gym.make("VAP-DROID-Oracle-v0", obs_type=obs_type)
    kind = "CnnPolicy" if obs_type == "pixels" else "MultiInputPolicy"
    model = PPO(kind, env, n_steps=4, batch_size=4, device="cpu")
    model.save(tmp_path / "model")
    env.close()
    policy = Sb3Policy.load(tmp_path / "model", "ppo", VELOCITY)
    begin(policy)
    seen = shown()
    actions = policy.act(seen, ["a", "b"])
    given = seen.as_env()
    assert np.array_equal(
        actions, model.predict(given["pixels"] if obs_type == "pixels" else given, deterministic=True)[0]
    )
    small = seen.rows([0])
    object.__setattr__(small, "pixels", {"front": np.zeros((1, 48, 72, 3), np.uint8)})
    with pytest.raises(PolicyError, match=r"cannot use what the env shows: .*(observation shape|reshape)"):
        policy.act(small, ["a"])


def test_sb3_models_that_are_missing_or_remember_are_refused(tmp_path) -> None:
    with pytest.raises(PolicyError, match=r"No SB3 model at"):
        Sb3Policy.load(tmp_path / "none", "ppo", VELOCITY)
    with pytest.raises(PolicyError, match=r"recurrent model"):
        Sb3Policy(type("RecurrentPPO", (), {"lstm_actor": None})(), VELOCITY)


# --- LeRobot ---


class LeRobotShaped(torch.nn.Module):
    """As LeRobot's policies are: a queue for a batch, filled from a chunk; the action tells picture and step."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: deque[torch.Tensor] = deque()
        self.asked: list[tuple[int, ...]] = []

    def reset(self) -> None:
        self.queue.clear()

    def predict_action_chunk(self, batch: dict) -> torch.Tensor:
        pictures, state = batch["observation.images.front"], batch["observation.state"]
        assert pictures.shape[1:] == (3, 96, 144)
        assert float(pictures.max()) <= 1
        assert len(batch["task"]) == len(pictures) == len(state)
        self.asked.append(tuple(pictures.shape))
        level = 255 * pictures.amax((1, 2, 3))
        steps = torch.arange(4.0)
        return (level[:, None] + 10 * steps)[..., None].expand(-1, -1, 7)

    def select_action(self, batch: dict) -> torch.Tensor:
        if not self.queue:
            self.queue.extend(self.predict_action_chunk(batch)[:, :2].unbind(1))
        return self.queue.popleft()


@pytest.mark.parametrize("execute", [None, 2])
def test_a_lerobot_policy_acts_alone_or_by_chunks_also_when_an_episode_has_ended(execute: int | None) -> None:
    policy = LeRobotPolicy(LeRobotShaped(), VELOCITY, execute=execute)
    begin(policy, 3)
    seen = shown(3)
    first = [policy.act(seen, ["a", "b", "c"])[:, 0].round(3).tolist() for _ in range(3)]
    assert first == [[0, 1, 2], [10, 11, 12], [0, 1, 2]]
    left = seen.rows([0, 2])  # the middle one has ended
    assert policy.act(left, ["a", "c"])[:, 0].round(3).tolist() == [10, 12]
    assert policy.act(left, ["a", "c"])[:, 0].round(3).tolist() == [0, 2]


def test_a_lerobot_policys_processors_and_names_are_used() -> None:
    keys = []

    def preprocess(batch: dict) -> dict:
        keys.append(sorted(batch))
        return {"observation.images.front": batch["observation.images.top"], **batch}

    policy = LeRobotPolicy(
        LeRobotShaped(), VELOCITY, preprocess=preprocess, postprocess=lambda actions: actions / 2,
        names={"observation.images.front": "observation.images.top"},
    )  # fmt: skip
    begin(policy)
    assert policy.act(shown(), ["a", "b"])[1, 0] == pytest.approx(0.5)
    assert keys == [["observation.images.top", "observation.state", "task"]]


def test_lerobot_policies_without_the_methods_or_with_strangers_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"needs reset\(\) and predict_action_chunk\(batch\), got a Linear"):
        LeRobotPolicy(torch.nn.Linear(1, 1), VELOCITY, execute=2)
    policy = LeRobotPolicy(LeRobotShaped(), VELOCITY)
    begin(policy, 1)
    with pytest.raises(PolicyError, match=r"begin together, got slots \[1\] beside \[0\]"):
        policy.act(shown(2), ["a", "b"])


# --- scripted experts ---


def played(
    policy: ScriptedExpert, start, *, seed: int = 0, steps: int = 60, told: bool = True
) -> tuple[bool, np.ndarray]:
    """Play an expert in the simulator; whether it solved the task, and its actions."""
    env = gym.make("VAP-DROID-Oracle-v0").unwrapped
    _, info = env.reset(seed=seed, options={"start": start})
    policy.reset([EpisodeStart(slot=4, seed=seed, number=0, start=start)])
    scene, actions, solved = start.scene, [], False
    for _ in range(steps):
        seen = shown(1)
        place = env.truth.target_m(scene)[None] if told else np.full((1, 3), np.nan)
        for name, value in (("slots", (4,)), ("target_m", place)):
            object.__setattr__(seen, name, value)
        actions.append(policy.act(seen, ["go"])[0])
        *_, info = env.step(actions[-1])
        solved |= bool(info["is_success"])
    env.close()
    return solved, np.stack(actions)


@pytest.fixture(scope="module")
def reaching():
    """A start whose task is to reach."""
    from vap_gym.starts import StartSet, starts_path

    starts = StartSet(starts_path("VAP-DROID-v0"))
    return starts[starts.of_task("reach")[1]]


def test_an_expert_solves_its_task_and_one_that_sees_it_elsewhere_does_not(reaching) -> None:
    assert played(ScriptedExpert(), reaching)[0]
    assert not played(ScriptedExpert(bias_m=0.15), reaching)[0]


def test_an_experts_noise_follows_from_the_seed_and_settings_survive_pickling(reaching) -> None:
    noisy = ScriptedExpert(noise=0.3)
    _, first = played(noisy, reaching, steps=10)
    _, again = played(pickle.loads(pickle.dumps(noisy)), reaching, steps=10)
    _, other = played(noisy, reaching, seed=1, steps=10)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.abs(first - played(ScriptedExpert(), reaching, steps=10)[1]).max() > 0.05


def test_an_expert_that_is_told_nothing_takes_things_to_stay(reaching) -> None:
    assert played(ScriptedExpert(), reaching, told=False)[0]


def test_experts_that_cannot_be_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"0 or more, got -1"):
        ScriptedExpert(noise=-1.0)
    with pytest.raises(vap_gym.VapError, match=r"No behaviour named 'export'.*'expert'"):
        ScriptedExpert(behaviour="export")
