"""Real DROID streams: what is fitted never sees the episode left out; windows, gates and written sets are right."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vap_gym.cards import load_robot
from vap_gym.commands.telling import json_text
from vap_gym.data import EpisodeSet
from vap_gym.data.layout import DataError
from vap_gym.errors import VapError
from vap_gym.evaluate import real_droid_adapt
from vap_gym.evaluate.real_droid import WAYS, Scores, clustered, figures, gap_closed
from vap_gym.evaluate.real_droid_adapt import Imagined, adapt, fitted_gate, surface_colours
from vap_gym.evaluate.real_droid_set import write_set
from vap_gym.evaluate.real_droid_streams import ROBOT, Stream, read_streams, windows
from vap_gym.geometry import Camera
from vap_gym.prompts.body import Body
from vap_gym.world.model import WorldModel


@pytest.fixture(scope="module")
def streams(shared_data: Path) -> list[Stream]:
    """The first frames of each stream with a camera from clicks: short, so that tests are quick."""
    return [_cut(stream, slice(0, 14)) for stream in read_streams(shared_data / "droid")]


@pytest.fixture(scope="module")
def body() -> Body:
    """The robot's surface."""
    return Body(load_robot(ROBOT))


def _cut(stream: Stream, part: slice) -> Stream:
    return replace(
        stream,
        frames=stream.frames[part],
        joints_rad=stream.joints_rad[part],
        closedness=stream.closedness[part],
        views=stream.views[part],
        prompts=stream.prompts[part],
    )


def test_streams_are_those_with_a_camera_and_fit_the_model(streams: list[Stream]) -> None:
    names = [stream.name for stream in streams]
    assert names == ["newsetup_0009 cam0", "newsetup_0010 cam0", "newsetup_0012 cam0", "newsetup_0012 cam1"]
    for stream in streams:
        assert stream.frames.shape[1:] == stream.prompts.shape[1:] == (96, 144, 3)
        assert stream.camera.frame_size_px == (144, 96)


def test_nothing_that_is_fitted_sees_the_episode_that_is_left_out(streams: list[Stream], body: Body) -> None:
    held_out = "newsetup_0012"
    world = WorldModel.from_pretrained("tiny")
    firsts = {stream.name: [0] if stream.episode == "newsetup_0010" else [] for stream in streams}
    firsts |= {stream.name: [0] for stream in streams if stream.episode == held_out}  # asked for, and refused

    def fitted(given: list[Stream]) -> real_droid_adapt.Adapted:
        return adapt(world, given, body, held_out, firsts=firsts, steps=2, interval=2)

    def painted(stream: Stream) -> Stream:
        return replace(stream, frames=255 - stream.frames)

    plain = fitted(streams)
    assert plain.seen == ("newsetup_0009", "newsetup_0010")
    other = fitted([painted(s) if s.episode == held_out else s for s in streams])
    assert torch.equal(plain.world.appearance.colour, other.world.appearance.colour)
    np.testing.assert_array_equal(plain.gate, other.gate)
    changed = fitted([painted(s) if s.episode != held_out else s for s in streams])
    assert not torch.equal(plain.world.appearance.colour, changed.world.appearance.colour)


def test_leaving_out_the_only_episode_is_refused(streams: list[Stream], body: Body) -> None:
    only = [stream for stream in streams if stream.episode == "newsetup_0009"]
    with pytest.raises(VapError, match="must leave other episodes"):
        adapt(WorldModel.from_pretrained("tiny"), only, body, "newsetup_0009", firsts={}, steps=2, interval=2)


def test_colours_are_those_of_the_pixels_that_show_a_point(streams: list[Stream], body: Body) -> None:
    red = replace(streams[0], frames=np.broadcast_to(np.array([200, 10, 30], np.uint8), streams[0].frames.shape))
    colour = surface_colours([red], body)
    gripper = body.link == body.links.index("robotiq_base")
    assert torch.allclose(colour[gripper], torch.tensor([200, 10, 30]) / 255, atol=1e-3)
    assert torch.isfinite(colour).all()


def test_real_black_gripper_is_darker_than_real_white_arm(streams: list[Stream], body: Body) -> None:
    colour = surface_colours([stream for stream in streams if stream.episode != "newsetup_0012"], body)
    mean = {name: float(colour[body.link == body.links.index(name)].mean()) for name in ("robotiq_base", "panda_link7")}
    assert mean["robotiq_base"] + 0.1 < mean["panda_link7"]


