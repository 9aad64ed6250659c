"""Where the loss of a clip weighs more: on the gripper or hand, on things, and most on things that moved (Sec. 3.3)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32

from vap_gym.data.masks import GripperRegion
from vap_gym.geometry import Camera
from vap_gym.train.latents import blobs

MOVED_M = 0.01
FINER = 2  # the gripper's region is drawn at so many times the latents' size


def clip_weights(
    region: GripperRegion,
    *,
    q: Float[np.ndarray, "T n"],
    closed: Float[np.ndarray, " T"],
    objects_m: Float[np.ndarray, "T N 3"] | None,
    camera: Camera,
    size: tuple[int, int],
    gripper: float,
    objects: float,
    moved: float,
) -> Float32[np.ndarray, "T h w"]:
    """Return 1 everywhere, 1 + `gripper` on the gripper, 1 + `objects` on things, 1 + `objects` + `moved` on those that
    have moved since the clip's first frame. Where such a thing stood at first counts as well: the place has to be
    cleared. `size` is the (height, width) of the latents; what is not known (NaN) weighs nothing.
    """
    height, width = size
    weight = torch.zeros(len(q), height, width)
    if not bool(torch.isfinite(camera.T_world_camera).all() & torch.isfinite(camera.K).all()):
        return weight.numpy() + 1
    if gripper and np.isfinite(q).all() and np.isfinite(closed).all():
        finer = camera.resized((FINER * width, FINER * height))
        mask = region.mask(torch.from_numpy(q), torch.from_numpy(closed), finer)
        pooled = mask.reshape(len(q), height, FINER, width, FINER).mean((2, 4))
        weight = gripper * torch.from_numpy(pooled)
    if objects_m is not None and (objects or moved):
        places = torch.from_numpy(objects_m)
        has_moved = (places - places[:1]).norm(dim=-1) > MOVED_M
        cell_px = camera.frame_size_px[0] / width
        here, then = (blobs(camera.project(p)[0] / cell_px, 1.6, size) for p in (places, places[:1].expand_as(places)))
        strength = torch.where(has_moved, objects + moved, objects)[..., None, None]
        on_things = torch.maximum((strength * here).amax(1), (objects * has_moved[..., None, None] * then).amax(1))
        weight = torch.maximum(weight, on_things)
    return (1.0 + weight).float().numpy()
