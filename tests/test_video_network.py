"""The video network: diffusers' CogVideoX exactly until its branches are trained; positions, frames, flags, sizes."""

from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor, nn

from vap_gym.errors import UnknownNameError, VapError
from vap_gym.video.lora import add_lora
from vap_gym.video.network import VideoNetwork
from vap_gym.video.positions import rotary_positions, trained_region
from vap_gym.video.presets import PRESETS, VideoConfig, preset
from vap_gym.world.attention import PlainAttention

LEARNED, V15 = "1.0", "1.5"
HEIGHT, WIDTH, WORDS = 4, 6, 5


def settings(version: str = LEARNED, **changes: Any) -> VideoConfig:
    base: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 8, "out_channels": 4, "time_embed_dim": 16,
        "text_embed_dim": 8, "num_layers": 3, "sample_width": WIDTH, "sample_height": HEIGHT, "sample_frames": 49,
        "max_text_seq_length": WORDS, "use_rotary_positional_embeddings": True,
    }  # fmt: skip
    if version == LEARNED:
        base["use_learned_positional_embeddings"] = True
    else:
        base |= {"patch_size_t": 2, "ofs_embed_dim": 16, "sample_width": 20, "sample_height": 20, "patch_bias": False}
    made = VideoConfig(
        base_config=base, control_layers=1, trajectory_width=8, latent_channels=4, time_stride=4, space_stride=8,
        prediction="v", image_everywhere=False, text="t5",
    )  # fmt: skip
    return made.replace(**changes)


def small(**changes: Any) -> VideoConfig:
    """The shape of `tiny`: a stem, residual, words, intervals; only smaller."""
    base = dict(PRESETS["tiny"].base_config) | {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 16, "out_channels": 16, "num_layers": 2,
        "time_embed_dim": 16, "text_embed_dim": 8, "sample_width": 6, "sample_height": 4,
    }  # fmt: skip
    sizes = {"control_layers": 1, "trajectory_width": 8, "latent_channels": 4, "stem_width": 8, "state_width": 3}
    return PRESETS["tiny"].replace(**{"base_config": base, **sizes, **changes})


def network(config: VideoConfig) -> VideoNetwork:
    torch.manual_seed(0)
    made = VideoNetwork.of(config).eval()
    table = made.transformer.base.patch_embed._buffers.get("pos_embedding")
    if table is not None:  # as a trained one: no sin-cos, and something for the text, too
        table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(5)))
    return made


def perturb(module: nn.Module, scale: float = 0.1) -> None:
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=rng)


def inputs(frames: int, *, height: int = HEIGHT, width: int = WIDTH) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        "noisy": torch.randn(2, frames, 4, height, width, generator=rng),
        "image": torch.randn(2, frames, 4, height, width, generator=rng),
        "timestep": torch.tensor([999.0, 20.0]),
    }


def text() -> Tensor:
    return torch.randn(2, WORDS, 8, generator=torch.Generator().manual_seed(2))


def pictures(frames: int, channels: int = 3, *, height: int = 8 * HEIGHT, width: int = 8 * WIDTH) -> Tensor:
    return torch.rand(2, frames, channels, height, width, generator=torch.Generator().manual_seed(4)) * 2 - 1


def stock(model: VideoNetwork, given: dict[str, Tensor], words: Tensor) -> Tensor:
    """What diffusers' own model makes of the same weights."""
    theirs = CogVideoXTransformer3DModel(**model.settings.base_config).eval()
    state = model.transformer.base.state_dict()
    theirs.load_state_dict({k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k})
    frames = given["noisy"].shape[1] // model.settings.group
    output: Tensor = theirs(
        hidden_states=torch.cat([given["noisy"], given["image"]], dim=2),
        encoder_hidden_states=words,
        timestep=given["timestep"],
        ofs=torch.full((1,), 2.0) if model.settings.group == 2 else None,
        image_rotary_emb=rotary_positions(model.settings.base_config, (HEIGHT, WIDTH), frames),
        return_dict=False,
    )[0]
    return output


