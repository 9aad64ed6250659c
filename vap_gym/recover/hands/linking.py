"""Linking detections of neighbouring frames into tracklets: by overlap of boxes, nearness and shape of joints.

All pairs of detections that lie so many frames apart are scored at once; the best are taken one to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray

from vap_gym.recover.hands.detections import NO_OBJECT, Detections, usable

DROPPED = -1
"""The tracklet number of a detection that belongs to none."""


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
    size: NDArray[np.float64] = np.maximum(np.hypot(*(box_px[:, 2:] - box_px[:, :2]).T), 1e-6)
    return size


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
        joint_distance(table.joints_px[i], table.joints_px[j]) < settings.same_joints * size
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
    velocity = _steady_velocity(table, labels(successor, keep))
    return labels(_successors(table, keep, velocity, settings.link_turn, settings), keep)


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
        near = joint_distance(table.joints_px[i] + moved[:, None], table.joints_px[j]) / size
        shape = shape_distance(table.joints_px[i], table.joints_px[j]) / size
        overlap = box_iou(table.box_px[i] + np.tile(moved, 2), table.box_px[j])
        same, other = objects(table, i, j)
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


def joint_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean distance of corresponding joints of pairs of hands, px."""
    distance: NDArray[np.float64] = np.hypot(a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]).mean(-1)
    return distance


def shape_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same once the hands' middles lie on one another."""
    return joint_distance(a - a.mean(-2, keepdims=True), b - b.mean(-2, keepdims=True))


def objects(
    table: Detections, i: NDArray[np.int64], j: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pairs a tracker holds for the same hand, and which for different ones."""
    known = (table.object[i] != NO_OBJECT) & (table.object[j] != NO_OBJECT)
    equal = table.object[i] == table.object[j]
    return known & equal, known & ~equal


def labels(successor: NDArray[np.int64], keep: NDArray[np.bool_]) -> NDArray[np.int64]:
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