def test_windows_begin_where_the_robot_moves(streams: list[Stream]) -> None:
    stream = streams[0]
    rests = replace(stream, joints_rad=stream.joints_rad[:1].expand_as(stream.joints_rad))
    assert windows(rests, steps=12, every=1) == []
    assert windows(stream, steps=12, every=1, least_rad=0.0) == [0, 1]


def test_gate_takes_from_the_correction_what_brings_pictures_nearer() -> None:
    rng = np.random.default_rng(0)
    posed, true = (rng.integers(0, 256, (1, 3, 4, 6, 3)).astype(np.uint8) for _ in range(2))
    source = np.zeros((1, 3, 5, 4, 6), np.float32)
    source[:, :, 0, :, :3], source[:, :, 4, :, 3:] = 1, 1
    whole = posed.copy()
    whole[..., :3, :] = true[..., :3, :]  # right where the robot was seen
    whole[..., 3:, :] = 255 - true[..., 3:, :]  # and wrong elsewhere
    gate = fitted_gate([(Imagined(posed=posed, whole=whole, source=source), true)])
    assert gate[0] == pytest.approx(1.0, abs=1e-3)
    assert gate[4] < 0.5


def test_intervals_are_wider_where_episodes_differ_than_where_windows_do() -> None:
    def scores(episode: str, values: list[float]) -> Scores:
        psnr = {"frozen": np.zeros(4), "codec": np.full(4, 10.0), "adapted": np.array(values)}
        return Scores(stream=episode, episode=episode, how="clicked", psnr=psnr, st_iou=psnr)

    by_episode = [scores("a", [2.0] * 4), scores("b", [6.0] * 4)]
    by_window = [scores("a", [2.0, 6.0] * 2), scores("b", [2.0, 6.0] * 2)]
    (value, low, high), (same, lower, higher) = (clustered(s, "gap", "adapted") for s in (by_episode, by_window))
    assert value == same == pytest.approx(0.4)
    assert high - low > higher - lower
    assert gap_closed(by_episode[0].psnr, "adapted") == pytest.approx(0.2)


def test_figures_are_told_as_json_too() -> None:
    psnr = {way: np.array([float(i), i + 2.0]) for i, way in enumerate(WAYS)}
    told = json.loads(json_text(figures([Scores(stream="a", episode="a", how="clicked", psnr=psnr, st_iou=psnr)])))
    assert told["windows"] == 2
    assert told["figures"]["adapted"]["psnr"][0] == told["streams"][0]["psnr_db"]["adapted"] == 6.0


def test_gripper_that_is_mounted_further_is_seen_further(shared_data: Path, body: Body) -> None:
    from vap_gym.evaluate.real_droid_streams import mounted_views

    card, home = load_robot(ROBOT), torch.tensor(load_robot(ROBOT).home_q_rad)[None]
    camera = Camera(K=torch.eye(3), T_world_camera=torch.eye(4), frame_size_px=(144, 96))  # sees base coordinates
    near, far = (mounted_views(card, body, home, torch.zeros(1), camera, shift) for shift in (0.0, 0.02))
    apart = (far - near)[0, :, :, 3].norm(dim=-1)
    arm = [name.startswith("panda") for name in body.links]
    assert torch.allclose(apart, torch.where(torch.tensor(arm), 0.0, 0.02), atol=1e-6)


def test_written_set_is_what_trainings_read(streams: list[Stream], tmp_path: Path) -> None:
    from vap_gym.train.latents import load_latents

    write_set(tmp_path / "set", streams, robot=ROBOT, leave_out=["newsetup_0012"], frames=10)
    made = EpisodeSet(tmp_path / "set")
    assert {made.info(i)["source"]["episode"] for i in range(len(made))} == {"newsetup_0009", "newsetup_0010"}
    world = WorldModel.from_pretrained("tiny")
    data = load_latents([tmp_path / "set"], world.codec, robot=ROBOT, view="front")
    assert len(data) == len(made) == 4
    assert torch.allclose(data.views[0], streams[0].views[:10], atol=1e-3)
    assert torch.isfinite(data.tool_px).all()


def test_missing_folders_and_lists_are_told(tmp_path: Path, shared_data: Path) -> None:
    with pytest.raises(DataError, match="--droid"):
        read_streams(tmp_path)
    (tmp_path / "list.json").write_text(json.dumps({"streams": [{"episode": "newsetup_0009"}]}))
    with pytest.raises(DataError, match="--align"):
        read_streams(shared_data / "droid", tmp_path / "list.json")
