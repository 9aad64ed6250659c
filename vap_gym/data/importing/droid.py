"""DROID: folders of an npz log beside its mp4s, and folders of the raw release (trajectory.h5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vap_gym.data.conventions import ACTION, CARTESIAN, GRIPPER, JOINTS, camera_columns
from vap_gym.data.importing.readers import number, read_h5, read_json, read_npz, text
from vap_gym.data.importing.source import Options, RawEpisode, Source, VideoFile
from vap_gym.data.layout import DataError
from vap_gym.data.remux import probe_video
from vap_gym.errors import unknown_name

Columns = dict[str, NDArray[Any]]

CONTROL_HZ = 15.0  # of the raw release: every time series is logged at the control rate
STATES = {JOINTS: "joint_position", GRIPPER: "gripper_position", CARTESIAN: "cartesian_position"}
SHAPES: Mapping[str, tuple[int, ...]] = {
    "joint_position": (7,),
    "gripper_position": (),
    "cartesian_position": (6,),
    "joint_velocity": (7,),
    "action_joint_position": (7,),
    "action_joint_velocity": (7,),
    "action_cartesian_position": (6,),
    "action_cartesian_velocity": (6,),
    "action_gripper_position": (),
    "action_gripper_velocity": (),
}
# Which logged commands make up `action` in each of the conventions of vap_gym.kinematics.control.
ACTIONS: Mapping[str, tuple[str, str]] = {
    "joint_position": ("action_joint_position", "action_gripper_position"),
    "cartesian_pose": ("action_cartesian_position", "action_gripper_position"),
    "joint_velocity": ("action_joint_velocity", "action_gripper_velocity"),
    "cartesian_velocity": ("action_cartesian_velocity", "action_gripper_velocity"),
}
TARGETS = ("joint_position", "cartesian_pose")
RAW_PATHS: Mapping[str, str] = {
    "joint_position": "observation/robot_state/joint_positions",
    "joint_velocity": "observation/robot_state/joint_velocities",
    "gripper_position": "observation/robot_state/gripper_position",
    "cartesian_position": "observation/robot_state/cartesian_position",
    **{name: f"action/{name.removeprefix('action_')}" for name in SHAPES if name.startswith("action_")},
}
RAW_VIEWS = {"exterior_1": "ext1", "exterior_2": "ext2", "wrist": "wrist"}


def open_droid(path: Path, options: Options) -> Source:
    """Open a folder of DROID episodes of either layout, or one episode's folder."""
    mode = options.action or "joint_position"
    if mode not in ACTIONS:
        raise unknown_name("action convention of DROID logs", mode, ACTIONS)
    robot = options.robot or "panda_robotiq"
    raw = {p.parent.relative_to(path).as_posix(): p for p in sorted(path.rglob("metadata_*.json"))}
    if raw:
        return RawRelease(root=path, robot=robot, mode=mode, metadata=raw)
    folders = [p.parent for p in sorted([*path.glob("log.npz"), *path.glob("*/log.npz")])]
    if folders:
        return plain_folders(path, folders, robot=robot, mode=mode)
    raise DataError(
        f"A DROID recording must hold folders with log.npz and cam*.mp4, or with metadata_*.json, trajectory.h5 and "
        f"recordings/MP4, got '{path}' without any. Name the folder above the episodes' folders."
    )


