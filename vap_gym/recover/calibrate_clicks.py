"""Clicks on a robot's key-points, and recorded episodes: what a calibration reads from files.

A clicks file is JSON: {"clicks": [{"episode": "kitchen_3", "camera": "cam0", "frame": 12, "finger_a_px": [u, v],
"finger_b_px": null}, …]}. u is right, v down, from the picture's top-left corner. finger_a and finger_b are the ends of
the first and the second finger (the card's `drop_from`); any other key-point of the skeleton goes by "<name>_px".

An episode is a folder <name> with log.npz (`joint_position` (N, n) rad, `gripper_position` (N,) 0 open .. 1 closed, and
`frame_to_row`, the row of each frame, if they are not one to one) and <camera>.mp4; or one of a data set of ours, by
its number.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from vap_gym.cards import RobotCard
from vap_gym.data.conventions import GRIPPER, JOINTS
from vap_gym.data.episodes import EpisodeSet
from vap_gym.data.layout import INFO_PATH
from vap_gym.data.video import read_video
from vap_gym.errors import unknown_name
from vap_gym.kinematics.urdf import load_chain
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.recover.calibrate import CalibrationError

CLICK_KEYS = ("episode", "camera", "frame")
FINGERS = ("finger_a", "finger_b")


@dataclass(frozen=True, kw_only=True)
class Click:
    """One click: where a key-point of the robot was seen in a frame of an episode."""

    episode: str
    camera: str
    frame: int
    keypoint: str
    pixel: tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClickedPoints:
    """N clicks of one camera, and where the clicked points were in the base frame by forward kinematics."""

    clicks: tuple[Click, ...]
    points_base_m: Float[np.ndarray, "N 3"]
    pixels: Float[np.ndarray, "N 2"]
    tool_axis_base: Float[np.ndarray, "N 3"]  # the z axis of the tip link, along which a tool may be shifted

    @property
    def episodes(self) -> tuple[str, ...]:
        """Names of the episodes, in the order of their first click."""
        return tuple(dict.fromkeys(click.episode for click in self.clicks))

    def of(self, episode: str) -> NDArray[np.bool_]:
        """Return which clicks are of an episode."""
        return np.array([click.episode == episode for click in self.clicks])


@dataclass(frozen=True, kw_only=True, eq=False)
class States:
    """The robot in each frame of an episode: joints [rad] and closedness."""

    joint_position: Float[np.ndarray, "T n"]
    gripper_position: Float[np.ndarray, " T"]


def read_clicks(path: Path, robot: RobotCard) -> tuple[Click, ...]:
    """Read a clicks file (see above). Raises CalibrationError for a file, an entry or a key-point that is not one."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        entries = list(given["clicks"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CalibrationError(
            f'{path} must be a JSON file {{"clicks": [{{"episode", "camera", "frame", "finger_a_px": [u, v], …}}]}}, '
            f"got {type(error).__name__}: {error}. See `vap-gym calibrate clicks --help`."
        ) from error
    names = _clickable(robot)
    return tuple(
        click for number, entry in enumerate(entries) for click in _clicks_of(entry, f"{path}, click {number}", names)
    )


def located(clicks: Sequence[Click], camera: str, episodes: Path, robot: RobotCard) -> ClickedPoints:
    """Return the clicks of one camera with the points they show.

    Raises:
        CalibrationError: the camera has no clicks, or a frame is not in its episode.
        UnknownNameError: no such episode.
    """
    mine = [click for click in clicks if click.camera == camera]
    if not mine:
        known = sorted({click.camera for click in clicks})
        raise unknown_name("camera with clicks", camera, known)
    skeleton = Skeleton(robot, dtype=torch.float64)
    states = {name: read_states(episodes, name) for name in dict.fromkeys(click.episode for click in mine)}
    for click in mine:
        count = len(states[click.episode].joint_position)
        if not 0 <= click.frame < count:
            raise CalibrationError(
                f"Episode '{click.episode}' has frames 0 to {count - 1}, got a click in frame {click.frame}. "
                "Count frames from 0."
            )
    q = np.stack([states[click.episode].joint_position[click.frame] for click in mine])
    closed = np.array([states[click.episode].gripper_position[click.frame] for click in mine])
    points = skeleton.at_joints(torch.from_numpy(q), torch.from_numpy(closed)).numpy()
    which = [skeleton.keypoint_names.index(click.keypoint) for click in mine]
    return ClickedPoints(
        clicks=tuple(mine),
        points_base_m=points[np.arange(len(mine)), which],
        pixels=np.array([click.pixel for click in mine], np.float64),
        tool_axis_base=tip_rotations(robot, q)[:, :, 2],
    )


