"""Losses of the causal model: finite gradients for every part, and a moving square is learned better than frozen."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.train.video_forcing import forcing_loss, rollout_loss
from vap_gym.train.video_loss import VNoise
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.presets import VideoConfig
from vap_gym.video.stream import Frame, Stream

HEIGHT, WIDTH, FRAMES = 4, 8, 4


def made(prediction: str = "x0", **changes: Any) -> CausalVideoNetwork:
    base = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 2,
        "time_embed_dim": 16,
        "text_embed_dim": 8,
        "num_layers": 2,
        "sample_width": WIDTH,
        "sample_height": HEIGHT,
        "sample_frames": FRAMES + 1,
        "temporal_compression_ratio": 1,
        "patch_size": 2,
        "max_text_seq_length": 0,
        "use_rotary_positional_embeddings": True,
    }
    settings = {"base_config": base, "control_layers": 1, "action_channels": 4, "trajectory_width": 8}
    settings |= {"latent_channels": 2, "frame_size_px": (4 * WIDTH, 4 * HEIGHT), "prediction": prediction}
    torch.manual_seed(0)
    return CausalVideoNetwork(**VideoConfig(**settings | changes).to_dict())


def squares(batch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents (B, F, 2, h, w) of a square that moves from column to column, and prompts that mark where it is."""
    column = torch.randint(0, WIDTH - 1, (batch, FRAMES), generator=rng)
    row = torch.randint(0, HEIGHT - 1, (batch, FRAMES), generator=rng)
    x, y = torch.arange(WIDTH), torch.arange(HEIGHT)[:, None]
    at_x = (x - column[..., None, None]).abs() * 2 - 1
    at_y = (y - row[..., None, None]).abs() * 2 - 1
    inside = ((at_x.abs() <= 1) & (at_y.abs() <= 1)).float()[:, :, None]
    latents = torch.cat([2 * inside - 1, 1 - 2 * inside], 2)
    prompts = (2 * inside - 1).repeat_interleave(4, -1).repeat_interleave(4, -2).expand(-1, -1, 3, -1, -1)
    return latents, prompts.contiguous()


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("kind", ["teacher", "diffusion", "rollout"])
def test_every_parameter_gets_a_finite_gradient(kind: str, prediction: str) -> None:
    network, rng = made(prediction), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=rng)
    clean, prompts = squares(2, rng)
    weight = torch.rand(2, FRAMES, 1, HEIGHT, WIDTH, generator=rng)
    if kind == "rollout":
        loss = rollout_loss(Stream(network), clean, prompts, rng=rng, evaluations=2, weight=weight)
    else:
        loss = forcing_loss(
            network, clean, prompts=prompts, rng=rng, teacher=kind == "teacher", past_noise=0.2, weight=weight
        )
    loss.backward()
    wordless = ("text_proj", "norm1.linear", "norm2.linear")  # there are no words, which take half of the latter two
    for name, parameter in network.named_parameters():
        if "text_proj" in name:
            continue
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.abs().sum() > 0) or any(part in name for part in wordless), name


