"""Metrics agree with the reference implementations on real clips, and say what is wrong with what they cannot score."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vap_gym import metrics
from vap_gym.data.video import read_video
from vap_gym.errors import VapError

CLIPS = ("rt1", "bridge", "languagetable")


def _clip(seed: int = 0, shape: tuple[int, ...] = (5, 24, 36, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _moving_square(frames: int = 8, step: int = 4) -> np.ndarray:
    clip = np.full((frames, 48, 72, 3), 40, np.uint8)
    for t in range(frames):
        clip[t, 16:32, 8 + step * t : 24 + step * t] = (220, 60, 60)
    return clip


# --- against the references -------------------------------------------------------------------------------------------


@pytest.fixture(params=[(name, row) for name in CLIPS for row in ("pred", "frozen_first_frame", "time_reversed")])
def scored(request, shared_data: Path):
    """A generated clip, its truth, and the figures that the reference implementations gave them."""
    name, row = request.param
    folder = shared_data / "generated_vs_real"
    truth = read_video(folder / f"irasim_{name}_short_gt.mp4")
    if row == "pred":
        clip = read_video(folder / f"irasim_{name}_short_pred.mp4")
    else:
        clip = np.repeat(truth[:1], len(truth), axis=0) if row == "frozen_first_frame" else truth[::-1]
    return clip, truth, json.loads((folder / "expected_metrics.json").read_text())[name][row]


def test_motion_scores_equal_those_of_physics_iq(scored) -> None:
    clip, truth, expected = scored
    score = metrics.motion_iou(clip, truth)
    assert score.spatio_temporal == pytest.approx(expected["st_iou"], abs=2e-4)
    assert score.spatial == pytest.approx(expected["spatial_iou"], abs=2e-4)
    assert score.weighted_spatial == pytest.approx(expected["weighted_spatial_iou"], abs=2e-4)
    assert metrics.st_iou(clip, truth) == score.spatio_temporal
    assert metrics.spatial_iou(clip, truth) == score.spatial
    assert metrics.weighted_spatial_iou(clip, truth) == score.weighted_spatial


def test_ssim_equals_scikit_images(scored) -> None:
    clip, truth, expected = scored
    assert metrics.ssim(clip, truth) == pytest.approx(expected["ssim_gaussian_11_1p5"], abs=1e-4)
    assert metrics.ssim(clip, truth, window="uniform") == pytest.approx(expected["ssim_skimage_default"], abs=1e-4)


def test_psnr_equals_the_reference_over_frames_that_differ(scored) -> None:
    clip, truth, expected = scored
    differ = (clip != truth).any(axis=(1, 2, 3))
    frames = metrics.psnr_per_frame(clip[differ], truth[differ], cap_db=math.inf)
    assert frames.mean() == pytest.approx(expected["psnr_mean_finite"], abs=1e-3)


def test_only_motion_scores_rank_reversed_and_frozen_clips_below_predictions(shared_data: Path) -> None:
    folder = shared_data / "generated_vs_real"
    for name in CLIPS:
        truth = read_video(folder / f"irasim_{name}_short_gt.mp4")
        good = read_video(folder / f"irasim_{name}_short_pred.mp4")
        frozen = np.repeat(truth[:1], len(truth), axis=0)
        score = [metrics.st_iou(clip, truth) for clip in (good, truth[::-1], frozen)]
        assert score == sorted(score, reverse=True)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_equal_clips_score_the_best_there_is() -> None:
    clip = _moving_square()
    assert metrics.psnr(clip, clip) == metrics.PSNR_CAP_DB
    assert metrics.ssim(clip, clip) == pytest.approx(1.0)
    assert metrics.motion_iou(clip, clip) == metrics.MotionIou(spatio_temporal=1.0, spatial=1.0, weighted_spatial=1.0)


def test_psnr_is_capped_per_frame_before_the_mean() -> None:
    truth = np.zeros((2, 8, 8, 3), np.uint8)
    prediction = truth.copy()
    prediction[1] = 255
    np.testing.assert_allclose(metrics.psnr_per_frame(prediction, truth), [40.0, 0.0], atol=1e-9)
    assert metrics.psnr(prediction, truth) == pytest.approx(20.0)


def test_psnr_of_a_constant_error_is_known() -> None:
    truth = np.full((1, 8, 8, 3), 100, np.uint8)
    assert metrics.psnr(truth + np.uint8(10), truth) == pytest.approx(20 * math.log10(25.5))


def test_metrics_of_pictures_do_not_ask_which_is_the_truth() -> None:
    a, b = _clip(0), _clip(1)
    assert metrics.psnr(a, b) == pytest.approx(metrics.psnr(b, a))
    assert metrics.ssim(a, b) == pytest.approx(metrics.ssim(b, a))
    assert metrics.st_iou(a, b) == pytest.approx(metrics.st_iou(b, a))


# --- motion -----------------------------------------------------------------------------------------------------------


def test_a_frozen_clip_scores_the_share_of_frames_without_motion() -> None:
    truth = _moving_square()
    still = np.repeat(truth[:1], 4, axis=0)
    both = np.concatenate([still, truth])  # motion begins after the fourth frame
    frozen = np.repeat(both[:1], len(both), axis=0)
    moving = metrics.motion_masks(both).any(axis=(1, 2))
    assert 0 < moving.sum() < len(both)
    assert metrics.st_iou(frozen, both) == pytest.approx(1 - moving.mean())


def test_motion_masks_lie_where_the_square_moves_and_are_empty_at_first() -> None:
    masks = metrics.motion_masks(_moving_square())
    assert not masks[0].any()
    assert masks[-1, 20:28, 30:52].mean() > 0.8
    assert not masks[:, :10].any()
    assert not masks[:, 38:].any()


def test_masks_are_not_lost_at_the_frames_edge() -> None:
    clip = np.zeros((3, 20, 30, 3), np.uint8)
    clip[1:, :8] = 255
    assert metrics.motion_masks(clip)[1:, :8].all()


@pytest.mark.parametrize("seed", range(3))
def test_motion_masks_equal_opencvs_arithmetic(seed: int) -> None:
    """The steps of physics-IQ-benchmark done by OpenCV itself, on moving squares with noise."""
    cv2 = pytest.importorskip("cv2")
    noise = np.random.default_rng(seed).integers(-12, 13, (8, 48, 72, 3))
    clip = np.clip(_moving_square().astype(int) + noise, 0, 255).astype(np.uint8)
    box, wanted = np.ones((5, 5), np.uint8), [np.zeros((48, 72), bool)]
    for t, frame in enumerate(clip):
        smooth = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (5, 5), 0)
        if t == 0:
            average = smooth.astype(np.float32)
            continue
        cv2.accumulateWeighted(smooth, average, metrics.MOTION_RATE)
        moving = (cv2.absdiff(smooth, cv2.convertScaleAbs(average)) > metrics.MOTION_THRESHOLD).astype(np.uint8)
        opened = cv2.morphologyEx(moving, cv2.MORPH_OPEN, box)
        wanted.append(cv2.morphologyEx(opened, cv2.MORPH_CLOSE, box).astype(bool))
    masks = metrics.motion_masks(clip)
    assert 0 < masks.mean() < 1
    assert (masks != np.stack(wanted)).mean() < 1e-4


@settings(max_examples=20, deadline=None)
@given(seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)), flip=st.sampled_from([(1,), (2,), (1, 2)]))
def test_motion_scores_do_not_care_for_mirrors_nor_which_clip_is_the_truth(seeds: tuple[int, int], flip) -> None:
    a, b = (np.concatenate([_clip(s, (1, 24, 36, 3)).repeat(2, 0), _clip(s + 1, (2, 24, 36, 3))]) for s in seeds)
    score = dataclasses.astuple(metrics.motion_iou(a, b))
    assert score == dataclasses.astuple(metrics.motion_iou(b, a))
    mirrored = metrics.motion_iou(np.flip(a, flip), np.flip(b, flip))
    assert score == pytest.approx(dataclasses.astuple(mirrored))  # sums in another order
    assert all(0 <= x <= 1 for x in score)
    assert dataclasses.astuple(metrics.motion_iou(a, a)) == (1, 1, 1)


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blackswan", "car-shadow", "soapbox"])
def test_j_and_f_equal_those_of_davis(shared_data: Path, name: str) -> None:
    folder = shared_data / "mask_metrics"
    expected = json.loads((folder / "expected_J_F.json").read_text())[name]
    masks = np.load(folder / f"{name}.npz")
    prediction, truth = masks["segmentation"], masks["annotation"]
    np.testing.assert_allclose(metrics.region_j_per_frame(prediction, truth), expected["J"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(metrics.boundary_f_per_frame(prediction, truth), expected["F"], atol=1e-6, rtol=0)


def test_j_and_f_of_empty_masks() -> None:
    nothing = np.zeros((1, 40, 60), bool)
    square = nothing.copy()
    square[:, 10:20, 10:20] = True
    for metric in (metrics.region_j_per_frame, metrics.boundary_f_per_frame):
        assert metric(nothing, nothing) == 1
        assert metric(square, square) == 1
        assert metric(nothing, square) == 0
        assert metric(square, nothing) == 0
    with pytest.raises(VapError, match=r"prediction must be bool masks of shape \(T, H, W\), both alike, got uint8"):
        metrics.region_j_per_frame(square.astype(np.uint8), square)


def _blobs(seed: int, shape: tuple[int, int, int] = (3, 40, 56)) -> np.ndarray:
    """Masks of a few random boxes, some cut by the frame's edge."""
    rng, masks = np.random.default_rng(seed), np.zeros(shape, bool)
    for mask in masks:
        for _ in range(3):
            top, left = rng.integers(-8, shape[1]), rng.integers(-8, shape[2])
            mask[max(top, 0) : max(top + rng.integers(4, 24), 0), max(left, 0) : max(left + rng.integers(4, 24), 0)] = 1
    return masks


