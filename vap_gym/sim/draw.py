"""Drawing scenes from seeds: the table of a Panda, and the parts that scenes of other robots are drawn of."""

from __future__ import annotations

from typing import Any

import numpy as np

from vap_gym.sim.spec import COLOURS, TASK_NAMES, CameraSpec, ObjectSpec, SceneSpec

SPLITS = ("train", "novel")
TRAIN_SHAPES = ("cube", "brick", "tower", "cylinder", "disc")
NOVEL_SHAPES = ("cross", "ball")
TRAIN_TEXTURES = ("plain", "wood", "speckle", "cloud", "stripes")
NOVEL_TEXTURES = ("tiles",)
Area = tuple[tuple[float, float], tuple[float, float]]  # lowest and highest x and y, m
TABLE_AREA: Area = ((0.32, -0.26), (0.66, 0.26))


def draw_table(seed: int, *, split: str, task: str | None, near: bool | None) -> SceneSpec:
    """Draw the scene of one episode of a Panda over its table, see `layouts.draw_scene`."""
    rng = np.random.default_rng([seed, 20508])
    task = task or str(rng.choice(TASK_NAMES, p=[0.2, 0.4, 0.4]))
    objects = draw_objects(rng, split, task)
    target = objects[0].index
    near = bool(rng.random() < 0.6) if near is None else near
    goal = draw_goal(rng, np.asarray(objects[0].xy_m), TABLE_AREA)
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
        table_colours=draw_table_colours(rng),
        floor_colour=rounded(rng.uniform(0.15, 0.75) + rng.uniform(-0.08, 0.08, 3)),
        table_half_m=(round(float(rng.uniform(0.42, 0.6)), 3), round(float(rng.uniform(0.5, 0.85)), 3)),
        light_direction=rounded(np.array([lamp[0], lamp[1], 1.0])),
        light_colour=rounded(1.0 + rng.uniform(-0.08, 0.08, 3)),
        light_ambient=round(float(rng.uniform(0.5, 0.7)), 3),
        light_diffuse=round(float(rng.uniform(0.3, 0.5)), 3),
        start_tool_m=start,
        start_yaw_rad=round(float(rng.uniform(-0.9, 0.9)), 4),
        start_tilt_rad=rounded(rng.normal(0.0, 0.08, 2)),
        start_closedness=round(float(rng.choice([0.0, rng.uniform(0, 1), 1.0], p=[0.6, 0.2, 0.2])), 3),
    )


def rounded(values: np.ndarray) -> Any:
    """Return numbers as a tuple of floats of four digits, which JSON gives back exactly."""
    return tuple(round(float(v), 4) for v in values)


def draw_objects(
    rng: np.random.Generator,
    split: str,
    task: str,
    *,
    area: Area = ((0.34, -0.24), (0.64, 0.24)),
    most: int = 4,
    gap_m: float = 0.105,
    shapes: tuple[str, ...] = (),
    scale: float = 1.0,
) -> list[ObjectSpec]:
    """Draw up to `most` things that stand in `area`, `gap_m` apart; the first is the task's."""
    count = int(rng.integers(1, most + 1))
    colours = rng.permutation(len(COLOURS))[:count]
    placed: list[ObjectSpec] = []
    for colour in colours:
        shape = str(rng.choice(shapes or (TRAIN_SHAPES if split == "train" else NOVEL_SHAPES)))
        if not placed and task == "lift" and shape in ("disc", "ball"):
            shape = "cube" if split == "train" else "cross"  # what a two-finger gripper can lift from above
        for _ in range(200):
            xy = rng.uniform(*area)
            if all(np.hypot(*(xy - np.asarray(o.xy_m))) > gap_m for o in placed):
                break
        else:
            continue
        size = scale * rng.uniform(0.026, 0.034)
        half = {
            "cube": (size, size, size),
            "brick": (size * 1.45, size * 0.9, size * 0.8),
            "tower": (size * 0.85, size * 0.85, size * 1.55),
            "cylinder": (size, size, size * 1.25),
            "disc": (size * 1.35, size * 1.35, size * 0.5),
            "bottle": (size * 0.8, size * 0.8, size * 1.7),
            "cross": (size * 1.5, size * 0.6, size * 0.8),
            "ball": (size * 1.1, size * 1.1, size * 1.1),
        }[shape]
        placed.append(
            ObjectSpec(
                shape=shape,
                colour=COLOURS[int(colour)],
                half_extents_m=rounded(np.array(half)),
                xy_m=rounded(xy),
                yaw_rad=round(float(rng.uniform(-np.pi, np.pi)), 4),
                mass_kg=round(float(rng.uniform(0.06, 0.15)), 4),
                friction=round(float(rng.uniform(0.6, 0.9)), 3),
            )
        )
    return placed


def draw_goal(
    rng: np.random.Generator, object_xy_m: np.ndarray, area: Area, way_m: tuple[float, float] = (0.12, 0.22)
) -> np.ndarray:
    """Draw where the object shall be pushed: `way_m` away from it, within `area`."""
    for _ in range(50):  # held to the table's reachable part, a goal may fall back onto the object: draw again
        angle, reach = rng.uniform(-np.pi, np.pi), rng.uniform(*way_m)
        goal = object_xy_m + reach * np.array([np.cos(angle), np.sin(angle)])
        goal = np.clip(goal, *area)
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
        eye_m=rounded(eye),
        target_m=rounded(target),
        vertical_fov_rad=round(float(fov), 4),
        roll_rad=round(float(rng.normal(0.0, 0.03)), 4),
    )


def draw_table_colours(rng: np.random.Generator) -> Any:
    """Draw the two colours of a table."""
    # Muted, so that the palette's saturated colours stay apart from it.
    grey = rng.uniform(0.2, 0.9)
    tint = rng.uniform(-1.0, 1.0, 3) * 0.10
    warm = np.array([0.10, 0.0, -0.12]) * rng.uniform(-0.3, 1.0)
    first = np.clip(grey + tint + warm, 0.08, 0.97)
    second = np.clip(first + rng.choice([-1.0, 1.0]) * rng.uniform(0.04, 0.14), 0.05, 1.0)
    return (rounded(first), rounded(second))


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
    return rounded(np.clip(xyz, [0.30, -0.30, 0.03], [0.68, 0.30, 0.4]))  # type: ignore[no-any-return]
