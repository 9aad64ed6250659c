"""How much the camera moves: flow and tracked points of the background, homographies, cuts (paper, Fig. 3a).

By default with OpenCV (Farneback's flow; corners followed by Lucas-Kanade and checked backward). RAFT and CoTracker fit
behind the same interfaces: `RaftFlow`, `CoTrackerPoints`. Hands are left out, so that what remains is the camera.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray

from vap_gym.errors import VapError, require

WORKING_WIDTH_PX = 320
"""Pictures are measured at most this wide: camera motion is seen as well there, and much faster."""

Pair = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Points of a frame and where they are in the next one: two (N, 2) arrays, px."""


@runtime_checkable
class Flow(Protocol):
    """Dense motion between two pictures."""

    def __call__(
        self, previous: UInt8[np.ndarray, "H W 3"], following: UInt8[np.ndarray, "H W 3"]
    ) -> Float[np.ndarray, "H W 2"]:
        """Return how far every pixel of `previous` moves (right, down), px."""
        ...


@runtime_checkable
class PointTracks(Protocol):
    """Points followed from every frame to the next."""

    def __call__(self, frames: UInt8[np.ndarray, "T H W 3"], background: Bool[np.ndarray, "T H W"]) -> list[Pair]:
        """Return T − 1 pairs of points on the background."""
        ...


@dataclass(frozen=True, kw_only=True)
class ViewpointSettings:
    """What counts as a cut, and how well a homography must explain points to be believed."""

    ransac_px: float = 1.5
    homography_gain: float = 0.1  # share of points by which a homography must beat a similarity
    least_points: int = 12
    least_inliers: float = 0.4  # share of points below which motion is read from the flow instead
    cut_inliers: float = 0.2
    cut_residual: float = 14.0  # mean difference to the warped last frame, grey levels
    hand_margin: float = 0.25  # boxes of hands are left out with this share of their size around them


@dataclass(frozen=True, kw_only=True, eq=False)
class Viewpoint:
    """The camera's motion through T frames; row t is the step from frame t − 1, row 0 is none.

    Motions are shares of the picture's diagonal. `homography` maps pixels of frame t − 1 to frame t (the identity where
    none was found).
    """

    flow: Float[np.ndarray, "T"]  # median length over the background
    homography: Float[np.ndarray, "T 3 3"]
    inliers: Float[np.ndarray, "T"]  # share of points that the homography explains
    residual: Float[np.ndarray, "T"]  # mean difference of a frame to the last one, warped; grey levels
    cut: Bool[np.ndarray, "T"]
    frame_size_px: tuple[int, int]

    @property
    def step(self) -> Float[np.ndarray, "T"]:
        """How far the picture moves from the last frame: by the homography, by the flow where there is none."""
        believed = self.inliers > 0
        return np.where(believed, _moved(self.homography, self.frame_size_px), self.flow)

    def drift(self, length: int) -> Float[np.ndarray, "T length"]:
        """Return how far the picture has moved 0, 1, … frames after each frame t; infinite past the end, past cuts."""
        frames = len(self.cut)
        out = np.full((frames, length), np.inf)
        out[:, 0] = 0
        total = np.broadcast_to(np.eye(3), (frames, 3, 3)).copy()
        broken = np.zeros(frames, bool)
        by_flow = np.where(self.inliers > 0, 0.0, self.flow)
        rest = np.zeros(frames)
        for k in range(1, min(length, frames)):
            begin = np.arange(frames - k)
            total[begin] = self.homography[begin + k] @ total[begin]
            rest[begin] += by_flow[begin + k]
            broken[begin] |= self.cut[begin + k]
            moved = _moved(total[begin], self.frame_size_px) + rest[begin]
            out[begin, k] = np.where(broken[begin], np.inf, moved)
        return out


def farneback(
    previous: UInt8[np.ndarray, "H W 3"], following: UInt8[np.ndarray, "H W 3"]
) -> Float[np.ndarray, "H W 2"]:
    """Return Farneback's optical flow (OpenCV)."""
    cv2 = _cv2()
    grey = [cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY) for picture in (previous, following)]
    flow = cv2.calcOpticalFlowFarneback(grey[0], grey[1], None, 0.5, 4, 15, 2, 5, 1.1, 0)
    return np.asarray(flow, np.float64)


