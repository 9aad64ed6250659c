"""Dynamics of the `tiny` family: convolutions at latent size around a CogVideoX transformer at a quarter of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.world.attention import PlainAttention
from vap_gym.world.layers import ResBlock, zeroed
from vap_gym.world.transformer import ControlledTransformer

SOURCES = 4  # of a posed picture
LAGS = (1, 2, 4)  # earlier frames that are seen, unless told otherwise
CELL_PX = 4  # of a latent cell, across and down
GATE = 1.0  # logit of a gate at the start: mostly open to the posed picture
PROMPT_TAPS = 4  # prompt features joined for one frame: this frame's, the two before it, the anchor's


class TrajectoryEncoder(nn.Module):
    """Visual action prompts → action latents, causal in time: (T, H, W, 3) → (T, H/4, W/4, action_channels).

    The paper's encoder (Sec. 3.3) compresses time by 4 as its VAE does; here a latent is one frame. A frame's action
    latents see its own prompt, the two before it and the anchor's: a causal kernel of three plus the first frame.
    """

    def __init__(self, *, action_channels: int, features: int, width: int = 48) -> None:
        super().__init__()
        self.per_frame = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, features, 3, padding=1)
        )
        self.join_frames = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(PROMPT_TAPS * features, width, 3, padding=1),
            ResBlock(width),
            nn.SiLU(),
            nn.Conv2d(width, action_channels, 3, padding=1),
        )

    def features(self, prompts: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N F h w"]:
        """Features of single prompt pictures in [−1, 1]: computed once per frame and kept in the state."""
        return self.per_frame(prompts)  # type: ignore[no-any-return]

    def forward(self, taps: Float[Tensor, "N taps F h w"]) -> Float[Tensor, "N A h w"]:
        """Action latents from the features of (this frame, one before, two before, anchor)."""
        return self.join_frames(taps.flatten(1, 2))  # type: ignore[no-any-return]


class FrameDynamics(ModelMixin, ConfigMixin):
    """One frame a step: history and action latents → the next frame's latents.

    The prediction is the posed picture plus a correction. The posed picture is the first one with robot and things
    where they are now (`posing.posed_picture`): kinematics and what is known of the things place them, so that what
    moves stays as sharp as it was first seen, and no error is carried from frame to frame. (Copying what is seen
    instead of making it anew is after Finn et al. 2016, arXiv 1605.07157, and Ebert et al. 2017, arXiv 1710.05268.)
    The correction is left with what neither tells: what was hidden, how the robot looks from elsewhere, light, and
    errors of the rest. It starts at zero.

    Args:
        latent_channels: of the codec.
        lags: which earlier frames are seen, 1 being the last.
        widths: channels of the convolutions at latent size and at half of it.
        blocks: residual blocks per level, on the way down and on the way up.
        heads, layers: of the CogVideoX transformer at a quarter of the latent size (head width 64).
        control_layers: of the ControlNet.
        action_channels, prompt_features: of the trajectory encoder.
        gated: also say of each pixel how far it is to be taken from the posed picture as it is, which has not been
            through the codec, instead of from the decoded latents.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 8,
        latent_size: Sequence[int] = (24, 36),
        lags: Sequence[int] = LAGS,
        widths: Sequence[int] = (64, 128),
        blocks: Sequence[int] = (1, 2),
        heads: int = 3,
        layers: int = 6,
        control_layers: int = 2,
        time_embed_dim: int = 128,
        action_channels: int = 16,
        prompt_features: int = 24,
        noise_scale: float = 0.5,
        gated: bool = False,
        action_width: int = 48,
    ) -> None:
        super().__init__()
        fine, coarse = widths
        seen = latent_channels * (len(lags) + 3) + SOURCES + 2  # history, anchor, posed, noisy; sources; time, interval
        self.trajectory = TrajectoryEncoder(
            action_channels=action_channels, features=prompt_features, width=action_width
        )
        self.conv_in = nn.Conv2d(seen, fine, 3, padding=1)
        self.action_fine = zeroed(nn.Conv2d(action_channels, fine, 3, padding=1))
        self.down_fine = nn.Sequential(*[ResBlock(fine) for _ in range(blocks[0])])
        self.to_coarse = nn.Conv2d(fine, coarse, 4, stride=2, padding=1)
        self.action_coarse = nn.Conv2d(action_channels, coarse, 4, stride=2, padding=1)
        zeroed(self.action_coarse)
        self.down_coarse = nn.Sequential(*[ResBlock(coarse) for _ in range(blocks[1])])
        self.action_to_tokens = nn.Conv2d(action_channels, 4 * action_channels, 4, stride=2, padding=1)
        height, width = latent_size
        self.transformer = ControlledTransformer(
            base_config={
                "num_attention_heads": heads,
                "attention_head_dim": 64,
                "in_channels": coarse,
                "out_channels": coarse,
                "time_embed_dim": time_embed_dim,
                "text_embed_dim": 32,
                "max_text_seq_length": 0,
                "num_layers": layers,
                "sample_width": width // 2,
                "sample_height": height // 2,
                "sample_frames": 1,
                "patch_size": 2,
                "spatial_interpolation_scale": 1.0,
            },
            action_channels=4 * action_channels,
            control_layers=control_layers,
        )
        self.transformer.set_attn_processor(PlainAttention())
        self.up_coarse = nn.Sequential(*[ResBlock(coarse) for _ in range(blocks[1])])
        self.to_fine = nn.Sequential(nn.SiLU(), nn.Conv2d(coarse, 4 * fine, 3, padding=1), nn.PixelShuffle(2))
        self.up_fine = nn.Sequential(*[ResBlock(fine) for _ in range(blocks[0] + 1)])
        said = latent_channels + (CELL_PX**2 if gated else 0)
        self.head = nn.Sequential(nn.SiLU(), zeroed(nn.Conv2d(fine, said, 3, padding=1)))
        self.interval = nn.Sequential(
            nn.Linear(4, time_embed_dim), nn.SiLU(), nn.Linear(time_embed_dim, time_embed_dim)
        )

    def forward(
        self,
        history: Float[Tensor, "B L C h w"],
        anchor: Float[Tensor, "B C h w"],
        noisy: Float[Tensor, "B C h w"],
        time: Float[Tensor, " B"],
        interval: Float[Tensor, " B"],
        prompt_taps: Float[Tensor, "B taps F h w"],
        posed: Float[Tensor, "B C h w"],
        source: Float[Tensor, "B 4 h w"],
    ) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B 1 H W"] | None]:
        """Predict the next clean latents (x0) from noisy ones, and the gate of each pixel if there is one.

        Args:
            history: latents at the lags of the config, the last frame first.
            anchor: latents of the first frame.
            noisy: (1 − t)·x0 + t·noise_scale·n.
            time: t in [0, 1]; 1 is pure noise.
            interval: control steps per frame (1 at the control rate).
            prompt_taps: features of the prompts: next frame, last, one before, anchor.
            posed: latents of the posed picture.
            source: what it is made of, see `posing.Posed`; means over cells.
        """
        batch, _, _, h, w = history.shape
        posed = posed.float()
        action = self.trajectory(prompt_taps)
        levels = torch.stack([time, interval / 3.0], dim=1)[:, :, None, None].expand(batch, 2, h, w)
        seen = (history.flatten(1, 2), anchor, posed, noisy, source, levels)
        x = torch.cat([part.float() for part in seen], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        fine = self.down_fine(self.conv_in(x) + self.action_fine(action))
        coarse = self.down_coarse(self.to_coarse(F.silu(fine)) + self.action_coarse(action))
        step = torch.stack([interval == i for i in (1, 2, 3)] + [interval > 3], dim=1).to(coarse.dtype)
        tokens = self.transformer(
            coarse[:, None],
            self.action_to_tokens(action)[:, None],
            time * 1000.0,
            condition=self.interval(step),
        )[:, 0]
        coarse = self.up_coarse(coarse + tokens.contiguous(memory_format=torch.channels_last))
        fine = self.up_fine(fine + self.to_fine(coarse))
        said, channels = self.head(fine).float(), posed.shape[1]
        gate = F.pixel_shuffle(GATE + said[:, channels:], CELL_PX).sigmoid() if self.config["gated"] else None
        return posed + said[:, :channels], gate


def composed(
    decoded: Float[Tensor, "B 3 H W"], posed: Float[Tensor, "B 3 H W"], gate: Float[Tensor, "B 1 H W"] | None
) -> Float[Tensor, "B 3 H W"]:
    """Return a frame's picture: the posed one where its gate is open, else the decoded one."""
    return decoded.float() if gate is None else torch.lerp(decoded.float(), posed.float(), gate)


def transformer_settings(dynamics: FrameDynamics) -> dict[str, Any]:
    """The configuration of the CogVideoX transformer inside, for reports."""
    return dict(dynamics.transformer.base.config)
