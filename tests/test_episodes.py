"""Data sets: what is written comes back to the bit, whoever writes, whenever killed; LeRobot finds its layout."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vap_gym.data import DataError, Episode, EpisodeSet, EpisodeWriter, describe, finalise, read_video
from vap_gym.data.layout import DTYPES

QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VIEW = "observation.images.exterior"


def make_episode(i: int) -> Episode:
    """Episode i, the same in every process; lengths, tasks and NaNs differ between episodes."""
    rng = np.random.default_rng(i)
    length = 5 + i * 7 % 23
    picture = rng.integers(0, 256, (1, 4, 6, 3)).repeat(8, 1).repeat(8, 2)
    frames = (picture + np.arange(length)[:, None, None, None]).clip(0, 255).astype(np.uint8)
    return Episode(
        frames={"exterior": frames, "wrist": frames[:, ::2, ::2]},
        labels={"segmentation": (frames[..., 0] // 32)},
        columns={
            "observation.state": rng.normal(size=(length, 8)).astype(np.float32),
            "action": rng.normal(size=(length, 7)).astype(np.float32),
            "objects_world_m": np.where(rng.random((length, 4, 3)) < 0.3, np.nan, rng.normal(size=(length, 4, 3))),
            "contact": rng.random(length) < 0.5,
        },
        task=("push the red block", "lift the cup", "reach")[i * i % 3],
        info={"seed": i, "success": i % 3 == 0, "scene": {"name": "табл 🤖", "sizes": [0.1, 1e-300, None]}},
    )


def write_set(root: Path, indices: list[int], per_file: int = 4) -> None:
    writer = EpisodeWriter(root, episodes_per_file=per_file)
    for i in indices:
        writer.write(i, make_episode(i))


def assert_holds(root: Path, indices: list[int]) -> None:
    episodes = EpisodeSet(root)
    assert [episodes.index(i) for i in range(len(episodes))] == indices
    for i, read in zip(indices, episodes, strict=True):
        made = make_episode(i)
        assert (read.task, read.info, read.index, len(read)) == (made.task, made.info, i, len(made))
        for name, values in made.columns.items():
            assert_same_bits(read.columns[name], values)
        assert_same_bits(read.labels["segmentation"], made.labels["segmentation"])
        for view, frames in made.frames.items():
            assert read.frames[view].shape == frames.shape
            assert np.abs(read.frames[view].astype(int) - frames).mean() < 3


def assert_same_bits(a: NDArray[Any], b: NDArray[Any]) -> None:
    assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def run(repo: Path, code: str) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join([str(repo), str(repo / "tests")])
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten episodes written in one go by one process."""
    root = tmp_path_factory.mktemp("whole")
    write_set(root, list(range(10)))
    finalise(root)
    return root


def test_episodes_come_back(whole: Path) -> None:
    assert_holds(whole, list(range(10)))


def test_episodes_can_be_read_before_they_are_gathered(tmp_path: Path) -> None:
    write_set(tmp_path, [4, 0, 2])
    assert_holds(tmp_path, [0, 2, 4])


@QUICK
@given(
    length=st.integers(1, 9),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4),
    shape=st.lists(st.integers(1, 4), max_size=3),
    seed=st.integers(0, 99),
)
def test_columns_of_any_type_and_shape_keep_their_bits(
    tmp_path: Path, length: int, dtypes: list[str], shape: list[int], seed: int
) -> None:
    root = tmp_path / str(len(list(tmp_path.iterdir())))
    rng = np.random.default_rng(seed)
    columns: dict[str, NDArray[Any]] = {}
    for number, dtype in enumerate(dtypes):
        itemsize = np.dtype(dtype).itemsize
        raw = rng.integers(0, 2 if dtype == "bool" else 256, (length, *shape, itemsize), dtype=np.uint8)
        columns[f"c{number}"] = raw.view(dtype).reshape(length, *shape)
        if dtype.startswith("float"):
            columns[f"c{number}"].reshape(-1)[: length % 4] = np.array([np.nan, -0.0, -np.inf], dtype)[: length % 4]
    episode = Episode(frames={}, columns=columns, task="")
    EpisodeWriter(root).append(episode)
    for _ in ("pending", "gathered"):
        read = EpisodeSet(root)[0]
        for name, values in columns.items():
            assert_same_bits(read.columns[name], values)
        finalise(root)


