"""Cards: a robot or an env as a TOML file, read into a frozen dataclass; a wrong key is an error, never ignored."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vap_gym.assets import envs_dir, robots_dir
from vap_gym.errors import CardError, unknown_name, unknown_name_message

ActionMode = Literal[
    "cartesian_velocity", "cartesian_delta", "cartesian_pose", "joint_velocity", "joint_position", "rt1", "bridge"
]  # told in vap_gym.kinematics.control
Vec3 = tuple[float, float, float]
Card = typing.TypeVar("Card")


@dataclass(frozen=True, kw_only=True)
class ControllerCard:
    """How commands become motion: first-order tracking of the commanded offset, with a lag, at a control rate."""

    kind: Literal["first_order"] = "first_order"
    gain: float = 0.2  # share of the commanded offset realised per step, once the lag has passed
    lag_steps: float = 1.0  # mean delay of the response
    gripper_gain: float = 1.0
    control_hz: float = 15.0
    linear_step_m: float = 0.075  # what a velocity command of norm 1 asks for in one step
    rotation_step_rad: float = 0.15
    joint_step_rad: float = 0.2
    gripper_step: float = 0.25  # closedness


@dataclass(frozen=True, kw_only=True)
class GripperJointCard:
    """One driven gripper joint: its position (rad, or m where prismatic) when open and when closed."""

    name: str
    open_position: float
    closed_position: float


@dataclass(frozen=True, kw_only=True)
class GripperCard:
    """What the robot grasps with, driven by one closedness in [0 open, 1 closed]; without joints it does not move.

    `parallel` fingers slide, `pivoting` ones swing, each about one hinge; a `hand` has five; `none` is a bare tool.
    """

    kind: Literal["robotiq_2f85", "parallel", "pivoting", "hand", "none"]
    base_link: str  # this link and all that hangs on it is the gripper
    tool_link: str  # the point between the fingers
    max_opening_m: float
    joints: tuple[GripperJointCard, ...]


@dataclass(frozen=True, kw_only=True)
class KeypointCard:
    """A named point of the skeleton: at `offset_m + closedness * offset_per_closing_m` in the frame of `link`."""

    name: str
    link: str
    offset_m: Vec3 = (0.0, 0.0, 0.0)
    offset_per_closing_m: Vec3 = (0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class BoneCard:
    """A coloured line between two key-points."""

    start: str
    end: str
    colour_rgb: tuple[int, int, int]
    radius_m: float = 0.006


@dataclass(frozen=True, kw_only=True)
class SkeletonCard:
    """What the prompt draws: key-points, bones, and a thin line dropped to the table from the mean of `drop_from`."""

    keypoints: tuple[KeypointCard, ...]
    bones: tuple[BoneCard, ...]
    drop_from: tuple[str, ...] = ()  # none: no drop line
    drop_to_z_m: float = 0.0  # the table, in the base frame
    drop_colour_rgb: tuple[int, int, int] = (255, 220, 0)


@dataclass(frozen=True, kw_only=True)
class RobotCard:
    """A robot: its URDF, what of it is arm and what gripper, how it is driven, and how it is drawn."""

    name: str
    folder: Path
    urdf_path: Path
    base_link: str
    tip_link: str
    arm_joints: tuple[str, ...]
    home_q_rad: tuple[float, ...]
    controller: ControllerCard = ControllerCard()
    gripper: GripperCard
    skeleton: SkeletonCard
    action_modes: tuple[ActionMode, ...]
    body: str = ""  # file beside robot.toml with the robot's surface (vap-gym body); none: the surface is not known
    mesh: str = ""  # file there with its surface as triangles (vap-gym mesh); none: made of the URDF where needed
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class ViewCard:
    """A further camera, fixed in the robot's base frame, or riding on the tip link (`rides`): then in that frame."""

    name: str
    rides: bool = False
    eye_m: Vec3
    target_m: Vec3
    vertical_fov_deg: float = 60.0
    roll_deg: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EnvCard:
    """One registered env id and its defaults."""

    id: str
    robot: str  # a shipped robot's name, or the path of a folder, relative to the card's
    folder: Path  # where the card lies; its start states lie beside it
    frame_size_px: tuple[int, int] = (144, 96)  # (width, height)
    fps: float = 15.0
    action_mode: ActionMode = "cartesian_velocity"
    prompt: str = "skeleton"
    world_model: str = "tiny"
    obs_type: Literal["pixels", "pixels_agent_pos"] = "pixels"
    max_episode_steps: int = 100
    task: str = "reach"
    layout: Literal["table", "kitchen", "bridge", "desk"] = "table"  # of the oracle's scenes
    views: tuple[ViewCard, ...] = ()  # cameras that can be asked for beside the first
    terminate_on_success: bool = True
    description: str = ""

    @property
    def source(self) -> str:
        """What `load_env` reads it again by: the id of a shipped card, the path of anyone else's."""
        return self.id if self.folder.resolve() == envs_dir().resolve() else str(self.folder / f"{self.id}.toml")


def known_robots() -> tuple[str, ...]:
    """Return the names of the shipped robots, sorted."""
    return tuple(sorted(path.parent.name for path in robots_dir().glob("*/robot.toml")))


def known_envs() -> tuple[str, ...]:
    """Return the ids of the shipped env cards, sorted."""
    return tuple(sorted(path.stem for path in envs_dir().glob("*.toml")))


