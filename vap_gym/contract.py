"""What local and served envs have in common: an observation's form, the first view's name, timings; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FRONT = "front"  # the first view's name, beside others
Observation = Any
"""A frame (H, W, 3); with "pixels_agent_pos", or with further views, LeRobot's dict of `pixels` (a frame, or a dict of
frames by view) and `agent_pos`."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """How long a call of `step` (or `step_chunk`) took, ms. Measured, not part of what happened: any two are equal."""

    robot: float = field(compare=False)  # kinematics and prompt
    world: float = field(compare=False)
    judge: float = field(compare=False)
