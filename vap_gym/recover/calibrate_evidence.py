"""What in a clip tells where the moving robot ends: colours that differ from the background, and edges that move.

Shadows are left open, since they move too. Needs OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray

from vap_gym.errors import require
from vap_gym.recover.silhouette import Outline

DIFFERENT = 12.0  # grey levels from the background at which a pixel is as likely the robot's as not
RARELY, CLEARLY = -1.1, 1.95  # log odds of being robot, of a pixel that is like the background, and one that is not
SHADOW = 0.5  # a shadow darkens to no less than this, all colours alike within SHADOW_TINT
SHADOW_TINT = 0.12
HALO_PX = 9  # around a silhouette; what lies in it is not taken for background
LEAST_SEEN = 3  # frames that must show a pixel's background
EDGE_BLUR_PX, FAINT = 1.2, 6.0  # grey levels a px: an edge as strong as this counts half
COLOUR_SHARE, EDGE_SHARE, NEAR_SHARE = 0.15, 4.0, 1.1  # weights of the evidence, in log odds
BEYOND_PX = 4  # how far the colours are looked at beyond the farthest place of an edge
VAGUE = 0.35  # a place that is this share of the reach uncertain is none


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Of T frames: log odds of being robot by colour, and the moving edges' direction with a length in [0, 1)."""

    odds: Float[np.ndarray, "T H W"]
    edges: Float[np.ndarray, "T 2 H W"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Where the robot's border seems to be along each outline point's normal, and how uncertain that is."""

    shift_px: Float[np.ndarray, " N"]  # outwards is positive
    variance_px2: Float[np.ndarray, " N"]
    clear: Bool[np.ndarray, " N"]


def evidence_of(frames: UInt8[np.ndarray, "T H W 3"], masks: Bool[np.ndarray, "T H W"] | None) -> Evidence:
    """Return the evidence of frames of one clip whose camera stands still.

    `masks` say where the robot was rendered, roughly: the background is the median over the frames in which it is not
    near. With None it is the median over all of them.
    """
    background = _background(frames, masks)
    return Evidence(odds=_odds(frames, background), edges=_moving_edges(frames, background))


def border_places(evidence: Evidence, t: int, outline: Outline, *, reach_px: int, colour: float = 1.0) -> Places:
    """Look for the robot's border up to `reach_px` along each normal of an outline in frame `t`.

    At the right place what lies inside looks like robot, what lies outside like background, and an edge that moves runs
    across the normal; near places are a little likelier. `colour` weighs the first of these.
    """
    height, width = evidence.odds.shape[1:]
    along = np.arange(-reach_px - BEYOND_PX, reach_px + BEYOND_PX + 1)
    at = outline.points_px[:, None] + along[:, None] * outline.normals[:, None]
    inside = (at >= 0).all(-1) & (at[..., 0] <= width) & (at[..., 1] <= height)
    odds = _sampled(evidence.odds[t], at) * inside
    within = np.cumsum(odds, axis=1) - odds / 2
    edge = sum(_sampled(evidence.edges[t, axis], at) * outline.normals[:, axis, None] for axis in (0, 1))
    score = 2 * within - within[:, -1:] - odds[:, -1:] / 2
    score = colour * COLOUR_SHARE * score + EDGE_SHARE * np.abs(edge) * inside - NEAR_SHARE * (along / reach_px) ** 2
    score, along = score[:, BEYOND_PX:-BEYOND_PX], along[BEYOND_PX:-BEYOND_PX]
    chance = np.exp(score - score.max(axis=1, keepdims=True))
    chance /= chance.sum(axis=1, keepdims=True)
    shift = along[score.argmax(axis=1)].astype(np.float64)
    variance = (chance * (along - shift[:, None]) ** 2).sum(axis=1)
    return Places(shift_px=shift, variance_px2=variance, clear=variance < (VAGUE * reach_px) ** 2)


def _background(frames: NDArray[np.uint8], masks: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Return the still picture behind the robot, (H, W, 3); NaN where too few frames show it."""
    if masks is None:
        everywhere: NDArray[np.float32] = np.median(frames, axis=0).astype(np.float32)
        return everywhere
    cv2 = require("cv2", "[data]", "Aligning a camera")
    kernel = np.ones((HALO_PX, HALO_PX), np.uint8)
    near = np.stack([cv2.dilate(mask.astype(np.uint8), kernel) > 0 for mask in masks])
    seen = (~near).sum(axis=0)
    ordered = np.sort(np.where(near[..., None], np.uint8(255), frames), axis=0)  # the hidden ones go last
    middle = np.maximum(seen - 1, 0) // 2
    picture: NDArray[np.float32] = np.take_along_axis(ordered, middle[None, ..., None], axis=0)[0].astype(np.float32)
    picture[seen < min(LEAST_SEEN, len(frames))] = np.nan
    return picture


def _odds(frames: NDArray[np.uint8], background: NDArray[np.float32]) -> NDArray[np.float32]:
    odds = np.empty(frames.shape[:3], np.float32)
    unknown = np.isnan(background[..., 0])
    behind = np.nan_to_num(background) + 8.0  # so that black over black has a ratio near one
    for t, frame in enumerate(frames):
        different = np.abs(frame - np.nan_to_num(background)).max(-1) ** 2
        odds[t] = RARELY + (CLEARLY - RARELY) * different / (different + DIFFERENT**2)
        ratio = (frame + 8.0) / behind
        low, high = ratio.min(-1), ratio.max(-1)
        is_shadow = (high < 1.02) & (low > SHADOW) & (high - low < SHADOW_TINT)
        odds[t][unknown | (is_shadow & (odds[t] > 0))] = 0
    return odds


def _moving_edges(frames: NDArray[np.uint8], background: NDArray[np.float32]) -> NDArray[np.float32]:
    """Edges that the background has not. Where it is not known, all edges count."""
    cv2 = require("cv2", "[data]", "Aligning a camera")
    unknown = cv2.dilate(np.isnan(background[..., 0]).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    still = _slopes(np.nan_to_num(background))
    edges = np.empty((len(frames), 2, *frames.shape[1:3]), np.float32)
    for t, frame in enumerate(frames):
        slopes = _slopes(frame.astype(np.float32))
        # No longer than the change of slope: a still edge goes, and where the robot hides one, that is no edge either.
        length = np.linalg.norm(slopes, axis=0)
        share = np.minimum(1.0, np.linalg.norm(slopes - still, axis=0) / np.maximum(length, 1e-3))
        slopes *= np.where(unknown[..., None], 1.0, share)
        channel = np.linalg.norm(slopes, axis=0).argmax(-1)[None, ..., None]
        slope = np.take_along_axis(slopes, channel, axis=-1)[..., 0]
        edges[t] = slope / (np.linalg.norm(slope, axis=0) + FAINT)
    return edges


def _slopes(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the slope of each channel, (2, H, W, 3), in grey levels a px."""
    cv2 = require("cv2", "[data]", "Aligning a camera")
    soft = cv2.GaussianBlur(picture, (0, 0), EDGE_BLUR_PX)
    return np.stack([cv2.Sobel(soft, cv2.CV_32F, *axes, scale=1 / 8) for axes in ((1, 0), (0, 1))])


def _sampled(picture: NDArray[np.float32], at_px: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values at places in px, linear between pixel centres."""
    cv2 = require("cv2", "[data]", "Aligning a camera")
    x, y = np.moveaxis((at_px - 0.5).astype(np.float32), -1, 0)
    values = cv2.remap(picture, np.ascontiguousarray(x), np.ascontiguousarray(y), cv2.INTER_LINEAR, borderMode=1)
    return np.asarray(values, np.float64)
