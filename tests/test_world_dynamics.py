"""The dynamics: a step is composed of the first picture, carried along with the robot posed anew, and new content."""

import pytest
import torch
from torch import Tensor

from vap_gym.world.articulated import warp
from vap_gym.world.dynamics import (
    LEAST_WAY,
    MAKING,
    PROMPT_TAPS,
    FrameDynamics,
    TrajectoryEncoder,
    transformer_settings,
)
from vap_gym.world.layers import ResBlock, zeroed

BATCH, CHANNELS, HEIGHT, WIDTH, FEATURES = 3, 4, 8, 12, 6


def small() -> FrameDynamics:
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
    ).eval()


def perturbed() -> FrameDynamics:
    model, rng = small(), torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)
    return model


@torch.no_grad()
def still(model: FrameDynamics, *, flow: float = 0.0) -> None:
    """Let the model's head say the same everywhere: a flow of so many cells to the right."""
    last = model.head[-1]
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    last.weight.zero_()
    last.bias.zero_()
    last.bias[CHANNELS] = MAKING
    last.bias[CHANNELS + 1] = torch.atanh(torch.tensor(flow / model.config.max_flow))


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
        "displacement": 2.0 * drawn(BATCH, 2, HEIGHT, WIDTH),
        "bones": bones(rng),
        "posed": drawn(BATCH, CHANNELS, HEIGHT, WIDTH),
    }


def bones(rng: torch.Generator) -> Tensor:
    """Two bones in three views: within the picture, wide enough to cover cells, in front of the camera."""
    ends = torch.rand(BATCH, 3, 2, 4, generator=rng) * torch.tensor([48.0, 32.0, 48.0, 32.0])
    return torch.cat([ends, torch.full((BATCH, 3, 2, 2), 5.0), torch.ones(BATCH, 3, 2, 2)], dim=-1)


@torch.no_grad()
def test_every_input_counts_once_trained() -> None:
    model, given = perturbed(), inputs()
    before = model(**given).latent
    assert before.shape == (BATCH, CHANNELS, HEIGHT, WIDTH)
    for name, value in given.items():
        other = value.flip(1) if name == "bones" else {"time": value * 0.5, "interval": value * 2}.get(name, -value)
        assert (model(**{**given, name: other}).latent - before).abs().max() > 1e-4, name
    for tap in range(PROMPT_TAPS):
        taps = given["prompt_taps"].clone()
        taps[:, tap] *= -1
        assert (model(**{**given, "prompt_taps": taps}).latent - before).abs().max() > 1e-4, tap
    for lag in range(3):
        history = given["history"].clone()
        history[:, lag] *= -1
        assert (model(**{**given, "history": history}).latent - before).abs().max() > 1e-4, lag


@torch.no_grad()
def test_untrained_it_ignores_the_prompt_and_mostly_shows_the_carried_picture() -> None:
    model, given = small(), inputs()
    given["bones"] = given["bones"][:, :, :0]
    given["displacement"] = torch.zeros_like(given["displacement"])
    before = model(**given).latent
    assert torch.equal(model(**{**given, "prompt_taps": -given["prompt_taps"]}).latent, before)
    posed, anchor = given["posed"], given["anchor"]
    assert (before - posed).square().mean() < 0.1 * (before - anchor).square().mean()


@torch.no_grad()
def test_predictions_stay_within_the_latents_range() -> None:
    model, given = perturbed(), inputs()
    for step in range(20):
        latent, displacement, carried = model(**given)
        assert latent.abs().amax() <= 1
        assert carried.abs().amax() <= 1
        taps = inputs(step)["prompt_taps"]
        history = torch.cat([latent[:, None], given["history"][:, :-1]], 1)
        given = {**given, "history": history, "prompt_taps": taps, "displacement": displacement}