def lucas_kanade(frames: UInt8[np.ndarray, "T H W 3"], background: Bool[np.ndarray, "T H W"]) -> list[Pair]:
    """Follow corners of every frame into the next one and back (OpenCV); those that return within a pixel count."""
    cv2 = _cv2()
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    window = {"winSize": (21, 21), "maxLevel": 3}
    pairs: list[Pair] = []
    for t in range(len(frames) - 1):
        mask = np.ascontiguousarray(background[t].astype(np.uint8) * 255)
        corners = cv2.goodFeaturesToTrack(grey[t], 200, 0.003, 8, mask=mask)
        if corners is None:
            pairs.append((np.zeros((0, 2)), np.zeros((0, 2))))
            continue
        moved, found, _ = cv2.calcOpticalFlowPyrLK(grey[t], grey[t + 1], corners, None, **window)
        back, returned, _ = cv2.calcOpticalFlowPyrLK(grey[t + 1], grey[t], moved, None, **window)
        near = np.linalg.norm((back - corners).reshape(-1, 2), axis=-1) < 1
        good = near & (found.ravel() == 1) & (returned.ravel() == 1)
        # Corners that are lost stay in the count, as points that went nowhere sensible: NaN.
        end = np.where(good[:, None], moved.reshape(-1, 2), np.nan)
        pairs.append((corners.reshape(-1, 2).astype(np.float64) + 0.5, end.astype(np.float64) + 0.5))
    return pairs


class RaftFlow:
    """Flow of a RAFT-shaped torch model: `model(a, b)` of (1,3,H,W) in [−1, 1], H and W multiples of 8, gives a list of
    flows (1,2,H,W), the last one the finest (torchvision's `raft_large(weights=…)`, or princeton-vl's with
    `test_mode`)."""

    def __init__(self, model: Callable[..., Any], *, device: str = "cpu") -> None:
        self.model, self.device = model, device

    def __call__(
        self, previous: UInt8[np.ndarray, "H W 3"], following: UInt8[np.ndarray, "H W 3"]
    ) -> Float[np.ndarray, "H W 2"]:
        """Return the flow, on pictures padded to multiples of 8 by their edges."""
        import torch

        height, width = previous.shape[:2]
        pad = ((0, -height % 8), (0, -width % 8), (0, 0))
        both = []
        for picture in (previous, following):
            padded = torch.from_numpy(np.pad(picture, pad, mode="edge")).permute(2, 0, 1)[None]
            both.append((padded.float() / 127.5 - 1).to(self.device))
        with torch.no_grad():
            out = self.model(*both)
        flow = out[-1] if isinstance(out, list | tuple) else out
        if tuple(flow.shape) != (1, 2, *both[0].shape[-2:]):
            raise VapError(
                f"The model must return flows of shape {(1, 2, *both[0].shape[-2:])}, got {tuple(flow.shape)}. "
                "Is it RAFT, at full resolution?"
            )
        moved: NDArray[np.float64] = flow[0].permute(1, 2, 0).double().cpu().numpy()[:height, :width]
        return moved


class CoTrackerPoints:
    """Points of a CoTracker-shaped model: `model(video (1,T,3,H,W) in 0 … 255, grid_size=…)` gives tracks (1,T,N,2) and
    visibility (1,T,N) (torch.hub: facebookresearch/co-tracker, `cotracker3_offline`)."""

    def __init__(self, model: Callable[..., Any], *, grid: int = 16, device: str = "cpu") -> None:
        self.model, self.grid, self.device = model, grid, device

    def __call__(self, frames: UInt8[np.ndarray, "T H W 3"], background: Bool[np.ndarray, "T H W"]) -> list[Pair]:
        """Return the points that are visible in both frames and start on the background."""
        import torch

        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)[None].float().to(self.device)
        with torch.no_grad():
            tracks, visible = self.model(video, grid_size=self.grid)
        place = tracks[0].double().cpu().numpy()
        seen = visible[0].float().cpu().numpy().reshape(place.shape[:2]) > 0.5
        if place.shape[0] != len(frames) or place.shape[-1] != 2:
            raise VapError(f"The model must return tracks (1, {len(frames)}, N, 2), got {(1, *place.shape)}.")
        height, width = frames.shape[1:3]
        pairs: list[Pair] = []
        for t in range(len(frames) - 1):
            column, row = (np.clip(place[t, :, i], 0, side - 1).astype(int) for i, side in ((0, width), (1, height)))
            start = seen[t] & background[t][row, column]
            pairs.append((place[t][start] + 0.5, np.where(seen[t + 1][start, None], place[t + 1][start] + 0.5, np.nan)))
        return pairs


