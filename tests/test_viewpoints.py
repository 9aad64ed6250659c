"""Further views at gym.make: pictures per view, exact prompts, cameras that ride and sway; the same bits either way."""

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import vap_gym
from vap_gym.errors import VapError
from vap_gym.geometry import CameraMount, pose, rotation_from_rotvec
from vap_gym.metrics import psnr
from vap_gym.starts import StartSet, save_starts

ID = "VAP-DROID-v0"
VIEWS = ("front", "second", "wrist")


@pytest.fixture(scope="module")
def env() -> Any:
    made = gym.make(ID, views=["second", "wrist"], obs_type="pixels_agent_pos", judge=None)
    yield made
    made.close()


def actions(steps: int) -> np.ndarray:
    wave = np.sin(np.arange(steps)[:, None] / 3 + np.arange(7))
    return (0.5 * wave).astype(np.float32)


def test_observations_are_frames_by_view_within_their_space(env: Any) -> None:
    observation, info = env.reset(seed=1)
    assert tuple(observation["pixels"]) == VIEWS
    assert env.observation_space.contains(observation)
    observation, *_, info = env.step(actions(1)[0])
    assert env.observation_space.contains(observation)
    assert {name: prompt.shape for name, prompt in info["prompts"].items()} == dict.fromkeys(VIEWS[1:], (96, 144, 3))


def test_the_first_view_does_not_depend_on_there_being_others(env: Any) -> None:
    alone = gym.make(ID, judge=None)
    frame, _ = alone.reset(seed=4)
    observation, _ = env.reset(seed=4)
    np.testing.assert_array_equal(observation["pixels"]["front"], frame)
    for action in actions(3):
        frame, *_ = alone.step(action)
        observation, *_ = env.step(action)
        np.testing.assert_array_equal(observation["pixels"]["front"], frame)


def test_chunks_and_snapshots_hold_all_views(env: Any) -> None:
    env.reset(seed=2)
    kept = env.unwrapped.save()
    chunk = env.unwrapped.step_chunk(actions(4))[0]
    env.unwrapped.load(kept)
    for k, action in enumerate(actions(4)):
        observation, *_ = env.step(action)
        for name in VIEWS:
            np.testing.assert_array_equal(chunk["pixels"][name][k], observation["pixels"][name])
    plain = gym.make(ID, judge=None)
    plain.reset(seed=0)
    with pytest.raises(VapError, match="snapshot is of another env"):
        env.unwrapped.load(plain.unwrapped.save())


def test_a_slot_of_a_batch_sees_what_it_would_alone(env: Any) -> None:
    batch = gym.make_vec(ID, num_envs=2, views=["second", "wrist"], judge=None)
    observations, infos = batch.reset(seed=[7, 8])
    alone, _ = env.reset(seed=8)
    for action in actions(3):
        observations, *_, infos = batch.step(np.stack([action, action]))
        alone, *_, info = env.step(action)
    for name in VIEWS:
        apart = np.abs(observations["pixels"][name][1].astype(int) - alone["pixels"][name])
        assert np.quantile(apart, 0.99) <= 2, name
    np.testing.assert_array_equal(infos["prompts"]["wrist"][1], info["prompts"]["wrist"])


def test_oracle_and_imagination_share_start_pictures_and_prompts(env: Any) -> None:
    pytest.importorskip("pybullet")
    oracle = gym.make("VAP-DROID-Oracle-v0", views=["second", "wrist"])
    imagined, _ = env.reset(seed=3)
    true, _ = oracle.reset(seed=3)
    assert oracle.observation_space.contains(true)
    for name in VIEWS:
        np.testing.assert_array_equal(imagined["pixels"][name], true["pixels"][name])
    for action in actions(5):
        imagined, *_, info = env.step(action)
        true, *_, true_info = oracle.step(action)
    for name in ("second", "wrist"):
        assert np.abs(info["prompts"][name].astype(int) - true_info["prompts"][name]).mean() < 0.5
        error = np.mean((imagined["pixels"][name].astype(float) - true["pixels"][name]) ** 2)
        assert 10 * np.log10(255**2 / error) > 20, name
    oracle.close()