@torch.no_grad()
def test_the_posed_robot_is_carried_as_it_is_and_what_is_beside_it_moves() -> None:
    model, given = small(), inputs()
    still(model)
    here = torch.tensor([8.0, 16.0, 28.0, 16.0, 6.0, 6.0, 1.0, 1.0])
    there = here + torch.tensor([8.0, 4.0, 8.0, 4.0, 0.0, 0.0, 0.0, 0.0])
    given["bones"] = torch.stack([there, here, here])[None, :, None].expand(BATCH, -1, -1, -1)
    given["displacement"] = torch.zeros_like(given["displacement"])
    _, displacement, carried = model(**given)
    assert not displacement.any()  # the robot's own way is not remembered: bones tell it anew at every step
    torch.testing.assert_close(carried, given["posed"], atol=1e-4, rtol=0)
    still(model, flow=-1.0)  # content moves right: it comes from the left
    _, displacement, carried = model(**given)
    torch.testing.assert_close(displacement[:, 0], torch.full_like(displacement[:, 0], -1.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(carried[:, :, 5, 5:8], given["posed"][:, :, 5, 5:8])
    torch.testing.assert_close(carried[:, :, 0, 1:], given["posed"][:, :, 0, :-1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_slot_does_not_depend_on_its_batch_mates() -> None:
    model, given, other = perturbed(), inputs(), inputs(1)
    mixed = {name: torch.cat([value[:1], other[name][1:]]) for name, value in given.items()}
    assert all(torch.equal(one[0], other[0]) for one, other in zip(model(**mixed), model(**given), strict=True))


@torch.no_grad()
def test_a_steady_flow_adds_up_to_the_way_from_the_first_frame() -> None:
    """And what was carried so far is moved on by the last step alone, so it is blurred once, not at every step."""
    model, given = small(), inputs()
    still(model, flow=-1.0)
    given["bones"] = given["bones"][:, :, :0]
    given["displacement"] = torch.zeros_like(given["displacement"])
    for step in range(1, 6):
        prediction = model(**given)
        given["displacement"] = prediction.displacement
        way = prediction.displacement[:, 0, :, step:]
        torch.testing.assert_close(way, torch.full_like(way, -1.0 * step), atol=1e-4, rtol=0)
        torch.testing.assert_close(prediction.carried[..., 1:], given["posed"][..., :-1], atol=1e-4, rtol=0)


def test_what_hardly_moves_rests_but_can_learn_to_move() -> None:
    model, given = small(), inputs()
    given["bones"] = given["bones"][:, :, :0]
    given["displacement"] = torch.zeros_like(given["displacement"])
    still(model, flow=0.5 * LEAST_WAY)
    prediction = model(**given)
    assert not prediction.displacement.any()
    torch.testing.assert_close(prediction.carried, given["posed"], atol=1e-4, rtol=0)
    prediction.displacement.sum().backward()
    last = model.head[-1]
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    assert last.bias.grad is not None
    assert last.bias.grad[CHANNELS + 1] != 0
    still(model, flow=2.0 * LEAST_WAY)
    way = model(**given).displacement[:, 0]
    torch.testing.assert_close(way, torch.full_like(way, 2.0 * LEAST_WAY), atol=1e-4, rtol=0)


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


def test_warp_moves_whole_cells_exactly_and_repeats_the_rim() -> None:
    picture = torch.rand(1, 2, HEIGHT, WIDTH)
    flow = torch.zeros(1, 2, HEIGHT, WIDTH)
    torch.testing.assert_close(warp(picture, flow), picture, atol=1e-5, rtol=0)
    flow[:, 0] = 2.0
    flow[:, 1] = -1.0
    moved = warp(picture, flow)
    torch.testing.assert_close(moved[..., 1:, :-2], picture[..., :-1, 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[..., 0, :-2], picture[..., 0, 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[..., 1:, -1], picture[..., :-1, -1], atol=1e-5, rtol=0)


def test_gradients_reach_every_weight_after_the_first_steps() -> None:
    model = perturbed().train()
    prompts = torch.rand(BATCH * PROMPT_TAPS, 3, 4 * HEIGHT, 4 * WIDTH)
    taps = model.trajectory.features(prompts).unflatten(0, (BATCH, PROMPT_TAPS))
    model(**{**inputs(), "prompt_taps": taps}).latent.square().mean().backward()
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
