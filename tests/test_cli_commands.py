"""What is the same of every command: an example in its help that it understands, and --json; `list` and `rollout`."""

import functools
import importlib
import inspect
import json
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import vap_gym  # noqa: F401 (registers the ids)
from vap_gym import cli
from vap_gym.cards import known_envs, known_robots
from vap_gym.commands import rollout
from vap_gym.commands.telling import json_text
from vap_gym.data import Episode, EpisodeSet, EpisodeWriter
from vap_gym.data.video import read_video

ENV, ORACLE = "VAP-DROID-v0", "VAP-DROID-Oracle-v0"
has_pybullet = pytest.mark.skipif(find_spec("pybullet") is None, reason="pybullet is not installed")
Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_command_shows_an_example_that_it_understands_and_prints_one_json_value(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    command = cli.COMMANDS[name]
    with pytest.raises(SystemExit) as stop:
        cli.main([*name.split(), "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"    vap-gym {name} {command.example}".rstrip() in shown.splitlines()
    assert "--json" in shown
    module = importlib.import_module(command.module)
    function, calls = getattr(module, command.function), []

    @functools.wraps(function)
    def noted(*given: Any, **named: Any) -> dict[str, Any]:
        """Instead of what the command does: what it would do it with."""
        calls.append(dict(inspect.signature(function).bind(*given, **named).arguments))
        print("words to read")
        return calls[0]

    monkeypatch.setattr(module, command.function, noted)
    assert cli.main([*name.split(), *shlex.split(command.example), "--json"]) == 0
    assert len(calls) == 1
    if "json" in inspect.signature(function).parameters:  # it prints JSON itself
        assert calls[0]["json"] is True
        return
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json.loads(json_text(calls[0]))
    assert "words to read" in shown.err


def test_help_says_the_exit_codes(capsys: Captured) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    for code, meaning in ((0, "done"), (1, "broken or failed"), (2, "mistake"), (130, "stopped")):
        assert any(f"{code} " in line and meaning in line for line in shown.replace(";", "\n").splitlines()), code


def test_json_is_strict() -> None:
    told = {"path": Path("out/a.mp4"), "nan": float("nan"), "many": (1, np.float64(0.5), np.inf), 3: [None, True]}
    assert json.loads(json_text(told)) == {
        "path": "out/a.mp4", "nan": None, "many": [1, 0.5, None], "3": [None, True],
    }  # fmt: skip
    with pytest.raises(TypeError):
        json_text({"array": np.zeros(2)})


def printed(words: list[str], capsys: Captured, code: int = 0) -> Any:
    """What a command prints with --json, the only thing on stdout."""
    capsys.readouterr()
    try:
        left = cli.main([*words, "--json"])
    except SystemExit as stop:
        left = int(stop.code or 0)
    shown = capsys.readouterr()
    assert left == code, shown.err
    return json.loads(shown.out)


def test_list_names_robots_envs_tasks_oracles_and_models(capsys: Captured) -> None:
    told = printed(["list"], capsys)
    assert [robot["name"] for robot in told["robots"]] == list(known_robots())
    envs = {env["id"]: env for env in told["envs"]}
    assert list(envs) == list(known_envs())
    assert all(env["oracle"] in gym.registry for env in envs.values())
    assert {"open_drawer", "knock_over"} <= set(envs["VAP-RT1-v0"]["tasks"])
    assert envs[ENV]["tasks"] == ["lift", "push", "reach"]
    assert (envs["VAP-Bridge-v0"]["fps"], envs["VAP-Bridge-v0"]["views"]) == (5.0, ["second", "wrist"])
    tiny = next(model for model in told["world_models"] if model["name"] == "tiny")
    assert tiny["judge"] is True
    assert "motion" in tiny["parts"]
    assert cli.main(["list"]) == 0
    words = capsys.readouterr().out
    assert all(name in words for name in (*known_robots(), *known_envs(), ORACLE, "open_drawer", "--judge tiny"))


def test_cheap_commands_print_one_json_value(tmp_path: Path, capsys: Captured) -> None:
    assert [robot["name"] for robot in printed(["robots"], capsys)] == list(known_robots())
    assert [env["id"] for env in printed(["envs"], capsys)] == list(known_envs())
    levels = {row["subject"]: row["level"] for row in printed(["doctor"], capsys)["findings"]}
    assert levels["weights"] == levels["torch"] == "ok"
    frames, columns = np.zeros((4, 96, 144, 3), np.uint8), {"action": np.zeros((4, 7), np.float32)}
    writer = EpisodeWriter(tmp_path, fps=15)
    writer.append(Episode(frames={"left": frames}, columns=columns, task="reach", info={"success": True}))
    told = printed(["data", "describe", str(tmp_path)], capsys)
    assert (told["episodes"], told["frames"], told["views"]) == (1, 4, {"left": [96, 144]})
    assert told["counts"]["success"] == {"True": 1}
    for words in (["data", "describe", str(tmp_path / "none")], ["robot", "add", str(tmp_path / "none.urdf")]):
        assert cli.main([*words, "--json"]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("vap-gym: ")


# --- rollout ---


def test_rollout_keeps_what_the_env_shows_when_it_is_told_the_same(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "played"
    words = ["rollout", ENV, "--policy", "random", "--task", "push", "--seed", "5", "--steps", "2"]
    told = printed([*words, "--out", str(out)], capsys)
    assert (told["world"], told["steps"], told["success"]) == ("imagination", 2, 0.0)
    assert told["steps_per_s"] > 0
    assert json.loads((out / "rollout.json").read_text()) == told
    [row] = told["episodes"]
    kept = EpisodeSet(out / "set")[0]
    assert set(kept.frames) == {"front", "prompt"}
    env: Any = gym.make(ENV, task="push")
    frame, info = env.reset(seed=row["world_seed"], options={"start": row["start"]})
    assert row["instruction"] == info["task_description"] == kept.task
    rewards, strip = [], read_video(out / row["video"])
    assert strip.shape == (3, 192, 2 * 288, 3)
    for t in range(3):
        if t:
            frame, reward, _, _, info = env.step(kept.columns["action"][t - 1])
            rewards.append(reward)
            assert kept.columns["trust.object_risk"][t] == pytest.approx(info["trust"]["object_risk"], abs=1e-6)
        for name, picture in (("front", frame), ("prompt", info["prompt"])):
            assert np.abs(kept.frames[name][t].astype(int) - picture).mean() < 2.0, (t, name)  # as the video loses
        shown = strip[t, ::2, ::2].astype(int)
        assert np.abs(shown[:, :144] - info["prompt"]).mean() < np.abs(shown[:, :144] - frame).mean()
        assert np.abs(shown[:, 144:] - frame).mean() < 8.0
    assert row["return"] == pytest.approx(sum(rewards), abs=1e-6)
    assert row["trust"] == pytest.approx(1 - np.nanmean(kept.columns["trust.object_risk"]), abs=1e-5)


@has_pybullet
def test_rollout_plays_several_episodes_in_the_simulator(tmp_path: Path, capsys: Captured) -> None:
    words = ["rollout", "VAP-RT1-Oracle-v0", "--task", "push", "--episodes", "2", "--steps", "2", "--views", "wrist"]
    assert_played(words, tmp_path / "a", capsys)
    assert cli.main([*words, "--out", str(tmp_path / "a")]) == 2
    assert "must be a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def assert_played(words: list[str], out: Path, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--out", str(out)])
    assert stop.value.code == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[:2]] == ["000.mp4", "001.mp4"]
    assert "2 in oracle, 4 steps in" in said[2]
    told = json.loads((out / "rollout.json").read_text())
    assert [row["seed"] for row in told["episodes"]] == [0, 1]
    assert all("push" in row["instruction"] for row in told["episodes"])
    assert read_video(out / "001.mp4").shape == (3, 192, 3 * 288, 3)  # the prompt, and two views
    assert EpisodeSet(out / "set").features.views.keys() == {"front", "prompt", "wrist"}


def test_policy_that_fails_is_told_by_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (tmp_path / "vap_blind.py").write_text(
        "from vap_gym.policies import Conventions, FunctionPolicy\n"
        "def look(observation, instruction):\n    raise RuntimeError('cannot see')\n"
        "blind = FunctionPolicy(look, Conventions(action_mode='cartesian_velocity', rate_hz=15.0))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["rollout", ENV, "--policy", "python:vap_blind:blind", "--steps", "2", "--out", str(tmp_path / "out")]
    told = printed(words, capsys, code=1)
    assert told["episodes"][0]["fault"] == "RuntimeError: cannot see"
    assert (told["steps"], told["success"]) == (0, 0.0)
    del sys.modules["vap_blind"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["VAP-DROD-v0"], "Did you mean 'VAP-DROID-v0'?"),
        ([ENV, "--policy", "expart"], "Did you mean 'expert'?"),
        ([ENV, "--task", "fly"], "No start with the task 'fly'"),
        ([ENV, "--start", "99999"], "No start 99999"),
        ([ENV, "--steps", "-1"], "must be 0 or more"),
        ([ENV, "--episodes", "0"], "1 or more"),
    ],
)
def test_rollout_refuses_what_cannot_be_and_leaves_nothing(
    words: list[str], says: str, tmp_path: Path, capsys: Captured
) -> None:
    assert cli.main(["rollout", *words, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rollout_that_fails_midway_leaves_nothing(tmp_path: Path, capsys: Captured) -> None:
    with pytest.raises(OSError), rollout.appearing(tmp_path / "out") as folder:
        (folder / "000.mp4").write_text("half")
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()  # a new folder is one that holds nothing
    with rollout.appearing(tmp_path / "out") as folder:
        (folder / "whole").write_text("")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]
