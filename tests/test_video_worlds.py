"""One door for world models of every kind; whole clips as a world; weights of whole clips streamed untrained."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, CogVideoXTransformer3DModel
from torch import Tensor, nn

import vap_gym
from vap_gym.errors import CheckpointError, UnknownNameError, VapError
from vap_gym.train.video_loss import v_scheduler
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.clip_world import ClipWorld
from vap_gym.video.lora import add_lora
from vap_gym.video.model import VideoModel
from vap_gym.video.network import VideoNetwork
from vap_gym.video.presets import VideoConfig
from vap_gym.video.text import CachedText
from vap_gym.video.world import StreamWorld
from vap_gym.world.codec import FrameCodec
from vap_gym.world.model import WorldModel

ID, SIZE = "VAP-DROID-v0", (144, 96)


def perturb(module: nn.Module) -> None:
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)


def of_clips(size: tuple[int, int] = SIZE, **changes: Any) -> VideoModel:
    """A small model of clips of five frames; of frames in single latents."""
    base = {
        "num_attention_heads": 1, "attention_head_dim": 16, "in_channels": 8, "out_channels": 4, "time_embed_dim": 16,
        "text_embed_dim": 8, "num_layers": 1, "sample_width": size[0] // 4, "sample_height": size[1] // 4,
        "sample_frames": 5, "temporal_compression_ratio": 1, "patch_size": 6 if size == SIZE else 2,
        "max_text_seq_length": 0, "use_rotary_positional_embeddings": True,
    }  # fmt: skip
    sizes = {"control_layers": 1, "action_channels": 4, "trajectory_width": 4, "latent_channels": 4, "clip_frames": 5}
    torch.manual_seed(0)
    network = VideoNetwork.of(VideoConfig(base_config=base, frame_size_px=size, **sizes, **changes))
    perturb(network)
    codec = FrameCodec(
        latent_channels=4, encoder_widths=(4, 4), decoder_widths=(4, 4), encoder_blocks=1, decoder_blocks=1
    )
    scheduler = v_scheduler() if changes.get("prediction") == "v" else None
    return VideoModel(network, codec, scheduler=scheduler, dtype=torch.float32)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CogVideoX's own layout, small, for the frames of envs; with the embedding of the empty instruction beside."""
    folder = tmp_path_factory.mktemp("stock")
    torch.manual_seed(0)
    CogVideoXTransformer3DModel(
        num_attention_heads=1, attention_head_dim=16, in_channels=8, out_channels=4, time_embed_dim=16,
        text_embed_dim=8, num_layers=3, sample_width=18, sample_height=12, sample_frames=49, max_text_seq_length=3,
        use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2, scaling_factor=0.7
    ).save_pretrained(folder / "vae")
    CogVideoXDPMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", snr_shift_scale=1.0
    ).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXImageToVideoPipeline"}))
    CachedText({"": torch.randn(3, 8)}).save(folder / "words.safetensors")
    return folder


def words(stock: Path) -> str:
    return str(stock / "words.safetensors")


def pictures(*shape: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, *size[::-1], 3), dtype=torch.uint8, generator=rng)


def apart(one: Tensor, other: Tensor) -> int:
    """The largest difference in grey levels."""
    return int((one.int() - other.int()).abs().max())


# --- one door ---


def test_one_door_gives_what_is_there(tmp_path: Path, stock: Path) -> None:
    assert isinstance(vap_gym.load_world_model("tiny"), WorldModel)
    model = of_clips()
    model.save_pretrained(tmp_path / "clips")
    assert isinstance(vap_gym.load_world_model(tmp_path / "clips"), ClipWorld)
    causal = CausalVideoNetwork.with_weights_of(model.network)
    VideoModel(causal, model.codec, dtype=torch.float32).save_pretrained(tmp_path / "causal")
    world = vap_gym.load_world_model(tmp_path / "causal", evaluations=3)
    assert isinstance(world, StreamWorld)
    assert world.evaluations == 3
    world.save_pretrained(tmp_path / "stream")
    assert isinstance(vap_gym.load_world_model(tmp_path / "stream"), StreamWorld)
    theirs = vap_gym.load_world_model(stock, text_cache=words(stock), condition="depth")
    assert isinstance(theirs, ClipWorld)
    assert (theirs.chunk, theirs.prompt, theirs.frame_size_px) == (24, "depth", SIZE)


