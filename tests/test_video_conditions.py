"""Conditions: prompts by a causal encoder that can be streamed, words of our vocabulary, states, intervals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vap_gym.cards import load_robot
from vap_gym.errors import VapError
from vap_gym.geometry import Camera
from vap_gym.prompts.kinds import Prompter
from vap_gym.sim.draw import NOVEL_SHAPES, TRAIN_SHAPES
from vap_gym.sim.layouts import LAYOUTS, draw_scene
from vap_gym.sim.spec import ALL_TASKS, PALETTE
from vap_gym.video.conditions import IntervalEmbedding, StateEncoder, WordEmbedding
from vap_gym.video.trajectory import CausalConv, TrajectoryEncoder
from vap_gym.video.words import PAD, UNKNOWN, WORDS, Vocabulary

TINY, LARGE = (1, 4), (4, 8)  # strides in time and space


def encoder(strides: tuple[int, int], channels: int = 3) -> TrajectoryEncoder:
    torch.manual_seed(0)
    return TrajectoryEncoder(prompt_channels=channels, width=8, time_stride=strides[0], space_stride=strides[1])


def clip(frames: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, frames, channels, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- the trajectory encoder ---


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strides", [TINY, LARGE])
@torch.no_grad()
def test_prompts_become_latents_of_the_codecs_size(strides: tuple[int, int], channels: int) -> None:
    latents = encoder(strides, channels)(clip(13, channels))
    expected = (2, 13, 16, 8, 12) if strides == TINY else (2, 4, 16, 4, 6)
    assert latents.shape == expected


@given(frame=st.integers(0, 12), strides=st.sampled_from([TINY, LARGE]))
@settings(max_examples=12, deadline=None)
@torch.no_grad()
def test_no_latent_sees_a_later_frame(frame: int, strides: tuple[int, int]) -> None:
    model, prompts = encoder(strides), clip(13)
    before = model(prompts)
    prompts[:, frame] *= -1
    changed = (model(prompts) - before).abs().amax(dim=(0, 2, 3, 4)) > 0
    first = -(-frame // strides[0])  # latent f stands for frames up to stride·f
    assert not changed[:first].any()
    assert changed[first]


@pytest.mark.parametrize("chunks", [(13,), (1, 4, 4, 4), (5, 8), (1, 12), (9, 4)])
@pytest.mark.parametrize("strides", [TINY, LARGE])
@torch.no_grad()
def test_step_by_step_it_gives_what_it_gives_at_once(strides: tuple[int, int], chunks: tuple[int, ...]) -> None:
    model, prompts = encoder(strides), clip(13)
    cache, parts = None, []
    for part in prompts.split(chunks, dim=1):
        latents, cache = model.step(part, cache)
        parts.append(latents)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(prompts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (2, 2)])
@torch.no_grad()
def test_a_causal_convolution_is_torchs_own_in_three_dimensions(strides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, frames = CausalConv(3, 5, time_stride=strides[0], space_stride=strides[1]), torch.randn(2, 9, 3, 8, 10)
    weight = layer.conv.weight.unflatten(1, (3, 3)).transpose(1, 2)  # (O, taps·C) → (O, C, taps)
    padded = torch.cat([frames[:, :1]] * 2 + [frames], dim=1).transpose(1, 2)
    stride = (strides[0], strides[1], strides[1])
    expected = F.conv3d(padded, weight, layer.conv.bias, stride=stride, padding=(0, 1, 1)).transpose(1, 2)
    torch.testing.assert_close(layer(frames)[0], expected, rtol=1e-4, atol=1e-5)


# --- words ---


def test_the_vocabulary_has_every_word_of_the_simulators_instructions() -> None:
    vocabulary = Vocabulary()
    assert len(vocabulary) <= 256
    for layout, place in LAYOUTS.items():
        for task in (*place.tasks, *place.novel_tasks):
            for seed in range(3):
                split = "novel" if task in place.novel_tasks else "train"
                scene = draw_scene(seed, layout=layout, task=task, split=split)
                assert vocabulary.unknown(scene.instruction) == (), scene.instruction
    assert vocabulary.unknown(" ".join((*PALETTE, *TRAIN_SHAPES, *NOVEL_SHAPES, *ALL_TASKS)).replace("_", " ")) == ()


def test_instructions_become_numbers_of_one_length() -> None:
    vocabulary = Vocabulary(["lift", "the", "cube"], length=5)
    rows = vocabulary.encode(["Lift the cube!", "lift the zebra", "", "the the the the the cube"])
    assert rows.tolist() == [
        [2, 3, 4, PAD, PAD],
        [2, 3, UNKNOWN, PAD, PAD],
        [PAD] * 5,
        [3] * 5,
    ]
    assert vocabulary.unknown("lift the Zebra, zebra") == ("zebra",)


@given(st.text())
def test_any_text_is_an_instruction(text: str) -> None:
    vocabulary = Vocabulary()
    rows = vocabulary.encode([text])
    assert rows.shape == (1, 12)
    assert 0 <= int(rows.min()) <= int(rows.max()) < len(vocabulary)


def test_vocabularies_that_cannot_be_are_refused() -> None:
    with pytest.raises(VapError, match=r"at most 254 words, got 255"):
        Vocabulary([f"w{i}" for i in range(255)])
    with pytest.raises(VapError, match="got twice: lift"):
        Vocabulary(["lift", "lift"])
    assert len(set(WORDS)) == len(WORDS)


@torch.no_grad()
def test_the_order_of_words_counts() -> None:
    torch.manual_seed(0)
    words = WordEmbedding(words=6, length=3, width=4)
    forth, back = words(torch.tensor([[2, 3, 0]])), words(torch.tensor([[3, 2, 0]]))
    assert not torch.allclose(forth.sum(1) - forth[:, 0], back.sum(1) - back[:, 0])
    assert torch.equal(words.empty(2), words(torch.zeros(2, 3, dtype=torch.int64)))


# --- the skeleton's height cue ---


@pytest.mark.parametrize("name", ["panda_robotiq", "google_robot", "hand_21"])
def test_without_its_height_cue_a_skeleton_lacks_the_drop_line_and_nothing_else(name: str) -> None:
    robot = load_robot(name)
    camera = Camera.look_at(
        torch.tensor([1.3, -0.6, 0.9]), torch.tensor([0.4, 0.0, 0.4]), vertical_fov_rad=1.0, frame_size_px=(72, 48)
    )
    q, closed = torch.zeros(1, len(robot.arm_joints)), torch.zeros(1)
    with_cue, without = (
        Prompter(robot, "skeleton", frame_size_px=(72, 48), height_cue=cue).draw(q, closed, camera)[0].numpy()
        for cue in (True, False)
    )
    drop = np.asarray(robot.skeleton.drop_colour_rgb)
    changed = (with_cue != without).any(-1)
    assert changed.any()
    # Where they differ there is the drop line's colour, perhaps thinned, on what is there without it.
    share = np.abs(with_cue[changed].astype(int) - drop).sum(-1)
    assert (share <= np.abs(without[changed].astype(int) - drop).sum(-1)).all()
    assert without.any()


# --- states and intervals ---


@pytest.mark.parametrize(("frames", "groups", "stride"), [(5, 5, 1), (13, 4, 4), (9, 2, 8)])
@torch.no_grad()
def test_states_reach_their_own_frames_only(frames: int, groups: int, stride: int) -> None:
    torch.manual_seed(0)
    encode = StateEncoder(state_width=3, per_group=stride, width=6)
    states = torch.rand(1, frames, 3)
    assert torch.equal(encode(states, groups), torch.zeros(1, groups, 6))
    for parameter in encode.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    before = encode(states, groups)
    states[:, frames - 1] += 1
    changed = (encode(states, groups) - before).abs().amax(dim=(0, 2)) > 1e-5
    assert changed.tolist() == [False] * (groups - 1) + [True]
    with pytest.raises(VapError, match="must have 3 numbers each"):
        encode(states[..., :2], groups)


@torch.no_grad()
def test_intervals_beyond_three_are_one() -> None:
    torch.manual_seed(0)
    embed = IntervalEmbedding(width=4)
    embed.layers[2].weight.normal_()
    rows = embed(torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0]))
    assert torch.equal(rows[3], rows[4])
    assert len({tuple(row.tolist()) for row in rows}) == 4
