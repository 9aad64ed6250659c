"""Tasks: progress and success as plain functions of positions, the same for the oracle and for the judge."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vap_gym.errors import unknown_name
from vap_gym.sim.spec import TASK_NAMES, SceneSpec

REACH_RADIUS_M = 0.05
PUSH_RADIUS_M = 0.04
LIFT_HEIGHT_M = 0.06


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
        object_m: the centre of the target object, world metres.
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
    else:
        raise unknown_name("task", spec.task, TASK_NAMES)
    return np.asarray(np.nan_to_num(np.clip(value, 0.0, 1.0), nan=0.0))


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