@dataclass(frozen=True, kw_only=True)
class PlainFolders:
    """Folders of `log.npz` (with `frame_to_row`), `<view>.mp4` and `episode.json`; cameras.json beside them.

    Where a log has more rows than its video has frames (15 Hz beside 5 fps), the columns of the conventions are at
    the frames, `log.<field>` holds every row: (T, rows per frame, …), the rows from one frame up to the next, padded
    with NaN. `action` is then the last command before the next frame.
    """

    root: Path
    robot: str
    mode: str
    folders: Mapping[str, Path]
    fields: tuple[str, ...]  # of all logs
    rows_per_frame: int  # at most, over all logs
    cameras: Mapping[str, Any]
    kind: str = "droid"
    rate_hz: float | None = None

    def names(self) -> Sequence[str]:
        """Names of the folders."""
        return tuple(self.folders)

    def read(self, name: str) -> RawEpisode:
        """Read one folder; its videos stay where they are."""
        folder = self.folders[name]
        log, note = read_npz(folder / "log.npz"), read_json(folder / "episode.json")
        views = {path.stem: VideoFile(path=path) for path in sorted(folder.glob("*.mp4"))}
        if not views:
            raise DataError(f"{folder} must hold videos like cam0.mp4, got none. Fetch them, or leave it out.")
        fields, rows = _checked_fields(log, str(folder / "log.npz"))
        first = _frame_rows(log.get("frame_to_row"), rows, views, folder)
        rows_per_frame = float(first[-1] - first[0]) / max(len(first) - 1, 1) or 1.0
        wanted = {key: fields[key] if key in fields else np.full((rows, *SHAPES[key]), np.nan) for key in self.fields}
        columns = {column: fields[key][first] for column, key in STATES.items()}
        columns |= _log_columns(wanted, first, rows, self.rows_per_frame)
        columns |= _action(wanted, self.mode, first, rows)
        told = _camera_columns(self.cameras, name, len(first), views)
        rate = number(note, "log_rate_hz", folder / "episode.json")
        for view, known in told.items():
            columns |= dict(zip(camera_columns(view), known or _unknown_camera(len(first)), strict=True))
        absent = [f"log.{key}" for key in self.fields if key not in fields]
        absent += [name for view, known in told.items() if known is None for name in camera_columns(view)]
        acted = all(key in fields for key in ACTIONS[self.mode])
        absent += [ACTION] if ACTION in columns and not acted else []
        return RawEpisode(
            name=name,
            views=views,
            columns=columns,
            task=text(note, "instruction"),
            info={
                "action_mode": self.mode if acted else None,
                "success": bool(note["success"]) if note.get("success") in (0, 1) else None,
                "log_rate_hz": rate,
                "log_rows": rows,
                **({"absent": sorted(absent)} if absent else {}),
            },
            rate_hz=rate / rows_per_frame if rate is not None else None,
        )


def plain_folders(root: Path, folders: Sequence[Path], *, robot: str, mode: str) -> PlainFolders:
    """Look at all logs: which fields there are, and how many rows go with a frame. Damaged ones are told on reading."""
    found: set[str] = set()
    most = 1
    for folder in folders:
        try:
            log = read_npz(folder / "log.npz", ("frame_to_row", *SHAPES))
        except DataError:
            continue
        found |= log.keys() & SHAPES.keys()
        first = log.get("frame_to_row", np.zeros(0))
        if first.ndim == 1 and first.dtype.kind in "iu" and len(first) > 1:
            most = max(most, min(int(np.diff(first).max()), 1000))
    cameras = root / "cameras.json"
    return PlainFolders(
        root=root,
        robot=robot,
        mode=mode,
        folders={"." if folder == root else folder.name: folder for folder in folders},
        fields=tuple(key for key in SHAPES if key in found),
        rows_per_frame=most,
        cameras=read_json(cameras) if cameras.is_file() else {},
    )


