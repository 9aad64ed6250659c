"""Imports: failures are kept apart, a killed import is readable and goes on to the same set, the command tells all."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vap_gym import cli
from vap_gym.data import DataError, Episode, EpisodeSet, EpisodeWriter, read_video, write_video
from vap_gym.data.importing import run
from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.run import Doubts, Outcome, import_source, read_manifest
from vap_gym.data.importing.source import Options, RawEpisode, RawView, VideoFile

BROKEN = ("e3", "e6")


def pictures(i: int, count: int) -> NDArray[np.uint8]:
    picture = np.random.default_rng(i).integers(0, 200, (1, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    return (picture + np.arange(count)[:, None, None, None]).astype(np.uint8)


def make_recording(root: Path, episodes: int = 9) -> Path:
    """DROID folders e0, e1, …, two of them damaged."""
    for i in range(episodes):
        folder, count = root / f"e{i}", 4 + i % 3
        folder.mkdir(parents=True)
        rng = np.random.default_rng(i)
        np.savez(
            folder / "log.npz",
            joint_position=rng.normal(size=(count, 7)),
            gripper_position=rng.random(count),
            cartesian_position=rng.normal(size=(count, 6)),
        )
        (folder / "episode.json").write_text(json.dumps({"instruction": f"task {i % 2}", "log_rate_hz": 10.0}))
        for view in ("cam0", "cam1"):
            write_video(folder / f"{view}.mp4", pictures(i, count), 10)
        if f"e{i}" in BROKEN:
            (folder / "log.npz").write_bytes((folder / "log.npz").read_bytes()[:200])
    return root


def imported(path: Path, out: Path, **settings: Any) -> run.Report:
    return import_source(open_source("droid", path, Options()), path, out, episodes_per_file=3, **settings)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recording(tmp_path_factory.mktemp("recording") / "in")


@pytest.fixture(scope="module")
def whole(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set of an import that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole") / "set"
    imported(recording, out)
    return out


def assert_readable(out: Path) -> None:
    for episode in EpisodeSet(out):
        name = episode.info["source"]["episode"]
        assert name not in BROKEN
        assert np.array_equal(episode.columns["observation.gripper_position"].shape, [len(episode)])
        assert {len(frames) for frames in episode.frames.values()} == {len(episode)}


def test_damaged_episodes_are_listed_with_reasons_and_all_others_imported(whole: Path) -> None:
    lines = read_manifest(whole)
    assert (lines[0]["kind"], lines[0]["fps"]) == ("droid", None)
    assert [line["episode"] for line in lines[1:]] == [f"e{i}" for i in range(9)]
    assert [line["index"] for line in lines[1:] if "index" in line] == list(range(7))
    for line in lines[1:]:
        assert ("failed" in line) == (line["episode"] in BROKEN)
        assert "must be readable, got" in line.get("failed", "must be readable, got")
    assert_readable(whole)
    assert len(EpisodeSet(whole)) == 7


def test_import_killed_by_the_system_is_readable_and_goes_on_to_the_same_set(
    recording: Path, whole: Path, tmp_path: Path, repo: Path
) -> None:
    code = (
        "from pathlib import Path; from test_import_run import imported\n"
        f"imported(Path({str(recording)!r}), Path({str(tmp_path / 'set')!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(repo), str(repo / "tests")])}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    while len(list((tmp_path / "set/.pending").glob("episode-*"))) < 3 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert len(EpisodeSet(tmp_path / "set")) >= 3
    assert_readable(tmp_path / "set")
    imported(recording, tmp_path / "set")
    assert files(tmp_path / "set") == files(whole)


class Killed(BaseException):
    """What a signal would do, at a place of our choosing."""


@pytest.mark.parametrize(("place", "call"), [("_entry", 1), ("_entry", 5), ("_write_manifest", 2), ("finalise", 1)])
def test_import_killed_anywhere_goes_on_to_the_same_set(
    recording: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, call: int
) -> None:
    """`_entry` is called between an episode's rename and its line in the manifest."""
    real, calls = getattr(run, place), iter(range(1, 1000))

    def die(*arguments: Any) -> Any:
        if next(calls) == call:
            assert read_manifest(tmp_path / "set")[0]["kind"] == "droid"  # on disk, though nothing was closed
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(run, place, die)
    with pytest.raises(Killed):
        imported(recording, tmp_path / "set")
    monkeypatch.undo()
    assert_readable(tmp_path / "set")
    imported(recording, tmp_path / "set")
    assert files(tmp_path / "set") == files(whole)
    imported(recording, tmp_path / "set")
    assert files(tmp_path / "set") == files(whole)


