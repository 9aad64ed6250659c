"""The judge: shapes of what it reads, exact places from heat maps, and pixels back to metres."""

from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.geometry import Camera
from vap_gym.judge import REST_HEIGHT_M, STRIDE_PX, Judge, JudgeNetwork, Reading, in_world, peaks_px
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.scene import LABELS, camera_of
from vap_gym.sim.spec import COLOURS
from vap_gym.train.judge import JudgeRecipe
from vap_gym.train.run import load_recipe
from vap_gym.world.codec import FrameCodec

COUNT = len(COLOURS)
SIZE = (144, 96)


@pytest.fixture(scope="module")
def judge() -> Judge:
    torch.manual_seed(0)
    codec = FrameCodec(latent_channels=4, encoder_widths=(8, 8), decoder_widths=(8, 8))
    return Judge(JudgeNetwork(latent_channels=4, widths=(8, 12)), codec, dtype=torch.float32)


@pytest.fixture(scope="module")
def cameras() -> Camera:
    """Eight cameras as the oracle draws them."""
    drawn = [camera_of(draw_scene(seed), SIZE) for seed in range(8)]
    return Camera(
        K=torch.stack([c.K for c in drawn]),
        T_world_camera=torch.stack([c.T_world_camera for c in drawn]),
        frame_size_px=SIZE,
    )


