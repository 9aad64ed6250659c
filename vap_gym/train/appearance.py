"""Train what a robot looks like: colours by averaging, and the network that tells its pixels from others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from vap_gym.cards import load_robot
from vap_gym.data import EpisodeSet
from vap_gym.errors import VapError
from vap_gym.geometry import Camera
from vap_gym.prompts.body import Body
from vap_gym.sim.scene import LABELS
from vap_gym.train.fit import fit
from vap_gym.train.run import Run, Schedule, initialised_with, load_recipe, seeded
from vap_gym.train.sets import check_set
from vap_gym.world.appearance import RobotAppearance
from vap_gym.world.codec import to_pictures
from vap_gym.world.surfels import seen_points

ENOUGH = 10  # pixels that must have shown a point for its own colour to count; else it has its link's


@dataclass(frozen=True, kw_only=True)
class AppearanceRecipe:
    """Settings of the training of a robot's appearance; a TOML file with these keys."""

    data: list[str]
    steps: int
    robots: list[str] = field(default_factory=lambda: ["panda_robotiq"])
    view: str = "front"
    model: dict[str, Any] = field(default_factory=dict)
    every: int = 10
    batch_size: int = 16
    learning_rate: float = 2e-3
    ema_decay: float = 0.99
    held_out: int = 200
    log_every: int = 50
    save_every: int = 200
    seed: int = 0
    episodes: int = 0  # the first so many of the data; 0: all


@dataclass(frozen=True, kw_only=True)
class Sights:
    """N frames, their segmentation, and how their cameras see the robot's links."""

    frames: UInt8[Tensor, "N H W 3"]
    labels: UInt8[Tensor, "N H W"]
    views: Float[Tensor, "N L 3 4"]


def main(
    recipe: Path, *, out: Path = Path("runs/appearance"), resume: bool = False, device: str = "cpu", threads: int = 0
) -> dict[str, Any]:
    """Train a robot's appearance.

    Args:
        recipe: a TOML file, or the name of a shipped recipe, e.g. tiny_appearance.
        out: folder of the run.
        resume: go on with a run that was stopped.
        device: cpu or cuda.
        threads: CPU threads; 0 leaves torch's choice.
    """
    settings = load_recipe(AppearanceRecipe, recipe)
    if threads:
        torch.set_num_threads(threads)
    run, place = Run(out, resume=resume), torch.device(device)
    bodies = {name: Body(load_robot(name)) for name in settings.robots}
    folders = [Path(p) for p in settings.data]
    data = {
        name: load_sights(folders, body=body, every=settings.every, view=settings.view, episodes=settings.episodes)
        for name, body in bodies.items()
    }
    held_out, train = (
        torch.arange(settings.held_out),
        {name: torch.arange(settings.held_out, len(one.frames)) for name, one in data.items()},
    )
    with initialised_with(settings.seed):
        model = of_bodies(bodies, **settings.model).to(place)
    for name, one in data.items():
        fill_colours(model.of(name), one, train[name])
    rng = seeded(settings.seed + 1)

    def loss(step: int) -> Tensor:
        name = settings.robots[step % len(settings.robots)]
        pick = train[name][torch.randint(len(train[name]), (settings.batch_size,), generator=rng)]
        pictures, views, robot = _batch(data[name], pick, place)
        mine = model.of(name)
        seen = seen_points(mine.surfels, views, (pictures.shape[2], pictures.shape[3]))
        return F.binary_cross_entropy_with_logits(mine.mask_logits(pictures, seen), robot)

    return fit(
        run,
        model,
        settings,
        name="appearance",
        loss=loss,
        score=lambda averaged: scores(averaged, data, held_out),
        schedule=Schedule(peak=settings.learning_rate, steps=settings.steps, warmup_steps=50),
        rng=rng,
        weight_decay=1e-3,
    )


def of_bodies(bodies: Mapping[str, Body], **settings: Any) -> RobotAppearance:
    """An appearance of robots' surfaces, in no colour yet."""
    model = RobotAppearance(
        points=[len(body.points_m) for body in bodies.values()],
        links=[len(body.links) for body in bodies.values()],
        robots=list(bodies),
        **settings,
    )
    for name in ("points_m", "normals", "spacing_m", "link"):
        getattr(model, name).copy_(torch.cat([getattr(body, name) for body in bodies.values()]))
    return model  # type: ignore[no-any-return]


