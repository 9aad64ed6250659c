"""Train the finder of things: their pixels, votes for a centre, heights and sizes, on true frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from vap_gym.cards import load_robot
from vap_gym.data import Episode, EpisodeSet
from vap_gym.geometry import Camera
from vap_gym.prompts.body import Body
from vap_gym.rotations import rotation_from_quaternion_xyzw
from vap_gym.sim.scene import LABELS
from vap_gym.sim.spec import COLOURS
from vap_gym.train.fit import fit
from vap_gym.train.motion import MOST, ROUND, standing_shape
from vap_gym.train.run import Run, Schedule, autocast, initialised_with, load_recipe, seeded
from vap_gym.world.codec import to_pictures
from vap_gym.world.things import HEAT_PX, HEIGHT_M, SIZE_M, VOTE_PX, Found, ThingFinder, find_things, seen_from

FIRST_OBJECT = LABELS.index(COLOURS[0])
ENOUGH_PX = 10  # so many pixels of an object must be seen for it to be looked for
SAME_M = 0.03  # a thing found so near an object is that object


@dataclass(frozen=True, kw_only=True)
class ThingsRecipe:
    """Settings of the training of the finder; a TOML file with these keys."""

    data: list[str]
    steps: int
    robot: str = "panda_robotiq"
    view: str = "front"
    model: dict[str, Any] = field(default_factory=dict)
    every: int = 6
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    recolour: float = 0.5  # share of pictures whose colours are changed: things are not to be known by colour
    blind: float = 0.1  # share of pictures whose robot is not told
    ema_decay: float = 0.998
    held_out: int = 600
    log_every: int = 50
    save_every: int = 500
    seed: int = 0
    episodes: int = 0  # the first so many of the data; 0: all


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """N frames, and what is true of up to MOST objects in each; NaN where there is none or it is hardly seen."""

    frames: UInt8[Tensor, "N H W 3"]
    labels: UInt8[Tensor, "N H W"]
    views: Float[Tensor, "N L 3 4"]
    number: Int64[Tensor, "N K"]  # of the object's label
    pixel: Float[Tensor, "N K 2"]
    place_m: Float[Tensor, "N K 3"]
    shape: Float[Tensor, "N K 6"]


def main(
    recipe: Path, *, out: Path = Path("runs/things"), resume: bool = False, device: str = "cpu", threads: int = 0
) -> None:
    """Train the finder of things.

    Args:
        recipe: a TOML file, or the name of a shipped recipe, e.g. tiny_things.
        out: folder of the run.
        resume: go on with a run that was stopped.
        device: cpu or cuda.
        threads: CPU threads; 0 leaves torch's choice.
    """
    settings = load_recipe(ThingsRecipe, recipe)
    if threads:
        torch.set_num_threads(threads)
    run, place = Run(out, resume=resume), torch.device(device)
    robot = load_robot(settings.robot)
    body = Body(robot)
    folders = [Path(p) for p in settings.data]
    data = load_scenes(folders, body, every=settings.every, view=settings.view, episodes=settings.episodes)
    held_out, train = torch.arange(settings.held_out), torch.arange(settings.held_out, len(data.frames))
    base = body.links.index(robot.base_link)
    with initialised_with(settings.seed):
        model = ThingFinder(links=len(body.links), base=base, **settings.model)
        model = model.to(place, memory_format=torch.channels_last)
    rng = seeded(settings.seed + 1)

    def loss(_: int) -> Tensor:
        pick = train[torch.randint(len(train), (settings.batch_size,), generator=rng)]
        pictures, mask, views = (x.to(place) for x in given(data, pick))
        pictures = recoloured(pictures, settings.recolour, rng)
        blind = torch.rand(len(pick), 1, 1, 1, generator=rng) < settings.blind
        with autocast(place):
            said = model(pictures, mask * ~blind.to(place), views)
        return things_loss(said, data, pick, base)

    fit(
        run,
        model,
        settings,
        name="things",
        loss=loss,
        score=lambda averaged: score(averaged, data, held_out),
        schedule=Schedule(peak=settings.learning_rate, steps=settings.steps, decay=0.8),
        rng=rng,
        weight_decay=1e-3,
    )


def load_scenes(folders: list[Path], body: Body, *, every: int, view: str, episodes: int = 0) -> Scenes:
    """Every `every`-th frame of the sets' first `episodes` (0: all)."""
    from tqdm import tqdm

    parts: dict[str, list[Tensor]] = {}
    for folder in folders:
        source = EpisodeSet(folder)
        count = min(episodes or len(source), len(source))
        for i in tqdm(range(count), desc=f"reading {folder}", unit="episode", mininterval=5):
            for key, value in _entry(source.read(i), np.arange(i % every, source.length(i), every), body, view).items():
                parts.setdefault(key, []).append(value)
    return Scenes(**{k: torch.cat(v) for k, v in parts.items()})


