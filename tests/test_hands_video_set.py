"""Many hand videos into one set: the same bytes whoever works on them; failures stay apart, a killed run goes on."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from vap_gym import cli
from vap_gym.data import Episode, EpisodeSet, EpisodeWriter, write_video
from vap_gym.data.layout import DataError
from vap_gym.recover.hands import video_set
from vap_gym.recover.hands.clips import ClipSettings
from vap_gym.recover.hands.detections import write_detections
from vap_gym.recover.hands.pipeline import PairSettings
from vap_gym.recover.hands.skeleton21 import draw_hands
from vap_gym.recover.hands.synthetic import Faults, crossing_hands, seen
from vap_gym.recover.hands.video_set import HandVideo, recover_videos

pytest.importorskip("cv2")
SIZE = (96, 72)
TUNED = PairSettings(clips=ClipSettings(min_frames=6, max_frames=10, min_motion=0.0))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of 24, 8, 12 and 16 frames: b is no video, and d runs at another rate than those before it."""
    folder = tmp_path_factory.mktemp("recording")
    room = np.kron(np.random.default_rng(0).integers(40, 210, (9, 12, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    for name, frames, fps in (("a", 24, 15), ("c", 8, 15), ("d", 12, 30), ("e", 16, 15)):
        truth = crossing_hands(frames, seed=frames, rate_hz=15.0, frame_size_px=SIZE)
        hands = draw_hands(truth.joints_px, frame_size_px=SIZE, thickness_px=4.0)
        shown = np.where(hands.max(-1, keepdims=True) > 0, 150 + hands // 4, room).astype(np.uint8)
        write_video(folder / f"{name}.mp4", shown, fps, crf=12)
        write_detections(folder / f"{name}.npz", seen(truth, Faults(noise_px=0.2), seed=0))
    (folder / "b.mp4").write_bytes(b"no video")
    (folder / "b.npz").write_bytes((folder / "c.npz").read_bytes())
    return folder


def videos_of(recording: Path, names: str, task: str = "wave") -> list[HandVideo]:
    return [
        HandVideo(path=recording / f"{name}.mp4", detections=recording / f"{name}.npz", task=task) for name in names
    ]


def hashes(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def clips_of(out: Path) -> list[str]:
    """Video and frames of every episode, in order."""
    episodes = EpisodeSet(out)
    sources: Sequence[dict[str, str]] = [episodes.info(i)["source"] for i in range(len(episodes))]
    assert [episodes.index(i) for i in range(len(episodes))] == list(range(len(episodes)))
    return [f"{Path(source['path']).stem} {source['episode']}" for source in sources]


@pytest.fixture(scope="module")
def serial(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serial") / "out"
    found = recover_videos(videos_of(recording, "abcde"), out, TUNED)
    assert [outcome.error is None for outcome in found] == [True, False, True, False, True]
    assert "b.mp4" in str(found[1].error)
    assert "those before have 15 frames a second, got 30. Write this video into another" in str(found[3].error)
    return out


def test_clips_are_numbered_by_video_then_by_clip_and_bad_videos_leave_nothing(serial: Path) -> None:
    assert clips_of(serial) == ["a 0-10", "a 10-20", "c 0-8", "e 0-10", "e 10-16"]
    assert {path.stem for path in (serial / "overlays").iterdir()} == {"a", "c", "e"}
    assert not (serial / ".staged").exists()
    lines = [json.loads(line) for line in (serial / "meta/recover.jsonl").read_text().splitlines()]
    assert [line.get("status") for line in lines] == [None, "done", "failed", "done", "failed", "done"]


@pytest.mark.parametrize("executor", ["processes", pytest.param("ray", marks=pytest.mark.slow)])
def test_the_command_gives_the_same_bytes_with_every_executor(
    executor: str, recording: Path, serial: Path, tmp_path: Path
) -> None:
    if executor == "ray" and find_spec("ray") is None:
        pytest.skip("ray is not installed")
    words = ["recover", "hands", str(recording), str(recording), str(tmp_path / "out"), "--task", "wave"]
    words += ["--min-frames", "6", "--max-frames", "10", "--min-motion", "0", "--executor", executor, "--workers", "2"]
    command = [sys.executable, "-m", "vap_gym", *words]  # by itself: Ray cannot send what the hook of type checks wraps
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    told = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("left out")]
    assert told == ["b.mp4:", "d.mp4:"]
    assert "5 clips" in done.stdout
    assert hashes(tmp_path / "out") == hashes(serial)


def test_a_run_that_was_killed_among_the_clips_of_a_video_goes_on(
    recording: Path, serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopted: list[int] = []

    def killed(staged: Path, number: int, root: Path, index: int) -> None:
        if len(adopted) == 1:
            raise KeyboardInterrupt
        adopted.append(index)
        real_adopt(staged, number, root, index)

    real_adopt = video_set.adopt
    with monkeypatch.context() as patch:
        patch.setattr(video_set, "adopt", killed)
        with pytest.raises(KeyboardInterrupt):
            recover_videos(videos_of(recording, "abcde"), tmp_path / "out", TUNED)
    assert clips_of(tmp_path / "out") == ["a 0-10"]  # what is there can be read
    recover_videos(videos_of(recording, "abcde"), tmp_path / "out", TUNED)
    assert hashes(tmp_path / "out") == hashes(serial)


def test_mended_and_further_videos_are_added_and_what_is_there_stays(
    recording: Path, serial: Path, tmp_path: Path
) -> None:
    mended, out = tmp_path / "mended", tmp_path / "out"
    shutil.copytree(recording, mended)
    (first,) = recover_videos(videos_of(mended, "c"), out, TUNED)
    (second,) = recover_videos(videos_of(mended, "b"), out, TUNED)
    assert second.error is not None
    (mended / "b.mp4").write_bytes((mended / "c.mp4").read_bytes())
    again = recover_videos([*videos_of(mended, "b", task="point"), *videos_of(mended, "c")], out, TUNED)
    assert again[0].error is None
    assert again[1] == first
    assert clips_of(out) == ["c 0-8", "b 0-8"]
    assert [EpisodeSet(out).task(i) for i in range(2)] == ["wave", "point"]
    with pytest.raises(DataError, match=r"c.mp4' was recovered with task 'wave', got 'point'. Say the same to go on"):
        recover_videos(videos_of(mended, "c", task="point"), out, TUNED)
    with pytest.raises(DataError, match="of a run with other settings"):
        recover_videos(videos_of(mended, "c"), out, PairSettings(size_px=(48, 32)))
    assert clips_of(out) == ["c 0-8", "b 0-8"]


def test_a_run_that_gives_nothing_leaves_nothing(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recover", "hands", str(recording / "b.mp4"), str(recording / "b.npz"), str(tmp_path / "out")]
    assert cli.main(words) == 2
    assert "b.mp4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_set_is_not_written_into(tmp_path: Path) -> None:
    EpisodeWriter(tmp_path / "mine").append(Episode(frames={}, columns={"a": np.zeros(2)}, task=""))
    before = sorted((tmp_path / "mine").rglob("*"))
    with pytest.raises(DataError, match=r"must be a new folder, or one that an earlier run .* Name another"):
        recover_videos([], tmp_path / "mine", TUNED)
    assert sorted((tmp_path / "mine").rglob("*")) == before
