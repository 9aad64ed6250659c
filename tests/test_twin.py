"""The oracle and its twin: same start, picture and camera as imagination, rewards of truth, and how far they drift."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from vap_gym import OracleEnv, StartSet, Twin
from vap_gym.cards import load_env, load_robot
from vap_gym.errors import ActionError, MissingDependencyError, VapError
from vap_gym.oracle_env import make_starts, shown_start
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.scene import Scene
from vap_gym.starts import starts_path

ID, ORACLE = "VAP-DROID-v0", "VAP-DROID-Oracle-v0"


def same_picture(one: Any, other: Any) -> bool:
    """Equal where the shipped file was made; elsewhere PyBullet's floats may move a pixel of an edge."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean()) < 0.5


@pytest.fixture(scope="module")
def oracle() -> OracleEnv:
    made = gym.make(ORACLE).unwrapped
    assert isinstance(made, OracleEnv)
    return made


def test_oracle_and_imagination_have_the_same_spaces_and_starts(oracle: OracleEnv) -> None:
    imagined = gym.make(ID).unwrapped
    assert oracle.observation_space == imagined.observation_space
    assert oracle.action_space == imagined.action_space
    for seed in range(3):
        true, true_info = oracle.reset(seed=seed)
        picture, info = imagined.reset(seed=seed)
        assert same_picture(true, picture)
        assert np.array_equal(true_info["prompt"], info["prompt"])
        assert true_info["task_description"] == info["task_description"]
        assert true_info.keys() == info.keys() | {"truth"}


