"""On real recordings: the skeleton's finger ends lie where people clicked them, a marker where detectors saw it."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from vap_gym.cards import load_robot
from vap_gym.data.video import read_video
from vap_gym.geometry import Camera, inverse, pose, rotation_from_quaternion_xyzw, transform
from vap_gym.kinematics.control import Controller
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton

ROBOT = load_robot("panda_robotiq")
SKELETON = Skeleton(ROBOT, dtype=torch.float64)
FINGERS = {"finger_a_px": "left_end", "finger_b_px": "right_end"}  # a opens along −y of the flange


def _camera(card: dict) -> Camera:
    T_camera_world = torch.tensor(card["T_camera_from_base"], dtype=torch.float64)
    return Camera(
        K=torch.tensor(card["K"], dtype=torch.float64),
        T_world_camera=inverse(T_camera_world),
        frame_size_px=tuple(card["image_size_wh"]),
    ).checked()


def _keypoints(droid: Path, episode: str, frames: list[int]) -> torch.Tensor:
    log = np.load(droid / episode / "log.npz")
    rows = log["frame_to_row"][frames]
    q, gripper = (torch.from_numpy(log[key][rows]) for key in ("joint_position", "gripper_position"))
    return SKELETON.keypoints(Controller(ROBOT, dtype=torch.float64).start(q, gripper))


@pytest.fixture(scope="module")
def droid(shared_data: Path) -> Path:
    return shared_data / "droid"


@pytest.fixture(scope="module")
def clicks(droid: Path) -> list[tuple[str, float, float]]:
    """For every click through a calibrated camera: the camera, and our error in pixels, u and v."""
    cameras = json.loads((droid / "cameras.json").read_text())
    errors = []
    for click in json.loads((droid / "finger_clicks.json").read_text())["clicks"]:
        card = cameras[click["camera"]]
        if click["episode"] not in card["valid_for_episodes"]:
            continue
        points = _keypoints(droid, click["episode"], [click["frame"]])[0]
        uv = _camera(card).project(points)[0]
        for finger, keypoint in FINGERS.items():
            if click[finger] is not None:
                off = uv[SKELETON.keypoint_names.index(keypoint)] - torch.tensor(click[finger])
                errors.append((click["camera"], *off.tolist()))
    return errors


@pytest.mark.parametrize(("camera", "least"), [("cam0", 15), ("cam1", 8)])
def test_finger_ends_lie_on_the_clicks(clicks, camera: str, least: int) -> None:
    error_px = np.array([np.hypot(u, v) for name, u, v in clicks if name == camera])
    assert len(error_px) >= least
    assert np.median(error_px) < 1.7
    assert error_px.max() < 4


def test_swapped_fingers_would_be_noticed(droid: Path) -> None:
    """The test above can tell left from right: crossed over, the median is several times as large."""
    card = json.loads((droid / "cameras.json").read_text())["cam0"]
    crossed = []
    for click in json.loads((droid / "finger_clicks.json").read_text())["clicks"]:
        if click["camera"] == "cam0" and None not in (click["finger_a_px"], click["finger_b_px"]):
            uv = _camera(card).project(_keypoints(droid, click["episode"], [click["frame"]])[0])[0]
            left, right = (uv[SKELETON.keypoint_names.index(name)].numpy() for name in FINGERS.values())
            crossed += [np.linalg.norm(left - click["finger_b_px"]), np.linalg.norm(right - click["finger_a_px"])]
    assert np.median(crossed) > 3 * 1.7


def test_the_drawn_skeleton_moves_with_the_real_robot(droid: Path) -> None:
    """Where the picture changes between two frames of a real clip, the drawn skeleton is: no click, no fit."""
    card = json.loads((droid / "cameras.json").read_text())["cam0"]
    clip = read_video(droid / "newsetup_0012" / "cam0.mp4")
    frames = list(range(0, len(clip), 5))
    prompts = draw(_keypoints(droid, "newsetup_0012", frames), _camera(card), SKELETON, thickness_px=8.0)
    still = np.median(clip, axis=0)
    changed = np.abs(clip[frames] - still).max(-1)
    on, beside = changed[prompts.max(-1) > 200], changed[np.roll(prompts, 40, axis=2).max(-1) > 200]
    assert np.median(on) > 3 * np.median(beside)


def test_the_example_writes_its_overlay(droid: Path, repo: Path, tmp_path: Path) -> None:
    example = runpy.run_path(str(repo / "examples" / "02_skeleton_on_real_video.py"))
    example["main"](droid=droid, out=tmp_path / "new" / "overlay.mp4", scale=1)
    strip = read_video(tmp_path / "new" / "overlay.mp4")
    real = read_video(droid / "newsetup_0012" / "cam0.mp4")
    assert strip.shape == (len(real), 192, 3 * 320, 3)
    assert np.abs(strip[:, :, :320].astype(int) - real).mean() < 3  # as much as the codec takes


def test_a_marker_on_the_hand_projects_onto_its_detections(shared_data: Path) -> None:
    folder = shared_data / "franka_eyehand" / "world_cams_20poses"
    samples = json.loads((folder / "samples.json").read_text())
    assert samples["ee_link"] == "panda_link8"
    position = torch.tensor([s["ee_position"] for s in samples["samples"]], dtype=torch.float64)
    quaternion = torch.tensor([s["ee_quaternion_xyzw"] for s in samples["samples"]], dtype=torch.float64)
    T_base_link8 = pose(rotation_from_quaternion_xyzw(quaternion), position)
    for solution in json.loads((folder / "solution.json").read_text())["cameras"]:
        index = solution["camera"]
        lens = samples["intrinsics"][index]
        camera = Camera(
            K=torch.tensor([[lens["fx"], 0, lens["cx"]], [0, lens["fy"], lens["cy"]], [0, 0, 1]], dtype=torch.float64),
            T_world_camera=torch.tensor(solution["T_base_from_camera"], dtype=torch.float64),
            frame_size_px=(lens["width"], lens["height"]),
        ).checked()
        marker_link8 = torch.tensor([solution["marker_corner_in_link8_m"]], dtype=torch.float64)
        uv = camera.project(transform(T_base_link8, marker_link8.expand(len(position), 1, 3)).squeeze(1))[0]
        seen = [(i, s["marker_corner_px"][index]) for i, s in enumerate(samples["samples"])]
        error_px = [float((uv[i] - torch.tensor(px)).norm()) for i, px in seen if px is not None]
        assert len(error_px) == solution["observations"]
        assert np.mean(error_px) < 1.0
        assert np.mean(error_px) == pytest.approx(solution["mean_reprojection_px"], abs=0.01)
