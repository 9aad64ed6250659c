"""Hand videos to (prompt, video) pairs: files of detections, the command, and damaged files of every kind."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vap_gym import cli
from vap_gym.data import EpisodeSet, write_video
from vap_gym.data.conventions import HANDS, camera_of
from vap_gym.data.layout import DataError
from vap_gym.recover.hands.clips import ClipSettings
from vap_gym.recover.hands.detections import detections, no_detections, read_detections, write_detections
from vap_gym.recover.hands.joints import from_openpose
from vap_gym.recover.hands.pipeline import (
    HANDS_PRESENT,
    HANDS_PX,
    HANDS_SOURCE,
    PairSettings,
    episodes_of,
    fit_intrinsics,
    fitted_to,
    measure_video,
    recover_video,
)
from vap_gym.recover.hands.skeleton21 import draw_hands, project_hands
from vap_gym.recover.hands.synthetic import Faults, TrueHands, crossing_hands, seen

pytest.importorskip("cv2")
SIZE = (192, 144)
FRAMES = 40
NAMES = ("box_px", "confidence", "right", "joints_px", "joints_m", "object")


@pytest.fixture(scope="module")
def truth() -> TrueHands:
    return crossing_hands(FRAMES, seed=1, rate_hz=15.0, frame_size_px=SIZE)


@pytest.fixture(scope="module")
def video(truth: TrueHands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hands as thick strokes over a still table, and from frame 30 on in another room."""
    path = tmp_path_factory.mktemp("video") / "table.mp4"
    rng = np.random.default_rng(0)
    rooms = [np.kron(rng.integers(40, 210, (18, 24, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)) for _ in "ab"]
    frames = np.stack([rooms[t >= 30] for t in range(FRAMES)])
    hands = draw_hands(truth.joints_px, frame_size_px=SIZE, thickness_px=7.0)
    frames = np.where(hands.max(-1, keepdims=True) > 0, 150 + hands // 4, frames).astype(np.uint8)
    write_video(path, frames, 15, crf=12)
    return path


@pytest.fixture(scope="module")
def table(truth: TrueHands):
    return seen(truth, Faults(noise_px=0.4), seed=0)


def test_pairs_hold_the_hands_of_their_frames(video: Path, table, truth: TrueHands) -> None:
    tuned = PairSettings(clips=ClipSettings(min_frames=8, max_frames=100))
    found = recover_video(video, table, rate_hz=None, settings=tuned)
    assert found.rate_hz == 15
    episodes = list(episodes_of(found, tuned, task="wave"))
    assert [episode.info["source"]["episode"] for episode in episodes] == [
        "0-30",
        "30-40",
    ]  # cut where the room changes
    for episode, start in zip(episodes, (0, 30)):
        frames = slice(start, start + len(episode))
        off = np.linalg.norm(episode.columns[HANDS_PX] - truth.joints_px[frames], axis=-1)
        assert (np.nan_to_num(off, nan=99) < 2).mean() > 0.95
        camera = camera_of(episode.columns, "video", SIZE).checked()
        assert np.allclose(camera.K[0], truth.K, atol=4)
        present = episode.columns[HANDS_PRESENT]
        assert np.array_equal(present, episode.columns[HANDS_SOURCE] > 0)
        uv, _ = project_hands(episode.columns[HANDS], camera)
        assert np.linalg.norm(uv - episode.columns[HANDS_PX], axis=-1)[present].max() < 6
        lit = episode.frames["prompt"].max(-1) > 0
        assert lit.any((1, 2)).tolist() == present.any(1).tolist()
        assert episode.task == "wave"
        assert episode.info["robot"] == "hand_21"


def test_pictures_can_be_cropped_and_scaled_and_all_follows(video: Path, table) -> None:
    whole = PairSettings(clips=ClipSettings(min_frames=8))
    found = recover_video(video, table, rate_hz=15.0, settings=whole)
    large, small = (next(episodes_of(found, replace(whole, size_px=size))) for size in (None, (72, 48)))
    assert small.frames["video"].shape[1:] == small.frames["prompt"].shape[1:] == (48, 72, 3)
    scale, top = 72 / 192, (144 - 128) / 2
    moved = (large.columns[HANDS_PX] - [0, top]) * scale
    assert np.allclose(small.columns[HANDS_PX], moved, equal_nan=True)
    uv, _ = project_hands(small.columns[HANDS], camera_of(small.columns, "video", (72, 48)))
    uv_large, _ = project_hands(large.columns[HANDS], camera_of(large.columns, "video", SIZE))
    assert np.allclose(uv, (uv_large - [0, top]) * scale, equal_nan=True)
    with pytest.raises(DataError, match="720 480"):
        fitted_to(found.hands, None, large.frames["video"], (4, 4))


def test_a_captioner_is_asked_for_both_kinds(video: Path, table) -> None:
    class Counting:
        def caption(self, frames: np.ndarray, *, action: bool) -> str:
            return f"{len(frames)} frames{', waving' if action else ''}"

    tuned = PairSettings(check_view=False)
    (episode,) = episodes_of(recover_video(video, table, rate_hz=15.0, settings=tuned), tuned, captioner=Counting())
    assert episode.info["caption_scene"] == "40 frames"
    assert episode.task == episode.info["caption_action"] == "40 frames, waving"


def test_a_video_is_measured_in_blocks_as_in_one_go(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = np.full((FRAMES, 2, 4), np.nan)
    whole = measure_video(video, boxes)
    monkeypatch.setattr("vap_gym.recover.hands.pipeline.BLOCK", 7)
    pieces = measure_video(video, boxes)
    for name in ("flow", "homography", "inliers", "residual", "cut"):
        assert np.array_equal(getattr(whole, name), getattr(pieces, name)), name
    assert np.flatnonzero(whole.cut).tolist() == [30]


def test_intrinsics_are_found_from_3d_and_2d_joints(table, truth: TrueHands) -> None:
    K, error = fit_intrinsics(table)
    assert np.allclose(K, truth.K, atol=1.5)
    assert error < 1
    assert fit_intrinsics(replace(table, joints_m=np.full_like(table.joints_m, np.nan))) is None
    assert fit_intrinsics(no_detections(3)) is None
    assert fit_intrinsics(replace(table, joints_m=table.joints_m[::-1]))[1] > 3  # joints of other frames


def as_json(table, rows: np.ndarray) -> dict:
    hands = []
    for row in rows.tolist():
        hand = {name: getattr(table, name)[row].tolist() for name in NAMES}
        hands.append(hand)
    return {"hands": hands}


@pytest.mark.parametrize("layout", ["json folder", "npz folder", "json file", "npz file"])
@pytest.mark.parametrize("order", ["openpose", "mano", "interhand"])
def test_detections_are_read_from_every_layout_and_order(tmp_path: Path, table, layout: str, order: str) -> None:
    told = replace(
        table, joints_px=from_openpose(table.joints_px, order), joints_m=from_openpose(table.joints_m, order)
    )
    by_frame = {t: np.flatnonzero(told.frame == t) for t in range(FRAMES) if (told.frame == t).any()}
    path = tmp_path / "seen"
    if layout == "npz file":
        path = tmp_path / "seen.npz"
        write_detections(path, told)
    elif layout == "json file":
        path = tmp_path / "seen.json"
        path.write_text(json.dumps({"frames": [{"frame": t, **as_json(told, rows)} for t, rows in by_frame.items()]}))
    else:
        path.mkdir()
        for t, rows in by_frame.items():
            if layout == "json folder":
                (path / f"frame_{t:06d}.json").write_text(json.dumps(as_json(told, rows)))
            else:
                np.savez(path / f"{t}.npz", **{name: getattr(told, name)[rows] for name in NAMES})
    read = read_detections(path, FRAMES, order=order)
    for name in ("frame", *NAMES):
        assert np.array_equal(getattr(read, name), getattr(table, name)), name


def test_empty_frames_and_left_out_3d_are_fine(tmp_path: Path) -> None:
    (tmp_path / "f_1.json").write_text('{"hands": []}')
    hand = {"box_px": [0, 0, 9, 9], "confidence": 1, "right": 1, "joints_px": [[1, 2]] * 21, "joints_m": None}
    (tmp_path / "f_2.json").write_text(json.dumps({"hands": [hand]}))
    read = read_detections(tmp_path, 5)
    assert read.frame.tolist() == [2]
    assert np.isnan(read.joints_m).all()
    assert read.object.tolist() == [-1]


HAND = {"box_px": [0, 0, 9, 9], "confidence": 1, "right": 1, "joints_px": [[1, 2]] * 21}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as .json"),
        ("[]", "got a list"),
        ('{"hands": 3}', '"hands" must be a list'),
        (json.dumps({"hands": [{**HAND, "joints_px": [[1, 2]] * 20}]}), r"joints_px must have shape \(21, 2\)"),
        (json.dumps({"hands": [{**HAND, "box_px": "left"}]}), "box_px must be numbers"),
        (json.dumps({"hands": [{**HAND, "right": 7}]}), r"between 0 \(left\) and 1 \(right\), got 7"),
        (json.dumps({"hands": [{"box_px": [0, 0, 1, 1]}]}), "a hand lacks confidence"),
        (json.dumps({"boxes": []}), "lacks box_px, confidence, right, joints_px"),
    ],
)
def test_wrong_files_are_told_with_their_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "0003.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_detections(tmp_path, 5)
    assert str(tmp_path) in str(caught.value)


def test_missing_or_ill_fitting_detections_are_told(tmp_path: Path, video: Path, table) -> None:
    with pytest.raises(DataError, match="No detections at"):
        read_detections(tmp_path / "none", 5)
    with pytest.raises(DataError, match="holds no detections"):
        read_detections(tmp_path, 5)
    (tmp_path / "a_9.json").write_text(json.dumps({"hands": [HAND]}))
    with pytest.raises(DataError, match="must lie in 0 … 4, got 9 … 9"):
        read_detections(tmp_path, 5)
    (tmp_path / "b_9.json").write_text(json.dumps({"hands": [HAND]}))
    with pytest.raises(DataError, match="two files of one frame"):
        read_detections(tmp_path, 50)
    with pytest.raises(DataError, match="do not fit"):
        recover_video(video, replace(table, frames=FRAMES + 5), rate_hz=None, settings=PairSettings())
    with pytest.raises(DataError, match="--rate-hz 30"):
        recover_video(video, table, rate_hz=-1.0, settings=PairSettings())
    with pytest.raises(DataError, match=r"joints_px of 2 hands must be numbers of shape \(2, 21, 2\)"):
        zeros = {"box_px": np.zeros((2, 4)), "confidence": np.zeros(2), "right": np.zeros(2)}
        detections(3, frame=np.array([0, 1]), joints_px=np.zeros((2, 21, 3)), **zeros)


NPZ = io.BytesIO()
np.savez_compressed(
    NPZ,
    frame=np.arange(2),
    box_px=np.ones((2, 4)),
    confidence=np.ones(2),
    right=np.ones(2),
    joints_px=np.ones((2, 21, 2)),
)
JSON = json.dumps({"frames": [{"frame": 1, "hands": [HAND]}]}).encode()


def refusal(path: Path) -> str:
    """What is said where detections cannot be read; the path where they can. Anything but a DataError is a crash."""
    try:
        read_detections(path, 4)
    except DataError as error:
        return str(error)
    return str(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([("seen.npz", NPZ.getvalue()), ("seen.json", JSON)]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=4),
    st.floats(0, 1),
)
def test_damaged_files_give_clear_errors_or_are_read(tmp_path: Path, file, flips, keep: float) -> None:
    name, content = file
    damaged = bytearray(content if flips else content[: int(keep * len(content))])
    for place, value in flips:
        damaged[min(int(place * len(damaged)), len(damaged) - 1)] ^= value
    (tmp_path / name).write_bytes(damaged)
    assert name in refusal(tmp_path / name)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(-3, 9),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["hands", "frames", "frame", *NAMES]), inner, max_size=6)
        ),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / "seen_1.json").write_text(json.dumps(content))
    assert str(tmp_path) in refusal(tmp_path)
    (tmp_path / "seen_1.json").unlink()


