"""Algorithm 1 on made-up hands whose truth is known: what is found again of what faulty detectors report."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vap_gym.recover.hands.detections import Detections, detections, no_detections
from vap_gym.recover.hands.hands import (
    ABSENT,
    DETECTED,
    INTERPOLATED,
    REESTIMATED,
    HandSettings,
    Recovered,
    fill,
    gather,
    recover,
    without_outliers,
)
from vap_gym.recover.hands.linking import TrackSettings, best_matching, box_iou, keep_confident, link
from vap_gym.recover.hands.synthetic import Faults, TrueHands, crossing_hands, seen
from vap_gym.recover.hands.tracklets import algorithm_1, merge, sides, two_state_path

RATE_HZ = 30.0
NO_FAULTS = Faults(missed=0.0, flipped=0.0, noise_px=0.0)


def found_share(truth: TrueHands, table: Detections, within_px: float = 5.0) -> float:
    """Share of all joints of both hands, in all frames, that are recovered within some pixels at 640 × 480."""
    off = np.linalg.norm(recover(table, RATE_HZ).joints_px - truth.joints_px, axis=-1)
    return float((np.nan_to_num(off, nan=np.inf) < within_px).mean())


@pytest.mark.parametrize("seed", range(12))
def test_misses_and_flips_are_made_good(seed: int) -> None:
    """20 % missed, 10 % flipped, hands that cross: the project's bar is 95 %."""
    truth = crossing_hands(300, seed=seed)
    assert found_share(truth, seen(truth, Faults(missed=0.2, flipped=0.1, noise_px=1.5), seed=seed)) > 0.98


@pytest.mark.parametrize(
    ("faults", "least"),
    [
        (Faults(third_hand=0.6, doubles=0.1), 0.98),
        (Faults(noise_px=3.0), 0.95),
        (Faults(missed=0.4), 0.95),
        (Faults(flipped=0.2), 0.98),
        (Faults(mirrored=True), 0.9),
        (Faults(hidden_m=0.06), 0.94),
    ],
)
def test_worse_detectors_are_borne(faults: Faults, least: float) -> None:
    truths = [crossing_hands(300, seed=seed) for seed in range(4)]
    shares = [found_share(truth, seen(truth, faults, seed=seed)) for seed, truth in enumerate(truths)]
    assert min(shares) > least


def test_swapped_labels_for_the_whole_video_swap_the_hands() -> None:
    """The test above does not pass by position alone: sides are what the detector mostly says."""
    truth = crossing_hands(120, seed=2, crossing=False)
    table = seen(truth, Faults(), seed=2)
    swapped = recover(replace(table, right=1 - table.right), RATE_HZ)
    off = np.linalg.norm(swapped.joints_px[:, ::-1] - truth.joints_px, axis=-1)
    assert (np.nan_to_num(off, nan=np.inf) < 5).mean() > 0.95


def test_a_perfect_detector_is_left_as_it_is() -> None:
    truth = crossing_hands(90, seed=3)
    table = seen(truth, NO_FAULTS, seed=0)
    hands = gather(table, algorithm_1(table, TrackSettings()))
    assert np.allclose(hands.joints_px, truth.joints_px)
    assert np.allclose(hands.joints_m, truth.joints_m)
    assert (hands.source == DETECTED).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 60), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_every_hand_is_a_detection_of_its_frame_and_used_once(seed, frames, missed, flipped, third) -> None:
    truth = crossing_hands(frames + 1, seed=seed)
    table = seen(truth, Faults(missed=missed, flipped=flipped, third_hand=third, noise_px=5.0, doubles=0.2), seed=seed)
    rows = algorithm_1(table, TrackSettings())
    assert rows.shape == (frames + 1, 2)
    frame, _ = np.nonzero(rows >= 0)
    chosen = rows[rows >= 0]
    assert np.array_equal(table.frame[chosen], frame)
    assert len(np.unique(chosen)) == len(chosen)
    hands = recover(table, RATE_HZ)
    assert np.isfinite(hands.joints_px).all((2, 3)).tolist() == hands.present.tolist()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 8), st.floats(-500, 500))
