"""Streams: few evaluations, bounded memory, slots at depths of their own, places that stay in the trained range."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.train.video_loss import VNoise
from vap_gym.video.cache import Ring, RingAttention
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.passes import Rotary, mixed, rotated
from vap_gym.video.presets import VideoConfig
from vap_gym.video.stream import Stream, clean_of, levels

HEIGHT, WIDTH, PLACES, BATCH = 4, 8, 5, 3


def made(*, layers: int = 2, rotary: bool = True, **changes: Any) -> CausalVideoNetwork:
    base = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 8,
        "out_channels": 4,
        "time_embed_dim": 16,
        "text_embed_dim": 8,
        "num_layers": layers,
        "sample_width": WIDTH,
        "sample_height": HEIGHT,
        "sample_frames": PLACES,
        "temporal_compression_ratio": 1,
        "patch_size": 2,
        "max_text_seq_length": 0,
        "use_rotary_positional_embeddings": rotary,
    }
    settings = {"base_config": base, "control_layers": 1, "action_channels": 4, "trajectory_width": 4}
    settings |= {"latent_channels": 4, "frame_size_px": (4 * WIDTH, 4 * HEIGHT)}
    torch.manual_seed(0)
    network = CausalVideoNetwork(**VideoConfig(**settings | changes).to_dict())
    rng = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=rng)
    return network.eval().requires_grad_(False)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise(seed: int, batch: int = BATCH) -> Any:
    return lambda i: drawn(batch, 4, HEIGHT, WIDTH, seed=100 * seed + i)


def prompt(seed: int, batch: int = BATCH) -> Tensor:
    return drawn(batch, 1, 3, 4 * HEIGHT, 4 * WIDTH, seed=1000 + seed)


@torch.no_grad()
def test_memory_stops_growing_and_numbers_stay_finite() -> None:
    stream = Stream(made(layers=1))
    memory = stream.begin(drawn(1, 4, HEIGHT, WIDTH), prompt(0, 1))
    sizes = {name: value.shape for name, value in memory.items()}
    for f in range(1, 30):
        memory, latents = stream.advance(memory, prompt(f % 7, 1), noise(f, 1))
    assert {name: value.shape for name, value in memory.items()} == sizes
    assert all(bool(value.isfinite().all()) for value in (latents, *memory.values()))


@torch.no_grad()
def test_after_a_thousand_frames_as_much_is_kept_as_after_the_first_few_and_seen_as_well() -> None:
    ring, rotary = (
        Ring(window=3, tokens=2, words=0, last=4, layers=1),
        Rotary(cos=torch.ones(2, 16), sin=torch.zeros(2, 16)),
    )
    sink, empty, key = drawn(1, 1, 2, 16), torch.zeros(1, 1, 6, 16), drawn(1, 1, 2, 16, seed=1)
    memory = {"sink_keys_0": sink, "sink_values_0": sink, "ring_keys_0": empty, "ring_values_0": empty}
    seen, sizes = [], set()
    for f in range(1, 1001):
        frame = torch.tensor([f])
        attend = RingAttention(ring, memory, frame, rotary)
        seen.append(attend(0, key, key, key))
        memory = ring.written(memory, attend.fresh, frame)
        sizes.add(sum(value.numel() for value in memory.values()))
    assert sizes == {2 * (sink.numel() + empty.numel())}
    torch.testing.assert_close(seen[999], seen[5], rtol=1e-5, atol=1e-5)  # the same frames, a thousand places further


@torch.no_grad()
def test_slots_at_different_depths_are_what_they_would_be_alone() -> None:
    stream, begun = Stream(made()), drawn(BATCH, 4, HEIGHT, WIDTH)
    memory = stream.begin(begun, prompt(0))
    for f in range(1, 7):  # slot 1 begins anew after three frames
        if f == 4:
            fresh = stream.begin(begun[1:2], prompt(0)[1:2])
            memory = {name: torch.cat([value[:1], fresh[name], value[2:]]) for name, value in memory.items()}
        memory, latents = stream.advance(memory, prompt(f), noise(f), evaluations=2)
    assert memory["step"].tolist() == [6, 3, 6]
    alone = stream.begin(begun[1:2], prompt(0)[1:2])
    for f in range(4, 7):
        alone, expected = stream.advance(
            alone,
            prompt(f)[1:2],
            lambda i, f=f: noise(f)(i)[1:2],
            evaluations=2,  # type: ignore[misc]
        )
    torch.testing.assert_close(latents[1:2], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_is_given_stays_as_it_is() -> None:
    stream = Stream(made())
    memory = stream.begin(drawn(BATCH, 4, HEIGHT, WIDTH), prompt(0))
    for f in range(1, 6):
        kept = {name: value.clone() for name, value in memory.items()}
        following, _ = stream.advance(memory, prompt(f), noise(f))
        assert all(torch.equal(memory[name], value) for name, value in kept.items())
        memory = following


@pytest.mark.parametrize("frame", [1, 2, 4, 5, 11])
def test_a_window_far_along_is_seen_as_one_counted_anew_from_the_trained_ranges_end(frame: int) -> None:
    heads, width, tokens, window, last = 2, 16, 6, 3, 4
    place = torch.arange(tokens)[:, None] * 10.0 ** -torch.arange(width).float()[None] / 3
    rotary = Rotary(cos=place.cos(), sin=place.sin())
    ring = Ring(window=window, tokens=tokens, words=2, last=last, layers=1)
    anchor = drawn(1, heads, 2 + tokens, width, seed=1)
    keys = {f: drawn(1, heads, tokens, width, seed=10 + f) for f in range(1, frame + 1)}
    empty = torch.zeros(1, heads, window * tokens, width)
    memory = {"sink_keys_0": anchor, "sink_values_0": anchor, "ring_keys_0": empty, "ring_values_0": empty}
    for f in range(1, frame + 1):
        attend = RingAttention(ring, memory, torch.tensor([f]), rotary)
        seen = attend(0, keys[f], keys[f], keys[f])
        memory |= ring.written(memory, attend.fresh, torch.tensor([f]))
    past = [f for f in keys if frame - window <= f < frame]
    first = max(0, frame - last)  # is counted as place 0: nothing leaves the trained range 0 … last
    at = torch.tensor([[0, *[f - first for f in past], frame - first]])
    assert int(at.max()) <= last
    plain = torch.cat([anchor[:, :, 2:], *[keys[f] for f in past], keys[frame]], 2)
    turned = torch.cat([anchor[:, :, :2], rotated(plain, rotary.at(at.double()))], 2)
    query = rotated(keys[frame], rotary.at(at[:, -1:].double()))
    expected = mixed(query, [(turned, torch.cat([anchor[:, :, :2], plain], 2), None)])
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)


def test_fused_and_plain_attention_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    query, first, second = (drawn(2, 2, n, 16, seed=n) for n in (3, 4, 5))
    mask = torch.tensor([True, False, True, True, False])[None, None, None].expand(2, 1, 1, 5)
    seen = [(first, first, None), (second, second, mask)]
    plain = mixed(query, seen)
    monkeypatch.setattr("vap_gym.video.passes.PLAIN_ON", ())
    torch.testing.assert_close(mixed(query, seen), plain, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_control_works_once_per_frame_however_many_evaluations_there_are() -> None:
    network = made()
    calls: list[int] = []
    network.transformer.control_out[0].register_forward_hook(lambda *_: calls.append(1))
    for control, expected in (("once", 1), ("each", 4)):
        stream = Stream(network, control=control)
        memory = stream.begin(drawn(BATCH, 4, HEIGHT, WIDTH), prompt(0))
        calls.clear()
        stream.advance(memory, prompt(1), noise(1), evaluations=3)
        assert len(calls) == expected  # three evaluations, and the finished frame once more


def test_levels_begin_with_pure_noise_and_fall() -> None:
    for prediction in ("x0", "v"):
        for count in (1, 2, 4):
            made_levels = levels(prediction, count)
            assert len(made_levels) == count
            assert made_levels[0].signal == pytest.approx(0.0, abs=1e-3)
            assert made_levels[0].noise == pytest.approx(1.0, abs=1e-3)
            signals = [level.signal for level in made_levels]
            assert signals == sorted(signals)
    assert [level.signal for level in levels("x0", 2)] == [0.0, 0.5]


@torch.no_grad()
def test_of_v_predictions_clean_latents_are_recovered() -> None:
    """With the true v, one evaluation at any level gives the clean latents back."""
    clean, drawn_noise = drawn(2, 4, HEIGHT, WIDTH), drawn(2, 4, HEIGHT, WIDTH, seed=3)
    for level in levels("v", 4):
        noisy = level.signal * clean + level.noise * drawn_noise
        velocity = level.signal * drawn_noise - level.noise * clean
        torch.testing.assert_close(clean_of("v", velocity, noisy, level), clean, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_v_stream_takes_the_noise_that_its_model_was_trained_with(scale: float) -> None:
    trained, clean, other = VNoise(snr_shift_scale=scale), drawn(1, 1, 4, 4, 4), drawn(1, 1, 4, 4, 4, seed=3)
    stream = Stream(made(prediction="v"), snr_shift_scale=scale)
    for level in stream.levels(4):
        step = torch.tensor([[level.timestep]])
        mixed = level.signal * clean + level.noise * other
        torch.testing.assert_close(mixed, trained.mixed(clean, other, step))
        torch.testing.assert_close(
            clean_of("v", trained.target(clean, other, step), mixed, level), clean, rtol=1e-4, atol=1e-4
        )
    begun = stream.begin(drawn(BATCH, 4, HEIGHT, WIDTH), prompt(0))
    shifted, plain = (
        Stream(stream.network, snr_shift_scale=one).advance(begun, prompt(1), noise(1), evaluations=2)[1]
        for one in (scale, 1.0)
    )
    assert torch.equal(shifted, plain) == (scale == 1.0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(VapError, match="evaluations must be 1 to 4"):
        levels("x0", 5)
    with pytest.raises(VapError, match="window must be 1 to 3"):
        Stream(made(), window=4)
