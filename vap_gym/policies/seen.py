"""Things seen: where gripper, object and goal are, as a few numbers: what small agents see, and how they answer.

All is told in a frame of the task's own: its first axis leads from the object to the goal (to push), or from the
robot's base to the object. A push looks the same there whichever way on the table it goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vap_gym.errors import unknown_name

Array = np.ndarray
TASKS = ("reach", "push", "lift")
FEATURES = 17
NEAR_M, STEP_M, SIZE_M, TABLE_M = 0.1, 0.015, 0.03, 0.3  # lengths that count as 1
GRIPPER = {"reach": 0.0, "push": 1.0}  # where the agent does not decide on it: stay, or close


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What B episodes show at one moment. Metres in the robot's base frame."""

    tool_m: Float[Array, "B 3"]  # the centre between the finger ends, by kinematics
    before_m: Float[Array, "B 3"]  # the same when the agent last decided
    closedness: Float[Array, " B"]  # of the gripper, 0 open .. 1 closed
    yaw_rad: Float[Array, " B"]  # how the tip link is turned about z
    object_m: Float[Array, "B 3"]  # the task's object, as it is seen
    size_m: Float[Array, " B"]  # half its width along the table, mean of both ways
    goal_m: Float[Array, "B 2"]  # where it is to be pushed; of other tasks not looked at
    table_z_m: Float[Array, " B"]


def checked_task(task: str) -> str:
    """Return a task that agents can learn. Raises UnknownNameError for another one."""
    if task not in TASKS:
        raise unknown_name("task that agents learn", task, TASKS)
    return task


def answer_size(task: str) -> int:
    """How many numbers an agent decides on: a velocity of the tool, and the gripper's where the task needs it."""
    return 3 if task in GRIPPER else 4


def heading(seen: Seen, task: str) -> Float[Array, "B 2"]:
    """Return the first axis of the task's frame: a direction along the table."""
    way = seen.goal_m - seen.object_m[:, :2] if task == "push" else seen.object_m[:, :2]
    length = np.linalg.norm(way, axis=-1, keepdims=True)
    return np.where(length > 1e-6, way / np.maximum(length, 1e-6), [1.0, 0.0])


def turned(xy: Float[Array, "B 2"], axis: Float[Array, "B 2"]) -> Float[Array, "B 2"]:
    """Return directions along the table as a frame with this first axis has them."""
    ahead = (xy * axis).sum(-1)
    return np.stack([ahead, axis[:, 0] * xy[:, 1] - axis[:, 1] * xy[:, 0]], -1)


def features(seen: Seen, task: str) -> Float[Array, "B 17"]:
    """Return what an agent is shown, float32: from tool to object, the last step, heights, how far it is to the goal,
    how the gripper is turned and closed, the object's size and place, and which way the frame looks."""
    axis = heading(seen, task)
    away, step = seen.object_m - seen.tool_m, seen.tool_m - seen.before_m
    left = np.linalg.norm(seen.goal_m - seen.object_m[:, :2], axis=-1) if task == "push" else np.zeros(len(away))
    twice = 2.0 * (seen.yaw_rad - np.arctan2(axis[:, 1], axis[:, 0]))
    columns = [
        turned(away[:, :2], axis) / NEAR_M,
        away[:, 2:] / NEAR_M,
        turned(step[:, :2], axis) / STEP_M,
        step[:, 2:] / STEP_M,
        left[:, None] / NEAR_M,
        (seen.tool_m[:, 2] - seen.table_z_m)[:, None] / NEAR_M,
        (seen.object_m[:, 2] - seen.table_z_m)[:, None] / NEAR_M,
        np.stack([np.cos(twice), np.sin(twice)], -1),
        seen.size_m[:, None] / SIZE_M,
        seen.closedness[:, None],
        seen.object_m[:, :2] / TABLE_M,
        axis,
    ]
    shown: Array = np.nan_to_num(np.concatenate(columns, -1)).clip(-20.0, 20.0).astype(np.float32)
    return shown


def commands(answers: Float[Array, "B a"], seen: Seen, task: str) -> Float[Array, "B 7"]:
    """Return an agent's answers, told in the task's frame, as DROID's velocities, float32."""
    axis = heading(seen, task)
    back = axis * [1.0, -1.0]  # the frame's first axis as the base's is told in it
    actions = np.zeros((len(answers), 7), np.float32)
    actions[:, :2] = turned(answers[:, :2].astype(np.float64), back)
    actions[:, 2] = answers[:, 2]
    actions[:, 6] = GRIPPER[task] if task in GRIPPER else answers[:, 3]
    return actions.clip(-1.0, 1.0)


def answers_of(actions: Float[Array, "B 7"], seen: Seen, task: str) -> Float[Array, "B a"]:
    """Return what an agent would have had to answer for these actions, turning left out: what `commands` undoes."""
    along = turned(actions[:, :2].astype(np.float64), heading(seen, task))
    parts = [along, actions[:, 2:3]] if task in GRIPPER else [along, actions[:, 2:3], actions[:, 6:7]]
    return np.concatenate(parts, -1).clip(-1.0, 1.0).astype(np.float32)