def load_sights(folders: list[Path], *, body: Body, every: int, view: str, episodes: int = 0) -> Sights:
    """Every `every`-th frame of the first `episodes` (0: all) of the sets of that robot."""
    from tqdm import tqdm

    parts: dict[str, list[Tensor]] = {"frames": [], "labels": [], "views": []}
    for folder in folders:
        source = EpisodeSet(folder)
        if str(source.meta.get("robot_type")) != body.robot.name:
            continue
        check_set(source, view=view, labels=True)
        count = min(episodes or len(source), len(source))
        for i in tqdm(range(count), desc=f"reading {folder}", unit="episode", mininterval=5):
            episode = source.read(i, views=[view], labels=[view])
            pick = np.arange(i % every, len(episode), every)
            columns = {k: torch.from_numpy(np.ascontiguousarray(v[pick])) for k, v in episode.columns.items()}
            frames = torch.from_numpy(episode.frames[view][pick])
            size = (frames.shape[2], frames.shape[1])
            camera = Camera(K=columns["camera.K"], T_world_camera=columns["camera.T_world_camera"], frame_size_px=size)
            robot = (columns["nominal.joint_position"], columns["nominal.gripper_position"][:, 0])
            parts["frames"].append(frames)
            parts["labels"].append(torch.from_numpy(episode.labels[view][pick]))
            parts["views"].append(body.views(*robot, camera))
    if not parts["frames"]:
        names = ", ".join(map(str, folders))
        raise VapError(f"No set among {names} is of the robot '{body.robot.name}'. Make one: vap-gym data generate")
    return Sights(**{k: torch.cat(v) for k, v in parts.items()})


@torch.no_grad()
def fill_colours(model: RobotAppearance, data: Sights, pick: Int64[Tensor, " n"]) -> None:
    """Set each point's colour: the mean of the robot's pixels that show it; of its link's where it is hardly seen."""
    points = len(model.look)
    count, colour = torch.zeros(points), torch.zeros(points, 3)
    for part in pick.split(32):
        frames, labels = data.frames[part], data.labels[part]
        seen = seen_points(model.surfels, data.views[part].to(model.device), (frames.shape[1], frames.shape[2]))
        shown = (seen.point.cpu() >= 0) & (_is_robot(labels) > 0)
        which = seen.point.cpu()[shown]
        count.index_add_(0, which, torch.ones(len(which)))
        colour.index_add_(0, which, frames[shown].float() / 255)
    known, link = count >= ENOUGH, model.surfels.link.cpu()
    mean = colour / count.clamp_min(1.0)[:, None]
    for number in link.unique():
        mine = link == number
        if (mine & known).any():
            mean[mine & ~known] = mean[mine & known].mean(0)
    model.look.copy_(mean)


def scores(model: RobotAppearance, data: Mapping[str, Sights], pick: Int64[Tensor, " n"]) -> dict[str, float]:
    """The figures of `score` for every robot."""
    found: dict[str, float] = {}
    for name, one in data.items():
        mine = score(model.of(name), one, pick)
        found |= mine if len(data) == 1 else {f"{name} {key}": value for key, value in mine.items()}
    return found


@torch.no_grad()
def score(model: RobotAppearance, data: Sights, pick: Int64[Tensor, " n"]) -> dict[str, float]:
    """IoU with the robot on true frames: of the surface where it is drawn, and of the mask."""
    place = next(model.parameters()).device
    common, union = [0, 0], [0, 0]
    for part in pick.split(32):
        pictures, views, robot = _batch(data, part, place)
        seen, real = seen_points(model.surfels, views, (pictures.shape[2], pictures.shape[3])), robot > 0.5
        for i, mine in enumerate(((seen.point >= 0)[:, None], model.mask_logits(pictures, seen) > 0)):
            common[i], union[i] = common[i] + int((mine & real).sum()), union[i] + int((mine | real).sum())
    return {"surface_iou": common[0] / max(union[0], 1), "mask_iou": common[1] / max(union[1], 1)}


def _batch(data: Sights, pick: Tensor, place: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, views of the links, and 1 where the robot is."""
    robot = _is_robot(data.labels[pick])[:, None].to(place)
    return to_pictures(data.frames[pick]).to(place), data.views[pick].to(place), robot


def _is_robot(labels: Tensor) -> Tensor:
    return ((labels == LABELS.index("arm")) | (labels == LABELS.index("gripper"))).float()