def test_mended_and_new_episodes_are_added_when_called_again(tmp_path: Path) -> None:
    path, out = make_recording(tmp_path / "in", 4), tmp_path / "set"
    assert [outcome.name for outcome in imported(path, out).failed] == ["e3"]
    assert imported(path, out, limit=2).outcomes == tuple(imported(path, out).outcomes)[:2]
    make_recording(tmp_path / "other", 9)
    for name, target in (("e4", "e3"), ("e5", "e9")):
        (path / target).mkdir(exist_ok=True)
        for file in (tmp_path / "other" / name).iterdir():
            (path / target / file.name).write_bytes(file.read_bytes())
    report = imported(path, out)
    assert not report.failed
    assert [(outcome.name, outcome.index) for outcome in report.outcomes] == [
        *((f"e{i}", i) for i in range(4)),
        ("e9", 4),
    ]
    assert [EpisodeSet(out).length(i) for i in range(5)] == [4, 5, 6, 5, 6]


def test_set_of_another_source_or_rate_is_not_continued(recording: Path, whole: Path, tmp_path: Path) -> None:
    before = files(whole)
    other = make_recording(tmp_path / "in", 1)
    with pytest.raises(DataError, match="was imported from path .*, got .*Go on with the same source"):
        imported(other, whole)
    with pytest.raises(DataError, match="was begun with --fps None, got 5"):
        imported(recording, whole, doubts=Doubts(fps=5))
    assert files(whole) == before
    EpisodeWriter(tmp_path / "mine").append(Episode(frames={}, columns={"a": np.zeros(2)}, task=""))
    with pytest.raises(DataError, match="must be new or an import to go on with, got a set without meta/import.jsonl"):
        imported(recording, tmp_path / "mine")
    with pytest.raises(DataError, match="must hold episodes with names of their own, got none for --only 'x'"):
        imported(recording, tmp_path / "none", only="x")
    assert not (tmp_path / "none").exists()


def test_import_of_nothing_leaves_nothing(recording: Path, tmp_path: Path) -> None:
    report = imported(recording, tmp_path / "set", only="e3")
    assert (report.fps, report.frames, len(report.failed)) == (None, 0, 1)
    assert not (tmp_path / "set").exists()


class Listed:
    """A source of episodes that are given."""

    def __init__(self, *episodes: RawEpisode) -> None:
        self.episodes = {episode.name: episode for episode in episodes}
        self.kind, self.robot, self.rate_hz = "listed", "unknown", None

    def names(self) -> list[str]:
        return list(self.episodes)

    def read(self, name: str) -> RawEpisode:
        return self.episodes[name]


def raw(view: RawView, rate_hz: float | None, rows: int = 6) -> RawEpisode:
    return RawEpisode(name="e", views={"a": view}, columns={"q": np.zeros((rows, 2))}, rate_hz=rate_hz)


@pytest.mark.parametrize(
    ("rate_hz", "doubts", "message"),
    [
        (None, Doubts(), "The frame rate of 'e' must be stated, got none from its source. State it: --rate-hz 15"),
        (0.0, Doubts(), "must be above 0 Hz, got 0.0"),
        (float("nan"), Doubts(), "must be above 0 Hz, got nan"),
        (12.5, Doubts(), "needs a whole number of frames a second, got 12.5 from 'e'. Choose it: --fps 12"),
    ],
)
def test_doubtful_rates_are_refused(tmp_path: Path, rate_hz: float | None, doubts: Doubts, message: str) -> None:
    report = import_source(Listed(raw(pictures(0, 6), rate_hz)), tmp_path, tmp_path / "set", doubts=doubts)
    assert message in str(report.failed[0].failed)