def test_a_start_from_photographs_needs_one_of_every_view(env: Any) -> None:
    first, info = env.reset(seed=5)
    start = env.unwrapped.state
    camera = {
        "K": start["camera_K"][0].numpy(),
        "image_size_wh": (144, 96),
        "T_world_camera": start["camera_T_world_camera"][0].numpy(),
    }
    state = {"joint_position": start["robot_q"][0].numpy(), "gripper_position": float(start["robot_gripper"][0])}
    given = {"image": first["pixels"]["front"], "state": state, "camera": camera}
    with pytest.raises(VapError, match=r"needs a picture of every view, got none of: second, wrist. Add them"):
        env.reset(options=given)
    pictures = {name: {"image": first["pixels"][name]} for name in ("second", "wrist")}
    again, told = env.reset(options={**given, "views": pictures})
    for name in ("second", "wrist"):
        np.testing.assert_array_equal(again["pixels"][name], first["pixels"][name])
        assert np.abs(told["prompts"][name].astype(int) - info["prompts"][name]).mean() < 0.5  # rounding
    with pytest.raises(VapError, match=r"No view of this env named 'wirst'. Did you mean 'wrist'"):
        env.reset(options={**given, "views": {"wirst": {"image": first["pixels"]["wrist"]}}})


def test_a_camera_of_ones_own_may_ride_on_the_arm() -> None:
    camera = {"K": [[80.0, 0, 72], [0, 80, 48], [0, 0, 1]], "image_size_wh": [144, 96]}
    T = np.eye(4)
    T[:3, 3] = [0.0, 0.08, -0.02]
    made = gym.make(ID, views={"mine": {**camera, "T_tip_camera": T.tolist()}}, judge=None)
    made.reset(seed=0)
    before = made.unwrapped.state["view_mine.camera_T_world_camera"].clone()
    for action in actions(3):
        made.step(action)
    state = made.unwrapped.state
    tip = made.unwrapped.stage.imagination.look(state).T_base_tip[0, 0]
    torch.testing.assert_close(
        state["view_mine.camera_T_world_camera"][0], tip @ torch.tensor(T).float(), atol=1e-5, rtol=0
    )
    assert not torch.equal(before, state["view_mine.camera_T_world_camera"])


def test_views_may_have_names_that_begin_with_one_another() -> None:
    camera = {"K": [[80.0, 0, 72], [0, 80, 48], [0, 0, 1]], "image_size_wh": [144, 96]}
    near, far = np.eye(4), np.eye(4)
    near[:3, 3], far[:3, 3] = [0.0, 0.08, -0.02], [0.0, 0.2, -0.3]
    views = {"a": {**camera, "T_tip_camera": near.tolist()}, "a_world": {**camera, "T_tip_camera": far.tolist()}}
    both = gym.make(ID, views=views, judge=None)
    alone = gym.make(ID, views={"a": views["a"]}, judge=None)
    for made in (both, alone):
        made.reset(seed=0)
    for action in actions(2):
        seen, expected = (made.step(action)[0]["pixels"]["a"] for made in (both, alone))
        np.testing.assert_array_equal(seen, expected)


def test_a_snapshot_brings_no_views_that_the_env_does_not_show(env: Any) -> None:
    env.reset(seed=2)
    plain = gym.make(ID, judge=None).unwrapped
    plain.load(env.unwrapped.save())  # type: ignore[attr-defined]
    assert not [key for key in plain.save().keys() if key.startswith("view_")]  # type: ignore[attr-defined]  # noqa: SIM118
    plain.step(actions(1)[0])
    with pytest.raises(VapError, match="snapshot is of another env"):
        env.unwrapped.load(plain.save())  # type: ignore[attr-defined]


