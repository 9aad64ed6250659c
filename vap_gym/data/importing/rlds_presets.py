"""What the features of known RLDS sets mean: RT-1, Bridge V2 and DROID mapped to the names of `conventions`, checked.

Every number that a preset keeps has the bits of its file; what is computed (closedness from openness, Euler angles
from quaternions) stands beside the logged value, never in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vap_gym.data.conventions import ACTION, CARTESIAN, GRIPPER, JOINTS
from vap_gym.data.layout import DataError
from vap_gym.errors import unknown_name
from vap_gym.rotations import rotation_from_quaternion_xyzw, xyz_euler_from_rotation

Steps = Mapping[str, NDArray[Any]]  # of one episode, by name under steps/: (T, …)

# What each kind needs, and the number of values per step.
FIELDS: Mapping[str, Mapping[str, int]] = {
    "rlds-bridge": {"observation/state": 7, "action": 7},
    "rlds-rt1": {
        "observation/base_pose_tool_reached": 7,
        "observation/gripper_closed": 1,
        "action/world_vector": 3,
        "action/rotation_delta": 3,
        "action/gripper_closedness_action": 1,
        "action/terminate_episode": 3,
    },
    "rlds-droid": {
        "observation/cartesian_position": 6,
        "observation/gripper_position": 1,
        "observation/joint_position": 7,
        "action": 7,
    },
    "rlds": {},
}
_REACH_M = 2.0  # no arm here reaches farther from its base


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """Columns under the names of `conventions`, entries of `info`, and the features that they stand for."""

    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    used: frozenset[str] = frozenset()


def column_name(key: str) -> str:
    """`observation/state` → `observation.state`; `action_dict/…` → `log.action_…`, as in DROID's raw logs.

    A name with a meaning in `conventions` is kept apart by `source.`.
    """
    name = key.replace("action_dict/", "log.action_").replace("/", ".")
    return f"source.{name}" if name in (JOINTS, GRIPPER, CARTESIAN) else name


def check_fields(kind: str, steps: Steps) -> None:
    """Refuse features that a kind's map needs and that are missing or of another width."""
    for key, width in FIELDS[kind].items():
        if key not in steps:
            raise DataError(
                f"Kind '{kind}' needs the feature 'steps/{key}', got {', '.join(steps) or 'none'}. "
                "Use kind rlds, which puts no meaning on features."
            )
        given = int(np.prod(steps[key].shape[1:], dtype=np.int64))
        if given != width:
            raise DataError(
                f"Kind '{kind}' needs {width} numbers a step in 'steps/{key}', got {given}. "
                "Use kind rlds, which puts no meaning on features."
            )


def plain(steps: Steps) -> Mapped:
    """No meaning is put on anything."""
    return Mapped(info={"action_mode": "unknown"})


def bridge(steps: Steps) -> Mapped:
    """Bridge V2: state xyz [m], Euler [rad], openness; action dxyz, drpy, openness.

    The angles are zero where the gripper points down: they are those of `bridge_link`, the tip link of the card
    `widowx`, which is turned by a quarter from the gripper's own link.
    """
    state, action = steps["observation/state"], steps["action"]
    _within(state[:, :3], -_REACH_M, _REACH_M, "observation/state[0:3]", "metres from the base")
    _within(state[:, 3:6], -2 * np.pi, 2 * np.pi, "observation/state[3:6]", "radians")
    _within(state[:, 6], -0.2, 1.2, "observation/state[6]", "openness, 0 closed to 1 open")
    _within(action[:, 6], -0.01, 1.01, "action[6]", "openness, 0 closed to 1 open")
    columns = {
        "observation.state": state,
        CARTESIAN: state[:, :6],
        GRIPPER: (1 - state[:, 6]).astype(state.dtype),
        ACTION: action,
    }
    return Mapped(columns=columns, info={"action_mode": "bridge"}, used=frozenset({"observation/state", "action"}))


