"""Clips for training: the same whoever asks, mixed and laid as asked, with camera, prompt and weights on the robot."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from vap_gym.cards import load_robot
from vap_gym.data import Episode, EpisodeSet, EpisodeWriter
from vap_gym.data.changes import gripper_changes
from vap_gym.data.clip_plan import ClipPlan, Recorded
from vap_gym.data.clips import Clip, ClipSampler, ClipSource, collate
from vap_gym.data.conventions import ACTION, GRIPPER, HANDS, HANDS_PX, JOINTS, columns_of_camera
from vap_gym.data.cropping import crop_for
from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.run import import_source
from vap_gym.data.importing.source import Options
from vap_gym.data.layout import DataError
from vap_gym.data.masks import at_latents, hand_mask
from vap_gym.errors import UnknownNameError
from vap_gym.geometry import Camera, centre_crop_32
from vap_gym.prompts.kinds import Prompter
from vap_gym.prompts.skeleton import Skeleton

LENGTH, SIZE = 70, (96, 54)  # 16:9: cropped at the sides
ROBOT = load_robot("panda_robotiq")
CAMERA = Camera.look_at(
    torch.tensor([1.3, 0.5, 0.7], dtype=torch.float64),
    torch.tensor([0.4, 0.0, 0.3], dtype=torch.float64),
    vertical_fov_rad=0.9,
    frame_size_px=SIZE,
)


def robot_episode(number: int, *, length: int = LENGTH, told: bool = True) -> Episode:
    """Frame t has brightness 3 t; the arm swings, the gripper closes at a third and opens at two thirds."""
    t = np.arange(length)
    q = np.array(ROBOT.home_q_rad) + 0.3 * np.sin(t / 20 + number)[:, None] * np.eye(7)[0]
    closed = np.clip((t - length / 3) / 4, 0, 1) - np.clip((t - 2 * length / 3) / 4, 0, 1)
    camera = columns_of_camera(CAMERA, "cam", length)
    if not told:
        camera = {name: np.full_like(values, np.nan) for name, values in camera.items()}
    frames = np.broadcast_to((3 * t)[:, None, None, None], (length, SIZE[1], SIZE[0], 3)).astype(np.uint8)
    action = np.stack([np.full(7, 10.0 * number), *[np.arange(7.0)] * (length - 1)]) + t[:, None]
    columns = {JOINTS: q, GRIPPER: 0.5 * closed, ACTION: action, **camera}
    return Episode(frames={"cam": frames}, columns=columns, task=f"task {number}", info={"robot": "panda_robotiq"})


def write(root: Path, episodes: list[Episode], **settings: Any) -> EpisodeSet:
    writer = EpisodeWriter(root, codec="h264_rgb", crf=0, **settings)
    for episode in episodes:
        writer.append(episode)
    return EpisodeSet(root)


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> EpisodeSet:
    return write(tmp_path_factory.mktemp("robots"), [robot_episode(i) for i in range(3)], fps=15)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> EpisodeSet:
    """Without robot or camera, at 5 Hz, with stored prompts."""
    frames = np.full((40, 48, 48, 3), 90, np.uint8)
    episode = Episode(frames={"video": frames, "prompt": 255 - frames}, columns={"x": np.zeros(40)}, task="t")
    return write(tmp_path_factory.mktemp("others"), [episode], fps=5)


def same(a: Clip, b: Clip) -> bool:
    arrays = ("frames", "prompts", "weights", "actions")
    return a.place == b.place and a.crop == b.crop and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays)


def sampler(*sources: ClipSource, **changed: Any) -> ClipSampler:
    given: dict[str, Any] = {"clips": 24, "frames": 9, "frame_size_px": (48, 32), "random_crop": 0.7, **changed}
    return ClipSampler(sources, **given)


def test_clip_is_the_same_whoever_asks(robots: EpisodeSet, others: EpisodeSet) -> None:
    sources = [ClipSource(episodes=robots, weight=1.0), ClipSource(episodes=others, weight=1.0)]
    one = sampler(*sources)
    clips = [one[i] for i in range(12)]
    again = sampler(*[ClipSource(episodes=EpisodeSet(s.episodes.root), weight=1.0) for s in sources])
    assert all(same(clips[i], again[i]) for i in (7, 0, 11, 3))
    assert not all(same(clips[i], sampler(*sources, seed=1)[i]) for i in range(4))
    loader = DataLoader(torch.utils.data.Subset(one, range(12)), batch_size=4, num_workers=2, collate_fn=collate)
    batches = list(loader)
    assert torch.equal(torch.cat([b["frames"] for b in batches]), torch.from_numpy(np.stack([c.frames for c in clips])))
    assert torch.equal(
        torch.cat([b["weights"] for b in batches]), torch.from_numpy(np.stack([c.weights for c in clips]))
    )
    assert [place for b in batches for place in b["place"]] == [clip.place for clip in clips]
    is_told = torch.isfinite(torch.cat([b["K"] for b in batches])).all(-1).all(-1).all(-1)
    assert is_told.tolist() == [clip.camera is not None for clip in clips]
    with pytest.raises(IndexError, match=r"No clip 24\. There are 24"):
        one[24]


def test_frames_actions_and_rate_are_those_of_the_stride(robots: EpisodeSet) -> None:
    one = sampler(ClipSource(episodes=robots), rate_hz=(4.0, 15.0))
    strides = set()
    for i in range(24):
        clip = one[i]
        strides.add(clip.place.stride)
        rows = clip.place.start + clip.place.stride * np.arange(9)
        assert (clip.frames == (3 * rows)[:, None, None, None]).all()
        assert clip.rate_hz == 15 / clip.place.stride
        assert 4 <= clip.rate_hz <= 15
        recorded = robots.read(clip.place.episode, views=(), columns=[ACTION]).columns[ACTION]
        assert np.array_equal(clip.actions.reshape(-1, 7), recorded[rows[0] : rows[-1]])
        assert clip.actions.dtype == recorded.dtype
        assert clip.task == f"task {clip.place.episode}"
    assert strides == {1, 2, 3}


@pytest.mark.parametrize("size", [(72, 48), (288, 192)])
def test_camera_prompt_and_weights_follow_the_crop(size: tuple[int, int], robots: EpisodeSet) -> None:
    one = sampler(ClipSource(episodes=robots), frame_size_px=size)
    figure, prompter = Skeleton(ROBOT), Prompter(ROBOT, "skeleton", frame_size_px=size)
    ends = [figure.keypoint_names.index(name) for name in ("left_end", "right_end")]
    inside = 0
    for i in range(6):
        clip = one[i]
        assert clip.weights.shape == (9, size[1], size[0])
        assert clip.camera is not None
        assert clip.camera.frame_size_px == size
        stop = clip.place.start + 8 * clip.place.stride + 1
        columns = robots.read(clip.place.episode, start=clip.place.start, stop=stop).columns
        q, g = (torch.from_numpy(columns[n][:: clip.place.stride]).float() for n in (JOINTS, GRIPPER))
        points = figure.at_joints(q, g)[:, ends].double()
        recorded, _ = CAMERA.project(points)
        moved, _ = clip.camera.project(points)
        np.testing.assert_allclose(clip.crop.pixels(recorded.numpy()), moved.numpy(), atol=1e-6)
        assert np.array_equal(prompter.draw(q, g, clip.camera.to(torch.float32)).numpy(), clip.prompts)
        for at, (u, v) in [(at, uv) for at, both in enumerate(moved.tolist()) for uv in both]:
            if 0 <= u < size[0] and 0 <= v < size[1]:
                inside += 1
                assert clip.weights[at, int(v), int(u)] == 3
        assert clip.weights.min() == 1
        assert clip.weights.mean() < 2
    assert inside > 40


def test_sets_are_mixed_by_weight() -> None:
    episodes = [Recorded(episode=0, frames=50, rate_hz=15.0)]
    plan = ClipPlan([episodes, episodes * 9, episodes], weights=[2.0, 1.0, 5.0], seed=3)
    counts = np.bincount([plan(i).source for i in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.25, 0.125, 0.625], atol=4 * np.sqrt(0.25 / 4000))
    assert ClipPlan([episodes, episodes * 9]).mixture.shares == pytest.approx((0.1, 0.9))
    nothing_of_the_second = ClipPlan([episodes, episodes], weights=[1.0, 0.0])
    assert {nothing_of_the_second(i).source for i in range(200)} == {0}


def assert_near(plan: ClipPlan, sets: list[list[Recorded]], clips: int, share: float) -> None:
    """The asked share of clips is laid around a change, which is in the middle half save at an episode's ends."""
    near = 0
    for i in range(clips):
        place = plan(i)
        episode = next(e for e in sets[place.source] if e.episode == place.episode)
        span = (plan.frames - 1) * place.stride
        assert 0 <= place.start <= place.start + span < episode.frames
        assert plan.rate_hz[0] <= place.rate_hz <= plan.rate_hz[1]
        if place.change is None:
            continue
        near += 1
        assert episode.closedness is not None
        assert place.change in gripper_changes(episode.closedness)
        off = abs(place.change - place.start - span / 2)
        at_an_end = place.start in (0, episode.frames - 1 - span)
        assert off <= span / 4 + 1 or (at_an_end and off <= span / 2)
    assert near / clips == pytest.approx(share, abs=4 * np.sqrt(0.25 / clips))


