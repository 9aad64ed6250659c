"""StreamWorld: a causal video model as a World: explicit state, one frame or a chunk of four a step, and envs on it."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

import vap_gym  # noqa: F401  (registers the ids)
from vap_gym.errors import ActionError, CheckpointError, VapError
from vap_gym.loading import load_world
from vap_gym.train.video_loss import Inputs
from vap_gym.train.video_score import _imagined
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.clips import pictures_of
from vap_gym.video.model import VideoModel
from vap_gym.video.network import VideoNetwork
from vap_gym.video.presets import VideoConfig
from vap_gym.video.world import StreamWorld
from vap_gym.world.codec import FrameCodec

WIDTH, HEIGHT = 48, 32
OF_ENVS = (144, 96)


def made(chunk: int = 1, *, size: tuple[int, int] = (WIDTH, HEIGHT), **settings: Any) -> StreamWorld:
    """A small world with random weights; `chunk` 4 is one on CogVideoX's codec."""
    torch.manual_seed(0)
    told = {key: settings.pop(key) for key in ("condition", "state_width") if key in settings}
    space = 4 if chunk == 1 else 8
    base = {
        "num_attention_heads": 1,
        "attention_head_dim": 16,
        "in_channels": 8,
        "out_channels": 4,
        "time_embed_dim": 16,
        "text_embed_dim": 8,
        "num_layers": 1,
        "sample_width": size[0] // space,
        "sample_height": size[1] // space,
        "sample_frames": 4 * chunk + 1,
        "temporal_compression_ratio": chunk,
        "patch_size": 6 if size == OF_ENVS else 2,
        "max_text_seq_length": 0,
        "use_rotary_positional_embeddings": True,
    }
    config = VideoConfig(
        base_config=base,
        control_layers=1,
        action_channels=4,
        trajectory_width=4,
        latent_channels=4,
        time_stride=chunk,
        space_stride=space,
        frame_size_px=size,
        **told,
    )
    network = CausalVideoNetwork(**config.to_dict())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    codec: Any
    if chunk == 1:
        codec = FrameCodec(
            latent_channels=4, encoder_widths=(4, 4), decoder_widths=(4, 4), encoder_blocks=1, decoder_blocks=1
        )
    else:
        codec = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2,
            scaling_factor=0.7,
        )  # fmt: skip
    return StreamWorld(network, codec, dtype=torch.float32, **settings)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=rng)


@pytest.mark.parametrize("chunk", [1, 4])
def test_steps_one_by_one_are_steps_at_once_bit_for_bit(chunk: int) -> None:
    world = made(chunk)
    state = world.start(pictures(2), pictures(2, seed=1), torch.tensor([1, 2]))
    prompts = pictures(2, 3 * chunk, seed=2)
    at_once, frames = world.predict(state, prompts, evaluations=2)
    assert frames is not None
    assert frames.shape == prompts.shape
    singly = state
    for k in range(3):
        singly, one = world.predict(singly, prompts[:, k * chunk : (k + 1) * chunk], evaluations=2)
        assert torch.equal(one, frames[:, k * chunk : (k + 1) * chunk])
    assert all(torch.equal(at_once[key], singly[key]) for key in at_once.keys())  # noqa: SIM118
    assert set(world.state_keys) == set(state.keys())


def test_the_seed_makes_the_noise_and_the_prompt_matters() -> None:
    world = made()
    first, told = pictures(1).expand(3, -1, -1, -1), pictures(1, seed=1).expand(3, -1, -1, -1)
    state = world.start(first, told, torch.tensor([5, 5, 6]))
    prompts = pictures(1, 2, seed=2).repeat(3, 1, 1, 1, 1)
    after, _ = world.predict(state, prompts, decode=False)
    assert torch.equal(after["latent"][0], after["latent"][1])
    assert not torch.equal(after["latent"][0], after["latent"][2])
    other, _ = world.predict(state, 255 - prompts, decode=False)
    assert (after["latent"] - other["latent"]).abs().max() > 1e-3


