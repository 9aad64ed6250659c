"""Scene specifications: everything that one oracle episode draws from its seed, as plain JSON-able data."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from vap_gym.errors import VapError, unknown_name

SPLITS = ("train", "novel")
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

TRAIN_SHAPES = ("cube", "brick", "tower", "cylinder", "disc")
NOVEL_SHAPES = ("cross", "ball")
TRAIN_TEXTURES = ("plain", "wood", "speckle", "cloud", "stripes")
NOVEL_TEXTURES = ("tiles",)
TASK_NAMES = ("reach", "push", "lift")


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

    @property
    def instruction(self) -> str:
        """The task in words, naming the object by colour and shape."""
        target = self.target_object
        name = f"{target.colour} {target.shape}"
        return {
            "reach": f"move the gripper to the {name}",
            "push": f"push the {name} to the pink mark",
            "lift": f"lift the {name}",
        }[self.task]

    @property
    def target_object(self) -> ObjectSpec:
        """The object that the task is about."""
        return next(o for o in self.objects if o.index == self.target)

    def to_json(self) -> str:
        """The specification as one JSON object; `SceneSpec.from_json` reads it back exactly."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> SceneSpec:
        """Read what `to_json` wrote. Raises VapError where a field is missing or unknown."""
        try:
            data = json.loads(text)
            objects = tuple(ObjectSpec(**_tuples(o)) for o in data.pop("objects"))
            camera = CameraSpec(**_tuples(data.pop("camera")))
            return SceneSpec(objects=objects, camera=camera, **_tuples(data))
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise VapError(f"Not a scene specification: {error}. Write it with SceneSpec.to_json().") from error


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    def convert(value: Any) -> Any:
        return tuple(convert(v) for v in value) if isinstance(value, list) else value

    return {key: convert(value) for key, value in data.items()}