def rt1(steps: Steps) -> Mapped:
    """RT-1: tool pose as xyz [m] + quaternion xyzw, closedness; action world vector, axis-angle, closing, terminate."""
    pose, closed = steps["observation/base_pose_tool_reached"], steps["observation/gripper_closed"]
    parts = [steps[f"action/{name}"] for name in ("world_vector", "rotation_delta", "gripper_closedness_action")]
    _within(pose[:, :3], -_REACH_M, _REACH_M, "observation/base_pose_tool_reached[0:3]", "metres from the base")
    length = np.linalg.norm(pose[:, 3:].astype(np.float64), axis=-1)
    _within(length, 0.98, 1.02, "the norm of observation/base_pose_tool_reached[3:7]", "a unit quaternion")
    _within(closed, -0.05, 1.05, "observation/gripper_closed", "closedness, 0 open to 1 closed")
    for part, limit, unit in zip(
        parts, (2.0, np.pi, 1.0), ("metres", "axis-angle, radians", "+1 closes, -1 opens"), strict=True
    ):
        _within(part, -limit - 1e-3, limit + 1e-3, "action", unit)
    rows = len(pose)
    columns = {
        "observation.base_pose_tool_reached": pose,
        CARTESIAN: _cartesian(
            pose[:, :3], rotation_from_quaternion_xyzw(torch.from_numpy(pose[:, 3:].astype(np.float64)))
        ),
        GRIPPER: closed.reshape(rows),
        ACTION: np.concatenate([part.reshape(rows, -1) for part in parts], axis=1),
    }
    used = {"observation/base_pose_tool_reached", "observation/gripper_closed"}
    used |= {f"action/{name}" for name in ("world_vector", "rotation_delta", "gripper_closedness_action")}
    return Mapped(columns=columns, info={"action_mode": "rt1"}, used=frozenset(used))


def droid(steps: Steps, *, choice: str | None = None) -> Mapped:
    """DROID: states as its raw logs have them, and `action` as it is, or a `choice` out of `action_dict`.

    Some files describe `action` as six joint velocities and a gripper, though there are seven joints: so its values
    are compared with those of `action_dict`, and its convention is "unknown" where none of them is the same.
    """
    pose, joints = steps["observation/cartesian_position"], steps["observation/joint_position"]
    gripper, action = steps["observation/gripper_position"], steps["action"]
    _within(pose[:, :3], -_REACH_M, _REACH_M, "observation/cartesian_position[0:3]", "metres from the base")
    _within(pose[:, 3:], -2 * np.pi, 2 * np.pi, "observation/cartesian_position[3:6]", "radians")
    _within(joints, -2 * np.pi, 2 * np.pi, "observation/joint_position", "radians")
    _within(gripper, -0.05, 1.05, "observation/gripper_position", "closedness, 0 open to 1 closed")
    columns = {JOINTS: joints, GRIPPER: gripper.reshape(len(pose)), CARTESIAN: pose}
    if choice is None:
        columns[ACTION], mode = action, _mode_of(steps, action)
        used = {"action"}
    else:
        columns[ACTION], mode, used = _chosen(steps, choice), choice, set()
    used |= {"observation/cartesian_position", "observation/joint_position", "observation/gripper_position"}
    return Mapped(columns=columns, info={"action_mode": mode}, used=frozenset(used))


# The conventions of vap_gym.kinematics.control, and the parts of DROID's action_dict that make them up.
DROID_ACTIONS: Mapping[str, tuple[str, str]] = {
    "joint_position": ("joint_position", "gripper_position"),
    "cartesian_pose": ("cartesian_position", "gripper_position"),
    "joint_velocity": ("joint_velocity", "gripper_velocity"),
    "cartesian_velocity": ("cartesian_velocity", "gripper_velocity"),
}


def _mode_of(steps: Steps, action: NDArray[Any]) -> str:
    """The convention whose values `action` has, gripper included, or "unknown"."""
    for mode in DROID_ACTIONS:
        names = [f"action_dict/{name}" for name in DROID_ACTIONS[mode]]
        if all(name in steps for name in names) and np.array_equal(_chosen(steps, mode), action):
            return mode
    return "unknown"


def _chosen(steps: Steps, mode: str) -> NDArray[Any]:
    """The action of a convention out of action_dict, (T, arm + 1)."""
    if mode not in DROID_ACTIONS:
        raise unknown_name("action convention of DROID", mode, DROID_ACTIONS)
    parts = [f"action_dict/{name}" for name in DROID_ACTIONS[mode]]
    missing = [part for part in parts if part not in steps]
    if missing:
        raise DataError(
            f"The action '{mode}' needs the features {' and '.join(parts)}, got no {missing[0]}. Choose another."
        )
    return np.concatenate([steps[part].reshape(len(steps[part]), -1) for part in parts], axis=1)


def _cartesian(position: NDArray[Any], rotation: torch.Tensor) -> NDArray[np.float64]:
    """Rows of xyz and extrinsic-xyz Euler angles, (T, 6)."""
    return np.concatenate([position.astype(np.float64), xyz_euler_from_rotation(rotation).numpy()], axis=1)


def _within(values: NDArray[Any], low: float, high: float, what: str, unit: str) -> None:
    """Refuse values that cannot be in the unit that the map states."""
    bad = ~((values >= low) & (values <= high))
    if bad.any():
        row = int(np.flatnonzero(bad.reshape(len(values), -1).any(axis=1))[0])
        raise DataError(
            f"{what} must be {unit}, so from {low:.3g} to {high:.3g}, got {np.asarray(values[row]).tolist()} at step "
            f"{row}. Leave this episode out, or use kind rlds, which puts no meaning on features."
        )