def test_names_of_the_family_are_known_and_what_has_no_weights_says_so() -> None:
    for name in ("cogvideox-5b", "cogvideox-1.5-5b", "nobody/has-this"):
        with pytest.raises(CheckpointError, match=r"is not in this computer's hub cache.*or give a folder"):
            vap_gym.load_world_model(name, local_files_only=True)
    with pytest.raises(CheckpointError, match="is not in this computer's hub cache"):
        gym.make(ID, world_model="cogvideox-5b", world_model_kwargs={"local_files_only": True})
    untrained = r"'small' is a recipe without weights.*vap-gym train video small_video --out runs/small\)"
    for load in (vap_gym.load_world_model, VideoModel.from_pretrained):
        with pytest.raises(CheckpointError, match=untrained):
            load("small")
    with pytest.raises(CheckpointError, match=r"holds a WorldModel\. .*'tiny' is a recipe .*tiny_video_base"):
        VideoModel.from_pretrained("tiny")
    known = r"Did you mean 'cogvideox-5b'\? Known: cogvideox-1\.5-5b, cogvideox-5b, small, tiny"
    with pytest.raises(UnknownNameError, match=f"No world model named 'cogvideox-5'. {known}"):
        vap_gym.load_world_model("cogvideox-5")


def test_world_models_own_loader_names_the_call_that_works(tmp_path: Path, stock: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"vap_gym\.load_world_model\('cogvideox-5b'\) loads any"):
        WorldModel.from_pretrained("cogvideox-5b")
    of_clips().save_pretrained(tmp_path)
    for folder in (tmp_path, stock):
        with pytest.raises(CheckpointError, match=rf"Load it with vap_gym\.load_world_model\('{folder}'\)"):
            WorldModel.from_pretrained(folder)


def test_options_that_a_kind_does_not_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VapError, match="'tiny' is a WorldModel, which takes no causal, text"):
        vap_gym.load_world_model("tiny", causal="untrained", text="push")
    of_clips().save_pretrained(tmp_path)
    with pytest.raises(VapError, match="is a VideoModel, which takes no condition"):
        vap_gym.load_world_model(tmp_path, condition="mesh")
    with pytest.raises(UnknownNameError, match="No option of a world model named 'casual'. Did you mean 'causal'"):
        gym.make(ID, world_model="tiny", world_model_kwargs={"casual": "untrained"})
    with pytest.raises(VapError, match="world_model_kwargs are for world models that are named, got a ClipWorld"):
        gym.make(ID, world_model=ClipWorld(of_clips()), world_model_kwargs={"causal": "untrained"}, judge=None)


# --- weights of whole clips, streamed ---


def test_weights_of_whole_clips_are_streamed_where_that_is_asked_for(tmp_path: Path, stock: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds a model of whole clips.*untrained: causal='untrained'"):
        StreamWorld.from_pretrained(stock, text_cache=words(stock))
    with pytest.warns(UserWarning, match="never learned to see the past only"):
        world = StreamWorld.from_pretrained(stock, causal="untrained", text_cache=words(stock))
    theirs = VideoModel.from_pretrained(stock).network.transformer.base.state_dict()
    mine = world.network.transformer.base.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert (world.chunk, world.causal) == (4, "untrained")
    world.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="never learned to see the past only"):
        assert StreamWorld.from_pretrained(tmp_path).causal == "untrained"
    with pytest.raises(UnknownNameError, match="Did you mean 'untrained'"):
        StreamWorld.from_pretrained(stock, causal="untraind", text_cache=words(stock))


def test_lora_goes_with_the_weights_that_are_streamed() -> None:
    model = of_clips()
    add_lora(model.network, rank=2)
    perturb(model.network)
    weights = model.network.state_dict()
    name = "transformer.base.transformer_blocks.0.attn1.to_q"
    added = weights[f"{name}.lora_B.default.weight"] @ weights[f"{name}.lora_A.default.weight"]
    wanted = weights[f"{name}.base_layer.weight"] + added  # alpha is rank
    with pytest.warns(UserWarning, match="never learned"):
        world = StreamWorld.of_video_model(model, causal="untrained")
    torch.testing.assert_close(world.network.state_dict()[f"{name}.weight"], wanted)


