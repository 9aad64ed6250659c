"""Where an episode begins: shipped starts, anyone's photograph, and every contradiction that reset refuses."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from vap_gym import Camera, Start, StartSet, VapEnv, save_starts
from vap_gym.errors import CheckpointError, VapError
from vap_gym.geometry import inverse, xyz_euler_from_pose
from vap_gym.photo import fit_picture, read_camera
from vap_gym.starts import starts_path

ID = "VAP-DROID-v0"


@pytest.fixture(scope="module")
def env() -> VapEnv:
    made = gym.make(ID).unwrapped
    assert isinstance(made, VapEnv)
    return made


@pytest.fixture(scope="module")
def starts() -> StartSet:
    return StartSet(starts_path(ID))


def photo_of(start: Start) -> dict[str, Any]:
    """The reset options that begin from a start's picture as if it were a photograph."""
    return {
        "image": start.frame,
        "state": {"joint_position": start.q_rad, "gripper_position": start.closedness},
        "camera": {
            "K": start.camera.K.numpy(),
            "T_world_camera": start.camera.T_world_camera.numpy(),
            "image_size_wh": start.camera.frame_size_px,
        },
    }


def test_shipped_starts_cover_every_task(starts: StartSet) -> None:
    assert len(starts) >= 48
    assert starts.tasks() == ("lift", "push", "reach")
    assert all(len(starts.of_task(task)) >= 8 for task in starts.tasks())
    first = starts[0]
    assert first.frame.shape == (96, 144, 3)
    assert first.scene is not None
    assert first.scene.instruction == first.instruction


def test_the_task_chooses_among_the_starts(starts: StartSet) -> None:
    pushing = gym.make(ID, task="push").unwrapped
    for seed in range(3):
        assert pushing.reset(seed=seed)[1]["task_description"].startswith("push the")
    with pytest.raises(VapError, match=r"No start with the task 'stack'.*It has: lift, push, reach, any"):
        gym.make(ID, task="stack").unwrapped.reset(seed=0)


def test_a_start_can_be_asked_for_by_number(env: VapEnv, starts: StartSet) -> None:
    observation, info = env.reset(seed=0, options={"start": 5})
    assert np.array_equal(observation, starts[5].frame)  # type: ignore[arg-type]
    assert info["task_description"] == starts[5].instruction


def test_starts_go_through_a_file(starts: StartSet, tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    save_starts(path, [starts[1], starts[4]])
    again = StartSet(path)
    assert len(again) == 2
    for one, other in zip((starts[1], starts[4]), again, strict=True):
        assert np.array_equal(one.frame, other.frame)
        assert np.array_equal(one.q_rad, other.q_rad)
        assert torch.equal(one.camera.T_world_camera, other.camera.T_world_camera)
        assert (one.instruction, one.scene) == (other.instruction, other.scene)
    other_env = gym.make(ID, starts=str(path), task="any").unwrapped
    assert other_env.reset(seed=0, options={"start": 1})[1]["task_description"] == starts[4].instruction


def test_broken_start_files_are_refused(starts: StartSet, tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    save_starts(path, [starts[0]])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="holds no start states"):
        StartSet(path)
    with pytest.raises(CheckpointError, match="No start states at .*image"):
        StartSet(tmp_path / "none.npz")
    with pytest.raises(VapError, match="at least one start"):
        save_starts(path, [])


def test_a_photograph_of_a_start_begins_like_that_start(env: VapEnv, starts: StartSet) -> None:
    start, action = starts[3], np.array([0.5, -0.2, 0.1, 0, 0, 0.3, 1], np.float32)
    shipped = env.reset(seed=2, options={"start": 3})[0], env.step(action)[0]
    photo = env.reset(seed=2, options=photo_of(start))[0], env.step(action)[0]
    assert all(np.array_equal(a, b) for a, b in zip(shipped, photo, strict=True))  # type: ignore[arg-type]


def test_a_photograph_has_words_but_no_reward(env: VapEnv, starts: StartSet) -> None:
    _, info = env.reset(seed=0, options={**photo_of(starts[0]), "instruction": "wipe the table"})
    assert info["task_description"] == "wipe the table"
    assert info["reward_source"] == "none: this start has no task"
    _, reward, terminated, _, info = env.step(np.zeros(7, np.float32))
    assert (reward, terminated, info["is_success"]) == (0.0, False, False)


def test_other_words_than_its_own_take_a_starts_reward_away(env: VapEnv, starts: StartSet) -> None:
    _, info = env.reset(options={"start": 0, "instruction": starts[0].instruction})
    assert info["reward_source"] == "judge"
    _, info = env.reset(options={"start": 0, "instruction": "do something else"})
    assert info["reward_source"].startswith("none")


def test_every_way_to_give_the_camera_is_the_same_camera(starts: StartSet) -> None:
    camera = starts[0].camera
    T, K, size = camera.T_world_camera, camera.K, camera.frame_size_px
    ways = {
        "T_world_camera": T,
        "T_base_from_camera": T,
        "T_camera_from_base": inverse(T),
        "extrinsics": xyz_euler_from_pose(T),
    }
    for name, figures in ways.items():
        read = read_camera({"K": K.tolist(), "image_size_wh": list(size), name: figures.tolist()})
        assert torch.allclose(read.T_world_camera, T, atol=1e-9), name
    assert torch.equal(read_camera(camera).T_world_camera, T)


@pytest.mark.parametrize("size", [(640, 480), (1280, 720), (320, 192), (200, 300), (144, 96), (100, 80)])
def test_a_point_stays_on_its_pixel_when_a_picture_is_fitted(size: tuple[int, int]) -> None:
    width, height = size
    camera = Camera.look_at(
        torch.tensor([1.2, 0.3, 0.7], dtype=torch.float64),
        torch.tensor([0.4, 0.0, 0.0], dtype=torch.float64),
        vertical_fov_rad=0.8,
        frame_size_px=size,
    )
    point = torch.tensor([[0.42, 0.02, 0.03]], dtype=torch.float64)
    u, v = camera.project(point)[0][0].tolist()
    rows, columns = np.mgrid[:height, :width] + 0.5
    blob = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * (height / 30) ** 2))
    frame, fitted = fit_picture(np.repeat(blob[..., None], 3, -1).astype(np.uint8), camera, (144, 96))
    assert frame.shape == (96, 144, 3)
    bright = frame[..., 0].astype(float) ** 2
    seen = (bright * (np.mgrid[:96, :144][1] + 0.5)).sum(), (bright * (np.mgrid[:96, :144][0] + 0.5)).sum()
    assert np.array(seen) / bright.sum() == pytest.approx(fitted.project(point)[0][0].numpy(), abs=0.35)