def test_a_shipped_start_in_other_words_keeps_its_views_and_its_sway(env: Any) -> None:
    first, _ = env.reset(seed=2)
    worded, info = env.reset(seed=2, options={"instruction": "do it"})
    assert info["task_description"] == "do it"
    assert info["reward_source"] != "judge"
    for name in VIEWS:
        np.testing.assert_array_equal(worded["pixels"][name], first["pixels"][name])
    hand = gym.make("VAP-Hand-v0", judge=None).unwrapped
    hand.reset(seed=0)
    sway = hand.state["camera_sway"]  # type: ignore[attr-defined]
    hand.reset(seed=0, options={"instruction": "do it"})
    assert sway.abs().sum() > 0
    torch.testing.assert_close(hand.state["camera_sway"], sway)  # type: ignore[attr-defined]


def test_a_camera_of_ones_own_stands_still_in_the_oracle_and_in_its_starts(tmp_path: Path) -> None:
    pytest.importorskip("pybullet")
    camera = {
        "K": [[100.0, 0, 72], [0, 100, 48], [0, 0, 1]],
        "image_size_wh": [144, 96],
        "T_world_camera": [[0, 0, 1, -0.5], [-1, 0, 0, 0], [0, -1, 0, 0.3], [0, 0, 0, 1]],
    }
    oracle = gym.make("VAP-Hand-Oracle-v0", camera=camera).unwrapped
    oracle.reset(seed=0)
    save_starts(tmp_path / "starts.npz", [oracle.start])  # type: ignore[attr-defined]
    for start in (oracle.start, StartSet(tmp_path / "starts.npz")[0]):  # type: ignore[attr-defined]
        imagined = gym.make("VAP-Hand-v0", judge=None).unwrapped
        imagined.reset(options={"start": start})
        for action in actions(3):
            imagined.step(action)
        T = imagined.state["camera_T_world_camera"][0]  # type: ignore[attr-defined]
        torch.testing.assert_close(T, torch.tensor(camera["T_world_camera"]).float())


def test_a_pickled_env_goes_on_as_it_would_have() -> None:
    pytest.importorskip("pybullet")
    for env_id in ("VAP-Hand-v0", "VAP-Hand-Oracle-v0"):
        made = gym.make(env_id, views=["wrist"]).unwrapped
        made.reset(seed=0)
        made.step(actions(2)[0])
        again = pickle.loads(pickle.dumps(made))
        (seen, reward, *_, info), (seen2, reward2, *_, info2) = (one.step(actions(2)[1]) for one in (made, again))
        assert reward == reward2
        for name in ("front", "wrist"):
            np.testing.assert_array_equal(seen["pixels"][name], seen2["pixels"][name])
        np.testing.assert_array_equal(info["prompts"]["wrist"], info2["prompts"]["wrist"])


@pytest.mark.parametrize(
    ("views", "told"),
    [
        (["secnd"], r"No view of VAP-DROID-v0 named 'secnd'. Did you mean 'second'\? Known: front, second, wrist"),
        ("wrist", "views must be a list of names or a table of cameras, got 'wrist'"),
        ({"front": {}}, "must be a plain word other than 'front'"),
        ({"mine": {"K": [[1.0]]}}, "camera needs K, image_size_wh and exactly one of"),
    ],
)
def test_views_that_cannot_be_are_told(views: Any, told: str) -> None:
    with pytest.raises(VapError, match=told):
        gym.make(ID, views=views)