def tip_rotations(robot: RobotCard, q: Float[np.ndarray, "N n"]) -> Float[np.ndarray, "N 3 3"]:
    """Return the rotation of the tip link in the base frame."""
    chain = load_chain(robot).subchain((robot.tip_link,)).to(torch.float64)
    turned: Float[np.ndarray, "N 3 3"] = chain.links(torch.from_numpy(q))[:, 0, :3, :3].numpy()
    return turned


def read_states(episodes: Path, name: str) -> States:
    """Return the robot in each frame of an episode of a folder of episodes or of a data set."""
    if (episodes / INFO_PATH).is_file():
        set_ = EpisodeSet(episodes)
        columns = set_.read(_number(set_, name), views=(), labels=(), columns=(JOINTS, GRIPPER)).columns
        q, gripper = (np.asarray(columns[key], np.float64) for key in (JOINTS, GRIPPER))
        return States(joint_position=q, gripper_position=gripper)
    path = episodes / name / "log.npz"
    if not path.is_file():
        known = sorted(p.parent.name for p in episodes.glob("*/log.npz"))
        raise unknown_name(f"episode in '{episodes}' (a folder with log.npz)", name, known)
    try:
        with path.open("rb") as file, np.load(file) as log:
            q, gripper = (np.asarray(log[key], np.float64) for key in ("joint_position", "gripper_position"))
            rows = log["frame_to_row"] if "frame_to_row" in log else np.arange(len(q))
            return States(joint_position=q[rows], gripper_position=gripper[rows])
    except (OSError, EOFError, KeyError, IndexError, ValueError, zipfile.BadZipFile) as error:
        raise CalibrationError(
            f"{path} must hold joint_position (N, n) and gripper_position (N,), got {type(error).__name__}: {error}. "
            "Write it again with np.savez."
        ) from error


def read_frames(episodes: Path, name: str, camera: str, frames: Sequence[int]) -> UInt8[np.ndarray, "T H W 3"]:
    """Return some frames of an episode, in the order asked for."""
    first, last = min(frames), max(frames)
    if (episodes / INFO_PATH).is_file():
        set_ = EpisodeSet(episodes)
        part = set_.read(_number(set_, name), start=first, stop=last + 1, views=(camera,), labels=(), columns=())
        clip = part.frames[camera]
    else:
        clip = read_video(episodes / name / f"{camera}.mp4", start=first, stop=last + 1)
    picked: UInt8[np.ndarray, "T H W 3"] = clip[np.array(frames) - first]
    return picked


def _number(episodes: EpisodeSet, name: str) -> int:
    """Return which episode of a set has this number, or was imported from one of this name."""
    for i in range(len(episodes)):
        source = episodes.info(i).get("source")
        if name == str(episodes.index(i)) or (isinstance(source, dict) and name == str(source.get("episode"))):
            return i
    raise unknown_name(
        f"episode in the set '{episodes.root}'", name, map(str, map(episodes.index, range(len(episodes))))
    )


def _clicks_of(entry: Any, where: str, names: Mapping[str, str]) -> list[Click]:
    if not isinstance(entry, dict) or any(key not in entry for key in CLICK_KEYS):
        raise CalibrationError(f"{where} must have {', '.join(CLICK_KEYS)} and pixels, got {entry!r}.")
    found = []
    for key, pixel in entry.items():
        if key in CLICK_KEYS or pixel is None:
            continue
        if key.removesuffix("_px") not in names or not key.endswith("_px"):
            raise unknown_name(f"point to click ({where})", key, [f"{name}_px" for name in names])
        try:
            u, v = (float(x) for x in pixel)
            frame = int(entry["frame"])
        except (TypeError, ValueError) as error:
            raise CalibrationError(f"{where}: {key} must be [u, v] in px and frame a number, got {pixel!r}.") from error
        if not np.isfinite([u, v]).all():
            raise CalibrationError(
                f"{where}: {key} must be [u, v] in px, got {pixel!r}. Write null for a hidden point."
            )
        click = Click(
            episode=str(entry["episode"]),
            camera=str(entry["camera"]),
            frame=frame,
            keypoint=names[key.removesuffix("_px")],
            pixel=(u, v),
        )
        found.append(click)
    return found


def _clickable(robot: RobotCard) -> dict[str, str]:
    """Names in a clicks file → key-points of the skeleton."""
    fingers = dict(zip(FINGERS, robot.skeleton.drop_from, strict=False))
    return {**fingers, **{point.name: point.name for point in robot.skeleton.keypoints}}
