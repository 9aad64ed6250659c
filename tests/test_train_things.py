"""Training the finder and the judge: scenes in a mirror, errors in metres, who is held out, what presence means."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.geometry import Camera
from vap_gym.judge import JudgeNetwork
from vap_gym.sim.scene import LABELS
from vap_gym.train.judge import begin_from as judge_from
from vap_gym.train.judge import translate
from vap_gym.train.judge_data import _reach_down
from vap_gym.train.motion import MOST
from vap_gym.train.things import begin_from, is_object, score, things_loss
from vap_gym.train.things_data import FIRST_OBJECT, Scenes, given, is_held_out, mirrored, scored
from vap_gym.world.codec import FrameCodec
from vap_gym.world.things import HEAT_PX, ThingFinder
from vap_gym.world.views import project

HEIGHT, WIDTH = 48, 72
CAMERA = Camera.look_at(
    torch.tensor([1.0, -0.5, 0.7]),
    torch.tensor([0.45, 0.0, 0.0]),
    vertical_fov_rad=0.8,
    frame_size_px=(WIDTH, HEIGHT),
    roll_rad=0.1,
)
P = (CAMERA.K @ torch.linalg.inv(CAMERA.T_world_camera)[:3])[None, None]


def scenes(count: int = 4) -> Scenes:
    """Pictures of one red box each, at different places, of two robots in turn."""
    rng = torch.Generator().manual_seed(0)
    place = torch.full((count, MOST, 3), torch.nan)
    place[:, 0] = torch.tensor([0.45, 0.0, 0.03]) + 0.08 * (torch.rand(count, 3, generator=rng) - 0.5)
    views = P.expand(count, -1, -1, -1)
    pixel, _ = project(views[:, 0], place)
    labels = torch.zeros(count, HEIGHT, WIDTH, dtype=torch.uint8)
    for i, (u, v) in enumerate(pixel[:, 0].long().tolist()):
        labels[i, v - 3 : v + 4, u - 4 : u + 5] = FIRST_OBJECT
        labels[i, :4, :4] = LABELS.index("gripper")
    return Scenes(
        frames=torch.randint(0, 256, (count, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=rng),
        labels=labels,
        surface=torch.rand(count, HEIGHT, WIDTH, generator=rng) < 0.1,
        views=views,
        number=torch.tensor([FIRST_OBJECT, *[-1] * (MOST - 1)]).expand(count, -1),
        pixel=pixel,
        place_m=place,
        shape=torch.tensor([0.04, 0.03, 0.03, 0.0, 0.3, 0.2]).expand(count, MOST, 6),
        support_m=torch.zeros(count),
        robot=torch.arange(count) % 2,
        held_out=torch.arange(count) >= count // 2,
    )


def test_a_mirrored_scene_is_seen_by_a_mirrored_camera() -> None:
    data = scenes()
    other = mirrored(data)
    pixel, depth = project(other.views[:, 0], other.place_m[:, :1])
    torch.testing.assert_close(pixel, other.pixel[:, :1], atol=1e-3, rtol=0)
    assert (depth > 0).all()
    assert (torch.linalg.det(other.views[:, 0, :, :3]) > 0).all()  # a camera that can be built
    for i, (u, v) in enumerate(other.pixel[:, 0].long().tolist()):
        assert other.labels[i, v, u] == FIRST_OBJECT
    again = mirrored(other)
    for field in fields(Scenes):
        torch.testing.assert_close(
            getattr(again, field.name), getattr(data, field.name), equal_nan=True, msg=field.name
        )


def said(data: Scenes, away_px: Tensor) -> dict[str, Tensor]:
    """What a finder says that knows all but where exactly centres are."""
    h, w = HEIGHT // HEAT_PX, WIDTH // HEAT_PX
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    middles = (torch.stack([x, y]) + 0.5) * HEAT_PX
    n = len(data)
    return {
        "support_m": torch.zeros(n, 1),
        "mask": torch.where(is_object(data.labels), 9.0, -9.0)[:, None],
        "vote": torch.zeros(n, 2, HEIGHT, WIDTH),
        "heat": torch.zeros(n, 1, h, w),
        "offset": data.pixel[:, 0, :, None, None] - middles + away_px[:, None, None],
        "height_m": data.place_m[:, 0, 2, None, None, None].expand(n, 1, h, w),
        "shape": torch.zeros(n, 6, h, w),
    }


def test_the_further_centres_are_off_the_greater_the_loss() -> None:
    data = scenes()
    losses = [float(things_loss(said(data, torch.tensor([d, 0.0])), data)) for d in (0.0, 0.5, 1.0, 2.0)]
    assert losses == sorted(losses)
    assert losses[1] > losses[0] + 0.1


def test_a_drawer_is_no_object() -> None:
    labels = torch.arange(len(LABELS), dtype=torch.uint8).reshape(1, 1, -1)
    names = [name for name, there in zip(LABELS, is_object(labels)[0, 0].tolist(), strict=True) if there]
    assert names == ["red", "green", "blue", "yellow", "purple", "cyan"]


def test_the_robot_is_told_by_its_pixels_or_by_its_surface() -> None:
    data = scenes(64)
    _, true, _ = given(data)
    _, mixed, _ = given(data, torch.Generator().manual_seed(0))
    by_surface = (mixed[:, 0].bool() == data.surface).flatten(1).all(1)
    by_pixels = (mixed == true).flatten(1).all(1)
    assert (by_surface ^ by_pixels).all()
    assert 5 < int(by_surface.sum()) < 40


def test_scores_are_of_each_robot_and_of_held_out_frames_only() -> None:
    data = scenes(8)
    held = data.pick(scored(data.robot, data.held_out, 1))
    assert held.held_out.all()
    assert held.robot.tolist() == [0, 1]
    torch.manual_seed(0)
    figures = score(ThingFinder(widths=(4, 8), blocks=1, links=1), data, ("one", "two"))
    assert {"found", "found_one", "off_cm_two"} <= set(figures)
    assert sum(is_held_out(i) for i in range(100)) == 10


def test_a_finder_begins_as_one_with_fewer_blocks_says() -> None:
    torch.manual_seed(0)
    small = ThingFinder(widths=(4, 8), blocks=1, links=1).eval()
    large = ThingFinder(widths=(4, 8), blocks=3, links=1, cabinets=True).eval()
    begin_from(large, small)
    looked = (torch.rand(1, 3, HEIGHT, WIDTH), torch.zeros(1, 1, HEIGHT, WIDTH), P)
    with torch.no_grad():
        one, other = small(*looked), large(*looked)
    for name in one:
        torch.testing.assert_close(one[name], other[name])
    with pytest.raises(VapError, match=r"as many blocks or fewer, got one with .* and 3"):
        begin_from(small, large)


# --- the judge ---


def test_how_far_things_reach_below_their_centres() -> None:
    c = 2**-0.5
    turns = torch.tensor([[0.0, 0.0, 0.0, 1.0], [c, 0.0, 0.0, c]])  # upright, and on its side about x
    tower = {"shape": "tower", "half_extents_m": [0.02, 0.03, 0.05]}
    torch.testing.assert_close(_reach_down(tower, turns), torch.tensor([0.05, 0.03]))
    bottle = {"shape": "bottle", "half_extents_m": [0.02, 0.02, 0.05]}
    torch.testing.assert_close(_reach_down(bottle, turns), torch.tensor([0.05, 0.02]), atol=1e-3, rtol=0)


def test_a_judge_goes_on_where_its_codec_was_trained_anew() -> None:
    torch.manual_seed(0)
    codec = FrameCodec(latent_channels=4, encoder_widths=(8, 8), decoder_widths=(8, 8))
    other = FrameCodec(latent_channels=4, encoder_widths=(8, 8), decoder_widths=(8, 8))
    other.load_state_dict(codec.state_dict())
    last = other.encoder[-2]
    last.weight.data, last.bias.data = -last.weight.data.flip(0), -last.bias.data.flip(0)  # the same, told otherwise
    judge = JudgeNetwork(latent_channels=4, widths=(8, 12))
    model = JudgeNetwork(latent_channels=4, widths=(8, 12), labels=11, detail=4)
    judge_from(model, judge)
    y, x = torch.meshgrid(torch.linspace(-3, 3, 48), torch.linspace(-3, 3, 72), indexing="ij")
    pictures = torch.rand(6, 3, 1, 1) * torch.sin(3 * x * torch.rand(6, 3, 1, 1) + 5 * y) + 0.3 * torch.randn(
        6, 3, 48, 72
    )
    translate(model, judge, other, codec, pictures)
    with torch.no_grad():
        wanted = judge.enter(codec.encode(pictures))
        error = (model.enter(other.encode(pictures)) - wanted).square().mean() / wanted.var()
        before = (judge.enter(other.encode(pictures)) - wanted).square().mean() / wanted.var()
    assert error < 0.05 * before
