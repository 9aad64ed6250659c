"""Policies that plan: they solve what can be solved, keep to their limits, and fit where policies are used."""

import gc
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vap_gym.assets import envs_dir
from vap_gym.cards import load_env
from vap_gym.cli import main as vap_gym
from vap_gym.env import VapEnv
from vap_gym.errors import UnknownNameError, VapError
from vap_gym.evaluate.policies_claims import claim
from vap_gym.loading import build_stage, load_starts
from vap_gym.oracle_env import OracleEnv
from vap_gym.plan.episode import play_episode
from vap_gym.plan.fan import fan_movie, fan_sheet, imagined_fan
from vap_gym.plan.icem import Icem
from vap_gym.plan.oracle import OracleForesight
from vap_gym.plan.outlook import ImaginedOutlook, OracleOutlook
from vap_gym.plan.planned import PlannedPolicy, PlanSettings, card_of
from vap_gym.plan.planner import Bounds
from vap_gym.plan.policy import Driver, Horizon, MpcPolicy, StraightLine, by_task, start_of, task_bounds
from vap_gym.policies.named import policy_of
from vap_gym.policies.protocol import EpisodeStart, Observations, Policy
from vap_gym.stage import Stage

ID = "VAP-DROID-v0"
QUICK = Icem(candidates=32, iterations=3, elites=5)
SHORT = Horizon(actions=4, hold=4, execute=8, most_plans=8, budget_s=None)


@pytest.fixture(scope="module")
def stage() -> Stage:
    return build_stage(ID)


@pytest.fixture(scope="module")
def oracle() -> OracleEnv:
    return OracleEnv(ID)


def number(task: str, i: int = 0) -> int:
    return load_starts(ID, None).of_task(task)[i]


def planning(stage: Stage, **limits: Any) -> MpcPolicy:
    horizon = Horizon(**{**vars(SHORT), **limits})
    return MpcPolicy(ImaginedOutlook(stage), QUICK, by_task(Bounds.of(stage.action_space)), horizon=horizon)


def test_reaching_planned_in_imagination_is_solved_in_the_simulator(stage: Stage, oracle: OracleEnv) -> None:
    policy = planning(stage)
    played = play_episode(oracle, policy, options={"start": number("reach")}, steps=60)
    assert played.success
    assert 1 <= len(policy.plans) <= 8
    assert played.frames.shape == (len(played.actions) + 1, 96, 144, 3)
    assert all(action.shape == (7,) and action.dtype == np.float32 for action in played.actions)


def test_it_plans_when_its_share_is_done_and_no_more_often_than_it_may(stage: Stage) -> None:
    env = VapEnv(ID, judge=None)
    policy = planning(stage, most_plans=2)
    _, _ = env.reset(seed=0, options={"start": number("push")})
    policy.begin(start_of(env))
    counts, actions = [], []
    for _ in range(28):
        actions.append(policy(env.state["frame"][0].numpy()))
        counts.append(len(policy.plans))
    assert counts == [1] * 8 + [2] * 20
    assert np.array_equal(actions[0], actions[3])  # held
    assert all((action[:6] == 0).all() for action in actions[24:])  # the last plan's 16 steps are over
    assert float(policy.plans[1].score) >= float(policy.plans[1].scores[0])


def test_the_same_seed_drives_the_same_way(stage: Stage) -> None:
    env = VapEnv(ID)
    one, again = (
        play_episode(env, planning(stage), seed=3, options={"start": number("push")}, steps=3) for _ in (0, 1)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one.actions, again.actions, strict=True))
    assert np.array_equal(one.frames, again.frames)


def test_the_simulators_copy_keeps_in_step_with_the_episode(stage: Stage, oracle: OracleEnv) -> None:
    foresight = OracleForesight(stage.rig.robot, "cartesian_velocity", every=4)
    policy = MpcPolicy(
        OracleOutlook(foresight), Icem(candidates=4, iterations=1, elites=2), Bounds.of(stage.action_space),
        horizon=Horizon(actions=1, hold=4, execute=4, most_plans=3, budget_s=None),
    )  # fmt: skip
    play_episode(oracle, policy, options={"start": number("push")}, steps=9)
    told = foresight(torch.zeros(1, 1, 7)).tool_m[0, 0]
    oracle.step(np.zeros(7, np.float32))
    assert np.allclose(told.numpy(), oracle.truth.tool_m, atol=1e-4)