def test_picture_size_and_place_do_not_matter(seed: int, scale: float, shift: float) -> None:
    table = seen(crossing_hands(40, seed=seed), Faults(), seed=seed)
    moved = replace(table, joints_px=table.joints_px * scale + shift, box_px=table.box_px * scale + shift)
    rows = algorithm_1(table, TrackSettings())
    assert np.array_equal(algorithm_1(moved, TrackSettings()), rows)
    a, b = recover(table, RATE_HZ), recover(moved, RATE_HZ)
    assert np.allclose(b.joints_px, a.joints_px * scale + shift, atol=1e-6, equal_nan=True)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_order_of_detections_within_frames_does_not_matter(seed: int) -> None:
    table = seen(crossing_hands(40, seed=seed), Faults(third_hand=0.4), seed=seed)
    shuffled = table.at(np.random.default_rng(seed).permutation(len(table)))
    names = ("frame", "box_px", "confidence", "right", "joints_px", "joints_m", "object")
    again = detections(40, **{name: getattr(shuffled, name) for name in names})
    a, b = (gather(t, algorithm_1(t, TrackSettings())).joints_px for t in (table, again))
    assert np.array_equal(a, b, equal_nan=True)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_mirrored_in_space_left_and_right_change_places(seed: int) -> None:
    table = seen(crossing_hands(60, seed=seed), Faults(), seed=seed)
    box = table.box_px * np.array([-1.0, 1, -1, 1])
    mirrored = replace(
        table, right=1 - table.right, joints_px=table.joints_px * np.array([-1.0, 1]), box_px=box[:, [2, 1, 0, 3]]
    )
    assert np.array_equal(algorithm_1(mirrored, TrackSettings())[:, ::-1], algorithm_1(table, TrackSettings()))


def test_a_third_hand_is_dropped_where_both_hands_are_there() -> None:
    truth = crossing_hands(200, seed=5)
    table = seen(truth, replace(NO_FAULTS, third_hand=1.0), seed=5)
    assert len(table) == 600
    hands = gather(table, algorithm_1(table, TrackSettings()))
    assert np.allclose(hands.joints_px, truth.joints_px)


def test_unusable_detections_are_as_none_at_all() -> None:
    truth = crossing_hands(60, seed=6)
    table = seen(truth, NO_FAULTS, seed=6)
    joints, box, confidence = table.joints_px.copy(), table.box_px.copy(), table.confidence.copy()
    joints[10, 3, 0], joints[20], box[30, 2], confidence[40] = np.nan, np.inf, box[30, 0] - 5, np.nan
    bad = replace(table, joints_px=joints, box_px=box, confidence=confidence)
    hands = recover(bad, RATE_HZ)
    assert (hands.source == INTERPOLATED).sum() == 4
    assert np.nanmax(np.linalg.norm(hands.joints_px - truth.joints_px, axis=-1)) < 5


def test_of_two_reports_of_one_hand_the_surer_stays() -> None:
    truth = crossing_hands(1, seed=0, crossing=False)
    one = seen(truth, NO_FAULTS, seed=0)
    twice = detections(
        1,
        frame=np.array([0, 0]),
        confidence=np.array([0.6, 0.9]),
        **{n: np.repeat(getattr(one, n)[:1], 2, axis=0) for n in ("box_px", "right", "joints_px")},
    )
    assert keep_confident(twice, TrackSettings()).tolist() == [False, True]


def test_a_tracklet_that_changes_hands_is_cut_and_lone_flips_are_not() -> None:
    truth = crossing_hands(100, seed=1, crossing=False)
    table = seen(truth, NO_FAULTS, seed=1)
    table = table.at(np.flatnonzero(table.right == 1))
    right = np.ones(100)
    right[[10, 30, 31]] = 0  # lone mistakes
    right[60:] = 0  # another hand from here on
    table = replace(table, right=right)
    tuned = TrackSettings()
    track = link(table, keep_confident(table, tuned), tuned)
    assert len(np.unique(track)) == 1
    cut, side = sides(table, track, tuned)
    assert np.flatnonzero(np.diff(cut)).tolist() == [59]
    assert side.tolist() == [1] * 60 + [0] * 40


def test_pieces_of_a_hands_way_are_joined_over_a_long_gap_and_far_ones_are_not() -> None:
    truth = crossing_hands(100, seed=1, crossing=False)
    table = seen(truth, NO_FAULTS, seed=1)
    table = table.at((table.right == 1) & ((table.frame < 40) | (table.frame > 52)))
    tuned = TrackSettings()
    track, side = sides(table, link(table, keep_confident(table, tuned), tuned), tuned)
    assert len(np.unique(track)) == 2
    assert len(np.unique(merge(table, track, side, tuned))) == 1
    away = table.joints_px.copy()
    away[table.frame > 52] += 300
    assert len(np.unique(merge(replace(table, joints_px=away), track, side, tuned))) == 2
    numbered = replace(table, joints_px=away, object=np.full(len(table), 7))
    assert len(np.unique(merge(numbered, track, side, tuned))) == 1  # a tracker says that it is the same hand


def test_a_trackers_numbers_settle_who_is_who() -> None:
    """Both hands at one place with one shape and one label: only the tracker can tell."""
    truth = crossing_hands(30, seed=0, crossing=False)
    one = seen(truth, NO_FAULTS, seed=0)
    one = one.at(one.right == 1)
    table = detections(
        30,
        frame=np.repeat(one.frame, 2),
        confidence=np.full(60, 0.9),
        right=np.repeat(one.right, 2),
        box_px=np.repeat(one.box_px, 2, axis=0) + np.tile([[0.0] * 4, [60.0] * 4], (30, 1)),
        joints_px=np.repeat(one.joints_px, 2, axis=0) + np.tile([0.0, 60.0], 30)[:, None, None],
        object=np.tile([4, 9], 30),
    )
    track = link(table, np.ones(60, bool), TrackSettings())
    assert {len(np.unique(track[table.object == number])) for number in (4, 9)} == {1}
    assert len(np.unique(track)) == 2


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_videos_without_hands_have_none(frames: int) -> None:
    hands = recover(no_detections(frames), RATE_HZ)
    assert len(hands) == frames
    assert not hands.present.any()
    assert np.isnan(hands.joints_px).all()


