"""Doubt: what an env says of every step's trust, and when it gives an episode up."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.interfaces import World
from vap_gym.trust.calibration import Calibration
from vap_gym.trust.signals import STATE_KEYS, TrustSignals


class Doubt:
    """Signals and their calibration, for a stage. Settings only.

    Args:
        world: the world model, as it is fitted to the robot.
        calibration: of that model and robot.
        min_trust: give an episode up where 1 − object risk falls below this; None: never.
    """

    state_keys = STATE_KEYS

    def __init__(self, world: World, calibration: Calibration, *, min_trust: float | None = None) -> None:
        if min_trust is not None and not 0.0 < min_trust < 1.0:
            raise VapError(f"min_trust must be between 0 and 1, got {min_trust}. Try 0.7.")
        self.signals = TrustSignals(world)
        self.calibration = calibration
        self.min_trust = min_trust

    def start(self, state: TensorDict) -> None:
        """Add to a state that has just begun what is remembered."""
        self.signals.start(state)

    def start_late(self, state: TensorDict) -> None:
        """Add to a state that began without this what is remembered, as not known: its figures are NaN, and it is never
        given up."""
        self.start(state)
        for key in self.state_keys:
            if state[key].is_floating_point():
                state[key] = torch.full_like(state[key], torch.nan)

    def step(self, state: TensorDict, views: Float[Tensor, "B L 3 4"], row: dict[str, Any]) -> None:
        """Look at a state that was moved on by a step; write what is expected of its frame into the outcome's row."""
        told = self.calibration(self.signals.step(state, views.to(state["world_latent"].device)).double().numpy())
        row["expected_psnr_db"], row["object_risk"] = told.psnr_db, told.object_risk
        if self.min_trust is not None:
            row["untrusted"] = row["untrusted"] | np.asarray(1.0 - told.object_risk < self.min_trust)
