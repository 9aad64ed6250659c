"""Train the finder of things: their pixels, votes for a centre, heights and sizes, on true frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from vap_gym.errors import VapError
from vap_gym.sim.spec import COLOURS
from vap_gym.train.fit import fit
from vap_gym.train.run import Run, Schedule, autocast, initialised_with, load_recipe, seeded
from vap_gym.train.things_data import FIRST_OBJECT, Scenes, given, load_scenes, recoloured, scored, some_mirrored
from vap_gym.world.support import SUPPORT_M
from vap_gym.world.things import HEAT_PX, HEIGHT_M, SIZE_M, VOTE_PX, Found, ThingFinder, find_things, seen_from
from vap_gym.world.views import on_plane, rays

SAME_M = 0.03  # a thing found so near an object is that object
PLACE_M, FAR_OFF = 0.02, 5.0  # what the error of a place is measured in, and the most of that


@dataclass(frozen=True, kw_only=True)
class ThingsRecipe:
    """Settings of the training of the finder; a TOML file with these keys."""

    data: list[str]
    steps: int
    view: str = "front"
    model: dict[str, Any] = field(default_factory=dict)
    init: str = ""  # folder of a finder to start from; it may have fewer blocks
    every: int = 6
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    recolour: float = 0.5  # share of pictures whose colours are changed: things are not to be known by colour
    blind: float = 0.1  # share of pictures whose robot is not told
    ema_decay: float = 0.998
    scored: int = 300  # held-out frames of each robot that are scored
    log_every: int = 50
    save_every: int = 500
    seed: int = 0
    episodes: int = 0  # the first so many of each set; 0: all


def main(
    recipe: Path, *, out: Path = Path("runs/things"), resume: bool = False, device: str = "cpu", threads: int = 0
) -> dict[str, Any]:
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
    folders = [Path(p) for p in settings.data]
    data, robots = load_scenes(folders, every=settings.every, view=settings.view, episodes=settings.episodes)
    train = (~data.held_out).nonzero()[:, 0]
    held_out = data.pick(scored(data.robot, data.held_out, settings.scored))
    with initialised_with(settings.seed):
        model = ThingFinder(links=1, **settings.model)
    if settings.init:
        begin_from(model, ThingFinder.from_pretrained(settings.init, torch_dtype=torch.float32))
    model = model.to(place, memory_format=torch.channels_last)
    rng = seeded(settings.seed + 1)

    def loss(_: int) -> Tensor:
        drawn = data.pick(train[torch.randint(len(train), (settings.batch_size,), generator=rng)])
        drawn = some_mirrored(drawn, rng)
        pictures, mask, views = given(drawn, rng)
        pictures = recoloured(pictures, settings.recolour, rng)
        mask = mask * (torch.rand(len(drawn), 1, 1, 1, generator=rng) >= settings.blind)
        with autocast(place):
            said = model(pictures.to(place), mask.to(place), views.to(place))
        return things_loss(said, drawn.to(place))

    return fit(
        run,
        model,
        settings,
        name="things",
        loss=loss,
        score=lambda averaged: score(averaged, held_out, robots),
        schedule=Schedule(peak=settings.learning_rate, steps=settings.steps, decay=0.8),
        rng=rng,
        weight_decay=1e-3,
    )


def begin_from(model: ThingFinder, given: ThingFinder) -> None:
    """Take another finder's weights. What it lacks changes nothing at first: it ends in zeros."""
    kept = model.load_state_dict(given.state_dict(), strict=False)
    if kept.unexpected_keys or any(not name.startswith(("middle.", "support.")) for name in kept.missing_keys):
        raise VapError(
            "init must name a finder of the same widths with as many blocks or fewer, got one with "
            f"{dict(given.config)['widths']} and {dict(given.config)['blocks']}."
        )


def things_loss(said: dict[str, Tensor], data: Scenes) -> Tensor:
    """Cross-entropy of mask and heat; absolute errors of votes, centres, heights, places and shapes where there are
    any."""
    place = said["mask"].device
    seen = data.pixel.isfinite().all(-1)
    pixel = data.pixel.nan_to_num(-1e3)
    is_thing = is_object(data.labels)
    mask = F.binary_cross_entropy_with_logits(said["mask"][:, 0], is_thing.float(), reduction="none")
    mask = (mask * (1.0 + 2.0 * is_thing)).mean()
    size = data.labels.shape[-2:]
    mine = (data.labels[:, None] == data.number[..., None, None]) & seen[..., None, None]  # N K H W
    centre = (mine[..., None] * pixel[:, :, None, None]).sum(1)  # N H W 2
    way = centre.permute(0, 3, 1, 2) - _middles(size, 1, place)
    vote = _mean((said["vote"] - way).abs().sum(1) / VOTE_PX, mine.any(1))
    cells = said["heat"].shape[-2:]
    middles = _middles(cells, HEAT_PX, place)
    delta = pixel[..., None, None] - middles  # N K 2 h w
    apart = delta.square().sum(2)
    goal = torch.exp(-apart / (2 * 2.0**2)).amax(1)
    heat = said["heat"][:, 0].float()
    told = F.binary_cross_entropy_with_logits(heat, goal, reduction="none")
    focus = (goal - heat.sigmoid()).abs().detach().square() + 0.02
    hit = (told * focus).sum() / seen.sum().clamp_min(1)
    nearest = apart.argmin(1, keepdim=True)
    near = apart.amin(1) < 3.5**2
    offset = _mean((said["offset"] - _of(delta, nearest)).abs().sum(1), near) / HEAT_PX
    true_place = _of(_spread(data.place_m, cells), nearest)
    height = _mean((said["height_m"] - true_place[:, 2:]).abs()[:, 0], near)
    P = data.views[:, 0]
    there = on_plane(P, (middles + said["offset"]).flatten(2).mT, said["height_m"].flatten(1))
    # squared: under an absolute error the many tables hold the few cabinets down
    support = ((said["support_m"][:, 0] - data.support_m) / SUPPORT_M).square().mean()
    off = (there - true_place.flatten(2).mT).norm(dim=-1).unflatten(1, cells) / PLACE_M
    goal_shape = _of(_spread(seen_from(data.shape, P, 1.0), cells), nearest)
    scale = goal_shape.new_tensor([1 / SIZE_M] * 3 + [1.0] * 3)[:, None, None]
    shape = _mean(((said["shape"] - goal_shape).abs() * scale).mean(1), near)
    placed = height / HEIGHT_M + support + _mean(off.clamp(max=FAR_OFF), near)
    return 2.0 * mask + vote + 0.5 * hit + 0.5 * offset + shape + placed


