"""Gripper closedness g ∈ [0 open, 1 closed] → joint positions, linear between the card's two ends."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vap_gym.cards import GripperCard


def gripper_joint_values(card: GripperCard, closedness: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch joints"]:
    """Return the driven gripper joints (rad; m where prismatic) at a closedness, which is clipped to [0, 1]."""
    opened = closedness.new_tensor([joint.open_position for joint in card.joints])
    closed = closedness.new_tensor([joint.closed_position for joint in card.joints])
    return torch.lerp(opened, closed, closedness.clamp(0.0, 1.0).unsqueeze(-1))
