"""LeRobot sets of every version come over exactly: numbers to the bit, videos by packet, pictures by byte."""

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from vap_gym.data import DataError, Episode, EpisodeSet, EpisodeWriter, finalise, write_video
from vap_gym.data.encoded import PictureBytes
from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.run import import_source
from vap_gym.data.importing.source import Options

TOP, HAND = "observation.images.top", "observation.image"


def pictures(i: int, count: int) -> NDArray[np.uint8]:
    picture = np.random.default_rng(i).integers(0, 200, (1, 4, 6, 3)).repeat(8, 1).repeat(8, 2)
    return (picture + np.arange(count)[:, None, None, None]).astype(np.uint8)


def pngs(i: int, count: int) -> list[bytes]:
    files = []
    for picture in pictures(i, count):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def payloads(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]


def columns(i: int, count: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(i)
    return {
        "observation.state": rng.normal(size=(count, 6)).astype(np.float32),
        "action": rng.normal(size=(count, 6)).astype(np.float32),
        "next.reward": rng.normal(size=count).astype(np.float32),
        "next.done": np.arange(count) == count - 1,
        "episode_step": np.arange(count, dtype=np.int64),
    }


def make_version2(root: Path, version: str) -> list[int]:
    """A set as LeRobot wrote them before v3; the lengths of its episodes."""
    lengths = [5, 3, 7]
    index = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "task_index": "int64"}
    features: dict[str, Any] = {
        TOP: {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channel"]},
        HAND: {"dtype": "image", "shape": [3, 32, 48], "names": ["channel", "height", "width"]},
        "language": {"dtype": "string", "shape": [1]},
    }
    for name, values in columns(0, 1).items():
        features[name] = {"dtype": values.dtype.name, "shape": list(values.shape[1:]) or [1], "names": None}
    features |= {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in index.items()}
    info = {
        "codebase_version": version, "robot_type": "so100", "total_episodes": 3, "total_frames": 15, "fps": 10,
        "chunks_size": 2, "splits": {"train": "0:3"}, "features": features,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }  # fmt: skip
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    tasks = ["push the block", "lift", "push the block"]
    rows = [{"episode_index": i, "tasks": [tasks[i]], "length": count} for i, count in enumerate(lengths)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "meta/tasks.jsonl").write_text(
        '{"task_index": 0, "task": "push the block"}\n{"task_index": 1, "task": "lift"}\n'
    )
    for i, count in enumerate(lengths):
        table: dict[str, Any] = {}
        for name, values in columns(i, count).items():
            kind = pa.from_numpy_dtype(values.dtype)
            table[name] = pa.array(values.tolist(), pa.list_(kind) if values.ndim > 1 else kind)
        table[HAND] = pa.array([{"bytes": file, "path": f"frame_{t}.png"} for t, file in enumerate(pngs(i, count))])
        table["language"] = ["go"] * count
        table |= {name: np.arange(count).astype(dtype) for name, dtype in index.items()}
        for folder in ("data", f"videos/{TOP}"):
            chunk = root / (f"data/chunk-{i // 2:03d}" if folder == "data" else f"videos/chunk-{i // 2:03d}/{TOP}")
            chunk.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), root / f"data/chunk-{i // 2:03d}/episode_{i:06d}.parquet")
        write_video(root / f"videos/chunk-{i // 2:03d}/{TOP}/episode_{i:06d}.mp4", pictures(i, count), 10, codec="h264")
    return lengths


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_sets_of_version_2_come_over_exactly(tmp_path: Path, version: str) -> None:
    lengths = make_version2(tmp_path / "in", version)
    source = open_source("lerobot", tmp_path / "in", Options())
    report = import_source(source, tmp_path / "in", tmp_path / "out")
    assert (report.fps, len(report.failed)) == (10, 0)
    episodes = EpisodeSet(tmp_path / "out")
    assert [episodes.task(i) for i in range(3)] == ["push the block", "lift", "push the block"]
    for i, count in enumerate(lengths):
        read = episodes[i]
        assert sorted(read.columns) == sorted(columns(i, count))
        for name, values in columns(i, count).items():
            assert (read.columns[name].dtype, read.columns[name].tobytes()) == (values.dtype, values.tobytes())
        assert episodes.pictures(i, "image") == pngs(i, count)
        assert np.array_equal(read.frames["image"], pictures(i, count))
        assert read.info["robot"] == "so100"
    stored = payloads(tmp_path / f"out/videos/{TOP}/chunk-000/file-000.mp4")
    given = sorted((tmp_path / "in/videos").rglob("*.mp4"))
    assert stored == [packet for path in given for packet in payloads(path)]


