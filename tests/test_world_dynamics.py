"""The dynamics: a correction of the posed picture, to which every input counts."""

import pytest
import torch
from torch import Tensor

from vap_gym.world.dynamics import (
    CELL_PX,
    GATE,
    PROMPT_TAPS,
    SOURCES,
    FrameDynamics,
    TrajectoryEncoder,
    composed,
    transformer_settings,
)
from vap_gym.world.layers import ResBlock, zeroed

BATCH, CHANNELS, HEIGHT, WIDTH, FEATURES = 3, 4, 8, 12, 6


def small(*, gated: bool = False) -> FrameDynamics:
    torch.manual_seed(0)
    return FrameDynamics(
        latent_channels=CHANNELS,
        latent_size=(HEIGHT, WIDTH),
        widths=(8, 16),
        blocks=(1, 1),
        heads=1,
        layers=2,
        control_layers=1,
        time_embed_dim=16,
        action_channels=4,
        prompt_features=FEATURES,
        gated=gated,
    ).eval()


def perturbed(*, gated: bool = False) -> FrameDynamics:
    model, rng = small(gated=gated), torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)
    return model


def inputs(seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng) * 1.8 - 0.9

    return {
        "history": drawn(BATCH, 3, CHANNELS, HEIGHT, WIDTH),
        "anchor": drawn(BATCH, CHANNELS, HEIGHT, WIDTH),
        "noisy": drawn(BATCH, CHANNELS, HEIGHT, WIDTH),
        "time": torch.ones(BATCH),
        "interval": torch.ones(BATCH),
        "prompt_taps": drawn(BATCH, PROMPT_TAPS, FEATURES, HEIGHT, WIDTH),
        "posed": drawn(BATCH, CHANNELS, HEIGHT, WIDTH),
        "source": drawn(BATCH, SOURCES, HEIGHT, WIDTH),
    }


@torch.no_grad()
def test_every_input_counts_once_trained() -> None:
    model, given = perturbed(), inputs()
    before = model(**given)[0]
    assert before.shape == (BATCH, CHANNELS, HEIGHT, WIDTH)
    for name, value in given.items():
        other = {"time": value * 0.5, "interval": value * 2}.get(name, -value)
        assert (model(**{**given, name: other})[0] - before).abs().max() > 1e-4, name
    for tap in range(PROMPT_TAPS):
        taps = given["prompt_taps"].clone()
        taps[:, tap] *= -1
        assert (model(**{**given, "prompt_taps": taps})[0] - before).abs().max() > 1e-4, tap
    for lag in range(3):
        history = given["history"].clone()
        history[:, lag] *= -1
        assert (model(**{**given, "history": history})[0] - before).abs().max() > 1e-4, lag


@torch.no_grad()
def test_untrained_it_shows_the_posed_picture() -> None:
    model, given = small(), inputs()
    assert torch.equal(model(**given)[0], given["posed"])
    assert torch.equal(model(**{**given, "prompt_taps": -given["prompt_taps"]})[0], given["posed"])


@torch.no_grad()
def test_a_slot_does_not_depend_on_its_batch_mates() -> None:
    model, given, other = perturbed(), inputs(), inputs(1)
    mixed = {name: torch.cat([value[:1], other[name][1:]]) for name, value in given.items()}
    assert torch.equal(model(**mixed)[0][0], model(**given)[0][0])


@torch.no_grad()
def test_action_latents_see_their_own_prompts_taps_only() -> None:
    torch.manual_seed(0)
    encoder = TrajectoryEncoder(action_channels=4, features=FEATURES)
    prompts = torch.rand(2 * PROMPT_TAPS, 3, 4 * HEIGHT, 4 * WIDTH)
    features = encoder.features(prompts)
    assert features.shape == (2 * PROMPT_TAPS, FEATURES, HEIGHT, WIDTH)
    later = prompts.clone()
    later[3] += 1.0
    changed = (encoder.features(later) - features).abs().amax((1, 2, 3)) > 0
    assert changed.tolist() == [i == 3 for i in range(2 * PROMPT_TAPS)]  # each picture by itself: nothing leaks in time
    action = encoder(features.unflatten(0, (2, PROMPT_TAPS)))
    assert action.shape == (2, 4, HEIGHT, WIDTH)
    moved = (encoder(encoder.features(later).unflatten(0, (2, PROMPT_TAPS))) - action).abs().amax((1, 2, 3)) > 0
    assert moved.tolist() == [True, False]


def test_gradients_reach_every_weight_after_the_first_steps() -> None:
    model = perturbed().train()
    prompts = torch.rand(BATCH * PROMPT_TAPS, 3, 4 * HEIGHT, 4 * WIDTH)
    taps = model.trajectory.features(prompts).unflatten(0, (BATCH, PROMPT_TAPS))
    model(**{**inputs(), "prompt_taps": taps})[0].square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == [f"transformer.base.patch_embed.text_proj.{name}" for name in ("weight", "bias")]  # no words


def test_the_transformer_inside_is_cogvideox() -> None:
    model = small()
    assert type(model.transformer.base).__name__ == "CogVideoXTransformer3DModel"
    settings = transformer_settings(model)
    assert (settings["num_layers"], settings["attention_head_dim"], settings["patch_size"]) == (2, 64, 2)


@pytest.mark.parametrize("size", [(4, 4), (6, 10)])
def test_a_residual_block_begins_as_nothing(size: tuple[int, int]) -> None:
    x = torch.rand(2, 5, *size)
    assert torch.equal(ResBlock(5)(x), x)
    assert all(not p.any() for p in zeroed(torch.nn.Linear(3, 3)).parameters())


@torch.no_grad()
def test_a_gate_opens_pixels_of_the_posed_picture_that_are_left_as_they_are() -> None:
    given = inputs()
    assert small()(**given)[1] is None
    latents, gate = small(gated=True)(**given)
    assert torch.equal(latents, given["posed"])
    assert gate.shape == (BATCH, 1, CELL_PX * HEIGHT, CELL_PX * WIDTH)
    torch.testing.assert_close(gate, torch.full_like(gate, GATE).sigmoid())
    _, gate = perturbed(gated=True)(**given)
    assert gate.std() > 0.01
    decoded, posed = torch.randn(2, BATCH, 3, CELL_PX * HEIGHT, CELL_PX * WIDTH)
    gate = torch.zeros_like(gate)
    gate[..., :5] = 1.0
    picture = composed(decoded, posed, gate)
    assert torch.equal(picture[..., :5], posed[..., :5])
    assert torch.equal(picture[..., 5:], decoded[..., 5:])
    assert torch.equal(composed(decoded, posed, None), decoded)
