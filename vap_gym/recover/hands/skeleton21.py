"""Hands as prompts: 21-joint skeletons drawn on black, a colour for every finger of either hand.

Ten hues, evenly round the wheel: the right hand's are full, the left hand's lie between them and are paler. The wrist
is a dot, white for the right hand and grey for the left. Pixel (0, 0) is the picture's top-left corner.
"""

from __future__ import annotations

import colorsys

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from vap_gym.errors import VapError
from vap_gym.geometry import Camera
from vap_gym.prompts.raster import CHUNK, _draw_sparse
from vap_gym.prompts.segments import HIDDEN_RADIUS_PX, NEAR_M
from vap_gym.recover.hands.joints import EDGES, FINGERS, JOINTS

HEIGHT_PER_THICKNESS = 60.0
"""A bone is a sixtieth of the picture's height thick: fingers lie closer together than a robot's."""

LEAST_THICKNESS_PX = 1.5


def finger_colours() -> UInt8[np.ndarray, "2 5 3"]:
    """Return the colours of the fingers, thumb to little, of the left (0) and the right (1) hand."""
    right = [colorsys.hsv_to_rgb(f / 5, 1.0, 1.0) for f in range(len(FINGERS))]
    left = [colorsys.hsv_to_rgb((f + 0.5) / 5, 0.6, 0.85) for f in range(len(FINGERS))]
    colours: NDArray[np.uint8] = np.rint(np.array([left, right]) * 255).astype(np.uint8)
    return colours


COLOURS = finger_colours()
WRIST_COLOURS = np.array([[150, 150, 150], [255, 255, 255]], np.uint8)
_PARENT, _CHILD = (np.array([edge[end] for edge in EDGES]) for end in (0, 1))


def draw_hands(
    joints_px: Float[np.ndarray, "T hands 21 2"],
    *,
    frame_size_px: tuple[int, int],
    depth_m: Float[np.ndarray, "T hands 21"] | None = None,
    sides: tuple[int, ...] = (0, 1),
    thickness_px: float | None = None,
) -> UInt8[np.ndarray, "T H W 3"]:
    """Draw the hands of T frames as uint8 RGB pictures.

    Args:
        joints_px: OpenPose order. Hands with NaN are absent; single joints with NaN lose their bones.
        frame_size_px: (width, height) of the pictures, in which the joints are told.
        depth_m: along the optical axis: nearer bones are drawn over farther ones, bones with an end that is not in
            front of the camera are not drawn. Without it the right hand lies over the left, fingers over the palm.
        sides: for every hand 0 (left) or 1 (right).
        thickness_px: of a bone. Default: height / 60, at least 1.5.

    Raises:
        VapError: sizes, sides or a thickness that do not fit.
    """
    frames, hands = joints_px.shape[:2]
    width, height = frame_size_px
    if width < 1 or height < 1:
        raise VapError(f"frame_size_px must be (width, height) of at least 1 px, got {frame_size_px}.")
    if len(sides) != hands or not set(sides) <= {0, 1}:
        raise VapError(f"sides must be 0 (left) or 1 (right) for each of {hands} hands, got {sides}.")
    thickness = max(height / HEIGHT_PER_THICKNESS, LEAST_THICKNESS_PX) if thickness_px is None else thickness_px
    if not 0 < thickness < max(height, 2):
        raise VapError(f"thickness_px must be between 0 and the picture's height {height}, got {thickness}. Try 2.")
    ends = np.concatenate([joints_px[:, :, _PARENT], joints_px[:, :, :1]], axis=2)  # the last: the wrist's dot
    tips = np.concatenate([joints_px[:, :, _CHILD], joints_px[:, :, :1]], axis=2)
    bones = ends.shape[2]
    each = [np.concatenate([np.repeat(COLOURS[side], 4, axis=0), WRIST_COLOURS[None, side]]) for side in sides]
    colour = np.stack(each) / 255.0
    radius = np.full((frames, hands, bones, 2), 0.5 * thickness)
    radius[:, :, -1] *= 1.6
    visible = np.isfinite(ends).all(-1) & np.isfinite(tips).all(-1)
    visible &= np.abs(np.stack([ends, tips])).max((0, -1), initial=0, where=visible[None, ..., None]) < 1e5
    order = np.broadcast_to(np.arange(hands * bones), (frames, hands * bones))
    if depth_m is not None:
        depth = np.concatenate(
            [np.stack([depth_m[:, :, _PARENT], depth_m[:, :, _CHILD]]), np.stack([depth_m[:, :, :1]] * 2)], -1
        )
        visible &= (np.isfinite(depth) & (depth > NEAR_M)).all(0)
        far = np.where(visible, depth.mean(0), np.inf).reshape(frames, -1)
        order = np.argsort(-far, axis=1, kind="stable")
    radius[~visible] = HIDDEN_RADIUS_PX

    def arranged(values: NDArray[np.float64], per: int) -> NDArray[np.float32]:
        flat = np.where(visible[..., None], values, 0.0) if per == 2 else values
        flat = np.broadcast_to(flat, (frames, hands, bones, flat.shape[-1])).reshape(frames, hands * bones, -1)
        return np.take_along_axis(flat, order[..., None], axis=1).astype(np.float32)

    radius_px = np.take_along_axis(radius.reshape(frames, -1, 2), order[..., None], axis=1).astype(np.float32)
    arrays = (arranged(ends, 2), arranged(tips, 2), radius_px, arranged(colour, 3))
    pictures = np.zeros((frames, height, width, 3), np.uint8)
    for begin in range(0, frames, CHUNK):
        piece = slice(begin, begin + CHUNK)
        _draw_sparse(pictures[piece], *(x[piece] for x in arrays))
    return pictures


def draw_hands_3d(
    joints_world: Float[np.ndarray, "T hands 21 3"],
    camera: Camera,
    *,
    sides: tuple[int, ...] = (0, 1),
    thickness_px: float | None = None,
) -> UInt8[np.ndarray, "T H W 3"]:
    """Draw hands given in metres in the camera's world (`camera`: one for all frames, or T of them)."""
    joints_px, depth_m = project_hands(joints_world, camera)
    return draw_hands(
        joints_px, frame_size_px=camera.frame_size_px, depth_m=depth_m, sides=sides, thickness_px=thickness_px
    )


def project_hands(
    joints_world: Float[np.ndarray, "T hands 21 3"], camera: Camera
) -> tuple[Float[np.ndarray, "T hands 21 2"], Float[np.ndarray, "T hands 21"]]:
    """Return pixels and depth [m] of hands in the world; NaN stays NaN."""
    frames, hands = joints_world.shape[:2]
    points = torch.from_numpy(joints_world.reshape(frames, hands * JOINTS, 3)).to(camera.K.dtype)
    if camera.batch_shape == ():
        uv, depth = camera.project(points.reshape(-1, 3))
    else:
        uv, depth = camera.project(points)
    shape = (frames, hands, JOINTS)
    return uv.double().numpy().reshape(*shape, 2), depth.double().numpy().reshape(shape)
