"""What the columns and notes of an episode are called, whatever robot and recording it comes from.

Per frame (T rows; states and actions keep the dtype and the bits of their source):

| column | shape | what |
|---|---|---|
| `observation.joint_position` | (T, n) | arm joints, rad |
| `observation.gripper_position` | (T,) | closedness, 0 open .. 1 closed |
| `observation.cartesian_position` | (T, 6) | the tip link in the base frame: xyz [m], extrinsic-xyz Euler [rad] |
| `observation.hand_keypoints` | (T, hands, 21, 3) | joints of hands in the camera's frame [m], OpenPose order |
| `observation.hand_keypoints_px` | (T, hands, 21, 2) | the same in the recorded picture, px |
| `action` | (T, A) | as logged; row t leads from frame t to t + 1; `info["action_mode"]` names its convention |
| `camera.<view>.K`, `camera.<view>.T_world_camera` | (T, 3, 3), (T, 4, 4) | px; the world is the base frame |

Episodes of our oracle have one view and call its camera `camera.K`, `camera.T_world_camera`; `camera_of` reads both.
In `info`: `robot` (a card's name), `action_mode`, `source` (kind, path and episode it was read from), `lab`, `skill`,
`rate_hz` (None where the source does not state it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vap_gym.data.layout import DataError
from vap_gym.geometry import Camera

JOINTS = "observation.joint_position"
GRIPPER = "observation.gripper_position"
CARTESIAN = "observation.cartesian_position"
HANDS = "observation.hand_keypoints"
HANDS_PX = "observation.hand_keypoints_px"
ACTION = "action"


def camera_columns(view: str) -> tuple[str, str]:
    """Return the names of a view's columns: intrinsics and pose."""
    return f"camera.{view}.K", f"camera.{view}.T_world_camera"


def has_camera(columns: Mapping[str, Any], view: str) -> bool:
    """Return whether an episode's columns (or a set's features) tell the camera of a view; NaN tells nothing."""
    names = camera_columns(view)
    if all(name in columns for name in names):
        return all(np.isfinite(columns[n]).all() for n in names if isinstance(columns[n], np.ndarray))
    return "camera.K" in columns


def camera_of(columns: Mapping[str, NDArray[Any]], view: str, frame_size_px: tuple[int, int]) -> Camera:
    """Return the camera of a view at every frame, batch (T,), float64. Raises DataError where it is not told."""
    names = camera_columns(view)
    if not all(name in columns for name in names):
        names = ("camera.K", "camera.T_world_camera")
    if not all(name in columns for name in names):
        raise DataError(
            f"No camera of the view '{view}': needs the columns {' and '.join(camera_columns(view))}, "
            f"got {', '.join(columns) or 'none'}. Fit one: vap-gym calibrate"
        )
    if not all(np.isfinite(columns[name]).all() for name in names):
        raise DataError(
            f"No camera of the view '{view}' in this episode: {' and '.join(names)} hold NaN, so its recording tells "
            "none. Fit one: vap-gym calibrate"
        )
    K, T_world_camera = (torch.from_numpy(np.asarray(columns[name], np.float64)) for name in names)
    return Camera(K=K, T_world_camera=T_world_camera, frame_size_px=frame_size_px)


def columns_of_camera(camera: Camera, view: str, frames: int) -> dict[str, NDArray[np.float64]]:
    """Return the two columns of a view's camera: one camera for all frames, or one for each."""
    names = camera_columns(view)
    K, T = (x.double().numpy() for x in (camera.K, camera.T_world_camera))
    return {
        names[0]: np.array(np.broadcast_to(K, (frames, 3, 3))),
        names[1]: np.array(np.broadcast_to(T, (frames, 4, 4))),
    }
