"""Skeleton prompts as pictures, drawn twice alike: `draw` (numpy, fast on a CPU), `draw_torch` (any device, gradients).

Both draw the same capsules with the same anti-aliasing: a pixel whose centre lies d from a bone's middle line is
covered by clip(radius + 1/2 − d, 0, 1), the radius being that at the nearest point of the line. `draw` evaluates this
only at pixels along a bone, `draw_torch` at every pixel.
"""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.geometry import Camera
from vap_gym.prompts.segments import Segments, check_keypoints, project_segments
from vap_gym.prompts.skeleton import Skeleton

HEIGHT_PER_THICKNESS = 40.0
"""A bone is at least as thick as a fortieth of the picture is high: 2.4 px at 96."""

CHUNK = 16
"""Pictures drawn at once: few enough for the caches, many enough to hide the cost of a call."""


def draw(
    keypoints_world: Tensor,
    camera: Camera,
    skeleton: Skeleton,
    *,
    frame_size_px: tuple[int, int] | None = None,
    thickness_px: float | None = None,
) -> UInt8[np.ndarray, "*batch H W 3"]:
    """Draw skeletons as uint8 RGB pictures on black, on the CPU.

    Args:
        keypoints_world: (*batch, P, 3), metres, from `skeleton.keypoints(...)`.
        camera: one for all, or one for each of the leading batch dimensions: (B,) cameras serve (B, T) key-points.
        frame_size_px: (width, height) of the pictures; the camera is resized to it. Default: the camera's own.
        thickness_px: least width of a bone; it is drawn as wide as its `radius_m` appears where that is more.
            Default: height / 40.

    Raises:
        VapError: key-points of another shape or type, NaN or infinity among them, or a camera that does not fit.
    """
    batch = keypoints_world.shape[:-2]
    with torch.no_grad():
        segments, (width, height) = _segments(keypoints_world, camera, skeleton, frame_size_px, thickness_px)
    arrays = [
        x.float().cpu().numpy() for x in (segments.start_px, segments.end_px, segments.radius_px, segments.colour)
    ]
    pictures = np.zeros((len(arrays[0]), height, width, 3), np.uint8)
    for begin in range(0, len(pictures), CHUNK):
        piece = slice(begin, begin + CHUNK)
        _draw_sparse(pictures[piece], *(x[piece] for x in arrays))
    return pictures.reshape(*batch, height, width, 3)


def draw_torch(
    keypoints_world: Tensor,
    camera: Camera,
    skeleton: Skeleton,
    *,
    frame_size_px: tuple[int, int] | None = None,
    thickness_px: float | None = None,
    edge_px: float = 1.0,
) -> Float[Tensor, "*batch 3 H W"]:
    """Draw skeletons as float pictures in [0, 1] on the key-points' device, differentiable in key-points and camera.

    As `draw`; `edge_px` is the width of the ramp at a bone's edge. One pixel equals `draw`; wider ramps let gradients
    reach further.
    """
    batch = keypoints_world.shape[:-2]
    segments, (width, height) = _segments(keypoints_world, camera, skeleton, frame_size_px, thickness_px)
    like = segments.start_px
    y = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5)[:, None]
    x = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5)[None, :]
    pictures = like.new_zeros(len(like), 3, height, width)
    for s in range(like.shape[1]):
        start_u, start_v = segments.start_px[:, s, :, None, None].unbind(1)
        along_u, along_v = (segments.end_px[:, s] - segments.start_px[:, s])[..., None, None].unbind(1)
        radius_start, radius_end = segments.radius_px[:, s, :, None, None].unbind(1)
        u, v = x - start_u, y - start_v
        t = ((u * along_u + v * along_v) / (along_u**2 + along_v**2).clamp(min=1e-12)).clamp(0, 1)
        distance = ((u - t * along_u) ** 2 + (v - t * along_v) ** 2).clamp(min=1e-12).sqrt()
        radius = radius_start + t * (radius_end - radius_start)
        cover = ((radius - distance) / edge_px + 0.5).clamp(0, 1) * (radius > 0)
        pictures = pictures + cover[:, None] * (segments.colour[:, s, :, None, None] - pictures)
    return pictures.reshape(*batch, 3, height, width)


