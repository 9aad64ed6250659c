"""Algorithm 1 of the paper: detections → tracklets → handedness → merged tracks → at most one left and one right hand.

Every stage is a function from arrays to arrays, over all frames at once. A tracklet is a number per detection row
(−1: dropped); rows are in the order of frames, as `Detections` keeps them. Linking is in linking.py.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from vap_gym.recover.hands.detections import Detections
from vap_gym.recover.hands.linking import (
    DROPPED,
    TrackSettings,
    best_matching,
    hand_size,
    joint_distance,
    keep_confident,
    labels,
    link,
    objects,
    shape_distance,
)


def algorithm_1(table: Detections, settings: TrackSettings) -> Int64[np.ndarray, "T 2"]:
    """Return which detection is the left and the right hand of every frame, −1 where none (paper, Algorithm 1)."""
    keep = keep_confident(table, settings)
    track = link(table, keep, settings)
    track, side = sides(table, track, settings)
    track = merge(table, track, side, settings)
    return one_hand_a_side(table, track, side, settings)


def sides(
    table: Detections, track: Int64[np.ndarray, "D"], settings: TrackSettings
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (track, side): tracklets cut where they change hands for good, and 0 left or 1 right for every row.

    The most likely sequence of sides of every tracklet (two hidden states, detections that are wrong at `flip_rate`,
    changes at `swap_rate`): a lone flip is corrected, a lasting change is a swap of hands, where the tracklet is cut.
    """
    rows = np.argsort(track, kind="stable")
    rows = rows[track[rows] >= 0]
    wrong, swap = settings.flip_rate, settings.swap_rate
    vote = np.log((1 - wrong) / wrong) * (2 * table.right - 1) * np.minimum(table.confidence, 1)
    side = np.zeros(len(track), np.int64)
    begins = np.flatnonzero(np.diff(track[rows], prepend=DROPPED))
    side[rows] = two_state_path(vote[rows], begins, np.log((1 - swap) / swap))
    cut = np.ones(len(rows), bool)
    cut[1:] = (np.diff(track[rows]) != 0) | (np.diff(side[rows]) != 0)
    new = np.full(len(track), DROPPED, np.int64)
    new[rows] = np.cumsum(cut) - 1
    return new, side


def two_state_path(
    evidence: Float[np.ndarray, "N"], begins: Int64[np.ndarray, "S"], change_cost: float
) -> Int64[np.ndarray, "N"]:
    """Return the most likely states (0, 1) of S chains laid end to end: Viterbi's path, in one pass over plain numbers.

    `evidence` is the log odds of state 1 from each observation, `change_cost` the log odds against a change. With two
    states the difference of the two best paths' scores is all there is to know: it is clipped to ± the cost (the worse
    one can always come over from the better) and moved by the evidence.
    """
    odds = evidence.tolist()
    is_begin = np.zeros(len(odds) + 1, bool)
    is_begin[begins] = True
    is_begin[-1] = True
    fresh, lead = is_begin.tolist(), [0.0] * len(odds)
    difference = 0.0
    for n, value in enumerate(odds):
        difference = value if fresh[n] else min(max(difference, -change_cost), change_cost) + value
        lead[n] = difference
    path, state = [0] * len(odds), 0
    for n in range(len(odds) - 1, -1, -1):
        if fresh[n + 1]:
            state = int(lead[n] > 0)
        elif state and lead[n] < -change_cost:
            state = 0  # being in 1 at n + 1 is best reached from 0
        elif not state and lead[n] > change_cost:
            state = 1
        path[n] = state
    return np.asarray(path, np.int64)


def merge(
    table: Detections, track: Int64[np.ndarray, "D"], side: Int64[np.ndarray, "D"], settings: TrackSettings
) -> Int64[np.ndarray, "D"]:
    """Return tracklets of one side joined across gaps of up to `merge_gap` frames, where motion carries on.

    Ends are extrapolated toward one another at their own speed; the nearer they come, the sooner they are joined. A
    tracker's equal numbers join across any gap. Tracklets of fewer than `min_tracklet_frames` are dropped.
    """
    track = _long_enough(track, _at_most(settings.min_tracklet_frames, table.frames))
    if not (track >= 0).any():
        return track
    first, last = _ends(track)
    velocity_out, velocity_in = _velocities(table, track, first, last)
    size = hand_size(table.box_px)
    tail, head, gap = _successions(table, first, last, settings.merge_gap + 1)
    same, other = objects(table, last[tail], first[head])
    (able,) = np.nonzero((side[last[tail]] == side[first[head]]) & ~other & ((gap <= settings.merge_gap + 1) | same))
    tail, head, gap, same = tail[able], head[able], gap[able], same[able]
    a, b = table.joints_px[last[tail]], table.joints_px[first[head]]
    ahead = np.minimum(gap, 4)[:, None] * 0.5  # half of the way from each end, and not too far
    moved = (velocity_out[tail] + velocity_in[head]) * ahead
    near = joint_distance(a + moved[:, None], b) / (0.5 * (size[last[tail]] + size[first[head]]))
    shape = shape_distance(a, b) / (0.5 * (size[last[tail]] + size[first[head]]))
    wide = np.sqrt(np.minimum(gap, 9) / 9)
    (close,) = np.nonzero(((near <= settings.merge_joints * wide) & (shape <= settings.merge_shape * wide)) | same)
    score = -near[close] - shape[close] - 0.05 * gap[close] + 10 * same[close]
    chosen = close[best_matching(tail[close], head[close], score)]
    successor = np.full(len(last), -1, np.int64)
    successor[tail[chosen]] = head[chosen]
    joined = labels(successor, np.ones(len(last), bool))
    return np.where(track >= 0, joined[track], DROPPED)


