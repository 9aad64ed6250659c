"""Train the judge: where gripper and objects are in a latent, what is held, and which pixel is what."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from vap_gym.data import EpisodeSet
from vap_gym.geometry import Camera
from vap_gym.judge import HEIGHT_SCALE_M, STRIDE_PX, JudgeNetwork, peaks_px
from vap_gym.train.fit import fit
from vap_gym.train.run import Run, Schedule, autocast, initialised_with, load_recipe, seeded
from vap_gym.world.codec import FrameCodec, to_frames, to_pictures

LIFTED_M = 0.015  # an object this far above its lowest place is off the table


@dataclass(frozen=True, kw_only=True)
class JudgeRecipe:
    """Settings of a judge training; a TOML file with these keys."""

    data: list[str]
    codec: str
    steps: int
    model: dict[str, Any] = field(default_factory=dict)
    view: str = "front"
    every: int = 3
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    latent_noise: float = 0.08
    ema_decay: float = 0.998
    held_out: int = 600
    log_every: int = 50
    save_every: int = 500
    seed: int = 0
    init: str = ""  # folder of a judge to start from
    episodes: int = 0  # the first so many of the data; 0: all


@dataclass(frozen=True, kw_only=True)
class Truths:
    """N frames and what is true of them; points are the palette's colours, then the tool centre."""

    latents: Float[Tensor, "N C h w"]
    labels: UInt8[Tensor, "N H W"]
    points_px: Float[Tensor, "N P 2"]  # NaN where there is nothing, or it is out of the picture
    held: Bool[Tensor, "N P"]
    height_m: Float[Tensor, "N P"]  # of things at rest, else NaN


def main(
    recipe: Path, *, out: Path = Path("runs/judge"), resume: bool = False, device: str = "cpu", threads: int = 0
) -> None:
    """Train the judge on true frames.

    Args:
        recipe: a TOML file, or the name of a shipped recipe, e.g. tiny_judge.
        out: folder of the run.
        resume: go on with a run that was stopped.
        device: cpu or cuda.
        threads: CPU threads; 0 leaves torch's choice.
    """
    settings = load_recipe(JudgeRecipe, recipe)
    if threads:
        torch.set_num_threads(threads)
    run, place = Run(out, resume=resume), torch.device(device)
    codec = FrameCodec.from_pretrained(settings.codec, torch_dtype=torch.float32).eval().requires_grad_(False)
    codec = codec.to(memory_format=torch.channels_last)
    data = load_truths(
        [Path(p) for p in settings.data], codec, every=settings.every, view=settings.view, episodes=settings.episodes
    )
    held_out, train = torch.arange(settings.held_out), torch.arange(settings.held_out, len(data.latents))
    with initialised_with(settings.seed):
        model = JudgeNetwork(**settings.model).to(place, memory_format=torch.channels_last)
    if settings.init:
        given = JudgeNetwork.from_pretrained(settings.init, torch_dtype=torch.float32)
        model.load_state_dict(given.state_dict())
    rng = seeded(settings.seed + 1)

    def loss(_: int) -> Tensor:
        pick = train[torch.randint(len(train), (settings.batch_size,), generator=rng)]
        latents = data.latents[pick].float()
        level = settings.latent_noise * torch.rand(len(pick), 1, 1, 1, generator=rng)
        latents = latents + level * torch.randn(latents.shape, generator=rng)
        with autocast(place):
            said = model(latents.to(place).contiguous(memory_format=torch.channels_last))
        truths = (data.labels, data.points_px, data.held, data.height_m)
        return judge_loss(said, *(t[pick].to(place) for t in truths))

    fit(
        run,
        model,
        settings,
        name="judge",
        loss=loss,
        score=lambda averaged: score(averaged, data, held_out),
        schedule=Schedule(peak=settings.learning_rate, steps=settings.steps),
        rng=rng,
        weight_decay=1e-3,
    )


def load_truths(folders: list[Path], codec: FrameCodec, *, every: int, view: str, episodes: int = 0) -> Truths:
    """Every `every`-th frame of the sets' first `episodes` (0: all), half of them after a round trip of the codec."""
    from tqdm import tqdm

    parts: dict[str, list[Tensor]] = {"latents": [], "labels": [], "points_px": [], "held": [], "height_m": []}
    for folder in folders:
        source = EpisodeSet(folder)
        count = min(episodes or len(source), len(source))
        for i in tqdm(range(count), desc=f"encoding {folder}", unit="episode", mininterval=5):
            episode = source.read(i)
            pick = np.arange(i % every, len(episode), every)
            frames = torch.from_numpy(episode.frames[view][pick])
            with torch.no_grad(), autocast(torch.device("cpu")):
                latents = codec.encode(to_pictures(frames).contiguous(memory_format=torch.channels_last))
                if i % 2:  # what the judge gets from a world model has been through the codec
                    again = to_pictures(to_frames(codec.decode(latents)))
                    latents = codec.encode(again.contiguous(memory_format=torch.channels_last))
            columns = {k: torch.from_numpy(np.ascontiguousarray(v[pick])) for k, v in episode.columns.items()}
            size = (frames.shape[2], frames.shape[1])
            camera = Camera(K=columns["camera.K"], T_world_camera=columns["camera.T_world_camera"], frame_size_px=size)
            points = torch.cat([columns["objects_m"], columns["tool_m"][:, None]], 1)
            pixels, _ = camera.project(points)
            inside = ((pixels >= 0) & (pixels < torch.tensor(size))).all(-1, keepdim=True)
            lowest = torch.from_numpy(np.ascontiguousarray(episode.columns["objects_m"][..., 2].min(0)))
            lifted = columns["objects_m"][..., 2] > lowest + LIFTED_M
            parts["latents"].append(latents.half())
            parts["labels"].append(torch.from_numpy(episode.labels[view][pick]))
            parts["points_px"].append(torch.where(inside, pixels, torch.nan))
            parts["held"].append(torch.cat([lifted, torch.zeros(len(pick), 1, dtype=torch.bool)], 1))
            height = torch.where(lifted, torch.nan, columns["objects_m"][..., 2])
            parts["height_m"].append(torch.cat([height, torch.full((len(pick), 1), torch.nan)], 1))
    return Truths(**{k: torch.cat(v) for k, v in parts.items()})


