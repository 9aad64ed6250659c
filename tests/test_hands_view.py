"""The camera's motion against known motion, cuts, and which parts of a video become clips."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vap_gym.data import read_video
from vap_gym.errors import VapError
from vap_gym.recover.hands.clips import ClipSettings, hand_motion, select_clips
from vap_gym.recover.hands.hands import ABSENT, DETECTED, INTERPOLATED, Hands
from vap_gym.recover.hands.viewpoint import CoTrackerPoints, RaftFlow, Viewpoint, farneback, measure_viewpoint

cv2 = pytest.importorskip("cv2")
WIDTH, HEIGHT = 240, 160
DIAGONAL = float(np.hypot(WIDTH, HEIGHT))


def texture(seed: int) -> np.ndarray:
    """A smooth patchwork larger than the pictures."""
    noise = np.random.default_rng(seed).integers(20, 235, (40, 50, 3), dtype=np.uint8)
    return cv2.resize(noise, (500, 400), interpolation=cv2.INTER_CUBIC)


def shown(shift: Sequence[tuple[float, float]], seed: int = 0) -> np.ndarray:
    """Frames of a window that moves over a texture: the picture moves against it."""
    image = texture(seed)
    matrices = [np.array([[1, 0, -100 - du], [0, 1, -80 - dv]], float) for du, dv in shift]
    return np.stack([cv2.warpAffine(image, m, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC) for m in matrices])


def with_hand(frames: np.ndarray, at: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Frames with a big square that moves by itself, and its boxes."""
    frames, boxes = frames.copy(), np.full((len(frames), 1, 4), np.nan)
    square = texture(77)[:90, :90]
    for t, (u, v) in enumerate(at):
        frames[t, v : v + 90, u : u + 90] = square
        boxes[t, 0] = [u, v, u + 90, v + 90]
    return frames, boxes


def test_a_pan_is_measured_to_a_tenth_of_a_pixel() -> None:
    path = [(2.0 * t, -1.5 * t) for t in range(8)]
    view = measure_viewpoint(shown(path))
    assert np.allclose(view.step[1:] * DIAGONAL, 2.5, atol=0.1)
    assert np.allclose(view.flow[1:] * DIAGONAL, 2.5, atol=0.4)
    assert np.allclose(view.homography[1:, :2, 2], [-2.0, 1.5], atol=0.15)
    assert view.step[0] == 0
    assert not view.cut.any()
    assert view.drift(8)[0] * DIAGONAL == pytest.approx(2.5 * np.arange(8), abs=0.3)


def test_larger_pictures_move_by_the_same_share() -> None:
    frames = shown([(2.0 * t, 0.0) for t in range(4)])
    large = np.stack([cv2.resize(f, (4 * WIDTH, 4 * HEIGHT), interpolation=cv2.INTER_CUBIC) for f in frames])
    small, big = measure_viewpoint(frames), measure_viewpoint(large)
    assert np.allclose(small.step, big.step, atol=0.001)
    assert np.allclose(big.homography[1:, 0, 2], -8, atol=0.8)
    assert big.frame_size_px == (4 * WIDTH, 4 * HEIGHT)


def test_hands_are_not_taken_for_the_camera() -> None:
    still = shown([(0.0, 0.0)] * 6)
    frames, boxes = with_hand(still, [(20 + 9 * t, 30) for t in range(6)])
    assert measure_viewpoint(frames, boxes).step.max() * DIAGONAL < 0.1
    assert measure_viewpoint(frames, boxes).flow.max() * DIAGONAL < 0.2


def test_a_cut_is_seen_and_a_still_or_plain_picture_is_none() -> None:
    frames = np.concatenate([shown([(t, 0.0) for t in range(4)], seed=0), shown([(t, 0.0) for t in range(4)], seed=9)])
    view = measure_viewpoint(frames)
    assert np.flatnonzero(view.cut).tolist() == [4]
    assert np.isinf(view.drift(8)[0, 4:]).all()
    assert np.isfinite(view.drift(8)[4, :4]).all()
    plain = np.full((4, HEIGHT, WIDTH, 3), 128, np.uint8)
    assert not measure_viewpoint(plain).cut.any()
    assert measure_viewpoint(plain).step.max() == 0


