"""DROID recordings: the real episodes exactly, both layouts, every logged row, cameras where they are known."""

import json
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vap_gym.cards import load_robot
from vap_gym.data import DataError, EpisodeSet, read_video, write_video
from vap_gym.data.conventions import ACTION, CARTESIAN, GRIPPER, JOINTS, camera_of, has_camera
from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.run import Doubts, import_source
from vap_gym.data.importing.source import Options
from vap_gym.errors import UnknownNameError
from vap_gym.kinematics import load_chain


def payloads(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> EpisodeSet:
    """All nine real episodes in one set."""
    out = tmp_path_factory.mktemp("droid") / "set"
    path = shared_data / "droid"
    report = import_source(open_source("droid", path, Options()), path, out, doubts=Doubts(fps=5))
    assert not report.failed
    return EpisodeSet(out)


def test_every_number_of_the_real_logs_is_in_the_set(real: EpisodeSet, shared_data: Path) -> None:
    assert len(real) == 9
    for i in range(len(real)):
        episode, name = real.read(i, views=()), real.info(i)["source"]["episode"]
        log = np.load(shared_data / f"droid/{name}/log.npz")
        note = json.loads((shared_data / f"droid/{name}/episode.json").read_text())
        first, rows = log["frame_to_row"], len(log["joint_position"])
        assert (episode.task, episode.info["success"]) == (note["instruction"], bool(note["success"]))
        for column, key in (
            (JOINTS, "joint_position"),
            (GRIPPER, "gripper_position"),
            (CARTESIAN, "cartesian_position"),
        ):
            assert episode.columns[column].tobytes() == log[key][first].tobytes()
        for key in set(log) - {"frame_to_row"}:
            stored = episode.columns[f"log.{key}"]
            kept = stored.reshape(-1, *stored.shape[2:])[np.isfinite(stored).reshape(len(first) * 3, -1).all(axis=1)]
            assert kept.tobytes() == log[key].tobytes(), f"{name}: all {rows} rows of {key}"
        last = np.append(first[1:], rows) - 1
        if "action_joint_position" in log:
            assert (episode.info["action_mode"], episode.info["rate_hz"]) == ("joint_position", 5.0)
            assert episode.columns[ACTION][:, :7].tobytes() == log["action_joint_position"][last].tobytes()
            assert episode.columns[ACTION][:, 7].tobytes() == log["action_gripper_position"][last].tobytes()
        else:
            assert np.isnan(episode.columns[ACTION]).all()
            assert (episode.info["action_mode"], episode.info["rate_hz"]) == (None, None)
            assert ACTION in episode.info["absent"]
            assert episode.info["source"]["container_hz"] == 4.0


def test_real_videos_are_copied_packet_by_packet(real: EpisodeSet, shared_data: Path) -> None:
    names = [real.info(i)["source"]["episode"] for i in range(len(real))]
    for view in ("cam0", "cam1", "cam2"):
        stored = [payloads(p) for p in sorted((real.root / f"videos/observation.images.{view}").rglob("*.mp4"))]
        wanted = [
            [packet for name in names if kind in name for packet in payloads(shared_data / f"droid/{name}/{view}.mp4")]
            for kind in ("newsetup", "subset")
        ]
        assert stored == wanted
    given = read_video(shared_data / "droid/subset_3/cam1.mp4")
    assert np.array_equal(real.read(names.index("subset_3"), views=["cam1"]).frames["cam1"], given)


def test_kinematics_and_cameras_of_the_set_agree_with_the_recording(real: EpisodeSet) -> None:
    """Stock Panda kinematics reproduce the logged poses below 1e-6 m on every frame of the set."""
    chain = load_chain(load_robot("panda_robotiq")).to(torch.float64).subchain(["panda_link8"])
    known = {}
    for i in range(len(real)):
        columns = real.read(i, views=()).columns
        q_rad = torch.from_numpy(columns[JOINTS])
        tip = chain.fk(q_rad, "panda_link8")
        assert np.abs(tip[:, :3, 3].numpy() - columns[CARTESIAN][:, :3]).max() < 1e-6
        known[real.info(i)["source"]["episode"]] = [v for v in ("cam0", "cam1", "cam2") if has_camera(columns, v)]
        if known[real.info(i)["source"]["episode"]]:
            camera = camera_of(columns, "cam0", (320, 192))
            assert camera.T_world_camera.shape == (real.length(i), 4, 4)
            assert camera.T_world_camera[0, :3, 3].tolist() == pytest.approx(
                [0.22819952, 0.45016470, 0.41787216], abs=1e-6
            )
        else:
            with pytest.raises(DataError, match="hold NaN, so its recording tells none. Fit one"):
                camera_of(columns, "cam0", (320, 192))
    with_cam0 = {"newsetup_0009": ["cam0"], "newsetup_0010": ["cam0"], "newsetup_0012": ["cam0", "cam1"]}
    assert {name: views for name, views in known.items() if views} == with_cam0


def test_rates_that_differ_need_a_decision(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "droid"
    source = open_source("droid", path, Options())
    report = import_source(source, path, tmp_path / "a", only="*[19]")  # newsetup_0001, _0009, subset_1, _899
    assert (report.fps, report.fps_from) == (4, "the container of 'newsetup_0001'")
    assert [outcome.name for outcome in report.failed] == ["subset_1", "subset_899"]
    assert "has 5 frames a second (stated), the set has 4" in str(report.failed[0].failed)
    assert "or give --fps to store all at one rate" in str(report.failed[0].failed)
    report = import_source(source, path, tmp_path / "b", only="subset_5")
    assert (report.fps, report.fps_from) == (5, "the source")
    stated = import_source(source, path, tmp_path / "c", only="newsetup_0009", doubts=Doubts(rate_hz=15.0))
    assert (stated.fps, EpisodeSet(tmp_path / "c").info(0)["rate_hz"]) == (15, 15)
    wrong = import_source(source, path, tmp_path / "d", only="subset_5", doubts=Doubts(rate_hz=15.0))
    assert "states 5 frames a second, got --rate-hz 15" in str(wrong.failed[0].failed)


def frames(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), np.uint8).repeat(8, 1).repeat(8, 2)


def make_raw(root: Path, *, rows: int = 6, shown: int = 6, without: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    """An episode as the raw release has it; the arrays of its trajectory.h5."""
    rng = np.random.default_rng(1)
    folder = root / "AUTOLab/success/2023-07-07/Fri_Jul__7_09:42:23_2023"
    (folder / "recordings/MP4").mkdir(parents=True)
    serials = {"ext1": "22008760", "ext2": "24400334", "wrist": "18026681"}
    note = {
        "uuid": "AUTOLab+5d05c5aa+2023-07-07-09h-42m-23s", "lab": "AUTOLab", "user": "Some Body", "success": True,
        "scene_id": 4, "current_task": "Move object into container", "trajectory_length": rows,
        **{f"{name}_cam_serial": serial for name, serial in serials.items()},
    }  # fmt: skip
    (folder / "metadata_AUTOLab+5d05c5aa+2023-07-07-09h-42m-23s.json").write_text(json.dumps(note))
    arrays = {
        "observation/robot_state/joint_positions": rng.normal(size=(rows, 7)),
        "observation/robot_state/joint_velocities": rng.normal(size=(rows, 7)),
        "observation/robot_state/gripper_position": rng.random(rows),
        "observation/robot_state/cartesian_position": rng.normal(size=(rows, 6)),
        "action/joint_position": rng.normal(size=(rows, 7)),
        "action/joint_velocity": rng.normal(size=(rows, 7)),
        "action/cartesian_position": rng.normal(size=(rows, 6)),
        "action/cartesian_velocity": rng.normal(size=(rows, 6)),
        "action/gripper_position": rng.random(rows),
        "action/gripper_velocity": rng.normal(size=rows),
        **{f"observation/camera_extrinsics/{s}_left": rng.normal(size=(rows, 6)) for s in serials.values()},
    }
    with h5py.File(folder / "trajectory.h5", "w") as file:
        for key, values in arrays.items():
            if key not in without:
                file[key] = values
    for serial in serials.values():
        write_video(folder / f"recordings/MP4/{serial}.mp4", frames(shown), 60)
    return arrays


def test_raw_release_is_read_exactly(tmp_path: Path) -> None:
    arrays = make_raw(tmp_path / "raw")
    source = open_source("droid", tmp_path / "raw", Options(action="cartesian_velocity"))
    report = import_source(source, tmp_path / "raw", tmp_path / "set")
    assert (report.fps, report.fps_from, len(report.failed)) == (15, "the source", 0)
    episode = EpisodeSet(tmp_path / "set")[0]
    assert sorted(episode.frames) == ["exterior_1", "exterior_2", "wrist"]
    state = "observation/robot_state"
    for column, key in (
        (JOINTS, f"{state}/joint_positions"),
        (GRIPPER, f"{state}/gripper_position"),
        (CARTESIAN, f"{state}/cartesian_position"),
        ("log.joint_velocity", f"{state}/joint_velocities"),
        ("log.action_joint_velocity", "action/joint_velocity"),
        ("log.action_gripper_position", "action/gripper_position"),
    ):
        assert episode.columns[column].tobytes() == arrays[key].tobytes()
    commands = np.concatenate([arrays["action/cartesian_velocity"], arrays["action/gripper_velocity"][:, None]], 1)
    assert np.array_equal(episode.columns[ACTION], commands)
    pose = arrays["observation/camera_extrinsics/18026681_left"]
    assert np.array_equal(episode.columns["camera.wrist.T_world_camera"][:, :3, 3], pose[:, :3])
    assert not has_camera(episode.columns, "wrist")  # the release has no intrinsics
    assert (episode.task, episode.info["lab"], episode.info["rate_hz"]) == (
        "Move object into container",
        "AUTOLab",
        15.0,
    )
    assert episode.info["source"]["container_hz"] == 60.0
    assert "Some Body" not in json.dumps(episode.info)


def test_raw_release_with_gaps_is_told_or_filled_with_nan(tmp_path: Path) -> None:
    make_raw(tmp_path / "a", without=("action/joint_position", "observation/camera_extrinsics/24400334_left"))
    source = open_source("droid", tmp_path / "a", Options())
    episode = source.read(source.names()[0])
    assert np.isnan(episode.columns[ACTION][:, :7]).all()
    assert episode.info["action_mode"] is None
    assert episode.info["absent"] == sorted([ACTION, "camera.exterior_2.T_world_camera", "log.action_joint_position"])
    make_raw(tmp_path / "b", without=("observation/robot_state/gripper_position",))
    source = open_source("droid", tmp_path / "b", Options())
    with pytest.raises(DataError, match=r"must hold .*, got none of gripper_position\. For logs with other names"):
        source.read(source.names()[0])
    make_raw(tmp_path / "c", rows=6, shown=8)
    source = open_source("droid", tmp_path / "c", Options())
    report = import_source(source, tmp_path / "c", tmp_path / "no")
    assert "must have the same number of frames, got exterior_1 8" in str(report.failed[0].failed)
    report = import_source(source, tmp_path / "c", tmp_path / "yes", doubts=Doubts(trim=True))
    assert (report.frames, EpisodeSet(tmp_path / "yes").info(0)["trimmed_from"]) == (6, 8)


def make_plain(root: Path, **log: NDArray[Any]) -> Path:
    folder = root / "e0"
    folder.mkdir(parents=True)
    arrays = {
        "joint_position": np.zeros((6, 7)), "gripper_position": np.zeros(6), "cartesian_position": np.zeros((6, 6)),
        "frame_to_row": np.arange(0, 6, 2), **log,
    }  # fmt: skip
    np.savez(folder / "log.npz", **arrays)
    (folder / "episode.json").write_text(json.dumps({"log_rate_hz": 10}))
    write_video(folder / "cam0.mp4", frames(3), 5)
    return root


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ({"gripper_position": np.full(6, 85.0)}, r"must be 0 \(open\) to 1 \(closed\), got 85 to 85. For grippers in"),
        ({"gripper_position": np.full(6, np.nan)}, r"must be 0 \(open\) to 1 \(closed\)"),
        ({"joint_position": np.zeros((6, 6))}, r"joint_position of .* must be floats of shape \(6, 7\), got float64"),
        ({"cartesian_position": np.zeros((5, 6))}, r"floats of shape \(6, 6\), got float64 \(5, 6\)"),
        ({"joint_position": np.zeros((6, 7), np.int64)}, "must be floats of shape .*, got int64"),
        ({"frame_to_row": np.array([0, 2, 9])}, r"must be growing rows below 6, got int64 \(3,\) \[0, 2, 9\]"),
        ({"frame_to_row": np.array([0, 2, 2])}, r"must be growing rows below 6"),
        ({"frame_to_row": np.array([0, 2])}, r"must have the same number of frames, got cam0 3, observation"),
    ],
)
def test_mistakes_in_logs_are_told_in_three_parts(tmp_path: Path, log: dict[str, NDArray[Any]], message: str) -> None:
    path = make_plain(tmp_path / "in", **log)
    report = import_source(open_source("droid", path, Options()), path, tmp_path / "set")
    with pytest.raises(DataError, match=message):
        raise DataError(str(report.failed[0].failed))
    assert not (tmp_path / "set").exists()


def test_velocity_commands_between_frames_are_no_action(tmp_path: Path) -> None:
    commands = {"action_joint_velocity": np.ones((6, 7)), "action_gripper_velocity": np.ones(6)}
    path = make_plain(tmp_path / "in", **commands)
    source = open_source("droid", path, Options(action="joint_velocity"))
    with pytest.raises(DataError, match=r"needs one command per frame, got several .* Use --action joint_position or"):
        source.read("e0")
    with pytest.raises(
        UnknownNameError, match="No action convention of DROID logs named 'joint_velocty'. Did you mean"
    ):
        open_source("droid", path, Options(action="joint_velocty"))


def test_folder_without_droid_episodes_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="must hold folders with log.npz and cam.*, got .* without any. Name the folder"
    ):
        open_source("droid", tmp_path, Options())
    with pytest.raises(DataError, match="needs a file or folder, got .*none', which is not there"):
        open_source("droid", tmp_path / "none", Options())
    with pytest.raises(UnknownNameError, match="No kind of recording named 'driod'. Did you mean 'droid'"):
        open_source("driod", tmp_path, Options())