def test_half_of_the_clips_lie_around_gripper_changes() -> None:
    t = np.arange(400)
    closed = (t % 200 > 100).astype(float)
    sets = [[Recorded(episode=i, frames=400, rate_hz=15.0, closedness=closed) for i in range(3)]]
    plan = ClipPlan(sets)
    assert plan.near_share == 0.5
    assert_near(plan, sets, 1500, 0.5)
    assert_near(ClipPlan(sets, near_changes=0.8), sets, 1500, 0.8)
    still = [Recorded(episode=0, frames=400, rate_hz=15.0, closedness=np.zeros(400))]
    assert ClipPlan([*sets, still], weights=[1.0, 3.0]).near_share == 0.125
    assert {ClipPlan([still])(i).change for i in range(50)} == {None}


def test_half_of_the_clips_of_real_droid_episodes_lie_around_gripper_changes(shared_data: Path) -> None:
    found = []
    for folder in sorted((shared_data / "droid").glob("*_*/")):
        with np.load(folder / "log.npz") as log:
            rows = log["frame_to_row"] if "frame_to_row" in log else slice(None)
            closedness = log["gripper_position"][rows].astype(np.float64).reshape(-1)
        rate = json.loads((folder / "episode.json").read_text())["container_fps"]
        found.append(Recorded(episode=len(found), frames=len(closedness), rate_hz=rate, closedness=closedness))
    assert len(found) == 9
    changes = [len(gripper_changes(e.closedness)) for e in found if e.closedness is not None]
    assert sum(c > 0 for c in changes) == 8  # newsetup_0010 never closes its gripper
    assert max(changes) <= 4
    assert_near(ClipPlan([found]), [found], 1000, 0.5)


