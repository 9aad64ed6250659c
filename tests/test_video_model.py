"""Files of the video model: what is saved is what is loaded, every weight is loaded or named; LoRA as peft keeps it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vap_gym.errors import CheckpointError, UnknownNameError, VapError
from vap_gym.video.loading import STEM, weight_files
from vap_gym.video.lora import add_lora, drop_lora, has_lora, load_lora, merge_lora, save_lora, train_branches
from vap_gym.video.model import VideoModel
from vap_gym.video.network import VideoNetwork
from vap_gym.video.presets import PRESETS
from vap_gym.video.text import CachedText
from vap_gym.world.codec import FrameCodec
from vap_gym.world.model import WorldModel

FRAMES, HEIGHT, WIDTH = 5, 32, 48
LARGE = f"{STEM}.safetensors"
SHARDED = f"{STEM}.safetensors.index.json"


def perturb(module: nn.Module) -> None:
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=rng)


def base_config() -> dict[str, Any]:
    return {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 8, "out_channels": 4, "time_embed_dim": 16,
        "text_embed_dim": 8, "num_layers": 3, "sample_width": WIDTH // 8, "sample_height": HEIGHT // 8,
        "sample_frames": 9, "max_text_seq_length": 6, "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True,
    }  # fmt: skip


def tiny_model(**changes: Any) -> VideoModel:
    base = dict(PRESETS["tiny"].base_config) | {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 16, "out_channels": 16, "num_layers": 2,
        "time_embed_dim": 16, "text_embed_dim": 8, "sample_width": 6, "sample_height": 4,
    }  # fmt: skip
    sizes = {"control_layers": 1, "trajectory_width": 8, "latent_channels": 4, "stem_width": 8, "clip_frames": FRAMES}
    settings = PRESETS["tiny"].replace(**{"base_config": base, "frame_size_px": (WIDTH, HEIGHT), **sizes, **changes})
    torch.manual_seed(0)
    network = VideoNetwork.of(settings)
    perturb(network)
    codec = FrameCodec(latent_channels=4, encoder_widths=(8, 16), decoder_widths=(16, 8))
    return VideoModel(network, codec, dtype=torch.float32)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it: an image-to-video pipeline, its transformer in several shards."""
    folder = tmp_path_factory.mktemp("stock")
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(**base_config())
    perturb(transformer)
    transformer.save_pretrained(folder / "transformer", max_shard_size="60KB")
    AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2, scaling_factor=0.7
    ).save_pretrained(folder / "vae")
    CogVideoXDDIMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXImageToVideoPipeline"}))
    return folder


@pytest.fixture
def copied(stock: Path, tmp_path: Path) -> Path:
    shutil.copytree(stock, tmp_path / "copy")
    return tmp_path / "copy"


def weights(model: VideoModel) -> dict[str, Tensor]:
    return {f"network.{k}": v for k, v in model.network.state_dict().items()} | {
        f"codec.{k}": v for k, v in model.codec.state_dict().items()
    }


def assert_same_weights(one: VideoModel, other: VideoModel) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


# --- folders of ours ---


@pytest.mark.parametrize("shards", ["5GB", "40KB"])
def test_a_saved_model_is_loaded_exactly(tmp_path: Path, shards: str) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model", shard_size=shards, licence="Apache-2.0")
    assert (tmp_path / "model" / "network" / SHARDED).exists() == (shards == "40KB")
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["licence"] == "Apache-2.0"
    again = VideoModel.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert again.settings == model.settings
    assert_same_weights(model, again)


def test_saving_again_in_one_file_leaves_no_old_shards(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, shard_size="40KB")
    model.save_pretrained(tmp_path, dtype=torch.float16)
    assert weight_files(tmp_path / "network") == {LARGE: None}
    assert sorted(p.name for p in (tmp_path / "network").iterdir()) == ["config.json", LARGE]
    again = VideoModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert next(again.network.parameters()).dtype == torch.float32
    for name, value in weights(model).items():
        torch.testing.assert_close(weights(again)[name], value, rtol=1e-3, atol=1e-3)


def test_a_changed_file_is_told(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "codec" / LARGE
    tensors = load_file(file)
    tensors["encoder.1.weight"] += 1
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"codec/.* must have the sha256"):
        VideoModel.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"must hold 'codec/.*safetensors', but does not"):
        VideoModel.from_pretrained(tmp_path)


