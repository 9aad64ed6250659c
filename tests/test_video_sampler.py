"""Sampling: CogVideoX's pipeline frame for frame at both versions, and our flow of few evaluations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from vap_gym.errors import CheckpointError, UnknownNameError, VapError
from vap_gym.video.model import VideoModel
from vap_gym.video.network import VideoNetwork
from vap_gym.video.presets import PRESETS
from vap_gym.video.sampler import Given, flow_times, padded, sample_x0, slot_noise
from vap_gym.video.text import CachedText, T5Text
from vap_gym.world.codec import FrameCodec

HEIGHT, WIDTH, LENGTH, WORDS = 32, 48, 6, ["lift", "the", "red", "cube", "push"]


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=LENGTH
    )


def stock_pipeline(version: str, scheduler: str, *, inverted: bool = False) -> CogVideoXImageToVideoPipeline:
    """A whole random pipeline, of a few thousand weights."""
    torch.manual_seed(0)
    base: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 8, "out_channels": 4, "time_embed_dim": 16,
        "text_embed_dim": 8, "num_layers": 3, "sample_width": WIDTH // 8, "sample_height": HEIGHT // 8,
        "sample_frames": 9, "max_text_seq_length": LENGTH, "use_rotary_positional_embeddings": True,
    }  # fmt: skip
    if version == "1.0":
        base["use_learned_positional_embeddings"] = True
    else:
        base |= {"patch_size_t": 2, "ofs_embed_dim": 16, "sample_width": 30, "sample_height": 30, "patch_bias": False}
    transformer = CogVideoXTransformer3DModel(**base)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        sample_height=HEIGHT, sample_width=WIDTH, scaling_factor=0.7, invert_scale_latents=inverted,
    )  # fmt: skip
    levels = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0,
        "timestep_spacing": "trailing",
    }  # fmt: skip
    kind = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}[scheduler]
    t5 = T5EncoderModel(T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    made = CogVideoXImageToVideoPipeline(
        tokenizer=tokenizer(), text_encoder=t5.eval(), vae=vae.eval(), transformer=transformer.eval(),
        scheduler=kind(**levels),
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def image(batch: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, HEIGHT, WIDTH, 3), np.uint8))


@pytest.mark.parametrize(
    ("version", "scheduler", "guidance", "dynamic", "inverted"),
    [
        ("1.0", "dpm", 6.0, False, False),
        ("1.0", "ddim", 6.0, True, True),
        ("1.0", "ddim", 1.0, False, False),
        ("1.5", "dpm", 6.0, True, True),
        ("1.5", "ddim", 1.0, False, False),
    ],
)
def test_frames_are_those_of_diffusers_own_pipeline(
    tmp_path: Path, version: str, scheduler: str, guidance: float, dynamic: bool, inverted: bool
) -> None:
    pipeline = stock_pipeline(version, scheduler, inverted=inverted)
    pipeline.save_pretrained(tmp_path / "stock")
    frames = 9
    first = image()
    # The pipeline takes pictures, and gives them in [0, 1].
    theirs = pipeline(
        image=[pipeline.video_processor.numpy_to_pil(first.numpy() / 255.0)[0]],
        prompt=["lift the red cube"], height=HEIGHT, width=WIDTH, num_frames=frames, num_inference_steps=3,
        guidance_scale=guidance, use_dynamic_cfg=dynamic, generator=torch.Generator().manual_seed(7),
        max_sequence_length=LENGTH, output_type="np",
    ).frames  # fmt: skip
    model = VideoModel.from_pretrained(tmp_path / "stock", text_encoder=True)
    prompts = torch.randint(0, 256, (1, frames, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    ours = model.generate(
        first, prompts, text="lift the red cube", steps=3, guidance=guidance, dynamic_guidance=dynamic, seed=7
    )
    assert ours.shape == (1, frames, HEIGHT, WIDTH, 3)
    assert int(ours.float().std()) > 0
    np.testing.assert_array_equal(ours.numpy(), (np.asarray(theirs) * 255).round().astype(np.uint8))


def test_a_batch_is_the_pipelines_batch_and_noise_can_be_given(tmp_path: Path) -> None:
    pipeline = stock_pipeline("1.0", "ddim")
    pipeline.save_pretrained(tmp_path / "stock")
    model = VideoModel.from_pretrained(tmp_path / "stock")
    first, noise = image(2), torch.randn(2, 3, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(1))
    text, negative = torch.randn(2, 2, LENGTH, 8, generator=torch.Generator().manual_seed(2))
    theirs = pipeline(
        image=first.permute(0, 3, 1, 2) / 255.0, prompt_embeds=text, negative_prompt_embeds=negative,
        height=HEIGHT, width=WIDTH, num_frames=9, num_inference_steps=2, guidance_scale=3.0, latents=noise,
        generator=torch.Generator().manual_seed(7), output_type="np",
    ).frames  # fmt: skip
    given: dict[str, Any] = {"text": text, "negative_text": negative, "noise": noise, "seed": 7, "guidance": 3.0}
    ours = model.generate(first, frames=9, steps=2, **given)
    np.testing.assert_array_equal(ours.numpy(), (np.asarray(theirs) * 255).round().astype(np.uint8))


def test_stored_embeddings_stand_in_for_the_text_encoder(tmp_path: Path) -> None:
    pipeline = stock_pipeline("1.0", "dpm")
    source = T5Text(pipeline.tokenizer, pipeline.text_encoder, length=LENGTH)
    CachedText.of(source, ["lift the red cube", "push the cube"]).save(tmp_path / "words.safetensors")
    read = CachedText.from_file(tmp_path / "words.safetensors")
    alone = torch.cat(
        [source.encode([text]) for text in ("push the cube", "")]
    )  # of two at once some processors round otherwise
    assert torch.equal(read.encode(["push the cube", ""]), alone)
    assert not torch.equal(read.encode(["push the cube"]), source.encode(["lift the red cube"]))
    with pytest.raises(UnknownNameError, match="Did you mean 'push the cube'"):
        read.encode(["push a cube"])
    (tmp_path / "none.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"is no file of text embeddings"):
        CachedText.from_file(tmp_path / "none.safetensors")


def test_groups_of_frames_are_filled_up() -> None:
    assert [padded(n, 1) for n in (1, 7)] == [1, 7]
    assert [padded(n, 2) for n in (1, 2, 7)] == [2, 2, 8]


# --- the flow ---


def small_model(**changes: Any) -> VideoModel:
    base = dict(PRESETS["tiny"].base_config) | {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 16, "out_channels": 16, "num_layers": 2,
        "time_embed_dim": 16, "text_embed_dim": 8, "sample_width": 6, "sample_height": 4,
    }  # fmt: skip
    sizes = {"control_layers": 1, "trajectory_width": 8, "latent_channels": 4, "stem_width": 8, "state_width": 3}
    settings = PRESETS["tiny"].replace(
        **{"base_config": base, "frame_size_px": (WIDTH, HEIGHT), "clip_frames": 4, **sizes, **changes}
    )
    torch.manual_seed(0)
    network = VideoNetwork.of(settings)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    codec = FrameCodec(latent_channels=4, encoder_widths=(8, 16), decoder_widths=(16, 8))
    return VideoModel(network, codec, dtype=torch.float32)


def clip(batch: int = 2, frames: int = 4) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (batch, frames, HEIGHT, WIDTH, 3), np.uint8))


def test_the_flow_ends_at_a_clean_level_and_begins_at_noise() -> None:
    assert flow_times(1) == (1.0,)
    assert flow_times(2) == (1.0, 0.5)
    assert flow_times(4) == (1.0, 0.75, 0.5, 0.25)
    with pytest.raises(VapError, match="1 to 64 evaluations, got 0"):
        flow_times(0)


def test_a_network_that_knows_the_answer_is_believed() -> None:
    """An untrained residual network says "as the first frame": so must the flow, after any number of evaluations."""
    model = small_model()
    for parameter in model.network.stem.head.parameters():
        parameter.data.zero_()
    first = model.encode(image(2)[:, None])[:, 0]
    for evaluations in (1, 3):
        found = sample_x0(
            model.network, first, 4, Given(), noise=slot_noise(torch.tensor([1, 2]), (4, *first.shape[1:])),
            evaluations=evaluations,
        )  # fmt: skip
        torch.testing.assert_close(found, first[:, None].expand_as(found))


def test_a_clips_frames_do_not_depend_on_who_is_beside_it() -> None:
    model = small_model()
    both = model.generate(image(2), clip(), seed=torch.tensor([5, 9]), steps=2)
    alone = model.generate(image(2)[1:], clip()[1:], seed=torch.tensor([9]), steps=2)
    assert (both[1:].int() - alone.int()).abs().max() <= 1
    assert torch.equal(both, model.generate(image(2), clip(), seed=torch.tensor([5, 9]), steps=2))
    assert not torch.equal(both, model.generate(image(2), clip(), seed=torch.tensor([6, 9]), steps=2))


@pytest.mark.parametrize("condition", ["skeleton", "depth", "raw_state", "text", "none"])
def test_every_condition_imagines_clips(condition: str) -> None:
    model = small_model(condition=condition)
    given: dict[str, Any] = {
        "skeleton": {"prompts": clip()}, "depth": {"prompts": clip()}, "raw_state": {"states": torch.rand(2, 4, 3)},
        "text": {"text": ["lift the red cube", "push"]}, "none": {},
    }[condition]  # fmt: skip
    found = model.generate(image(2), **given)
    assert found.shape == (2, 4, HEIGHT, WIDTH, 3)
    assert torch.equal(found, model.generate(image(2), **given))
    if given:
        assert not torch.equal(found, model.generate(image(2), frames=4))
        assert not torch.equal(found, model.generate(image(2), **given, guidance=3.0))


@torch.no_grad()
def test_guidance_pushes_away_from_states_of_zero_as_training_drops_them() -> None:
    network = small_model(condition="raw_state").network
    for i, parameter in enumerate(network.parameters()):
        parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    shape = (1, 4, 4, HEIGHT // 4, WIDTH // 4)
    first, noise = (torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    first, states = first[:, 0], torch.rand(1, 4, 3)

    def made(given: Given, guidance: float = 1.0) -> Tensor:
        return sample_x0(network, first, 4, given, noise=lambda i: noise, evaluations=1, guidance=guidance)

    told, zeros = made(Given(states=states)), made(Given(states=torch.zeros_like(states)))
    assert (told - zeros).abs().max() > 1e-4
    guided = made(Given(states=states), guidance=3.0)
    torch.testing.assert_close(guided[:, 1:], (zeros + 3.0 * (told - zeros))[:, 1:])


def test_requests_that_cannot_be_met_are_refused() -> None:
    model = small_model()
    for given, message in [
        ({"image": image(2)[:, :30]}, "multiples of 16"),
        ({"image": image(1), "prompts": clip()}, "of 1 clips"),
        ({"image": image(2), "prompts": clip(), "frames": 5}, "as long as each other"),
        ({"image": image(2), "text": ["lift"]}, "one instruction or 2 of them"),
        ({"image": image(2), "noise": torch.zeros(2, 4, 4, 8, 12)}, "from its seed"),
        ({"image": image(2), "prompts": clip()[:, :, :16]}, "as large as image"),
    ]:
        with pytest.raises(VapError, match=message):
            model.generate(**given)
    with pytest.raises(CheckpointError, match="1, 4, 4 of the network, 1, 4, 8 of the codec"):
        VideoModel(model.network, FrameCodec())
    with pytest.raises(VapError, match="takes no scheduler"):
        VideoModel(model.network, model.codec, scheduler=CogVideoXDDIMScheduler())
