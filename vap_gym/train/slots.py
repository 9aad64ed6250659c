"""Training on the model's own rollouts: a batch of ongoing imaginations, one frame further at every step.

Each slot follows an episode from a random first frame, as an env does after reset: anchor and history start as that
frame. Most slots feed the model's own predictions back, so that it learns to carry objects and to mend its own errors;
the others are shown the truth. A sample costs one forward and backward pass whatever its depth in the rollout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vap_gym.train.latents import LatentEpisodes


@dataclass(frozen=True, kw_only=True)
class SlotSettings:
    """How slots are drawn."""

    batch_size: int
    lags: tuple[int, ...]
    horizon: int = 30
    own_rollouts: float = 0.8
    strides: tuple[float, ...] = (0.75, 0.15, 0.10)
    history_noise: float = 0.05
    contact_share: float = 0.5  # of rollouts that begin shortly before an object moves


CONTACT_M, CONTACT_FRAMES = 0.03, 20
"""A rollout counts as one with contact where an object moves this far within this many frames."""


def contact_starts(objects_m: Float[Tensor, "E T N 3"]) -> Int64[Tensor, "S 2"]:
    """(episode, frame) pairs from which an object soon moves: clips sampled around what happens (Sec. 3.2)."""
    frames = objects_m.shape[1]
    last = (torch.arange(frames) + CONTACT_FRAMES).clamp(max=frames - 1)
    moved = (objects_m[:, last] - objects_m).norm(dim=-1).nan_to_num(0.0).amax(-1)
    return torch.nonzero(moved > CONTACT_M)


class Slots:
    """The batch's state: which episode and frame each slot is at, and its latent history."""

    def __init__(self, data: LatentEpisodes, settings: SlotSettings, rng: torch.Generator) -> None:
        self.data, self.settings, self.rng = data, settings, rng
        self._contact = contact_starts(data.objects_m)
        b = settings.batch_size
        shape = data.latents.shape[2:]
        self.episode = torch.zeros(b, dtype=torch.int64)
        self.first = torch.zeros(b, dtype=torch.int64)
        self.stride = torch.ones(b, dtype=torch.int64)
        self.depth = torch.zeros(b, dtype=torch.int64)
        self.length = torch.zeros(b, dtype=torch.int64)
        self.own = torch.zeros(b, dtype=torch.bool)
        self.anchor = torch.zeros(b, *shape)
        self.history = torch.zeros(b, max(settings.lags), *shape)

    @property
    def now(self) -> Tensor:
        """Frame index of each slot's newest history entry."""
        return self.first + self.depth * self.stride

    def begin_finished(self, own_rollouts: float, horizon: int) -> None:
        """Start new rollouts where the old ones are at their end."""
        done = torch.nonzero(self.depth >= self.length)[:, 0]
        if len(done) == 0:
            return
        n, frames = len(done), self.data.latents.shape[1]
        weights = torch.tensor(self.settings.strides)
        stride = 1 + torch.multinomial(weights, n, replacement=True, generator=self.rng)
        wanted = torch.randint(1, horizon + 1, (n,), generator=self.rng)
        length = torch.minimum(wanted, (frames - 1) // stride)
        room = frames - length * stride  # ≥ 1 choices of a first frame
        first = (torch.rand(n, generator=self.rng) * room).long()
        episode = torch.randint(len(self.data), (n,), generator=self.rng)
        if len(self._contact) and self.settings.contact_share > 0:
            chosen = self._contact[torch.randint(len(self._contact), (n,), generator=self.rng)]
            take = torch.rand(n, generator=self.rng) < self.settings.contact_share
            episode, first = torch.where(take, chosen[:, 0], episode), torch.where(take, chosen[:, 1], first)
            length = torch.where(take, torch.minimum(length, (frames - 1 - first) // stride), length).clamp(min=1)
            first = torch.minimum(first, frames - 1 - length * stride)
        self.episode[done] = episode
        self.first[done], self.stride[done], self.length[done] = first, stride, length
        self.depth[done] = 0
        self.own[done] = torch.rand(n, generator=self.rng) < own_rollouts
        anchor = self.data.latents[self.episode[done], first].float()
        self.anchor[done] = anchor
        self.history[done] = anchor[:, None].expand(-1, self.history.shape[1], -1, -1, -1)

    def inputs(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """History at the lags, the next frame's true latents, and the frame indices of the prompt taps."""
        lags = [lag - 1 for lag in self.settings.lags]
        seen = self.history[:, lags]
        level = self.settings.history_noise * torch.rand(len(seen), 1, 1, 1, generator=self.rng)
        level = torch.where(self.own[:, None, None, None] | (self.depth == 0)[:, None, None, None], 0.0, level)
        seen = seen + (level * torch.randn(seen.shape[0], *seen.shape[2:], generator=self.rng))[:, None]
        target = self.now + self.stride
        truth = self.data.latents[self.episode, target].float()
        taps = [target, self.now, torch.maximum(self.now - self.stride, self.first), self.first]
        return seen, truth, taps

    def advance(self, predicted: Tensor, truth: Tensor) -> None:
        """Take the prediction (or, in slots that are shown the truth, the truth) as the newest frame."""
        newest = torch.where(self.own[:, None, None, None], predicted.detach().float().cpu(), truth)
        self.history = torch.cat([newest[:, None], self.history[:, :-1]], dim=1)
        self.depth += 1

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {k: v for k, v in vars(self).items() if isinstance(v, Tensor) and not k.startswith("_")}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        for key, value in state.items():
            setattr(self, key, value)