def test_raw_states_are_learned_from_and_streamed_as_in_training() -> None:
    network, rng = made(condition="raw_state", state_width=3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=rng)
    clean, _ = squares(2, rng)
    states, others = torch.randn(2, 2, FRAMES, 3, generator=rng)
    losses = [
        loss(told, torch.Generator().manual_seed(1))
        for told in (states, others, None)
        for loss in (
            lambda told, rng: forcing_loss(network, clean, states=told, rng=rng),
            lambda told, rng: rollout_loss(Stream(network), clean, None, states=told, rng=rng),
        )
    ]
    assert len({loss.item() for loss in losses}) == 6  # the states matter, to both losses
    sum(losses[:2]).backward()  # type: ignore[union-attr]
    assert network.embed_states is not None
    assert all(bool(p.grad.abs().sum() > 0) for p in network.embed_states.parameters() if p.grad is not None)
    with torch.no_grad():
        network.eval()
        whole = network(
            clean, network.spread(clean[:, 0], FRAMES), torch.zeros(2, FRAMES), states=states
        )  # clean frames at level 0 are what a stream's finished frames see
        stream = Stream(network)
        memory = stream.begin(clean[:, 0], states=states[:, :1])
        for f in range(1, FRAMES):
            frame = Frame(stream, memory, None, states[:, f : f + 1])
            torch.testing.assert_close(frame.predict(clean[:, f], 0.0), whole[:, f], rtol=1e-4, atol=1e-5)
            memory = frame.finished(clean[:, f])


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_v_models_are_forced_with_the_noise_of_the_recipe(scale: float) -> None:
    network, (clean, prompts) = made("v"), squares(2, torch.Generator().manual_seed(0))
    found: list[Tensor] = []
    forcing_loss(
        network, clean, prompts=prompts, rng=torch.Generator().manual_seed(5), pure_noise=0.0, snr_shift_scale=scale,
        compare=lambda _, target, weight: found.append(target) or target.sum(),  # type: ignore[func-returns-value]
    )  # fmt: skip
    rng = torch.Generator().manual_seed(5)
    level = torch.sigmoid(torch.randn(2, FRAMES - 1, generator=rng))
    torch.rand(2, FRAMES - 1, generator=rng)
    noise = torch.randn(clean[:, 1:].shape, generator=rng)
    wanted = VNoise(snr_shift_scale=scale).target(clean[:, 1:], noise, (999 * level).round())
    torch.testing.assert_close(found[0], wanted)


@torch.no_grad()
def test_a_rollout_is_what_a_stream_makes() -> None:
    network = made().eval()
    for parameter in network.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    clean, prompts = squares(2, torch.Generator().manual_seed(3))
    frames: list[Tensor] = []
    rollout_loss(
        Stream(network), clean, prompts, rng=torch.Generator().manual_seed(7), evaluations=2, context=1,
        compare=lambda made_of, truth, weight: frames.append(made_of) or truth.sum(),  # type: ignore[func-returns-value]
    )  # fmt: skip
    stream, rng = Stream(network), torch.Generator().manual_seed(7)
    memory = Frame(stream, stream.begin(clean[:, 0], prompts[:, :1]), prompts[:, 1:2]).finished(clean[:, 1])
    for f in (2, 3):
        memory, latents = stream.advance(
            memory, prompts[:, f : f + 1], lambda i: torch.randn(clean[:, 0].shape, generator=rng), evaluations=2
        )
        torch.testing.assert_close(frames[f - 2][:, 0], latents)


def test_a_moving_square_is_learned_and_streamed_better_than_the_frozen_frame() -> None:
    network, rng = made(), torch.Generator().manual_seed(0)
    stream = Stream(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=6e-3)
    for step in range(90):
        clean, prompts = squares(4, rng)
        if step % 4 == 3:
            loss = rollout_loss(stream, clean, prompts, rng=rng)
        else:
            loss = forcing_loss(network, clean, prompts=prompts, rng=rng, past_noise=0.2)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    clean, prompts = squares(16, rng)
    with torch.no_grad():
        error = rollout_loss(stream, clean, prompts, rng=rng)
    frozen = (clean[:, 1:] - clean[:, :1]).square().mean()
    assert float(error) < 0.5 * float(frozen)


def test_a_clip_without_a_frame_to_predict_is_refused() -> None:
    network, rng = made(), torch.Generator().manual_seed(0)
    clean, prompts = squares(1, rng)
    with pytest.raises(VapError, match="at least 2 latent frames"):
        forcing_loss(network, clean[:, :1], prompts=prompts[:, :1], rng=rng)
    with pytest.raises(VapError, match="context must leave"):
        rollout_loss(Stream(network), clean, prompts, rng=rng, context=3)
