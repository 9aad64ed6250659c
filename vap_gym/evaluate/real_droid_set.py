"""Calibrated real streams as a data set for training, split by episode, in the columns that the trainings read.

Real logs have achieved states only: they stand in the nominal columns, and `info["states"]` says so. Nothing is known
of things: they are NaN, unturned. Trainings take the gripper's mount from the card: write streams that were aligned so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vap_gym.cards import load_robot
from vap_gym.data import Episode, EpisodeWriter, finalise
from vap_gym.data.layout import DataError
from vap_gym.evaluate.real_droid_streams import Stream
from vap_gym.geometry import xyz_euler_from_pose
from vap_gym.kinematics.gripper import gripper_joint_values
from vap_gym.kinematics.urdf import load_chain

VIEW = "front"
THINGS = 5  # as many as the simulator's sets have room for
RATE_HZ = 15  # of the set, so that it mixes with others; a real frame is about two steps of it


def write_set(
    out: Path, streams: Sequence[Stream], *, robot: str, leave_out: Sequence[str] = (), frames: int = 60
) -> list[Episode]:
    """Write pieces of `frames` frames that cover each stream, evenly, without those of episodes that are left out.

    Raises:
        DataError: no stream is left, or one that is too short; or `out` holds a set already.
    """
    chosen = [stream for stream in streams if stream.episode not in leave_out]
    if not chosen:
        raise DataError(f"Some stream must be left to write, got none without {', '.join(leave_out)}. Leave out fewer.")
    writer = EpisodeWriter(out, fps=RATE_HZ, robot_type=robot)
    if writer.written():
        raise DataError(f"'{out}' must be free, but holds episodes. Name another folder.")
    made = [piece for stream in chosen for piece in pieces(stream, robot=robot, frames=frames)]
    for episode in made:
        writer.append(episode)
    finalise(out)
    return made


def pieces(stream: Stream, *, robot: str, frames: int) -> list[Episode]:
    """Return pieces of one length that cover a stream, as episodes; they overlap where its length asks for it."""
    count = len(stream)
    if count < frames:
        raise DataError(f"{stream.name} must have {frames} frames or more, got {count}. Ask for shorter pieces.")
    starts = np.unique(np.linspace(0, count - frames, -(-count // frames)).round().astype(int))
    tip, tool = _poses(stream, robot)
    width, height = stream.camera.frame_size_px
    found = []
    for start in starts.tolist():
        part = slice(start, start + frames)
        columns = {
            "nominal.joint_position": stream.joints_rad[part].numpy(),
            "nominal.gripper_position": stream.closedness[part, None].numpy(),
            "nominal.cartesian_position": tip[part],
            "observation.joint_position": stream.joints_rad[part].numpy(),
            "observation.state": np.concatenate([tip[part], stream.closedness[part, None].numpy()], 1),
            "action": np.full((frames, 7), np.nan),
            "objects_m": np.full((frames, THINGS, 3), np.nan),
            "objects_xyzw": np.tile(np.array([0.0, 0.0, 0.0, 1.0]), (frames, THINGS, 1)),
            "tool_m": tool[part],
            "camera.K": np.tile(stream.camera.K.numpy(), (frames, 1, 1)),
            "camera.T_world_camera": np.tile(stream.camera.T_world_camera.numpy(), (frames, 1, 1)),
        }
        found.append(
            Episode(
                frames={VIEW: stream.frames[part]},
                columns={name: value.astype(np.float32) for name, value in columns.items()}
                | {"touching": np.zeros((frames, THINGS), bool)},
                task=stream.instruction,
                info={
                    "robot": robot,
                    "lab": "droid newsetup",
                    "skill": stream.episode,  # each episode has another task
                    "states": "achieved",
                    "source": {"episode": stream.episode, "view": stream.view, "frame": start},
                    "camera": stream.how,
                    "tool_shift_mm": round(1e3 * stream.tool_shift_m, 1),
                    "steps_per_frame": 2,
                    "frame_size_px": [width, height],
                },
            )
        )
    return found


def _poses(stream: Stream, robot: str) -> tuple[np.ndarray, np.ndarray]:
    """The tip link's pose (T, 6) and the tool's centre (T, 3), in the base."""
    card = load_robot(robot)
    chain = load_chain(card).subchain([card.tip_link, card.gripper.tool_link]).to(torch.float64)
    q, closed = stream.joints_rad.double(), stream.closedness.double()
    joints = torch.cat([q, gripper_joint_values(card.gripper, closed)], -1)
    named = (*card.arm_joints, *(joint.name for joint in card.gripper.joints))
    T = chain.links(joints[:, [named.index(name) for name in chain.joint_names]])
    tool = T[:, 1, :3, 3] + stream.tool_shift_m * T[:, 0, :3, 2]
    return xyz_euler_from_pose(T[:, 0]).numpy(), tool.numpy()
