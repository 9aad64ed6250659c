"""Training agents: a killed run comes to the same agent; clones act from pictures; the command tells what is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vap_gym import cli
from vap_gym.cards import load_env, load_robot
from vap_gym.data import EpisodeWriter
from vap_gym.errors import CheckpointError, VapError
from vap_gym.loading import load_starts
from vap_gym.oracle_env import OracleEnv
from vap_gym.policies import EpisodeStart, Observations, PolicyError
from vap_gym.policies.named import policy_of
from vap_gym.policies.things import ThingsPolicy, read_agent
from vap_gym.rl import RlSettings, clone_agent, train_agent
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.rollout import NominalRobot, record
from vap_gym.sim.scene import Scene
from vap_gym.train.run import Run

ID = "VAP-DROID-v0"
SMALL = RlSettings(task="reach", steps=96, slots=4, round_steps=8, horizon=8, max_spread_m=0.0)  # three rounds


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of experts that reach, without pictures."""
    root = tmp_path_factory.mktemp("experts") / "set"
    robot = load_robot("panda_robotiq")
    writer = EpisodeWriter(root, fps=15, robot_type="panda_robotiq")
    with Scene(robot) as scene:
        for i in range(4):
            spec = draw_scene(i, task="reach")
            writer.write(i, record(scene, NominalRobot(robot), spec, "expert", frames=40, render=False))
    return root