def frames(batch: int) -> Tensor:
    return torch.randint(0, 256, (batch, 96, 144, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_network_knows_as_many_things_as_the_oracle() -> None:
    network = JudgeNetwork(**load_recipe(JudgeRecipe, "tiny_judge").model)
    assert network.config.points == COUNT + 1  # and the tool
    assert network.config.labels == len(LABELS)


def test_shapes_and_ranges_of_a_reading(judge: Judge, cameras: Camera) -> None:
    reading = judge.read_frames(frames(8), cameras)
    assert reading.gripper_px.shape == (8, 2)
    assert reading.gripper_confidence.shape == (8,)
    assert reading.objects_px.shape == (8, COUNT, 2)
    assert reading.objects_world_m.shape == (8, COUNT, 3)
    assert reading.objects_confidence.shape == reading.objects_held.shape == (8, COUNT)
    assert reading.segmentation.shape == (8, 96, 144)
    assert reading.segmentation.dtype == torch.uint8
    assert reading.segmentation.amax() < len(LABELS)
    for share in (reading.gripper_confidence, reading.objects_confidence, reading.objects_held):
        assert ((share >= 0) & (share <= 1)).all()


def test_frames_are_read_through_their_latents(judge: Judge, cameras: Camera) -> None:
    from vap_gym.world.codec import to_pictures

    one = judge.read_frames(frames(8), cameras)
    with torch.no_grad():
        latents = judge.codec.encode(to_pictures(frames(8)))
    other = judge.read_latents(latents, cameras, segment=True)
    for name in Reading.__dataclass_fields__:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-4, rtol=1e-4, equal_nan=True)


def test_labels_of_latents_are_told_where_asked_for(judge: Judge, cameras: Camera) -> None:
    reading = judge.read_latents(torch.rand(8, 4, 24, 36), cameras)
    assert reading.segmentation.shape == (8, 0, 0)


def test_one_camera_serves_all_frames(judge: Judge, cameras: Camera) -> None:
    one = judge.read_frames(frames(2), cameras.index(3)).objects_world_m
    both = judge.read_frames(frames(2), cameras.index(torch.tensor([3, 3]))).objects_world_m
    torch.testing.assert_close(one, both, equal_nan=True)


def test_a_frame_is_read_without_regard_to_its_neighbours(judge: Judge, cameras: Camera) -> None:
    pictures, other = frames(3), frames(3)
    other[1:] = 255 - other[1:]
    assert torch.equal(
        judge.read_frames(pictures, cameras.index(0)).objects_px[0],
        judge.read_frames(other, cameras.index(0)).objects_px[0],
    )


def test_latents_of_another_shape_are_refused(judge: Judge, cameras: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(VapError, match=r"latents must have shape \(B, C, h, w\), got \(4, 24, 36\)"):
        judge.read_latents(torch.zeros(4, 24, 36), cameras)


# --- places ---


def test_peaks_are_exact_on_made_up_heat_maps() -> None:
    rng = torch.Generator().manual_seed(1)
    cells = torch.stack([torch.randint(36, (3, 7), generator=rng), torch.randint(24, (3, 7), generator=rng)], -1)
    within = torch.rand(3, 7, 2, generator=rng) - 0.5
    heat = torch.randn(3, 7, 24, 36, generator=rng)
    offset = torch.randn(3, 7, 2, 24, 36, generator=rng)  # elsewhere it must not matter
    for n in range(3):
        for p in range(7):
            u, v = cells[n, p].tolist()
            heat[n, p, v, u] = 99.0
            offset[n, p, :, v, u] = within[n, p]
    torch.testing.assert_close(peaks_px(heat, offset), (cells + 0.5 + within) * STRIDE_PX)


def test_a_peak_in_a_corner_is_found() -> None:
    heat, offset = torch.zeros(1, 1, 24, 36), torch.zeros(1, 1, 2, 24, 36)
    heat[0, 0, 23, 35] = 30.0
    torch.testing.assert_close(peaks_px(heat, offset)[0, 0], torch.tensor([142.0, 94.0]))


def test_cells_around_a_peak_have_a_say_and_others_none() -> None:
    heat, offset = torch.full((1, 1, 24, 36), -30.0), torch.zeros(1, 1, 2, 24, 36)
    heat[0, 0, 10, 12:14] = 5.0
    heat[0, 0, 20, 30] = 4.9  # far away
    offset[0, 0, 0, 10, 12:14] = torch.tensor([0.6, -0.2])  # of two that are as sure: 13.1 and 13.3 cells
    torch.testing.assert_close(peaks_px(heat, offset)[0, 0], STRIDE_PX * torch.tensor([13.2, 10.5]))


def resting(batch: int) -> Tensor:
    """Places of objects whose centres lie as high as those of resting ones do, (B, K, 3)."""
    rng = torch.Generator().manual_seed(2)
    places = torch.rand(batch, COUNT, 3, generator=rng) * torch.tensor([0.3, 0.48, 0.0]) + torch.tensor(
        [0.34, -0.24, 0.0]
    )
    places[..., 2] = 0.013 + 0.04 * torch.rand(batch, COUNT, generator=rng)
    return places


def test_true_pixels_of_resting_objects_give_their_places(cameras: Camera) -> None:
    places = resting(8)
    pixels, depth = cameras.to(torch.float32).project(places)
    assert (depth > 0).all()
    for tool in (None, torch.tensor([[0.5, 0.0, 0.2]]).expand(8, 3)):
        found = in_world(pixels, places[..., 2], torch.zeros(8, COUNT), cameras, tool)
        torch.testing.assert_close(found, places, atol=1e-3, rtol=0)


def test_true_pixels_of_held_objects_give_their_places_between_the_fingers(cameras: Camera) -> None:
    tool = torch.tensor([[0.5, -0.05, 0.18]]).expand(8, 3)
    places = resting(8)
    places[:, 2] = tool  # held
    places[:, 4] = tool + torch.tensor([0.0, 0.0, -0.01])  # held a little low
    held = torch.zeros(8, COUNT)
    held[:, [2, 4]] = 0.9
    found = in_world(cameras.to(torch.float32).project(places)[0], resting(8)[..., 2], held, cameras, tool)
    torch.testing.assert_close(found[:, [0, 1, 3, 5]], places[:, [0, 1, 3, 5]], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[:, 2], places[:, 2], atol=1e-3, rtol=0)
    assert (found[:, 4] - places[:, 4]).norm(
        dim=-1
    ).max() < 0.01  # the ray's nearest point: no worse than the tool itself


def test_without_the_tool_a_held_object_is_taken_to_rest(cameras: Camera) -> None:
    places = resting(8)
    found = in_world(cameras.to(torch.float32).project(places)[0], places[..., 2], torch.ones(8, COUNT), cameras, None)
    torch.testing.assert_close(found, places, atol=1e-3, rtol=0)


def test_heights_begin_at_that_of_a_typical_object() -> None:
    torch.manual_seed(0)
    network = JudgeNetwork(latent_channels=4, widths=(8, 12))
    network.states.weight.data.zero_()
    network.states.bias.data.zero_()
    height = network(torch.rand(2, 4, 24, 36))["height_m"]
    assert height.shape == (2, COUNT + 1)
    torch.testing.assert_close(height, torch.full_like(height, REST_HEIGHT_M))


# --- files ---


def test_a_saved_judge_reads_the_same(judge: Judge, cameras: Camera, tmp_path: Path) -> None:
    from vap_gym.world.appearance import RobotAppearance
    from vap_gym.world.dynamics import FrameDynamics
    from vap_gym.world.model import WorldModel
    from vap_gym.world.motion import ThingMotion
    from vap_gym.world.things import ThingFinder

    dynamics = FrameDynamics(
        latent_channels=4, widths=(8, 16), blocks=(1, 1), heads=1, layers=1, control_layers=1, time_embed_dim=16
    )
    looks = RobotAppearance(points=5, links=2, widths=(4, 8))
    things = ThingFinder(most=2, widths=(4, 8), blocks=1, links=2)
    motion = ThingMotion(gripper=(1, 0), links=2, memory=8, width=16)
    WorldModel(judge.codec, dynamics, looks, things, motion).save_pretrained(tmp_path, dtype=torch.float32)
    judge.save_into(tmp_path)
    again = Judge.from_pretrained(tmp_path, dtype=torch.float32)
    for name, value in judge.network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], value, rtol=1e-3, atol=1e-5)  # float16 on disk
    one, other = (j.read_frames(frames(2), cameras.index(0)) for j in (judge, again))
    torch.testing.assert_close(one.objects_confidence, other.objects_confidence, atol=5e-3, rtol=0)
    WorldModel.from_pretrained(tmp_path)  # the index still fits the other parts
