"""The text of a drafted robot.toml: figures, and comments that say which of them were guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vap_gym.drafting.guess import Closing, Figure
from vap_gym.drafting.parts import Parts
from vap_gym.drafting.tree import Tree
from vap_gym.kinematics.chain import Chain

MODES = ("cartesian_velocity", "cartesian_delta", "cartesian_pose", "joint_velocity", "joint_position")


def card_text(
    name: str,
    source: Path,
    parts: Parts,
    chain: Chain,
    home: np.ndarray,
    closing: Closing,
    figure: Figure,
    tool: str,
    tree: Tree,
) -> str:
    """Return a robot.toml. Text in quotes is what TOML reads; comments begin with `guessed` where nobody said so."""
    kinds = {tree.joints[joint].kind for joint in parts.gripper}
    kind = "none" if not parts.gripper else "parallel" if kinds == {"prismatic"} else "pivoting"
    joints = ",\n  ".join(
        f"{{ name = {_text(joint)}, open_position = {opened}, closed_position = {closed} }}"
        for joint, opened, closed in zip(parts.gripper, closing.opened, closing.closed, strict=True)
    )
    points = "\n".join(
        f"  {{ name = {_text(point)}, link = {_text(link)}, offset_m = [{', '.join(map(str, offset))}] }},"
        for point, link, offset in figure.points
    )
    bones = "\n".join(
        f"  {{ start = {_text(start)}, end = {_text(end)}, colour_rgb = {list(colour)}, radius_m = {radius} }},"
        for start, end, colour, radius in figure.bones
    )
    return f"""# Drafted by `vap-gym robot add` from {source.name}. Look at check.png; correct what was guessed wrongly.
# Lengths in metres, angles in radians, closedness 0 open .. 1 closed.
name = {_text(name)}
description = {_text(f"Drafted from {source.name}; {len(parts.arm)} joints.")}
# robot.urdf is what hangs on the base; joints of neither arm nor gripper are fixed in it.
urdf = "robot.urdf"
base_link = {_text(parts.base)}
tip_link = {_text(parts.tip)}  # the link whose pose Cartesian actions move
arm_joints = [{", ".join(map(_text, parts.arm))}]  # from base to tip
home_q_rad = [{", ".join(str(float(value)) for value in home)}]  # guessed: an easy pose before the base
action_modes = [{", ".join(map(_text, MODES))}]

[controller]                              # guessed: commands are reached in one step; measure yours (gain, lag_steps)
kind = "first_order"
gain = 1.0                                # share of a commanded offset that is realised in a step
lag_steps = 0.0
gripper_gain = 1.0
control_hz = 15.0
linear_step_m = 0.03                      # what an action of norm 1 asks for in one step
rotation_step_rad = 0.1
joint_step_rad = 0.1
gripper_step = 0.25                       # closedness

[gripper]
kind = "{kind}"
base_link = {_text(parts.gripper_base)}
tool_link = {_text(tool)}
max_opening_m = {closing.max_opening_m}  # guessed: how far the fingers' ends come apart
joints = [
  {joints}
]  # guessed: open is where the fingers' ends are farther apart

[skeleton]                                # guessed: points are the joints, radii the shapes' around a bone
keypoints = [
{points}
]
bones = [                                 # left reddish, right bluish, palm green; the arm in yellow to white
{bones}
]
drop_from = [{", ".join(map(_text, figure.ends))}]  # a thin line from their mean down to the table, to show height
drop_to_z_m = 0.0                         # guessed: the table is as high as the base
"""


def _text(value: str) -> str:
    """A TOML string."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
