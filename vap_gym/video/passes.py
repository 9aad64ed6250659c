"""Block-causal passes through the CogVideoX transformer: a frame sees the text, the anchor and the frames before it.

The prefix is the text and the clean first frame, the anchor. It sees nothing but itself, so it is computed once. Every
frame has a noise level of its own (a time embedding per frame), and there is one code path for a whole clip under a
mask (training) and for one frame beside kept keys and values (streaming): they differ by the function that attends.
The weights are those of the bidirectional transformer, under the same names.

Letters: F frames, N tokens of a frame, L words, D width, H heads, d width of a head, M width of the time embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vap_gym.world.transformer import ControlledTransformer

PLAIN_ON = ("cpu",)  # devices where plain products are the faster attention
THETA = 10000.0  # of the rotary positions, as in diffusers' get_3d_rotary_pos_embed


Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Lets tokens look at others: (layer, query, key, value) → mixed values, each (B, H, S, d); one function for a whole
clip, another for a stream. Queries and keys come without their positions, words before frames. The control branch's
layers are counted after the main branch's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameTokens:
    """Frames on their way through a transformer; where there are words, the first frame is the anchor. K = 1 + F."""

    main: Float[Tensor, "B F N D"]
    moves: Float[Tensor, "B F N D"]  # of the action latents
    words: Float[Tensor, "B L D"]
    time: Float[Tensor, "B K M"]  # first the words', then each frame's: `ControlledTransformer.time_embedding`


# --- who sees whom ---


def causal_mask(frames: int, *, window: int | None = None) -> Bool[Tensor, "F F"]:
    """Return which frame (row) sees which (column): itself, the anchor (frame 0), and the `window` frames before it."""
    row, column = torch.arange(frames)[:, None], torch.arange(frames)[None]
    near = column >= row - (frames if window is None else window)
    return (column <= row) & (near | (column == 0))


def teacher_mask(frames: int, *, window: int | None = None) -> Bool[Tensor, "S S"]:
    """The same for S = 2·frames − 1 frames: the clean ones, then noisy ones of frames 1, 2, …; a noisy frame sees
    itself and the clean frames before it, as in a stream whose past is right."""
    clean = causal_mask(frames, window=window)
    itself = torch.eye(frames - 1, dtype=torch.bool)
    before = clean[1:] & ~torch.eye(frames, dtype=torch.bool)[1:]
    blind = torch.zeros(frames, frames - 1, dtype=torch.bool)
    return torch.cat([torch.cat([clean, blind], 1), torch.cat([before, itself], 1)])


def token_mask(sees: Bool[Tensor, "F F"], *, words: int, tokens: int) -> Bool[Tensor, "S S"]:
    """Return which token sees which, words first: words see words and the anchor, every frame sees the words."""
    frames = len(sees)
    groups = torch.ones(1 + frames, 1 + frames, dtype=torch.bool, device=sees.device)
    groups[1:, 1:] = sees
    groups[0, 2:] = False
    sizes = torch.tensor([words, *[tokens] * frames], device=sees.device)
    return groups.repeat_interleave(sizes, 0).repeat_interleave(sizes, 1)


# --- where a token is ---


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotary:
    """Rotary positions of CogVideoX at any time index: the frame's grid of tokens is fixed, time is chosen."""

    cos: Float[Tensor, "N d"]  # of time index 0
    sin: Float[Tensor, "N d"]

    def at(self, index: Float[Tensor, "B F"]) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S d"]]:
        """Return cosines and sines of the F·N tokens of frames at time indices `index` (any real numbers).

        Angles are float64 until their sine is taken: a long stream's indices lose no digits.
        """
        width = self.cos.shape[-1] // 4  # a quarter of a head's width tells time
        rate = THETA ** -(torch.arange(0, width, 2, dtype=torch.float64, device=index.device) / width)
        angle = (index.double()[..., None] * rate).repeat_interleave(2, -1)[:, :, None]  # (B, F, 1, width)
        shape = (*index.shape, len(self.cos), -1)
        parts = []
        for time, place in ((angle.cos(), self.cos), (angle.sin(), self.sin)):
            parts.append(torch.cat([time.float().expand(shape), place[:, width:].float().expand(shape)], -1))
        return parts[0].flatten(1, 2), parts[1].flatten(1, 2)


def rotated(
    x: Float[Tensor, "B H S d"], turn: tuple[Float[Tensor, "b S d"], Float[Tensor, "b S d"]] | None
) -> Float[Tensor, "B H S d"]:
    """Return queries or keys turned to their positions; None leaves them."""
    if turn is None:
        return x
    cos, sin = turn[0][:, None], turn[1][:, None]
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    swapped = torch.stack([-odd, even], -1).flatten(-2)
    return (x.float() * cos + swapped * sin).to(x.dtype)


# --- attending ---


