"""Clips of frames ↔ latents, with a codec of single frames or CogVideoX's 3-D VAE behind one face."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKLCogVideoX
from jaxtyping import Float, UInt8
from torch import Tensor

from vap_gym.errors import CheckpointError
from vap_gym.world.codec import FrameCodec

ClipCodec: TypeAlias = FrameCodec | AutoencoderKLCogVideoX


def pictures_of(frames: UInt8[Tensor, "*batch H W C"], dtype: torch.dtype) -> Float[Tensor, "*batch C H W"]:
    """uint8 frames → pictures in [−1, 1], as diffusers' image processor makes them."""
    return (2.0 * (frames.movedim(-1, -3).float() / 255.0) - 1.0).to(dtype)


def prompt_pictures(
    prompts: UInt8[Tensor, "B T H W 3"], channels: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B T P H W"]:
    """uint8 prompts as they are drawn → what `VideoNetwork` takes; depth has the same in all three channels."""
    return pictures_of(prompts[..., :channels], dtype)


def frames_of(pictures: Float[Tensor, "*batch C H W"]) -> UInt8[Tensor, "*batch H W C"]:
    """Pictures in [−1, 1] → uint8 frames, as diffusers' video processor makes them."""
    share = (pictures.float() / 2 + 0.5).clamp(0, 1)
    return (share * 255).round().to(torch.uint8).movedim(-3, -1)


def check_codec(codec: ClipCodec, *, time_stride: int, space_stride: int, latent_channels: int) -> None:
    """Raise CheckpointError where a codec does not fit what a network says about its latents."""
    if isinstance(codec, FrameCodec):
        found = (1, 4, int(codec.config.latent_channels))
    else:
        down = 2 ** (len(codec.config.block_out_channels) - 1)
        found = (int(codec.config.temporal_compression_ratio), down, int(codec.config.latent_channels))
    wanted = (time_stride, space_stride, latent_channels)
    if found != wanted:
        raise CheckpointError(
            "time_stride, space_stride and latent_channels are "
            f"{', '.join(map(str, wanted))} of the network, {', '.join(map(str, found))} of the codec "
            f"({type(codec).__name__}). Load both from one folder."
        )


def encode_image(
    codec: ClipCodec, pictures: Float[Tensor, "B 3 H W"], generator: torch.Generator | None = None
) -> Float[Tensor, "B C h w"]:
    """First frames → latents, drawn from the VAE's distribution with `generator` as CogVideoX's pipeline does.

    Its scale is the pipeline's: times `scaling_factor`, or divided by it where the VAE's config says so (the authors
    trained so by mistake).
    """
    if isinstance(codec, FrameCodec):
        latents: Tensor = codec.encode(pictures)
        return latents
    vae: Any = codec
    drawn = [vae.encode(one[None, :, None]).latent_dist.sample(generator) for one in pictures]
    factor = vae.config.scaling_factor
    scale = 1 / factor if vae.config.invert_scale_latents else factor
    return scale * torch.cat(drawn)[:, :, 0]  # type: ignore[no-any-return]


def encode_clip(
    codec: ClipCodec, pictures: Float[Tensor, "B T 3 H W"], generator: torch.Generator | None = None
) -> Float[Tensor, "B F C h w"]:
    """Whole clips → latents, as training targets: the VAE's mode without a generator, else drawn."""
    if isinstance(codec, FrameCodec):
        flat: Tensor = codec.encode(pictures.flatten(0, 1))
        return flat.unflatten(0, pictures.shape[:2])  # type: ignore[no-any-return]
    vae: Any = codec
    found = vae.encode(pictures.transpose(1, 2)).latent_dist
    latents = found.mode() if generator is None else found.sample(generator)
    return vae.config.scaling_factor * latents.transpose(1, 2)  # type: ignore[no-any-return]


def decode_clip(codec: ClipCodec, latents: Float[Tensor, "B F C h w"]) -> Float[Tensor, "B T 3 H W"]:
    """Latents → clips, about [−1, 1]."""
    if isinstance(codec, FrameCodec):
        flat: Tensor = codec.decode(latents.flatten(0, 1))
        return flat.unflatten(0, latents.shape[:2])  # type: ignore[no-any-return]
    vae: Any = codec
    scaled = 1 / vae.config.scaling_factor * latents.permute(0, 2, 1, 3, 4)
    return vae.decode(scaled).sample.transpose(1, 2)  # type: ignore[no-any-return]
