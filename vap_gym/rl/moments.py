"""Moments of recorded episodes as starts: an agent may begin in the midst of what somebody did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vap_gym.data import EpisodeSet
from vap_gym.errors import VapError
from vap_gym.geometry import Camera
from vap_gym.policies.seen import checked_task
from vap_gym.sim.draw import draw_goal, rounded
from vap_gym.sim.layouts import LAYOUTS
from vap_gym.sim.rollout import VIEW
from vap_gym.sim.spec import ObjectSpec, SceneSpec
from vap_gym.sim.tasks import success
from vap_gym.starts import Start

COLUMNS = (
    "objects_m", "objects_xyzw", "tool_m", "nominal.joint_position", "nominal.gripper_position", "camera.K",
    "camera.T_world_camera",
)  # fmt: skip
TILT_COS, HEIGHT_M = 0.985, 0.01  # a thing stands that is tilted and raised by less than this
TABLE_WAY_M = (0.12, 0.22)  # how far a Panda's scenes let things be pushed
TRIES = 40  # moments that are looked at for each one that is wanted


def moments_of(
    folder: str | Path,
    task: str,
    *,
    count: int,
    seed: int = 0,
    from_first: bool = False,
    any_task: bool = True,
) -> list[Start]:
    """Return moments of episodes that `vap-gym data generate` recorded, as starts of a task: picture, camera, robot,
    and the scene with its objects where they are then. The arm is at rest; what is held or tipped over is passed over,
    and so is what is solved already.

    `save_starts` writes them to a file that every env takes as `starts=`.

    Args:
        folder: of the recordings, with pictures.
        task: reach, push or lift.
        count: so many, drawn from all episodes.
        seed: of the drawing.
        from_first: only first moments.
        any_task: take episodes of other tasks, too, and draw an object and a goal for them; the mark that the picture
            shows is then not the goal (neither the judge nor an agent that sees things looks at it).

    Raises:
        VapError: an unknown task, recordings without pictures or scenes, or too few moments that fit.
    """
    checked_task(task)
    episodes = EpisodeSet(folder)
    missing = [name for name in COLUMNS if name not in episodes.features.columns]
    if VIEW not in episodes.features.views or missing:
        lacks = f"lacks {', '.join(missing)}" if missing else f"has the views {sorted(episodes.features.views)}"
        raise VapError(
            f"Moments need recordings of the simulator with pictures ('{VIEW}'), but '{folder}' {lacks}. Record some: "
            "vap-gym data generate FOLDER."
        )
    rng = np.random.default_rng([seed, 7331])
    numbers = [i for i in range(len(episodes)) if any_task or _scene(episodes, i).task == task]
    found: list[Start] = []
    for _ in range(TRIES * count if numbers else 0):
        i = int(rng.choice(numbers))
        length = episodes.length(i)
        t = 0 if from_first else int(rng.integers(max(1, length - 1)))
        start = _moment(episodes, i, t, task, rng)
        if start is not None:
            found.append(start)
        if len(found) == count:
            return found
    raise VapError(
        f"{count} moments of '{task}' are needed, got {len(found)} in '{folder}' ({len(numbers)} episodes fit). Record "
        "more, or ask for fewer."
    )


def _scene(episodes: EpisodeSet, i: int) -> SceneSpec:
    info = episodes.info(i)
    if "scene" not in info:
        raise VapError(
            f"Episode {i} of '{episodes.root}' must say its scene, but has only: {', '.join(info) or 'nothing'}. Give "
            "recordings of the simulator."
        )
    return SceneSpec.from_json(json.dumps(info["scene"]))


def _moment(episodes: EpisodeSet, i: int, t: int, task: str, rng: np.random.Generator) -> Start | None:
    """Frame t of an episode as a start; None where it is none."""
    scene = _scene(episodes, i)
    if scene.drawer is not None or (scene.camera.sway and t > 0):
        return None
    columns = episodes.read(i, start=t, stop=t + 1, views=(), labels=(), columns=COLUMNS).columns
    row = {name: values[0] for name, values in columns.items()}
    objects = tuple(_moved(scene, row))
    if len(objects) < len(scene.objects):
        return None
    scene = replace(
        scene,
        objects=objects,
        start_tool_m=tuple(np.asarray(row["tool_m"], np.float64).tolist()),
        start_closedness=float(row["nominal.gripper_position"][0]),
    )
    if scene.task != task:
        scene = retasked(scene, task, rng)
    tool_m, object_m = np.asarray(row["tool_m"], np.float64), row["objects_m"][scene.target].astype(np.float64)
    if bool(success(scene, tool_m, object_m, start_tool_m=tool_m, start_object_m=object_m)):
        return None
    frame = episodes.read(i, start=t, stop=t + 1, views=(VIEW,), labels=(), columns=()).frames[VIEW][0]
    return Start(
        frame=frame,
        camera=Camera(
            K=torch.from_numpy(row["camera.K"].astype(np.float64)),
            T_world_camera=torch.from_numpy(row["camera.T_world_camera"].astype(np.float64)),
            frame_size_px=(frame.shape[1], frame.shape[0]),
        ),
        q_rad=row["nominal.joint_position"].astype(np.float64),
        closedness=float(row["nominal.gripper_position"][0]),
        instruction=scene.instruction,
        scene=scene,
    )


def _moved(scene: SceneSpec, row: dict[str, Any]) -> Iterator[ObjectSpec]:
    """The objects that stand on the table, where they are now."""
    for item in scene.objects:
        x, y, z = (float(v) for v in row["objects_m"][item.index])
        qx, qy, qz, qw = (float(v) for v in row["objects_xyzw"][item.index])
        upright = 1.0 - 2.0 * (qx * qx + qy * qy)
        if upright > TILT_COS and abs(z - scene.table_z_m - item.half_extents_m[2]) < HEIGHT_M and not item.lying:
            yaw = np.arctan2(2.0 * (qw * qz + qx * qy), 1.0 - 2.0 * (qy * qy + qz * qz))
            yield replace(item, xy_m=(x, y), yaw_rad=float(yaw))


def retasked(scene: SceneSpec, task: str, rng: np.random.Generator) -> SceneSpec:
    """Return a scene with another task, about an object and with a goal that are drawn."""
    layout = LAYOUTS[scene.layout]
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    way_m = TABLE_WAY_M if scene.layout == "table" else layout.way_m
    x, y = rounded(draw_goal(rng, np.asarray(item.xy_m), layout.reach, way_m))
    return replace(scene, task=task, target=item.index, goal_xy_m=(x, y))