def test_what_the_pictures_hide_is_where_it_was_foretold(stage: Stage) -> None:
    env = VapEnv(ID)
    env.reset(seed=0, options={"start": number("push")})
    outlook, start = ImaginedOutlook(stage), start_of(env)
    outlook.begin(start, 0)
    assert start.scene is not None
    before = outlook.objects_m.clone()
    for _ in range(3):
        outlook.act(np.zeros(7, np.float32))
    things = outlook.state["world_thing_there"].sum()
    outlook.see(np.full_like(start.frame, 128))  # nothing is to be seen
    target = start.scene.target
    assert float((outlook.objects_m - before)[0, target].norm()) < 0.02
    assert int(outlook.state["world_thing_there"].sum()) >= 1 <= int(things)
    assert int(outlook.state["step"][0]) == 3


def test_a_straight_line_goes_to_the_object(stage: Stage, oracle: OracleEnv) -> None:
    line = StraightLine(ImaginedOutlook(stage))
    played = play_episode(oracle, line, options={"start": number("reach", 1)}, steps=30)
    assert played.progress[-1] > 0.8
    lift = load_starts(ID, None)[number("lift")]
    with pytest.raises(VapError, match="can reach and push, got the task lift"):
        line.begin(lift)


def test_starts_of_running_envs_begin_there(stage: Stage) -> None:
    env = VapEnv(ID)
    env.reset(seed=5)
    env.step(np.full(7, 0.5, np.float32))
    start = start_of(env)
    assert np.array_equal(start.frame, env.state["frame"][0].numpy())
    assert np.allclose(start.q_rad, env.state["robot_q"][0].numpy())
    assert start.scene is not None
    with pytest.raises(VapError, match="takes a VapEnv or an OracleEnv, got int"):
        start_of(type("Env", (), {"unwrapped": 3})())


def test_bounds_of_tasks(stage: Stage) -> None:
    space = Bounds.of(stage.action_space)
    push, lift = task_bounds(space, "push"), task_bounds(space, "lift")
    assert push.half.tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert float(push.low[-1]) == 1.0
    assert lift.half.tolist() == [1, 1, 1, 0, 0, 0, 1]
    assert task_bounds(space, "tidy up").half.tolist() == [1, 1, 1, 0, 0, 0, 1]


def test_a_fan_shows_candidates_from_best_to_worst(stage: Stage) -> None:
    env = VapEnv(ID)
    env.reset(seed=0, options={"start": number("push")})
    policy = planning(stage)
    policy.begin(start_of(env))
    policy(env.state["frame"][0].numpy())
    state = stage.begin([start_of(env)], [0])
    fan = imagined_fan(stage, state, policy.plans[0], hold=2, count=3)
    assert fan.frames.shape == (3, 9, 96, 144, 3)
    assert fan.shown[0] == 0
    assert fan.shown[-1] == len(policy.plans[0].scores) - 1
    assert (np.diff(fan.scores) <= 0).all()
    assert fan.scores[0] == float(policy.plans[0].scores.max())
    assert all(np.array_equal(frames[0], fan.frames[0, 0]) for frames in fan.frames)
    picture, movie = fan_sheet(fan, title="futures"), fan_movie(fan)
    assert picture.ndim == 3
    assert len(movie) == 9


def test_planned_policies_are_policies_and_keep_episodes_apart() -> None:
    policy = PlannedPolicy(PlanSettings(candidates=16, iterations=1, horizon=SHORT))
    assert isinstance(policy, Policy)
    assert isinstance(policy.settings.make(), Driver)
    assert policy.conventions.action_mode == "cartesian_velocity"
    starts = [load_starts(ID, None)[number("reach", i)] for i in range(2)]
    episodes = [EpisodeStart(slot=4 + i, seed=i, number=i, start=start) for i, start in enumerate(starts)]

    def seen(rows: list[int]) -> Observations:
        return Observations(
            slots=tuple(4 + i for i in rows), pixels={"front": np.stack([starts[i].frame for i in rows])},
            joints_rad=np.stack([starts[i].q_rad for i in rows]), closedness=np.zeros(len(rows)),
            tip=np.zeros((len(rows), 6)), target_m=np.full((len(rows), 3), np.nan),
        )  # fmt: skip

    policy.reset(episodes)
    together = policy.act(seen([0, 1]), ["", ""])
    assert together.shape == (2, 7)
    again = pickle.loads(pickle.dumps(policy))
    again.reset(episodes[1:])
    assert np.array_equal(again.act(seen([1]), [""])[0], together[1])


