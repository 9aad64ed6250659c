"""Outcomes: what a stage's steps gave, per slot and step; steps of a chunk of actions taken together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from vap_gym.contract import Timings
from vap_gym.kinematics import Clipped
from vap_gym.rig import Motion, mapped
from vap_gym.viewpoints import ViewFrames


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What K steps gave, per slot and step."""

    frames: UInt8[np.ndarray, "B K H W 3"]
    reward: Float[np.ndarray, "B K"]
    progress: Float[np.ndarray, "B K"]
    success: Bool[np.ndarray, "B K"]
    motion: Motion
    adherence_px: Float[np.ndarray, "B K"] | None  # None without a judge that knows the gripper
    gripper_confidence: Float[np.ndarray, "B K"] | None
    spread_grey: Float[np.ndarray, "B K"] | None  # None unless trust_samples are asked for
    expected_psnr_db: Float[np.ndarray, "B K"] | None  # None without a calibration, see `trust`
    object_risk: Float[np.ndarray, "B K"] | None  # how likely an object is off by more than 3 cm
    unfamiliar: Float[np.ndarray, "B K"] | None  # how unlike training's the start was, 0 to 1; None: nobody tells
    views: Mapping[str, ViewFrames]  # frames and prompts (B, K, H, W, 3) of further views
    untrusted: Bool[np.ndarray, "B K"]  # the gripper is seen further from where it should be than is allowed
    timings: Timings


def per_chunk(outcome: Outcome, chunk: int, *, reward: str) -> Outcome:
    """Return what every `chunk` control steps gave, as one step each: for worlds that imagine several at once.

    Frames, robot, progress and readings are those at the chunk's end; rewards of progress add up; solved, untrusted or
    clipped at one of its steps is so for the chunk (with `reward="success"` it is then 1).
    """
    if chunk == 1:
        return outcome

    def last(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[:, chunk - 1 :: chunk]

    def grouped(values: np.ndarray) -> np.ndarray:
        return values.reshape(len(values), -1, chunk)

    def ever(flags: torch.Tensor) -> torch.Tensor:
        at_all: torch.Tensor = flags.unflatten(1, (-1, chunk)).any(2)
        return at_all

    motion = mapped(outcome.motion, lambda x: x[:, chunk - 1 :: chunk])
    clipped: Clipped = mapped(outcome.motion.clipped, ever)
    rewards = grouped(outcome.reward)
    frames = last(outcome.frames)
    assert frames is not None
    return replace(
        outcome,
        frames=frames,
        reward=rewards.max(2) if reward == "success" else rewards.sum(2),
        progress=grouped(outcome.progress)[:, :, -1],
        success=np.asarray(grouped(outcome.success).any(2)),
        motion=replace(motion, clipped=clipped),
        adherence_px=last(outcome.adherence_px),
        gripper_confidence=last(outcome.gripper_confidence),
        spread_grey=last(outcome.spread_grey),
        expected_psnr_db=last(outcome.expected_psnr_db),
        object_risk=last(outcome.object_risk),
        unfamiliar=last(outcome.unfamiliar),
        untrusted=np.asarray(grouped(outcome.untrusted).any(2)),
    )