def write_version3(root: Path, *, fps: int = 12) -> None:
    writer = EpisodeWriter(root, fps=fps, episodes_per_file=2, robot_type="koch")
    for i, count in enumerate((4, 6, 5)):
        values = columns(i, count)
        made = Episode(
            frames={"top": pictures(i, count)},
            columns={**values, "pose": np.random.default_rng(i).normal(size=(count, 2, 3))},
            labels={"segmentation": pictures(i, count)[..., 0]},
            task=f"task {i}",
            info={"seed": i, "lab": "A"},
        )
        writer.write(i, made, encoded={"hand": PictureBytes(files=pngs(i, count))})
    finalise(root)


def test_sets_of_version_3_are_cut_into_episodes_and_come_over_exactly(tmp_path: Path) -> None:
    write_version3(tmp_path / "in")
    path = tmp_path / "in/meta/info.json"
    info = json.loads(path.read_text())
    del info["vap_gym"]  # as another tool writes it
    path.write_text(json.dumps(info))
    source = open_source("lerobot", tmp_path / "in", Options())
    assert not import_source(source, tmp_path / "in", tmp_path / "out").failed
    given, got = EpisodeSet(tmp_path / "in"), EpisodeSet(tmp_path / "out")
    assert (got.fps, got.meta["robot_type"]) == (12, "koch")
    for i in range(3):
        for name, values in given[i].columns.items():
            assert got[i].columns[name].tobytes() == values.tobytes()
        assert np.array_equal(got[i].frames["top"], given[i].frames["top"])
        assert got.pictures(i, "hand") == given.pictures(i, "hand")
        assert got.task(i) == f"task {i}"
    videos = [sorted((tmp_path / name / "videos").rglob("*.mp4")) for name in ("in", "out")]
    packets = [[packet for video in each for packet in payloads(video)] for each in videos]
    assert packets[0] == packets[1]


def test_our_own_sets_come_over_with_labels_and_infos(tmp_path: Path) -> None:
    write_version3(tmp_path / "in")
    source = open_source("oracle", tmp_path / "in", Options())
    assert not import_source(source, tmp_path / "in", tmp_path / "out").failed
    for given, got in zip(EpisodeSet(tmp_path / "in"), EpisodeSet(tmp_path / "out"), strict=True):
        assert np.array_equal(given.labels["segmentation"], got.labels["segmentation"])
        assert got.columns["pose"].tobytes() == given.columns["pose"].tobytes()
        assert given.info.items() <= got.info.items()
        assert got.info["source"]["kind"] == "oracle"
    path = tmp_path / "in/meta/info.json"
    info = json.loads(path.read_text())
    del info["vap_gym"]
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match="must be a set of vap-gym's, got another tool's. Import it as kind 'lerobot'"):
        open_source("oracle", tmp_path / "in", Options())


def test_field_map_adds_columns_of_our_conventions_to_theirs(tmp_path: Path) -> None:
    make_version2(tmp_path / "in", "v2.1")
    (tmp_path / "map.toml").write_text(
        'robot = "so101"\naction_mode = "joint_position"\n'
        '[joints]\nfield = "observation.state[0:5]"\nunit = "deg"\n[action]\nfields = ["action"]\n'
    )
    source = open_source("lerobot", tmp_path / "in", Options(map_path=tmp_path / "map.toml"))
    episode = source.read("000001")
    given = columns(1, 3)["observation.state"]
    assert np.array_equal(episode.columns["observation.joint_position"], np.deg2rad(given[:, :5]))
    assert np.array_equal(episode.columns["observation.state"], given)
    assert (source.robot, episode.info["action_mode"]) == ("so101", "joint_position")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v1.6"}, "must be of version v2.0, v2.1 or v3.x, got v1.6"),
        ({"fps": 0}, "fps of .* must be above 0, got 0"),
        ({"fps": "10"}, "'fps' of .* must be a number or null, got '10'"),
        ({"features": {"action": {"dtype": "float32"}}}, "a dtype and a shape .*, got:? KeyError"),
        ({"data_path": "data/{chunk}.parquet"}, "must be templates of episode_chunk .* got KeyError"),
    ],
)
def test_wrong_descriptions_are_told(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    make_version2(tmp_path, "v2.1")
    path = tmp_path / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        open_source("lerobot", tmp_path, Options()).read("000000")


def test_lengths_that_differ_are_told(tmp_path: Path) -> None:
    make_version2(tmp_path, "v2.1")
    path = tmp_path / "meta/episodes.jsonl"
    path.write_text(path.read_text().replace('"length": 7', '"length": 6'))
    with pytest.raises(DataError, match="must have 6 rows as meta/episodes.jsonl says, got 7"):
        open_source("lerobot", tmp_path, Options()).read("000002")