def test_a_video_of_one_frame_keeps_its_hands() -> None:
    truth = crossing_hands(1, seed=0)
    hands = recover(seen(truth, NO_FAULTS, seed=0), RATE_HZ)
    assert np.allclose(hands.joints_px, truth.joints_px)


def test_gaps_are_filled_up_to_the_limit_and_only_inside() -> None:
    truth = crossing_hands(80, seed=8)
    table = seen(truth, NO_FAULTS, seed=8)
    gone = ((table.frame > 9) & (table.frame < 15)) | ((table.frame > 30) & (table.frame < 60)) | (table.frame < 3)
    hands = gather(table.at(~gone), algorithm_1(table.at(~gone), TrackSettings()))
    filled = fill(hands, 20)
    assert (filled.source[10:15] == INTERPOLATED).all()
    assert (filled.source[31:60] == ABSENT).all()
    assert (filled.source[:3] == ABSENT).all()
    assert np.linalg.norm(filled.joints_px[10:15] - truth.joints_px[10:15], axis=-1).max() < 3
    assert np.array_equal(filled.joints_px[15:31], hands.joints_px[15:31])


def test_a_recoverer_is_asked_for_missed_frames_in_the_interpolated_box() -> None:
    truth = crossing_hands(60, seed=9)
    table = seen(truth, replace(NO_FAULTS, missed=0.3), seed=9)
    asked = []

    def estimate(frame: np.ndarray, box_px: np.ndarray, right: np.ndarray) -> Recovered:
        asked.append((frame, right))
        joints = truth.joints_px[frame, right.astype(int)].copy()
        centre = 0.5 * (box_px[:, :2] + box_px[:, 2:])
        middle = 0.5 * (joints.min(1) + joints.max(1))
        assert np.linalg.norm(centre - middle, axis=-1).max() < 12
        joints[::2] = np.nan  # of every other one it finds no hand
        return Recovered(
            joints_px=joints, joints_m=truth.joints_m[frame, right.astype(int)], confidence=np.full(len(frame), 0.7)
        )

    hands = fill(gather(table, algorithm_1(table, TrackSettings())), 20, estimate)
    again = hands.source == REESTIMATED
    count = sum(len(frame) for frame, _ in asked)
    assert count == again.sum() + (hands.source == INTERPOLATED).sum() > 20
    assert np.allclose(hands.joints_px[again], truth.joints_px[again])
    assert (hands.confidence[again] == 0.7).all()


def test_a_detection_that_jumps_away_and_back_is_not_believed() -> None:
    truth = crossing_hands(40, seed=0)
    table = seen(truth, NO_FAULTS, seed=0)
    hands = gather(table, algorithm_1(table, TrackSettings()))
    hands.joints_px[17, 1] += 80
    kept = without_outliers(hands, HandSettings().outlier)
    assert np.argwhere(kept.source == ABSENT).tolist() == [[17, 1]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(-9, 9)), max_size=24))
def test_matching_is_one_to_one_and_as_greedy_as_said(pairs: list[tuple[int, int, int]]) -> None:
    i, j, score = (np.array([pair[k] for pair in pairs], float) for k in range(3))
    i, j = i.astype(int), j.astype(int)
    used: set[tuple[str, int]] = set()
    expected = []
    for n in np.argsort(-score, kind="stable").tolist():
        if ("i", i[n]) not in used and ("j", j[n]) not in used:
            used |= {("i", i[n]), ("j", j[n])}
            expected.append(n)
    assert best_matching(i, j, score).tolist() == sorted(expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-40, 40), min_size=1, max_size=9), st.integers(1, 60))
def test_two_state_path_is_the_best_of_all_paths(tenths: list[int], cost_tenths: int) -> None:
    evidence, cost = np.array(tenths) / 10, cost_tenths / 10

    def score(path: tuple[int, ...]) -> float:
        changes = sum(a != b for a, b in itertools.pairwise(path))
        return float(np.dot(path, evidence)) - cost * changes

    best = max(map(score, itertools.product((0, 1), repeat=len(evidence))))
    found = two_state_path(evidence, np.array([0]), cost)
    assert score(tuple(found.tolist())) == pytest.approx(best)


def test_iou_of_boxes() -> None:
    a = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 1, 3]], float)
    b = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [0, 0, 2, 2]], float)
    assert box_iou(a, b).tolist() == pytest.approx([1, 1 / 7, 0, 0])
