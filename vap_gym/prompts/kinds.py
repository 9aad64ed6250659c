"""The kinds of prompt, from the same state and camera: skeleton, mesh, depth, or none; and how depth becomes a picture.

All kinds put the centre of the top-left pixel at (0.5, 0.5) and cut at the same depth in front of the camera, so that
they lie on each other pixel by pixel.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8, UInt16
from torch import Tensor

from vap_gym.cards import RobotCard
from vap_gym.errors import VapError, unknown_name
from vap_gym.geometry import Camera
from vap_gym.prompts.mesh import Mesh, draw_depth, draw_mesh
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton

PROMPTS = ("skeleton", "mesh", "depth", "none")

NEAREST_M = 0.1
FARTHEST_M = 5.0
"""The range of depth pictures: from a finger before a wrist camera to a robot across a room."""


class Prompter:
    """Draws prompts of one kind of one robot, as world models take them: settings only.

    Args:
        robot: whose card has a skeleton; for "mesh" and "depth" its surface must be known too, see `Mesh`.
        kind: "skeleton" (coloured bones with a drop line), "mesh" (shaded surfaces in the bones' colours), "depth"
            (the surface's depth, see `encode_depth`, the same in all three channels) or "none" (black).
        frame_size_px: (width, height) of the pictures.
        height_cue: whether a skeleton has its drop line to the table.

    Raises:
        UnknownNameError: no such kind.
        CardError: the robot has no surface that could be drawn, or its file is damaged.
    """

    def __init__(self, robot: RobotCard, kind: str, *, frame_size_px: tuple[int, int], height_cue: bool = True) -> None:
        if kind not in PROMPTS:
            raise unknown_name("prompt", kind, PROMPTS)
        self.kind = kind
        self.frame_size_px = frame_size_px
        self.skeleton = Skeleton(robot, height_cue=height_cue)
        self.mesh = Mesh(robot) if kind in ("mesh", "depth") else None

    def draw(
        self, q: Float[Tensor, "*batch n"], gripper: Float[Tensor, "*batch"], camera: Camera
    ) -> UInt8[Tensor, "*batch H W 3"]:
        """Draw robots at arm joints [rad] and closedness (0 open .. 1 closed); 0 is where no robot is.

        The camera is one for all, or one for each of the leading batch dimensions; it is resized to the pictures.
        """
        size = width, height = self.frame_size_px
        if self.mesh is None:
            if self.kind == "none":
                return torch.zeros(*q.shape[:-1], height, width, 3, dtype=torch.uint8)
            return torch.from_numpy(
                draw(self.skeleton.at_joints(q, gripper), camera, self.skeleton, frame_size_px=size)
            )
        if self.kind == "mesh":
            return torch.from_numpy(draw_mesh(q, gripper, camera, self.mesh, frame_size_px=size))
        channel = encode_depth(draw_depth(q, gripper, camera, self.mesh, frame_size_px=size))
        return torch.from_numpy(np.repeat(channel[..., None], 3, axis=-1))


def encode_depth(
    depth_m: Float[np.ndarray, "*batch H W"],
    *,
    nearest_m: float = NEAREST_M,
    farthest_m: float = FARTHEST_M,
    bits: int = 8,
) -> UInt8[np.ndarray, "*batch H W"] | UInt16[np.ndarray, "*batch H W"]:
    """Return depth as a one-channel picture of 8 or 16 bits: 0 where there is nothing, else brighter where nearer.

    The code falls evenly with the logarithm of depth, from the largest value at `nearest_m` to 1 at `farthest_m`, so
    that its step is the same share of the depth everywhere: 1.6 % in 8 bits over the default range (1.6 cm at 1 m,
    2 mm at 0.12 m), 0.006 % in 16. Depth outside of the range is drawn at its ends.

    Args:
        depth_m: metres along the optical axis; 0 where there is nothing, as `draw_depth` returns it. Infinity is read
            as nothing, too.

    Raises:
        VapError: negative depth or NaN, an empty range, or another number of bits.
    """
    span, top = _coding(nearest_m, farthest_m, bits)
    if not bool((depth_m >= 0).all()):
        raise VapError(
            f"depth_m must be metres of at least 0 (0 or infinity: nothing there), got {np.nanmin(depth_m)} at the "
            f"least and {int(np.isnan(depth_m).sum())} times NaN. `draw_depth` returns such."
        )
    is_there = (depth_m > 0) & np.isfinite(depth_m)
    code = np.zeros(depth_m.shape, np.uint8 if bits == 8 else np.uint16)
    share = np.log(farthest_m / depth_m[is_there].astype(np.float64)) / span
    code[is_there] = np.rint(1 + (top - 1) * np.clip(share, 0, 1))
    return code


def decode_depth(
    code: UInt8[np.ndarray, "*batch H W"] | UInt16[np.ndarray, "*batch H W"],
    *,
    nearest_m: float = NEAREST_M,
    farthest_m: float = FARTHEST_M,
) -> Float32[np.ndarray, "*batch H W"]:
    """Return the depth [m] that `encode_depth` wrote, to half a step of the code; 0 where there is nothing."""
    span, top = _coding(nearest_m, farthest_m, 8 * code.dtype.itemsize)
    depth = farthest_m * np.exp(-span * (code.astype(np.float64) - 1) / (top - 1))
    return np.where(code > 0, depth, 0.0).astype(np.float32)


def _coding(nearest_m: float, farthest_m: float, bits: int) -> tuple[float, int]:
    """The logarithm of the range, and the largest code."""
    if bits not in (8, 16) or not 0 < nearest_m < farthest_m < np.inf:
        raise VapError(
            f"Depth is coded in 8 or 16 bits from nearest_m to farthest_m, got {bits} bits, {nearest_m} and "
            f"{farthest_m} m. Try bits=8, nearest_m={NEAREST_M}, farthest_m={FARTHEST_M}."
        )
    return float(np.log(farthest_m / nearest_m)), 2**bits - 1
