"""A CogVideoX attention processor in plain matrix products: faster than torch's fused one on CPUs for few tokens."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from jaxtyping import Float
from torch import Tensor


class PlainAttention:
    """Joint attention of text and video tokens, as diffusers' CogVideoXAttnProcessor2_0 computes it."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "B S D"],
        encoder_hidden_states: Float[Tensor, "B L D"],
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B L D"]]:
        """Return the attended video and text tokens; `attention_mask` is boolean (B, L+S, L+S), true where allowed."""
        words = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1) if words else hidden_states
        query, key, value = (
            layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = attn.norm_q(query) if attn.norm_q is not None else query
        key = attn.norm_k(key) if attn.norm_k is not None else key
        if image_rotary_emb is not None:
            query, key = (
                torch.cat([x[:, :, :words], apply_rotary_emb(x[:, :, words:], image_rotary_emb)], dim=2)
                for x in (query, key)
            )
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask[:, None], float("-inf"))
        mixed = (_softmax(scores).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        mixed = attn.to_out[1](attn.to_out[0](mixed))
        return mixed[:, words:], mixed[:, :words]


def _softmax(scores: Float[Tensor, "B N Q K"]) -> Float[Tensor, "B N Q K"]:
    """Attention's weights, in float32; while training, of bfloat16 scores, rounded to it at once.

    The sum is in float32 either way, but the backward pass then reads and writes half as much.
    """
    if scores.dtype != torch.bfloat16 or not scores.requires_grad:
        return scores.float().softmax(-1)
    with torch.autocast(scores.device.type, enabled=False):  # autocast would turn it into float32 again
        return scores.softmax(-1)
