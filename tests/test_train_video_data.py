"""The video model's data: caches survive kills and refuse what is stale, batches follow from step and seed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vap_gym.cards import load_robot
from vap_gym.data import Episode, EpisodeWriter, finalise
from vap_gym.data.layout import DataError
from vap_gym.errors import CardError, CheckpointError, UnknownNameError
from vap_gym.geometry import Camera
from vap_gym.prompts.kinds import Prompter
from vap_gym.train.contacts import contact_moments
from vap_gym.train.video_cache import Source, add_episodes, latents_of, open_latents, packed, sha256_of, unpacked
from vap_gym.train.video_data import ClipBatches, DataSettings, SetSettings, VideoSet, dropped, frames_of, raw_states
from vap_gym.train.video_store import Store
from vap_gym.world.codec import FrameCodec

SIZE, FRAMES = (72, 48), 14


def episode(seed: int) -> Episode:
    """A Panda that moves a little before a camera, with a gripper that closes half-way and a thing that is pushed."""
    rng = np.random.default_rng(seed)
    robot = load_robot("panda_robotiq")
    q = np.array(robot.home_q_rad) + np.linspace(0, 0.3, FRAMES)[:, None] * rng.normal(size=7)
    closed = (np.arange(FRAMES) >= FRAMES // 2).astype(np.float32)
    things = np.full((FRAMES, 2, 3), np.nan)
    things[:, 0] = [0.5, 0.0, 0.02]
    things[FRAMES // 2 :, 0, 1] += 0.02 * np.arange(FRAMES - FRAMES // 2)
    camera = Camera.look_at(
        torch.tensor([1.2, 0.5, 0.7]), torch.tensor([0.4, 0.0, 0.2]), vertical_fov_rad=0.9, frame_size_px=SIZE
    )
    base = rng.integers(40, 200, (1, 6, 9, 3)).repeat(8, 1).repeat(8, 2)
    frames = np.clip(base + 5 * np.arange(FRAMES)[:, None, None, None], 0, 255).astype(np.uint8)
    pose = np.concatenate([rng.normal(size=(FRAMES, 3)), rng.uniform(-1, 1, (FRAMES, 3))], 1)
    columns = {
        "nominal.joint_position": q, "nominal.gripper_position": closed[:, None], "nominal.cartesian_position": pose,
        "observation.joint_position": q + 0.2, "observation.state": np.concatenate([pose + 0.1, closed[:, None]], 1),
        "objects_m": things, "camera.K": np.broadcast_to(camera.K.numpy(), (FRAMES, 3, 3)),
        "camera.T_world_camera": np.broadcast_to(camera.T_world_camera.numpy(), (FRAMES, 4, 4)),
    }  # fmt: skip
    return Episode(
        frames={"front": frames},
        columns={name: np.ascontiguousarray(value, np.float32) for name, value in columns.items()},
        task="push the red cube",
        info={"robot": "panda_robotiq", "seed": seed},
    )


def write_set(folder: Path, count: int, first_seed: int = 0) -> Path:
    writer = EpisodeWriter(folder, fps=15, robot_type="panda_robotiq")
    for i in range(count):
        writer.write(i, episode(first_seed + i))
    finalise(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("video")
    write_set(root / "one", 5)
    write_set(root / "two", 3, first_seed=50)
    return root


def blocks(frames: np.ndarray) -> np.ndarray:
    """A codec that is none: means of 4 × 4 pixels."""
    means = frames.reshape(len(frames), SIZE[1] // 4, 4, SIZE[0] // 4, 4, 3).mean((2, 4))
    return means.transpose(0, 3, 1, 2).astype(np.float32) / 255


def video_set(folder: Path, name: str = "one", *, held_out: bool = False, cache: str = "cache", **changes: object):  # type: ignore[no-untyped-def]
    of_set = {k: changes.pop(k) for k in ("weight", "max_stride", "held_out_below") if k in changes}
    below = of_set.pop("held_out_below", 2)
    data = replace(DataSettings(frames=4, frame_size_px=SIZE), **changes)  # type: ignore[arg-type]
    one = SetSettings(path=str(folder / name), held_out=below, **of_set)  # type: ignore[arg-type]
    return VideoSet(one, data, cache=folder / cache, encode=blocks, codec_sha256="a" * 64, held_out=held_out)


# --- the store ---


def test_a_store_gives_back_what_was_written_and_forgets_what_a_kill_left_half_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", about={"codec": "x"})
    first, second = np.arange(7, dtype=np.float16).reshape(7, 1), np.zeros((0, 3), np.float32)
    with store.writing() as writer:
        writer.append("first", first, digest="d")
        writer.append("empty", second)
    with (tmp_path / "s" / "arrays.bin").open("ab") as file:  # killed while an array was written
        file.write(b"\x01" * 11)
    with (tmp_path / "s" / "index.jsonl").open("ab") as file:  # or its line
        file.write(b'{"name": "thi')
    again = Store(tmp_path / "s", about={"codec": "x"})
    assert list(again.entries) == ["first", "empty"]
    third = np.random.default_rng(0).random(100)
    with again.writing() as writer:
        writer.append("third", third)
    last = Store(tmp_path / "s", about={"codec": "x"})
    for name, array in (("first", first), ("empty", second), ("third", third)):
        np.testing.assert_array_equal(last[name], array)
        np.testing.assert_array_equal(again[name], array)
    assert not last["third"].flags.writeable


def test_a_store_of_something_else_or_with_lost_bytes_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", about={"codec": "x" * 50}, what="latent cache")
    with store.writing() as writer:
        writer.append("a", np.ones(5))
    with pytest.raises(
        CheckpointError, match=r"latent cache '.*' was made with codec xxxx.*, but now there is codec y"
    ):
        Store(tmp_path / "s", about={"codec": "y"}, what="latent cache")
    (tmp_path / "s" / "arrays.bin").write_bytes(b"1234")
    with pytest.raises(CheckpointError, match=r"must be as it was written, got: arrays.bin has 4 bytes of 40"):
        Store(tmp_path / "s", about={"codec": "x" * 50})


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4, max_side=5), elements=st.integers(0, 255)),
    st.randoms(use_true_random=False),
)
@settings(max_examples=30, deadline=None)
def test_packed_pictures_come_back_all_or_some(pictures: np.ndarray, rng: object) -> None:
    data = packed(pictures)
    np.testing.assert_array_equal(unpacked(data), pictures)
    some = [rng.randrange(len(pictures)) for _ in range(3)]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(unpacked(data, some), pictures[some])


# --- the cache of latents ---


def test_the_cache_is_filled_once_goes_on_after_a_stop_and_takes_new_episodes(folder: Path, tmp_path: Path) -> None:
    data = write_set(tmp_path / "set", 3)
    calls: list[int] = []

    def encode(frames: np.ndarray) -> np.ndarray:
        if len(frames) > 1:  # not a mere check
            calls.append(len(frames))
            if len(calls) == 2:
                raise KeyboardInterrupt
        return blocks(frames)

    source = Source(data, frame_size_px=SIZE)
    store = open_latents(tmp_path / "cache", source, codec_sha256="a")
    with pytest.raises(KeyboardInterrupt):
        add_episodes(store, source, [0, 1, 2], encode)
    assert add_episodes(open_latents(tmp_path / "cache", source, codec_sha256="a"), source, [0, 1, 2], encode) == 2
    store = open_latents(tmp_path / "cache", source, codec_sha256="a")
    assert add_episodes(store, source, [0, 1, 2], encode) == 0
    for i in range(3):
        np.testing.assert_allclose(latents_of(store, source, i), blocks(source.frames(i)), atol=1e-3)
    assert latents_of(store, source, 0).dtype == np.float16


def test_stale_caches_are_refused(tmp_path: Path) -> None:
    source = Source(write_set(tmp_path / "set", 2), frame_size_px=SIZE)
    store = open_latents(tmp_path / "cache", source, codec_sha256="a")
    add_episodes(store, source, [0, 1], blocks)
    with pytest.raises(CheckpointError, match=r"must hold what the codec gives, got latents .* away"):
        add_episodes(store, source, [0, 1], lambda frames: blocks(frames) + 0.5)
    other = open_latents(tmp_path / "cache", source, codec_sha256="b")  # another codec has a cache of its own
    assert other.folder != store.folder
    assert len(other) == 0
    write_set(tmp_path / "new", 2, first_seed=9)
    (tmp_path / "set").rename(tmp_path / "old")
    (tmp_path / "new").rename(tmp_path / "set")
    again = Source(tmp_path / "set", frame_size_px=SIZE)
    with pytest.raises(CheckpointError, match=r"holds another episode 0 than .*written anew. Remove"):
        add_episodes(open_latents(tmp_path / "cache", again, codec_sha256="a"), again, [0, 1], blocks)


def test_the_hash_of_a_codec_is_of_its_weights() -> None:
    one = FrameCodec(latent_channels=2, encoder_widths=[8, 8], decoder_widths=[8, 8])
    before = sha256_of(one)
    assert sha256_of(one.to(memory_format=torch.channels_last)) == before
    next(one.parameters()).data[0] += 1e-3
    assert sha256_of(one) != before


# --- clips ---


def test_a_batch_follows_from_step_seed_and_rank_alone(folder: Path) -> None:
    sets = [video_set(folder, max_stride=2), video_set(folder, "two", weight=2.0)]
    forward = ClipBatches(sets, batch_size=3)
    batch = forward[5]
    again = ClipBatches([video_set(folder, max_stride=2), video_set(folder, "two", weight=2.0)], batch_size=3)[5]
    for name in ("latents", "weights", "prompts", "interval", "source", "index"):
        assert torch.equal(getattr(batch, name), getattr(again, name)), name
    halves = [ClipBatches(sets, batch_size=3, rank=r, ranks=2)[2] for r in range(2)]
    assert torch.equal(halves[1].latents, batch.latents)  # 5 = 2·2 + 1
    assert not torch.equal(halves[0].latents, batch.latents)
    share = np.mean([forward.mixture.draw(forward.mixture.rng(i)) for i in range(600)])
    assert share == pytest.approx(2 / 3, abs=0.06)


def test_clips_are_of_training_episodes_at_their_stride_and_latents_are_of_the_same_frames(folder: Path) -> None:
    one = video_set(folder, max_stride=3, near_changes=0.5)
    places = [one.place(i) for i in range(200)]
    assert {p.episode for p in places} == {2, 3, 4}
    assert {p.stride for p in places} == {1, 2, 3}
    assert np.mean([p.change is not None for p in places]) == pytest.approx(0.5, abs=0.12)
    assert {p.episode for p in (video_set(folder, held_out=True).place(i) for i in range(50))} == {0, 1}
    batch = ClipBatches([one], batch_size=8)[0]
    for k, i in enumerate(batch.index.tolist()):
        place = one.place(i)
        frames = one.source.frames(place.episode)[frames_of(place, 4)]
        np.testing.assert_allclose(batch.latents[k], blocks(frames), atol=1e-3)
        assert batch.interval[k] == place.stride
    assert batch.tasks == ["push the red cube"] * 8


def test_clips_that_are_encoded_as_a_whole_are_found_by_where_they_lie_whatever_else_is_in_the_cache(
    folder: Path,
) -> None:
    def opened(held_out: int, *, is_held: bool = False, max_stride: int = 2) -> VideoSet:
        data = DataSettings(frames=5, frame_size_px=SIZE, time_stride=4, clips=6, scored=3)
        one = SetSettings(path=str(folder / "one"), held_out=held_out, max_stride=max_stride)
        return VideoSet(one, data, cache=folder / "whole", encode=lambda frames: blocks(frames)[::4],
                        codec_sha256="b" * 64, held_out=is_held)  # fmt: skip

    for one in (opened(2), opened(2, is_held=True), opened(3), opened(2, max_stride=1)):  # all in one cache
        batch = ClipBatches([one], batch_size=7).clips([(0, i) for i in range(7)])
        assert batch.latents.shape[1] == 2
        for k in range(7):
            place = one.place(k)
            frames = one.source.frames(place.episode)[frames_of(place, 5)]
            np.testing.assert_allclose(batch.latents[k], blocks(frames)[::4], atol=1e-3)


@pytest.mark.parametrize("condition", ["skeleton", "mesh", "depth"])
def test_prompts_are_those_that_are_drawn_for_the_states_whether_kept_or_not(folder: Path, condition: str) -> None:
    one = video_set(folder, condition=condition)
    batch = ClipBatches([one], batch_size=2)[0]
    assert batch.prompts is not None
    assert batch.prompts.shape == (2, 4, 1 if condition == "depth" else 3, SIZE[1], SIZE[0])
    place = one.place(int(batch.index[1]))
    frames, columns = frames_of(place, 4), one.source.episodes.read(place.episode, views=()).columns
    drawn = Prompter(load_robot("panda_robotiq"), condition, frame_size_px=SIZE).draw(
        torch.from_numpy(columns["nominal.joint_position"][frames]),
        torch.from_numpy(columns["nominal.gripper_position"][frames, 0]),
        Camera(
            K=torch.from_numpy(columns["camera.K"][frames]),
            T_world_camera=torch.from_numpy(columns["camera.T_world_camera"][frames]),
            frame_size_px=SIZE,
        ),
    )
    shown = batch.prompts[1].movedim(1, -1)
    assert torch.equal(shown, drawn[..., : shown.shape[-1]])
    assert drawn.any()
    kept = ClipBatches([video_set(folder, condition=condition, precomputed=True)], batch_size=2)[0]
    assert torch.equal(kept.prompts, batch.prompts)  # type: ignore[arg-type]


def test_height_cue_and_achieved_states_change_the_prompts(folder: Path) -> None:
    shown = {
        name: ClipBatches([video_set(folder, **changes)], batch_size=2)[0].prompts
        for name, changes in {"plain": {}, "flat": {"height_cue": False}, "achieved": {"states": "achieved"}}.items()
    }
    plain, flat, achieved = (x.float().sum() for x in shown.values() if x is not None)
    assert flat < plain  # the drop line is missing, and nothing else
    assert achieved != plain


def test_raw_states_are_place_rotation_and_closedness(folder: Path) -> None:
    batch = ClipBatches([video_set(folder, condition="raw_state")], batch_size=2)[0]
    assert batch.prompts is None
    assert batch.states is not None
    assert batch.states.shape == (2, 4, 10)
    columns = batch.states[..., 3:9].unflatten(-1, (2, 3))
    torch.testing.assert_close(columns @ columns.mT, torch.eye(2).expand(2, 4, 2, 2))
    said = raw_states(np.array([[1.0, 2, 3, 0, 0, np.pi / 2]]), np.array([[0.5]]))
    np.testing.assert_allclose(said, [[1, 2, 3, 0, 1, 0, -1, 0, 0, 0.5]], atol=1e-6)


def test_the_loss_weighs_more_on_gripper_and_on_things_that_moved(folder: Path) -> None:
    one = video_set(folder)
    frames, size = np.arange(FRAMES), (12, 18)
    weights = one.weights(2, frames, size)
    assert weights.shape == (FRAMES, *size)
    assert weights.min() == pytest.approx(1.0, abs=0.01)
    at = one.camera(2, frames).project(torch.from_numpy(one.column(2, "objects_m").reshape(FRAMES, 2, 3)[:, :1].copy()))
    u, v = (at[0][:, 0] / 4).long().unbind(-1)
    on_thing = weights[np.arange(FRAMES), v.numpy(), u.numpy()]
    assert on_thing[-1] > on_thing[0] > 1.5
    assert video_set(folder, object_weight=0.0, moved_weight=0.0).weights(2, frames, size).max() > 2.0  # the gripper
    flat = video_set(folder, object_weight=0.0, moved_weight=0.0, gripper_weight=0.0)
    np.testing.assert_allclose(flat.weights(2, frames, size), 1.0)


def test_moments_are_where_a_thing_begins_to_move() -> None:
    things = np.zeros((20, 2, 3))
    things[8:12, 0, 0] = 0.02 * np.arange(4)
    things[12:, 0, 0] = 0.06
    things[17:, 1, 2] = 0.05
    things[:, 1, 0] = np.nan
    assert contact_moments(things) == [8]
    things[:, 1, 0] = 0.0
    assert contact_moments(things) == [8, 16]


def test_conditions_are_left_out_of_their_share_of_clips_alike_at_each_call() -> None:
    index = torch.arange(2000)
    gone = dropped(3, index, 0.2, 1)
    assert gone.float().mean() == pytest.approx(0.2, abs=0.03)
    assert torch.equal(dropped(3, index[700:900], 0.2, 1), gone[700:900])
    assert not torch.equal(dropped(3, index, 0.2, 2), gone)
    assert not dropped(3, index, 0.0, 0).any()


def refused(folder: Path) -> list[tuple[Callable[[], object], type[Exception], str]]:
    return [
        (lambda: SetSettings.of({"path": "x", "weigth": 1}), CardError, "Did you mean 'weight'"),
        (lambda: SetSettings.of({"weight": 1}), CardError, "A path is needed"),
        (lambda: video_set(folder, held_out_below=9), DataError, r"from index 9 on \(held_out\), got 5 in all"),
        (lambda: video_set(folder, frames=40), DataError, "room for a clip of 40 frames"),
        (lambda: Source(folder / "one", view="frnt"), UnknownNameError, "Did you mean 'front'"),
    ]


@pytest.mark.parametrize("case", range(5))
def test_what_cannot_be_is_refused_and_says_what_would_work(folder: Path, case: int) -> None:
    call, kind, message = refused(folder)[case]
    with pytest.raises(kind, match=message):
        call()