def test_a_simulator_is_made_for_each_slot_once_and_left_in_the_end() -> None:
    bullet = pytest.importorskip("pybullet")

    def clients() -> int:
        return sum(bool(bullet.isConnected(i)) for i in range(64))

    start = load_starts(ID, None)[number("reach")]
    episodes = [EpisodeStart(slot=slot, seed=0, number=0, start=start) for slot in range(2)]
    policy = PlannedPolicy(PlanSettings(dynamics="oracle", candidates=2, iterations=1, horizon=SHORT))
    gc.collect()  # what other tests have dropped
    before = clients()
    for _ in range(3):
        policy.reset(episodes)
    assert clients() == before + 2
    for _ in range(2):
        policy.close()
    assert clients() == before
    policy.reset(episodes[:1])
    assert clients() == before + 1
    again = pickle.loads(pickle.dumps(policy))  # as it is sent to a worker
    again.reset(episodes)
    assert clients() == before + 3
    del again
    gc.collect()
    assert clients() == before + 1  # nobody closed it
    policy.close()


def test_mistakes_are_told() -> None:
    with pytest.raises(UnknownNameError, match="No planner named 'cme'. Did you mean 'cem'"):
        PlanSettings(planner="cme")
    with pytest.raises(VapError, match="multiple of hold"):
        Horizon(hold=4, execute=10)
    with pytest.raises(VapError, match="Call begin"):
        planning(build_stage(ID))(np.zeros((96, 144, 3), np.uint8))
    with pytest.raises(VapError, match="needs a judge"):
        ImaginedOutlook(build_stage(ID, judge=None))
    assert card_of("VAP-DROID-Oracle-v0") == ID


def test_the_command_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--task", "reach", "--execute", "imagination", "--candidates", "16", "--iterations", "2"]
    words += ["--actions", "2", "--steps", "6", "--steps-per-plan", "4", "--budget-s", "0", "--out", str(tmp_path)]
    assert vap_gym([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["dynamics"] == result["executed_in"] == "imagination"
    assert len(result["plans"]) == (1 if result["steps"] <= 4 else 2)
    assert all(Path(path).stat().st_size > 1000 for path in result["written"])
    assert json.loads((tmp_path / "plan.json").read_text()) == result
    assert vap_gym(["plan", "--execute", "moon"]) == 2
    assert "No place to carry a plan out named 'moon'" in capsys.readouterr().err


def test_a_goal_picture_is_planned_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The picture of an episode's own beginning: to stay is the best that can be done, and the planner finds it."""
    start = load_starts(ID, None)[number("reach")]
    here = tmp_path / "here.png"
    Image.fromarray(start.frame).save(here)
    words = f"plan --task reach --execute imagination --start {number('reach')} --candidates 6 --iterations 1".split()
    words += ["--actions", "1", "--steps-per-plan", "4", "--steps", "1", "--budget-s", "0", "--json"]
    words += ["--out", str(tmp_path / "out")]
    assert vap_gym([*words, "--goal", str(here)]) == 0
    near = json.loads(capsys.readouterr().out)["plans"][0]["score"]
    Image.fromarray(255 - start.frame).save(tmp_path / "far.png")
    assert vap_gym([*words, "--goal", str(tmp_path / "far.png")]) == 0
    assert json.loads(capsys.readouterr().out)["plans"][0]["score"] < 4 * near < 0
    Image.fromarray(start.frame[:50]).save(tmp_path / "small.png")
    for goal, more, told in [
        ("small.png", [], "must be 144 × 96 px, as the world model's frames are, got"),
        ("none.png", [], "none.png' must be a goal picture"),
        ("here.png", ["--foresight", "things"], "takes dynamics='imagination' and foresight='latents', got"),
        ("here.png", ["--dynamics", "oracle"], "got 'oracle' and 'latents'"),
    ]:
        assert vap_gym([*words, "--goal", str(tmp_path / goal), *more]) == 2
        assert told in capsys.readouterr().err
    policy = policy_of(f"mpc:goal={here}", load_env(ID))
    assert isinstance(policy, PlannedPolicy)
    assert policy.settings.foresight == "latents"
    claim(tmp_path, "p", policy)
    Image.fromarray(255 - start.frame).save(here)
    with pytest.raises(VapError, match=r"none\.png' must be a goal picture"):
        policy_of(f"mpc:goal={tmp_path / 'none.png'}", load_env(ID))
    with pytest.raises(VapError, match=r"it differs in goal\."):
        claim(tmp_path, "p", policy_of(f"mpc:goal={here}", load_env(ID)))


def test_a_planner_of_a_card_of_ones_own_plans_for_that_card(tmp_path: Path) -> None:
    text = (envs_dir() / f"{ID}.toml").read_text().replace(f'"{ID}"', '"Shelf-v0"')
    path = tmp_path / "Shelf-v0.toml"
    path.write_text(text)
    own = load_env(path)
    policy = policy_of("mpc:candidates=8", own)
    assert isinstance(policy, PlannedPolicy)
    assert (own.source, load_env(ID).source) == (str(path.resolve()), ID)
    assert load_env(policy.settings.card) == own
