"""Masks: DAVIS' J and F, and Boundary IoU, which looks only at a band inside the outline."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vap_gym.metrics.checks import Masks, check_masks
from vap_gym.metrics.morphology import dilate_box, dilate_disk, share


@dataclass(frozen=True, kw_only=True)
class MaskScores:
    """How well masks agree, means over frames, each in [0, 1]: regions, outlines, both, and the band inside."""

    j: float
    f: float
    j_and_f: float
    boundary_iou: float


def mask_scores(prediction: Masks, truth: Masks) -> MaskScores:
    """Return all scores of the masks of a clip, at the tolerances that DAVIS and Cheng et al. use."""
    j = float(region_j_per_frame(prediction, truth).mean())
    f = float(boundary_f_per_frame(prediction, truth).mean())
    band = float(boundary_iou_per_frame(prediction, truth).mean())
    return MaskScores(j=j, f=f, j_and_f=(j + f) / 2, boundary_iou=band)


def region_j_per_frame(prediction: Masks, truth: Masks) -> Float[np.ndarray, "T"]:
    """Return DAVIS' J of each frame: the IoU of two masks, 1 where both are empty."""
    check_masks(prediction, truth)
    return share((prediction & truth).sum(axis=(1, 2)), (prediction | truth).sum(axis=(1, 2)))


def boundary_f_per_frame(prediction: Masks, truth: Masks, *, tolerance: float = 0.008) -> Float[np.ndarray, "T"]:
    """Return DAVIS' F of each frame: how much of either mask's outline lies near the other's.

    `tolerance` is a share of the frame's diagonal, rounded up to whole pixels. F is the harmonic mean of precision and
    recall; 1 where neither mask has an outline. What the VAP paper calls Boundary IoU is this F (its average with the
    mask IoU is its J&F); for the other one see `boundary_iou_per_frame`.
    """
    check_masks(prediction, truth)
    radius = math.ceil(tolerance * math.hypot(*truth.shape[1:]))
    outline_p, outline_t = _outlines(prediction), _outlines(truth)
    near_p, near_t = dilate_disk(outline_p, radius), dilate_disk(outline_t, radius)
    precision = share((outline_p & near_t).sum(axis=(1, 2)), outline_p.sum(axis=(1, 2)))
    recall = share((outline_t & near_p).sum(axis=(1, 2)), outline_t.sum(axis=(1, 2)))
    return share(2 * precision * recall, np.where(precision + recall > 0, precision + recall, 1.0))


def boundary_iou_per_frame(prediction: Masks, truth: Masks, *, dilation: float = 0.02) -> Float[np.ndarray, "T"]:
    """Return the Boundary IoU of each frame (Cheng et al. 2021): the IoU of the two masks' bands, 1 without any.

    A mask's band is what of it lies within `dilation` of the frame's diagonal from the outline, in rounded pixels and
    at least one, counted along rows, columns and diagonals alike; the frame's edge counts as outline.
    """
    check_masks(prediction, truth)
    radius = max(1, round(dilation * math.hypot(*truth.shape[1:])))
    band_p, band_t = _bands(prediction, radius), _bands(truth, radius)
    return share((band_p & band_t).sum(axis=(1, 2)), (band_p | band_t).sum(axis=(1, 2)))


def _bands(masks: Masks, radius: int) -> Masks:
    return np.stack([mask & dilate_box(~mask, radius, outside=True) for mask in masks])


def _outlines(masks: Masks) -> Masks:
    """Return the pixels that differ from their neighbour to the right, below, or right below."""
    padded = np.pad(masks, ((0, 0), (0, 1), (0, 1)), mode="edge")
    right, below, both = padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
    outlines: Masks = (masks ^ right) | (masks ^ below) | (masks ^ both)
    return outlines