@pytest.fixture(scope="module")
def clone(experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone") / "agent"
    told = clone_agent(experts, "reach", folder, episodes=2, epochs=40)
    assert told["decisions"] > 10
    assert told["off"] < 0.4
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What an agent knows."""
    found: dict[str, torch.Tensor] = read_agent(folder)[1].state_dict()
    return found


def logged(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_a_killed_training_comes_to_the_same_agent(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SMALL, algorithm=algorithm)
    whole = train_agent(settings, tmp_path / "whole", quiet=True)
    save, saves = Run.save, []

    def killed(run: Run, state: dict[str, object]) -> None:
        if len(saves) == 1:
            raise KeyboardInterrupt  # as the second round is over, and before it is kept
        saves.append(state["step"])
        save(run, state)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_agent(settings, tmp_path / "killed", quiet=True)
    assert not (tmp_path / "killed" / "agent.json").exists()
    again = train_agent(settings, tmp_path / "killed", resume=True, quiet=True)
    assert (again["steps"], again["success"]) == (whole["steps"], whole["success"])
    mine, theirs = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    rows = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == [32, 64, 96]
    assert (tmp_path / "whole" / "curves.png").stat().st_size > 1000


def test_a_clone_is_gone_on_with_near_to_it(clone: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, steps=64, hold=2, init=str(clone), kl=0.1, critic_rounds=1)
    train_agent(settings, tmp_path / "run", quiet=True)
    rows = logged(tmp_path / "run")
    assert rows[0]["distance"] == pytest.approx(0.0, abs=1e-6)
    before, after = weights(clone), weights(tmp_path / "run")
    assert not torch.equal(before["value_net.weight"], after["value_net.weight"])
    assert not torch.equal(before["action_net.weight"], after["action_net.weight"])
    only_critic = train_agent(replace(settings, steps=32), tmp_path / "critic", quiet=True)
    assert only_critic["steps"] == 32
    assert torch.equal(before["action_net.weight"], weights(tmp_path / "critic")["action_net.weight"])


def test_tries_while_training_are_imagined_beside_the_simulator_and_change_nothing(tmp_path: Path) -> None:
    settings = replace(SMALL, steps=64, check_every=1, check_starts=2, check_steps=8)
    train_agent(settings, tmp_path / "tried", quiet=True)
    rows = logged(tmp_path / "tried")
    assert len(rows) == 2
    assert all(0.0 <= row[name] <= 1.0 for row in rows for name in ("imagined", "oracle"))
    train_agent(replace(settings, check_every=0), tmp_path / "untried", quiet=True)
    assert not {"imagined", "oracle"} & logged(tmp_path / "untried")[0].keys()
    mine, theirs = weights(tmp_path / "tried"), weights(tmp_path / "untried")
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize("sees", ["pictures", "truth"])
def test_an_agent_acts_in_the_simulator(clone: Path, sees: str) -> None:
    starts = load_starts(ID, None)
    number = starts.of_task("reach")[0]
    env = OracleEnv(ID, task="reach", obs_type="pixels_agent_pos")
    shown, _ = env.reset(options={"start": number})
    policy = policy_of(f"things:{clone},sees={sees}", load_env(ID))
    assert isinstance(policy, ThingsPolicy)
    assert policy.conventions.rate_hz == 7.5
    policy.reset([EpisodeStart(slot=5, seed=1, number=number, start=env.start)])
    tool_m = [env.truth.tool_m]
    assert env.start.scene is not None
    for _ in range(6):
        seen = Observations(
            slots=(5,), pixels={"front": shown["pixels"][None]}, joints_rad=shown["agent_pos"][None, :-1],
            closedness=shown["agent_pos"][None, -1], tip=np.zeros((1, 6)),
            target_m=env.truth.target_m(env.start.scene)[None] if sees == "truth" else np.full((1, 3), np.nan),
        )  # fmt: skip
        action = policy.act(seen, ["reach"])
        assert action.shape == (1, 7)
        for _ in range(policy.about.hold):
            shown, *_ = env.step(action[0])
        tool_m.append(env.truth.tool_m)
    thing_m = env.truth.target_m(env.start.scene)
    far = [float(np.linalg.norm(at - thing_m)) for at in tool_m]
    assert far[-1] < far[0]
    assert np.linalg.norm(policy._playing[5].object_m - thing_m) < 0.04
    env.close()


def test_wrong_inputs_are_told(clone: Path, experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="No agent in"):
        read_agent(tmp_path)
    with pytest.raises(CheckpointError, match="holds an agent already"):
        clone_agent(experts, "reach", clone, episodes=2)
    with pytest.raises(VapError, match=r"an expert solves 'push' are needed, got 0"):
        clone_agent(experts, "push", tmp_path / "none", episodes=1)
    with pytest.raises(VapError, match="must be of PPO or cloned, of 'push'"):
        train_agent(replace(SMALL, task="push", init=str(clone)), tmp_path / "other", quiet=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="must be empty for a new run"):
        train_agent(SMALL, tmp_path / "full", quiet=True)
    SMALL.save(tmp_path / "full" / "settings.json")
    with pytest.raises(CheckpointError, match="other settings: gamma differ"):
        train_agent(replace(SMALL, gamma=0.5), tmp_path / "full", resume=True, quiet=True)
    with pytest.raises(PolicyError, match="can reach, got a start with the task push"):
        starts = load_starts(ID, None)
        push = starts[starts.of_task("push")[0]]
        ThingsPolicy(clone, sees="truth").reset([EpisodeStart(slot=0, seed=0, number=0, start=push)])
    for words, message in [
        (["--algorithm", "pppo"], "No algorithm named 'pppo'. Did you mean 'ppo'?"),
        (["--task", "fetch"], "No task that agents learn named 'fetch'"),
        (["--in", "oracel"], "No world named 'oracel'. Did you mean 'oracle'?"),
        (["--algorithm", "sac", "--kl", "0.1"], "are for PPO, got algorithm='sac'"),
        (["--kl", "0.1"], "needs an agent to stay near to"),
        (["--algorithm", "clone"], "Cloning takes --data"),
        (["--min-trust", "0.5"], "min_trust is of pictures"),
        (["--horizon", "7"], "must be multiples of hold (2), got 7"),
    ]:
        assert cli.main(["train-rl", "--out", str(tmp_path / "cli"), *words]) == 2
        assert message in capsys.readouterr().err