@QUICK
@given(
    info=st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_info_comes_back_exactly(tmp_path: Path, info: dict[str, Any]) -> None:
    root = tmp_path / "set"
    index = EpisodeWriter(root).append(Episode(frames={}, columns={"a": np.zeros(2)}, task="", info=info))
    assert EpisodeSet(root).info(index) == info


def test_any_frame_range_of_any_episode_is_a_slice_of_it(whole: Path) -> None:
    episodes = EpisodeSet(whole)
    part, all_of_it = episodes.read(6, start=2, stop=5), episodes[6]
    for kind in ("frames", "labels", "columns"):
        for name, values in getattr(all_of_it, kind).items():
            assert_same_bits(getattr(part, kind)[name], values[2:5])


def test_what_is_not_asked_for_is_not_read(whole: Path) -> None:
    part = EpisodeSet(whole).read(3, views=(), labels=(), columns=["action"])
    assert (dict(part.frames), dict(part.labels), list(part.columns)) == ({}, {}, ["action"])


def test_set_is_the_same_whoever_writes_in_whatever_order(whole: Path, tmp_path: Path, repo: Path) -> None:
    code = "from pathlib import Path; from test_episodes import write_set; write_set(Path({!r}), {})"
    workers = [run(repo, code.format(str(tmp_path), list(range(start, 10, 3))[::-1])) for start in range(3)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    finalise(tmp_path)
    assert files(tmp_path) == files(whole)


def test_killed_run_is_readable_and_continues_to_the_same_set(whole: Path, tmp_path: Path, repo: Path) -> None:
    code = (
        "from pathlib import Path; from test_episodes import *\n"
        f"writer = EpisodeWriter(Path({str(tmp_path)!r}), episodes_per_file=4)\n"
        "for i in writer.missing(10): writer.write(i, make_episode(i))\n"
        "finalise(writer.root)"
    )
    for written in (1, 4, 9):
        process = run(repo, code)
        while len(list((tmp_path / ".pending").glob("episode-*"))) < written and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        episodes = EpisodeSet(tmp_path)
        assert_holds(tmp_path, [episodes.index(i) for i in range(len(episodes))])
    assert run(repo, code).wait(120) == 0
    assert files(tmp_path) == files(whole)


class Killed(BaseException):
    """What a signal would do, at a place of our choosing."""


@pytest.mark.parametrize("step", [1, 3, 4, 5, 6, 10, 14, 15, 16, 17, 18])
def test_gathering_killed_after_any_file_leaves_the_set_whole(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    write_set(tmp_path, [0, 1])
    finalise(tmp_path)  # so that the first file grows while it is in use
    write_set(tmp_path, list(range(2, 10)))
    replace: Callable[..., None] = os.replace
    calls = iter(range(1, 1000))

    def replace_then_die(*paths: Any) -> None:
        replace(*paths)
        if next(calls) == step:
            raise Killed

    monkeypatch.setattr(os, "replace", replace_then_die)
    with pytest.raises(Killed):
        finalise(tmp_path)
    monkeypatch.undo()
    assert_holds(tmp_path, list(range(10)))
    finalise(tmp_path)
    assert files(tmp_path) == files(whole)


def test_episodes_added_later_give_the_same_set(whole: Path, tmp_path: Path) -> None:
    for indices in ([1, 0], [2], [5, 3, 4, 6, 8, 7], [9]):
        write_set(tmp_path, indices)
        finalise(tmp_path)
    assert files(tmp_path) == files(whole)
    before = files(tmp_path)
    finalise(tmp_path)
    assert files(tmp_path) == before


def test_lerobot_finds_its_v3_layout(whole: Path) -> None:
    """The rules by which LeRobot 0.4+ reads a set: templates, row ranges, task table, times of episodes in a video."""
    info = json.loads((whole / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["splits"]) == ("v3.0", 15, {"train": "0:10"})
    assert (info["total_episodes"], info["total_tasks"]) == (10, 2)
    rows, data = (
        [
            row
            for path in sorted((whole / folder).glob("*/*.parquet"))
            for row in pq.ParquetFile(path).read().to_pylist()
        ]
        for folder in ("meta/episodes", "data")
    )
    assert [row["index"] for row in data] == list(range(info["total_frames"]))
    tasks = pq.read_table(whole / "meta/tasks.parquet")
    pandas = json.loads(tasks.schema.metadata[b"pandas"])
    names = tasks.column(pandas["index_columns"][0]).to_pylist()
    assert tasks.column("task_index").to_pylist() == list(range(len(names)))
    schema = pq.read_schema(whole / "data/chunk-000/file-000.parquet")
    for key, feature in info["features"].items():
        assert "/" not in key
        if feature["dtype"] != "video":
            width = feature["shape"][0]
            assert len(feature["shape"]) == 1
            assert (schema.field(key).type.list_size if width > 1 else 1) == width
    for i, row in enumerate(rows):
        mine = data[row["dataset_from_index"] : row["dataset_to_index"]]
        assert row["episode_index"] == i
        assert row["length"] == len(mine)
        assert {r["episode_index"] for r in mine} == {i}
        assert [r["frame_index"] for r in mine] == list(range(len(mine)))
        assert [r["timestamp"] for r in mine] == pytest.approx([t / 15 for t in range(len(mine))])
        assert {names[r["task_index"]] for r in mine} == set(row["tasks"])
        places = {"chunk_index": row[f"videos/{VIEW}/chunk_index"], "file_index": row[f"videos/{VIEW}/file_index"]}
        video = read_video(whole / info["video_path"].format(video_key=VIEW, **places))
        first, last = (round(row[f"videos/{VIEW}/{end}_timestamp"] * 15) for end in ("from", "to"))
        assert np.array_equal(video[first:last], EpisodeSet(whole)[i].frames["exterior"])


def test_statistics_are_those_of_all_frames(whole: Path) -> None:
    stats = json.loads((whole / "meta/stats.json").read_text())
    episodes = list(EpisodeSet(whole))
    for name in ("action", "objects_world_m"):
        values = np.concatenate([e.columns[name].reshape(len(e), -1) for e in episodes])
        assert stats[name]["min"] == pytest.approx(np.nanmin(values, axis=0))
        assert stats[name]["max"] == pytest.approx(np.nanmax(values, axis=0))
        assert stats[name]["count"] == [len(values)]
    actions = np.concatenate([e.columns["action"] for e in episodes]).astype(float)
    assert stats["action"]["mean"] == pytest.approx(actions.mean(axis=0))
    assert stats["action"]["std"] == pytest.approx(actions.std(axis=0))
    assert np.shape(stats[VIEW]["mean"]) == (3, 1, 1)
    assert 0 < np.min(stats[VIEW]["mean"]) < np.max(stats[VIEW]["max"]) <= 1


def test_other_tools_sets_are_read_and_never_written(whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "a=1"  # a folder name that Arrow would take for a column
    write_set(root, list(range(6)))
    finalise(root)
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    del info["vap_gym"]
    height, width, _ = info["features"][VIEW]["shape"]
    info["features"][VIEW].update(shape=[3, height, width], names=["channels", "height", "width"])
    path.write_text(json.dumps(info))
    read, ours = EpisodeSet(root)[5], EpisodeSet(whole)[5]
    assert_same_bits(read.frames["exterior"], ours.frames["exterior"])
    assert_same_bits(read.columns["action"], ours.columns["action"])
    assert read.columns["objects_world_m"].shape == (len(ours), 12)
    assert EpisodeSet(root).features.views == EpisodeSet(whole).features.views
    with pytest.raises(DataError, match="must be a set of vap-gym's, got another tool's"):
        EpisodeWriter(root)


def changed(**fields: Any) -> Episode:
    made = make_episode(0)
    parts = {"frames": made.frames, "columns": made.columns, "labels": made.labels, "task": "", "info": {}}
    for name, value in fields.items():
        parts[name] = {**parts[name], **value}  # type: ignore[dict-item]
    return Episode(**parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (changed(columns={"action": np.zeros((4, 7), np.float32)}), "'action' must have 5 rows .*, got 4"),
        (
            changed(columns={"action": np.zeros((5, 6), np.float32)}),
            r"'action' of .* shape=\(7,\).*, got .*shape=\(6,\)",
        ),
        (changed(columns={"action": np.zeros((5, 7))}), "dtype='float32'.*, got .*dtype='float64'"),
        (changed(columns={"action": np.zeros((5, 7), object)}), "one of bool, int8.*, got object"),
        (changed(columns={"new": np.zeros(5)}), "column 'new' of .* is absent, got Column"),
        (changed(columns={"a/b": np.zeros(5)}), "must not hold '/'.*, got 'a/b'"),
        (changed(columns={"index": np.zeros(5)}), "got 'index'"),
        (changed(frames={"exterior": np.zeros((5, 3, 32, 48), np.uint8)}), r"uint8 \(T, H, W, 3\), got uint8 \(5, 3,"),
        (changed(frames={"exterior": np.zeros((5, 32, 48, 3))}), r"uint8 \(T, H, W, 3\), got float64"),
        (changed(frames={"exterior": np.zeros((5, 64, 48, 3), np.uint8)}), r"is \(32, 48\), got \(64, 48\)"),
        (changed(labels={"segmentation": np.zeros((5, 32, 48), np.int64)}), r"uint8 \(T, H, W\), got int64"),
        (Episode(frames={}, columns=make_episode(0).columns, task=""), r"view 'exterior' .* is \(32, 48\), got none"),
        (Episode(frames={}, columns={}, task=""), "at least 1 step, got none"),
        (changed(info={"q": np.zeros(2)}), "must be plain JSON, got .*ndarray"),
    ],
)
def test_wrong_episodes_are_refused_and_leave_nothing(tmp_path: Path, episode: Episode, message: str) -> None:
    write_set(tmp_path, [0])
    before = files(tmp_path)
    with pytest.raises(DataError, match=message):
        EpisodeWriter(tmp_path, episodes_per_file=4).write(1, episode)
    assert files(tmp_path) == before


def test_wrong_use_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index >= 0 that .* does not hold yet, got 3"):
        EpisodeWriter(whole, episodes_per_file=4).write(3, make_episode(3))
    with pytest.raises(DataError, match=r"fps of .* is 15, got 10"):
        EpisodeWriter(whole, episodes_per_file=4, fps=10)
    with pytest.raises(DataError, match=r"episodes_per_file of .* is 4, got 50"):
        EpisodeWriter(whole)
    with pytest.raises(DataError, match=r"codec of .* got"):
        EpisodeWriter(whole, episodes_per_file=4, crf=20)
    with pytest.raises(DataError, match="No video codec named 'av1'"):
        EpisodeWriter(tmp_path, codec="av1")
    with pytest.raises(DataError, match="fps >= 1"):
        EpisodeWriter(tmp_path, fps=0)
    with pytest.raises(DataError, match=r"0 <= start < stop <= 5, got start=3, stop=9"):
        EpisodeSet(whole).read(0, start=3, stop=9)
    with pytest.raises(DataError, match=r"No view named 'top' in this set\. Known: exterior, wrist"):
        EpisodeSet(whole).read(0, views=["top"])
    with pytest.raises(IndexError, match="holds 10"):
        EpisodeSet(whole)[10]
    write_set(tmp_path, [0, 3])
    with pytest.raises(DataError, match="without gaps, got 2 and misses 1, 2"):
        finalise(tmp_path)


def test_what_is_no_set_or_a_damaged_one_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a data set: it needs meta/info.json, given no such folder"):
        EpisodeSet(tmp_path / "none")
    with pytest.raises(DataError, match="given a folder without it"):
        EpisodeSet(tmp_path)
    write_set(tmp_path, [0, 1])
    finalise(tmp_path)
    for name in ("data/chunk-000/file-000.parquet", "labels/segmentation/chunk-000/file-000.parquet"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=r"must be a parquet file, got .* damaged"):
            EpisodeSet(tmp_path)[1]
        (tmp_path / name).write_bytes(content)
    (tmp_path / f"videos/{VIEW}/chunk-000/file-000.mp4").unlink()
    with pytest.raises(DataError, match="No video at"):
        EpisodeSet(tmp_path)[1]
    path = tmp_path / "meta/info.json"
    path.write_text(json.dumps({"codebase_version": "v2.1"}))
    with pytest.raises(DataError, match=r"must be of LeRobot version v3.x, given 'v2.1'"):
        EpisodeSet(tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match="must be JSON"):
        EpisodeSet(tmp_path)


def test_description_counts_what_is_there(whole: Path) -> None:
    text = describe(whole)
    assert "10 episodes" in text
    assert "view    exterior  32x48 px" in text
    assert "column  objects_world_m  float64 [4, 3]" in text
    assert "task  6 x lift the cup" in text
    assert "success  4 x True" in text


def test_data_needs_no_torch(repo: Path) -> None:
    assert run(repo, "import sys, vap_gym.data; assert 'torch' not in sys.modules").wait(60) == 0