def test_shipped_pictures_are_what_the_oracle_renders(oracle: OracleEnv) -> None:
    starts = StartSet(starts_path(ID))
    for i in (0, len(starts) // 2, len(starts) - 1):
        assert same_picture(oracle.reset(options={"start": i})[0], starts[i].frame)


def test_the_camera_of_every_start_sees_the_tasks_object(oracle: OracleEnv) -> None:
    starts = StartSet(starts_path(ID))
    for start in (starts[i] for i in range(0, len(starts), 8)):
        assert start.scene is not None
        oracle.reset(options={"start": start})
        in_frame = oracle.camera.project(torch.from_numpy(oracle.truth.objects_m[start.scene.target]).float()[None])[0][
            0
        ]
        assert bool(((in_frame > -8) & (in_frame < torch.tensor([152.0, 104.0]))).all())


def test_start_files_are_equal_to_the_byte(tmp_path: Path) -> None:
    for name in ("first.npz", "second.npz"):
        assert make_starts(tmp_path / name, count=3) == 3
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()
    shipped, made = StartSet(starts_path(ID)), StartSet(tmp_path / "first.npz")
    assert all(same_picture(shipped[i].frame, made[i].frame) for i in range(3))  # nor is the shipped file out of date


def test_scenes_that_hide_gripper_or_goal_are_passed_over() -> None:
    card = load_env(ID)
    specs = [draw_scene(seed, layout=card.layout, task="push") for seed in range(3_000_000, 3_000_003)]
    away = [replace(one, camera=replace(one.camera, target_m=(-9.0, 0.0, 3.0))) for one in specs]
    with Scene(load_robot(card.robot), frame_size_px=card.frame_size_px) as scene:
        start = shown_start(scene, (*away, *specs))
        assert start.scene in specs
        with pytest.raises(VapError, match=r"No scene of 'table' with the task 'push' shows .* got 3 without\. Take"):
            shown_start(scene, away)


def test_the_arm_reaches_what_it_is_told(oracle: OracleEnv) -> None:
    oracle.reset(seed=0, options={"start": 0})
    lift = np.array([0, 0, 1, 0, 0, 0, -1], np.float32)
    for _ in range(6):
        *_, info = oracle.step(lift)
    nominal = oracle.robot_state.q[0].numpy()
    assert np.allclose(info["proprioception"]["joint_position"], nominal, atol=0.05)
    assert info["trust"]["adherence_px"] < 2


def test_a_solved_task_is_rewarded_and_ends(oracle: OracleEnv) -> None:
    starts = StartSet(starts_path(ID))
    _, info = oracle.reset(seed=0, options={"start": starts.of_task("reach")[0]})
    target = oracle.start.scene.target_object.colour  # type: ignore[union-attr]
    total, ended = 0.0, False
    for _ in range(90):
        away = info["truth"]["objects_m"][target] - info["truth"]["tool_m"]
        action = np.append(np.clip(20 * away, -1, 1), [0, 0, 0, 0]).astype(np.float32)
        _, reward, ended, _, info = oracle.step(action)
        total += reward
        if ended:
            break
    assert ended
    assert info["is_success"] is True
    assert total == pytest.approx(1.0)


def test_any_scene_can_be_asked_for(oracle: OracleEnv) -> None:
    scene = draw_scene(77, task="push")
    _, info = oracle.reset(seed=0, options={"scene": scene})
    assert info["task_description"] == scene.instruction
    assert set(info["truth"]["objects_m"]) == {item.colour for item in scene.objects}


def test_the_oracle_can_be_seen_from_another_camera() -> None:
    start = StartSet(starts_path(ID))[1]
    env = gym.make(ORACLE, camera=start.camera).unwrapped
    other = env.reset(seed=0, options={"start": 0})[0]
    assert not np.array_equal(other, gym.make(ORACLE).unwrapped.reset(options={"start": 0})[0])
    assert same_picture(env.reset(options={"start": 1})[0], start.frame)


def test_what_the_oracle_cannot_do_is_said(oracle: OracleEnv) -> None:
    with pytest.raises(VapError, match="No reset option of the oracle named 'image'"):
        oracle.reset(options={"image": np.zeros((96, 144, 3), np.uint8)})
    with pytest.raises(VapError, match="contradict each other: start and scene"):
        oracle.reset(options={"start": 0, "scene": draw_scene(1)})
    oracle.reset(seed=0)
    with pytest.raises(ActionError, match="must be finite"):
        oracle.step(np.full(7, np.nan, np.float32))
    with pytest.raises(VapError, match=r"no episode yet. Call reset\(\)"):
        gym.make(ORACLE).unwrapped.step(np.zeros(7, np.float32))


def test_without_pybullet_the_oracle_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pybullet", None)
    with pytest.raises(MissingDependencyError, match="needs the package 'pybullet'.*pip install"):
        gym.make(ORACLE)
    with pytest.raises(MissingDependencyError, match="pip install"):
        Twin(ID)
    gym.make(ID).reset(seed=0)  # imagination needs none


def test_the_twin_begins_with_one_picture_and_measures_the_drift() -> None:
    twin = Twin(ID)
    begun = twin.reset(seed=1)
    assert np.array_equal(begun.imagined, begun.oracle)  # type: ignore[arg-type]
    assert (begun.divergence.psnr_db, begun.divergence.mae) == (40.0, 0.0)
    assert twin.oracle.start.scene is not None
    colours = {item.colour for item in twin.oracle.start.scene.objects}
    assert set(begun.divergence.objects_m) == colours
    alone: Any = gym.make(ID).unwrapped
    alone.reset(seed=1)
    twin.action_space.seed(0)
    for _ in range(3):
        action = twin.action_space.sample()
        step = twin.step(action)
        assert np.array_equal(step.imagined, alone.step(action)[0])  # type: ignore[arg-type]
    assert step.divergence.mae > 0
    assert step.divergence.psnr_db < 40
    assert step.divergence.gripper_px is not None
    assert step.divergence.gripper_px >= 0
    twin.close()


def test_the_twin_takes_any_scene_and_goes_without_a_judge() -> None:
    twin = Twin(ID, judge=None)
    step = twin.reset(seed=0, options={"scene": draw_scene(123)})
    assert np.array_equal(step.imagined, step.oracle)  # type: ignore[arg-type]
    step = twin.step(np.zeros(7, np.float32))
    assert step.divergence.gripper_px is None
    assert step.divergence.objects_m == {}
    twin.close()
