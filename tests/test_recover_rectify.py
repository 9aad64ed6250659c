"""Drift found from the background, and cameras that see what a homography makes of a picture."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vap_gym.cards import load_robot
from vap_gym.errors import VapError
from vap_gym.geometry import Camera
from vap_gym.prompts.kinds import Prompter
from vap_gym.recover.drift import corners, find_drift, from_corners, similarity, smoothed, stabilised
from vap_gym.recover.matching import Matches
from vap_gym.recover.rectify import common_shift, moved, rectified_camera

SIZE = (192, 128)
CAMERA = Camera.look_at(
    torch.tensor([1.3, 0.7, 0.7]), torch.tensor([0.35, 0.0, 0.35]), vertical_fov_rad=0.9, frame_size_px=SIZE
)
REST = corners(np.eye(3)[None], SIZE)


def scene(seed: int = 0) -> np.ndarray:
    """A picture with features, larger than the frame by 32 px all around."""
    import cv2

    rng = np.random.default_rng(seed)
    picture = np.full((SIZE[1] + 64, SIZE[0] + 64, 3), 128, np.uint8)
    for _ in range(150):
        centre, radius = rng.integers(0, (SIZE[0] + 64, SIZE[1] + 64)), int(rng.integers(2, 9))
        colour = rng.integers(0, 255, 3).tolist()
        cv2.rectangle(picture, tuple(map(int, centre)), tuple(map(int, centre + radius)), colour, -1)
    return cv2.GaussianBlur(picture, (0, 0), 0.8)


def filmed(homography: np.ndarray) -> np.ndarray:
    import cv2

    centre, shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]), np.array([[1, 0, -32], [0, 1, -32], [0, 0, 1]])
    warp = np.linalg.inv(centre) @ homography @ shift @ centre
    return np.stack([cv2.warpPerspective(scene(), h, SIZE, flags=cv2.INTER_CUBIC) for h in warp])


def path(frames: int, most_px: float = 12.0) -> np.ndarray:
    """A camera that shifts, turns and comes nearer."""
    at = np.linspace(0, 1, frames)
    H = np.tile(np.eye(3), (frames, 1, 1))
    angle, scale = 0.03 * np.sin(4 * at), np.exp(0.02 * at)
    H[:, 0, 0] = H[:, 1, 1] = scale * np.cos(angle)
    H[:, 1, 0], H[:, 0, 1] = scale * np.sin(angle), -scale * np.sin(angle)
    H[:, 0, 2], H[:, 1, 2] = 0.6 * most_px * np.sin(3 * at), -0.4 * most_px * at
    return H


def far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(corners(a, SIZE) - corners(b, SIZE), axis=-1).max())


def nobody(frames: int) -> np.ndarray:
    return np.zeros((frames, SIZE[1], SIZE[0]), bool)


def test_drift_is_found_to_half_a_pixel() -> None:
    true = path(12)
    drift = find_drift(filmed(true), nobody(12))
    assert drift.share == 1
    assert far(true, np.broadcast_to(np.eye(3), true.shape)) > 8
    assert far(drift.homography, true) < 0.5


def test_camera_that_stands_still_gets_identities_bit_for_bit() -> None:
    frames = np.repeat(filmed(np.eye(3)[None]), 5, axis=0)
    noisy = (frames + np.random.default_rng(0).normal(0, 3, frames.shape)).clip(0, 255).astype(np.uint8)
    drift = find_drift(noisy, nobody(5))
    assert np.array_equal(drift.homography, np.broadcast_to(np.eye(3), (5, 3, 3)))
    assert stabilised(noisy, drift.homography) is noisy


def test_what_moves_with_the_robot_does_not_count() -> None:
    frames = np.repeat(filmed(np.eye(3)[None]), 6, axis=0)
    patch = np.random.default_rng(1).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    robot = nobody(6)
    for t in range(6):
        frames[t, 40:100, 20 + 6 * t : 80 + 6 * t] = patch
        robot[t, 40:100, 20 + 6 * t : 80 + 6 * t] = True
    assert np.array_equal(find_drift(frames, robot).homography, np.broadcast_to(np.eye(3), (6, 3, 3)))


def test_blank_frames_are_told_and_lie_between_their_neighbours() -> None:
    true = path(9)
    frames = filmed(true)
    frames[4] = 0
    drift = find_drift(frames, nobody(9))
    assert drift.is_registered.tolist() == [True] * 4 + [False] + [True] * 4
    assert far(drift.homography, true) < 1.5
    assert find_drift(np.zeros_like(frames), nobody(9)).share == 0
    frames[0] = 0  # then the second is the one to go by
    assert far(find_drift(frames, nobody(9)).homography[1:], (true @ np.linalg.inv(true[1]))[1:]) < 2.5
    assert find_drift(frames[:1], nobody(1)).homography.shape == (1, 3, 3)


def test_drift_undone_gives_the_first_frame() -> None:
    true = path(8)
    frames = filmed(true)
    inner = (slice(None), slice(20, -20), slice(20, -20))
    still = stabilised(frames, true).astype(float)[inner]
    assert np.abs(still - still[0]).mean() < 4 < np.abs(frames.astype(float)[inner] - frames[0][inner[1:]]).mean()


def test_smoothing_keeps_a_steady_drift_and_fills_gaps() -> None:
    at = np.arange(9.0)
    H = np.tile(np.eye(3), (9, 1, 1))
    H[:, 0, 2] = 1.5 * at
    assert far(smoothed(H, np.ones(9), SIZE, frames=1.0), H) < 1e-3
    holes = H.copy()
    holes[3:5] = np.diag([5.0, 5.0, 1.0])
    weight = np.where((at == 3) | (at == 4), 0.0, 1.0)
    assert far(smoothed(holes, weight, SIZE, frames=1.0), H) < 1e-3
    nothing = smoothed(holes, np.zeros(9), SIZE, frames=1.0)
    assert np.array_equal(nothing, np.broadcast_to(np.eye(3), (9, 3, 3)))


SHIFTS = st.lists(st.floats(-20, 20), min_size=8, max_size=8)


@given(SHIFTS)
@settings(max_examples=30, deadline=None)
def test_corners_tell_a_homography(shifts: list[float]) -> None:
    to = REST + np.array(shifts).reshape(1, 4, 2)
    assert np.abs(corners(from_corners(to, SIZE), SIZE) - to).max() < 1e-3


@given(SHIFTS)
@settings(max_examples=30, deadline=None)
def test_rectified_camera_sees_what_the_homography_makes_of_the_picture(shifts: list[float]) -> None:
    H = from_corners(REST + np.array(shifts).reshape(1, 4, 2), SIZE)
    camera = rectified_camera(CAMERA, H).checked().index(0)
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.6
    expected = moved(CAMERA.to(torch.float64).project(points)[0].numpy(), H[0])
    assert np.abs(camera.project(points)[0].numpy() - expected).max() < 1e-3


def test_all_kinds_of_prompt_follow_the_homography() -> None:
    import cv2

    robot = load_robot("panda_robotiq")
    q, gripper = torch.tensor(robot.home_q_rad)[None], torch.zeros(1)
    H = from_corners(REST + np.array([[[6, -4], [9, 5], [-3, 8], [2, -7]]]), SIZE)
    centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    for kind in ("skeleton", "mesh", "depth"):
        prompter = Prompter(robot, kind, frame_size_px=SIZE)
        nominal = prompter.draw(q, gripper, CAMERA).numpy()[0].max(-1) > 0
        drawn = prompter.draw(q, gripper, rectified_camera(CAMERA, H).to(torch.float32)).numpy()[0].max(-1) > 0
        warped = cv2.warpPerspective(nominal.astype(np.float32), np.linalg.inv(centre) @ H[0] @ centre, SIZE) > 0.5
        at_rest, moved_along = ((drawn & x).sum() / (drawn | x).sum() for x in (nominal, warped))
        # Bones are as wide as they look from the nominal place, hence not exactly as a warp would have them.
        assert moved_along > (0.88 if kind == "skeleton" else 0.94) > at_rest + 0.1, kind


@pytest.mark.parametrize("H", [np.diag([-1.0, 1, 1]), np.zeros((3, 3)), np.full((3, 3), np.inf)])
def test_homography_that_no_camera_can_see_is_told(H: np.ndarray) -> None:
    with pytest.raises(VapError, match="positive determinants"):
        rectified_camera(CAMERA, H[None])


def test_common_shift_withstands_wrong_matches() -> None:
    rng = np.random.default_rng(0)
    true = path(2)[1]
    a = rng.uniform(0, 120, (300, 2))
    b = moved(a, true) + rng.normal(0, 0.5, a.shape)
    b[::3] += rng.uniform(-25, 25, (100, 2))
    clip = [Matches(rendered_px=a[i::3], observed_px=b[i::3], confidence=np.full(100, 0.8)) for i in range(3)]
    assert far(common_shift(clip)[None], true[None]) < 1
    assert np.array_equal(common_shift([m.pick(np.arange(100) < 10) for m in clip]), np.eye(3))
    assert np.array_equal(common_shift([]), np.eye(3))


def test_similarity_of_weighted_points() -> None:
    a = np.random.default_rng(1).uniform(0, 50, (6, 2))
    true = path(3)[2]
    b = moved(a, true)
    b[0] += 40
    assert far(similarity(a, b, np.array([0.0, 1, 1, 1, 1, 1]))[None], true[None]) < 1e-9