def test_a_clip_of_a_real_episode(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "droid"
    import_source(open_source("droid", path, Options()), path, tmp_path / "set", only="newsetup_00[01][09]")
    one = sampler(ClipSource(episodes=EpisodeSet(tmp_path / "set"), view="cam0"), frames=25, frame_size_px=(144, 96))
    assert sum(one.plan.left_out[0].values()) == 0
    clip = one[0]
    assert clip.frames.shape == clip.prompts.shape == (25, 96, 144, 3)
    assert clip.rate_hz == 4
    assert clip.frames.std() > 20
    assert 0.01 < (clip.prompts.max(-1) > 0).mean() < 0.9
    assert clip.weights.max() == 3
    assert at_latents(clip.weights).shape == (7, 12, 18)
    with pytest.raises(DataError, match=r"no camera of 'cam1' to draw prompts in"):
        sampler(ClipSource(episodes=EpisodeSet(tmp_path / "set"), view="cam1"))
    none = sampler(ClipSource(episodes=EpisodeSet(tmp_path / "set"), view="cam1", prompt="none"))[0]
    assert not none.is_weighted
    assert not none.prompts.any()


def test_stored_prompts_are_cut_like_the_frames(others: EpisodeSet) -> None:
    clip = sampler(ClipSource(episodes=others))[5]
    assert (clip.frames == 90).all()
    assert (clip.prompts == 165).all()
    assert clip.camera is None
    assert not clip.is_weighted
    assert (clip.weights == 1).all()
    assert clip.actions.shape == (8, 1, 0)


@pytest.mark.parametrize("kind", ["px", "m"])
def test_hands_weigh_more(kind: str, tmp_path: Path) -> None:
    joints_px = np.full((30, 2, 21, 2), np.nan)
    finger, joint = np.divmod(np.arange(20), 4)
    joints_px[:, 1, 0] = (48, 45)
    joints_px[:, 1, 1:] = np.stack([40 + 4 * finger, 36 - 5 * joint], -1)
    columns: dict[str, Any] = {HANDS_PX: joints_px}
    if kind == "m":
        K = np.array([[80.0, 0, 48], [0, 80, 27], [0, 0, 1]])
        joints_m = np.concatenate([(joints_px - K[:2, 2]) / 80 * 0.6, np.full((30, 2, 21, 1), 0.6)], -1)
        camera = Camera(K=torch.from_numpy(K), T_world_camera=torch.eye(4, dtype=torch.float64), frame_size_px=SIZE)
        columns = {HANDS: joints_m, **columns_of_camera(camera, "video", 30)}
    frames = {name: np.full((30, SIZE[1], SIZE[0], 3), 90, np.uint8) for name in ("video", "prompt")}
    hands = write(tmp_path, [Episode(frames=frames, columns=columns, task="", info={"robot": "hand_21"})], fps=15)
    clip = sampler(ClipSource(episodes=hands), random_crop=None)[0]
    assert clip.is_weighted
    uv = clip.crop.pixels(joints_px[0, 1])
    assert all(clip.weights[0, int(v), int(u)] == 3 for u, v in uv)
    assert 0.1 < (clip.weights > 1).mean() < 0.6


def test_hand_without_joints_weighs_nothing_and_latents_keep_the_mean() -> None:
    nothing = hand_mask(np.full((3, 2, 21, 2), np.nan), frame_size_px=(48, 32))
    assert not nothing.any()
    weights = np.random.default_rng(0).random((9, 32, 48)).astype(np.float32)
    latents = at_latents(weights)
    assert latents.shape == (3, 4, 6)
    assert (latents[0].mean() + 4 * latents[1:].mean((1, 2)).sum()) / 9 == pytest.approx(weights.mean(), rel=1e-5)
    np.testing.assert_allclose(latents[1, 2, 3], weights[1:5, 16:24, 24:32].mean(), rtol=1e-5)
    with pytest.raises(DataError, match=r"1 \+ a multiple of 4 frames.*got 8 frames of 48 x 32 px"):
        at_latents(weights[:8])


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(32, 800), st.integers(32, 800)),
    target=st.tuples(st.integers(40, 160), st.integers(40, 160)),
    seed=st.none() | st.integers(0, 9999),
    share=st.floats(0.3, 1.0),
)
def test_crop_lies_in_the_picture_and_has_the_frames_shape(
    size: tuple[int, int], target: tuple[int, int], seed: int | None, share: float
) -> None:
    rng = None if seed is None else np.random.default_rng(seed)
    crop = crop_for(size, target, rng=rng, least_share=share)
    assert 0 <= crop.left <= crop.left + crop.width <= size[0]
    assert 0 <= crop.top <= crop.top + crop.height <= size[1]
    if crop.width * target[1] != crop.height * target[0]:  # as near as whole pixels allow
        assert abs(crop.width - crop.height * target[0] / target[1]) <= 1 + target[0] / target[1]
    if seed is None and 2 * target[0] == 3 * target[1]:
        assert (crop.left, crop.top, crop.width, crop.height) == centre_crop_32(*size)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), length=st.integers(1, 60), scale=st.floats(0.3, 1.0), noise=st.floats(0, 0.05))
