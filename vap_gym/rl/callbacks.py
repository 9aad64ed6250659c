"""What is done beside SB3's own training: episodes are counted, and the agent is held near to another one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback


class Watch(BaseCallback):
    """Counts the episodes that end in a round of training."""

    def __init__(self) -> None:
        super().__init__()
        self._ended: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        dones, infos = self.locals["dones"], self.locals["infos"]
        self._ended += [infos[i] for i in np.flatnonzero(dones).tolist()]
        return True

    def row(self) -> dict[str, float]:
        """Return means over the episodes: success, progress, reward, control steps, and the share that was given up.

        Empty where none ended.
        """
        if not self._ended:
            return {}
        names = {
            "success": "is_success", "progress": "progress", "reward": "reward_sum", "steps_each": "steps",
            "untrusted": "untrusted",
        }  # fmt: skip
        return {name: float(np.mean([info[key] for info in self._ended])) for name, key in names.items()}


class NearReference(BaseCallback):
    """Takes from PPO's rewards `weight` times how far the agent is from another one: the Kullback–Leibler divergence
    between their actions, in nats, where each decision was made.

    Args:
        reference: an SB3 actor-critic.
        weight: 0 measures alone.
    """

    def __init__(self, reference: Any, weight: float) -> None:
        super().__init__()
        self.reference, self.weight, self.distance = reference, weight, 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        """Look at what was collected, and reckon the advantages anew."""
        model: Any = self.model
        buffer = model.rollout_buffer
        shown = torch.from_numpy(buffer.observations.reshape(-1, buffer.observations.shape[-1]))
        with torch.no_grad():
            own = model.policy.get_distribution(shown).distribution
            theirs = self.reference.get_distribution(shown).distribution
            apart = torch.distributions.kl_divergence(own, theirs).sum(-1).numpy()
        self.distance = float(apart.mean())
        if self.weight:
            buffer.rewards -= self.weight * apart.reshape(buffer.rewards.shape)
            buffer.compute_returns_and_advantage(last_values=self.locals["values"], dones=self.locals["dones"])