def _entry(episode: Episode, pick: np.ndarray, body: Body, view: str) -> dict[str, Tensor]:
    columns = {k: torch.from_numpy(np.ascontiguousarray(v[pick])) for k, v in episode.columns.items()}
    frames, labels = (torch.from_numpy(x[view][pick]) for x in (episode.frames, episode.labels))
    size = (frames.shape[2], frames.shape[1])
    camera = Camera(K=columns["camera.K"], T_world_camera=columns["camera.T_world_camera"], frame_size_px=size)
    objects = episode.info["scene"]["objects"]
    which = [COLOURS.index(item["colour"]) for item in objects]
    turn = rotation_from_quaternion_xyzw(columns["objects_xyzw"][:, which])
    half = torch.tensor([o["half_extents_m"] for o in objects]).expand(len(pick), -1, 3)
    is_round = torch.tensor([o["shape"] in ROUND for o in objects]).expand(len(pick), -1)
    place = columns["objects_m"][:, which]
    pixel, _ = camera.project(place)
    inside = ((pixel > 0) & (pixel < torch.tensor(size))).all(-1)
    number = torch.tensor(which).expand(len(pick), -1) + FIRST_OBJECT
    seen = torch.stack([(labels == n).sum((1, 2)) for n in number[0].tolist()], 1) >= ENOUGH_PX
    pixel = torch.where((seen & inside)[..., None], pixel, torch.nan)
    pad = (0, 0, 0, MOST - len(objects))
    return {
        "frames": frames,
        "labels": labels,
        "views": body.views(columns["nominal.joint_position"], columns["nominal.gripper_position"][:, 0], camera),
        "number": F.pad(number, pad[2:], value=-1),
        "pixel": F.pad(pixel, pad, value=torch.nan),
        "place_m": F.pad(place, pad, value=torch.nan),
        "shape": F.pad(standing_shape(half, is_round, turn), pad),
    }