def test_rates_are_stated_or_decided(tmp_path: Path) -> None:
    for name, rate_hz, doubts, wanted in (
        ("a", 29.97, Doubts(), (30, "the source", 29.97)),
        ("b", 12.5, Doubts(fps=12), (12, "--fps", 12.5)),
        ("c", None, Doubts(rate_hz=15.0), (15, "the source", 15.0)),
        ("d", None, Doubts(fps=9), (9, "--fps", None)),
    ):
        report = import_source(Listed(raw(pictures(0, 6), rate_hz)), tmp_path, tmp_path / name, doubts=doubts)
        assert (report.fps, report.fps_from, EpisodeSet(tmp_path / name).info(0)["rate_hz"]) == wanted


def test_videos_that_cannot_be_cut_are_recoded_only_when_asked(tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", pictures(0, 20), 10)
    part = VideoFile(path=tmp_path / "long.mp4", start=7, stop=13)
    source = Listed(raw(part, 10.0))
    report = import_source(source, tmp_path, tmp_path / "no")
    assert "must be cut at key frames to be copied untouched" in str(report.failed[0].failed)
    assert not import_source(source, tmp_path, tmp_path / "yes", doubts=Doubts(recode=True)).failed
    given, got = read_video(part.path)[7:13].astype(int), EpisodeSet(tmp_path / "yes")[0].frames["a"]
    assert np.abs(got - given).mean() < 2


def test_command_prints_progress_reasons_and_the_set(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "import", "droid", str(recording), str(tmp_path / "set"), "--only", "e[0-3]"])
    told = capsys.readouterr().out
    assert stop.value.code == 1
    assert "e3       failed: " in told
    assert "3 episodes, 15 frames, 1 failed" in told
    assert "fps      10, from the source" in told
    assert "views    cam0 32x32, cam1 32x32" in told
    assert "observation.joint_position float64[7]" in told
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "import", "droid", str(recording), str(tmp_path / "b"), "--only", "e0", "--fps", "7"])
    assert (stop.value.code, EpisodeSet(tmp_path / "b").fps) == (0, 7)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "import", "droid", str(recording), str(tmp_path / "d"), "--only", "e[23]", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (stop.value.code, told["failed"], told["fps"]) == (1, 1, 10)
    assert [(row["name"], row["failed"] is None) for row in told["episodes"]] == [("e2", True), ("e3", False)]
    assert cli.main(["data", "import", "droit", str(recording), str(tmp_path / "c")]) == 2
    assert "No kind of recording named 'droit'. Did you mean 'droid'?" in capsys.readouterr().err


def test_progress_is_told_episode_by_episode(recording: Path, tmp_path: Path) -> None:
    told: list[Outcome] = []
    report = imported(recording, tmp_path / "set", only="e[2-4]", progress=told.append)
    assert tuple(told) == report.outcomes
    assert [outcome.index for outcome in told] == [0, None, 1]


def test_a_set_begun_with_other_choices_is_not_continued(recording: Path, tmp_path: Path) -> None:
    def run_with(**given: Any) -> run.Report:
        options = Options(**given)
        source = open_source("droid", recording, options)
        return import_source(source, recording, tmp_path / "set", options=options, only="e[01]")

    run_with(action="joint_velocity")
    before = files(tmp_path / "set")
    with pytest.raises(DataError, match=r"begun with --action joint_velocity, got no --action. Go on with the same"):
        run_with()
    with pytest.raises(DataError, match=r"begun with no --robot, got --robot panda_hand. Go on with the same"):
        run_with(action="joint_velocity", robot="panda_hand")
    with pytest.raises(DataError, match="must be 1 or more, got --limit 0"):
        imported(recording, tmp_path / "none", limit=0)
    run_with(action="joint_velocity")
    assert files(tmp_path / "set") == before
