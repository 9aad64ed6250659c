"""Noise by counter: a slot's numbers depend on its seed, step and sampler evaluation, never on its batch-mates."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_MASK32 = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash in the manner of Wellons' lowbias32, on int64 tensors that hold 32-bit values.

    The second constant is another one, below 2³¹, so that no product leaves the int64 range.
    """
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK32
    x = x ^ (x >> 15)
    x = (x * 0x46A5A9C5 + 0x3ADE68B1) & _MASK32
    return x ^ (x >> 16)


def counter_noise(
    seed: Int64[Tensor, " B"], step: Int64[Tensor, " B"], evaluation: int, shape: tuple[int, ...]
) -> Float[Tensor, "B ..."]:
    """Standard normal numbers (B, *shape), float32, by hashing (seed, step, evaluation, element) and Box–Muller."""
    count = math.prod(shape)
    pairs = (count + 1) // 2
    key = torch.zeros_like(seed)
    for word in (seed, seed >> 32, step, torch.full_like(step, evaluation)):
        key = _mix((key + word) & _MASK32)  # one after the other: a plain sum of hashes would not tell seed from step
    element = torch.arange(pairs, device=seed.device, dtype=torch.int64)
    first = _mix((key[:, None] + _mix(2 * element)) & _MASK32)
    second = _mix((key[:, None] ^ _mix(2 * element + 1)) & _MASK32)
    radius = torch.sqrt(-2.0 * torch.log((first.to(torch.float32) + 1.0) * 2.0**-32))
    angle = second.to(torch.float32) * (2.0 * math.pi * 2.0**-32)
    normal = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return normal[:, :count].reshape(len(seed), *shape)