# --- equal to CogVideoX ---


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("version", "frames"), [(LEARNED, 13), (V15, 4)])
@torch.no_grad()
def test_untrained_branches_leave_cogvideox_bit_for_bit(version: str, frames: int, lora: bool) -> None:
    model, given = network(settings(version)), inputs(frames)
    perturb(model.transformer.base)
    model.transformer.copy_base_into_control()
    if lora:
        add_lora(model, rank=2)
    clip = pictures(4 * (frames - 1) + 1 if version == LEARNED else 4 * (frames - 2) + 1)
    assert torch.equal(model(**given, prompts=clip, text=text()), stock(model, given, text()))


@pytest.mark.parametrize(("version", "frames"), [(LEARNED, 13), (V15, 4)])
@torch.no_grad()
def test_trained_branches_make_the_prompt_matter(version: str, frames: int) -> None:
    model, given = network(settings(version)), inputs(frames)
    clip = pictures(model.settings.frames(frames))
    plain = model(**given, prompts=clip, text=text())
    perturb(model.transformer.control_in)
    perturb(model.transformer.control_out)
    moved = model(**given, prompts=clip, text=text())
    assert (moved - plain).abs().max() > 1e-3
    assert (model(**given, prompts=-clip, text=text()) - moved).abs().max() > 1e-4


