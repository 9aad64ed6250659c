"""Kept keys and values of a stream: the prefix for good, the last frames in a ring, each slot at a depth of its own.

Rotary positions tell differences of places only. So a frame's keys are turned to the frame's own place once, when they
are kept: turning a whole window anew for every frame would cost more on a CPU than attending to it. Keys of the anchor
are kept as they are and turned at use, to the place that is at most the largest trained difference behind the newest
frame; words, which have no place, are turned on by as much, since what a frame hears of them depends on its own place.
That gives the same products as counting a window's places anew from the trained range's end, the anchor at 0.

Memory is a flat dict of tensors, batch first: `sink_keys_0`, `sink_values_0`, `ring_keys_0`, … for every layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vap_gym.video.passes import Rotary, WholeClip, mixed, rotated

Memory = Mapping[str, Tensor]
KINDS = ("sink_keys", "sink_values", "ring_keys", "ring_values")


@dataclass(frozen=True, kw_only=True)
class Ring:
    """What is kept: settings only.

    Args:
        window: W, how many frames are kept beside the anchor.
        tokens: N, of a frame.
        words: L, of the text.
        last: the largest place in time that the model was trained with.
        layers: of the main branch and of the control branch together.
    """

    window: int
    tokens: int
    words: int
    last: int
    layers: int

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of all tensors that are kept."""
        return tuple(f"{kind}_{layer}" for layer in range(self.layers) for kind in KINDS)

    def begun(self, prefix: PrefixAttention) -> dict[str, Tensor]:
        """Return the memory of slots that know their prefix and no frame yet."""
        memory: dict[str, Tensor] = {}
        for layer, (key, value) in sorted(prefix.fresh.items()):
            empty = key.new_zeros(*key.shape[:2], self.window * self.tokens, key.shape[3])
            memory |= {f"sink_keys_{layer}": key, f"sink_values_{layer}": value}
            memory |= {f"ring_keys_{layer}": empty, f"ring_values_{layer}": empty.clone()}
        return memory

    def written(
        self, memory: Memory, fresh: Mapping[int, tuple[Tensor, Tensor]], frame: Int64[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return the memory after frames of number `frame` (1, 2, …); the oldest ones give way. What was given stays
        as it is."""
        at = ((frame - 1) % self.window)[:, None] * self.tokens + torch.arange(self.tokens, device=frame.device)
        kept = dict(memory)
        for layer, pair in fresh.items():
            for name, new in zip(("keys", "values"), pair, strict=True):
                old = memory[f"ring_{name}_{layer}"]
                where = at[:, None, :, None].expand(-1, old.shape[1], -1, old.shape[3])
                kept[f"ring_{name}_{layer}"] = old.scatter(2, where, new.to(old.dtype))
        return kept


class PrefixAttention:
    """Attention of the prefix to itself, which remembers keys (not turned) and values of every layer."""

    def __init__(self, *, words: int, turn: tuple[Tensor, Tensor] | None) -> None:
        self._clip = WholeClip(None, words=words, turn=turn)
        self.fresh: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `passes.Attend`."""
        self.fresh[layer] = (key.contiguous(), value.contiguous())
        return self._clip(layer, query, key, value)


class RingAttention:
    """Attention of one new frame to prefix, ring and itself; remembers its own keys (turned) and values.

    One object serves all passes of a frame; slots may be at different depths, and what a slot has not seen yet is
    masked: the sizes, and so the rounding, are the same for all.

    Args:
        ring, memory: what is kept.
        frame: number of each slot's new frame: 1 is the first after the anchor.
        rotary: positions, or None where the model has none.
    """

    def __init__(self, ring: Ring, memory: Memory, frame: Int64[Tensor, " B"], rotary: Rotary | None) -> None:
        self._ring, self._memory = ring, memory
        self.fresh: dict[int, tuple[Tensor, Tensor]] = {}
        number = torch.arange(ring.window, device=frame.device)
        known = number < (frame - 1)[:, None]  # all of them, once the ring is full
        self._known = known.repeat_interleave(ring.tokens, 1)[:, None, None]
        place = frame.double()[:, None]
        self._turn = None if rotary is None else rotary.at(place)
        self._sink_turn = None if rotary is None else _beyond(rotary, ring, (place - ring.last).clamp_min(0.0))
        self._sinks: dict[int, Float[Tensor, "B H S d"]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `passes.Attend`."""
        key = rotated(key, self._turn)
        self.fresh[layer] = (key, value)
        ring = (self._memory[f"ring_keys_{layer}"], self._memory[f"ring_values_{layer}"], self._known)
        sink = (self._sink(layer), self._memory[f"sink_values_{layer}"], None)
        return mixed(rotated(query, self._turn), [sink, ring, (key, value, None)])

    def _sink(self, layer: int) -> Tensor:
        """The prefix's keys, turned to where they are seen from the new frame."""
        if layer not in self._sinks:
            self._sinks[layer] = rotated(self._memory[f"sink_keys_{layer}"], self._sink_turn)
        return self._sinks[layer]


def _beyond(rotary: Rotary, ring: Ring, index: Float[Tensor, "B 1"]) -> tuple[Tensor, Tensor]:
    """Turns words and anchor on by time indices; the words, which are at no place of the picture, in time alone."""
    one = rotary.cos.new_ones(ring.words, rotary.cos.shape[1])
    words, anchor = Rotary(cos=one, sin=torch.zeros_like(one)).at(index), rotary.at(index)
    return torch.cat([words[0], anchor[0]], 1), torch.cat([words[1], anchor[1]], 1)
