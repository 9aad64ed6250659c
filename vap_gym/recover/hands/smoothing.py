"""The One-Euro filter (Casiez, Roussel, Vogel 2012), over whole trajectories at once, and a variant without lag.

A low-pass filter whose cutoff rises with speed: steady where the hand rests, quick where it moves. Every channel (a
coordinate of a joint) has its own. The filter is causal: it lags. A recording can be filtered from both ends, and the
mean of both passes has no lag to first order and half of the noise that is left: `zero_lag`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from vap_gym.errors import VapError


@dataclass(frozen=True, kw_only=True)
class OneEuro:
    """Settings of the filter. `beta` is in Hz per (unit of the signal a second); 0 is a plain low-pass filter."""

    min_cutoff_hz: float = 1.0
    beta: float = 0.0
    d_cutoff_hz: float = 1.0

    def __post_init__(self) -> None:
        numbers = (self.min_cutoff_hz, self.beta, self.d_cutoff_hz)
        if not all(map(math.isfinite, numbers)) or min(self.min_cutoff_hz, self.d_cutoff_hz) <= 0 or self.beta < 0:
            raise VapError(
                "The One-Euro filter needs min_cutoff_hz > 0, beta >= 0 and d_cutoff_hz > 0, all finite, got "
                f"{self.min_cutoff_hz}, {self.beta} and {self.d_cutoff_hz}. Try 1, 0 and 1, then raise beta till the "
                "lag is gone."
            )


def one_euro(
    x: Float[np.ndarray, "T *channels"],
    rate_hz: float,
    settings: OneEuro,
    *,
    scale: Float[np.ndarray, "T *#channels"] | float = 1.0,
) -> Float[np.ndarray, "T *channels"]:
    """Return the causally filtered signal, same shape, float64; the first value passes unchanged.

    Args:
        x: finite values at a steady rate.
        rate_hz: rows a second.
        scale: the unit in which speed is told, e.g. the size of the hand in px: `beta` then means the same at every
            picture size.

    Raises:
        VapError: a rate that is not positive, NaN or infinity in `x`.
    """
    if not (math.isfinite(rate_hz) and rate_hz > 0):
        raise VapError(f"rate_hz must be positive, got {rate_hz}. A video's frame rate, like 15.")
    if not np.isfinite(x).all():
        raise VapError("The One-Euro filter needs finite values, got NaN or infinity. Filter each run without gaps.")
    x = x.astype(np.float64)
    if not len(x):
        return x
    speed = np.zeros_like(x)
    speed[1:] = (x[1:] - x[:-1]) * rate_hz
    share = 1.0 / (1.0 + rate_hz / (2 * math.pi * settings.d_cutoff_hz))  # of a first-order low-pass filter
    low = 0.0 * speed[0]
    for t in range(len(speed)):  # the speed's own filter, of constant cutoff
        low = low + share * (speed[t] - low)
        speed[t] = low
    cutoff_hz = settings.min_cutoff_hz + settings.beta * np.abs(speed) / scale
    shares = 1.0 / (1.0 + rate_hz / (2 * math.pi * cutoff_hz))
    out = np.empty_like(x)
    last = x[0]
    for t in range(len(x)):
        last = last + shares[t] * (x[t] - last)
        out[t] = last
    return out


def zero_lag(
    x: Float[np.ndarray, "T *channels"],
    rate_hz: float,
    settings: OneEuro,
    *,
    scale: Float[np.ndarray, "T *#channels"] | float = 1.0,
) -> Float[np.ndarray, "T *channels"]:
    """Return the mean of the filter run forward and run backward in time (arguments as `one_euro`).

    It sees the future, so it is for recordings only. The first and last value are half as it filters them.
    """
    backward = scale if isinstance(scale, float) else scale[::-1]
    forth = one_euro(x, rate_hz, settings, scale=scale)
    back = one_euro(x[::-1], rate_hz, settings, scale=backward)[::-1]
    mean: NDArray[np.float64] = 0.5 * (forth + back)
    return mean


def runs(present: Bool[np.ndarray, "T"]) -> list[tuple[int, int]]:
    """Return [start, stop) of every run of true values, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], present, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))
