"""Train the judge: where gripper and objects are in a latent, what is held, and which pixel is what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.data import EpisodeSet
from vap_gym.errors import CardError
from vap_gym.judge import HEIGHT_SCALE_M, STRIDE_PX, JudgeNetwork, in_world, labels_of
from vap_gym.sim.scene import LABELS
from vap_gym.sim.spec import COLOURS
from vap_gym.train.fit import fit
from vap_gym.train.judge_data import Truths, load_truths
from vap_gym.train.run import Run, Schedule, autocast, initialised_with, load_recipe, seeded
from vap_gym.train.things_data import scored
from vap_gym.world.codec import FrameCodec, to_pictures
from vap_gym.world.locator import CELLS
from vap_gym.world.support import SUPPORT_M

FIRST_OBJECT = LABELS.index(COLOURS[0])


@dataclass(frozen=True, kw_only=True)
class JudgeRecipe:
    """Settings of a judge training; a TOML file with these keys."""

    data: list[str]
    codec: str
    steps: int
    imagined: list[str] = field(default_factory=list)  # sets of `vap-gym data imagine`; all their frames are taken
    stills: list[str] = field(default_factory=list)  # sets of `vap-gym data generate --stills`; likewise
    model: dict[str, Any] = field(default_factory=dict)
    view: str = "front"
    every: int = 3
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    latent_noise: float = 0.08
    mirrored: float = 0.0  # share of the frames that are seen in a mirror
    tool_weight: float = 1.0  # of the tool's place; an object's is 1
    ema_decay: float = 0.998
    scored: int = 300  # held-out frames of each robot that are scored
    log_every: int = 50
    save_every: int = 500
    seed: int = 0
    init: str = ""  # folder of a judge to start from; its labels may be coarser or fewer
    init_codec: str = ""  # folder of the codec whose latents that one reads, where it is another one
    episodes: int = 0  # the first so many of each set; 0: all
    only_locator: bool = False  # train what tells exactly where the tool is, and leave all else as it is


def main(
    recipe: Path, *, out: Path = Path("runs/judge"), resume: bool = False, device: str = "cpu", threads: int = 0
) -> dict[str, Any]:
    """Train the judge on true frames.

    Args:
        recipe: a TOML file, or the name of a shipped recipe, e.g. tiny_judge.
        out: folder of the run.
        resume: go on with a run that was stopped.
        device: cpu or cuda.
        threads: CPU threads; 0 leaves torch's choice.
    """
    settings = load_recipe(JudgeRecipe, recipe)
    if settings.only_locator and not (settings.init and settings.model.get("locator_width")):
        raise CardError(
            "only_locator goes on from a judge: name it (init = 'runs/judge/model'), and say how wide its locator is "
            "([model] locator_width = 64)."
        )
    if threads:
        torch.set_num_threads(threads)
    run, place = Run(out, resume=resume), torch.device(device)
    codec = FrameCodec.from_pretrained(settings.codec, torch_dtype=torch.float32).eval().requires_grad_(False)
    codec = codec.to(memory_format=torch.channels_last)
    data, robots = load_truths(
        [Path(p) for p in (*settings.data, *settings.imagined, *settings.stills)],
        codec,
        every=[settings.every] * len(settings.data) + [1] * (len(settings.imagined) + len(settings.stills)),
        view=settings.view,
        episodes=settings.episodes,
        mirrored=settings.mirrored,
    )
    train = (~data.held_out).nonzero()[:, 0]
    held_out = data.pick(scored(data.robot, data.held_out, settings.scored))
    with initialised_with(settings.seed):
        model = JudgeNetwork(robots=list(robots), **settings.model).to(place, memory_format=torch.channels_last)
    if settings.init:
        given = JudgeNetwork.from_pretrained(settings.init, torch_dtype=torch.float32)
        begin_from(model, given)
        if settings.init_codec:
            other = FrameCodec.from_pretrained(settings.init_codec, torch_dtype=torch.float32)
            translate(model, given, codec, other, some_pictures(settings))
    if model.locator is not None and settings.only_locator:
        model.requires_grad_(False)
        model.locator.requires_grad_(True)
    rng = seeded(settings.seed + 1)

    def loss(_: int) -> Tensor:
        drawn = data.pick(train[torch.randint(len(train), (settings.batch_size,), generator=rng)])
        latents = drawn.latents.float()
        level = settings.latent_noise * torch.rand(len(drawn), 1, 1, 1, generator=rng)
        latents = latents + level * torch.randn(latents.shape, generator=rng)
        with autocast(place):
            said = model(
                latents.to(place).contiguous(memory_format=torch.channels_last), label=not settings.only_locator
            )
        exact = torch.zeros(())
        if model.locator is not None:
            exact = locator_loss(said, drawn.points_px[:, -1].to(place))
        if settings.only_locator:
            return exact
        return judge_loss(said, drawn.to(place), tool_weight=settings.tool_weight) + exact

    return fit(
        run,
        model,
        settings,
        name="judge",
        loss=loss,
        score=lambda averaged: score(averaged, held_out, robots),
        schedule=Schedule(peak=settings.learning_rate, steps=settings.steps),
        rng=rng,
        weight_decay=1e-3,
    )


def begin_from(model: JudgeNetwork, given: JudgeNetwork) -> None:
    """Take another judge's weights where they fit: labels that it did not tell, or told coarser, are learned anew."""
    mine = model.state_dict()
    model.load_state_dict({k: v for k, v in given.state_dict().items() if mine[k].shape == v.shape}, strict=False)


