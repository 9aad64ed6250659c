"""Field maps: which fields of anyone's log are which columns, in which units and orders; checked, never guessed.

A map is a TOML (or JSON) file; a section that is the identity keeps the bits of its source.

```toml
robot = "panda_robotiq"
rate_hz = 15                        # of the frames; leave it out where it is not known
action_mode = "joint_position"      # what [action] is: a convention of vap_gym.kinematics.control

[joints]
field = "q"                         # name in the log; "state[0:7]" takes a slice of the last axis
unit = "deg"                        # rad | deg
[gripper]
field = "width"
means = "opening"                   # closedness (0 open .. 1 closed) | openness | opening
unit = "mm"                         # of an opening: m | mm
max_opening = 85                    # of an opening, in that unit
range = [0, 255]                    # of closedness and openness: the values for 0 and 1
[pose]
position = "ee[0:3]"
position_unit = "m"                 # m | mm
orientation = "ee[3:7]"
kind = "quaternion"                 # euler | quaternion
quaternion_order = "wxyz"           # xyzw | wxyz
euler_order = "zyx"                 # any of the twelve orders; with euler_frame = "extrinsic" | "intrinsic"
angle_unit = "deg"                  # of Euler angles: rad | deg
[action]
fields = ["cmd_q", "cmd_g"]         # put side by side, as logged
scale = [1, 1, 1, 1, 1, 1, 1, -1]   # to turn entries into those of action_mode: logged * scale + offset
offset = [0, 0, 0, 0, 0, 0, 0, 1]   # (here: openness to closedness)
[other]
"observation.force" = "wrench"      # further columns, as logged
[views.front]
file = "front.mp4"                  # beside the log
size_px = [320, 192]                # width, height: refused where the video has another size
[episodes]
log = "*/log.npz"                   # one npz or json per episode
task = "instruction"                # key of the JSON beside it (note), or of the log
note = "episode.json"
```
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vap_gym.cards import ActionMode, build
from vap_gym.data.conventions import ACTION, CARTESIAN, GRIPPER, JOINTS
from vap_gym.data.layout import DataError
from vap_gym.errors import CardError, unknown_name, unknown_name_message

Arrays = Mapping[str, NDArray[Any]]
TO_METRES = {"m": 1.0, "mm": 1e-3}
EULER_ORDERS = ("xyz", "xzy", "yxz", "yzx", "zxy", "zyx", "xyx", "xzx", "yxy", "yzy", "zxz", "zyz")


@dataclass(frozen=True, kw_only=True)
class JointsMap:
    """Joint angles of the arm."""

    field: str
    unit: Literal["rad", "deg"] = "rad"

    def column(self, log: Arrays, where: str) -> NDArray[Any]:
        """The column of joint positions (T, n), rad."""
        values = _field(log, self.field, where, axes=2)
        return values if self.unit == "rad" else np.deg2rad(_floats(values, self.field, where))


@dataclass(frozen=True, kw_only=True)
class GripperMap:
    """How far the gripper is closed, from closedness, openness, or the opening between the fingers."""

    field: str
    means: Literal["closedness", "openness", "opening"] = "closedness"
    unit: Literal["", "m", "mm"] = ""
    max_opening: float = 0.0
    range: tuple[float, float] = (0.0, 1.0)

    def column(self, log: Arrays, where: str) -> NDArray[Any]:
        """The column of closedness (T,), 0 open to 1 closed; refused where it is outside by more than 0.01."""
        values = _field(log, self.field, where, axes=1)
        if self.means == "opening":
            open_value, closed_value = self.max_opening, 0.0
        else:
            open_value, closed_value = self.range if self.means == "closedness" else self.range[::-1]
        if (open_value, closed_value) != (0.0, 1.0):
            values = (_floats(values, self.field, where) - open_value) / (closed_value - open_value)
        if not np.all((values >= -0.01) & (values <= 1.01)):
            raise DataError(
                f"Closedness from '{self.field}' of {where} must be in 0 to 1, got {values.min():.4g} to "
                f"{values.max():.4g}. Correct means, unit, max_opening or range of [gripper]."
            )
        return values


@dataclass(frozen=True, kw_only=True)
class PoseMap:
    """Pose of the tip in the base frame."""

    position: str
    orientation: str
    position_unit: Literal["m", "mm"] = "m"
    kind: Literal["euler", "quaternion"] = "euler"
    euler_order: Literal["xyz", "xzy", "yxz", "yzx", "zxy", "zyx", "xyx", "xzx", "yxy", "yzy", "zxz", "zyz"] = "xyz"
    euler_frame: Literal["extrinsic", "intrinsic"] = "extrinsic"
    angle_unit: Literal["rad", "deg"] = "rad"
    quaternion_order: Literal["", "xyzw", "wxyz"] = ""

    def column(self, log: Arrays, where: str) -> NDArray[Any]:
        """The column of poses (T, 6): xyz [m] and extrinsic-xyz Euler angles [rad]."""
        position = _field(log, self.position, where, axes=2, width=3)
        if self.position_unit != "m":
            position = _floats(position, self.position, where) * TO_METRES[self.position_unit]
        orientation = _field(log, self.orientation, where, axes=2, width=4 if self.kind == "quaternion" else 3)
        if len(position) != len(orientation):
            raise DataError(
                f"'{self.position}' and '{self.orientation}' of {where} must have the same rows, "
                f"got {len(position)} and {len(orientation)}. Name fields that were logged together."
            )
        return np.concatenate([position, self._euler_xyz(orientation, where)], axis=1)

    def _euler_xyz(self, given: NDArray[Any], where: str) -> NDArray[Any]:
        from scipy.spatial.transform import Rotation

        given = _floats(given, self.orientation, where)
        if not np.isfinite(given).all():
            raise DataError(f"'{self.orientation}' of {where} must be finite, got NaN or infinity. Leave it out.")
        if self.kind == "quaternion":
            norms = np.linalg.norm(given, axis=1)
            worst = int(np.abs(norms - 1).argmax())
            if abs(norms[worst] - 1) > 1e-3:
                raise DataError(
                    f"Quaternions in '{self.orientation}' of {where} must have norm 1, got {norms[worst]:.4g} in row "
                    f"{worst}. Name the right field, or normalise them before."
                )
            xyzw = given if self.quaternion_order == "xyzw" else given[:, [1, 2, 3, 0]]
            return np.asarray(Rotation.from_quat(xyzw).as_euler("xyz"))
        angles = given if self.angle_unit == "rad" else np.deg2rad(given)
        if (self.euler_order, self.euler_frame) == ("xyz", "extrinsic"):
            return angles
        order = self.euler_order if self.euler_frame == "extrinsic" else self.euler_order.upper()
        return np.asarray(Rotation.from_euler(order, angles).as_euler("xyz"))


@dataclass(frozen=True, kw_only=True)
class ActionMap:
    """The commands, put side by side; as logged, unless `scale` (and `offset`) bring them to their convention."""

    fields: tuple[str, ...]
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()

    def column(self, log: Arrays, where: str) -> NDArray[Any]:
        """The column of actions (T, A): logged * scale + offset."""
        parts = [_field(log, name, where) for name in self.fields]
        parts = [part[:, None] if part.ndim == 1 else part for part in parts]
        if len({len(part) for part in parts}) != 1 or any(part.ndim != 2 for part in parts):
            shapes = ", ".join(f"{name} {part.shape}" for name, part in zip(self.fields, parts, strict=True))
            raise DataError(f"Action fields of {where} must all be (T, n) or (T,), got {shapes}. Name others.")
        action = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        for name, factors in (("scale", self.scale), ("offset", self.offset)):
            if factors and len(factors) != action.shape[1]:
                raise DataError(
                    f"[action] {name} needs a number per entry of the action of {where} ({action.shape[1]}), got "
                    f"{len(factors)}. Give {'1' if name == 'scale' else '0'} for entries that stay as they are."
                )
        if self.scale:
            action = _floats(action, "action", where) * np.array(self.scale)
        return _floats(action, "action", where) + np.array(self.offset) if self.offset else action


@dataclass(frozen=True, kw_only=True)
class ViewMap:
    """A view: its video beside the log, and the size that it must have (width, height)."""

    file: str
    size_px: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class EpisodesMap:
    """Where the episodes are: a pattern for their logs, and where each one's task is told."""

    log: str = "*/log.npz"
    task: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class FieldMap:
    """Which fields of a log are which columns."""

    robot: str = ""
    rate_hz: float | None = None
    action_mode: ActionMode | None = None
    joints: JointsMap | None = None
    gripper: GripperMap | None = None
    pose: PoseMap | None = None
    action: ActionMap | None = None
    other: Mapping[str, str] = field(default_factory=dict)
    views: Mapping[str, ViewMap] = field(default_factory=dict)
    episodes: EpisodesMap = field(default_factory=EpisodesMap)

    def columns(self, log: Arrays, where: str) -> dict[str, NDArray[Any]]:
        """The columns of an episode. Raises DataError where a field is missing, misshapen or not what it is said."""
        mapped = {JOINTS: self.joints, GRIPPER: self.gripper, CARTESIAN: self.pose, ACTION: self.action}
        columns = {name: section.column(log, where) for name, section in mapped.items() if section is not None}
        columns |= {name: _field(log, source, where) for name, source in self.other.items()}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name} {count}" for name, count in lengths.items())
            raise DataError(
                f"Columns of {where} must have the same rows, got {shown}. Name fields that were logged together."
            )
        return columns

    @property
    def info(self) -> dict[str, Any]:
        """What the map says of every episode, as entries of `info`."""
        return {
            **({"robot": self.robot} if self.robot else {}),
            **({"action_mode": self.action_mode} if self.action_mode else {}),
        }