def one_hand_a_side(
    table: Detections, track: Int64[np.ndarray, "D"], side: Int64[np.ndarray, "D"], settings: TrackSettings
) -> Int64[np.ndarray, "T 2"]:
    """Return the row of every frame's left and right hand, or −1.

    Tracks that are short or unsure go first. Of the others, the one with the most confidence in all takes its frames;
    a weaker one gets what frames of its side are left: a third hand is dropped wherever both hands are there. So is a
    ghost: a track that runs along the other hand's path, in frames where that was taken for this one.
    """
    rows_of = np.full((table.frames, 2), -1, np.int64)
    (rows,) = np.nonzero(track >= 0)
    if not len(rows):
        return rows_of
    count = np.bincount(track[rows])
    weight = np.bincount(track[rows], table.confidence[rows])
    enough = _at_most(settings.min_track_frames, table.frames)
    good = (count >= enough) & (weight >= settings.min_track_confidence * count)
    taken = np.zeros((table.frames, 2), bool)
    first, last = _ends(track)
    by_track = rows[np.argsort(track[rows], kind="stable")]
    begin = np.cumsum(count) - count
    for number in np.argsort(-weight, kind="stable").tolist():
        if not good[number]:
            continue
        mine = by_track[begin[number] : begin[number] + count[number]]
        which = int(side[mine[0]])
        if _is_ghost(table, mine, rows_of[:, 1 - which]):
            continue
        span = slice(int(table.frame[first[number]]), int(table.frame[last[number]]) + 1)
        free = ~taken[table.frame[mine], which]
        if free.mean() < 0.5:
            continue  # a third hand: most of its time its side is taken
        rows_of[table.frame[mine[free]], which] = mine[free]
        taken[span, which] = True
    return rows_of


def _is_ghost(table: Detections, mine: NDArray[np.int64], other_row: NDArray[np.int64]) -> bool:
    """Whether most of a track's rows lie where the other side's track passes without being seen in these frames."""
    (known,) = np.nonzero(other_row >= 0)
    if not len(known):
        return False
    when = table.frame[mine]
    unseen = (other_row[when] < 0) & (when > known[0]) & (when < known[-1])
    path = table.joints_px[other_row[known]].mean(1)
    at = np.stack([np.interp(when, known, path[:, axis]) for axis in range(2)], -1)
    off = np.linalg.norm(table.joints_px[mine].mean(1) - at, axis=-1) / hand_size(table.box_px[mine])
    return bool((unseen & (off < 0.2)).mean() > 0.5)


def _successions(
    table: Detections, first: NDArray[np.int64], last: NDArray[np.int64], within: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of tracklets (tail, head, frames between them): head begins 1 … `within` frames after tail ends, or is the
    next one in which a tracker sees the same hand."""
    order = np.argsort(table.frame[first], kind="stable")
    begin, end = table.frame[first][order], table.frame[last]
    low = np.searchsorted(begin, end, side="right")
    count = np.searchsorted(begin, end + within, side="right") - low
    tail = np.repeat(np.arange(len(last)), count)
    head = order[np.arange(len(tail)) + (low - (np.cumsum(count) - count))[tail]]
    by_object = order[np.argsort(table.object[first][order], kind="stable")]
    far = table.frame[first[by_object[1:]]] - end[by_object[:-1]] > within
    tail, head = np.concatenate([tail, by_object[:-1][far]]), np.concatenate([head, by_object[1:][far]])
    return tail, head, table.frame[first[head]] - end[tail]


def _at_most(least: int, frames: int) -> int:
    """A least number of frames, asked of a video so short that it could hardly have them: half of it will do."""
    return min(least, (frames + 1) // 2)


def _long_enough(track: NDArray[np.int64], least: int) -> NDArray[np.int64]:
    """Tracklets of at least so many rows, numbered anew."""
    count = np.bincount(track[track >= 0], minlength=int(track.max(initial=DROPPED)) + 1)
    number = np.where(count >= least, np.cumsum(count >= least) - 1, DROPPED)
    return np.where(track >= 0, number[track], DROPPED) if len(number) else track


def _ends(track: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last row of every tracklet; tracklets are numbered 0, 1, … without gaps."""
    (rows,) = np.nonzero(track >= 0)
    count = int(track.max(initial=DROPPED)) + 1
    first, last = np.zeros(count, np.int64), np.zeros(count, np.int64)
    first[track[rows[::-1]]] = rows[::-1]
    last[track[rows]] = rows
    return first, last


def _velocities(
    table: Detections, track: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean motion of the joints at the end and at the beginning of tracklets, px a frame, over up to three rows."""
    rows = np.argsort(track, kind="stable")
    rows = rows[track[rows] >= 0]
    place = np.zeros(len(track), np.int64)
    place[rows] = np.arange(len(rows))
    centre = table.joints_px.mean(1)

    def between(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
        time = np.maximum(table.frame[b] - table.frame[a], 1)[:, None]
        speed: NDArray[np.float64] = (centre[b] - centre[a]) / time
        return speed

    before = rows[np.maximum(place[last] - 2, place[first])]
    after = rows[np.minimum(place[first] + 2, place[last])]
    return between(before, last), between(first, after)
