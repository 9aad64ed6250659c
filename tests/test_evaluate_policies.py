"""Evaluating policies for real: the same trials for all, faults that end one episode, kills that change nothing."""

import base64
import json
import pickle
import re
import threading
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

import vap_gym
from vap_gym.data import EpisodeSet, read_video
from vap_gym.errors import VapError
from vap_gym.evaluate.policies import settings_of
from vap_gym.evaluate.policies_arena import arena_of
from vap_gym.evaluate.policies_keep import PlayBatch
from vap_gym.evaluate.policies_play import play
from vap_gym.evaluate.policies_report import Report
from vap_gym.evaluate.policies_trials import Setting, Trial
from vap_gym.policies import Conventions, FunctionPolicy, PolicyError, ScriptedExpert
from vap_gym.policies.named import named_policies

ORACLE = "VAP-DROID-Oracle-v0"
VELOCITY = Conventions(action_mode="cartesian_velocity")
STEPS = 5
SETTING = Setting(
    card="VAP-DROID-v0", oracle=True, task="reach", steps=STEPS, action_mode="cartesian_velocity", judge=""
)


def still(seen: dict, words: str) -> np.ndarray:
    """A policy that never moves."""
    return np.zeros(7)


class Faulty:
    """Moves a little; does something wrong where an episode begins from start `at`, at its third step."""

    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.at, self.step, self._killed = kind, at, {}, False
        self.wait = threading.Event()

    @property
    def conventions(self) -> Conventions:
        return VELOCITY

    def reset(self, episodes) -> None:
        self.step |= {one.slot: (one.number, 0) for one in episodes}

    def act(self, observations, instructions):
        actions = np.full((len(instructions), 7), 0.05)
        for i, slot in enumerate(observations.slots):
            number, step = self.step[slot]
            self.step[slot] = (number, step + 1)
            if number == self.at and step == 2:
                if self.kind == "raises":
                    raise KeyError("no such thing")
                if self.kind == "kill" and not self._killed:
                    self._killed = True
                    raise KeyboardInterrupt
                if self.kind == "shape":
                    return actions[:, :6]
                if self.kind == "words":
                    return "left"
                if self.kind == "hangs":
                    self.wait.wait(60)
                if self.kind == "nan":
                    actions[i, 3] = np.nan
        return actions


def evaluated(policies, out: Path, **settings) -> Report:
    """Evaluate from the first three starts to reach, in batches of two."""
    given = {"starts": 3, "task": "reach", "steps": STEPS, "batch": 2, "act_timeout_s": None, **settings}
    return vap_gym.evaluate_policies(policies, ORACLE, out=out, **given)


@pytest.fixture(scope="module")
def numbers() -> list[int]:
    """The first three starts to reach."""
    from vap_gym.loading import load_starts

    return list(load_starts("VAP-DROID-v0", None).of_task("reach")[:3])


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Report, Path]:
    """An evaluation of three policies, of which two do the same."""
    out = tmp_path_factory.mktemp("evaluated")
    policies = {"still": FunctionPolicy(still, VELOCITY), "again": FunctionPolicy(still, VELOCITY)}
    policies |= named_policies(["noisy=expert:noise=0.3"], vap_gym.load_env("VAP-DROID-v0"))
    return evaluated(policies, out), out


# --- what comes out ---


def test_every_policy_has_a_verdict_in_every_trial(done, numbers: list[int]) -> None:
    report, out = done
    assert report.policies == ("still", "again", "noisy")
    assert report.starts == numbers
    assert report.world == "oracle"
    assert np.isfinite(report.outcomes()).all()
    assert all(row is not None and row.steps == STEPS for row in report.rows["still"])
    assert Report.load(out) == report


def test_episodes_are_kept_with_frames_actions_trust_and_verdict(done, numbers: list[int]) -> None:
    report, out = done
    kept = EpisodeSet(out / "episodes" / "noisy")
    assert len(kept) == 3
    for i, number in enumerate(numbers):
        episode = kept[i]
        row = report.rows["noisy"][i]
        assert row is not None
        assert episode.frames["front"].shape == (row.steps + 1, 96, 144, 3)
        assert episode.columns["action"].shape == (row.steps + 1, 7)
        assert np.abs(episode.columns["action"][0]).max() > 0
        assert not episode.columns["action"][-1].any()
        assert np.isfinite(episode.columns["trust.adherence_px"]).all()
        assert np.isnan(episode.columns["trust.object_risk"]).all()
        assert (episode.info["start"], episode.info["verdict"]) == (number, row.verdict)
        assert episode.columns["next.progress"].max() == pytest.approx(row.progress, abs=1e-5)


def test_all_policies_meet_the_same_world(done) -> None:
    _, out = done
    sets = {name: EpisodeSet(out / "episodes" / name) for name in ("still", "again", "noisy")}
    for i in range(3):
        assert np.array_equal(sets["still"][i].frames["front"], sets["again"][i].frames["front"])
        assert np.array_equal(sets["still"][i].frames["front"][0], sets["noisy"][i].frames["front"][0])