def overlay(frame: NDArray[Any], prompt: NDArray[Any], alpha: float = 1.0) -> UInt8[np.ndarray, "*batch H W 3"]:
    """Lay prompts over frames, both uint8 (*batch, H, W, 3): where lit, they replace the frame by `alpha`."""
    if frame.shape != prompt.shape or frame.dtype != np.uint8 or prompt.dtype != np.uint8:
        raise VapError(
            "frame and prompt must be uint8 pictures of one shape (*batch, H, W, 3), "
            f"got {frame.dtype} {frame.shape} and {prompt.dtype} {prompt.shape}. "
            "Draw the prompt with frame_size_px=(W, H) of the frame."
        )
    lit = prompt.max(axis=-1, keepdims=True) * np.float32(alpha / 255)
    mixed: UInt8[np.ndarray, "*batch H W 3"] = np.rint(frame * (1 - lit) + prompt * np.float32(alpha)).astype(np.uint8)
    return mixed


def _segments(
    keypoints_world: Tensor,
    camera: Camera,
    skeleton: Skeleton,
    frame_size_px: tuple[int, int] | None,
    thickness_px: float | None,
) -> tuple[Segments, tuple[int, int]]:
    """Check the input, flatten its batch, and project it; also return (width, height)."""
    flat, camera, thickness = _checked(keypoints_world, camera, skeleton, frame_size_px, thickness_px)
    return project_segments(flat, camera, skeleton, thickness_px=thickness), camera.frame_size_px


def _checked(
    keypoints_world: Tensor,
    camera: Camera,
    skeleton: Skeleton,
    frame_size_px: tuple[int, int] | None,
    thickness_px: float | None,
) -> tuple[Float[Tensor, "B P 3"], Camera, float]:
    """Check the input; return it over a flat batch, with the camera at the frame's size, and the thickness."""
    check_keypoints(keypoints_world, skeleton)
    if frame_size_px is not None and tuple(frame_size_px) != tuple(camera.frame_size_px):
        camera = camera.resized(frame_size_px)
    height = camera.frame_size_px[1]
    thickness = height / HEIGHT_PER_THICKNESS if thickness_px is None else thickness_px
    if not 0 < thickness < height:
        raise VapError(f"thickness_px must be between 0 and the picture's height {height}, got {thickness}. Try 2.4.")
    flat = keypoints_world.reshape(-1, *keypoints_world.shape[-2:])
    return flat, flat_camera(camera, keypoints_world.shape[:-2]), thickness


def flat_camera(camera: Camera, batch: torch.Size) -> Camera:
    """Give every picture its camera, over a flat batch; one camera for all stays as it is."""
    if not bool(torch.isfinite(camera.K).all() & torch.isfinite(camera.T_world_camera).all()):
        camera.checked()
    own = camera.batch_shape
    if own == ():
        return camera
    if own != batch[: len(own)]:
        raise VapError(
            f"the camera's batch {tuple(own)} does not fit the key-points' batch {tuple(batch)}. Give one camera for "
            "all pictures, or one for each of the leading dimensions, e.g. (B,) cameras for (B, T) pictures."
        )
    ones = [1] * (len(batch) - len(own))
    K = camera.K.expand(*own, 3, 3).reshape(*own, *ones, 3, 3).expand(*batch, 3, 3)
    T_world_camera = camera.T_world_camera.expand(*own, 4, 4).reshape(*own, *ones, 4, 4).expand(*batch, 4, 4)
    return replace(camera, K=K.reshape(-1, 3, 3), T_world_camera=T_world_camera.reshape(-1, 4, 4))


