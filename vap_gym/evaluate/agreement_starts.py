"""Starts of the agreement experiment: scenes that no training has seen, and those that are unlike any it has seen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from vap_gym.cards import load_env, load_robot
from vap_gym.errors import unknown_name
from vap_gym.oracle_env import shown_start
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.scene import Scene
from vap_gym.sim.spec import ALL_TASKS, CameraSpec, SceneSpec
from vap_gym.starts import Start, save_starts

SPLITS = ("screen", "main", "novel", "cameras")
FIRST_SEED = 5_000_000  # training is below 1,000,000; held-out lists, shipped starts and other benchmarks below this
SPLIT_SEEDS, TASK_SEEDS = 200_000, 20_000  # between the first seeds of two splits, and of two tasks
ELEVATION_RAD = (np.deg2rad(68), np.deg2rad(80))  # of shifted cameras; training looks from 22° to 60°
ROLL_RAD = (0.2, 0.4)  # likewise, either way; training's have a standard deviation of .03


def starts_file(folder: Path, split: str, task: str, count: int, *, env: str, first_seed: int = FIRST_SEED) -> Path:
    """Return a file of `count` starts of a task, which is made where it is not there yet.

    The first starts of a longer file are those of a shorter one. Scenes in which the camera does not see the gripper
    and the task's object are passed over, as `make_starts` does.

    Args:
        split: "main"; "screen": other scenes of the same kind; "novel": shapes and textures that training never shows;
            "cameras": cameras that look from further above than training's, and are rolled.

    Raises:
        UnknownNameError: another split or task.
    """
    for what, given, known in (("split", split, SPLITS), ("task", task, ALL_TASKS)):
        if given not in known:
            raise unknown_name(what, given, known)
    path = folder / f"starts_{split}_{task}_{count}.npz"
    if not path.is_file():
        card = load_env(env)
        folder.mkdir(parents=True, exist_ok=True)
        seeds = itertools.count(first_seed + SPLIT_SEEDS * SPLITS.index(split) + TASK_SEEDS * ALL_TASKS.index(task))
        with Scene(load_robot(card.robot), frame_size_px=card.frame_size_px) as scene:
            save_starts(path, (_seen(scene, card.layout, split, task, seeds) for _ in range(count)))
    return path


def _seen(scene: Scene, layout: str, split: str, task: str, seeds: Iterator[int]) -> Start:
    """The next scene in which gripper and object are to be seen."""

    def spec(seed: int) -> SceneSpec:
        drawn = draw_scene(seed, layout=layout, split="novel" if split == "novel" else "train", task=task)
        return replace(drawn, camera=shifted(drawn.camera, seed)) if split == "cameras" else drawn

    return shown_start(scene, map(spec, seeds))


def shifted(camera: CameraSpec, seed: int) -> CameraSpec:
    """Return a camera as far from what it looks at, from the same side, but from further above, and rolled."""
    rng = np.random.default_rng([seed, 6173])
    eye, target = np.array(camera.eye_m), np.array(camera.target_m)
    away = eye - target
    distance, azimuth = float(np.linalg.norm(away)), float(np.arctan2(away[1], away[0]))
    elevation, roll = float(rng.uniform(*ELEVATION_RAD)), float(rng.choice([-1, 1]) * rng.uniform(*ROLL_RAD))
    level = distance * np.cos(elevation)
    way = [level * np.cos(azimuth), level * np.sin(azimuth), distance * np.sin(elevation)]
    x, y, z = (round(float(value), 4) for value in target + way)
    return replace(camera, eye_m=(x, y, z), roll_rad=round(camera.roll_rad + roll, 4))