def test_the_kept_world_seed_begins_the_same_episode_in_an_env(done) -> None:
    import gymnasium as gym

    _, out = done
    kept = EpisodeSet(out / "episodes" / "noisy")[1]
    env = gym.make(ORACLE)
    frame, _ = env.reset(seed=kept.info["world_seed"], options={"start": kept.info["start"]})
    assert np.abs(frame.astype(int) - kept.frames["front"][0]).mean() < 2  # as near as its video is
    progress = []
    for action in kept.columns["action"][:-1]:
        *_, info = env.step(action)
        progress.append(info["progress"])
    env.close()
    assert progress == pytest.approx(kept.columns["next.progress"][1:].tolist(), abs=1e-5)


def test_the_page_is_one_file_whose_clips_play(done, tmp_path) -> None:
    report, out = done
    page = (out / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=['\"](?!data:|#)", page)
    clips = re.findall(r"src='data:video/mp4;base64,([^']+)'", page)
    assert len(clips) == 9
    (tmp_path / "clip.mp4").write_bytes(base64.b64decode(clips[0]))
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        coded = clip.streams.video[0].codec_context
        assert (coded.name, coded.pix_fmt) == ("h264", "yuv420p")  # what browsers play
    assert read_video(tmp_path / "clip.mp4").shape == (STEPS + 1, 96, 144, 3)
    captions = re.findall(r"<figcaption class=(\w+)>", page)
    assert captions == sorted(captions, key=["fault", "failure", "unknown", "success"].index)
    for name in report.policies:
        assert page.count(f"id='{name}-") == 3
    shown = re.findall(r"id='([^']+)'", page)
    assert sorted(shown) == sorted(set(shown)) == sorted(re.findall(r"href='#([^']+)'", page))
    assert "Success is told by the simulator itself" in page
    assert "Wilson" in page


# --- going on ---


def test_a_killed_run_goes_on_to_the_same_report(numbers: list[int], tmp_path) -> None:
    """Killed in the second batch of the second policy."""
    policies = {"still": FunctionPolicy(still, VELOCITY), "moves": Faulty("kill", numbers[2])}
    with pytest.raises(KeyboardInterrupt):
        evaluated(policies, tmp_path / "killed")
    assert not (tmp_path / "killed" / "report.json").exists()
    assert len(EpisodeSet(tmp_path / "killed" / "episodes" / "moves")) == 2
    evaluated(policies, tmp_path / "killed")
    evaluated(policies, tmp_path / "whole")
    for name in ("report.json", "report.html", "manifest.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_is_kept_is_not_played_again_and_a_copy_of_the_job_gives_the_same(tmp_path, numbers: list[int]) -> None:
    trials = tuple(Trial(start=number, seed=0) for number in numbers[:2])
    policies = {"expert": ScriptedExpert(noise=0.2)}

    def job(out: Path) -> PlayBatch:
        return PlayBatch(policies=policies, settings={"expert": SETTING}, trials=trials, out=out, act_timeout_s=None)

    first = job(tmp_path / "a")(("expert", [0, 1]))
    copied = pickle.loads(pickle.dumps(job(tmp_path / "b")))
    assert copied(("expert", [0, 1])) == first
    broken = replace(job(tmp_path / "a"), policies={"expert": Faulty("raises", numbers[0])})
    assert broken(("expert", [0, 1])) == first


def test_another_policy_or_other_trials_are_not_mixed_in(done) -> None:
    _, out = done
    other = named_policies(["noisy=expert:noise=0.1"], vap_gym.load_env("VAP-DROID-v0"))
    with pytest.raises(VapError, match=r"another policy named 'noisy': it differs in noise"):
        evaluated(other, out)
    with pytest.raises(VapError, match=r"is of a run with other settings.*steps"):
        evaluated({"still": FunctionPolicy(still, VELOCITY)}, out, steps=STEPS + 1)


def test_an_episode_that_cannot_be_written_is_played_when_it_can(tmp_path) -> None:
    (tmp_path / "episodes").mkdir()
    (tmp_path / "episodes" / "still").write_text("in the way")
    policies = {"still": FunctionPolicy(still, VELOCITY)}
    report = evaluated(policies, tmp_path, starts=1)
    assert report.rows["still"] == (None,)
    assert report.lost["still"]
    assert "were not played:" in (tmp_path / "report.html").read_text()
    (tmp_path / "episodes" / "still").unlink()
    found = evaluated(policies, tmp_path, starts=1)
    assert found.lost == {}
    assert found.rows["still"][0] is not None


# --- faults ---


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("raises", "KeyError: 'no such thing'"),
        ("nan", r"NaN or infinity in entries \[3\]"),
        ("shape", r"actions of shape \(1, 7\), got \(1, 6\)"),
        ("words", "must return numbers|could not convert"),
        ("hangs", "did not return within"),
    ],
)
def test_a_fault_ends_its_own_episode_and_no_other(kind: str, told: str, numbers: list[int]) -> None:
    policy = Faulty(kind, numbers[1])
    timeout_s = 3.0 if kind == "hangs" else None
    trials = [Trial(start=number, seed=0) for number in numbers]
    played = play(policy, arena_of(SETTING), trials, steps=STEPS, act_timeout_s=timeout_s)
    policy.wait.set()
    assert [one.fault is None for one in played] == [True, False, True]
    assert re.search(told, str(played[1].fault))
    assert played[1].verdict == "failure"
    assert len(played[1].actions) == 2
    assert [len(one.actions) for one in played[::2]] == [STEPS, STEPS]
    assert all(np.allclose(action, 0.05) for one in played for action in one.actions)


def test_a_policy_that_does_not_fit_is_refused_before_anything_is_played(tmp_path) -> None:
    for conventions, told in (
        (Conventions(action_mode="joint_velocity"), r"'p' gives 'joint_velocity', got an env that takes"),
        (replace(VELOCITY, frame_size_px=(224, 224)), r"its frames are \(224, 224\) px"),
        (replace(VELOCITY, rate_hz=5.0), r"it acts at 5 Hz, the env at 15 Hz"),
        (replace(VELOCITY, gripper="opening"), r"its gripper means 'opening'"),
        (replace(VELOCITY, views=("front", "wrist")), r"it looks through wrist"),
    ):
        with pytest.raises(PolicyError, match=told):
            evaluated({"p": FunctionPolicy(still, conventions)}, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    converted = FunctionPolicy(still, Conventions(action_mode="joint_velocity", convert=("action_mode",)))
    assert settings_of({"p": converted}, SETTING)["p"].action_mode == "joint_velocity"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"starts": 0}, r"got starts=0\. Ask for fewer"),
        ({"starts": 1000}, r"has 32 starts of the task 'reach', got starts=1000"),
        ({"starts": [1, 1]}, r"starts must be one or more different numbers"),
        ({"seeds": []}, r"seeds must be one or more"),
        ({"steps": 0}, r"steps must be at least 1, got 0"),
        ({"batch": 0}, r"batch must be at least 1"),
        ({"task": "fly"}, r"No start with the task 'fly'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, told: str, tmp_path) -> None:
    with pytest.raises(VapError, match=told):
        evaluated({"p": FunctionPolicy(still, VELOCITY)}, tmp_path, **settings)


def test_envs_of_others_and_bad_names_are_refused(tmp_path) -> None:
    policy = FunctionPolicy(still, VELOCITY)
    with pytest.raises(VapError, match=r"in envs of vap-gym, got 'CartPole-v1'"):
        vap_gym.evaluate_policies({"p": policy}, "CartPole-v1", out=tmp_path)
    with pytest.raises(VapError, match=r"name must be letters.*got '\.\./p'"):
        evaluated({"../p": policy}, tmp_path)
    with pytest.raises(VapError, match=r"at least one policy, got none"):
        evaluated({}, tmp_path)


# --- imagination ---


def test_policies_are_imagined_in_one_batch_with_the_envs_own_noise(numbers: list[int], tmp_path) -> None:
    import gymnasium as gym

    policies = named_policies(["expert", "random"], vap_gym.load_env("VAP-DROID-v0"))
    report = vap_gym.evaluate_policies(
        policies, "VAP-DROID-v0", out=tmp_path, starts=numbers[:2], task="reach", steps=3, clips=1
    )
    assert report.world == "imagination"
    assert np.isfinite(report.outcomes()).all()
    assert all(row is not None and row.adherence_px is not None for row in report.rows["random"])
    kept = EpisodeSet(tmp_path / "episodes" / "random")[1]
    assert np.isfinite(kept.columns["trust.adherence_px"][1:]).all()
    env = gym.make("VAP-DROID-v0")
    env.reset(seed=kept.info["world_seed"], options={"start": kept.info["start"]})
    for action in kept.columns["action"][:-1]:
        frame, *_ = env.step(action)
    assert np.abs(frame.astype(int) - kept.frames["front"][-1]).mean() < 2  # its video, and another batch's rounding


# --- the command ---


def test_the_command_evaluates_named_policies(tmp_path, capsys) -> None:
    from vap_gym.cli import main

    words = [
        "evaluate",
        "noop",
        "dice=random",
        "--env",
        ORACLE,
        "--out",
        str(tmp_path),
        "--starts",
        "1",
        "--steps",
        "2",
    ]
    assert main(words) == 0
    assert "| dice " in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["rows"]) == {"noop", "dice"}
    for text, told in (
        ("expart", "Did you mean 'expert'?"),
        ("expert:nose=1", "Did you mean 'noise'?"),
        ("expert:noise=x", "must be a number, got 'x'"),
        ("sb3:model.zip", "Add ,algorithm=ppo"),
        ("python:nowhere:policy", "No policy at 'python:nowhere:policy'"),
        ("python:math:pi", "must be a Policy or make one, got a float"),
    ):
        assert main(["evaluate", text, "--env", ORACLE, "--out", str(tmp_path / "no")]) == 2
        assert told in capsys.readouterr().err
