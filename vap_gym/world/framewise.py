"""CogVideoX layers that know frames: time embeddings of single frames, and a position table that is cut, not replaced.

Each takes the weights of diffusers' layer as they are: keys of state dicts stay the same, and so do the numbers where
nothing new is asked for.
"""

from __future__ import annotations

import torch
from diffusers.models.embeddings import CogVideoXPatchEmbed
from diffusers.models.normalization import AdaLayerNorm, CogVideoXLayerNormZero
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from torch import Tensor
from torch.nn import functional as F

from vap_gym.errors import VapError


class FramewiseLayerNormZero(CogVideoXLayerNormZero):
    """diffusers' modulated norm of video and text tokens, for one time embedding per sample or per frame.

    `temb` is (B, D), as in diffusers, or (B, 1 + K, D): first the text's, then those of K frames, each of which
    modulates its own share of the video tokens.
    """

    @classmethod
    def around(cls, stock: CogVideoXLayerNormZero) -> FramewiseLayerNormZero:
        """Return this layer with the very parameters of diffusers' one."""
        with torch.device("meta"):  # draws no random numbers
            made = cls(1, 1)
        made.linear, made.norm = stock.linear, stock.norm
        return made

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return normed video and text tokens, and the gates of both."""
        if temb.ndim == 2:
            return super().forward(hidden_states, encoder_hidden_states, temb)  # type: ignore[no-any-return]
        half = self.linear.weight.shape[0] // 2  # first the video's shift, scale and gate, then the text's
        weight, bias, active = self.linear.weight, self.linear.bias, self.silu(temb)
        of_video = F.linear(active[:, 1:], weight[:half], bias[:half])
        of_text = F.linear(active[:, :1], weight[half:], bias[half:])
        shift, scale, gate = per_token(of_video, hidden_states.shape[1]).chunk(3, dim=-1)
        text_shift, text_scale, text_gate = of_text.chunk(3, dim=-1)
        video = self.norm(hidden_states) * (1 + scale) + shift
        text = self.norm(encoder_hidden_states) * (1 + text_scale) + text_shift
        return video, text, gate, text_gate


class FramewiseAdaLayerNorm(AdaLayerNorm):
    """diffusers' last modulated norm, of video tokens only, for one time embedding per sample or per frame."""

    @classmethod
    def around(cls, stock: AdaLayerNorm) -> FramewiseAdaLayerNorm:
        """Return this layer with the very parameters of diffusers' one."""
        with torch.device("meta"):
            made = cls(1, output_dim=2, chunk_dim=1)
        made.linear, made.norm = stock.linear, stock.norm
        return made

    def forward(self, x: Tensor, timestep: Tensor | None = None, temb: Tensor | None = None) -> Tensor:
        """Return normed tokens; `temb` is (B, D) or (B, 1 + K, D), the first for the text that is not here."""
        if temb is None or temb.ndim == 2:
            return super().forward(x, timestep, temb)  # type: ignore[no-any-return]
        shift, scale = per_token(self.linear(self.silu(temb[:, 1:])), x.shape[1]).chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift  # type: ignore[no-any-return]


class SlicedPatchEmbed(CogVideoXPatchEmbed):
    """diffusers' patch embedding, whose learned position table is cut for clips of fewer frames.

    diffusers puts computed sin-cos positions in the place of the learned ones, silently, wherever the number of frames
    is not the configured one; a network that learned with a table is lost then.
    """

    @classmethod
    def around(cls, stock: CogVideoXPatchEmbed) -> SlicedPatchEmbed:
        """Return this layer with the very parameters, table and settings of diffusers' one."""
        with torch.device("meta"):
            made = cls(patch_size=1, in_channels=1, embed_dim=16, text_embed_dim=1, sample_width=1, sample_height=1)
        for name, value in vars(stock).items():  # settings, and the dictionaries of parameters, buffers and layers
            setattr(made, name, value)
        return made

    def _get_positional_embeddings(
        self, sample_height: int, sample_width: int, sample_frames: int, device: torch.device | None = None
    ) -> Tensor:
        table = self._buffers.get("pos_embedding")
        if not self.use_learned_positional_embeddings or table is None:
            return super()._get_positional_embeddings(  # type: ignore[no-any-return]
                sample_height, sample_width, sample_frames, device=device
            )
        frames = (sample_frames - 1) // self.temporal_compression_ratio + 1
        known = (self.sample_frames - 1) // self.temporal_compression_ratio + 1
        if frames > known:
            raise VapError(
                f"The learned position table knows {known} latent frames, got {frames}. "
                f"Give clips of at most {self.sample_frames} frames."
            )
        per_frame = (sample_height // self.patch_size) * (sample_width // self.patch_size)
        return table[:, : self.max_text_seq_length + frames * per_frame]  # type: ignore[no-any-return]


def per_token(per_frame: Tensor, tokens: int) -> Tensor:
    """(B, K, D) → (B, tokens, D), each frame's row for all of its tokens."""
    return per_frame.repeat_interleave(tokens // per_frame.shape[1], dim=1)


def make_framewise(base: CogVideoXTransformer3DModel) -> None:
    """Give a CogVideoX transformer these layers in the place of diffusers' own, with the same parameters."""
    base.patch_embed = SlicedPatchEmbed.around(base.patch_embed)
    base.norm_out = FramewiseAdaLayerNorm.around(base.norm_out)
    for block in base.transformer_blocks:
        block.norm1 = FramewiseLayerNormZero.around(block.norm1)
        block.norm2 = FramewiseLayerNormZero.around(block.norm2)


def frame_groups(frames: Tensor, size: int) -> Tensor:
    """(B, F, C, h, w) → (B, F/size, size·C, h, w): what becomes the tokens of one row of patches."""
    return frames.unflatten(1, (-1, size)).flatten(2, 3)  # type: ignore[no-any-return]