def load_robot(name_or_path: str | Path) -> RobotCard:
    """Read a shipped robot by name, or anyone's robot by the path of its folder or robot.toml."""
    path = _card_path(name_or_path, "robot", known_robots(), lambda name: robots_dir() / name / "robot.toml")
    table = _read_toml(path)
    urdf = table.pop("urdf", "robot.urdf")
    if not isinstance(urdf, str):
        raise CardError(f"{path}: 'urdf' must be a file name, got {urdf!r}.")
    urdf_path = path.parent / urdf
    if not urdf_path.is_file():
        raise CardError(f"{path}: its URDF '{urdf}' is missing; looked for {urdf_path}. Put it beside robot.toml.")
    for taken in ("folder", "urdf_path"):
        if taken in table:
            raise CardError(f"{path}: '{taken}' is not set in a card; use urdf = \"<file beside robot.toml>\".")
    card = _build(
        RobotCard, table, where=str(path), given={"folder": path.parent, "urdf_path": urdf_path}, also=("urdf",)
    )
    _check_robot(card, path)
    return card


def load_env(id_or_path: str | Path) -> EnvCard:
    """Read a shipped env card by id, or anyone's by the path of its TOML file."""
    path = _card_path(id_or_path, "env", known_envs(), lambda name: envs_dir() / f"{name}.toml")
    table = _read_toml(path)
    if "folder" in table:
        raise CardError(f"{path}: 'folder' is not set in a card; it is where the card lies.")
    card = _build(EnvCard, table, where=str(path), given={"folder": path.parent})
    if "/" in card.robot or "\\" in card.robot:
        card = dataclasses.replace(card, robot=str(path.parent / card.robot))
    if card.id != path.stem:
        raise CardError(f"{path}: id is '{card.id}', but the file is named '{path.stem}.toml'. Make the two the same.")
    if min(card.frame_size_px) < 1 or card.fps <= 0 or card.max_episode_steps < 1:
        raise CardError(
            f"{path}: frame_size_px, fps and max_episode_steps must be positive, "
            f"got {card.frame_size_px}, {card.fps}, {card.max_episode_steps}."
        )
    return card


def _card_path(given: str | Path, kind: str, known: tuple[str, ...], shipped: typing.Callable[[str], Path]) -> Path:
    text = str(given)
    if isinstance(given, str) and text in known:
        return shipped(text)
    is_path = isinstance(given, Path) or "/" in text or "\\" in text or text.endswith(".toml")
    if not is_path:
        raise unknown_name(kind, text, known)
    path = Path(given)
    path = path / f"{kind}.toml" if path.is_dir() else path
    if not path.is_file():
        raise CardError(f"No {kind} card at '{path}'. Give a TOML file that exists, or a name: {', '.join(known)}.")
    return path.resolve()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"{path} is no valid TOML: {error}.") from error


def _check_robot(card: RobotCard, path: Path) -> None:
    names = [point.name for point in card.skeleton.keypoints]
    if len(set(names)) != len(names):
        raise CardError(f"{path}: skeleton: each key-point needs a name of its own, got {', '.join(names)}.")
    used = [name for bone in card.skeleton.bones for name in (bone.start, bone.end)] + list(card.skeleton.drop_from)
    for name in used:
        if name not in names:
            raise CardError(f"{path}: skeleton: {unknown_name_message('key-point', name, names)}")
    if len(card.home_q_rad) != len(card.arm_joints):
        raise CardError(
            f"{path}: home_q_rad must have an angle per arm joint ({len(card.arm_joints)}), got {len(card.home_q_rad)}."
        )
    controller = card.controller
    if not (0 < controller.gain <= 1 and 0 < controller.gripper_gain <= 1 and controller.lag_steps >= 0):
        raise CardError(
            f"{path}: controller: gain and gripper_gain must be in (0, 1] and lag_steps at least 0, "
            f"got {controller.gain}, {controller.gripper_gain}, {controller.lag_steps}."
        )


def _build(
    cls: type[Card],
    table: dict[str, Any],
    *,
    where: str,
    given: dict[str, Any] | None = None,
    also: tuple[str, ...] = (),
) -> Card:
    """Make a card of a TOML table: every key known, every needed key there, every value of the annotated type."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = dict(given or {})
    known = (*(name for name in fields if name not in values), *also)
    for key, value in table.items():
        if key not in fields:
            raise CardError(f"{where}: {unknown_name_message('key', key, known)}")
        values[key] = _convert(hints[key], value, f"{where}: {key}")
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise CardError(f"{where}: the key '{name}' is missing; given: {', '.join(table) or 'none'}.")
    return cls(**values)


build = _build  # for other tables than cards, like the field maps of importers


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise CardError(f"{where} must be a table, got {value!r}.")
        return _build(hint, value, where=where)
    if origin is Literal:
        if value not in arguments:
            raise CardError(f"{where}: {unknown_name_message('choice', str(value), map(str, arguments))}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise CardError(f"{where} must be of type {hint.__name__}, got {value!r}.")
    return value


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise CardError(f"{where} must be a list, got {value!r}.")
    if arguments[-1] is ...:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise CardError(f"{where} must have {len(arguments)} entries, got {len(value)}: {value!r}.")
    return tuple(
        _convert(hint, entry, f"{where}[{i}]") for i, (hint, entry) in enumerate(zip(arguments, value, strict=True))
    )
