"""Checkpoints for other envs: what their own spaces and configs tell is refused before anything is played."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import vap_gym
from vap_gym.evaluate.policies_claims import claim
from vap_gym.plan.planned import PlannedPolicy
from vap_gym.policies import (
    Conventions,
    LeRobotPolicy,
    PolicyError,
    RandomPolicy,
    ReplayPolicy,
    Sb3Policy,
    Site,
    fitted,
)
from vap_gym.policies.named import named_policies

VELOCITY = Conventions(action_mode="cartesian_velocity")
DROID = Site(
    action_mode="cartesian_velocity", action_size=7, state_size=8, rate_hz=15.0, frame_size_px=(144, 96),
    views=("front",), gripper_step=0.25,
)  # fmt: skip


class Other(gym.Env):
    """An env with spaces of any sizes, to make models for."""

    def __init__(self, action: int = 7, state: int = 8, frame_hw: tuple[int, int] = (96, 144)) -> None:
        pixels = gym.spaces.Box(0, 255, (*frame_hw, 3), np.uint8)
        agent_pos = gym.spaces.Box(-1, 1, (state,), np.float32)
        self.observation_space = gym.spaces.Dict({"pixels": pixels, "agent_pos": agent_pos})
        self.action_space = gym.spaces.Box(-1, 1, (action,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return self.observation_space.sample(), 0.0, False, True, {}


def saved(path: Path, **sizes: Any) -> Path:
    """Save an SB3 model of the smallest kind for such an env."""
    from stable_baselines3 import A2C

    small = {"features_extractor_kwargs": {"cnn_output_dim": 4}, "net_arch": []}
    A2C("MultiInputPolicy", Other(**sizes), policy_kwargs=small, device="cpu").save(path)
    return path


def test_sb3_models_tell_their_own_sizes(tmp_path: Path) -> None:
    policy = Sb3Policy.load(saved(tmp_path / "model.zip"), "a2c", VELOCITY)
    told = policy.conventions
    assert (told.action_size, told.state_size, told.frame_size_px) == (7, 8, (144, 96))
    assert fitted(policy, DROID, "p") is policy
    with pytest.raises(PolicyError, match=r"got frame_size_px=\(224, 224\) for a model of \(144, 96\)"):
        Sb3Policy.load(tmp_path / "model.zip", "a2c", replace(VELOCITY, frame_size_px=(224, 224)))


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"action": 6}, r"its actions have 6 numbers, the env's 7"),
        ({"state": 7}, r"its state has 7 numbers, the env's 8"),
        ({"frame_hw": (64, 64)}, r"its frames are \(64, 64\) px, the env's \(144, 96\)"),
    ],
)
def test_an_sb3_checkpoint_for_other_spaces_is_refused_before_anything_is_played(
    sizes: dict, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vap_gym.cli import main

    path = saved(tmp_path / "model.zip", **sizes)
    words = ["evaluate", f"mine=sb3:{path},algorithm=a2c", "random", "--starts", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    with pytest.raises(PolicyError, match=told):
        fitted(Sb3Policy.load(path, "a2c", VELOCITY), DROID, "mine")
    assert told.replace("\\", "") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sb3_models_that_choose_among_a_few_or_are_damaged_are_refused(tmp_path: Path) -> None:
    spaces = SimpleNamespace(observation_space=Other().observation_space, action_space=gym.spaces.Discrete(4))
    with pytest.raises(PolicyError, match=r"actions \(A,\) of real numbers, got one with the space Discrete\(4\)"):
        Sb3Policy(spaces, VELOCITY)
    path = saved(tmp_path / "model.zip")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(PolicyError, match=r"model\.zip' cannot be read as a model of 'a2c'"):
        Sb3Policy.load(path, "a2c", VELOCITY)


def test_a_model_that_was_trained_on_is_another_policy(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.zip")
    first = Sb3Policy.load(path, "a2c", VELOCITY)
    claim(tmp_path, "mine", first)
    claim(tmp_path, "mine", Sb3Policy.load(tmp_path / "model", "a2c", VELOCITY))
    saved(path)
    with pytest.raises(vap_gym.VapError, match=r"another policy named 'mine': it differs in weights"):
        claim(tmp_path, "mine", Sb3Policy.load(path, "a2c", VELOCITY))


# --- LeRobot ---


class Configured(torch.nn.Module):
    """As LeRobot's policies are, with a config that tells of features."""

    def __init__(self, action: int = 7, state: int = 8, picture: str = "front") -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        pictures = {f"observation.images.{picture}": SimpleNamespace(shape=(3, 96, 144))}
        self.config = SimpleNamespace(
            input_features={"observation.state": SimpleNamespace(shape=(state,)), **pictures},
            output_features={"action": SimpleNamespace(shape=(action,))},
        )

    def reset(self) -> None:
        """Nothing is remembered."""

    def select_action(self, batch: dict) -> torch.Tensor:
        return torch.zeros(len(batch["task"]), 7)