def test_a_slot_is_reset_by_index_and_a_moment_branched_by_expand() -> None:
    world = made()
    state = world.start(pictures(3), pictures(3, seed=1), torch.tensor([1, 2, 3]))
    state, _ = world.predict(state, pictures(3, 2, seed=2))
    fresh = world.start(pictures(1, seed=7), pictures(1, seed=8), torch.tensor([9]))
    mixed = state.clone()
    mixed[torch.tensor([1])] = fresh
    prompts = pictures(3, 2, seed=3)
    after, _ = world.predict(mixed, prompts)
    untouched, _ = world.predict(state, prompts)
    torch.testing.assert_close(after["latent"][[0, 2]], untouched["latent"][[0, 2]])
    alone, _ = world.predict(fresh, prompts[1:2])
    torch.testing.assert_close(after["latent"][1:2], alone["latent"], rtol=1e-4, atol=1e-4)
    branch = fresh.expand(2).clone()
    both, _ = world.predict(branch, prompts[:1].expand(2, -1, -1, -1, -1))
    assert torch.equal(both["latent"][0], both["latent"][1])


@pytest.mark.parametrize("chunk", [1, 4])
def test_what_is_saved_is_loaded_and_what_is_damaged_is_refused(chunk: int, tmp_path: Path) -> None:
    world = made(chunk, evaluations=2, window=2, control="each", snr_shift_scale=3.0)
    world.save_pretrained(tmp_path, dtype=torch.float32)
    loaded = StreamWorld.from_pretrained(tmp_path, dtype=torch.float32)
    stream = loaded.stream
    assert (loaded.evaluations, stream.window, stream.control, stream.snr_shift_scale) == (2, 2, "each", 3.0)
    states = [w.start(pictures(1), pictures(1, seed=1), torch.tensor([1])) for w in (world, loaded)]
    frames = [w.predict(s, pictures(1, chunk, seed=2))[1] for w, s in zip((world, loaded), states, strict=True)]
    assert torch.equal(*frames)  # type: ignore[arg-type]
    weights = tmp_path / "network" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="cut short or was changed"):
        StreamWorld.from_pretrained(tmp_path)


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_state_goes_on_in_another_precision(chunk: int) -> None:
    def in_precision(weights: torch.dtype, sums: torch.dtype) -> StreamWorld:
        plain = made(chunk)
        return StreamWorld(plain.network.to(weights), plain.codec, dtype=sums)

    precisions = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)]
    worlds = [in_precision(*one) for one in precisions]
    states = []
    for world in worlds:
        state = world.start(pictures(1), pictures(1, seed=1), torch.tensor([1]))
        states.append(world.predict(state, pictures(1, chunk, seed=2))[0])
    for world, mine in zip(worlds, states, strict=True):
        own, _ = world.predict(mine, pictures(1, chunk, seed=3))
        assert {k: v.dtype for k, v in own.items()} == {k: v.dtype for k, v in mine.items()}
        for other in states:
            after, _ = world.predict(other, pictures(1, chunk, seed=3))
            assert {k: v.dtype for k, v in after.items()} == {k: v.dtype for k, v in own.items()}
            torch.testing.assert_close(after["latent"], own["latent"], atol=0.1, rtol=0)


def test_codec_and_network_must_fit() -> None:
    single, fourfold = made(1), made(4)
    with pytest.raises(CheckpointError, match="4, 8, 4 of the network, 1, 4, 4 of the codec"):
        StreamWorld(fourfold.network, single.codec)
    with pytest.raises(VapError, match="4·k"):
        state = fourfold.start(pictures(1), pictures(1), torch.tensor([1]))
        fourfold.predict(state, pictures(1, 3))


def test_an_env_tells_raw_states_to_a_model_that_wants_them(tmp_path: Path) -> None:
    made(size=OF_ENVS, condition="raw_state", state_width=10).save_pretrained(tmp_path)
    env = gym.make("VAP-DROID-v0", world_model=tmp_path, judge=None, trust_samples=2, views=["second"])
    inner: Any = env.unwrapped
    frames = []
    for sign in (1, -1):
        env.reset(seed=0)
        frames.append(env.step(np.full(7, 0.5 * sign, np.float32))[0]["pixels"]["second"])
    assert not np.array_equal(*frames)  # other actions, other states, another frame
    motion = inner.stage.imagination.follow(inner.save(), torch.full((1, 1, 7), 0.5))
    assert motion.states.shape == (1, 1, 10)
    torch.testing.assert_close(motion.states[..., :3], motion.cartesian[..., :3])
    torch.testing.assert_close(motion.states[..., 9], motion.robot.gripper)
    env.close()
    world = StreamWorld.from_pretrained(tmp_path)
    blank = torch.zeros(1, *OF_ENVS[::-1], 3, dtype=torch.uint8)
    with pytest.raises(VapError, match=r"must be told states \(1, 1, 10\), got None"):
        world.start(blank, blank, torch.tensor([0]))
    state = world.start(blank, blank, torch.tensor([0]), states=torch.zeros(1, 10))
    with pytest.raises(VapError, match=r"must be told states \(1, 2, 10\), got None"):
        world.predict(state, blank[:, None].expand(-1, 2, -1, -1, -1))


