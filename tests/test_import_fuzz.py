"""Damaged recordings of every kind: a clear reason for the episode, no harm to others, nothing half-written."""

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vap_gym.data import Episode, EpisodeSet, EpisodeWriter, finalise, write_video
from vap_gym.data.importing.fieldmap import read_map
from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.run import Doubts, import_source
from vap_gym.data.importing.source import Options
from vap_gym.errors import VapError

FRAMES = 4


def frames(i: int) -> NDArray[np.uint8]:
    picture = np.random.default_rng(i).integers(0, 256, (1, 2, 2, 3)).repeat(8, 1).repeat(8, 2)
    return (picture + np.arange(FRAMES)[:, None, None, None]).clip(0, 255).astype(np.uint8)


def numbers(i: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(i).random((FRAMES, *shape))


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG")
    return buffer.getvalue()


def make_droid(root: Path) -> None:
    for i in range(2):
        folder = root / f"e{i}"
        folder.mkdir(parents=True)
        states = {"joint_position": numbers(i, 7), "gripper_position": numbers(i), "cartesian_position": numbers(i, 6)}
        np.savez(folder / "log.npz", **states, frame_to_row=np.arange(FRAMES))
        (folder / "episode.json").write_text(json.dumps({"instruction": "reach", "log_rate_hz": 5.0}))
        write_video(folder / "cam0.mp4", frames(i), 5)


def make_droid_raw(root: Path) -> None:
    for i in range(2):
        folder = root / f"LAB/success/e{i}"
        (folder / "recordings/MP4").mkdir(parents=True)
        serials = {f"{view}_cam_serial": str(n) for n, view in enumerate(("ext1", "ext2", "wrist"))}
        (folder / f"metadata_{i}.json").write_text(json.dumps({**serials, "lab": "LAB", "success": True}))
        for serial in serials.values():
            write_video(folder / f"recordings/MP4/{serial}.mp4", frames(i), 60)
        with h5py.File(folder / "trajectory.h5", "w") as file:
            state = file.create_group("observation/robot_state")
            state["joint_positions"], state["gripper_position"] = numbers(i, 7), numbers(i)
            state["cartesian_position"] = numbers(i, 6)
            file["action/joint_position"], file["action/gripper_position"] = numbers(i, 7), numbers(i)


def make_files(root: Path) -> None:
    root.mkdir()
    (root / "map.toml").write_text(
        'rate_hz = 15\n[joints]\nfield = "q"\n[gripper]\nfield = "g"\n[views.front]\nfile = "{name}.mp4"\n'
        '[episodes]\nlog = "e*.*n*"\n'
    )
    for i in range(2):
        values = {"q": numbers(i, 6), "g": numbers(i)}
        if i:
            np.savez(root / f"e{i}.npz", **values)
        else:
            (root / f"e{i}.json").write_text(json.dumps({key: value.tolist() for key, value in values.items()}))
        write_video(root / f"e{i}.mp4", frames(i), 15)


def make_version2(root: Path) -> None:
    index = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "task_index": "int64"}
    picture = {"dtype": "image", "shape": [16, 16, 3]}
    features = {
        "observation.images.top": {"dtype": "video", "shape": [16, 16, 3]},
        "observation.images.hand": picture,
        "action": {"dtype": "float32", "shape": [6]},
        **{name: {"dtype": dtype, "shape": [1]} for name, dtype in index.items()},
    }
    info = {
        "codebase_version": "v2.1", "fps": 10, "chunks_size": 1000, "robot_type": "so100", "features": features,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }  # fmt: skip
    for folder in ("meta", "data/chunk-000", "videos/chunk-000/observation.images.top"):
        (root / folder).mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    rows = [{"episode_index": i, "tasks": ["push"], "length": FRAMES} for i in range(2)]
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for i in range(2):
        columns = {"action": pa.array(numbers(i, 6).astype(np.float32).tolist(), pa.list_(pa.float32()))}
        columns["observation.images.hand"] = pa.array([{"bytes": jpeg(f), "path": None} for f in frames(i)])
        columns |= {name: pa.array(np.arange(FRAMES).astype(dtype)) for name, dtype in index.items()}
        pq.write_table(pa.table(columns), root / f"data/chunk-000/episode_{i:06d}.parquet")
        write_video(root / f"videos/chunk-000/observation.images.top/episode_{i:06d}.mp4", frames(i), 10)


def make_oracle(root: Path) -> None:
    writer = EpisodeWriter(root, episodes_per_file=1)
    for i in range(2):
        labels = {"segmentation": frames(i)[..., 0]}
        writer.write(i, Episode(frames={"top": frames(i)}, columns={"action": numbers(i, 7)}, labels=labels, task="t"))
    finalise(root)


MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "droid": ("droid", make_droid),
    "droid_raw": ("droid", make_droid_raw),
    "files": ("files", make_files),
    "version2": ("lerobot", make_version2),
    "oracle": ("oracle", make_oracle),
}
# What belongs to all episodes: damage there may refuse the recording as a whole.
SHARED = ("info.json", "episodes.jsonl", "map.toml", "tasks.parquet", "stats.json")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small whole recording of each kind."""
    root = tmp_path_factory.mktemp("recordings")
    for name, (_, make) in MAKERS.items():
        make(root / name)
    return {name: root / name for name in MAKERS}


def run_import(name: str, path: Path, out: Path) -> dict[str, str | None]:
    """Import a recording; the reason of failure by episode. Whatever is imported can be read, and nothing else is."""
    map_path = path / "map.toml" if name == "files" else None
    source = open_source(MAKERS[name][0], path, Options(map_path=map_path))
    report = import_source(source, path, out, doubts=Doubts(fps=15))
    good = [outcome for outcome in report.outcomes if outcome.failed is None]
    if good:
        read = list(EpisodeSet(out))
        assert [len(episode) for episode in read] == [outcome.frames for outcome in good]
    return {outcome.name: outcome.failed for outcome in report.outcomes}


def left_behind(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]


@pytest.mark.parametrize("name", MAKERS)
def test_whole_recordings_are_imported(recordings: dict[str, Path], tmp_path: Path, name: str) -> None:
    assert set(run_import(name, recordings[name], tmp_path / "out").values()) == {None}
    assert not left_behind(tmp_path / "out")


QUICK = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", MAKERS)
@QUICK
@given(data=st.data())
def test_damage_is_a_clear_reason_and_harms_no_other_episode(
    recordings: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    path, out = recordings[name], tmp_path_factory.mktemp("out") / "set"
    files = sorted(p for p in path.rglob("*") if p.is_file())
    file = data.draw(st.sampled_from(files), label="file")
    whole = file.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "flip", "zero", "gone"]), label="damage")
    place = data.draw(st.integers(0, len(whole) - 1), label="place")
    if kind == "cut":
        file.write_bytes(whole[:place])
    elif kind == "flip":
        bit = data.draw(st.integers(0, 7), label="bit")
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    elif kind == "zero":
        file.write_bytes(whole[:place] + bytes(len(whole[place : place + 64])) + whole[place + 64 :])
    else:
        file.unlink()
    refused = ""
    try:
        failed = run_import(name, path, out)
    except VapError as error:
        refused = str(error)
    finally:
        file.write_bytes(whole)
    assert not left_behind(out)
    if refused:
        assert file.name in SHARED or "meta" in file.parts, f"only {file.name} was damaged, but: {refused}"
        assert not out.exists()
        return
    if all(failed.values()):
        assert not out.exists()
    if file.name not in SHARED and "meta" not in file.parts and kind != "gone":
        assert sum(reason is not None for reason in failed.values()) <= 1
    assert all(reason is None or len(reason) > 20 for reason in failed.values())


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def changed(value: Any, data: st.DataObject) -> Any:
    """The value with something else at a random place."""
    if isinstance(value, dict | list) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        copy = dict(value) if isinstance(value, dict) else list(value)
        copy[key] = changed(value[key], data)
        return copy
    return data.draw(anything)


@pytest.mark.parametrize("name", ["droid", "droid_raw", "files", "version2", "oracle"])
@QUICK
@given(data=st.data())
def test_descriptions_that_say_anything_are_read_or_refused(
    recordings: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    path, out = recordings[name], tmp_path_factory.mktemp("out") / "set"
    files = sorted(p for p in path.rglob("*.json*") if p.name != "stats.json")
    file = data.draw(st.sampled_from(files))
    whole = file.read_text()
    rows = [json.loads(line) for line in ([whole] if file.suffix == ".json" else whole.splitlines())]
    rows[0] = changed(rows[0], data)
    file.write_text("\n".join(map(json.dumps, rows)))
    refused = False
    try:
        run_import(name, path, out)
    except VapError:
        refused = True
    finally:
        file.write_text(whole)
    assert not left_behind(out)
    assert not (refused and out.exists())


@QUICK
@given(data=st.data())
def test_maps_that_say_anything_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("map") / "map.json"
    right = {
        "robot": "r", "rate_hz": 15, "action_mode": "joint_position", "joints": {"field": "q", "unit": "deg"},
        "gripper": {"field": "g", "means": "opening", "unit": "mm", "max_opening": 85},
        "pose": {"position": "p", "orientation": "r", "kind": "quaternion", "quaternion_order": "xyzw"},
        "action": {"fields": ["a"], "scale": [2.0]}, "other": {"o": "x"},
        "views": {"v": {"file": "v.mp4", "size_px": [8, 8]}}, "episodes": {"log": "*.npz"},
    }  # fmt: skip
    path.write_text(json.dumps(changed(right, data)))
    log = {key: np.ones((3, 4)) for key in "qgprax"}
    with suppress(VapError):
        read_map(path).columns(log, "log")
