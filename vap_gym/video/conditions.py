"""Conditions that are no pictures: the robot's states by frame-level adaLN (IRASim's way), words, and the interval."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.errors import VapError
from vap_gym.video.words import PAD, WORDS, Vocabulary
from vap_gym.world.layers import zeroed

__all__ = ["WORDS", "IntervalEmbedding", "StateEncoder", "Vocabulary", "WordEmbedding"]

LONGEST_INTERVAL = 3  # control steps from frame to frame that are told apart; more are one


class StateEncoder(nn.Module):
    """Robot states → what is added to the time embedding of each frame's tokens.

    IRASim (arXiv 2406.14540) conditions a video transformer on actions by adaptive layer norms of single frames; this
    is that, with states in the place of actions. Where a frame of tokens stands for several frames, all their states
    are taken, and the first frame's are repeated for those that are not there. It starts at zero.

    Args:
        state_width: numbers per state.
        per_group: frames that one frame of tokens stands for: time_stride times frames of a group.
        width: of the time embedding.
    """

    def __init__(self, *, state_width: int, per_group: int, width: int) -> None:
        super().__init__()
        self.state_width, self.per_group = state_width, per_group
        self.layers = nn.Sequential(
            nn.Linear(per_group * state_width, width), nn.SiLU(), zeroed(nn.Linear(width, width))
        )

    def forward(self, states: Float[Tensor, "B T S"], groups: int) -> Float[Tensor, "B K M"]:
        """Embed the states of T frames for K = `groups` frames of tokens."""
        if states.shape[2] != self.state_width:
            raise VapError(
                f"states must have {self.state_width} numbers each (state_width), got {states.shape[2]}. "
                "Give those that the model was trained with."
            )
        missing = groups * self.per_group - states.shape[1]
        if not 0 <= missing < self.per_group:
            low, high = (groups - 1) * self.per_group + 1, groups * self.per_group
            raise VapError(f"states must be of {low} to {high} frames for this clip, got {states.shape[1]}.")
        known = torch.cat([states[:, :1].expand(-1, missing, -1), states], dim=1)
        embedded: Tensor = self.layers(known.unflatten(1, (groups, self.per_group)).flatten(2))
        return embedded


class WordEmbedding(nn.Module):
    """Numbers of words → embeddings with the word's place, learned with the model."""

    def __init__(self, *, words: int, length: int, width: int) -> None:
        super().__init__()
        self.of_word = nn.Embedding(words, width)
        self.of_place = nn.Parameter(0.02 * torch.randn(length, width))

    def forward(self, numbers: Int64[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        """Embed instructions, as `Vocabulary.encode` gives them."""
        embedded: Tensor = self.of_word(numbers) + self.of_place[: numbers.shape[1]]
        return embedded

    def empty(self, batch: int) -> Float[Tensor, "B L E"]:
        """Embeddings of no instruction: what text dropout shows, and guidance pushes away from."""
        filling = torch.full((batch, len(self.of_place)), PAD, device=self.of_place.device)
        return self(filling)  # type: ignore[no-any-return]


class IntervalEmbedding(nn.Module):
    """Control steps from one frame to the next (1, 2, 3, more) → added to the time embedding. It starts at zero."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(LONGEST_INTERVAL + 1, width), nn.SiLU(), zeroed(nn.Linear(width, width)))

    def forward(self, interval: Float[Tensor, " B"]) -> Float[Tensor, "B M"]:
        """Embed the intervals of B clips."""
        kind = interval.round().clamp(1, LONGEST_INTERVAL + 1).to(torch.int64) - 1
        weight = next(self.layers.parameters())
        embedded: Tensor = self.layers(F.one_hot(kind, LONGEST_INTERVAL + 1).to(weight.dtype))
        return embedded
