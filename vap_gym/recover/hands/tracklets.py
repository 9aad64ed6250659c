"""Algorithm 1 of the paper: detections → tracklets → handedness → merged tracks → at most one left and one right hand.

Every stage is a function from arrays to arrays, over all frames at once. A tracklet is a label per detection row
(−1: dropped); rows are in the order of frames, as `Detections` keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray

from vap_gym.recover.hands.detections import NO_OBJECT, Detections, usable

DROPPED = -1


@dataclass(frozen=True, kw_only=True)
class TrackSettings:
    """Thresholds of Algorithm 1. Lengths are shares of a hand's size (the diagonal of its box), times are frames."""

    min_confidence: float = 0.3
    duplicate_iou: float = 0.7  # two boxes of a frame that overlap more are one hand, if their joints agree too
    same_joints: float = 0.15  # mean distance of joints below which two detections may be the same hand
    link_iou: float = 0.2
    link_joints: float = 0.35
    link_turn: float = 0.1  # the same, from where the hand is expected by its motion
    link_shape: float = 0.1  # mean distance of joints once both hands are laid over one another; mirrored hands differ
    link_gap: int = 4  # missed frames that the first linking spans
    merge_gap: int = 20  # missed frames that merging spans
    merge_joints: float = 0.5  # mean distance of joints after extrapolation, at a gap of 9 frames or more
    merge_shape: float = 0.25
    flip_rate: float = 0.15  # how often a detector is expected to mistake left for right
    swap_rate: float = 1e-5  # how often a tracklet is expected to change hands
    min_tracklet_frames: int = 3  # shorter ones are chance, and would lead merging astray
    min_track_frames: int = 4
    min_track_confidence: float = 0.4