SECTIONS: Mapping[str, type[Any]] = {
    "joints": JointsMap,
    "gripper": GripperMap,
    "pose": PoseMap,
    "action": ActionMap,
    "episodes": EpisodesMap,
}


def read_map(path: Path) -> FieldMap:
    """Read a field map from TOML or JSON. Raises CardError on unknown keys, units and orders, and what is unsaid."""
    try:
        content = path.read_text(encoding="utf-8")
        table = json.loads(content) if path.suffix == ".json" else tomllib.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise CardError(f"{path} must be a field map in TOML or JSON, got {error}. Correct the file.") from error
    if not isinstance(table, dict):
        raise CardError(f"{path} must be a table of sections, got a {type(table).__name__}. See --help of the kind.")
    known = ("robot", "rate_hz", "action_mode", "other", "views", *SECTIONS)
    for key in table:
        if key not in known:
            raise CardError(f"{path}: {unknown_name_message('key', key, known)}")
    sections = {name: build(cls, _table(table, name, path), where=f"{path}: {name}")
                for name, cls in SECTIONS.items() if name in table}  # fmt: skip
    views = _table(table, "views", path)
    other = _table(table, "other", path)
    for name, value in other.items():
        if not isinstance(value, str):
            raise CardError(f"{path}: other: '{name}' must be the name of a field, got {value!r}.")
    made = FieldMap(
        robot=_robot(table, path),
        rate_hz=_rate(table, path),
        action_mode=_action_mode(table, path),
        other=other,
        views={name: build(ViewMap, _table(views, name, path), where=f"{path}: views.{name}") for name in views},
        **sections,
    )
    _check(made, path)
    return made