@pytest.mark.parametrize("dilation", [0.001, 0.02, 0.06])
def test_boundary_iou_equals_that_of_its_definition_by_distances(dilation: float) -> None:
    """Cheng et al.: of a mask, what is within d of its outside (chessboard distance); the frame's edge is outside."""
    from scipy.ndimage import distance_transform_cdt

    prediction, truth = _blobs(0), _blobs(1)
    radius = max(1, round(dilation * math.hypot(40, 56)))

    def band(mask: np.ndarray) -> np.ndarray:
        inside = distance_transform_cdt(np.pad(mask, 1), metric="chessboard")[1:-1, 1:-1]
        return mask & (inside <= radius)

    wanted = []
    for a, b in zip(prediction, truth):
        wanted.append((band(a) & band(b)).sum() / (band(a) | band(b)).sum())
    np.testing.assert_allclose(metrics.boundary_iou_per_frame(prediction, truth, dilation=dilation), wanted)


def test_boundary_iou_looks_at_outlines_where_j_looks_at_regions() -> None:
    big = np.zeros((1, 200, 200), bool)
    big[:, 20:180, 20:180] = True
    shifted = np.roll(big, 4, axis=2)
    assert metrics.region_j_per_frame(shifted, big)[0] > 0.94
    assert metrics.boundary_iou_per_frame(shifted, big)[0] < 0.65
    whole = metrics.boundary_iou_per_frame(shifted, big, dilation=1.0)  # a band as wide as the frame is the mask
    assert whole == pytest.approx(metrics.region_j_per_frame(shifted, big))


