"""A streamed model sees in an env what it saw in training: its own kind of prompt, its drop line, its empty words."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import vap_gym  # noqa: F401  (registers the ids)
from vap_gym.cards import load_robot
from vap_gym.errors import CardError, CheckpointError, VapError
from vap_gym.imagine import Imagination
from vap_gym.prompts.kinds import Prompter
from vap_gym.rig import Rig
from vap_gym.train.video_recipe import VideoRecipe
from vap_gym.twin import Twin
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.model import VideoModel
from vap_gym.video.presets import VideoConfig
from vap_gym.video.text import CachedText
from vap_gym.video.world import StreamWorld
from vap_gym.world.codec import FrameCodec

ID, SIZE = "VAP-DROID-v0", (144, 96)


def settings(**changes: Any) -> VideoConfig:
    """A network of one layer for the frames of envs."""
    base = {
        "num_attention_heads": 1, "attention_head_dim": 16, "in_channels": 8, "out_channels": 4, "time_embed_dim": 16,
        "text_embed_dim": 8, "num_layers": 1, "sample_width": 36, "sample_height": 24, "sample_frames": 5,
        "temporal_compression_ratio": 1, "patch_size": 6, "max_text_seq_length": 3,
        "use_rotary_positional_embeddings": True,
    }  # fmt: skip
    sizes = {"control_layers": 1, "action_channels": 4, "trajectory_width": 4, "latent_channels": 4}
    return VideoConfig(base_config=base, frame_size_px=SIZE, **sizes, **changes)


def model(**changes: Any) -> VideoModel:
    torch.manual_seed(0)
    network = CausalVideoNetwork(**settings(**changes).to_dict())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    codec = FrameCodec(
        latent_channels=4, encoder_widths=(4, 4), decoder_widths=(4, 4), encoder_blocks=1, decoder_blocks=1
    )
    return VideoModel(network, codec, dtype=torch.float32)


def saved(folder: Path, **changes: Any) -> Path:
    model(**changes).save_pretrained(folder)
    return folder


def drawn_at_start(env: Any, kind: str, **cue: bool) -> np.ndarray:
    """The prompt of a kind for the env's present state."""
    stage = env.unwrapped.stage
    robot = stage.imagination.robot_state(env.unwrapped.state)
    prompter = Prompter(stage.rig.robot, kind, frame_size_px=SIZE, **cue)
    picture: np.ndarray = prompter.draw(robot.q, robot.gripper, stage.imagination.camera(env.unwrapped.state))[
        0
    ].numpy()
    return picture


@pytest.mark.parametrize("kind", ["skeleton", "mesh", "depth"])
def test_envs_draw_what_the_model_was_trained_on_and_refuse_another_kind(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path, condition=kind)
    env = gym.make(ID, world_model=folder, judge=None)
    _, info = env.reset(seed=0)
    np.testing.assert_array_equal(info["prompt"], drawn_at_start(env, kind))
    assert info["prompt"].any()
    env.close()
    several = gym.make_vec(ID, num_envs=2, world_model=folder, judge=None)
    np.testing.assert_array_equal(several.reset(seed=0)[1]["prompt"][0], info["prompt"])
    several.close()
    other = "mesh" if kind == "skeleton" else "skeleton"
    wrong = rf"trained on prompts of the kind '{kind}', got prompt='{other}'\. Leave prompt out, or give '{kind}'"
    with pytest.raises(VapError, match=wrong):
        gym.make(ID, world_model=folder, judge=None, prompt=other)
    with pytest.raises(VapError, match=wrong):
        gym.make_vec(ID, num_envs=2, world_model=folder, judge=None, prompt=other)
    without = gym.make(ID, world_model=folder, judge=None, prompt="none")  # as prompt dropout
    assert not without.reset(seed=0)[1]["prompt"].any()


@pytest.mark.parametrize("condition", ["raw_state", "none"])
def test_models_that_see_no_pictures_get_none(tmp_path: Path, condition: str) -> None:
    folder = saved(tmp_path, condition=condition, state_width=10)
    env = gym.make(ID, world_model=folder, judge=None)
    assert not env.reset(seed=0)[1]["prompt"].any()
    with pytest.raises(VapError, match=r"trained on no pictures of the robot, got prompt='skeleton'\. .* give 'none'"):
        gym.make(ID, world_model=folder, judge=None, prompt="skeleton")


def test_the_drop_line_is_stored_with_the_model_and_folders_that_are_older_have_it(tmp_path: Path) -> None:
    for cue in (True, False):
        folder = saved(tmp_path / str(cue), height_cue=cue)
        env = gym.make(ID, world_model=folder, judge=None)
        _, info = env.reset(seed=0)
        np.testing.assert_array_equal(info["prompt"], drawn_at_start(env, "skeleton", height_cue=cue))
        assert (info["prompt"] != drawn_at_start(env, "skeleton", height_cue=not cue)).any()
        loaded = VideoModel.from_pretrained(folder, dtype=torch.float32)
        stream = StreamWorld(loaded.network, loaded.codec)
        stream.save_pretrained(tmp_path / f"stream {cue}")
        assert StreamWorld.from_pretrained(tmp_path / f"stream {cue}").height_cue is cue
    config = tmp_path / "True" / "network" / "config.json"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if "height_cue" not in line))
    assert VideoModel.from_pretrained(tmp_path / "True", dtype=torch.float32).settings.height_cue