def _check(made: FieldMap, path: Path) -> None:
    """Refuse maps that leave a unit, an order or a convention unsaid."""
    if made.action is not None and (made.action_mode is None or not made.action.fields):
        raise CardError(
            f"{path}: [action] needs fields and an action_mode, got {made.action.fields or 'no fields'} and "
            f"{made.action_mode or 'none'}. Say what the commands mean: {', '.join(get_args(ActionMode))}."
        )
    gripper, pose = made.gripper, made.pose
    if gripper is not None and gripper.means == "opening" and (not gripper.unit or not gripper.max_opening > 0):
        raise CardError(
            f"{path}: [gripper] of an opening needs its unit and max_opening > 0, got unit '{gripper.unit}' and "
            f'{gripper.max_opening:g}. A Robotiq 2F-85 has unit = "mm", max_opening = 85.'
        )
    if gripper is not None and gripper.range[0] == gripper.range[1]:
        raise CardError(f"{path}: [gripper] range must be two different values, got {list(gripper.range)}.")
    if pose is not None and (pose.kind == "quaternion") != bool(pose.quaternion_order):
        raise CardError(
            f'{path}: [pose] needs quaternion_order (xyzw or wxyz) with kind = "quaternion", and only there, got '
            f"kind '{pose.kind}' and quaternion_order '{pose.quaternion_order}'. The two orders look alike: say which."
        )