@torch.no_grad()
def test_the_learned_position_table_is_cut_for_a_shorter_clip() -> None:
    """With 7 latent frames diffusers takes computed positions instead; we take the first of those that were learned."""
    model, given = network(settings()), inputs(7)
    embed = model.transformer.base.patch_embed
    per_frame = (HEIGHT // 2) * (WIDTH // 2)
    expected = embed.pos_embedding[:, : WORDS + 7 * per_frame]
    found = embed._get_positional_embeddings(HEIGHT, WIDTH, 25)
    assert torch.equal(found, expected)
    video = torch.cat([given["noisy"], given["image"]], dim=2)
    long = torch.cat([video, torch.zeros(2, 6, 8, HEIGHT, WIDTH)], dim=1)  # 13 frames: the whole table
    assert torch.equal(embed(text(), video), embed(text(), long)[:, : WORDS + 7 * per_frame])
    assert not torch.allclose(model(**given, text=text()), stock(model, given, text()), atol=1e-3)


@torch.no_grad()
def test_more_frames_than_positions_were_learned_for_are_refused() -> None:
    with pytest.raises(VapError, match=r"knows 13 latent frames, got 15\. Give clips of at most 49 frames"):
        network(settings())(**inputs(15), text=text())


# --- frames of their own ---


@pytest.mark.parametrize(("version", "frames"), [(LEARNED, 5), (V15, 4)])
@torch.no_grad()
def test_equal_noise_levels_of_all_frames_are_one_of_the_clip(version: str, frames: int) -> None:
    model, given = network(settings(version)), inputs(frames)
    perturb(model)
    level = given["timestep"]
    each = level[:, None].expand(2, frames // model.settings.group)
    once = model(**given, text=text())
    again = model(**given | {"timestep": each}, text=text(), text_timestep=level)
    torch.testing.assert_close(again, once, rtol=1e-4, atol=1e-4)
    other = torch.cat([torch.zeros(2, 1), each[:, 1:]], dim=1)
    assert (model(**given | {"timestep": other}, text=text(), text_timestep=level) - once).abs().max() > 1e-3


@torch.no_grad()
def test_a_frames_noise_level_modulates_its_own_tokens() -> None:
    """Without attention nothing of one frame's level may reach another frame."""
    model, given = network(settings()), inputs(5)
    perturb(model)
    for block in (*model.transformer.base.transformer_blocks, *model.transformer.control_blocks):
        block.attn1.to_out[0].weight.zero_()
    levels = torch.full((2, 5), 500.0)
    before = model(**given | {"timestep": levels}, text=text())
    levels[:, 3] = 100.0
    changed = (model(**given | {"timestep": levels}, text=text()) - before).abs().amax(dim=(0, 2, 3, 4))
    assert changed[3] > 1e-3
    assert torch.equal(changed[[0, 1, 2, 4]], torch.zeros(4))


@pytest.mark.parametrize(("version", "frames", "states"), [(LEARNED, 4, 13), (V15, 4, 13), (V15, 4, 9)])
@torch.no_grad()
def test_raw_states_act_on_frames(version: str, frames: int, states: int) -> None:
    model, given = network(settings(version, condition="raw_state", state_width=3)), inputs(frames)
    assert model.trajectory is None
    assert model.transformer.merge is None
    assert len(model.transformer.control_blocks) == 0
    seen = torch.rand(2, states, 3, generator=torch.Generator().manual_seed(6))
    assert torch.allclose(model(**given, states=seen, text=text()), model(**given, text=text()), atol=1e-5)
    perturb(model)
    assert not torch.allclose(model(**given, states=seen, text=text()), model(**given, text=text()), atol=1e-3)
    with pytest.raises(VapError, match="states must be of"):
        model(**given, states=seen[:, :4], text=text())


@pytest.mark.parametrize("grid", [(30, 45), (20, 45), (30, 20), (37, 41), (60, 90)])
def test_positions_of_other_sizes_are_stretched_as_the_pipeline_does(grid: tuple[int, int]) -> None:
    from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import get_resize_crop_region_for_grid

    assert trained_region(grid, (30, 45)) == get_resize_crop_region_for_grid(grid, 45, 30)


@torch.no_grad()
def test_positions_choose_frames_of_a_longer_clip() -> None:
    for version in (LEARNED, V15):
        base = settings(version).base_config
        whole, part = rotary_positions(base, (HEIGHT, WIDTH), 6), rotary_positions(base, (HEIGHT, WIDTH), [5, 2])
        assert whole is not None
        assert part is not None
        for a, b in zip(whole, part, strict=True):
            frames = a.unflatten(0, (6, -1))
            assert torch.equal(b.unflatten(0, (2, -1)), frames[[5, 2]])


# --- flags ---


@pytest.mark.parametrize("condition", ["skeleton", "mesh", "depth", "raw_state", "text", "none"])
@torch.no_grad()
def test_every_condition_makes_a_model_that_runs(condition: str) -> None:
    model = network(small(condition=condition))
    perturb(model)
    given = inputs(3, height=8, width=12)
    extra: dict[str, Any] = {"text": model.vocabulary.encode(["lift the red cube", ""])} if condition == "text" else {}
    if condition in ("skeleton", "mesh", "depth"):
        extra["prompts"] = pictures(3, 1 if condition == "depth" else 3, height=32, width=48)
    if condition == "raw_state":
        extra["states"] = torch.ones(2, 3, 3)
    output = model(**given, **extra)
    assert output.shape == given["noisy"].shape
    if extra:
        assert (model(**given) - output).abs().max() > 1e-4


@pytest.mark.parametrize(("layers", "merged"), [(0, True), (1, False), (0, False)])
@torch.no_grad()
def test_branches_can_be_left_out(layers: int, merged: bool) -> None:
    model = network(small(control_layers=layers, merge_actions=merged))
    perturb(model)
    given, clip = inputs(3, height=8, width=12), pictures(3, height=32, width=48)
    assert (model.transformer.merge is not None) == merged
    assert len(model.transformer.control_blocks) == layers
    difference = (model(**given, prompts=clip) - model(**given, prompts=-clip)).abs().max()
    assert bool(difference > 1e-4) == bool(layers or merged)


@torch.no_grad()
def test_untrained_tiny_predicts_the_first_frame_and_intervals_change_nothing_yet() -> None:
    model, given = network(small()), inputs(3, height=8, width=12)
    assert torch.equal(model(**given, prompts=pictures(3, height=32, width=48)), given["image"])
    perturb(model)
    one, three = (model(**given, interval=torch.full((2,), n)) for n in (1.0, 3.0))
    assert torch.equal(one, model(**given))
    assert not torch.equal(one, three)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, given = network(small()), inputs(3, height=8, width=12)
    perturb(model)
    gradients = []
    for switched in (False, True):
        model.zero_grad()
        if switched:
            model.enable_gradient_checkpointing()
            assert model.transformer.gradient_checkpointing
        model.train()(**given, prompts=pictures(3, height=32, width=48)).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    missing = {name for name, gradient in gradients[0].items() if gradient is None}
    assert missing <= {"transformer.base.patch_embed.text_proj.bias"} or not missing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_attention_is_plain_where_the_settings_say_so() -> None:
    for plain in (False, True):
        block = network(small(plain_attention=plain)).transformer.base.transformer_blocks[0]
        assert isinstance(block.attn1.processor, PlainAttention) == plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition": "skeletton"}, r"No condition named 'skeletton'. Did you mean 'skeleton'"),
        ({"prediction": "eps"}, "No prediction named 'eps'"),
        ({"control_layers": 9}, r"control_layers must be 0 to the base's 2 layers, got 9\."),
        ({"time_stride": 2}, "time_stride and space_stride must be 1 and 4"),
        ({"image_everywhere": False}, "residual=True adds the output to the first frame's latents"),
        ({"condition": "text", "text": "none"}, "needs words"),
        ({"text": "words", "words": ()}, "needs a vocabulary"),
        ({"controls": 3}, "No setting of a video model named 'controls'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(VapError, match=message):
        small().replace(**changes)


def test_inputs_that_do_not_fit_are_refused() -> None:
    model, given = network(small()), inputs(3, height=8, width=12)
    for extra, message in [
        ({"states": torch.ones(2, 3, 3)}, "condition is 'skeleton'"),
        ({"prompts": pictures(3, 1, height=32, width=48)}, "must have 3 channels, got 1"),
        ({"prompts": pictures(2, height=32, width=48)}, "as many latent frames as the clip has, 3, got 2"),
    ]:
        with pytest.raises(VapError, match=message):
            model(**given, **extra)
    with pytest.raises(VapError, match=r"groups of 2 \(patch_size_t\), got 3 frames"):
        network(settings(V15))(**inputs(3), text=text())
    with pytest.raises(VapError, match=r"1 \+ 4·k frames, got 24. Try 25"):
        settings().latent_frames(24)
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny'"):
        preset("tinny")


def test_a_text_to_video_base_is_refused() -> None:
    base = dict(settings().base_config) | {"in_channels": 4}
    with pytest.raises(VapError, match="must take 8 channels"):
        VideoNetwork.of(settings().replace(base_config=base))


# --- sizes ---


@pytest.mark.parametrize(
    ("name", "base", "control", "total"),
    [
        ("tiny", 4_755_328, 1_484_672, 7_812_088),
        ("small", 318_114_304, 94_526_976, 430_419_480),
        ("cogvideox-5b", 5_570_479_680, 1_850_766_848, 7_582_886_352),
        ("cogvideox-1.5-5b", 5_571_594_880, 1_850_766_848, 7_584_198_160),
    ],
)
def test_the_presets_have_the_stated_sizes(name: str, base: int, control: int, total: int) -> None:
    with torch.device("meta"):
        model = VideoNetwork.of(PRESETS[name])

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(model.transformer.base) == base  # CogVideoX-5B has 5.57 billion
    assert count(model.transformer.control_blocks) == control
    assert count(model) == total
    if name.startswith("cogvideox"):
        linears = count(model.transformer.control_in) + count(model.transformer.control_out)
        assert 1.98e9 < control + linears < 2.02e9  # the ControlNet of 14 blocks: 2.0 billion
        table = model.transformer.base.patch_embed._buffers.get("pos_embedding")
        assert (table is None) == (name == "cogvideox-1.5-5b")
        if table is not None:
            assert table.shape == (1, 226 + 13 * 1350, 3072)
            cut = model.transformer.base.patch_embed._get_positional_embeddings(60, 90, 25)
            assert cut.shape == (1, 226 + 7 * 1350, 3072)