def test_recipes_tell_the_model_of_their_drop_line() -> None:
    given: dict[str, Any] = {"data": ["data/droid"], "codec": "codec", "steps": 1, "batch_size": 1}
    assert VideoRecipe(**given).settings.height_cue
    assert not VideoRecipe(**given, height_cue=False).settings.height_cue
    with pytest.raises(CardError, match="height_cue is a key of the recipe itself"):
        VideoRecipe(**given, model={"height_cue": False})


def test_imagination_refuses_a_rig_that_draws_something_else() -> None:
    loaded = model(height_cue=False)
    world, robot = StreamWorld(loaded.network, loaded.codec), load_robot("panda_robotiq")
    shared: dict[str, Any] = {"action_mode": "cartesian_velocity", "frame_size_px": SIZE}
    with pytest.raises(VapError, match="skeletons without their drop line, got a rig with height_cue=True"):
        Imagination(rig=Rig(robot, **shared), world=world)
    with pytest.raises(VapError, match="got prompt='depth'"):
        Imagination(rig=Rig(robot, **shared, prompt="depth"), world=world)
    Imagination(rig=Rig(robot, **shared, height_cue=False), world=world)


def test_twins_are_prompted_alike(tmp_path: Path) -> None:
    pytest.importorskip("pybullet", reason="the oracle is PyBullet")
    twin = Twin(ID, world_model=saved(tmp_path, condition="depth"), judge=None)
    begun = twin.reset(seed=0)
    assert begun.imagined_info["prompt"].any()
    np.testing.assert_array_equal(begun.imagined_info["prompt"], begun.oracle_info["prompt"])
    twin.close()


# --- words ---


def spoken() -> CachedText:
    rng = torch.Generator().manual_seed(1)
    return CachedText({text: torch.randn(3, 8, generator=rng) for text in ("", "push")})


def test_a_stream_without_an_instruction_hears_the_empty_one_as_in_training(tmp_path: Path) -> None:
    told = model(text="t5")
    told.text = spoken()
    told.save_pretrained(tmp_path / "model")
    world = StreamWorld.from_pretrained(tmp_path / "model", dtype=torch.float32)
    empty = spoken().encode([""])
    frames = torch.zeros(1, *SIZE[::-1], 3, dtype=torch.uint8)
    state = world.start(frames, frames, torch.tensor([0]))
    first = world.encode(frames)
    black = torch.full((1, 1, 3, *SIZE[::-1]), -1.0)
    with torch.no_grad():
        heard, zeros = (world.stream.begin(first, black, text=text) for text in (empty, torch.zeros_like(empty)))
    torch.testing.assert_close(state["sink_values_0"], heard["sink_values_0"])
    assert not torch.allclose(state["sink_values_0"], zeros["sink_values_0"], atol=1e-2)

    world.save_pretrained(tmp_path / "stream")
    again = StreamWorld.from_pretrained(tmp_path / "stream").text
    assert isinstance(again, torch.Tensor)
    assert torch.equal(again, empty)
    other = StreamWorld.from_pretrained(tmp_path / "model", text="push").text
    assert isinstance(other, torch.Tensor)
    assert torch.equal(other, spoken().encode(["push"]))
    with pytest.raises(VapError, match=r"No cached instruction named 'lift'.*the empty one.*need T5"):
        StreamWorld.from_pretrained(tmp_path / "model", text="lift")
    (tmp_path / "stream" / "text.safetensors").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"text\.safetensors' must have the sha256"):
        StreamWorld.from_pretrained(tmp_path / "stream")


def test_a_stream_that_cannot_embed_even_the_empty_instruction_is_refused(tmp_path: Path) -> None:
    told = model(text="t5")
    told.save_pretrained(tmp_path)
    with pytest.raises(VapError, match=r"nothing to embed them with\. Give text_cache .*text_encoder=True"):
        gym.make(ID, world_model=tmp_path, judge=None)
    with pytest.raises(
        VapError, match=r"must be told embeddings \(1, L, E\), be it of the empty instruction, got None"
    ):
        StreamWorld(told.network, told.codec)
    spoken().save(tmp_path / "words.safetensors")
    options = {"text_cache": str(tmp_path / "words.safetensors"), "text": "push"}
    env: Any = gym.make(ID, world_model=tmp_path, world_model_kwargs=options, judge=None).unwrapped
    assert torch.equal(env.stage.imagination.world.text, spoken().encode(["push"]))


def test_clips_without_an_instruction_hear_the_empty_one() -> None:
    told = model(text="t5")
    told.text = spoken()
    image = torch.zeros(1, *SIZE[::-1], 3, dtype=torch.uint8)
    clips = [
        told.generate(image, frames=3, text=text) for text in (None, "", spoken().encode([""]), torch.zeros(1, 3, 8))
    ]
    assert torch.equal(clips[0], clips[1])
    assert torch.equal(clips[0], clips[2])
    assert not torch.equal(clips[0], clips[3])


def test_models_without_words_are_told_none() -> None:
    with pytest.raises(VapError, match=r"takes no words \(text='none'\), got 'push'"):
        StreamWorld.of_video_model(model(), text="push")
