"""The One-Euro filter: against its definition in plain numbers, and what must be true of any such filter."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vap_gym.errors import VapError
from vap_gym.recover.hands.smoothing import OneEuro, one_euro, runs, zero_lag

FILTERS = st.builds(
    OneEuro,
    min_cutoff_hz=st.floats(0.05, 20),
    beta=st.floats(0, 50),
    d_cutoff_hz=st.floats(0.05, 20),
)
SIGNALS = arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=st.floats(-100, 100))
RATES = st.floats(2, 120)


def reference(x: list[float], rate: float, settings: OneEuro) -> list[float]:
    """The filter of one channel, as the paper's algorithm 1 tells it: step by step, with its own memory."""

    def alpha(cutoff: float) -> float:
        tau, period = 1 / (2 * math.pi * cutoff), 1 / rate
        return 1 / (1 + tau / period)

    out: list[float] = []
    last_raw, last, speed = None, 0.0, 0.0
    for value in x:
        raw_speed = 0.0 if last_raw is None else (value - last_raw) * rate
        a = alpha(settings.d_cutoff_hz)
        speed = raw_speed if last_raw is None else a * raw_speed + (1 - a) * speed
        a = alpha(settings.min_cutoff_hz + settings.beta * abs(speed))
        last = value if last_raw is None else a * value + (1 - a) * last
        last_raw = value
        out.append(last)
    return out


@settings(deadline=None)
@given(SIGNALS, RATES, FILTERS)
def test_every_channel_is_filtered_as_the_definition_says(x: np.ndarray, rate: float, settings: OneEuro) -> None:
    expected = np.stack([reference(channel.tolist(), rate, settings) for channel in x.T], -1)
    assert np.allclose(one_euro(x, rate, settings), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("filtered", [one_euro, zero_lag])
@settings(deadline=None)
@given(st.floats(-1e3, 1e3), RATES, FILTERS)
def test_a_constant_stays(filtered, value: float, rate: float, settings: OneEuro) -> None:
    assert np.allclose(filtered(np.full((20, 2), value), rate, settings), value)


@pytest.mark.parametrize("filtered", [one_euro, zero_lag])
@settings(deadline=None)
@given(SIGNALS, RATES, FILTERS, st.floats(-100, 100))
def test_moving_the_signal_moves_the_result(filtered, x, rate: float, settings: OneEuro, by: float) -> None:
    assert np.allclose(filtered(x + by, rate, settings), filtered(x, rate, settings) + by, atol=1e-6)


@pytest.mark.parametrize("filtered", [one_euro, zero_lag])
@settings(deadline=None)
@given(SIGNALS, RATES, FILTERS, st.floats(0.01, 100))
def test_scaling_signal_and_unit_scales_the_result(filtered, x, rate: float, settings: OneEuro, by: float) -> None:
    assert np.allclose(
        filtered(by * x, rate, settings, scale=by), by * filtered(x, rate, settings), rtol=1e-6, atol=1e-6
    )


@settings(deadline=None)
@given(RATES, FILTERS, st.floats(0.1, 100))
def test_a_step_is_approached_steadily_and_never_passed(rate: float, settings: OneEuro, height: float) -> None:
    step = np.concatenate([np.zeros((5, 1)), np.full((60, 1), height)])
    out = one_euro(step, rate, settings)[:, 0]
    assert (np.diff(out) >= -1e-12).all()
    assert out.min() >= 0
    assert out.max() <= height + 1e-9


@settings(deadline=None)
@given(SIGNALS, RATES, FILTERS, st.integers(0, 29))
def test_the_future_does_not_reach_the_causal_filter(x, rate: float, settings: OneEuro, at: int) -> None:
    changed = x.copy()
    changed[at + 1 :] += 7.0
    assert np.array_equal(one_euro(x, rate, settings)[: at + 1], one_euro(changed, rate, settings)[: at + 1])


@settings(deadline=None)
@given(SIGNALS, RATES, FILTERS)
def test_zero_lag_does_not_know_the_direction_of_time(x, rate: float, settings: OneEuro) -> None:
    assert np.allclose(zero_lag(x[::-1], rate, settings)[::-1], zero_lag(x, rate, settings), atol=1e-9)


def test_zero_lag_has_less_lag_and_less_noise() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(300)[:, None] / 30
    true = np.sin(2 * np.pi * 0.3 * time + np.arange(8))
    noisy = true + rng.normal(0, 0.05, true.shape)
    settings = OneEuro(min_cutoff_hz=1.0, beta=1.0)
    causal, both = (np.abs(f(noisy, 30.0, settings) - true)[20:-20].mean() for f in (one_euro, zero_lag))
    assert both < 0.5 * causal
    assert both < 0.8 * np.abs(noisy - true).mean()


@pytest.mark.parametrize("bad", [{"min_cutoff_hz": 0.0}, {"beta": -1.0}, {"d_cutoff_hz": math.nan}])
def test_impossible_settings_are_told(bad: dict) -> None:
    with pytest.raises(VapError, match="Try 1, 0 and 1"):
        OneEuro(**bad)


def test_bad_signals_are_told() -> None:
    with pytest.raises(VapError, match="NaN"):
        one_euro(np.array([[1.0], [np.nan]]), 30.0, OneEuro())
    with pytest.raises(VapError, match="rate_hz must be positive, got 0"):
        one_euro(np.zeros((2, 1)), 0.0, OneEuro())
    assert one_euro(np.zeros((0, 3)), 30.0, OneEuro()).shape == (0, 3)


@settings(deadline=None)
@given(arrays(np.bool_, st.integers(0, 40)))
def test_runs_tile_what_is_true(present: np.ndarray) -> None:
    rebuilt = np.zeros_like(present)
    found = runs(present)
    for start, stop in found:
        assert start < stop
        rebuilt[start:stop] = True
    assert np.array_equal(rebuilt, present)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))
