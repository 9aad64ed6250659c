"""Matches between a rendered robot and observed frames, and what they say: how far off, and how sure (Sec. 3.2).

A matcher is anything that finds, for points of the rendered robot, where they are in the frame. Without weights it is
`SilhouetteMatcher`; with weights see `adapters_matching`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray

from vap_gym.errors import VapError, require
from vap_gym.recover.silhouette import Outline, outline_of

MARGIN_PX = 3  # a match this near the silhouette still is on the robot
LEAST_POINTS = 24  # of an outline that can be placed
EDGE_BLUR_PX = 1.5
FAINT = 4.0  # grey levels a px: an edge as strong as this counts half
CHANCE_Z, SURE_Z = 1.0, 3.5  # standard deviations above other places: worth nothing, and sure
CLEAR = 0.5  # of an edge's strength along the normal, in [0, 1): as clear as edges get
FINE_PX = 4  # how far from the common shift each point of an outline is looked for


@dataclass(frozen=True, kw_only=True)
class Matches:
    """N points of the rendered picture and where they are in the frame, in px, with confidences in [0, 1]."""

    rendered_px: Float[np.ndarray, "N 2"]
    observed_px: Float[np.ndarray, "N 2"]
    confidence: Float[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.confidence)

    @property
    def distance_px(self) -> Float[np.ndarray, " N"]:
        """How far each match is from where the robot was rendered."""
        distance: NDArray[np.float64] = np.linalg.norm(self.observed_px - self.rendered_px, axis=-1)
        return distance

    def pick(self, which: NDArray[np.bool_]) -> Matches:
        """Return some of the matches."""
        return Matches(
            rendered_px=self.rendered_px[which],
            observed_px=self.observed_px[which],
            confidence=self.confidence[which],
        )


def no_matches() -> Matches:
    """What a matcher returns where there is nothing to match."""
    return Matches(rendered_px=np.zeros((0, 2)), observed_px=np.zeros((0, 2)), confidence=np.zeros(0))


@runtime_checkable
class Matcher(Protocol):
    """Finds points of a rendered robot in the frames of a clip. Holds settings and weights only."""

    def __call__(
        self,
        pictures: UInt8[np.ndarray, "T H W 3"],
        masks: Bool[np.ndarray, "T H W"],
        frames: UInt8[np.ndarray, "T H W 3"],
    ) -> list[Matches]:
        """Return the matches between each picture (the robot, where its mask is true) and its frame, in px of both."""
        ...


def on_robot(matches: Matches, mask: Bool[np.ndarray, "H W"]) -> Matches:
    """Return the matches whose rendered point lies on the robot: a right background proves nothing about a robot."""
    cv2 = require("cv2", "[data]", "Choosing matches")
    size = 2 * MARGIN_PX + 1
    near = cv2.dilate(mask.astype(np.uint8), np.ones((size, size), np.uint8)) > 0
    height, width = mask.shape
    column, row = np.floor(np.nan_to_num(matches.rendered_px, nan=-1.0)).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    finite = np.isfinite(matches.observed_px).all(-1) & np.isfinite(matches.confidence)
    on = inside & finite
    on[on] = near[row[on], column[on]]
    return matches.pick(on)


def discrepancy_px(matches: Matches) -> float:
    """Return the confidence-weighted median distance of matches; NaN where there is none."""
    if not len(matches) or matches.confidence.sum() <= 0:
        return float("nan")
    order = np.argsort(matches.distance_px)
    weight = np.cumsum(matches.confidence[order])
    return float(matches.distance_px[order][np.searchsorted(weight, 0.5 * weight[-1])])


def match_score(matches: Matches, *, near_px: float) -> float:
    """Return the mean confidence of the matches, those farther than `near_px` counting nothing; NaN for none."""
    if not len(matches):
        return float("nan")
    return float((matches.confidence * (matches.distance_px <= near_px)).mean())


class SilhouetteMatcher:
    """Lays the outline of the rendered robot where the frame has edges of its direction; needs no weights.

    Of all shifts up to `reach_px` the one wins at which most of the outline lies on edges; far ones have to be better
    than near ones. What the neighbours in time say counts as well (`together_frames`): edges of the background do not
    move with the robot. From there each point looks for its own edge along its normal. Confidence says how far the
    winner stands out from all other shifts, and how clear the point's own edge is.
    """

    def __init__(
        self, *, reach_px: int = 24, step_px: int = 2, nearness: float = 3.0, together_frames: float = 6.0
    ) -> None:
        if reach_px < step_px or step_px < 1 or nearness < 0 or together_frames <= 0:
            raise VapError(
                "SilhouetteMatcher needs reach_px >= step_px >= 1, nearness >= 0 and together_frames > 0, "
                f"got {reach_px}, {step_px}, {nearness}, {together_frames}. Try 24, 2, 3.0, 6.0."
            )
        require("cv2", "[data]", "Matching silhouettes")
        self.nearness, self.together_frames = nearness, together_frames
        self.shifts_px = np.arange(-(reach_px // step_px), reach_px // step_px + 1) * step_px

    def __call__(
        self,
        pictures: UInt8[np.ndarray, "T H W 3"],
        masks: Bool[np.ndarray, "T H W"],
        frames: UInt8[np.ndarray, "T H W 3"],
    ) -> list[Matches]:
        outlines = [outline_of(mask) for mask in masks]
        known = np.array([len(outline) >= LEAST_POINTS for outline in outlines])
        size = len(self.shifts_px)
        fits = np.zeros((len(frames), size, size))
        for t in np.flatnonzero(known).tolist():
            fits[t] = standing_out(self._along_edges(outlines[t], self._edges(frames[t])))
        fits = _together(fits, known, self.together_frames)
        across, down = np.meshgrid(self.shifts_px, self.shifts_px)
        far = self.nearness * (across**2 + down**2) / self.shifts_px[-1] ** 2
        found = []
        for t, outline in enumerate(outlines):
            if not known[t]:
                found.append(no_matches())
                continue
            best = int(np.argmax(fits[t] - far))
            shift = np.array([across.flat[best], down.flat[best]], np.float64)
            sure = float(np.clip((fits[t].flat[best] - CHANCE_Z) / (SURE_Z - CHANCE_Z), 0, 1))
            own, clear = self._own_edges(outline, shift, self._edges(frames[t]))
            found.append(Matches(rendered_px=outline.points_px, observed_px=own, confidence=sure * clear))
        return found

    def _edges(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Direction of the edge at each pixel, (2, H, W), with a length in [0, 1): strong edges count alike."""
        cv2: Any = require("cv2", "[data]", "Matching silhouettes")
        soft = cv2.GaussianBlur(frame, (0, 0), EDGE_BLUR_PX).astype(np.float32)
        slope = np.stack(
            [cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(soft, cv2.CV_32F, 0, 1, scale=1 / 8)]
        )
        channel = (slope**2).sum(0).argmax(-1)[None, ..., None]  # of the channel that shows it best
        slope = np.take_along_axis(slope, channel, -1)[..., 0]
        edges: NDArray[np.float32] = slope / (np.linalg.norm(slope, axis=0) + FAINT)
        return edges

    def _along_edges(self, outline: Outline, edges: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean over the outline of |edge · normal| at each shift, (shifts down, shifts across)."""
        reach = int(self.shifts_px[-1])
        padded = np.pad(edges, ((0, 0), (reach, reach), (reach, reach)))
        column, row = np.floor(outline.points_px).astype(np.int64).T + reach
        x = column[:, None, None] + self.shifts_px[None, None, :]
        y = row[:, None, None] + self.shifts_px[None, :, None]
        normals = outline.normals.astype(np.float32)[..., None, None]
        response = np.abs(padded[0, y, x] * normals[:, 0] + padded[1, y, x] * normals[:, 1])
        mean: NDArray[np.float64] = response.mean(0, dtype=np.float64)
        return mean

    def _own_edges(
        self, outline: Outline, shift: NDArray[np.float64], edges: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where each point's own edge is, on its normal about `shift`, and how clear it is."""
        along = np.arange(-FINE_PX, FINE_PX + 1)
        at = (outline.points_px + shift)[:, None] + along[None, :, None] * outline.normals[:, None]
        height, width = edges.shape[1:]
        x, y = np.floor(at).astype(np.int64).transpose(2, 0, 1)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        x, y = x.clip(0, width - 1), y.clip(0, height - 1)
        response = np.abs(edges[0, y, x] * outline.normals[:, :1] + edges[1, y, x] * outline.normals[:, 1:]) * inside
        best = np.argmax(response - 0.02 * np.abs(along), axis=1)
        rows = np.arange(len(outline))
        return at[rows, best], np.minimum(response[rows, best].astype(np.float64) / CLEAR, 1.0)


def standing_out(fit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a map in standard deviations from its mean: 0 everywhere where it is flat."""
    spread = fit.std()
    return (fit - fit.mean()) / spread if spread > 1e-9 else np.zeros_like(fit)


def _together(fits: NDArray[np.float64], known: NDArray[np.bool_], frames: float) -> NDArray[np.float64]:
    """Mean of maps over frames near in time (a Gaussian of that many frames), of those that are known."""
    every = np.arange(len(fits))
    weight = np.exp(-0.5 * ((every[:, None] - every) / frames) ** 2) * known
    weight /= np.maximum(weight.sum(1, keepdims=True), 1e-12)
    mean: NDArray[np.float64] = np.einsum("ts,sdr->tdr", weight, fits)
    return mean
