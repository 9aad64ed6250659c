"""Observations: their spaces; one frame or several views, with or without the joints; the words that go with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, UInt8
from torch import Tensor

from vap_gym.contract import FRONT as FRONT
from vap_gym.contract import Observation as Observation
from vap_gym.errors import VapError, unknown_name
from vap_gym.rig import Motion, Rig
from vap_gym.sim.spec import SceneSpec

OBS_TYPES = ("pixels", "pixels_agent_pos")
ABOUT_BYTES = 3072


def observed(
    obs_type: str,
    frame: UInt8[np.ndarray, "H W 3"],
    q: Float[Tensor, " n"],
    closedness: Float[Tensor, ""],
    views: Mapping[str, UInt8[np.ndarray, "H W 3"]],
) -> Observation:
    """Return one slot's observation, in memory of its own; `views` are frames of further cameras."""
    pixels: Any = frame.copy()
    if views:
        pixels = {FRONT: pixels, **{name: view.copy() for name, view in views.items()}}
    if obs_type == "pixels":
        return {"pixels": pixels} if views else pixels
    return {"pixels": pixels, "agent_pos": np.append(q.numpy(), closedness.numpy()).astype(np.float32)}


def robot_info(motion: Motion, i: int, k: int) -> dict[str, Any]:
    """Return what kinematics knows of slot i at step k: proprioception, the prompt, and what was clipped."""
    return {
        "proprioception": {
            "joint_position": motion.robot.q[i, k].numpy().copy(),
            "cartesian_position": motion.cartesian[i, k].numpy().copy(),
            "gripper_position": float(motion.robot.gripper[i, k]),
        },
        "prompt": motion.prompts[i, k].numpy().copy(),
        "clipped": bool(motion.clipped.any[i, k]),
        "clipped_action": motion.clipped.action[i, k].numpy().copy(),
        "clipped_joints": (motion.clipped.position | motion.clipped.speed)[i, k].numpy().copy(),
    }


def observation_space(rig: Rig, obs_type: str, views: Sequence[str] = ()) -> spaces.Space[Any]:
    """Return the space of one observation; `views` names further cameras.

    Raises:
        UnknownNameError: for an unknown `obs_type`.
    """
    if obs_type not in OBS_TYPES:
        raise unknown_name("obs_type", obs_type, OBS_TYPES)
    width, height = rig.frame_size_px
    pixels: spaces.Space[Any] = spaces.Box(0, 255, (height, width, 3), np.uint8)
    if views:
        frame = (height, width, 3)
        pixels = spaces.Dict({name: spaces.Box(0, 255, frame, np.uint8) for name in (FRONT, *views)})
    if obs_type == "pixels":
        return spaces.Dict({"pixels": pixels}) if views else pixels
    arm = rig.controller.arm
    low, high = np.append(arm.lower.numpy(), 0.0), np.append(arm.upper.numpy(), 1.0)
    return spaces.Dict({"pixels": pixels, "agent_pos": spaces.Box(low.astype(np.float32), high.astype(np.float32))})


def action_space(rig: Rig, chunk: int = 1) -> spaces.Box:
    """Return the space of one action (A,) of the rig's action mode, float32; of a world model that imagines `chunk`
    steps at once, of so many actions (chunk, A)."""
    low, high = rig.controller.action_space_low.numpy(), rig.controller.action_space_high.numpy()
    if chunk > 1:
        low, high = np.tile(low, (chunk, 1)), np.tile(high, (chunk, 1))
    return spaces.Box(low, high, dtype=np.float32)


def about_bytes(instruction: str, scene: SceneSpec | None) -> UInt8[Tensor, " bytes"]:
    """Return instruction and scene as a fixed number of bytes, so that they travel inside the state."""
    text = json.dumps({"instruction": instruction, "scene": None if scene is None else scene.to_json()}).encode()
    if len(text) > ABOUT_BYTES:
        raise VapError(
            f"instruction is too long: it must fit {ABOUT_BYTES - len(text) + len(instruction)} bytes, "
            f"got {len(instruction)}."
        )
    return torch.from_numpy(np.frombuffer(text.ljust(ABOUT_BYTES), np.uint8).copy())


def read_about(about: UInt8[Tensor, " bytes"]) -> tuple[str, SceneSpec | None]:
    """Return the instruction and scene that `about_bytes` wrote."""
    return _read_about(about.numpy().tobytes())


@lru_cache(maxsize=4096)
def _read_about(text: bytes) -> tuple[str, SceneSpec | None]:
    table = json.loads(text)
    return table["instruction"], None if table["scene"] is None else SceneSpec.from_json(table["scene"])


def stacked(observations: Sequence[Observation]) -> Observation:
    """Return observations with a new leading axis."""
    if isinstance(observations[0], dict):
        return {key: stacked([table[key] for table in observations]) for key in observations[0]}
    return np.stack(list(observations))
