"""The causal video model: the bidirectional weights, no look ahead, and streams that equal whole clips."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.network import VideoNetwork
from vap_gym.video.passes import causal_mask, teacher_mask
from vap_gym.video.presets import VideoConfig
from vap_gym.video.stream import Frame, Stream

HEIGHT, WIDTH, FRAMES, BATCH = 8, 16, 6, 2


def settings(*, rotary: bool = True, words: int = 0, stem: int = 0, **changes: Any) -> VideoConfig:
    base = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 2 * stem or 8,
        "out_channels": 2 * stem or 4,
        "time_embed_dim": 16,
        "text_embed_dim": 8,
        "num_layers": 3,
        "sample_width": WIDTH // (2 if stem else 1),
        "sample_height": HEIGHT // (2 if stem else 1),
        "sample_frames": FRAMES,
        "temporal_compression_ratio": 1,
        "patch_size": 2,
        "max_text_seq_length": words,
        "use_rotary_positional_embeddings": rotary,
    }
    return VideoConfig(
        **{
            "base_config": base,
            "control_layers": 2,
            "action_channels": 4,
            "trajectory_width": 4,
            "latent_channels": 4,
            "frame_size_px": (4 * WIDTH, 4 * HEIGHT),
            "stem_width": stem,
            "text": "t5" if words else "none",
        }
        | changes
    )


def made(kind: type[VideoNetwork] = CausalVideoNetwork, **changes: Any) -> Any:
    """A network whose zero-initialised layers are not zero."""
    torch.manual_seed(0)
    network = kind.of(settings(**changes)) if kind is VideoNetwork else kind(**settings(**changes).to_dict())
    rng = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=rng)
    return network.eval()


def clip(network: VideoNetwork, frames: int = FRAMES, *, seed: int = 2) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shape = (BATCH, frames, 4, HEIGHT, WIDTH)
    noisy = torch.randn(shape, generator=rng)
    base = network.settings
    given = {
        "noisy": noisy,
        "image": network.spread(noisy[:, 0], frames),
        "timestep": 1000 * torch.rand(BATCH, frames, generator=rng),
        "prompts": torch.rand(BATCH, base.frames(frames), 3, 4 * HEIGHT, 4 * WIDTH, generator=rng) * 2 - 1,
    }
    given["timestep"][:, 0] = 0.0
    if base.text == "t5":
        given["text"] = torch.randn(BATCH, base.base_config["max_text_seq_length"], 8, generator=rng)
    return given


@pytest.mark.parametrize("changes", [{}, {"rotary": False}, {"stem": 8, "residual": True}], ids=str)
@torch.no_grad()
def test_with_nothing_hidden_it_is_the_bidirectional_model(changes: dict[str, Any]) -> None:
    network, both_ways = made(**changes), made(VideoNetwork, **changes)
    both_ways.load_state_dict(network.state_dict())  # the same names and shapes
    network = CausalVideoNetwork.with_weights_of(both_ways)
    given = clip(network)
    everything = torch.ones(FRAMES, FRAMES, dtype=torch.bool)
    sees_all = network(**given, sees=everything, control="each")
    torch.testing.assert_close(sees_all, both_ways(**given), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(sees_all, network(**given, control="each"), atol=1e-3)


@pytest.mark.parametrize("control", ["once", "each"])
@torch.no_grad()
def test_a_frame_depends_on_no_later_one(control: str) -> None:
    network = made(words=5)
    given = clip(network)
    before = network(**given, control=control)
    given["noisy"][:, 3:] += 1.0
    given["prompts"][:, 3:] *= -1.0
    given["timestep"][:, 3:] = 7.0
    after = network(**given, control=control)
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().amax((0, 2, 3, 4)).min() > 1e-4


@torch.no_grad()
def test_what_control_adds_does_not_depend_on_noise_when_it_works_once() -> None:
    network = made()
    given = clip(network)
    for name in ("control_in", "control_out"):  # a control branch that says much
        for parameter in getattr(network.transformer, name).parameters():
            parameter.data *= 10.0
    told = {"sees": causal_mask(FRAMES)}
    once, each = (network(**given, **told, control=control) for control in ("once", "each"))
    assert not torch.allclose(once, each, atol=1e-3)


def test_masks_show_the_anchor_the_window_and_nothing_later() -> None:
    sees = causal_mask(6, window=2)
    assert sees[5].tolist() == [True, False, False, True, True, True]
    assert sees[0].tolist() == [True, *[False] * 5]
    doubled = teacher_mask(4)  # clean 0 1 2 3, noisy 1 2 3
    assert doubled[5].tolist() == [True, True, False, False, False, True, False]
    assert not doubled[:4, 4:].any()


@torch.no_grad()
def test_a_noisy_frame_under_the_teachers_mask_is_that_of_a_clip_with_a_clean_past() -> None:
    network = made()
    given = clip(network)
    action = network.encode_prompts(given.pop("prompts"))
    clean = torch.randn(given["noisy"].shape, generator=torch.Generator().manual_seed(5))
    clean[:, 0] = given["noisy"][:, 0]
    places = [*range(FRAMES), *range(1, FRAMES)]
    doubled = network(
        torch.cat([clean, given["noisy"][:, 1:]], 1),
        network.spread(clean[:, 0], 2 * FRAMES - 1),
        torch.cat([torch.zeros(BATCH, FRAMES), given["timestep"][:, 1:]], 1),
        action=action[:, places],
        sees=teacher_mask(FRAMES),
        positions=places,
    )[:, FRAMES:]
    for f in (1, 3, FRAMES - 1):
        noisy = torch.cat([clean[:, :f], given["noisy"][:, f : f + 1]], 1)
        level = torch.cat([torch.zeros(BATCH, f), given["timestep"][:, f : f + 1]], 1)
        alone = network(noisy, network.spread(clean[:, 0], f + 1), level, action=action[:, : f + 1])[:, f]
        torch.testing.assert_close(doubled[:, f - 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("control", ["once", "each"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rotary": False},
        {"words": 5},
        {"words": 5, "rotary": False},
        {"control_layers": 0},
        {"merge_actions": False},
        {"stem": 8, "residual": True, "intervals": True},
        {"image_everywhere": False},
    ],
    ids=str,
)
@torch.no_grad()
def test_frame_by_frame_equals_the_whole_clip(changes: dict[str, Any], control: str) -> None:
    """Frame by frame, each at a noise level of its own, beside kept keys of what stands in the clip."""
    network = made(**changes)
    given = clip(network)
    stream = Stream(network, control=control)
    clean = given["noisy"]
    memory = stream.begin(clean[:, 0], given["prompts"][:, :1], text=given.get("text"))
    for f in range(1, FRAMES):
        whole = network(
            torch.cat([clean[:, :f], 2.0 * clean[:, f : f + 1]], 1),
            given["image"][:, : f + 1],
            torch.tensor([[*[0.0] * f, 400.0]]).expand(BATCH, -1),
            prompts=given["prompts"][:, : f + 1],
            text=given.get("text"),
            control=control,
        )[:, f]
        frame = Frame(stream, memory, given["prompts"][:, f : f + 1])
        torch.testing.assert_close(frame.predict(2.0 * clean[:, f], 400.0), whole, rtol=1e-5, atol=1e-5)
        memory = frame.finished(clean[:, f])


@torch.no_grad()
def test_the_position_in_time_is_seen() -> None:
    network = made()
    given = clip(network)
    action = network.encode_prompts(given.pop("prompts"))
    swapped = [0, 2, 1, 3, 4, 5]
    usual, other = (network(**given, action=action, positions=p) for p in (None, swapped))
    assert (usual - other)[:, 3:].abs().max() > 1e-4


@torch.no_grad()
def test_activations_computed_again_give_the_same_gradient() -> None:
    network = made(words=5)
    given = clip(network)
    weight = network.transformer.base.transformer_blocks[0].attn1.to_q.weight
    grads = []
    for again in (False, True):
        network.transformer.gradient_checkpointing = again
        with torch.enable_grad():
            network.zero_grad()
            network(**given).square().mean().backward()
        grads.append(weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_a_model_of_grouped_frames_is_refused() -> None:
    base = {**settings().base_config, "patch_size_t": 2}
    network = made(base_config=base)
    with pytest.raises(VapError, match="patch_size_t=2"):
        Stream(network)
    with pytest.raises(VapError, match="Did you mean 'once'"):
        Stream(made(), control="onc")
