"""The frame codec of the `tiny` family: a 2-D autoencoder, 4× down, with bounded latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.world.layers import ResBlock


class FrameCodec(ModelMixin, ConfigMixin):
    """Autoencoder of single frames: (N, 3, H, W) in [−1, 1] ↔ latents (N, latent_channels, H/4, W/4) in (−1, 1).

    The paper's base uses CogVideoX's 3-D VAE; this one trades its compression in time for a frame per control step
    and a decoder of a few milliseconds on a CPU.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 8,
        encoder_widths: Sequence[int] = (40, 80),
        decoder_widths: Sequence[int] = (96, 40),
        encoder_blocks: int = 2,
        decoder_blocks: int = 3,
    ) -> None:
        super().__init__()
        fine, coarse = encoder_widths
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, fine, 3, padding=1),
            ResBlock(fine),
            nn.SiLU(),
            nn.Conv2d(fine, coarse, 4, stride=2, padding=1),
            *[ResBlock(coarse) for _ in range(encoder_blocks)],
            nn.SiLU(),
            nn.Conv2d(coarse, latent_channels, 3, padding=1),
            nn.Tanh(),
        )
        wide, narrow = decoder_widths
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, wide, 3, padding=1),
            *[ResBlock(wide) for _ in range(decoder_blocks)],
            nn.SiLU(),
            nn.Conv2d(wide, 4 * narrow, 3, padding=1),
            nn.PixelShuffle(2),
            ResBlock(narrow),
            nn.SiLU(),
            nn.Conv2d(narrow, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def encode(self, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C h w"]:
        """Pictures in [−1, 1] → latents in (−1, 1) at a quarter of the height and width."""
        return self.encoder(pictures)  # type: ignore[no-any-return]

    def decode(self, latents: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        """Latents → pictures, about [−1, 1] (not clamped)."""
        return self.decoder(latents)  # type: ignore[no-any-return]

    def forward(self, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        """Reconstruct pictures."""
        return self.decode(self.encode(pictures))


def to_pictures(frames: UInt8[Tensor, "*batch H W 3"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "N 3 H W"]:
    """uint8 RGB frames → channels-last-in-memory pictures (N, 3, H, W) in [−1, 1], leading dimensions flattened."""
    flat = frames.reshape(-1, *frames.shape[-3:]).permute(0, 3, 1, 2)
    return flat.to(dtype).div(127.5).sub(1.0)


def to_frames(pictures: Float[Tensor, "N 3 H W"]) -> UInt8[Tensor, "N H W 3"]:
    """Pictures in [−1, 1] → uint8 RGB frames, rounded and clamped."""
    grey = pictures.float().add(1.0).mul(127.5).round_().clamp_(0, 255)
    return grey.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def charbonnier(difference: Tensor, epsilon: float = 0.02) -> Tensor:
    """A smooth absolute value: quadratic below epsilon, linear above."""
    return torch.sqrt(difference * difference + epsilon * epsilon) - epsilon


def codec_loss(
    reconstruction: Float[Tensor, "N 3 H W"], pictures: Float[Tensor, "N 3 H W"], weight: Float[Tensor, "N 1 H W"]
) -> Tensor:
    """Pixel-weighted reconstruction loss: absolute and squared error, plus the error of edges."""
    error = reconstruction.float() - pictures
    value = charbonnier(error) + 2.0 * error.square()
    edges = charbonnier(error.diff(dim=-1)) * weight[..., 1:]
    edges_down = charbonnier(error.diff(dim=-2)) * weight[..., 1:, :]
    return (value * weight).mean() / weight.mean() + 0.5 * (edges.mean() + edges_down.mean()) / weight.mean()


def upsample_weight(weight: Float[Tensor, "N 1 h w"], size: tuple[int, int]) -> Float[Tensor, "N 1 H W"]:
    """Bring a latent-size weight map to picture size (height, width)."""
    return F.interpolate(weight, size=size, mode="bilinear", align_corners=False)
