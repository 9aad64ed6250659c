"""Tasks: progress and success as plain functions of positions, the same for the oracle and for the judge."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vap_gym.errors import unknown_name
from vap_gym.sim.spec import ALL_TASKS, ObjectSpec, SceneSpec

REACH_RADIUS_M = 0.05
PUSH_RADIUS_M = 0.04
LIFT_HEIGHT_M = 0.06
REST_M = 0.008  # how near a centre must be to its height when the thing stands, or lies
CLOSED_M, OPENED_M = 0.015, 0.10  # a drawer is closed within this; open beyond that


def progress(
    spec: SceneSpec,
    tool_m: Float[np.ndarray, "*batch 3"],
    object_m: Float[np.ndarray, "*batch 3"],
    *,
    start_tool_m: Float[np.ndarray, " 3"],
    start_object_m: Float[np.ndarray, " 3"],
) -> Float[np.ndarray, "*batch"]:
    """Dense progress of the episode's task, in [0, 1]; 1 where `success` holds. NaN positions give 0.

    Args:
        spec: the scene: its task and goal.
        tool_m: the centre between the finger ends, world metres.
        object_m: the centre of the target object, world metres; of a drawer its handle's.
        start_tool_m, start_object_m: the same two at the episode's first step.
    """
    if spec.task == "reach":
        start = np.linalg.norm(np.asarray(start_tool_m) - start_object_m)
        left = np.linalg.norm(np.asarray(tool_m) - object_m, axis=-1)
        value = _closed_share(left, start, REACH_RADIUS_M)
    elif spec.task == "push":
        goal = np.asarray(spec.goal_xy_m)
        start = np.linalg.norm(np.asarray(start_object_m)[:2] - goal)
        left = np.linalg.norm(np.asarray(object_m)[..., :2] - goal, axis=-1)
        value = _closed_share(left, start, PUSH_RADIUS_M)
    elif spec.task == "lift":
        value = (np.asarray(object_m)[..., 2] - np.asarray(start_object_m)[2]) / LIFT_HEIGHT_M
    elif spec.task in ("knock_over", "place_upright"):
        value = _tilt_progress(spec, np.asarray(tool_m), np.asarray(object_m))
    elif spec.drawer is not None:
        out = spec.drawer.handle_m[0] - np.asarray(object_m)[..., 0]
        start_out = spec.drawer.handle_m[0] - float(np.asarray(start_object_m)[0])
        if spec.task == "close_drawer":
            value = _closed_share(np.maximum(out, 0.0), np.float64(start_out), CLOSED_M)
        else:
            value = (out - start_out) / max(OPENED_M - start_out, 1e-3)
    else:
        raise unknown_name("task", spec.task, ALL_TASKS)
    return np.asarray(np.nan_to_num(np.clip(value, 0.0, 1.0), nan=0.0))


def rest_heights(item: ObjectSpec) -> tuple[float, float]:
    """How high over the table the centre of a tall thing is when it lies, and when it stands, m."""
    hx, _, hz = item.half_extents_m
    return hx, hz


def _tilt_progress(spec: SceneSpec, tool_m: np.ndarray, object_m: np.ndarray) -> np.ndarray:
    """From positions alone: a thing's centre is as high as when it lies, or stands; placed, and the tool above it."""
    lies, stands = rest_heights(spec.target_object)
    z = object_m[..., 2] - spec.table_z_m
    near = min(REST_M, 0.35 * (stands - lies))
    if spec.task == "knock_over":
        return np.asarray(
            np.where((z < lies + near) & (z > 0.0), 1.0, np.clip((stands - z) / (stands - lies), 0.0, 0.99))
        )
    upright = np.clip(1.0 - np.abs(z - stands) / (stands - lies), 0.0, 0.99)
    let_go = tool_m[..., 2] - spec.table_z_m > 2 * stands + 0.01
    return np.asarray(np.where((np.abs(z - stands) < near) & let_go, 1.0, np.where(let_go, upright, 0.9 * upright)))


def _closed_share(left_m: np.ndarray | np.floating, start_m: np.floating, radius_m: float) -> np.ndarray:
    """Share of the way from the start distance to the success radius; 1 inside the radius."""
    span = max(float(start_m) - radius_m, 1e-3)
    return np.asarray(1.0 - np.maximum(left_m - radius_m, 0.0) / span)


def success(
    spec: SceneSpec,
    tool_m: Float[np.ndarray, "*batch 3"],
    object_m: Float[np.ndarray, "*batch 3"],
    *,
    start_tool_m: Float[np.ndarray, " 3"],
    start_object_m: Float[np.ndarray, " 3"],
) -> np.ndarray:
    """Whether the task is solved at these positions, bool (*batch): `progress` has reached 1."""
    return np.asarray(progress(spec, tool_m, object_m, start_tool_m=start_tool_m, start_object_m=start_object_m) >= 1.0)