def test_gripper_changes_alternate_and_survive_noise(data: Any, length: int, scale: float, noise: float) -> None:
    times = data.draw(st.lists(st.integers(1, length), max_size=4, unique=True).map(sorted))
    clean = np.zeros(length)
    for time in times:
        clean[time:] = 1 - clean[time:]
    wanted = [t for t in times if t < length]
    wobble = np.random.default_rng(length).uniform(-noise, noise, length)
    assert gripper_changes(scale * (clean + wobble)).tolist() == (wanted if len(set(clean)) > 1 else [])
    with_gaps = scale * clean
    with_gaps[np.random.default_rng(0).random(length) < 0.1] = np.nan
    assert len(gripper_changes(with_gaps)) <= len(wanted)


def test_what_gives_no_clips_is_told(robots: EpisodeSet, others: EpisodeSet, tmp_path: Path) -> None:
    mixed = write(tmp_path, [robot_episode(0), robot_episode(1, length=5), robot_episode(2, told=False)], fps=15)
    plan = sampler(ClipSource(episodes=mixed)).plan
    assert plan.left_out == [{"shorter than 9 frames": 1, "no camera of 'cam' to draw prompts in": 1}]
    assert {plan(i).episode for i in range(30)} == {0}
    with pytest.raises(DataError, match=r"Set 1 must have room for a clip of 50 frames at 4 to 15 Hz.*shorter than 50"):
        sampler(ClipSource(episodes=robots), ClipSource(episodes=others), frames=50)
    with pytest.raises(DataError, match=r"15 Hz, of which no whole part is 20 to 30 Hz"):
        sampler(ClipSource(episodes=robots), rate_hz=(20.0, 30.0))
    with pytest.raises(DataError, match=r"none in 0 episodes \(it is empty\)"):
        sampler(ClipSource(episodes=robots, members=[]))
    with pytest.raises(UnknownNameError, match=r"No prompt named 'skeletn'. Did you mean 'skeleton'\?"):
        sampler(ClipSource(episodes=robots, prompt="skeletn"))
    with pytest.raises(UnknownNameError, match=r"No view named 'cm'. Did you mean 'cam'\?"):
        sampler(ClipSource(episodes=robots, view="cm"))
    with pytest.raises(DataError, match=r"Stored prompts are the view 'prompt', got cam"):
        sampler(ClipSource(episodes=robots, prompt="stored"))
    with pytest.raises(DataError, match=r"Weights must be finite, at least 0 and not all 0, got \[-1.0\]"):
        sampler(ClipSource(episodes=robots, weight=-1.0))
