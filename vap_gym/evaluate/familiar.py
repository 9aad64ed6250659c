"""How well strange starts are told from usual ones: by cameras, by things, in each env; and what they look like."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from vap_gym.assets import weights_dir
from vap_gym.cards import load_env
from vap_gym.errors import VapError
from vap_gym.evaluate.agreement_starts import shifted
from vap_gym.evaluate.heldout import ENVS
from vap_gym.evaluate.report import each, stamp, table, write
from vap_gym.loading import build_stage
from vap_gym.oracle_env import shown_start
from vap_gym.pictures import sheet, write_png
from vap_gym.sim.layouts import LAYOUTS, draw_scene
from vap_gym.sim.odd import with_odd_things
from vap_gym.sim.scene import Scene
from vap_gym.sim.spec import SceneSpec
from vap_gym.stage import Stage
from vap_gym.trust.familiar import RARE, USUAL, Familiarity, camera_figures, read, things_score

FIRST_SEED = 6_500_000  # above those of all trainings, held-out lists and experiments
KIND_SEEDS = 50_000
KINDS = {"usual": "as in training", "shapes": "unseen shapes and textures", "odd": "odd things of other seeds",
         "cameras": "shifted cameras"}  # fmt: skip
BATCH, SHOWN, BAR_PX = 25, 6, 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Met:
    """How unfamiliar N starts of a kind are, 0 to 1, by their cameras and by their things; and some of them."""

    by_camera: Float[np.ndarray, " N"]
    by_things: Float[np.ndarray, " N"]
    frames: UInt8[np.ndarray, "M H W 3"]

    @property
    def unfamiliar(self) -> Float[np.ndarray, " N"]:
        """What envs tell."""
        return np.asarray(np.maximum(self.by_camera, self.by_things))


def main(
    *,
    world_model: str = "tiny",
    env: tuple[str, ...] = (),
    starts: int = 100,
    out: Path = Path("docs/familiar.md"),
    workers: int = 1,
) -> dict[str, Any]:
    """Draw usual and strange starts, tell how unfamiliar each is; print and write the page.

    Args:
        world_model: name or folder of a world model that tells familiarity (`vap-gym train familiar`).
        env: ids or paths of env cards; none: the four that are shipped.
        starts: of each kind and env.
        out: the markdown page; its picture goes into the folder img beside it.
        workers: processes, each measuring one env at a time.
    """
    names = env or ENVS
    met = dict(zip(names, each(partial(_met, world_model, starts), names, workers=workers), strict=True))
    picture = out.parent / "img" / f"{out.stem}.png"
    text = page(met, world_model, picture.name)
    print(text)
    if not env:  # a part is no page
        _show(next(iter(met.values())), picture)
        write(out, text)
    return {name: {kind: _figures(one) for kind, one in kinds.items()} for name, kinds in met.items()}


def page(met: dict[str, dict[str, Met]], world_model: str, picture: str) -> str:
    """Return the page as markdown."""
    rows = [
        [load_env(env).id, KINDS[kind], str(len(one.unfamiliar)), *(f"{100 * x:.0f} %" for x in _figures(one).values())]
        for env, kinds in met.items()
        for kind, one in kinds.items()
    ]
    header = ["", "starts", "of them", "unfamiliar by half or more", "of these by camera", "by things", "at all",
              "wholly"]  # fmt: skip
    usual, rare = 200 - 200 * USUAL, 200 - 200 * RARE
    return f"""# Familiar starts

`vap-gym bench familiar`: world model `{world_model}`, starts of seeds of their own.

What trust expects of frames (docs/trust.md) was learned from starts like those of training.
`info["trust"]["unfamiliar"]` tells how unlike these a start is: 0 where of 200 starts of training {usual:.0f} are at
least as strange, 1 where at most {rare:.0f} is, on a straight line between. Every `object_risk` is raised towards
one half by as much; frames are not changed.
A camera is strange by its Mahalanobis distance (from where, how steeply, how far, how wide it looks, and whether it is
rolled); a thing by a small network that was shown the shapes of training beside unions of boxes, cylinders and balls at
random (outlier exposure, Hendrycks et al. 2019), never the unseen shapes of the table below.