def judge_loss(
    out: dict[str, Tensor],
    labels: UInt8[Tensor, "N H W"],
    points_px: Float[Tensor, "N P 2"],
    held: Bool[Tensor, "N P"],
    height_m: Float[Tensor, "N P"],
) -> Tensor:
    """Cross-entropy of heat maps against narrow Gaussians and of the segmentation; offsets, presence, held, height."""
    h, w = out["heat"].shape[-2:]
    there = ~points_px.isnan().any(-1)
    cells = torch.nan_to_num(points_px) / STRIDE_PX - 0.5
    y, x = torch.meshgrid(torch.arange(h, device=cells.device), torch.arange(w, device=cells.device), indexing="ij")
    delta = torch.stack([cells[..., 0, None, None] - x, cells[..., 1, None, None] - y], 2)  # N P 2 h w
    goal = torch.exp(-delta.square().sum(2) / (2 * 0.8**2))
    goal = goal / goal.sum((-1, -2), keepdim=True).clamp_min(1e-6)
    heat = -(goal.flatten(2) * out["heat"].flatten(2).log_softmax(-1)).sum(-1)
    near = (delta.abs().amax(2) < 1.6) & there[..., None, None]
    offset = ((out["offset"] - delta).abs().sum(2) * near).sum() / near.sum().clamp_min(1)
    present = F.binary_cross_entropy_with_logits(out["state"][..., 0], there.float())
    lifted = F.binary_cross_entropy_with_logits(out["state"][..., 1], held.float(), reduction="none")
    lifted = (lifted * there).sum() / there.sum().clamp_min(1)
    rests = there & ~height_m.isnan()
    height = ((out["height_m"] - height_m.nan_to_num()).abs() * rests).sum() / rests.sum().clamp_min(1) / HEIGHT_SCALE_M
    classes = out["labels"].shape[1]
    coarse: Int64[Tensor, "N h2 w2"] = _known(labels[:, ::2, ::2].long(), classes)
    rare = torch.full((classes,), 3.0, device=cells.device)
    rare[:2] = 1.0
    pixels = F.cross_entropy(out["labels"], coarse, weight=rare)
    return (heat * there).sum() / there.sum().clamp_min(1) + offset + 2 * present + lifted + height + 2 * pixels


@torch.no_grad()
def score(model: JudgeNetwork, data: Truths, pick: Int64[Tensor, " n"]) -> dict[str, float]:
    """Errors on true frames: pixels of tool and objects, accuracy of presence and held, IoU of object pixels."""
    place = next(model.parameters()).device
    errors, seen, lifted, heights, union, common = [], [], [], [], 0, 0
    for part in pick.split(64):
        with autocast(place):
            out = model(data.latents[part].float().to(place).contiguous(memory_format=torch.channels_last))
        truth = data.points_px[part].to(place)
        there = ~truth.isnan().any(-1)
        errors.append(torch.where(there, (peaks_px(out["heat"], out["offset"]) - truth).norm(dim=-1), torch.nan))
        seen.append((out["state"][..., 0] > 0) == there)
        lifted.append(((out["state"][..., 1] > 0) == data.held[part].to(place))[there])
        heights.append((out["height_m"] - data.height_m[part].to(place)).abs()[there])
        mine, real = (
            out["labels"].argmax(1),
            _known(data.labels[part][:, ::2, ::2].long(), out["labels"].shape[1]).to(place),
        )
        common += int(((mine == real) & (real >= 4)).sum())
        union += int(((mine >= 4) | (real >= 4)).sum())
    error = torch.cat(errors)
    return {
        "tool_px": float(error[:, -1].nanmedian()),
        "object_px": float(error[:, :-1].nanmedian()),
        "object_px_p90": float(error[:, :-1].flatten().nanquantile(0.9)),
        "present": float(torch.cat(seen).float().mean()),
        "held": float(torch.cat(lifted).float().mean()),
        "height_cm": 100 * float(torch.cat(heights).nanmedian()),
        "object_iou": common / max(union, 1),
    }


def _known(labels: Int64[Tensor, "N h w"], classes: int) -> Int64[Tensor, "N h w"]:
    """Labels that the network has no class for (drawers) as background."""
    return torch.where(labels < classes, labels, 0)