def test_models_know_the_other_family_by_name(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds a VideoModel.*vap_gym\.video\.model\.VideoModel"):
        WorldModel.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "WorldModel"}')
    with pytest.raises(CheckpointError, match=r"holds a WorldModel\. Load it with vap_gym\.world\.model\.WorldModel"):
        VideoModel.from_pretrained(tmp_path)


# --- folders of CogVideoX ---


def test_stock_weights_become_the_base_and_the_control_blocks_their_copy(stock: Path) -> None:
    assert len(weight_files(stock / "transformer")) > 2
    model = VideoModel.from_pretrained(stock, condition="depth")
    theirs = CogVideoXTransformer3DModel.from_pretrained(stock / "transformer").state_dict()
    base = model.network.transformer.base.state_dict()
    assert base.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(base[name], value.to(base[name].dtype)), name  # diffusers computes its table in float64
    assert len(model.network.transformer.control_blocks) == 1  # a third of three
    copy = model.network.transformer.control_blocks[0].state_dict()
    for name, value in copy.items():
        assert torch.equal(value, theirs[f"transformer_blocks.0.{name}"])
    assert model.settings.prompt_channels == 1
    assert model.settings.frame_size_px == (WIDTH, HEIGHT)


def test_stock_weights_under_our_branches_are_saved_and_loaded_with_lora_and_words(stock: Path, tmp_path: Path) -> None:
    model = VideoModel.from_pretrained(stock, control_layers=2)
    add_lora(model.network, rank=2, seed=1)
    perturb(model.network)
    model.text = CachedText({"": torch.zeros(6, 8), "push": torch.ones(6, 8)})
    model.save_pretrained(tmp_path / "ours", shard_size="60KB")
    again = VideoModel.from_pretrained(tmp_path / "ours")
    assert_same_weights(model, again)
    assert isinstance(again.scheduler, CogVideoXDDIMScheduler)
    assert dict(again.scheduler.config) == dict(model.scheduler.config)
    assert torch.equal(again.text.encode(["push"]), torch.ones(1, 6, 8))
    low = VideoModel.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    assert {p.dtype for p in low.network.parameters()} == {torch.bfloat16}


def renamed_weight(folder: Path) -> None:
    file = next(f for f in sorted((folder / "vae").glob("*.safetensors")))
    tensors = load_file(file)
    tensors["encoder.conv_inn.conv.weight"] = tensors.pop("encoder.conv_in.conv.weight")
    save_file(tensors, file)


def reshaped_weight(folder: Path) -> None:
    file = folder / "vae" / LARGE
    tensors = load_file(file)
    tensors["encoder.conv_in.conv.bias"] = torch.zeros(3)
    save_file(tensors, file)


def shard_removed(folder: Path) -> None:
    sorted((folder / "transformer").glob("*-of-*.safetensors"))[1].unlink()