def test_a_trained_model_is_streamed_from_its_own_folder(tmp_path: Path) -> None:
    stream = made(size=OF_ENVS)
    VideoModel(stream.network, stream.codec, dtype=torch.float32).save_pretrained(tmp_path / "causal")
    loaded = load_world(str(tmp_path / "causal"), "cpu", torch.float32)
    assert isinstance(loaded, StreamWorld)
    for name, value in stream.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value), name
    whole = VideoNetwork(**stream.network.settings.to_dict())
    VideoModel(whole, stream.codec).save_pretrained(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="holds a model of whole clips"):
        StreamWorld.from_pretrained(tmp_path / "whole")


@torch.no_grad()
def test_trainings_score_a_causal_model_as_it_is_used() -> None:
    world = made()
    frames, told = pictures(2), pictures(2, 3, seed=1)
    state, latents = world.start(frames, told[:, 0], torch.tensor([0, 1])), []
    for k in (1, 2):
        state, _ = world.predict(state, told[:, k : k + 1], decode=False)
        latents.append(state["latent"])
    clean = world.encode(frames)[:, None].expand(-1, 3, -1, -1, -1)
    given = Inputs(
        latents=clean, image=clean, weights=torch.ones(2, 3, *clean.shape[-2:]),
        conditions={"prompts": pictures_of(told, torch.float32)},
    )  # fmt: skip
    scored = _imagined(world.network, given, [0, 1], 1, 1.0)
    torch.testing.assert_close(scored[:, 1:], torch.stack(latents, 1), rtol=1e-3, atol=1e-4)


def test_an_env_on_single_frames_steps(tmp_path: Path) -> None:
    made(size=OF_ENVS).save_pretrained(tmp_path)
    env = gym.make("VAP-DROID-v0", world_model=tmp_path, judge=None)
    env.reset(seed=0)
    assert env.action_space.shape == (7,)
    observation, reward, *_ = env.step(np.zeros(7, np.float32))
    assert observation.shape == (96, 144, 3)
    assert reward == 0.0
    env.close()


def test_an_env_on_a_fourfold_codec_takes_chunks_and_fakes_no_single_step(tmp_path: Path) -> None:
    made(4, size=OF_ENVS).save_pretrained(tmp_path)
    env = gym.make("VAP-DROID-v0", world_model=tmp_path)
    assert env.action_space.shape == (4, 7)
    env.action_space.seed(0)
    _, begun = env.reset(seed=0)
    inner: Any = env.unwrapped
    moment = inner.save()
    actions = np.stack([env.action_space.sample() for _ in range(2)])
    singly = [env.step(action) for action in actions]
    assert int(inner.state["step"][0]) == 8
    moved = singly[0][4]["proprioception"]["cartesian_position"] - begun["proprioception"]["cartesian_position"]
    assert np.abs(moved[:3]).max() > 1e-3
    inner.load(moment)
    observations, rewards, _, _, infos = inner.step_chunk(actions)
    for k, (observation, reward, _, _, info) in enumerate(singly):
        assert np.array_equal(observation, observations[k])
        assert reward == pytest.approx(rewards[k])
        assert np.array_equal(info["proprioception"]["joint_position"], infos[k]["proprioception"]["joint_position"])
    with pytest.raises(ActionError, match=r"shape \(4, 7\)"):
        env.step(actions[0, 0])
    env.close()
    with pytest.raises(VapError, match="trust_samples and views need"):
        gym.make("VAP-DROID-v0", world_model=tmp_path, trust_samples=2)


def test_a_vector_env_counts_chunks_as_steps(tmp_path: Path) -> None:
    made(4, size=OF_ENVS).save_pretrained(tmp_path)
    envs = gym.make_vec("VAP-DROID-v0", num_envs=2, world_model=tmp_path, judge=None, max_episode_steps=2)
    envs.reset(seed=0)
    assert envs.action_space.shape == (2, 4, 7)
    truncated = [envs.step(np.zeros((2, 4, 7), np.float32))[3].tolist() for _ in range(2)]
    assert truncated == [[False, False], [True, True]]
    envs.close()