def _rate(table: Mapping[str, Any], path: Path) -> float | None:
    rate = table.get("rate_hz")
    if rate is None:
        return None
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1e6:
        raise CardError(f"{path}: rate_hz must be a number above 0, got {rate!r}. Leave it out where it is not known.")
    return float(rate)


def _action_mode(table: Mapping[str, Any], path: Path) -> ActionMode | None:
    mode: ActionMode | None = table.get("action_mode")
    if mode is not None and mode not in get_args(ActionMode):
        raise CardError(f"{path}: {unknown_name_message('action_mode', str(mode), get_args(ActionMode))}")
    return mode


def _robot(table: Mapping[str, Any], path: Path) -> str:
    robot = table.get("robot", "")
    if not isinstance(robot, str):
        raise CardError(f'{path}: robot must be the name of a card, got {robot!r}. Like: robot = "widowx"')
    return robot


def _table(table: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise CardError(f"{path}: [{key}] must be a table, got {value!r}.")
    return value


def _field(log: Arrays, name: str, where: str, *, axes: int | None = None, width: int | None = None) -> NDArray[Any]:
    """A field of a log, sliced where its name says so, as (T, …). `axes` and `width` of the last one are checked."""
    match = re.fullmatch(r"(.*?)(?:\[(\d+)(?::(\d+))?\])?", name)
    assert match is not None
    key = match[1]
    if key not in log:
        raise unknown_name(f"field of {where}", key, log)
    values = log[key]
    if match[2] is not None:
        first, last = int(match[2]), int(match[3]) if match[3] else None
        size = values.shape[-1] if values.ndim > 1 else 0
        if first >= size or (last is not None and not first < last <= size):
            raise DataError(f"'{name}' needs {key} of {where} to be as wide, got {values.shape}. Correct the slice.")
        values = values[..., first] if last is None else values[..., first:last]
    if axes == 1 and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    right = values.dtype.kind in "fiub" and values.ndim >= 1 and len(values) > 0
    if not right or (axes is not None and values.ndim != axes) or (width is not None and values.shape[-1] != width):
        wanted = {None: "(T, …)", 1: "(T,)", 2: f"(T, {width or 'n'})"}[axes]
        raise DataError(
            f"'{name}' of {where} must be numbers of shape {wanted}, got {values.dtype} {values.shape}. "
            "Name another field, or a slice of it: name[0:3]."
        )
    return values


def _floats(values: NDArray[Any], name: str, where: str) -> NDArray[Any]:
    if values.dtype.kind == "f":
        return values
    if values.dtype.kind not in "iu":
        raise DataError(f"'{name}' of {where} must be numbers, got {values.dtype}. Name another field.")
    return values.astype(np.float64)
