"""The controlled transformer: diffusers' CogVideoX exactly until it is trained, then steered by actions."""

from typing import Any

import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from torch import Tensor, nn

from vap_gym.world.attention import PlainAttention
from vap_gym.world.transformer import ControlledTransformer

HEIGHT, WIDTH, BATCH = 4, 6, 2


def config(*, frames: int, words: int, rotary: bool = False) -> dict[str, Any]:
    return {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 3,
        "time_embed_dim": 16,
        "text_embed_dim": 8,
        "max_text_seq_length": words,
        "num_layers": 3,
        "sample_width": WIDTH,
        "sample_height": HEIGHT,
        "sample_frames": 4 * (frames - 1) + 1,
        "patch_size": 2,
        "use_rotary_positional_embeddings": rotary,
    }


def made(*, frames: int = 1, words: int = 0, rotary: bool = False, **settings: Any) -> ControlledTransformer:
    torch.manual_seed(0)
    base = config(frames=frames, words=words, rotary=rotary)
    return ControlledTransformer(base_config=base, action_channels=5, control_layers=2, **settings).eval()


def inputs(*, frames: int = 1, words: int = 0, seed: int = 1) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "video": torch.randn(BATCH, frames, 4, HEIGHT, WIDTH, generator=rng),
        "action": torch.randn(BATCH, frames, 5, HEIGHT, WIDTH, generator=rng),
        "timestep": torch.tensor([3.0, 700.0]),
        "text": torch.randn(BATCH, words, 8, generator=rng),
    }


def stock(model: ControlledTransformer, given: dict[str, Tensor], rotary: Any = None) -> Tensor:
    """What diffusers' own model makes of the same weights."""
    theirs = CogVideoXTransformer3DModel(**model.config.base_config).eval()
    theirs.load_state_dict(model.base.state_dict())
    output: Tensor = theirs(
        hidden_states=given["video"],
        encoder_hidden_states=given["text"],
        timestep=given["timestep"],
        image_rotary_emb=rotary,
        return_dict=False,
    )[0]
    return output


def perturb(module: nn.Module, seed: int = 0) -> None:
    rng = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)


def rotations(frames: int) -> tuple[Tensor, Tensor]:
    size = (HEIGHT // 2, WIDTH // 2)
    cos, sin = get_3d_rotary_pos_embed(16, ((0, 0), size), size, frames)
    return cos, sin


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("words", [0, 5])
@torch.no_grad()
def test_untrained_it_equals_the_base_bit_for_bit(frames: int, words: int) -> None:
    model, given = made(frames=frames, words=words), inputs(frames=frames, words=words)
    output = model(**given)
    assert output.shape == (BATCH, frames, 3, HEIGHT, WIDTH)
    assert torch.equal(output, stock(model, given))
    if words == 0:
        assert torch.equal(model(**{**given, "text": None}), output)


@torch.no_grad()
def test_untrained_it_equals_the_base_with_rotary_positions_too() -> None:
    model, given, rotary = made(frames=3, words=5, rotary=True), inputs(frames=3, words=5), rotations(3)
    assert torch.equal(model(**given, image_rotary_emb=rotary), stock(model, given, rotary))


@torch.no_grad()
def test_untrained_it_does_not_depend_on_the_action() -> None:
    model, given = made(), inputs()
    assert torch.equal(model(**given), model(**{**given, "action": -3 * given["action"]}))


@pytest.mark.parametrize("branch", ["control_in", "control_out", "merge", "all"])
@torch.no_grad()
def test_trained_it_depends_on_the_action_by_either_branch(branch: str) -> None:
    model, given = made(), inputs()
    for name in ("control_in", "control_out", "merge") if branch == "all" else (branch,):
        perturb(getattr(model, name))
    swayed = (model(**given) - model(**{**given, "action": -3 * given["action"]})).abs().max()
    # The way in alone leads nowhere while the way out is zero, and the other way round: both begin to learn in turn.
    assert (swayed > 1e-4) == (branch in ("merge", "all"))


def test_the_zero_layers_get_gradients() -> None:
    model, given = made(), inputs()
    model(**given).square().sum().backward()
    assert model.merge is not None
    for layer in (*model.control_out, model.merge):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_without_branches_the_action_is_ignored_for_good() -> None:
    torch.manual_seed(0)
    base = config(frames=1, words=0)
    model = ControlledTransformer(base_config=base, action_channels=5, control_layers=0, merge_actions=False).eval()
    perturb(model)
    given = inputs()
    assert torch.equal(model(**given), model(**{**given, "action": -3 * given["action"]}))
    assert torch.equal(model(**given), stock(model, given))


@torch.no_grad()
def test_control_blocks_are_a_copy_of_the_base_and_become_one_again() -> None:
    model = made()
    pairs = list(zip(model.control_blocks, model.base.transformer_blocks, strict=False))
    assert len(pairs) == 2
    for mine, theirs in pairs:
        for name, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value)
            assert mine.state_dict()[name].data_ptr() != value.data_ptr()
    perturb(model.base)
    assert not torch.equal(pairs[0][0].ff.net[2].weight, pairs[0][1].ff.net[2].weight)
    model.copy_base_into_control()
    for mine, theirs in pairs:
        for name, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value)