@dataclass(frozen=True, kw_only=True)
class RawRelease:
    """Folders of the raw release: metadata_<uuid>.json, trajectory.h5, recordings/MP4/<serial>.mp4.

    Logged extrinsics are poses of the left eyes in the base at every step. The release has no intrinsics: fit them.
    """

    root: Path
    robot: str
    mode: str
    metadata: Mapping[str, Path]
    kind: str = "droid"
    rate_hz: float | None = field(default=CONTROL_HZ)

    def names(self) -> Sequence[str]:
        """Folders of the episodes, from the root."""
        return tuple(self.metadata)

    def read(self, name: str) -> RawEpisode:
        """Read one folder; its videos stay where they are."""
        path = self.metadata[name]
        note = read_json(path)
        folder, serials = path.parent, {view: text(note, f"{short}_cam_serial") for view, short in RAW_VIEWS.items()}
        poses = {view: f"observation/camera_extrinsics/{serial}_left" for view, serial in serials.items()}
        trajectory = folder / "trajectory.h5"
        log = read_h5(trajectory, [*RAW_PATHS.values(), *poses.values()])
        fields, rows = _checked_fields({key: log[p] for key, p in RAW_PATHS.items() if p in log}, str(trajectory))
        wanted = {key: fields[key] if key in fields else np.full((rows, *SHAPES[key]), np.nan) for key in SHAPES}
        columns = {column: fields[key] for column, key in STATES.items()}
        columns |= {f"log.{key}": values for key, values in wanted.items() if key not in STATES.values()}
        columns |= _action(wanted, self.mode, np.arange(rows), rows)
        absent = [f"log.{key}" for key in SHAPES if key not in fields]
        acted = all(key in fields for key in ACTIONS[self.mode])
        absent += [] if acted else [ACTION]
        for view, key in poses.items():
            pose = log.get(key, np.full((rows, 6), np.nan))
            if pose.shape != (rows, 6):
                raise DataError(f"{key} of {trajectory} must have shape ({rows}, 6), got {pose.shape}. Fetch it again.")
            columns[camera_columns(view)[1]] = _matrices(pose)
            absent += [] if key in log else [camera_columns(view)[1]]
        success = note.get("success")
        return RawEpisode(
            name=name,
            views={view: VideoFile(path=folder / f"recordings/MP4/{serial}.mp4") for view, serial in serials.items()},
            columns=columns,
            task=text(note, "current_task"),
            info={
                "action_mode": self.mode if acted else None,
                "lab": text(note, "lab"),
                "success": success if isinstance(success, bool) else None,
                "uuid": text(note, "uuid"),
                "scene_id": number(note, "scene_id", path),
                "camera_serials": serials,
                **({"absent": sorted(absent)} if absent else {}),
            },
            rate_hz=CONTROL_HZ,
        )


def _checked_fields(log: Mapping[str, NDArray[Any]], where: str) -> tuple[Columns, int]:
    """The known fields of a log and their number of rows. Raises DataError on what is missing or misshapen."""
    missing = [key for key in STATES.values() if key not in log]
    if missing:
        raise DataError(
            f"{where} must hold {', '.join(STATES.values())}, got none of {', '.join(missing)}. "
            "For logs with other names, import as kind 'files' with a field map."
        )
    fields = {key: log[key] for key in SHAPES if key in log}
    rows = len(fields["joint_position"]) if fields["joint_position"].ndim else 0
    for key, values in fields.items():
        shape = (rows, *SHAPES[key])
        if values.shape != shape or values.dtype.kind != "f" or rows == 0:
            shown = ", ".join(map(str, shape)) if rows else "T >= 1, …"
            raise DataError(
                f"{key} of {where} must be floats of shape ({shown}), got {values.dtype} {values.shape}. "
                "The log is damaged or of another kind: fetch it again."
            )
    gripper = fields["gripper_position"]
    if not np.all((gripper >= -0.01) & (gripper <= 1.01)):
        raise DataError(
            f"gripper_position of {where} must be 0 (open) to 1 (closed), got {gripper.min():.4g} to "
            f"{gripper.max():.4g}. For grippers in other units, import as kind 'files' with a field map."
        )
    return fields, rows


def _frame_rows(
    given: NDArray[Any] | None, rows: int, views: Mapping[str, VideoFile], folder: Path
) -> NDArray[np.int64]:
    """For each frame its row in the log."""
    if given is None:
        frames = probe_video(next(iter(views.values())).path).frames
        if frames != rows:
            raise DataError(
                f"{folder}/log.npz must have a row per frame ({frames}) or frame_to_row, got {rows} rows. "
                "Add frame_to_row: for each frame its row."
            )
        return np.arange(rows)
    right = given.ndim == 1 and given.dtype.kind in "iu" and len(given) > 0
    if not right or given[0] < 0 or int(given[-1]) >= rows or (np.diff(given.astype(np.int64)) < 1).any():
        raise DataError(
            f"frame_to_row of {folder}/log.npz must be growing rows below {rows}, got {given.dtype} {given.shape} "
            f"{given.reshape(-1)[:4].tolist()}…. Give for each frame its row."
        )
    return given.astype(np.int64)


