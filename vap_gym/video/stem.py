"""Convolutions around the small transformers: locality is learned much faster there than by a few tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.video.presets import VideoConfig
from vap_gym.world.layers import ResBlock, zeroed


class Skips(NamedTuple):
    """What goes around the transformer, frame by frame, at latent size."""

    fine: Float[Tensor, "N W h w"]


class Stem(nn.Module):
    """Frame by frame: latents → features at half of their size, and back. Its output starts at zero.

    Action latents enter here as well where the main branch merges them (`merge_actions`), through convolutions that
    start at zero; and they are brought to the transformer's size for its own branches.
    """

    def __init__(self, settings: VideoConfig) -> None:
        super().__init__()
        fine, blocks, actions = settings.stem_width, settings.stem_blocks, settings.action_channels
        pictures = settings.prompt_channels > 0
        merged = pictures and settings.merge_actions
        self.action_channels = 4 * actions
        self.conv_in = nn.Conv2d(2 * settings.latent_channels, fine, 3, padding=1)
        self.down_fine = nn.Sequential(*[ResBlock(fine) for _ in range(blocks)])
        self.to_coarse = nn.Conv2d(fine, 2 * fine, 4, stride=2, padding=1)
        self.down_coarse = nn.Sequential(*[ResBlock(2 * fine) for _ in range(blocks)])
        self.action_fine = zeroed(nn.Conv2d(actions, fine, 3, padding=1)) if merged else None
        self.action_coarse = zeroed(nn.Conv2d(actions, 2 * fine, 4, stride=2, padding=1)) if merged else None
        self.action_to_tokens = nn.Conv2d(actions, 4 * actions, 4, stride=2, padding=1) if pictures else None
        self.up_coarse = nn.Sequential(*[ResBlock(2 * fine) for _ in range(blocks)])
        self.to_fine = nn.Sequential(nn.SiLU(), nn.Conv2d(2 * fine, 4 * fine, 3, padding=1), nn.PixelShuffle(2))
        self.up_fine = nn.Sequential(*[ResBlock(fine) for _ in range(blocks)])
        self.head = nn.Sequential(nn.SiLU(), zeroed(nn.Conv2d(fine, settings.latent_channels, 3, padding=1)))

    def enter(
        self, seen: Float[Tensor, "B F C h w"], action: Float[Tensor, "B F A h w"] | None
    ) -> tuple[Float[Tensor, "B F W h2 w2"], Float[Tensor, "B F A2 h2 w2"] | None, Skips]:
        """Return features and action latents at the transformer's size, and what goes around it."""
        batch = len(seen)
        moves = None if action is None else action.flatten(0, 1)
        x = self.conv_in(seen.flatten(0, 1))
        if moves is not None and self.action_fine is not None:
            x = x + self.action_fine(moves)
        fine = self.down_fine(x)
        x = self.to_coarse(F.silu(fine))
        if moves is not None and self.action_coarse is not None:
            x = x + self.action_coarse(moves)
        coarse = self.down_coarse(x).unflatten(0, (batch, -1))
        if moves is not None and self.action_to_tokens is not None:
            action = self.action_to_tokens(moves).unflatten(0, (batch, -1))
        return coarse, action, Skips(fine)

    def leave(
        self, output: Float[Tensor, "B F W h2 w2"], entered: Float[Tensor, "B F W h2 w2"], skips: Skips | None
    ) -> Float[Tensor, "B F C h w"]:
        """Return latents from the transformer's output and what went around it."""
        assert skips is not None
        coarse = self.up_coarse((entered + output).flatten(0, 1))
        fine = self.up_fine(skips.fine + self.to_fine(coarse))
        latents: Tensor = self.head(fine)
        return torch.unflatten(latents, 0, (len(output), -1))
