"""Where robots work: the Panda's table, a kitchen with a drawer (RT-1), a WidowX's table (Bridge), a desk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vap_gym.errors import unknown_name
from vap_gym.sim.draw import (
    NOVEL_TEXTURES,
    SPLITS,
    TRAIN_TEXTURES,
    Area,
    draw_goal,
    draw_objects,
    draw_table,
    draw_table_colours,
    rounded,
)  # fmt: skip
from vap_gym.sim.spec import DRAWER_TASKS, TASK_NAMES, CameraSpec, DrawerSpec, ObjectSpec, SceneSpec

TALL = ("tower", "bottle")  # what can be knocked over and placed upright


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A kind of scene. Heights are over the table, which is `table_z_m` over the robot's base.

    `novel_tasks` are the skills that training never shows (the split "novel"); where there are none, it is shapes.
    """

    tasks: tuple[str, ...]
    novel_tasks: tuple[str, ...] = ()
    area: Area  # where things stand
    reach: Area  # where they may be pushed to
    start_m: tuple[tuple[float, float, float], tuple[float, float, float]]  # the tool's, lowest and highest
    table_z_m: float = 0.0
    table_centre_m: tuple[float, float] = (0.42, 0.0)
    table_half_m: tuple[float, float] = (0.3, 0.45)
    scale: float = 1.0  # of things
    way_m: tuple[float, float] = (0.1, 0.18)  # of pushes
    camera: Callable[[np.random.Generator], CameraSpec] | None = None


def _head_camera(rng: np.random.Generator) -> CameraSpec:
    """The Google robot's head at its start: fixed, 45° down; the field of view of RT-1's pictures cut to 3:2."""
    eye = np.array([0.146, -0.0004, 1.2134])
    ahead = np.array([0.7073, -0.002, -0.7069])
    fov = 2 * np.arctan(0.5 * 640 / 1.5 / 425.0)
    return CameraSpec(eye_m=rounded(eye), target_m=rounded(eye + ahead), vertical_fov_rad=float(fov), roll_rad=0.0)


def _bridge_camera(rng: np.random.Generator) -> CameraSpec:
    """The camera over a WidowX's shoulder, a centimetre or two from one set-up to the next."""
    eye = np.array([0.0, -0.16, 0.36]) + rng.normal(0.0, 0.01, 3)
    target = np.array([0.332, 0.0235, 0.0]) + rng.normal(0.0, 0.008, 3)
    fov = 2 * np.arctan(0.5 * 640 / 1.5 / 623.588)
    return CameraSpec(eye_m=rounded(eye), target_m=rounded(target), vertical_fov_rad=round(float(fov), 4), roll_rad=0.0)


def _eyes(rng: np.random.Generator) -> CameraSpec:
    """A camera on a head that is never quite still."""
    eye = np.array([-0.16, 0.0, 0.44]) + rng.normal(0.0, 0.02, 3)
    target = np.array([0.25, 0.0, 0.02]) + rng.normal(0.0, 0.02, 3)
    sway = [*rng.uniform(0.005, 0.03, 3), *rng.uniform(0.005, 0.04, 3), rng.uniform(2.0, 5.0), rng.uniform(0, 6.28)]
    return CameraSpec(
        eye_m=rounded(eye), target_m=rounded(target), vertical_fov_rad=round(float(rng.uniform(0.95, 1.1)), 4),
        roll_rad=round(float(rng.normal(0.0, 0.03)), 4), sway=rounded(np.array(sway)),
    )  # fmt: skip


LAYOUTS: dict[str, Layout] = {
    "table": Layout(
        tasks=TASK_NAMES, area=((0.34, -0.24), (0.64, 0.24)), reach=((0.32, -0.26), (0.66, 0.26)),
        start_m=((0.32, -0.26, 0.05), (0.64, 0.26, 0.34)),
    ),
    "kitchen": Layout(
        tasks=(*TASK_NAMES, "knock_over", "open_drawer"), novel_tasks=("close_drawer", "place_upright"),
        area=((0.40, -0.26), (0.56, 0.06)), reach=((0.38, -0.3), (0.60, 0.10)),
        start_m=((0.38, -0.26, 0.10), (0.48, -0.10, 0.15)), table_z_m=0.81, table_centre_m=(0.66, 0.0),
        table_half_m=(0.38, 0.6), camera=_head_camera,
    ),
    "bridge": Layout(
        tasks=TASK_NAMES, area=((0.21, -0.11), (0.33, 0.13)), reach=((0.19, -0.14), (0.36, 0.16)),
        start_m=((0.20, -0.08, 0.06), (0.30, 0.10, 0.16)), table_centre_m=(0.30, 0.0), table_half_m=(0.34, 0.4),
        scale=0.62, way_m=(0.07, 0.12), camera=_bridge_camera,
    ),
    "desk": Layout(  # no lift: no script was found that lifts with a hand of one closedness
        tasks=("reach", "push", "knock_over"), area=((0.20, -0.14), (0.36, 0.14)), reach=((0.18, -0.18), (0.40, 0.18)),
        start_m=((0.14, -0.14, 0.08), (0.30, 0.14, 0.16)), table_centre_m=(0.30, 0.0), table_half_m=(0.34, 0.5),
        scale=0.9, camera=_eyes,
    ),
}  # fmt: skip


