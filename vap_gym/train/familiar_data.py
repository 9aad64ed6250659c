"""Starts that familiarity is learned from: scenes of training, some with odd things, and what is seen of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import CheckpointError, VapError
from vap_gym.geometry import swayed
from vap_gym.loading import build_stage
from vap_gym.oracle_env import shown_start
from vap_gym.sim.layouts import LAYOUTS, draw_scene
from vap_gym.sim.odd import PREFIX, with_odd_things
from vap_gym.sim.scene import Scene
from vap_gym.sim.spec import SceneSpec
from vap_gym.stage import Stage
from vap_gym.starts import Start
from vap_gym.trust.familiar import camera_figures
from vap_gym.trust.oddness import crops_of
from vap_gym.world.model import WorldModel

FIRST_SEED = 930_000  # below held-out lists, above the seeds of recipes and of trust's calibration
USUAL_SEEDS = 30_000  # from the first seed of scenes with odd things to that of usual ones
BATCH = 25
LATEST_S = 6.0
SAME_M = 0.05  # a thing found so near an object, seen from above, is that object


@dataclass(frozen=True, kw_only=True, eq=False)
class Looks:
    """What is seen of the things of N first pictures: M of them in all, and the cameras."""

    pictures: Float[Tensor, "M 6 24 24"]
    told: Float[Tensor, "M 8"]
    odd: Bool[Tensor, " M"]
    start: Int64[Tensor, " M"]  # number of the start that it is seen in
    cameras: Float[np.ndarray, "N 8"]
    later: Float[np.ndarray, "L 8"]  # those that ride on a head, some seconds later: recordings start anywhere

    def __len__(self) -> int:
        """Number of things."""
        return len(self.odd)

    def of_starts(self, scores: Float[np.ndarray, " M"]) -> Float[np.ndarray, " N"]:
        """Return the highest score of the things in each start, −inf where there is none."""
        worst = np.full(len(self.cameras), -np.inf)
        np.maximum.at(worst, self.start.numpy(), scores)
        return worst


def looks(env: str, world_model: str, *, scenes: int, odd: bool, cache: Path) -> Looks:
    """Return what a world model sees in `scenes` first pictures of an env, tasks in turn; kept in the file `cache`.

    Args:
        odd: half of the things are odd, and things that were found where none is are left out; False: as in training.
    """
    if not cache.is_file():
        stage = build_stage(env, world_model=world_model, judge=None)
        if not isinstance(stage.imagination.world, WorldModel):
            raise VapError(f"Only world models that find things can be taught familiarity, got '{world_model}'.")
        first = FIRST_SEED if odd else FIRST_SEED + USUAL_SEEDS
        _keep(cache, _looked(stage, _starts(stage, scenes, first=first, odd=odd), only_objects=odd))
    return _read(cache)


def _starts(stage: Stage, count: int, *, first: int, odd: bool) -> Iterator[Start]:
    """Scenes of the layout's usual tasks in turn, in which gripper and object are to be seen."""
    card = stage.card
    tasks = LAYOUTS[card.layout].tasks
    seeds = itertools.count(first)
    with Scene(stage.rig.robot, frame_size_px=card.frame_size_px) as scene:
        for i in range(count):
            draw = partial(_drawn, layout=card.layout, task=tasks[i % len(tasks)], odd=odd)
            yield shown_start(scene, map(draw, seeds))


def _drawn(seed: int, *, layout: str, task: str, odd: bool) -> SceneSpec:
    spec = draw_scene(seed, layout=layout, task=task)
    return with_odd_things(spec, seed) if odd else spec


def _looked(stage: Stage, starts: Iterator[Start], *, only_objects: bool) -> Looks:
    pictures, told, odd, number, cameras, later = [], [], [], [], [], []
    done, table_m = 0, stage.rig.robot.skeleton.drop_to_z_m
    while batch := list(itertools.islice(starts, BATCH)):
        state = stage.begin(batch, range(len(batch)))
        crops = crops_of(state)
        cameras.append(camera_figures(state, table_m=table_m))
        later.append(_later(state, table_m, first=done))
        is_odd, is_object = _known([start.scene for start in batch], state["world_thing_place_m"].cpu().numpy())
        wanted = crops.seen & torch.from_numpy(is_object) if only_objects else crops.seen
        pictures.append(crops.pictures[wanted].half())
        told.append(crops.told[wanted])
        odd.append(torch.from_numpy(is_odd)[wanted])
        number.append(done + wanted.nonzero()[:, 0])
        done += len(batch)
    joined = [torch.cat(parts) for parts in (pictures, told, odd, number)]
    return Looks(pictures=joined[0].float(), told=joined[1], odd=joined[2], start=joined[3],
                 cameras=np.concatenate(cameras), later=np.concatenate(later))  # fmt: skip


def _later(state: TensorDict, table_m: float, *, first: int) -> Float[np.ndarray, "L 8"]:
    """Figures of the cameras that sway, each at a moment of its own."""
    moved = state.select("camera_T_world_camera", "camera_K", "world_first_picture").clone()
    seconds = np.random.default_rng([first, 7743]).uniform(0.0, LATEST_S, len(state))
    moved["camera_T_world_camera"] = swayed(
        state["camera_T_world_camera"], state["camera_sway"], torch.from_numpy(seconds).float()
    )
    figures = camera_figures(moved, table_m=table_m)
    return np.asarray(figures[(state["camera_sway"] != 0.0).any(-1).cpu().numpy()])


def _known(scenes: list[SceneSpec | None], places_m: Float[np.ndarray, "B K 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Of each thing found: whether it is an odd object, and whether it is an object at all."""
    odd, there = np.zeros(places_m.shape[:2], bool), np.zeros(places_m.shape[:2], bool)
    for b, scene in enumerate(scenes):
        assert scene is not None
        at = np.array([item.xy_m for item in scene.objects])
        apart = np.linalg.norm(places_m[b, :, None, :2] - at, axis=-1)
        nearest = apart.argmin(1)
        there[b] = apart.min(1) < SAME_M
        odd[b] = there[b] & np.array([scene.objects[i].shape.startswith(PREFIX) for i in nearest])
    return odd, there


def _keep(path: Path, looks: Looks) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp.npz")
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in vars(looks).items()}
    np.savez_compressed(temporary, **arrays | {"pictures": looks.pictures.half().numpy()})
    temporary.replace(path)


def _read(path: Path) -> Looks:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        cameras = {name: arrays.pop(name) for name in ("cameras", "later")}
        held: dict[str, Any] = {name: torch.from_numpy(value) for name, value in arrays.items()} | cameras
        return Looks(**held | {"pictures": held["pictures"].float()})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"'{path}' holds no looks of things: {error}. Remove it: it is made anew.") from error