def given(data: Scenes, pick: Int64[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, masks of the robot, and views."""
    labels = data.labels[pick]
    robot = (labels == LABELS.index("arm")) | (labels == LABELS.index("gripper"))
    return to_pictures(data.frames[pick]), robot[:, None].float(), data.views[pick]


def recoloured(pictures: Float[Tensor, "N 3 H W"], share: float, rng: torch.Generator) -> Float[Tensor, "N 3 H W"]:
    """Some pictures with their colour channels mixed by random weights that keep grey grey."""
    n = len(pictures)
    order = torch.rand(n, 3, generator=rng).argsort(1)
    mix = (torch.eye(3)[order] + 0.25 * torch.randn(n, 3, 3, generator=rng)).abs()
    mix = mix / mix.sum(-1, keepdim=True)
    mix = torch.where(torch.rand(n, 1, 1, generator=rng) < share, mix, torch.eye(3))
    return torch.einsum("nij,njhw->nihw", mix.to(pictures), pictures).clamp(-1, 1)


def things_loss(said: dict[str, Tensor], data: Scenes, pick: Int64[Tensor, " n"], base: int) -> Tensor:
    """Cross-entropy of mask and heat; absolute errors of votes, centres, heights and shapes where there are any."""
    place = said["mask"].device
    labels, number = data.labels[pick].to(place), data.number[pick].to(place)
    pixel, true_shape = data.pixel[pick].to(place), data.shape[pick].to(place)
    seen = pixel.isfinite().all(-1)
    pixel = pixel.nan_to_num(-1e3)
    is_thing = labels >= FIRST_OBJECT
    mask = F.binary_cross_entropy_with_logits(said["mask"][:, 0], is_thing.float(), reduction="none")
    mask = (mask * (1.0 + 2.0 * is_thing)).mean()
    size = labels.shape[-2:]
    mine = (labels[:, None] == number[..., None, None]) & seen[..., None, None]  # N K H W
    centre = (mine[..., None] * pixel[:, :, None, None]).sum(1)  # N H W 2
    way = centre.permute(0, 3, 1, 2) - _middles(size, 1, place)
    vote = _mean((said["vote"] - way).abs().sum(1) / VOTE_PX, mine.any(1))
    cells = said["heat"].shape[-2:]
    delta = pixel[..., None, None] - _middles(cells, HEAT_PX, place)  # N K 2 h w
    apart = delta.square().sum(2)
    goal = torch.exp(-apart / (2 * 2.0**2)).amax(1)
    heat = said["heat"][:, 0].float()
    told = F.binary_cross_entropy_with_logits(heat, goal, reduction="none")
    focus = (goal - heat.sigmoid()).abs().detach().square() + 0.02
    hit = (told * focus).sum() / seen.sum().clamp_min(1)
    nearest = apart.argmin(1, keepdim=True)
    near = apart.amin(1) < 3.5**2
    offset = _mean((said["offset"] - _of(delta, nearest)).abs().sum(1), near) / HEAT_PX
    true_height = _of(_spread(data.place_m[pick, :, 2:].to(place), cells), nearest)
    height = _mean((said["height_m"] - true_height).abs()[:, 0], near)
    P = data.views[pick, base].to(place)
    goal_shape = _of(_spread(seen_from(true_shape, P, 1.0), cells), nearest)
    scale = goal_shape.new_tensor([1 / SIZE_M] * 3 + [1.0] * 3)[:, None, None]
    shape = _mean(((said["shape"] - goal_shape).abs() * scale).mean(1), near)
    return 2.0 * mask + vote + 0.5 * hit + 0.5 * offset + height / HEIGHT_M + shape


def _spread(values: Tensor, cells: torch.Size) -> Tensor:
    return values.nan_to_num()[..., None, None].expand(*values.shape, *cells)


def _of(values: Tensor, which: Tensor) -> Tensor:
    """Of K maps (N, K, C, h, w), in each cell the one that `which` (N, 1, h, w) names."""
    chosen: Tensor = values.gather(1, which[:, :, None].expand(-1, 1, values.shape[2], -1, -1))[:, 0]
    return chosen


def _mean(values: Tensor, where: Bool[Tensor, "N h w"]) -> Tensor:
    return (values * where).sum() / where.sum().clamp_min(1)


def _middles(size: torch.Size, stride_px: int, device: torch.device) -> Float[Tensor, "2 h w"]:
    y, x = torch.meshgrid(*((torch.arange(n, device=device) + 0.5) * stride_px for n in size), indexing="ij")
    return torch.stack([x, y])


def matched(
    there: Bool[Tensor, "N F"],
    things_m: Float[Tensor, "N F 3"],
    place_m: Float[Tensor, "N K 3"],
    within_m: float = SAME_M,
) -> tuple[Int64[Tensor, "N F"], Float[Tensor, "N F"]]:
    """Return which of K objects each thing found is, and how far off it is, in m (inf: it is none)."""
    off = (things_m[:, :, None] - place_m[:, None]).norm(dim=-1).nan_to_num(torch.inf)
    off = torch.where(there[:, :, None], off, torch.inf)
    nearest, which = off.min(-1)
    return which, torch.where(nearest < within_m, nearest, torch.inf)


@torch.no_grad()
def score(model: ThingFinder, data: Scenes, pick: Int64[Tensor, " n"]) -> dict[str, float]:
    """On true frames: share of objects found, things found that are none, how far off they are, sizes, pixels."""
    place = next(model.parameters()).device
    found, false, off_m, size_m, owned, common, union = 0, 0, [], [], [], 0, 0
    visible = data.pixel[pick].isfinite().all(-1)
    for part in pick.split(64):
        pictures, mask, views = given(data, part)
        seen = find_things(model, pictures.to(place), mask.to(place), views.to(place))
        seen = Found(*(x.cpu() for x in seen))
        place_m = torch.where(data.pixel[part].isfinite().all(-1, keepdim=True), data.place_m[part], torch.nan)
        which, off = matched(seen.there, seen.centre_m, place_m)
        hit = off.isfinite()
        false += int((seen.there & matched(seen.there, seen.centre_m, data.place_m[part], 2 * SAME_M)[1].isinf()).sum())
        found += int(hit.sum())
        off_m.append(off[hit])
        true_shape = data.shape[part].gather(1, which[..., None].expand(-1, -1, 6))
        size_m.append((seen.shape - true_shape)[hit][:, :3].abs().mean(-1))
        number = data.number[part].gather(1, which)
        real = data.labels[part]
        mine, is_thing = seen.alpha > 0.5, real >= FIRST_OBJECT
        common, union = common + int((mine & is_thing).sum()), union + int((mine | is_thing).sum())
        whose = F.pad(torch.where(hit, number, -1), (1, 0), value=0).gather(1, seen.owner.flatten(1).long())
        owned.append((whose.unflatten(1, real.shape[1:]) == real)[mine & is_thing].float())
    return {
        "found": found / max(int(visible.sum()), 1),
        "false": false / len(pick),
        "off_cm": 100 * float(torch.cat(off_m).median()),
        "size_cm": 100 * float(torch.cat(size_m).median()),
        "mask_iou": common / max(union, 1),
        "owned": float(torch.cat(owned).mean()),
    }