def test_a_video_of_one_frame_does_not_move() -> None:
    view = measure_viewpoint(shown([(0.0, 0.0)]))
    assert view.step.tolist() == [0.0]
    assert view.drift(5).tolist() == [[0.0, np.inf, np.inf, np.inf, np.inf]]


def test_real_cameras_are_told_apart(shared_data: Path) -> None:
    """A camera on a stand, one on a wrist, and a film of two places (DROID, at 5 frames/s)."""
    clips = {
        (name, view): read_video(shared_data / "droid" / name / f"{view}.mp4", start=20, stop=32)
        for name, view in (("subset_1", "cam0"), ("subset_1", "cam2"), ("subset_3", "cam0"))
    }
    stand, wrist = (measure_viewpoint(clips["subset_1", view]) for view in ("cam0", "cam2"))
    assert np.median(stand.step) < 0.002
    assert np.median(wrist.step) > 10 * np.median(stand.step)
    both = measure_viewpoint(np.concatenate([clips["subset_1", "cam0"], clips["subset_3", "cam0"]]))
    assert np.flatnonzero(both.cut).tolist() == [12]


class TinyRaft(torch.nn.Module):
    """RAFT's layout: two normalised batches in, flows of every refinement out. Its flow is a known one."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        assert a.shape == b.shape
        assert a.shape[-1] % 8 == 0
        assert a.shape[-2] % 8 == 0
        assert float(a.amin()) >= -1
        assert float(a.amax()) <= 1
        ones = torch.ones_like(a[:, :1])
        return [torch.cat([0 * ones, 0 * ones], 1), torch.cat([3 * ones, -4 * ones], 1)]


class TinyCoTracker(torch.nn.Module):
    """CoTracker's layout: a video in, tracks and visibility of a grid out. Its points go right by 2 px a frame."""

    def forward(self, video: torch.Tensor, *, grid_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        _, frames, _, height, width = video.shape
        v, u = torch.meshgrid(torch.linspace(8, height - 9, grid_size), torch.linspace(8, width - 40, grid_size))
        start = torch.stack([u.reshape(-1), v.reshape(-1)], -1)
        tracks = start[None, None] + torch.arange(frames).view(1, -1, 1, 1) * torch.tensor([2.0, 0.0])
        return tracks, torch.rand(1, frames, len(start)) < 0.9


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_raft_and_cotracker_shaped_models_fit() -> None:
    frames = shown([(0.0, 0.0)] * 3)[:, :157, :239]
    torch.manual_seed(0)
    flow = RaftFlow(TinyRaft())(frames[0], frames[1])
    assert flow.shape == (157, 239, 2)
    assert flow[0, 0].tolist() == [3, -4]
    view = measure_viewpoint(frames, flow=RaftFlow(TinyRaft()), points=CoTrackerPoints(TinyCoTracker()))
    assert np.allclose(view.flow[1:] * np.hypot(120, 79), 5)  # flow is measured at half size
    assert np.allclose(view.step[1:] * np.hypot(239, 157), 2, atol=0.01)
    with pytest.raises(VapError, match="Is it RAFT"):
        RaftFlow(lambda a, b: a)(frames[0], frames[1])
    assert farneback(frames[0], frames[1]).shape == (157, 239, 2)


def still_view(frames: int) -> Viewpoint:
    return Viewpoint(
        flow=np.zeros(frames),
        homography=np.broadcast_to(np.eye(3), (frames, 3, 3)).copy(),
        inliers=np.ones(frames),
        residual=np.zeros(frames),
        cut=np.zeros(frames, bool),
        frame_size_px=(WIDTH, HEIGHT),
    )


def hands_of(present: np.ndarray, speed_px: float = 3.0) -> Hands:
    """Hands that go right steadily wherever `present` (T, 2) says that they are there."""
    frames = len(present)
    joints = np.random.default_rng(0).uniform(0, 40, (1, 2, 21, 2)) + np.zeros((frames, 1, 1, 1))
    joints[..., 0] += speed_px * np.arange(frames)[:, None, None]
    box = np.concatenate([joints.min(2), joints.max(2)], -1)
    joints[~present], box[~present] = np.nan, np.nan
    return Hands(
        joints_px=joints,
        joints_m=np.full((frames, 2, 21, 3), np.nan),
        box_px=box,
        confidence=present.astype(float),
        source=np.where(present, DETECTED, ABSENT).astype(np.uint8),
    )


SHORT = ClipSettings(min_frames=5, max_frames=20)


def test_clips_are_the_longest_runs_with_hands() -> None:
    present = np.zeros((60, 2), bool)
    present[3:12, 0] = present[10:30, 1] = present[40:44, 1] = present[50:60, 0] = True
    clips = select_clips(hands_of(present), None, 30.0, SHORT)
    assert [(clip.start, clip.stop) for clip in clips] == [(3, 23), (23, 30), (50, 60)]
    assert clips[2].hands == (1.0, 0.0)
    assert clips[0].motion == pytest.approx(clips[2].motion, rel=0.2)
    assert clips[0].motion > 1  # 3 px a frame of a 50 px hand, at 30 Hz


def test_cuts_shakes_and_drift_end_clips() -> None:
    hands, view = hands_of(np.ones((60, 2), bool)), still_view(60)
    view.cut[10] = True
    view.homography[30, 0, 2] = 40.0  # a jolt
    view.homography[40:, 0, 2] = 0.05 * DIAGONAL  # a pan that is quick, but no jolt
    tuned = replace(SHORT, max_frames=60, max_step=0.06, max_drift=0.3)
    found = [(clip.start, clip.stop, round(clip.drift, 2)) for clip in select_clips(hands, view, 30.0, tuned)]
    assert found[:2] == [(0, 10, 0.0), (10, 30, 0.0)]
    assert found[2] == (30, 46, 0.3)
    assert all(stop - start <= 7 for start, stop, _ in found[3:])


def test_resting_and_guessed_hands_make_no_clips() -> None:
    present = np.ones((30, 2), bool)
    assert select_clips(hands_of(present, speed_px=0.0), None, 30.0, SHORT) == []
    guessed = hands_of(present)
    guessed.source[5:25] = INTERPOLATED
    assert select_clips(guessed, None, 30.0, replace(SHORT, max_frames=30)) == []


def test_a_hand_that_only_moves_with_the_camera_rests() -> None:
    hands, view = hands_of(np.ones((30, 2), bool)), still_view(30)
    view.homography[1:, 0, 2] = 3.0
    assert np.nanmax(hand_motion(hands, view)) < 1e-9
    assert np.nanmin(hand_motion(hands, None)[1:]) > 0.04


def test_short_absences_are_borne_if_asked() -> None:
    present = np.ones((30, 2), bool)
    present[10:12] = present[20:24] = False
    hands = hands_of(present)
    borne = select_clips(hands, None, 30.0, replace(SHORT, max_absent=2))
    assert [(clip.start, clip.stop) for clip in borne] == [(0, 20), (24, 30)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_clips_are_disjoint_in_order_and_of_allowed_length(frames: int, seed: int, absent: int) -> None:
    rng = np.random.default_rng(seed)
    hands, view = hands_of(rng.random((frames, 2)) < 0.8), still_view(frames)
    view.cut[rng.random(frames) < 0.1] = True
    view.homography[:, 0, 2] = rng.normal(0, 5, frames)
    tuned = ClipSettings(min_frames=3, max_frames=12, max_absent=absent, min_motion=0.0, max_interpolated=1.0)
    clips = select_clips(hands, view, 30.0, tuned)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(clips))
    for clip in clips:
        inside = slice(clip.start, clip.stop)
        assert 3 <= len(clip) <= 12
        assert hands.present[clip.start].any()
        assert not view.cut[clip.start + 1 : clip.stop].any()
        assert view.step[clip.start + 1 : clip.stop].max(initial=0) <= tuned.max_step
        assert clip.drift <= tuned.max_drift
        if absent == 0:
            assert hands.present[inside].any(1).all()


def test_impossible_lengths_are_told() -> None:
    with pytest.raises(VapError, match="25 frames"):
        ClipSettings(min_frames=30, max_frames=20)