def _log_columns(fields: Mapping[str, NDArray[Any]], first: NDArray[np.int64], rows: int, width: int) -> Columns:
    """Every logged row under the frame it follows: (T, width, …), NaN behind the last."""
    if width == 1:
        return {f"log.{key}": values[first] for key, values in fields.items() if key not in STATES.values()}
    index = first[:, None] + np.arange(width)
    within = index < np.append(first[1:], rows)[:, None]
    gathered = {}
    for key, values in fields.items():
        part = values[np.minimum(index, rows - 1)]
        part[~within] = np.nan
        gathered[f"log.{key}"] = part
    return gathered


def _action(fields: Mapping[str, NDArray[Any]], mode: str, first: NDArray[np.int64], rows: int) -> Columns:
    """The column `action` of a convention, from the last row before the next frame; none where nothing was logged."""
    if not all(key in fields for key in ACTIONS[mode]):
        return {}
    last = np.append(first[1:], rows) - 1
    if mode not in TARGETS and (last != first).any():
        raise DataError(
            f"action '{mode}' needs one command per frame, got several rows of the log for each. "
            f"Use --action {' or '.join(TARGETS)}; every command is in log.{ACTIONS[mode][0]}."
        )
    last[-1] = min(int(last[-1]), int(first[-1] + np.diff(first).max(initial=1) - 1))
    arm, gripper = (fields[key][last] for key in ACTIONS[mode])
    return {ACTION: np.concatenate([arm, gripper[:, None]], axis=1)}


def _camera_columns(
    cameras: Mapping[str, Any], name: str, frames: int, views: Mapping[str, VideoFile]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]] | None]:
    """Intrinsics and poses by view of those that cameras.json names; None where they are not valid for the episode."""
    found: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]] | None] = {}
    for view, camera in cameras.items():
        if not isinstance(camera, dict) or "T_camera_from_base" not in camera:
            continue
        found[view] = None
        if name not in camera.get("valid_for_episodes", [name]) or view not in views:
            continue
        try:
            K = np.array(camera["K"], np.float64)
            T_world_camera = np.linalg.inv(np.array(camera["T_camera_from_base"], np.float64))
            size = tuple(camera["image_size_wh"])
        except (KeyError, TypeError, ValueError, np.linalg.LinAlgError) as error:
            raise DataError(
                f"'{view}' of cameras.json must have K, T_camera_from_base and image_size_wh, got {error!r}. "
                "Correct it, or remove it."
            ) from error
        facts = probe_video(views[view].path)
        if K.shape != (3, 3) or T_world_camera.shape != (4, 4) or size != (facts.width, facts.height):
            raise DataError(
                f"'{view}' of cameras.json must have a 3x3 K and a 4x4 pose for {facts.width}x{facts.height} px, got "
                f"{K.shape}, {T_world_camera.shape} for {size}. Scale K to the size of the video."
            )
        found[view] = (np.tile(K, (frames, 1, 1)), np.tile(T_world_camera, (frames, 1, 1)))
    return found


def _unknown_camera(frames: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.full((frames, 3, 3), np.nan), np.full((frames, 4, 4), np.nan)


def _matrices(poses: NDArray[Any]) -> NDArray[np.float64]:
    """Poses (T, 6), xyz [m] and extrinsic-xyz Euler angles [rad], as (T, 4, 4); NaN stays NaN."""
    from scipy.spatial.transform import Rotation

    matrices = np.tile(np.eye(4), (len(poses), 1, 1))
    finite = np.isfinite(poses).all(axis=1)
    matrices[finite, :3, :3] = Rotation.from_euler("xyz", poses[finite, 3:]).as_matrix()
    matrices[finite, :3, 3] = poses[finite, :3]
    matrices[~finite] = np.nan
    return matrices