def test_mounts_move_cameras_by_their_rule() -> None:
    T = pose(rotation_from_rotvec(torch.tensor([[0.1, 0.2, 0.3]] * 3)), torch.tensor([[0.1, 0.2, 0.5]] * 3))
    sway = torch.zeros(3, 8)
    sway[2] = torch.tensor([0.02, 0.02, 0.02, 0.01, 0.01, 0.01, 2.0, 0.0])
    mount = CameraMount(
        K=torch.eye(3).expand(3, 3, 3), T_anchor_camera=T, rides=torch.tensor([False, True, False]), sway=sway,
        frame_size_px=(144, 96),
    )  # fmt: skip
    tip = pose(rotation_from_rotvec(torch.tensor([[0.0, 0.0, 1.0]] * 3)), torch.tensor([[0.4, 0.0, 0.3]] * 3))
    now = mount.at(tip, torch.full((3,), 0.7)).T_world_camera
    assert torch.equal(now[0], T[0])
    torch.testing.assert_close(now[1], tip[1] @ T[1])
    assert 1e-3 < (now[2] - T[2]).abs().max() < 0.1


@pytest.mark.parametrize("env_id", ["VAP-RT1-v0", "VAP-Bridge-v0", "VAP-Hand-v0"])
def test_envs_of_other_robots_imagine_beside_their_oracle(env_id: str) -> None:
    pytest.importorskip("pybullet")
    twin = vap_gym.Twin(env_id, task="reach", views=["wrist"])
    step = twin.reset(seed=1)
    np.testing.assert_array_equal(step.imagined["pixels"]["wrist"], step.oracle["pixels"]["wrist"])
    assert step.divergence.psnr_db == 40.0  # the same picture
    action = np.zeros(7, np.float32)
    action[:3] = 0.03 if env_id == "VAP-RT1-v0" else 0.3 * twin.oracle.action_space.high[:3]
    for _ in range(3):
        step = twin.step(action)
    assert step.divergence.psnr_db > 22
    np.testing.assert_allclose(
        step.imagined_info["prompt"].astype(int), step.oracle_info["prompt"], atol=40 if env_id == "VAP-Hand-v0" else 0
    )
    assert step.divergence.gripper_px is not None  # the judge has learned to read these grippers
    assert step.imagined_info["trust"]["adherence_px"] >= 0
    errors = [apart for apart in step.divergence.objects_m.values() if np.isfinite(apart)]
    assert errors, "it sees the things, though"
    assert np.median(errors) < 0.04
    reached = step.oracle_info["proprioception"]["joint_position"]
    assert np.abs(reached - step.imagined_info["proprioception"]["joint_position"]).max() < 0.12
    twin.close()


def test_a_gripper_never_seen_moves_as_its_surface_does() -> None:
    pytest.importorskip("pybullet")
    twin = vap_gym.Twin("VAP-DROID-v0", robot="panda_hand", judge=None)
    first = twin.reset(seed=2).oracle
    for _ in range(12):
        step = twin.step(np.array([0.4, 0.6, 0.3, 0, 0, 0, 0], np.float32))
    frozen = psnr(first[None], step.oracle[None])  # type: ignore[index, call-overload]
    assert step.divergence.psnr_db > frozen + 4
    twin.close()


def test_links_that_training_never_showed_are_not_black() -> None:
    """RT-1's camera sees the arm from the head; a second camera sees the robot's torso, too."""
    pytest.importorskip("pybullet")
    twin = vap_gym.Twin("VAP-RT1-v0", views=["second"], judge=None)
    first = twin.reset(seed=0).oracle["pixels"]["second"]
    for _ in range(3):
        step = twin.step(np.array([0.05, 0, 0, 0, 0, 0, 0], np.float32))
    imagined, true = step.imagined["pixels"]["second"], step.oracle["pixels"]["second"]
    dark = (imagined.max(-1) < 20) & (true.max(-1) > 60)
    assert dark.mean() < 0.002
    assert psnr(imagined[None], true[None]) > psnr(first[None], true[None])
    twin.close()


def test_a_gripper_that_the_judge_never_saw_is_not_read() -> None:
    env = vap_gym.VapEnv("VAP-DROID-v0", robot="panda_hand")
    env.reset(seed=0)
    info = env.step(np.zeros(7, np.float32))[4]
    assert "adherence_px" not in info["trust"]  # it does not pretend
    env.close()