@settings(max_examples=25, deadline=None)
@given(seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)), flip=st.sampled_from([(1,), (2,), (1, 2)]))
def test_mask_scores_are_symmetric_and_mostly_do_not_care_for_mirrors(seeds: tuple[int, int], flip) -> None:
    a, b = _blobs(seeds[0]), _blobs(seeds[1])
    ab, ba = metrics.mask_scores(a, b), metrics.mask_scores(b, a)
    assert dataclasses.astuple(ab) == pytest.approx(dataclasses.astuple(ba))
    assert all(0 <= score <= 1 for score in dataclasses.astuple(ab))
    assert dataclasses.astuple(metrics.mask_scores(a, a)) == (1, 1, 1, 1)
    mirrored = metrics.mask_scores(np.flip(a, flip), np.flip(b, flip))
    assert mirrored.j == ab.j  # F is not: DAVIS' outlines lie to the left of and above an edge
    assert mirrored.boundary_iou == ab.boundary_iou
    assert ab.j_and_f == pytest.approx((ab.j + ab.f) / 2)


@pytest.mark.parametrize("name", ["blackswan", "car-shadow", "soapbox"])
def test_mask_scores_are_the_means_over_real_frames(shared_data: Path, name: str) -> None:
    expected = json.loads((shared_data / "mask_metrics" / "expected_J_F.json").read_text())[name]
    masks = np.load(shared_data / "mask_metrics" / f"{name}.npz")
    score = metrics.mask_scores(masks["segmentation"], masks["annotation"])
    assert score.j == pytest.approx(np.mean(expected["J"]), abs=1e-6)
    assert score.f == pytest.approx(np.mean(expected["F"]), abs=1e-6)
    assert 0 < score.boundary_iou < score.j


# --- what is judged ---------------------------------------------------------------------------------------------------