def test_the_command_writes_a_set_once(tmp_path: Path, video: Path, table, capsys: pytest.CaptureFixture[str]) -> None:
    write_detections(tmp_path / "seen.npz", table)
    words = ["recover", "hands", str(video), str(tmp_path / "seen.npz"), str(tmp_path / "out"), "--min-frames", "8"]
    words += ["--size", "96", "64", "--task", "wave", "--lab", "home"]
    assert cli.main(words) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "table.mp4" in shown
    assert "2 clips" in shown
    episodes = EpisodeSet(tmp_path / "out")
    assert [episodes.length(i) for i in range(len(episodes))] == [30, 10]
    assert episodes.features.views == {"prompt": (64, 96), "video": (64, 96)}
    assert episodes.info(1)["lab"] == "home"
    assert (tmp_path / "out" / "overlays" / "table.png").is_file()
    assert cli.main([*words, "--json"]) == 0  # once more: nothing new
    told = json.loads(capsys.readouterr().out)
    assert (told["clips"], [one["video"] for one in told["videos"]]) == (2, ["table.mp4"])
    assert len(EpisodeSet(tmp_path / "out")) == 2


def test_of_many_videos_the_bad_ones_are_left_out_and_told(
    tmp_path: Path, video: Path, table, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "seen").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(video.read_bytes() if name != "b" else b"no video")
    write_detections(tmp_path / "seen" / "a.npz", table)
    write_detections(tmp_path / "seen" / "c.npz", no_detections(FRAMES))
    words = ["recover", "hands", str(tmp_path / "videos"), str(tmp_path / "seen"), str(tmp_path / "out")]
    assert cli.main([*words, "--min-frames", "8"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "left out  b.mp4: " in shown
    assert "0 (0 used)" in shown
    assert len(EpisodeSet(tmp_path / "out")) == 2
    empty = ["recover", "hands", str(tmp_path / "seen"), str(tmp_path / "seen"), str(tmp_path / "none")]
    assert cli.main(empty) == 2
    assert "holds no videos" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
