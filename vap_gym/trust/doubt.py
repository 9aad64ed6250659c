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
from vap_gym.trust.familiar import Familiarity
from vap_gym.trust.signals import PREFIX, STATE_KEYS, TrustSignals

UNFAMILIAR = f"{PREFIX}unfamiliar"  # in a state: how unlike those of training its start was, 0 to 1
UNKNOWN_RISK = 0.5  # where a start is unlike all that trust was calibrated on, nothing is known of an object


class Doubt:
    """Signals and their calibration, for a stage. Settings only.

    The calibration is of starts like those of training. The less familiar a start is, the nearer every step's risk is
    raised to one half (`UNKNOWN_RISK`); what is doubted more anyway stays so.

    Args:
        world: the world model, as it is fitted to the robot.
        calibration: of that model and robot.
        min_trust: give an episode up where 1 − object risk falls below this; None: never.
        familiarity: tells how unlike those of training starts are; None: it is not known, and all are taken for usual.
    """

    state_keys = (*STATE_KEYS, UNFAMILIAR)

    def __init__(
        self,
        world: World,
        calibration: Calibration,
        *,
        min_trust: float | None = None,
        familiarity: Familiarity | None = None,
    ) -> None:
        if min_trust is not None and not 0.0 < min_trust < 1.0:
            raise VapError(f"min_trust must be between 0 and 1, got {min_trust}. Try 0.7.")
        self.signals = TrustSignals(world)
        self.calibration = calibration
        self.min_trust = min_trust
        self.familiarity = familiarity

    def start(self, state: TensorDict) -> None:
        """Add to a state that has just begun what is remembered."""
        self.signals.start(state)
        self.meet(state)

    def meet(self, state: TensorDict) -> None:
        """Add to a state how unfamiliar its start is: it still holds the first picture."""
        unfamiliar = torch.zeros(len(state)) if self.familiarity is None else self.familiarity(state)
        state[UNFAMILIAR] = unfamiliar.to(state["world_latent"].device)

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
        unfamiliar = state[UNFAMILIAR].double().cpu().numpy()
        risk = told.object_risk + unfamiliar * np.maximum(UNKNOWN_RISK - told.object_risk, 0.0)
        row["expected_psnr_db"], row["object_risk"] = told.psnr_db, risk
        row["unfamiliar"] = None if self.familiarity is None else unfamiliar
        if self.min_trust is not None:
            row["untrusted"] = row["untrusted"] | np.asarray(1.0 - risk < self.min_trust)