def draw_scene(seed: int, *, split: str = "train", task: str | None = None, near: bool | None = None) -> SceneSpec:
    """Draw the scene of one episode.

    Args:
        seed: any integer ≥ 0; the same seed gives the same scene on every machine.
        split: "train", or "novel" with the two object shapes and the table texture that training never shows.
        task: "reach", "push" or "lift"; drawn when None.
        near: start the gripper close to the target object (True), anywhere (False) or as drawn (None, 60 % near).

    Raises:
        UnknownNameError: for an unknown split or task.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if task is not None and task not in TASK_NAMES:
        raise unknown_name("task", task, TASK_NAMES)
    rng = np.random.default_rng([seed, 20508])
    task = task or str(rng.choice(TASK_NAMES, p=[0.2, 0.4, 0.4]))
    objects = _draw_objects(rng, split, task)
    target = objects[0].index
    near = bool(rng.random() < 0.6) if near is None else near
    goal = _draw_goal(rng, np.asarray(objects[0].xy_m))
    start = _draw_start(rng, objects, near)
    texture = str(rng.choice(TRAIN_TEXTURES if split == "train" else NOVEL_TEXTURES))
    order = rng.permutation(len(objects))
    lamp = rng.uniform(-1.0, 1.0, 2)
    return SceneSpec(
        seed=int(seed),
        split=split,
        task=task,
        target=target,
        goal_xy_m=(round(float(goal[0]), 4), round(float(goal[1]), 4)),
        objects=tuple(objects[i] for i in order),
        camera=_draw_camera(rng),
        table_texture=texture,
        table_colours=_draw_table_colours(rng),
        floor_colour=_rounded(rng.uniform(0.15, 0.75) + rng.uniform(-0.08, 0.08, 3)),
        table_half_m=(round(float(rng.uniform(0.42, 0.6)), 3), round(float(rng.uniform(0.5, 0.85)), 3)),
        light_direction=_rounded(np.array([lamp[0], lamp[1], 1.0])),
        light_colour=_rounded(1.0 + rng.uniform(-0.08, 0.08, 3)),
        light_ambient=round(float(rng.uniform(0.5, 0.7)), 3),
        light_diffuse=round(float(rng.uniform(0.3, 0.5)), 3),
        start_tool_m=start,
        start_yaw_rad=round(float(rng.uniform(-0.9, 0.9)), 4),
        start_tilt_rad=_rounded(rng.normal(0.0, 0.08, 2)),
        start_closedness=round(float(rng.choice([0.0, rng.uniform(0, 1), 1.0], p=[0.6, 0.2, 0.2])), 3),
    )


def _rounded(values: np.ndarray) -> Any:
    return tuple(round(float(v), 4) for v in values)


def _draw_objects(rng: np.random.Generator, split: str, task: str) -> list[ObjectSpec]:
    count = int(rng.integers(1, 5))
    colours = rng.permutation(len(COLOURS))[:count]
    placed: list[ObjectSpec] = []
    for colour in colours:
        shapes = TRAIN_SHAPES if split == "train" else NOVEL_SHAPES
        shape = str(rng.choice(shapes))
        if not placed and task == "lift" and shape in ("disc", "ball"):
            shape = "cube" if split == "train" else "cross"  # what a two-finger gripper can lift from above
        for _ in range(200):
            xy = rng.uniform([0.34, -0.24], [0.64, 0.24])
            if all(np.hypot(*(xy - np.asarray(o.xy_m))) > 0.105 for o in placed):
                break
        else:
            continue
        size = rng.uniform(0.026, 0.034)
        half = {
            "cube": (size, size, size),
            "brick": (size * 1.45, size * 0.9, size * 0.8),
            "tower": (size * 0.85, size * 0.85, size * 1.55),
            "cylinder": (size, size, size * 1.25),
            "disc": (size * 1.35, size * 1.35, size * 0.5),
            "cross": (size * 1.5, size * 0.6, size * 0.8),
            "ball": (size * 1.1, size * 1.1, size * 1.1),
        }[shape]
        placed.append(
            ObjectSpec(
                shape=shape,
                colour=COLOURS[int(colour)],
                half_extents_m=_rounded(np.array(half)),
                xy_m=_rounded(xy),
                yaw_rad=round(float(rng.uniform(-np.pi, np.pi)), 4),
                mass_kg=round(float(rng.uniform(0.06, 0.15)), 4),
                friction=round(float(rng.uniform(0.6, 0.9)), 3),
            )
        )
    return placed


def _draw_goal(rng: np.random.Generator, object_xy_m: np.ndarray) -> np.ndarray:
    for _ in range(50):  # held to the table's reachable part, a goal may fall back onto the object: draw again
        angle, reach = rng.uniform(-np.pi, np.pi), rng.uniform(0.12, 0.22)
        goal = object_xy_m + reach * np.array([np.cos(angle), np.sin(angle)])
        goal = np.clip(goal, [0.32, -0.26], [0.66, 0.26])
        if np.hypot(*(goal - object_xy_m)) >= 0.08:
            break
    return np.asarray(goal)


def _draw_camera(rng: np.random.Generator) -> CameraSpec:
    target = np.array([0.48, 0.0, 0.06]) + rng.normal(0.0, [0.04, 0.05, 0.03])
    azimuth = rng.uniform(-2.35, 2.35)  # 0 looks at the robot's face, ±π/2 from its sides
    elevation = rng.uniform(np.deg2rad(22), np.deg2rad(60))
    fov = rng.uniform(np.deg2rad(40), np.deg2rad(68))
    scale_px_per_m = np.exp(rng.uniform(np.log(120), np.log(200)))  # of a 96-row picture, at the target
    distance = np.clip(48.0 / np.tan(fov / 2) / scale_px_per_m, 0.5, 1.2)
    horizontal = distance * np.cos(elevation)
    eye = target + [horizontal * np.cos(azimuth), horizontal * np.sin(azimuth), distance * np.sin(elevation)]
    return CameraSpec(
        eye_m=_rounded(eye),
        target_m=_rounded(target),
        vertical_fov_rad=round(float(fov), 4),
        roll_rad=round(float(rng.normal(0.0, 0.03)), 4),
    )


def _draw_table_colours(rng: np.random.Generator) -> Any:
    # Muted, so that the palette's saturated colours stay apart from it.
    grey = rng.uniform(0.2, 0.9)
    tint = rng.uniform(-1.0, 1.0, 3) * 0.10
    warm = np.array([0.10, 0.0, -0.12]) * rng.uniform(-0.3, 1.0)
    first = np.clip(grey + tint + warm, 0.08, 0.97)
    second = np.clip(first + rng.choice([-1.0, 1.0]) * rng.uniform(0.04, 0.14), 0.05, 1.0)
    return (_rounded(first), _rounded(second))


def _draw_start(rng: np.random.Generator, objects: list[ObjectSpec], near: bool) -> tuple[float, float, float]:
    if near:
        angle, away = rng.uniform(-np.pi, np.pi), rng.uniform(0.06, 0.13)
        xy = np.asarray(objects[0].xy_m) + away * np.array([np.cos(angle), np.sin(angle)])
        xyz = np.array([*xy, rng.uniform(0.03, 0.16)])
    else:
        xyz = rng.uniform([0.32, -0.26, 0.05], [0.64, 0.26, 0.34])
    for item in objects:  # do not start inside an object
        gap = np.hypot(*(xyz[:2] - np.asarray(item.xy_m)))
        if gap < 0.10:
            xyz[2] = max(xyz[2], 2 * item.half_extents_m[2] + 0.04)
    return _rounded(np.clip(xyz, [0.30, -0.30, 0.03], [0.68, 0.30, 0.4]))  # type: ignore[no-any-return]