def shard_cut_short(folder: Path) -> None:
    file = sorted((folder / "transformer").glob("*-of-*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-10])


def index_names_what_no_shard_has(folder: Path) -> None:
    index = folder / "transformer" / SHARDED
    content = json.loads(index.read_text())
    content["weight_map"]["transformer_blocks.9.ff.weight"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))


def index_leads_outside(folder: Path) -> None:
    index = folder / "transformer" / SHARDED
    content = json.loads(index.read_text())
    content["weight_map"]["proj_out.bias"] = "../vae/diffusion_pytorch_model.safetensors"
    index.write_text(json.dumps(content))


def other_size(folder: Path) -> None:
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_layers": 4}))


def unknown_setting(folder: Path) -> None:
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_new_attention": True}))


def text_to_video(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')


def other_scheduler(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "EulerDiscreteScheduler"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (renamed_weight, r"missing encoder\.conv_in\.conv\.weight; unexpected encoder\.conv_inn\.conv\.weight"),
        (reshaped_weight, r"of another shape encoder\.conv_in\.conv\.bias \(3,\) for \(8,\)"),
        (shard_removed, "not there: diffusion_pytorch_model-00002-of"),
        (shard_cut_short, "no whole safetensors file"),
        (index_names_what_no_shard_has, r"missing transformer_blocks\.9\.ff\.weight"),
        (index_leads_outside, r"not there: \.\./vae"),
        (other_size, r"missing transformer_blocks\.3\..* and \d+ more"),
        (unknown_setting, "does not know here: use_new_attention"),
        (text_to_video, "holds a CogVideoXPipeline. CogVideoX's image-to-video weights are in"),
        (other_scheduler, "got EulerDiscreteScheduler"),
        (lambda folder: (folder / "model_index.json").unlink(), r"must hold model_index\.json"),
    ],
)
def test_every_damage_is_told(copied: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copied)
    with pytest.raises(CheckpointError, match=message):
        VideoModel.from_pretrained(copied)


def test_weights_that_are_not_here_are_told_without_a_network() -> None:
    for name in ("cogvideox-5b", "nobody/has-this"):
        with pytest.raises(CheckpointError, match=r"is not in this computer's hub cache.*or give a folder"):
            VideoModel.from_pretrained(name, local_files_only=True)
    with pytest.raises(UnknownNameError, match="Did you mean 'cogvideox-5b'"):
        VideoModel.from_pretrained("cogvideox-5")


def test_instructions_need_something_that_reads_them(stock: Path) -> None:
    model = VideoModel.from_pretrained(stock)
    with pytest.raises(VapError, match="has nothing to read instructions with, got 'push'"):
        model.generate(torch.zeros(1, HEIGHT, WIDTH, 3, dtype=torch.uint8), text="push", frames=9)
    with pytest.raises(CheckpointError, match="must hold 'tokenizer'"):
        VideoModel.from_pretrained(stock, text_encoder=True)


# --- LoRA ---


def output(network: VideoNetwork) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    noisy, image = torch.randn(2, 1, 2, 4, 8, 12, generator=rng).unbind(0)
    with torch.no_grad():
        result: Tensor = network.eval()(noisy, image, torch.tensor([300.0]))
    return result


def with_lora() -> VideoNetwork:
    network = tiny_model().network
    add_lora(network, rank=3, alpha=6, seed=1)
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return network


def test_lora_sits_on_the_main_branchs_attention_only_and_starts_at_zero() -> None:
    network = tiny_model().network
    before = output(network)
    add_lora(network, rank=3)
    assert torch.equal(output(network), before)
    placed = {name.split(".lora_")[0] for name, _ in network.named_parameters() if ".lora_" in name}
    assert placed == {
        f"transformer.base.transformer_blocks.{i}.attn1.{layer}"
        for i in range(2)
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    }
    with pytest.raises(VapError, match="attached to this network already"):
        add_lora(network, rank=3)
    trainable = train_branches(network)
    assert not [name for name in trainable if name.startswith("transformer.base.") and ".lora_" not in name]
    assert {"transformer.merge.weight", "transformer.control_in.weight", "trajectory.out.weight"} <= set(trainable)


def test_lora_merged_gives_the_same_and_dropped_gives_the_base() -> None:
    network = with_lora()
    found, names = output(network), set(tiny_model().network.state_dict())
    assert not torch.allclose(found, output(tiny_model().network), atol=1e-4)
    merge_lora(network)
    assert not has_lora(network)
    assert set(network.state_dict()) == names
    torch.testing.assert_close(output(network), found, rtol=1e-4, atol=1e-5)
    dropped = with_lora()
    drop_lora(dropped)
    assert torch.equal(output(dropped), output(tiny_model().network))
    add_lora(dropped, rank=2)  # as new


def test_lora_is_peft_s_own_and_reads_peft_s_own(tmp_path: Path) -> None:
    from peft import PeftModel

    network = with_lora()
    save_lora(network, tmp_path / "lora")
    assert sorted(p.name for p in (tmp_path / "lora").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    theirs = PeftModel.from_pretrained(tiny_model().network, tmp_path / "lora")
    assert torch.equal(output(theirs.base_model.model), output(network))
    theirs.save_pretrained(tmp_path / "peft")
    again = tiny_model().network
    load_lora(again, tmp_path / "peft")
    assert torch.equal(output(again), output(network))


def test_lora_of_another_model_is_refused_by_name_and_leaves_nothing(tmp_path: Path) -> None:
    save_lora(with_lora(), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    save_file({name: value for name, value in tensors.items() if name != first}, file)
    network = tiny_model().network
    with pytest.raises(CheckpointError, match="missing.*lora_A"):
        load_lora(network, tmp_path)
    assert not has_lora(network)
    file.unlink()
    with pytest.raises(CheckpointError, match="must hold adapter_model.safetensors"):
        load_lora(network, tmp_path)
    with pytest.raises(VapError, match="no LoRA on this network"):
        save_lora(network, tmp_path)