def _draw_sparse(
    pictures: NDArray[np.uint8],
    start_px: NDArray[np.float32],
    end_px: NDArray[np.float32],
    radius_px: NDArray[np.float32],
    colour: NDArray[np.float32],
) -> None:
    """Draw B × S capsules into B pictures, one layer s after the other, evaluating only pixels near them.

    Each capsule is walked along its major axis (the picture axis it runs along most); at every step a run of pixels
    across it is covered, wholly but for its ends. The runs of all capsules are laid end to end, so that numpy handles
    them in one go.
    """
    count, layers, _ = radius_px.shape
    height, width = pictures.shape[1:3]
    a = start_px.swapaxes(0, 1).reshape(-1, 2)
    d = end_px.swapaxes(0, 1).reshape(-1, 2) - a
    radius = radius_px.swapaxes(0, 1).reshape(-1, 2)
    reach = radius.max(-1) + np.float32(0.5)
    steep = np.abs(d[:, 1]) > np.abs(d[:, 0])
    a_major, a_minor = np.where(steep, a[:, 1], a[:, 0]), np.where(steep, a[:, 0], a[:, 1])
    d_major, d_minor = np.where(steep, d[:, 1], d[:, 0]), np.where(steep, d[:, 0], d[:, 1])
    size_major, size_minor = np.where(steep, height, width), np.where(steep, width, height)

    first = np.clip(np.floor(np.minimum(a_major, a_major + d_major) - reach), 0, size_major).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(a_major, a_major + d_major) + reach), 0, size_major).astype(np.int64)
    of, major = _runs(first, np.where(reach > 0.5, np.maximum(last - first, 0), 0))  # steps: whose, and where
    length2 = np.maximum(d_major * d_major + d_minor * d_minor, np.float32(1e-12))
    slope = d_minor / np.where(d_major == 0, np.float32(1), d_major)
    half = reach * np.sqrt(1 + slope * slope)  # of a run: from the middle line to the edge, across the major axis

    # Offsets from the capsule's start, along the major axis u and across it v; t is the share of the way to its end.
    u = major.astype(np.float32) + np.float32(0.5) - a_major[of]
    on_line = np.clip(u, np.minimum(d_major, 0)[of], np.maximum(d_major, 0)[of])
    middle = slope[of] * on_line + a_minor[of]
    low = np.clip(np.floor(middle - half[of]), 0, size_minor[of]).astype(np.int64)
    high = np.clip(np.ceil(middle + half[of]), 0, size_minor[of]).astype(np.int64)

    # The disc about that point of the middle line is covered wholly: no distance needs to be evaluated in it.
    growth = radius[:, 1] - radius[:, 0]
    at_line = radius[:, 0][of] + on_line / np.where(d_major == 0, np.float32(1), d_major)[of] * growth[of]
    disc = (at_line - np.float32(0.5)) / (1 + np.abs(growth) / np.sqrt(length2))[of]
    chord = np.sqrt(np.maximum(disc * np.abs(disc) - (u - on_line) ** 2, 0))
    inner_low = np.clip(np.ceil(middle - chord - np.float32(0.5)), low, high).astype(np.int64)
    inner_high = np.clip(np.floor(middle + chord + np.float32(0.5)), inner_low, high).astype(np.int64)
    inner_high = np.where(chord > 0, inner_high, inner_low)

    stride_minor, stride_major = np.where(steep, 1, width)[of], np.where(steep, width, 1)[of]
    layer_of, picture_of = np.divmod(of, count)
    base = major * stride_major + picture_of * (height * width)
    step, minor = _runs(inner_low, inner_high - inner_low)
    top = np.zeros(count * height * width, np.uint8)  # the highest layer that covers a pixel wholly, plus one
    top[base[step] + minor * stride_minor[step]] = (layer_of + 1).astype(np.uint8)[step]  # the last, so the highest
    (filled,) = np.nonzero(top)
    flat_colour = (colour.reshape(-1, 3) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    canvas = pictures.reshape(-1, 3)
    canvas[filled] = flat_colour[filled // (height * width) * layers + top[filled] - 1]

    # What is left are the capsules' edges, a pixel or two wide, where nothing above hides them.
    below, above = _runs(low, inner_low - low), _runs(inner_high, high - inner_high)
    step, minor = np.concatenate([below[0], above[0]]), np.concatenate([below[1], above[1]])
    pixel = base[step] + minor * stride_minor[step]
    (open_,) = np.nonzero(layer_of[step] + 1 > top[pixel])
    step, minor, pixel = step[open_], minor[open_], pixel[open_]
    v = minor.astype(np.float32) + (np.float32(0.5) - a_minor[of])[step]
    t = (u * (d_major / length2)[of])[step] + v * (d_minor / length2)[of][step]
    np.clip(t, 0, 1, out=t)
    gap_u = u[step] - t * d_major[of][step]
    v -= t * d_minor[of][step]
    cover = (radius[:, 0] + np.float32(0.5))[of][step] + t * growth[of][step] - np.sqrt(gap_u * gap_u + v * v)
    (near,) = np.nonzero(cover > 0)
    near = near[np.argsort(layer_of[step[near]], kind="stable")]
    cover, step, pixel = np.minimum(cover[near], 1)[:, None], step[near], pixel[near]
    tint = (colour[picture_of, layer_of] * np.float32(255))[step]
    bounds = np.searchsorted(layer_of[step], np.arange(layers + 1))
    for begin, end in itertools.pairwise(bounds):
        at, share = pixel[begin:end], cover[begin:end]  # no pixel twice: a picture has one capsule per layer
        under = canvas[at].astype(np.float32)
        canvas[at] = under + share * (tint[begin:end] - under) + np.float32(0.5)


def _runs(first: NDArray[np.int64], length: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lay the ranges [first, first + length) end to end: which range each element is of, and the element."""
    of = np.repeat(np.arange(len(first)), length)
    return of, np.arange(len(of)) + (first - (np.cumsum(length) - length))[of]