@torch.no_grad()
def test_a_condition_acts_through_the_time_embedding() -> None:
    model, given = made(), inputs()
    perturb(model)
    zero = model(**given, condition=torch.zeros(BATCH, 16))
    assert torch.equal(zero, model(**given))
    assert not torch.equal(zero, model(**given, condition=torch.ones(BATCH, 16)))


@pytest.mark.parametrize("words", [0, 5])
@pytest.mark.parametrize("rotary", [False, True])
@torch.no_grad()
def test_plain_attention_equals_diffusers_own(words: int, rotary: bool) -> None:
    model, given = made(frames=3, words=words, rotary=rotary), inputs(frames=3, words=words)
    perturb(model)
    extra = {"image_rotary_emb": rotations(3)} if rotary else {}
    before = model(**given, **extra)
    model.set_attn_processor(PlainAttention())
    torch.testing.assert_close(model(**given, **extra), before, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_plain_attention_respects_a_mask() -> None:
    model = made(words=5)
    attention, rng = model.base.transformer_blocks[0].attn1, torch.Generator().manual_seed(0)
    video, text = torch.randn(2, 6, 32, generator=rng), torch.randn(2, 5, 32, generator=rng)
    mask = torch.ones(2, 11, 11, dtype=torch.bool).tril()
    attention.set_processor(PlainAttention())
    seen, words = attention(hidden_states=video, encoder_hidden_states=text, attention_mask=mask)
    video[:, 4:] += 1.0
    again, words_again = attention(hidden_states=video, encoder_hidden_states=text, attention_mask=mask)
    assert torch.equal(words, words_again)
    assert torch.equal(seen[:, :4], again[:, :4])
    assert not torch.equal(seen[:, 4:], again[:, 4:])


def test_plain_attention_in_bfloat16_training_is_that_of_inference_and_has_its_gradients() -> None:
    model = made()
    attention, rng = model.base.transformer_blocks[0].attn1, torch.Generator().manual_seed(0)
    attention.set_processor(PlainAttention())
    video, nothing = torch.randn(2, 30, 32, generator=rng), torch.zeros(2, 0, 32)
    with torch.autocast("cpu", torch.bfloat16):
        trained, _ = attention(hidden_states=video, encoder_hidden_states=nothing)
        with torch.no_grad():
            used, _ = attention(hidden_states=video, encoder_hidden_states=nothing)
    assert torch.equal(trained, used)
    (halved,) = torch.autograd.grad(trained.float().square().sum(), attention.to_k.weight)
    exact, _ = attention(hidden_states=video, encoder_hidden_states=nothing)
    (full,) = torch.autograd.grad(exact.square().sum(), attention.to_k.weight)
    assert (halved - full).norm() < 0.05 * full.norm()