def test_an_env_streams_cogvideox_by_chunks_of_four(stock: Path) -> None:
    options = {"causal": "untrained", "text_cache": words(stock)}
    with pytest.warns(UserWarning, match="never learned to see the past only"):
        env = gym.make(ID, world_model=stock, world_model_kwargs=options, judge=None)
    assert env.action_space.shape == (4, 7)
    _, info = env.reset(seed=0)
    assert info["prompt"].any()
    frame, *_ = env.step(np.zeros((4, 7), np.float32))
    assert frame.shape == (96, 144, 3)
    several = gym.make_vec(ID, num_envs=2, world_model=stock, world_model_kwargs=options, judge=None)
    several.reset(seed=0)
    assert several.step(np.zeros((2, 4, 7), np.float32))[0].shape == (2, 96, 144, 3)


# --- whole clips, a clip a step ---


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_clips_one_by_one_are_clips_at_once_and_those_of_the_model(prediction: str) -> None:
    size = (48, 32)
    model = of_clips(size, prediction=prediction)
    world = ClipWorld(model, evaluations=2)
    assert world.chunk == 4
    first, told, prompts = pictures(2, size=size), pictures(2, size=size, seed=1), pictures(2, 8, size=size, seed=2)
    state = world.start(first, told, torch.tensor([5, 6]))
    at_once, frames = world.predict(state, prompts)
    assert frames is not None
    half, one = world.predict(state, prompts[:, :4])
    whole, other = world.predict(half, prompts[:, 4:])
    assert one is not None
    assert other is not None
    assert torch.equal(torch.cat([one, other], 1), frames)
    assert set(world.state_keys) == set(state.keys())
    assert all(torch.equal(at_once[key], whole[key]) for key in world.state_keys)
    clip = torch.cat([told[:1, None], prompts[:1, :4]], 1)
    seed: Any = torch.tensor([5]) if prediction == "x0" else 5
    assert apart(model.generate(first[:1], clip, seed=seed, steps=2)[:, 1:], one[:1]) <= 1
    _, alone = world.predict(state[1:], prompts[1:, :4])
    assert alone is not None
    assert apart(alone, one[1:]) <= 1  # whoever is beside it
    assert apart(one[:1], one[1:]) > 20
    assert torch.equal(at_once["picture"], frames[:, -1])
    assert world.decode(at_once["latent"]).shape == at_once["picture"].shape
    with pytest.raises(VapError, match=r"must have shape \(2, 4·k, H, W, 3\)"):
        world.predict(state, prompts[:, :3])


def test_the_next_clip_has_noise_of_its_own() -> None:
    size = (48, 32)
    world = ClipWorld(of_clips(size), evaluations=1)
    state = world.start(pictures(1, size=size), pictures(1, size=size, seed=1), torch.tensor([5]))
    later = state.clone()
    later["step"] += 1
    prompts = pictures(1, 4, size=size, seed=2)
    assert not torch.equal(world.predict(state, prompts)[0]["latent"], world.predict(later, prompts)[0]["latent"])


@pytest.mark.parametrize("condition", ["skeleton", "raw_state"])
def test_an_env_of_whole_clips_takes_a_clip_of_actions_a_step(tmp_path: Path, condition: str) -> None:
    of_clips(condition=condition, state_width=10).save_pretrained(tmp_path)
    env = gym.make(ID, world_model=tmp_path)
    assert env.action_space.shape == (4, 7)
    env.reset(seed=0)
    inner: Any = env.unwrapped
    moment = inner.save()
    frames = [env.step(np.full((4, 7), value, np.float32))[0] for value in (0.4, -0.4)]
    inner.load(moment)
    told = np.stack([np.full((4, 7), value, np.float32) for value in (0.4, -0.4)])
    seen, rewards, *_ = inner.step_chunk(told)
    np.testing.assert_array_equal(np.stack(frames), seen)
    assert rewards.shape == (2,)
    inner.load(moment)
    assert not np.array_equal(env.step(np.full((4, 7), -0.4, np.float32))[0], frames[0])  # actions matter


def test_an_env_of_cogvideox_imagines_the_papers_25_frames_at_once(stock: Path) -> None:
    options = {"text_cache": words(stock), "evaluations": 1}
    env = gym.make(ID, world_model=stock, world_model_kwargs=options, judge=None)
    assert env.action_space.shape == (24, 7)
    env.reset(seed=0)
    frame, *_ = env.step(np.zeros((24, 7), np.float32))
    assert frame.shape == (96, 144, 3)
    assert int(env.unwrapped.state["step"][0]) == 24  # type: ignore[attr-defined]
