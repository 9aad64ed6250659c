"""Scene specifications: everything that one oracle episode consists of, as plain JSON-able data."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from vap_gym.errors import VapError

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.10, 0.10),
    "green": (0.12, 0.62, 0.18),
    "blue": (0.12, 0.25, 0.85),
    "yellow": (0.92, 0.80, 0.12),
    "purple": (0.52, 0.14, 0.68),
    "cyan": (0.12, 0.75, 0.80),
}
"""Colours of objects. Each object in a scene has its own, so the index in this table is its identity."""
COLOURS = tuple(PALETTE)
GOAL_COLOUR = (0.95, 0.35, 0.62)

TASK_NAMES = ("reach", "push", "lift")
"""What can be done with any object on any table."""
ALL_TASKS = (*TASK_NAMES, "knock_over", "place_upright", "open_drawer", "close_drawer")
DRAWER_TASKS = ("open_drawer", "close_drawer")


@dataclass(frozen=True, kw_only=True)
class ObjectSpec:
    """One object: a named shape, its palette colour, half extents [m], pose on the table and physics."""

    shape: str
    colour: str
    half_extents_m: tuple[float, float, float]
    xy_m: tuple[float, float]
    yaw_rad: float
    mass_kg: float
    friction: float
    lying: bool = False  # a tall thing on its side, its axis along `yaw_rad`

    @property
    def index(self) -> int:
        """Index of the object's colour in the palette: its identity everywhere else."""
        return COLOURS.index(self.colour)


@dataclass(frozen=True, kw_only=True)
class CameraSpec:
    """A third-person camera: where it stands and what it looks at (world = robot base), its field of view."""

    eye_m: tuple[float, float, float]
    target_m: tuple[float, float, float]
    vertical_fov_rad: float
    roll_rad: float
    sway: tuple[float, ...] = ()  # how a head moves, 8 numbers (see `geometry.swayed`); none: it stands still


@dataclass(frozen=True, kw_only=True)
class DrawerSpec:
    """A cabinet with one drawer that slides along x, toward the robot (−x). World metres."""

    front_m: tuple[float, float, float]  # centre of the drawer's front when it is closed
    size_m: tuple[float, float, float]  # depth, width and height of the drawer
    travel_m: float  # how far it can be pulled out
    opening_m: float  # how far it is at first
    colour: tuple[float, float, float]

    @property
    def handle_m(self) -> tuple[float, float, float]:
        """Centre of the handle when the drawer is closed."""
        x, y, z = self.front_m
        return (x - HANDLE_M, y, z)


HANDLE_M = 0.03  # how far a drawer's handle stands out


@dataclass(frozen=True, kw_only=True)
class SceneSpec:
    """All that an episode draws: camera, table, lights, objects, task, the robot's start."""

    seed: int
    split: str
    task: str
    target: int  # palette index of the object that the task is about
    goal_xy_m: tuple[float, float]
    objects: tuple[ObjectSpec, ...]
    camera: CameraSpec
    table_texture: str
    table_colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    floor_colour: tuple[float, float, float]
    table_half_m: tuple[float, float]
    light_direction: tuple[float, float, float]
    light_colour: tuple[float, float, float]
    light_ambient: float
    light_diffuse: float
    start_tool_m: tuple[float, float, float]
    start_yaw_rad: float
    start_tilt_rad: tuple[float, float]
    start_closedness: float
    layout: str = "table"
    table_z_m: float = 0.0  # the table's top over the robot's base
    table_centre_m: tuple[float, float] = (0.42, 0.0)
    drawer: DrawerSpec | None = None

    @property
    def is_about_drawer(self) -> bool:
        """Whether the task is about the drawer; then `target` is −1."""
        return self.task in DRAWER_TASKS

    @property
    def instruction(self) -> str:
        """The task in words, naming the object by colour and shape."""
        if self.is_about_drawer:
            return self.task.replace("_", " ")
        target = self.target_object
        name = f"{target.colour} {target.shape}"
        return {
            "reach": f"move the gripper to the {name}",
            "push": f"push the {name} to the pink mark",
            "lift": f"lift the {name}",
            "knock_over": f"knock the {name} over",
            "place_upright": f"place the {name} upright",
        }[self.task]

    @property
    def target_object(self) -> ObjectSpec:
        """The object that the task is about."""
        return next(o for o in self.objects if o.index == self.target)

    def to_json(self) -> str:
        """The specification as one JSON object; `SceneSpec.from_json` reads it back exactly.

        What only some scenes have (a drawer, another table) is left out where it is as in all others.
        """
        return json.dumps(_as_dict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> SceneSpec:
        """Read what `to_json` wrote. Raises VapError where a field is missing or unknown."""
        try:
            data = json.loads(text)
            objects = tuple(ObjectSpec(**_tuples(o)) for o in data.pop("objects"))
            camera = CameraSpec(**_tuples(data.pop("camera")))
            given = data.pop("drawer", None)
            drawer = None if given is None else DrawerSpec(**_tuples(given))
            return SceneSpec(objects=objects, camera=camera, drawer=drawer, **_tuples(data))
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise VapError(f"Not a scene specification: {error}. Write it with SceneSpec.to_json().") from error


def _as_dict(value: Any) -> dict[str, Any]:
    """Fields as plain containers, those left out that have a default and are at it."""
    found = {}
    for field in dataclasses.fields(value):
        entry = getattr(value, field.name)
        if field.default is not dataclasses.MISSING and entry == field.default:
            continue
        if dataclasses.is_dataclass(entry):
            entry = _as_dict(entry)
        elif isinstance(entry, tuple) and entry and dataclasses.is_dataclass(entry[0]):
            entry = [_as_dict(one) for one in entry]
        found[field.name] = entry
    return found


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    def convert(value: Any) -> Any:
        return tuple(convert(v) for v in value) if isinstance(value, list) else value

    return {key: convert(value) for key, value in data.items()}