def draw_scene(
    seed: int, *, layout: str = "table", split: str = "train", task: str | None = None, near: bool | None = None
) -> SceneSpec:
    """Draw the scene of one episode.

    Args:
        seed: any integer ≥ 0; the same seed gives the same scene on every machine.
        layout: where it is: one of LAYOUTS.
        split: "train", or "novel" with what training never shows: two object shapes and a table texture; in the kitchen
            two skills (close_drawer, place_upright) instead of shapes.
        task: one of the layout's; drawn when None.
        near: start the gripper close to the target object (True), anywhere (False) or as drawn (None, 60 % near).

    Raises:
        UnknownNameError: for an unknown layout, split or task.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    place = LAYOUTS[layout]
    tasks = (*place.tasks, *place.novel_tasks)
    if task is not None and task not in tasks:
        raise unknown_name("task", task, tasks)
    if layout == "table":
        return draw_table(seed, split=split, task=task, near=near)
    return _draw_elsewhere(place, layout, seed, split, task, near)


def _draw_elsewhere(
    place: Layout, layout: str, seed: int, split: str, task: str | None, near: bool | None
) -> SceneSpec:
    rng = np.random.default_rng([seed, 20508, list(LAYOUTS).index(layout)])
    task = task or str(rng.choice(place.novel_tasks if split == "novel" and place.novel_tasks else place.tasks))
    shown = "train" if place.novel_tasks else split  # where skills are new, things are not
    tall = TALL if task in ("knock_over", "place_upright") else ()
    objects = draw_objects(rng, shown, task, area=place.area, most=3, gap_m=0.11, scale=place.scale, shapes=tall)
    objects = [_toppled(objects[0], rng), *objects[1:]] if task == "place_upright" else objects
    near = bool(rng.random() < 0.6) if near is None else near
    goal = draw_goal(rng, np.asarray(objects[0].xy_m), place.reach, place.way_m)
    z = place.table_z_m
    drawer = _draw_drawer(rng, task) if task in DRAWER_TASKS else None
    if drawer is not None:
        objects = [replace(item, xy_m=rounded(np.array(item.xy_m) + [0.32, 0.05])) for item in objects]  # on top
        z = drawer.front_m[2] + 0.5 * drawer.size_m[2] + 0.03
    assert place.camera is not None
    lamp = rng.uniform(-1.0, 1.0, 2)
    return SceneSpec(
        seed=int(seed), split=split, task=task, target=-1 if drawer is not None else objects[0].index,
        goal_xy_m=rounded(goal), objects=tuple(objects), camera=place.camera(rng),
        table_texture=str(rng.choice(TRAIN_TEXTURES if shown == "train" else NOVEL_TEXTURES)),
        table_colours=draw_table_colours(rng),
        floor_colour=rounded(rng.uniform(0.15, 0.75) + rng.uniform(-0.08, 0.08, 3)),
        table_half_m=place.table_half_m if drawer is None else (0.3, 0.45),
        light_direction=rounded(np.array([lamp[0], lamp[1], 1.0])),
        light_colour=rounded(1.0 + rng.uniform(-0.08, 0.08, 3)),
        light_ambient=round(float(rng.uniform(0.5, 0.7)), 3), light_diffuse=round(float(rng.uniform(0.3, 0.5)), 3),
        start_tool_m=_draw_start(rng, place, objects, near, z, drawer),
        start_yaw_rad=round(float(rng.uniform(-0.4, 0.4)), 4), start_tilt_rad=rounded(rng.normal(0.0, 0.05, 2)),
        start_closedness=round(float(rng.choice([0.0, rng.uniform(0, 1), 1.0], p=[0.7, 0.15, 0.15])), 3),
        layout=layout, table_z_m=round(z, 4), drawer=drawer,
        table_centre_m=place.table_centre_m if drawer is None else rounded(np.array(drawer.front_m[:2]) + [0.31, 0.0]),
    )  # fmt: skip


def _toppled(item: ObjectSpec, rng: np.random.Generator) -> ObjectSpec:
    """The same thing on its side, across the way to the robot: a gripper from above can take it at one end."""
    return replace(item, lying=True, yaw_rad=round(float(rng.uniform(-0.5, 0.5)), 4))


def _draw_drawer(rng: np.random.Generator, task: str) -> DrawerSpec:
    travel = 0.18
    opening = float(rng.uniform(0.10, 0.16)) if task == "close_drawer" else float(rng.uniform(0.0, 0.02))
    front = [rng.uniform(0.60, 0.64), rng.uniform(-0.22, -0.08), rng.uniform(0.60, 0.68)]
    return DrawerSpec(
        front_m=rounded(np.array(front)), size_m=(0.26, 0.36, 0.14), travel_m=travel, opening_m=round(opening, 4),
        colour=rounded(rng.uniform(0.45, 0.8) + rng.uniform(-0.06, 0.06, 3)),
    )  # fmt: skip


def _draw_start(
    rng: np.random.Generator, place: Layout, objects: list[ObjectSpec], near: bool, z: float, drawer: DrawerSpec | None
) -> Any:
    low, high = (np.array(corner) for corner in place.start_m)
    xyz = rng.uniform(low, high)
    if drawer is not None:  # before the drawer, over its handle
        x = drawer.handle_m[0] - drawer.opening_m
        return rounded(np.array([x - rng.uniform(0.06, 0.12), drawer.front_m[1] + rng.uniform(-0.05, 0.05),
                                 drawer.front_m[2] + rng.uniform(0.14, 0.22)]))  # fmt: skip
    if near:
        angle, away = rng.uniform(-np.pi, np.pi), rng.uniform(0.06, 0.1)
        xyz[:2] = np.clip(
            np.asarray(objects[0].xy_m) + away * np.array([np.cos(angle), np.sin(angle)]), low[:2], high[:2]
        )
        xyz[2] = rng.uniform(low[2], 0.5 * (low[2] + high[2]))
    for item in objects:
        if np.hypot(*(xyz[:2] - np.asarray(item.xy_m))) < 0.10:
            xyz[2] = max(xyz[2], 2 * max(item.half_extents_m) + 0.05)
    return rounded(xyz + [0.0, 0.0, z])