def test_adherence_is_a_distance_in_pixels_and_a_lost_gripper_is_infinitely_far() -> None:
    commanded = np.array([[10.0, 10.0], [10.0, 10.0], [np.nan, np.nan]])
    seen = np.array([[13.0, 14.0], [np.nan, np.nan], [1.0, 1.0]])
    np.testing.assert_array_equal(metrics.adherence_px(commanded, seen), [5.0, np.inf, np.nan])


def test_object_error_is_in_metres_and_an_absent_object_has_none() -> None:
    true = np.array([[[0.3, 0.0, 0.02], [np.nan] * 3], [[0.3, 0.0, 0.02], [0.1, 0.1, 0.02]]])
    judged = np.array([[[0.3, 0.04, 0.05], [0.0] * 3], [[np.nan] * 3, [0.1, 0.1, 0.02]]])
    np.testing.assert_allclose(metrics.object_error_m(judged, true), [[0.05, np.nan], [np.inf, 0.0]])


# --- intervals --------------------------------------------------------------------------------------------------------


def test_bootstrap_interval_is_seeded_and_covers_the_mean() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    interval = metrics.bootstrap_interval(values)
    assert interval == metrics.bootstrap_interval(values)
    assert interval.low < interval.value < interval.high
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert interval.samples == 400
    assert str(metrics.bootstrap_interval([1.0, 1.0])) == "1 [1, 1]"


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [metrics.bootstrap_interval(rng.normal(size=120), level=0.9, resamples=300) for _ in range(300)]
    assert np.mean([i.low <= 0 <= i.high for i in intervals]) == pytest.approx(0.9, abs=0.05)


def test_bootstrap_takes_other_statistics_of_whole_rows() -> None:
    rows = np.random.default_rng(0).uniform(1, 2, (100, 2))
    ratio = metrics.bootstrap_interval(rows, resamples=300, statistic=lambda r: float(r[:, 0].mean() / r[:, 1].mean()))
    assert ratio.low < ratio.value < ratio.high
    assert ratio.value == pytest.approx(rows[:, 0].mean() / rows[:, 1].mean())


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 200)
    a, b = hard + 0.1 + rng.normal(0, 0.05, 200), hard + rng.normal(0, 0.05, 200)
    paired = metrics.paired_bootstrap_interval(a, b)
    assert 0 < paired.low < 0.1 < paired.high < 0.2
    assert paired.value == pytest.approx((a - b).mean())


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim, metrics.st_iou])
def test_bad_clips_are_refused_in_three_parts(metric) -> None:
    good = _clip()
    with pytest.raises(
        VapError, match=r"prediction must be a uint8 array .* got float64 \(5, 24, 36, 3\)\. Float frames"
    ):
        metric(good / 255, good)
    with pytest.raises(VapError, match=r"truth must be .* shape \(T, H, W, 3\), got uint8 \(24, 36, 3\)"):
        metric(good, good[0])
    with pytest.raises(
        VapError, match=r"one shape \(T, H, W, 3\), got \(5, 24, 36, 3\) and \(4, 24, 36, 3\)\. Cut both"
    ):
        metric(good, good[:4])
    with pytest.raises(VapError, match=r"at least one frame and one pixel, got \(0, 24, 36, 3\)"):
        metric(good[:0], good[:0])


def test_other_bad_input_is_refused_in_three_parts() -> None:
    with pytest.raises(VapError, match=r"window is 11 px wide, but frames are 10 x 8"):
        metrics.ssim(_clip(shape=(1, 8, 10, 3)), _clip(shape=(1, 8, 10, 3)))
    with pytest.raises(
        VapError, match=r"seen_px and commanded_px must have one shape \(\*batch, 2\), got \(3, 2\) and"
    ):
        metrics.adherence_px(np.zeros((4, 2)), np.zeros((3, 2)))
    with pytest.raises(VapError, match=r"no NaN, got \(2,\) with 1 NaN\. Drop what does not apply"):
        metrics.bootstrap_interval([1.0, np.nan])
    with pytest.raises(VapError, match="at least one sample"):
        metrics.bootstrap_interval([])
    with pytest.raises(VapError, match=r"level must be between 0 and 1, got 95.0"):
        metrics.bootstrap_interval([1.0, 2.0], level=95.0)
    with pytest.raises(VapError, match=r"one shape, got \(2,\) and \(3,\)"):
        metrics.paired_bootstrap_interval([1, 2], [1, 2, 3])