def test_a_picture_that_fits_is_not_resampled(starts: StartSet) -> None:
    frame, camera = fit_picture(starts[0].frame, starts[0].camera, (144, 96))
    assert np.array_equal(frame, starts[0].frame)
    assert torch.equal(camera.K, starts[0].camera.K)


def test_the_tip_pose_can_stand_for_the_joints(env: VapEnv, starts: StartSet) -> None:
    options = photo_of(starts[0])
    tip = env.stage.rig.controller.arm.to(torch.float64).fk(torch.from_numpy(starts[0].q_rad), "panda_link8")
    options["state"] = {"cartesian_position": xyz_euler_from_pose(tip).numpy(), "gripper_position": 0.0}
    _, info = env.reset(options=options)
    reached = info["proprioception"]["cartesian_position"]
    assert np.allclose(reached, options["state"]["cartesian_position"], atol=1e-3)
    options["state"]["joint_position"] = starts[0].q_rad
    env.reset(options=options)


def test_an_env_can_have_a_camera_of_its_own(starts: StartSet) -> None:
    options = photo_of(starts[0])
    own = gym.make(ID, camera=options.pop("camera")).unwrapped
    observation, _ = own.reset(seed=0, options=options)
    assert np.array_equal(observation, starts[0].frame)


def changed(options: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Options with some entries replaced, those of None left out; `state__x` reaches into `state`."""
    table = {key: dict(value) if isinstance(value, dict) else value for key, value in options.items()}
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        target, key = (table[outer], inner) if inner else (table, outer)
        if value is None:
            del target[key]
        else:
            target[key] = value
    return table


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"imagee": 1}, r"No reset option named 'imagee'. Did you mean 'image'\?"),
    ({"camera": None}, "image, state and camera together, got no camera"),
    ({"image": None, "camera": None}, "together, got no image and no camera"),
    ({"image": None, "state": None}, "together, got no image and no state"),
    ({"start": 1}, "contradict each other: start and image, state, camera"),
    ({"instruction": 5}, "instruction must be a string, got int"),
    ({"image": np.zeros((96, 144, 3), np.float32)}, "uint8 numpy array .* got float32 array"),
    ({"image": [[0]]}, "uint8 numpy array .* got list"),
    ({"image": np.zeros((96, 144, 4), np.uint8)}, r"shape \(H, W, 3\).*got \(96, 144, 4\)"),
    ({"image": np.zeros((96, 144), np.uint8)}, r"shape \(H, W, 3\).*got \(96, 144\)"),
    ({"image": np.zeros((8, 12, 3), np.uint8)}, "at least 16 px"),
    ({"image": np.zeros((480, 640, 3), np.uint8)}, "image is 640 x 480 px, but the camera's figures are for 144 x 96"),
    ({"state": 3}, "state must be a dict"),
    ({"state__gripper_position": None}, "state needs gripper_position .* got joint_position"),
    ({"state__joint_position": None}, "state needs .* joint_position or cartesian_position, got gripper_position"),
    ({"state__joint_positions": 1}, r"No state key named 'joint_positions'. Did you mean 'joint_position'\?"),
    ({"state__joint_position": np.zeros(6)}, r"shape \(7,\), got \(6,\)"),
    ({"state__joint_position": np.full(7, np.nan)}, "got NaN or infinity"),
    ({"state__joint_position": np.full(7, 90.0)}, r"joint 4 \(panda_joint4\) must be in .* got 90.0000. Degrees"),
    ({"state__gripper_position": 85.0}, r"must be in \[0 open, 1 closed\], got 85"),
    (
        {"state__cartesian_position": np.array([0.4, 0, 0.4, 3.1, 0, 0])},
        "contradict each other: the joints put panda_link8",
    ),
    ({"camera": "left"}, "camera must be a vap_gym Camera or a dict .* got str"),
    ({"camera__K": np.zeros((3, 3))}, "Camera K is singular"),
    ({"camera__K": np.eye(4)}, r"camera K must be finite numbers of shape \(3, 3\), got \(4, 4\)"),
    ({"camera__K": None}, "camera needs K, image_size_wh and exactly one of"),
    ({"camera__extrinsics": np.zeros(6)}, "exactly one of .* got K, T_world_camera, extrinsics, image_size_wh"),
    ({"camera__T_world_camera": np.diag([2.0, 1, 1, 1])}, "T_world_camera is not rigid"),
    ({"camera__T_wrld_camera": np.eye(4)}, r"Did you mean 'T_world_camera'\?"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_OPTIONS, ids=[message[:40] for _, message in BAD_OPTIONS])
def test_a_photograph_that_cannot_be_begun_from_is_refused(
    env: VapEnv, starts: StartSet, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(VapError, match=message):
        env.reset(options=changed(photo_of(starts[0]), **changes))


def test_a_pose_out_of_reach_is_refused(env: VapEnv, starts: StartSet) -> None:
    options = photo_of(starts[0])
    options["state"] = {"cartesian_position": [2.0, 0, 0.4, 3.1, 0, 0], "gripper_position": 0.0}
    with pytest.raises(VapError, match=r"out of reach: got \[2.000, 0.000.*nearest pose found is"):
        env.reset(options=options)


@pytest.mark.parametrize(("start", "message"), [(10**6, "No start 1000000 in"), (-1, "No start -1"), ("a", "got str")])
def test_a_start_that_is_not_there_is_refused(env: VapEnv, start: Any, message: str) -> None:
    with pytest.raises(VapError, match=message):
        env.reset(options={"start": start})


def test_words_that_do_not_fit_the_state_are_refused(env: VapEnv) -> None:
    with pytest.raises(VapError, match="instruction is too long"):
        env.reset(options={"instruction": "again and " * 400})


def test_a_real_droid_frame_begins_an_episode(env: VapEnv, shared_data: Path) -> None:
    from vap_gym.data.video import read_video

    folder = shared_data / "droid" / "newsetup_0009"
    log, camera = np.load(folder / "log.npz"), json.loads((shared_data / "droid/cameras.json").read_text())["cam0"]
    row = int(log["frame_to_row"][0])
    options = {
        "image": read_video(folder / "cam0.mp4", start=0, stop=1)[0],
        "state": {key: log[key][row] for key in ("joint_position", "cartesian_position", "gripper_position")},
        "camera": camera,
        "instruction": "tidy up",
    }
    observation, info = env.reset(seed=0, options=options)
    assert env.observation_space.contains(observation)
    assert np.allclose(info["proprioception"]["cartesian_position"], log["cartesian_position"][row], atol=1e-5)
    assert info["prompt"].any()  # the gripper is in the picture, so its prompt is too
    frames = [env.step(np.zeros(7, np.float32))[0] for _ in range(2)]
    assert all(env.observation_space.contains(frame) for frame in frames)