{table(header, rows)}

![First pictures and how unfamiliar they are](img/{picture})

First pictures of {load_env(next(iter(met))).id}, a row for each kind; the bar below each tells how unfamiliar it is.

{stamp()}
"""


def _figures(one: Met) -> dict[str, float]:
    return {
        "half": float((one.unfamiliar >= 0.5).mean()),
        "by_camera": float((one.by_camera >= 0.5).mean()),
        "by_things": float((one.by_things >= 0.5).mean()),
        "at_all": float((one.unfamiliar > 0.0).mean()),
        "wholly": float((one.unfamiliar >= 1.0).mean()),
    }


def _met(world_model: str, count: int, env: str) -> dict[str, Met]:
    """One env's starts of each kind."""
    torch.set_num_threads(1)
    stage = build_stage(env, world_model=world_model, judge=None)
    folder = Path(world_model) if Path(world_model).is_dir() else weights_dir() / world_model
    robot = stage.rig.robot
    known = read(folder, robot.name, table_m=robot.skeleton.drop_to_z_m)
    if known is None:
        raise VapError(
            f"World model '{world_model}' does not tell what is familiar for a '{robot.name}'. Teach it: vap-gym train "
            "familiar RECIPE --world-model FOLDER --write-into."
        )
    kinds = [kind for kind in KINDS if kind != "shapes" or not LAYOUTS[stage.card.layout].novel_tasks]
    return {kind: _looked(stage, known, kind, count) for kind in kinds}


def _looked(stage: Stage, known: Familiarity, kind: str, count: int) -> Met:
    card = stage.card
    tasks = LAYOUTS[card.layout].tasks
    seeds = itertools.count(FIRST_SEED + KIND_SEEDS * list(KINDS).index(kind))
    by_camera, by_things = [], []
    frames: list[np.ndarray] = []
    with Scene(stage.rig.robot, frame_size_px=card.frame_size_px) as scene:
        drawn = (shown_start(scene, _scenes(kind, card.layout, tasks[i % len(tasks)], seeds)) for i in range(count))
        while batch := list(itertools.islice(drawn, BATCH)):
            state = stage.begin(batch, range(len(batch)))
            figures = camera_figures(state, table_m=known.table_m)
            by_camera.append(known.usual.camera(known.usual.cameras(figures)))
            by_things.append(known.usual.things(things_score(known.oddness, state)))
            frames += [start.frame for start in batch][: SHOWN - len(frames)]
    return Met(by_camera=np.concatenate(by_camera), by_things=np.concatenate(by_things), frames=np.stack(frames))


def _scenes(kind: str, layout: str, task: str, seeds: Iterator[int]) -> Iterator[SceneSpec]:
    for seed in seeds:
        spec = draw_scene(seed, layout=layout, split="novel" if kind == "shapes" else "train", task=task)
        if kind == "odd":
            spec = with_odd_things(spec, seed, share=1.0)
        yield replace(spec, camera=shifted(spec.camera, seed)) if kind == "cameras" else spec


def _show(met: dict[str, Met], path: Path) -> None:
    """A row of first pictures for each kind, a bar below each that is as long as it is unfamiliar."""
    rows = []
    for one in met.values():
        tiles = []
        for frame, unfamiliar in zip(one.frames, one.unfamiliar, strict=False):
            bar = np.full((BAR_PX, frame.shape[1], 3), 235, np.uint8)
            bar[1:, : round(float(unfamiliar) * frame.shape[1])] = (200, 60, 40)
            tiles.append(np.concatenate([frame, bar]))
        rows.append(tiles)
    path.parent.mkdir(parents=True, exist_ok=True)
    note = "Red: how unfamiliar a start is, from not at all to wholly."
    write_png(path, sheet(rows, labels=[KINDS[kind] for kind in met], note=note))