def box_iou(a: Float[np.ndarray, "N 4"], b: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N"]:
    """Return the intersection over union of N pairs of boxes (x0, y0, x1, y1); 0 where either has no area."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=-1)
    area_a, area_b = (np.prod(np.maximum(box[:, 2:] - box[:, :2], 0), axis=-1) for box in (a, b))
    union = area_a + area_b - common
    return np.where(union > 0, common / np.where(union > 0, union, 1), 0.0)


def hand_size(box_px: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N"]:
    """Return the diagonals of boxes, px: the measure of all distances between hands here."""
    return np.maximum(np.hypot(box_px[:, 2] - box_px[:, 0], box_px[:, 3] - box_px[:, 1]), 1e-6)


def pairs_between(
    first: Int64[np.ndarray, "A"], second: Int64[np.ndarray, "B"], gap: int
) -> tuple[Int64[np.ndarray, "P"], Int64[np.ndarray, "P"]]:
    """Return all pairs (i, j) with second[j] == first[i] + gap; `second` is sorted."""
    low = np.searchsorted(second, first + gap, side="left")
    count = np.searchsorted(second, first + gap, side="right") - low
    i = np.repeat(np.arange(len(first)), count)
    j = np.arange(len(i)) + (low - (np.cumsum(count) - count))[i]
    return i, j


def best_matching(
    i: Int64[np.ndarray, "P"], j: Int64[np.ndarray, "P"], score: Float[np.ndarray, "P"]
) -> Int64[np.ndarray, "M"]:
    """Return the pairs of the greedy one-to-one matching, best score first: no i and no j twice.

    Greedy matching takes, again and again, all pairs that are the best of both their ends; a few rounds settle it.
    """
    chosen: list[NDArray[np.int64]] = []
    order = np.argsort(-score, kind="stable")  # ties: the earlier pair, so that the result is settled
    while len(order):
        first_i = np.unique(i[order], return_index=True)[1]
        first_j = np.unique(j[order], return_index=True)[1]
        is_best = np.zeros((2, len(order)), bool)
        is_best[0, first_i], is_best[1, first_j] = True, True
        taken = order[is_best.all(0)]
        chosen.append(taken)
        order = order[~(np.isin(i[order], i[taken]) | np.isin(j[order], j[taken]))]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def keep_confident(table: Detections, settings: TrackSettings) -> Bool[np.ndarray, "D"]:
    """Return which rows are usable, confident enough, and no weaker double of another row of the same frame."""
    keep = usable(table) & (table.confidence >= settings.min_confidence)
    (rows,) = np.nonzero(keep)
    i, j = pairs_between(table.frame[rows], table.frame[rows], 0)
    i, j = rows[i[i < j]], rows[j[i < j]]
    size = np.minimum(hand_size(table.box_px[i]), hand_size(table.box_px[j]))
    double = (box_iou(table.box_px[i], table.box_px[j]) > settings.duplicate_iou) & (
        _joint_distance(table.joints_px[i], table.joints_px[j]) < settings.same_joints * size
    )
    weaker = np.where(table.confidence[i] >= table.confidence[j], j, i)
    keep[weaker[double]] = False
    return keep


def link(table: Detections, keep: Bool[np.ndarray, "D"], settings: TrackSettings) -> Int64[np.ndarray, "D"]:
    """Return a tracklet number per row, by overlap of boxes and nearness of joints over up to `link_gap` misses.

    Joints tell crossing hands apart where boxes cannot: a left hand's are mirrored. Where a tracker has numbered both
    ends of a pair (`object`), its word decides. Hands are linked twice: the second time each is expected where the
    first links say that it was going, so that less of a step to the side is allowed.
    """
    still = np.zeros((len(table), 2))
    successor = _successors(table, keep, still, settings.link_joints, settings)
    velocity = _steady_velocity(table, _labels(successor, keep))
    return _labels(_successors(table, keep, velocity, settings.link_turn, settings), keep)


def _successors(
    table: Detections,
    keep: NDArray[np.bool_],
    velocity: NDArray[np.float64],
    widest: float,
    settings: TrackSettings,
) -> NDArray[np.int64]:
    """The row that follows each row in its tracklet, or −1; `velocity` (px a frame) is where hands are expected to go,
    `widest` how far (hand sizes) from there they are still the same."""
    successor = np.full(len(table), -1, np.int64)
    has_predecessor = ~keep
    for gap in range(1, settings.link_gap + 2):
        (tails,) = np.nonzero(keep & (successor < 0))
        (heads,) = np.nonzero(~has_predecessor)
        i, j = pairs_between(table.frame[tails], table.frame[heads], gap)
        i, j = tails[i], heads[j]
        size = 0.5 * (hand_size(table.box_px[i]) + hand_size(table.box_px[j]))
        moved = 0.5 * gap * (velocity[i] + velocity[j])
        near = _joint_distance(table.joints_px[i] + moved[:, None], table.joints_px[j]) / size
        shape = _shape_distance(table.joints_px[i], table.joints_px[j]) / size
        overlap = box_iou(table.box_px[i] + np.tile(moved, 2), table.box_px[j])
        same, other = _objects(table, i, j)
        agree = 1 - np.abs(table.right[i] - table.right[j])
        wide = np.sqrt(gap)
        possible = (overlap >= settings.link_iou) & (near <= widest * wide) & ~other
        possible &= shape <= settings.link_shape * wide
        score = overlap - 2 * near - 4 * shape + 0.2 * agree + 10 * same
        (able,) = np.nonzero(possible | same)
        chosen = able[best_matching(i[able], j[able], score[able])]
        successor[i[chosen]] = j[chosen]
        has_predecessor[j[chosen]] = True
    return successor


def _steady_velocity(table: Detections, track: NDArray[np.int64]) -> NDArray[np.float64]:
    """Motion of every row's hand, px a frame: the median of its tracklet's last, next and surrounding steps."""
    rows = np.argsort(track, kind="stable")
    rows = rows[track[rows] >= 0]
    velocity = np.zeros((len(table), 2))
    if len(rows) < 2:
        return velocity
    step = np.diff(table.joints_px[rows].mean(1), axis=0) / np.maximum(np.diff(table.frame[rows]), 1)[:, None]
    step[np.diff(track[rows]) != 0] = np.nan
    padded = np.pad(step, ((3, 3), (0, 0)), constant_values=np.nan)
    around = np.stack([padded[k : k + len(rows)] for k in range(1, 5)])  # two steps before each row, two after
    ordered = np.sort(around, axis=0)  # NaN last
    count = np.isfinite(around).sum(0)
    low, high = (np.take_along_axis(ordered, np.maximum(k, 0)[None], 0)[0] for k in ((count - 1) // 2, count // 2))
    velocity[rows] = np.nan_to_num(0.5 * (low + np.where(count > 1, high, low)))
    return velocity


def sides(table: Detections, track: Int64[np.ndarray, "D"], settings: TrackSettings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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
    same, other = _objects(table, last[tail], first[head])
    (able,) = np.nonzero((side[last[tail]] == side[first[head]]) & ~other & ((gap <= settings.merge_gap + 1) | same))
    tail, head, gap, same = tail[able], head[able], gap[able], same[able]
    a, b = table.joints_px[last[tail]], table.joints_px[first[head]]
    ahead = np.minimum(gap, 4)[:, None] * 0.5  # half of the way from each end, and not farther than speeds can be trusted
    moved = (velocity_out[tail] + velocity_in[head]) * ahead
    near = _joint_distance(a + moved[:, None], b) / (0.5 * (size[last[tail]] + size[first[head]]))
    shape = _shape_distance(a, b) / (0.5 * (size[last[tail]] + size[first[head]]))
    wide = np.sqrt(np.minimum(gap, 9) / 9)
    (close,) = np.nonzero(((near <= settings.merge_joints * wide) & (shape <= settings.merge_shape * wide)) | same)
    score = -near[close] - shape[close] - 0.05 * gap[close] + 10 * same[close]
    chosen = close[best_matching(tail[close], head[close], score)]
    successor = np.full(len(last), -1, np.int64)
    successor[tail[chosen]] = head[chosen]
    joined = _labels(successor, np.ones(len(last), bool))
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
    good = (count >= _at_most(settings.min_track_frames, table.frames)) & (weight >= settings.min_track_confidence * count)
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


def _joint_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean distance of corresponding joints of pairs of hands, px."""
    distance: NDArray[np.float64] = np.hypot(a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]).mean(-1)
    return distance


def _shape_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same once the hands' middles lie on one another."""
    return _joint_distance(a - a.mean(-2, keepdims=True), b - b.mean(-2, keepdims=True))


def _objects(table: Detections, i: NDArray[np.int64], j: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pairs a tracker holds for the same hand, and which for different ones."""
    known = (table.object[i] != NO_OBJECT) & (table.object[j] != NO_OBJECT)
    equal = table.object[i] == table.object[j]
    return known & equal, known & ~equal


def _labels(successor: NDArray[np.int64], keep: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number the chains that successors form, in the order of their first elements; −1 where not kept."""
    root = np.arange(len(successor))
    (linked,) = np.nonzero(successor >= 0)
    root[successor[linked]] = linked
    while True:  # pointer jumping: every step doubles the reach
        further = root[root]
        if np.array_equal(further, root):
            break
        root = further
    label = np.full(len(successor), DROPPED, np.int64)
    label[keep] = np.unique(root[keep], return_inverse=True)[1].reshape(-1)
    return label


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