def test_a_lerobot_checkpoint_for_other_spaces_is_refused() -> None:
    assert fitted(LeRobotPolicy(Configured(), VELOCITY), DROID, "p").conventions.action_size == 7
    with pytest.raises(PolicyError, match=r"its actions have 14 numbers.*its state has 14 numbers"):
        fitted(LeRobotPolicy(Configured(14, 14), VELOCITY), DROID, "aloha")
    own = replace(VELOCITY, action_size=7, state_size=8)  # processors of one's own may change the sizes
    assert fitted(LeRobotPolicy(Configured(14, 14), own), DROID, "p").conventions == own
    with pytest.raises(PolicyError, match=r"got observation.images.front for observation.images.top"):
        LeRobotPolicy(Configured(picture="top"), VELOCITY)
    LeRobotPolicy(Configured(picture="top"), VELOCITY, names={"observation.images.front": "observation.images.top"})


def test_lerobot_policies_are_told_apart_by_their_weights() -> None:
    torch.manual_seed(0)
    first, second = Configured(), Configured()
    assert LeRobotPolicy(first, VELOCITY).weights == LeRobotPolicy(first, VELOCITY).weights
    assert LeRobotPolicy(first, VELOCITY).weights != LeRobotPolicy(second, VELOCITY).weights


MINE = '''
import torch

from vap_gym.policies import Conventions, LeRobotPolicy


class Chunks(torch.nn.Module):
    """Of the shape of LeRobot's policies: reset and predict_action_chunk."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 7)

    def reset(self):
        pass

    def predict_action_chunk(self, batch):
        assert batch["observation.images.front"].shape[1:] == (3, 96, 144)
        return self.layer(batch["observation.state"])[:, None].repeat(1, 4, 1)


def small():
    torch.manual_seed(0)
    return LeRobotPolicy(Chunks(), Conventions(action_mode="cartesian_velocity"), execute=2)
'''


def test_a_lerobot_policy_is_named_by_the_function_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vap_gym_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    policies = named_policies(["mine=python:vap_gym_mine:small"], vap_gym.load_env("VAP-DROID-v0"))
    assert isinstance(policies["mine"], LeRobotPolicy)
    report = vap_gym.evaluate(
        policies, "VAP-DROID-Oracle-v0", 1, out=tmp_path / "out", task="reach", steps=2, act_timeout_s=None, clips=0
    )
    assert [(row.fault, row.steps) for row in report.rows["mine"] if row] == [(None, 2)]


# --- plain functions ---


def test_a_plain_function_is_a_policy_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vap_gym_plain.py").write_text(
        "import numpy as np\n\n\ndef still(observation, instruction):\n"
        "    assert observation['pixels'].shape == (96, 144, 3)\n    assert isinstance(instruction, str)\n"
        "    return np.zeros(7)\n\n\ndef three(a, b, c):\n    return a\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    card = vap_gym.load_env("VAP-DROID-v0")
    policies = named_policies(["still=python:vap_gym_plain:still"], card)
    report = vap_gym.evaluate(
        policies, "VAP-DROID-Oracle-v0", 1, out=tmp_path / "out", task="reach", steps=2, act_timeout_s=None, clips=0
    )
    assert [(row.fault, row.steps) for row in report.rows["still"] if row] == [(None, 2)]
    with pytest.raises(PolicyError, match=r"'python:vap_gym_plain:three' needs a, b, c, which nobody gives it"):
        named_policies(["python:vap_gym_plain:three"], card)


# --- others ---


def test_recordings_and_chance_of_another_action_space_are_refused() -> None:
    for policy in (ReplayPolicy({0: np.zeros((3, 6))}, VELOCITY), RandomPolicy(-np.ones(6), np.ones(6), VELOCITY)):
        with pytest.raises(PolicyError, match=r"its actions have 6 numbers, the env's 7"):
            fitted(policy, DROID, "p")
    with pytest.raises(PolicyError, match=r"state_size must be at least 1, or None for what the env has, got 0"):
        replace(VELOCITY, state_size=0)


def test_the_planner_itself_is_a_policy_by_name(tmp_path: Path) -> None:
    policies = named_policies(
        ["mpc:dynamics=none", "plans=mpc:candidates=8,iterations=1,actions=2,execute=4,most_plans=1"],
        vap_gym.load_env("VAP-DROID-v0"),
    )
    planner = policies["plans"]
    assert isinstance(planner, PlannedPolicy)
    assert planner.settings.candidates == 8
    assert (planner.settings.horizon.execute, planner.settings.horizon.budget_s) == (4, None)
    report = vap_gym.evaluate(
        policies, "VAP-DROID-Oracle-v0", 1, out=tmp_path, task="reach", steps=3, act_timeout_s=None, clips=0
    )
    assert [row.fault for rows in report.rows.values() for row in rows if row] == [None, None]
    assert all(row.progress > 0 for rows in report.rows.values() for row in rows if row)
    with pytest.raises(vap_gym.VapError, match=r"No setting of 'mpc' named 'candidate'\. Did you mean 'candidates'"):
        named_policies(["mpc:candidate=8"], vap_gym.load_env("VAP-DROID-v0"))
