"""Train what a robot looks like: an atlas by counting, and the network that tells its pixels from others."""

from __future__ import annotations

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
from vap_gym.geometry import Camera
from vap_gym.prompts.raster import bone_figures
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.sim.scene import LABELS
from vap_gym.train.fit import fit
from vap_gym.train.run import Run, Schedule, initialised_with, load_recipe, seeded
from vap_gym.world.appearance import NEAR_PX, STRIDE_PX, RobotAppearance
from vap_gym.world.articulated import bone_places, robot_cover
from vap_gym.world.codec import to_pictures

ENOUGH = 100  # pixels that must have fallen into a cell of the atlas for it to count


@dataclass(frozen=True, kw_only=True)
class AppearanceRecipe:
    """Settings of the training of a robot's appearance; a TOML file with these keys."""

    data: list[str]
    steps: int
    robot: str = "panda_robotiq"
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
    """N frames, their segmentation, and where the robot's bones are in them."""

    frames: UInt8[Tensor, "N H W 3"]
    labels: UInt8[Tensor, "N H W"]
    bones: Float[Tensor, "N bones 8"]


def main(
    recipe: Path, *, out: Path = Path("runs/appearance"), resume: bool = False, device: str = "cpu", threads: int = 0
) -> None:
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
    data = load_sights(
        [Path(p) for p in settings.data],
        robot=settings.robot,
        every=settings.every,
        view=settings.view,
        episodes=settings.episodes,
    )
    held_out, train = torch.arange(settings.held_out), torch.arange(settings.held_out, len(data.frames))
    with initialised_with(settings.seed):
        model = RobotAppearance(**{"bones": data.bones.shape[1], **settings.model}).to(place)
    fill_atlas(model, data, train)
    rng = seeded(settings.seed + 1)

    def loss(_: int) -> Tensor:
        pick = train[torch.randint(len(train), (settings.batch_size,), generator=rng)]
        pictures, bones, robot = _batch(data, pick, place)
        return F.binary_cross_entropy_with_logits(model.mask_logits(pictures, bones), robot)

    fit(
        run,
        model,
        settings,
        name="appearance",
        loss=loss,
        score=lambda averaged: score(averaged, data, held_out),
        schedule=Schedule(peak=settings.learning_rate, steps=settings.steps, warmup_steps=50),
        rng=rng,
        weight_decay=1e-3,
    )


def load_sights(folders: list[Path], *, robot: str, every: int, view: str, episodes: int = 0) -> Sights:
    """Every `every`-th frame of the sets' first `episodes` (0: all)."""
    from tqdm import tqdm

    skeleton = Skeleton(load_robot(robot))
    parts: dict[str, list[Tensor]] = {"frames": [], "labels": [], "bones": []}
    for folder in folders:
        source = EpisodeSet(folder)
        count = min(episodes or len(source), len(source))
        for i in tqdm(range(count), desc=f"reading {folder}", unit="episode", mininterval=5):
            episode = source.read(i)
            pick = np.arange(i % every, len(episode), every)
            columns = {k: torch.from_numpy(np.ascontiguousarray(v[pick])) for k, v in episode.columns.items()}
            frames = torch.from_numpy(episode.frames[view][pick])
            size = (frames.shape[2], frames.shape[1])
            camera = Camera(K=columns["camera.K"], T_world_camera=columns["camera.T_world_camera"], frame_size_px=size)
            points = skeleton.at_joints(columns["nominal.joint_position"], columns["nominal.gripper_position"][:, 0])
            parts["frames"].append(frames)
            parts["labels"].append(torch.from_numpy(episode.labels[view][pick]))
            parts["bones"].append(bone_figures(points, camera, skeleton))
    return Sights(**{k: torch.cat(v) for k, v in parts.items()})


@torch.no_grad()
def fill_atlas(model: RobotAppearance, data: Sights, pick: Int64[Tensor, " n"]) -> None:
    """Set the atlas: the mean colour of the robot's pixels, and their share, of all that fall into a cell."""
    cells = len(model.presence)
    count, robot, colour = torch.zeros(cells), torch.zeros(cells), torch.zeros(cells, 3)
    height, width = data.frames.shape[1:3]
    size = (height // STRIDE_PX, width // STRIDE_PX)
    for part in pick.split(64):
        places = bone_places(data.bones[part], size, float(STRIDE_PX))
        labels = data.labels[part][:, ::STRIDE_PX, ::STRIDE_PX].flatten(1)
        pictures = to_pictures(data.frames[part])[..., ::STRIDE_PX, ::STRIDE_PX].flatten(2).mT
        of_interest = (places.cover > 0.5) & (labels <= LABELS.index("goal"))  # objects may stand before the robot
        is_robot = _is_robot(labels)[of_interest]
        into = model.atlas_cells(places)[of_interest].cpu()
        count.index_add_(0, into, torch.ones(len(into)))
        robot.index_add_(0, into, is_robot)
        colour.index_add_(0, into, pictures[of_interest] * is_robot[:, None])
    enough = count >= ENOUGH
    model.presence.copy_(torch.where(enough, robot / count.clamp_min(1.0), 0.0))
    model.colour.copy_(colour / robot.clamp_min(1.0)[:, None])


@torch.no_grad()
def score(model: RobotAppearance, data: Sights, pick: Int64[Tensor, " n"]) -> dict[str, float]:
    """IoU of the mask and the robot (without its fixed base) on true frames."""
    place = next(model.parameters()).device
    common, union = 0, 0
    for part in pick.split(32):
        pictures, bones, robot = _batch(data, part, place)
        mine, real = model.mask(pictures, bones) > 0.5, robot > 0.5
        common, union = common + int((mine & real).sum()), union + int((mine | real).sum())
    return {"mask_iou": common / max(union, 1)}


def _batch(data: Sights, pick: Tensor, place: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, bones, and 1 where the robot is, its fixed base apart."""
    bones = data.bones[pick].to(place)
    robot = _is_robot(data.labels[pick])[:, None].to(place)
    near = robot_cover(bones, (robot.shape[-2], robot.shape[-1]), 1.0, NEAR_PX) > 0.5
    return to_pictures(data.frames[pick]).to(place), bones, robot * near


def _is_robot(labels: Tensor) -> Tensor:
    return ((labels == LABELS.index("arm")) | (labels == LABELS.index("gripper"))).float()