def measure_viewpoint(
    frames: UInt8[np.ndarray, "T H W 3"],
    boxes_px: Float[np.ndarray, "T hands 4"] | None = None,
    *,
    flow: Flow = farneback,
    points: PointTracks = lucas_kanade,
    settings: ViewpointSettings | None = None,
) -> Viewpoint:
    """Return the camera's motion through a video; `boxes_px` are what to leave out (NaN: nothing)."""
    settings = settings or ViewpointSettings()
    cv2 = _cv2()
    count, height, width = frames.shape[:3]
    scale = min(1.0, WORKING_WIDTH_PX / width)
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
    half_size = ((size[0] + 1) // 2, (size[1] + 1) // 2)  # flow is slow, and needs no more
    half = np.stack([cv2.resize(frame, half_size, interpolation=cv2.INTER_AREA) for frame in small])
    to_small = np.diag([size[0] / width, size[1] / height, 1.0])
    background = np.ones(small.shape[:3], bool)
    if boxes_px is not None:
        _leave_out(background, boxes_px * np.tile(to_small.diagonal()[:2], 2), settings.hand_margin)
    pairs = points(small, background)
    flow_share, inliers, residual = np.zeros(count), np.zeros(count), np.zeros(count)
    homography = np.broadcast_to(np.eye(3), (count, 3, 3)).copy()
    for t in range(1, count):
        length = np.linalg.norm(flow(half[t - 1], half[t]), axis=-1)
        seen = background[t - 1, ::2, ::2][: length.shape[0], : length.shape[1]]
        flow_share[t] = np.median(length[seen] if seen.any() else length) / float(np.hypot(*half_size))
        found, share = _homography(*pairs[t - 1], settings)
        warped = cv2.warpPerspective(small[t - 1], _of_pixel_centres(found), size, borderMode=cv2.BORDER_REPLICATE)
        mask = (background[t] & background[t - 1]).astype(np.uint8)
        residual[t] = np.mean(cv2.mean(cv2.absdiff(warped, small[t]), mask=mask if mask.any() else None)[:3])
        inliers[t] = share
        if share >= settings.least_inliers:
            homography[t] = np.linalg.inv(to_small) @ found @ to_small
    cut = (inliers < settings.cut_inliers) & (residual > settings.cut_residual)
    return Viewpoint(
        flow=flow_share,
        homography=homography,
        inliers=np.where(inliers >= settings.least_inliers, inliers, 0.0),
        residual=residual,
        cut=cut,
        frame_size_px=(width, height),
    )


def _homography(
    a: NDArray[np.float64], b: NDArray[np.float64], settings: ViewpointSettings
) -> tuple[NDArray[np.float64], float]:
    """The homography of most points (RANSAC) and the share of all points that it explains; the identity, 0 if none.

    A similarity has half of its freedoms and is not led astray by an arm that moves: it is taken unless a homography
    explains clearly more.
    """
    kept = np.isfinite(a).all(-1) & np.isfinite(b).all(-1)
    if kept.sum() < settings.least_points:
        return np.eye(3), 0.0
    cv2 = _cv2()
    best, share = np.eye(3), 0.0
    similar, mask = cv2.estimateAffinePartial2D(
        a[kept], b[kept], method=cv2.RANSAC, ransacReprojThreshold=settings.ransac_px
    )
    if similar is not None and np.isfinite(similar).all():
        best, share = np.concatenate([similar, [[0, 0, 1]]]), float(mask.sum() / len(a))
    full, mask = cv2.findHomography(a[kept], b[kept], cv2.RANSAC, settings.ransac_px)
    if full is not None and np.isfinite(full).all() and abs(np.linalg.det(full)) > 1e-6:
        more = float(mask.sum() / len(a))
        if more > share + settings.homography_gain:
            best, share = np.asarray(full, np.float64), more
    return best, share


def _of_pixel_centres(homography: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same map for OpenCV's warps, which count the first pixel's centre as 0 and not as 1/2."""
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    moved: NDArray[np.float64] = np.linalg.inv(shift) @ homography @ shift
    return moved


def _moved(homography: NDArray[np.float64], frame_size_px: tuple[int, int]) -> NDArray[np.float64]:
    """How far a 3 × 3 grid over the picture moves, median, as a share of the diagonal; at most 10."""
    width, height = frame_size_px
    u, v = np.meshgrid(np.linspace(0, width, 3), np.linspace(0, height, 3))
    grid = np.stack([u.ravel(), v.ravel(), np.ones(9)], -1)
    to = grid @ homography.swapaxes(-1, -2)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        off = np.linalg.norm(to[..., :2] / to[..., 2:] - grid[:, :2], axis=-1)
    off = np.where((to[..., 2] > 0) & np.isfinite(off), off, np.inf)
    return np.minimum(np.median(off, axis=-1) / float(np.hypot(width, height)), 10.0)


def _leave_out(background: NDArray[np.bool_], boxes_px: NDArray[np.float64], margin: float) -> None:
    """Clear boxes, enlarged, from the background."""
    for t, boxes in enumerate(boxes_px):
        for box in boxes[np.isfinite(boxes).all(-1)]:
            extra = margin * (box[2:] - box[:2])
            low = np.maximum(np.floor(box[:2] - extra), 0).astype(int)
            high = np.maximum(np.ceil(box[2:] + extra), 0).astype(int)
            background[t, low[1] : high[1], low[0] : high[0]] = False


def _cv2() -> Any:
    return require("cv2", "[data]", "Measuring the camera's motion")