class WholeClip:
    """Attention of a whole clip at once under a mask.

    Args:
        mask: `token_mask`'s, or None: everything sees everything (the bidirectional model).
        words: how many of the tokens, the first, are words: they have no position.
        turn: `Rotary.at` of the frames' tokens, or None.
    """

    def __init__(
        self, mask: Bool[Tensor, "S S"] | None, *, words: int, turn: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.mask, self.words, self.turn = mask, words, turn

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Attend`."""
        n = self.words
        if self.turn is not None:
            query, key = (torch.cat([x[:, :, :n], rotated(x[:, :, n:], self.turn)], 2) for x in (query, key))
        return mixed(query, [(key, value, self.mask)])


def mixed(
    query: Float[Tensor, "B H S d"], seen: list[tuple[Tensor, Tensor, Tensor | None]]
) -> Float[Tensor, "B H S d"]:
    """Attend to several sets of keys, values and masks (true where allowed; None: all) as if they were one.

    On a CPU in plain products without joining the sets: faster there than torch's fused attention for few tokens, and
    kept keys are not copied. Elsewhere joined and fused.
    """
    if query.device.type not in PLAIN_ON:
        keys, values = torch.cat([key for key, *_ in seen], 2), torch.cat([value for _, value, _ in seen], 2)
        allowed = None
        if any(mask is not None for *_, mask in seen):
            rows = [_rows(mask, query, key) for key, _, mask in seen]
            allowed = torch.cat(rows, -1)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=allowed)
    query = query * query.shape[-1] ** -0.5
    scores = []
    for key, _, mask in seen:
        score = query @ key.transpose(-1, -2)
        scores.append(score if mask is None else score.masked_fill(~mask, float("-inf")))
    whole = torch.cat(scores, -1) if len(scores) > 1 else scores[0]
    share = whole.float().softmax(-1).to(seen[0][1].dtype)
    shares = share.split([key.shape[2] for key, *_ in seen], -1)
    out = shares[0] @ seen[0][1]
    for part, (_, value, _) in zip(shares[1:], seen[1:], strict=True):
        out = out + part @ value
    return out  # type: ignore[no-any-return]


def _rows(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """A mask of one set, spelled out."""
    shape = (len(query), 1, query.shape[2], key.shape[2])
    return query.new_ones(shape, dtype=torch.bool) if mask is None else mask.expand(shape)


# --- passes ---


def control_pass(transformer: ControlledTransformer, given: FrameTokens, attend: Attend) -> list[Tensor]:
    """The ControlNet of the paper (Sec. 3.3): what its blocks add to the main branch, one (B, F, N, D) per block."""
    if transformer.control_in is None:
        return []
    first = len(transformer.base.transformer_blocks)
    residuals, words = [], given.words
    video = given.main + transformer.control_in(given.moves)
    for i, (block, leave) in enumerate(zip(transformer.control_blocks, transformer.control_out, strict=True)):
        video, words = _through(transformer, block, video, words, given.time, attend, first + i)
        residuals.append(leave(video))
    return residuals


def main_pass(
    transformer: ControlledTransformer, given: FrameTokens, residuals: list[Tensor], attend: Attend
) -> Float[Tensor, "B F N O"]:
    """The main branch, the actions merged into it (Sec. 3.3): what `proj_out` makes of every token."""
    base, video, words = transformer.base, given.main, given.words
    if transformer.merge is not None:
        video = transformer.merge(torch.cat([video, given.moves], -1))
    for i, block in enumerate(base.transformer_blocks):
        video, words = _through(transformer, block, video, words, given.time, attend, i)
        if i < len(residuals):
            video = video + residuals[i]
    out = base.norm_out
    shift, scale = out.linear(out.silu(given.time[:, 1:])).chunk(2, -1)
    video = out.norm(base.norm_final(video)) * (1 + scale[:, :, None]) + shift[:, :, None]
    return base.proj_out(video)  # type: ignore[no-any-return]


def _through(
    transformer: ControlledTransformer,
    block: CogVideoXBlock,
    video: Tensor,
    words: Tensor,
    time: Tensor,
    attend: Attend,
    layer: int,
) -> tuple[Tensor, Tensor]:
    """One block; its activations computed again in the backward pass where that is switched on."""
    if torch.is_grad_enabled() and transformer.gradient_checkpointing:
        both: tuple[Tensor, Tensor] = checkpoint(_block, block, video, words, time, attend, layer, use_reentrant=False)
        return both
    return _block(block, video, words, time, attend, layer)


def _block(
    block: CogVideoXBlock, video: Tensor, words: Tensor, time: Tensor, attend: Attend, layer: int
) -> tuple[Tensor, Tensor]:
    """diffusers' CogVideoXBlock with one time embedding per frame and one for the words."""
    for norm, change in ((block.norm1, None), (block.norm2, block.ff)):
        weight, bias, active = norm.linear.weight, norm.linear.bias, norm.silu(time)
        half = len(weight) // 2  # the first half is for video, the second for words
        shift, scale, gate = F.linear(active[:, 1:], weight[:half], bias[:half]).chunk(3, -1)
        seen, heard = norm.norm(video) * (1 + scale[:, :, None]) + shift[:, :, None], words
        if words.shape[1]:
            w_shift, w_scale, w_gate = F.linear(active[:, :1], weight[half:], bias[half:]).chunk(3, -1)
            heard = norm.norm(words) * (1 + w_scale) + w_shift
        if change is None:
            told, spoken = _attention(block.attn1, seen, heard, attend, layer)
        else:
            told, spoken = change(seen), change(heard) if words.shape[1] else heard
        video = video + gate[:, :, None] * told
        words = words + w_gate * spoken if words.shape[1] else words
    return video, words


def _attention(attn: Attention, video: Tensor, words: Tensor, attend: Attend, layer: int) -> tuple[Tensor, Tensor]:
    frames, L = video.shape[1], words.shape[1]
    tokens = torch.cat([words, video.flatten(1, 2)], 1) if L else video.flatten(1, 2)
    query, key, value = (
        to(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for to in (attn.to_q, attn.to_k, attn.to_v)
    )
    query = attn.norm_q(query) if attn.norm_q is not None else query
    key = attn.norm_k(key) if attn.norm_k is not None else key
    query, key = query.to(value.dtype), key.to(value.dtype)  # norms give float32 where the rest is bfloat16
    out = attend(layer, query, key, value).transpose(1, 2).flatten(2)
    out = attn.to_out[1](attn.to_out[0](out))
    return out[:, L:].unflatten(1, (frames, -1)), out[:, :L]