def is_object(labels: UInt8[Tensor, "N H W"]) -> Bool[Tensor, "N H W"]:
    """Which pixels show an object."""
    return (labels >= FIRST_OBJECT) & (labels < FIRST_OBJECT + len(COLOURS))


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
def score(model: ThingFinder, data: Scenes, robots: Sequence[str], *, surface: bool = False) -> dict[str, float]:
    """On true frames, over all and of each robot's: share of objects found, things found that are none, how far off
    they are (also along the view and across it), sizes, pixels. The robot's mask is the true one, or its `surface`."""
    place = next(model.parameters()).device
    rows: dict[str, list[Tensor]] = {}
    for part in torch.arange(len(data)).split(64):
        batch = data.pick(part)
        pictures, mask, views = given(batch)
        mask = batch.surface[:, None].float() if surface else mask
        seen = find_things(model, pictures.to(place), mask.to(place), views.to(place))
        for name, value in _compared(Found(*(x.cpu() for x in seen)), batch).items():
            rows.setdefault(name, []).append(value)
    figures = {name: torch.cat(values) for name, values in rows.items()}
    scores = _figures(figures, torch.ones(len(data), dtype=torch.bool))
    for i, robot in enumerate(robots):
        mine = _figures(figures, data.robot == i)
        scores |= {f"{name}_{robot}": mine[name] for name in ("found", "false", "off_cm", "off_cm_p90", "along_cm")}
    return scores


def _compared(seen: Found, data: Scenes) -> dict[str, Tensor]:
    """What was found in N frames beside what is there: a row for each frame."""
    visible = data.pixel.isfinite().all(-1)
    place_m = torch.where(visible[..., None], data.place_m, torch.nan)
    which, off = matched(seen.there, seen.centre_m, place_m)
    hit = off.isfinite()
    astray = seen.there & matched(seen.there, seen.centre_m, data.place_m, 2 * SAME_M)[1].isinf()
    true_shape = data.shape.gather(1, which[..., None].expand(-1, -1, 6))
    size = (seen.shape - true_shape)[..., :3].abs().mean(-1)
    P = data.views[:, 0]
    eye = rays(P, torch.zeros(len(data), 1, 2))[0]
    true_place = place_m.gather(1, which[..., None].expand(-1, -1, 3))
    ahead = F.normalize((true_place - eye)[..., :2], dim=-1)  # away from the camera, over the table
    error = (seen.centre_m - true_place)[..., :2]
    along = (error * ahead).sum(-1)
    across = error[..., 0] * ahead[..., 1] - error[..., 1] * ahead[..., 0]
    mine, is_thing = seen.alpha > 0.5, is_object(data.labels)
    number = torch.where(hit, data.number.gather(1, which), -1)
    whose = F.pad(number, (1, 0), value=0).gather(1, seen.owner.flatten(1).long()).unflatten(1, data.labels.shape[1:])
    both = mine & is_thing
    return {
        "visible": visible.sum(1),
        "false": astray.sum(1),
        **{
            name: torch.where(hit, value, torch.nan)
            for name, value in (("off", off), ("size", size), ("along", along.abs()), ("across", across.abs()))
        },
        "common": both.sum((1, 2)),
        "union": (mine | is_thing).sum((1, 2)),
        "owned": ((whose == data.labels) & both).sum((1, 2)),
    }


def _figures(rows: dict[str, Tensor], which: Bool[Tensor, " N"]) -> dict[str, float]:
    of = {name: value[which] for name, value in rows.items()}
    common = max(float(of["common"].sum()), 1.0)
    return {
        "found": float(of["off"].isfinite().sum()) / max(float(of["visible"].sum()), 1.0),
        "false": float(of["false"].float().mean()),
        "off_cm": 100 * float(of["off"].nanmedian()),
        "off_cm_p90": 100 * float(of["off"].flatten().nanquantile(0.9)),
        "along_cm": 100 * float(of["along"].nanmedian()),
        "across_cm": 100 * float(of["across"].nanmedian()),
        "size_cm": 100 * float(of["size"].nanmedian()),
        "mask_iou": float(of["common"].sum()) / max(float(of["union"].sum()), 1.0),
        "owned": float(of["owned"].sum()) / common,
    }