@torch.no_grad()
def translate(
    model: JudgeNetwork, given: JudgeNetwork, codec: FrameCodec, other: FrameCodec, pictures: Float[Tensor, "N 3 H W"]
) -> None:
    """Let the first convolution say of `codec`'s latents what that of `given` says of the `other` codec's, as nearly as
    least squares over some pictures can: so a judge's training goes on where a codec was trained anew."""
    conv, was = model.enter[0], given.enter[0]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(was, nn.Conv2d)
    wanted = was(other.encode(pictures))
    latents = codec.encode(pictures)
    around = F.unfold(latents, 3, padding=1).mT.flatten(0, 1).double()
    around = torch.cat([around, torch.ones_like(around[:, :1])], 1)
    said = wanted.flatten(2).mT.flatten(0, 1).double()
    ridge = 1e-3 * len(around) * torch.eye(around.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(around.T @ around + ridge, around.T @ said).T.float()
    conv.weight.copy_(solved[:, :-1].reshape(conv.weight.shape))
    assert conv.bias is not None
    conv.bias.copy_(solved[:, -1])


def some_pictures(settings: JudgeRecipe, most: int = 12) -> Float[Tensor, "N 3 H W"]:
    """First pictures of a few episodes of each set."""
    frames = []
    for folder in settings.data:
        source = EpisodeSet(folder)
        for i in range(min(most, len(source))):
            episode = source.read(i, stop=1, views=[settings.view], labels=[], columns=[])
            frames.append(torch.from_numpy(episode.frames[settings.view]))
    return to_pictures(torch.cat(frames))


def judge_loss(out: dict[str, Tensor], data: Truths, *, tool_weight: float = 1.0) -> Tensor:
    """Cross-entropy of heat maps against narrow Gaussians and of the segmentation; offsets, presence, held, height."""
    h, w = out["heat"].shape[-2:]
    there = ~data.points_px.isnan().any(-1)
    counts = there.float()
    counts[:, -1] *= tool_weight
    cells = torch.nan_to_num(data.points_px) / STRIDE_PX - 0.5
    y, x = torch.meshgrid(torch.arange(h, device=cells.device), torch.arange(w, device=cells.device), indexing="ij")
    delta = torch.stack([cells[..., 0, None, None] - x, cells[..., 1, None, None] - y], 2)  # N P 2 h w
    goal = torch.exp(-delta.square().sum(2) / (2 * 0.8**2))
    goal = goal / goal.sum((-1, -2), keepdim=True).clamp_min(1e-6)
    heat = -(goal.flatten(2) * out["heat"].flatten(2).log_softmax(-1)).sum(-1)
    near = (delta.abs().amax(2) < 1.6) * counts[..., None, None]
    offset = ((out["offset"] - delta).abs().sum(2) * near).sum() / near.sum().clamp_min(1)
    known = ~data.present.isnan()
    present = F.binary_cross_entropy_with_logits(out["state"][..., 0], data.present.nan_to_num(), reduction="none")
    present = (present * known).sum() / known.sum().clamp_min(1)
    lifted = F.binary_cross_entropy_with_logits(out["state"][..., 1], data.held.float(), reduction="none")
    lifted = (lifted * there).sum() / there.sum().clamp_min(1)
    rests = there & ~data.height_m.isnan()
    height = ((out["height_m"] - data.height_m.nan_to_num()).abs() * rests).sum()
    height = height / rests.sum().clamp_min(1) / HEIGHT_SCALE_M
    # squared: under an absolute error the many tables hold the few cabinets down
    support = ((out["support_m"][:, 0] - data.support_m) / SUPPORT_M).square().mean()
    classes = out["labels"].shape[1]
    step = data.labels.shape[-1] // out["labels"].shape[-1]
    rare = torch.full((classes,), 3.0, device=cells.device)
    rare[:2] = 1.0
    rare[FIRST_OBJECT + len(COLOURS) :] = 1.0  # drawers are large
    pixels = F.cross_entropy(out["labels"], _known(data.labels[:, ::step, ::step], classes), weight=rare)
    placed = (heat * counts).sum() / counts.sum().clamp_min(1) + offset + height + support
    return placed + 2 * present + lifted + 2 * pixels


def locator_loss(out: dict[str, Tensor], tool_px: Float[Tensor, "N 2"], *, sharpness: float = 0.3) -> Tensor:
    """How far off the tool is told, in cells, and a little of a cross-entropy that keeps it from being a mean of two
    places; of tools that are in the picture, and within the square that is looked at."""
    inside = (tool_px / STRIDE_PX - out["corner"]).nan_to_num(-1.0)
    counts = ((inside > 0) & (inside < CELLS)).all(-1).float()
    off = (out["places_px"][:, -1] - tool_px.nan_to_num()).norm(dim=-1) / STRIDE_PX
    step = torch.arange(CELLS, device=inside.device) + 0.5
    far = (step[None, :, None] - inside[:, 1, None, None]).square() + (step - inside[:, 0, None, None]).square()
    goal = (-far / (2 * 0.8**2)).flatten(1).softmax(-1)
    sharp = -(goal * out["say"].flatten(1).log_softmax(-1)).sum(-1)
    return ((off + sharpness * sharp) * counts).sum() / counts.sum().clamp_min(1)  # type: ignore[no-any-return]


@torch.no_grad()
def score(model: JudgeNetwork, data: Truths, robots: Sequence[str]) -> dict[str, float]:
    """Errors on true frames, over all and of each robot's: tool and objects in px and cm, presence, held, J&F.

    `false` is how often an absent or hidden object is read as there (of all that are absent); `missed` how often one
    that is there is not; `ece` how far said probabilities of presence are from shares that came true (ten bins).
    """
    place = next(model.parameters()).device
    rows: dict[str, list[Tensor]] = {}
    for part in torch.arange(len(data)).split(64):
        batch = data.pick(part)
        with autocast(place):
            out = model(batch.latents.float().to(place).contiguous(memory_format=torch.channels_last))
        for name, value in _compared({k: v.cpu().float() for k, v in out.items()}, batch).items():
            rows.setdefault(name, []).append(value)
    figures = {name: torch.cat(values) for name, values in rows.items()}
    scores = _figures(figures, torch.ones(len(data), dtype=torch.bool))
    for i, robot in enumerate(robots):
        mine = _figures(figures, data.robot == i)
        kept = ("tool_px", "object_cm", "object_cm_p90", "j_and_f", "false", "missed")
        scores |= {f"{name}_{robot}": mine[name] for name in kept}
    return scores


def _compared(out: dict[str, Tensor], data: Truths) -> dict[str, Tensor]:
    """What was read in N frames beside what is true: a row for each frame."""
    truth, there = data.points_px, data.present == 1.0
    places = out["places_px"]
    error = torch.where(there, (places - truth).norm(dim=-1), torch.nan)
    objects_m = in_world(
        places[:, :-1], out["height_m"][:, :-1], out["state"][:, :-1, 1].sigmoid(), data.camera(), data.place_m[:, -1]
    )
    off = (objects_m - data.place_m[:, :-1]).norm(dim=-1)
    known = ~data.present.isnan()
    _, height, width = data.labels.shape
    mine, real = labels_of(out["labels"], (height, width)), data.labels
    return {
        "tool_px": error[:, -1],
        "object_px": error[:, :-1],
        "off": torch.where(there[:, :-1], off, torch.nan),
        "said": torch.where(known, out["state"][..., 0].sigmoid(), torch.nan)[:, :-1],
        "there": there[:, :-1],
        "held": torch.where(there, ((out["state"][..., 1] > 0) == data.held).float(), torch.nan)[:, :-1],
        "height": (out["height_m"] - data.height_m).abs()[:, :-1],
        "j_and_f": _agreement(mine, real, there),
    }


def _agreement(mine: UInt8[Tensor, "N H W"], real: UInt8[Tensor, "N H W"], there: Tensor) -> Tensor:
    """J&F of each object that is there to be seen, (N, K); NaN of others."""
    from vap_gym.metrics.masks import boundary_f_per_frame, region_j_per_frame

    values = torch.full((len(mine), len(COLOURS)), torch.nan)
    for k in range(len(COLOURS)):
        which = there[:, k].nonzero()[:, 0]
        if len(which):
            said, true = ((labels[which] == FIRST_OBJECT + k).numpy() for labels in (mine, real))
            both = region_j_per_frame(said, true) + boundary_f_per_frame(said, true)
            values[which, k] = torch.from_numpy(both / 2).float()
    return values


def _figures(rows: dict[str, Tensor], which: Tensor) -> dict[str, float]:
    of = {name: value[which] for name, value in rows.items()}
    said, there = of["said"].flatten(), of["there"].flatten()
    said, there = said[~said.isnan()], there[~said.isnan()]
    bins = (10 * said).long().clamp(max=9)
    gaps = [
        (said[bins == b] - there[bins == b].float()).mean().abs() * (bins == b).float().mean() for b in bins.unique()
    ]
    return {
        "tool_px": float(of["tool_px"].nanmedian()),
        "object_px": float(of["object_px"].nanmedian()),
        "object_cm": 100 * float(of["off"].nanmedian()),
        "object_cm_p90": 100 * float(of["off"].flatten().nanquantile(0.9)),
        "false": float((said[~there] > 0.5).float().mean()),
        "missed": float((said[there] <= 0.5).float().mean()),
        "ece": float(torch.stack(gaps).sum()),
        "held": float(of["held"].nanmean()),
        "height_cm": 100 * float(of["height"].nanmedian()),
        "j_and_f": float(of["j_and_f"].nanmean()),
    }


def _known(labels: UInt8[Tensor, "N h w"], classes: int) -> Tensor:
    """Labels that the network has no class for (drawers, with some) as background."""
    return torch.where(labels < classes, labels, 0).long()
