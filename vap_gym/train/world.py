"""Train the dynamics: flow matching with x0-prediction on own rollouts, loss amplified at gripper and objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from vap_gym.train.fit import fit
from vap_gym.train.latents import (
    STRIDE_PX,
    LatentEpisodes,
    load_latents,
    loss_weight,
    lost_objects,
    true_displacement,
)
from vap_gym.train.run import Run, Schedule, autocast, initialised_with, load_recipe, seeded
from vap_gym.train.slots import Slots, SlotSettings, contact_starts, seen_first
from vap_gym.world.appearance import FirstSight, RobotAppearance, posed_picture
from vap_gym.world.codec import FrameCodec, charbonnier, to_frames, to_pictures
from vap_gym.world.dynamics import PROMPT_TAPS, FrameDynamics

MOVED_PX = 5.0  # objects that move so far are those of the score


@dataclass(frozen=True, kw_only=True)
class WorldRecipe:
    """Settings of a world model training; a TOML file with these keys."""

    data: list[str]
    codec: str
    appearance: str
    model: dict[str, Any]
    steps: int
    robot: str = "panda_robotiq"
    view: str = "front"
    cache: str = ""
    batch_size: int = 32
    learning_rate: float = 6e-4
    warmup_steps: int = 300
    decay: float = 0.5
    weight_decay: float = 0.01
    pure_noise: float = 0.7
    horizon: int = 30
    first_horizon: int = 8
    own_rollouts: float = 0.8
    contact_share: float = 0.5
    gripper_weight: float = 2.0
    object_weight: float = 3.0
    moved_weight: float = 6.0
    carried_loss: float = 0.1  # share of the loss that the carried picture has by itself
    displacement_loss: float = 0.2  # per cell that the displacement of an object is wrong
    ema_decay: float = 0.999
    held_out: int = 24
    log_every: int = 50
    save_every: int = 500
    seed: int = 0
    init: str = ""  # folder of dynamics to start from
    episodes: int = 0  # the first so many of the data; 0: all
    strides: list[float] = field(default_factory=lambda: [0.75, 0.15, 0.10])


def main(
    recipe: Path, *, out: Path = Path("runs/world"), resume: bool = False, device: str = "cpu", threads: int = 0
) -> None:
    """Train the dynamics of a world model.

    Args:
        recipe: a TOML file, or the name of a shipped recipe, e.g. tiny_world.
        out: folder of the run: log, curves, sample strips, state, and the model in diffusers' layout.
        resume: go on with a run that was stopped; the result is the same as without the stop.
        device: cpu or cuda.
        threads: CPU threads; 0 leaves torch's choice.
    """
    settings = load_recipe(WorldRecipe, recipe)
    if threads:
        torch.set_num_threads(threads)
    run = Run(out, resume=resume)
    place = torch.device(device)
    codec = FrameCodec.from_pretrained(settings.codec, torch_dtype=torch.float32).eval().requires_grad_(False)
    codec = codec.to(memory_format=torch.channels_last)
    cache = Path(settings.cache) if settings.cache else run.folder / "latents.pt"
    everything = load_latents(
        [Path(p) for p in settings.data],
        codec,
        robot=settings.robot,
        view=settings.view,
        episodes=settings.episodes,
        cache=cache,
    )
    codec = codec.to(place)
    appearance = RobotAppearance.from_pretrained(settings.appearance, torch_dtype=torch.float32).eval()
    appearance = appearance.requires_grad_(False).to(place)
    with initialised_with(settings.seed):
        model = FrameDynamics(**settings.model).to(place, memory_format=torch.channels_last)
    if settings.init:
        given = FrameDynamics.from_pretrained(settings.init, torch_dtype=torch.float32)
        model.load_state_dict(given.state_dict())
    train = _slice(everything, slice(settings.held_out, None))
    held = _slice(everything, slice(0, settings.held_out))
    rng = seeded(settings.seed + 1)
    slots = Slots(train, _slot_settings(settings, model), rng, partial(_decoded, codec), appearance)

    def loss(step: int) -> Tensor:
        ramp = min(1.0, step / max(1, 0.3 * settings.steps))
        horizon = round(settings.first_horizon + (settings.horizon - settings.first_horizon) * ramp)
        slots.begin_finished(settings.own_rollouts * min(1.0, step / max(1, 0.05 * settings.steps)), horizon)
        return _loss(model, codec, appearance, slots, settings, rng, place)

    fit(
        run,
        model,
        settings,
        name="world",
        loss=loss,
        score=lambda averaged: score(averaged, codec, appearance, held, run.folder / "samples.png"),
        schedule=Schedule(
            peak=settings.learning_rate, steps=settings.steps, warmup_steps=settings.warmup_steps, decay=settings.decay
        ),
        rng=rng,
        weight_decay=settings.weight_decay,
        memory=slots,
    )


def _loss(
    model: FrameDynamics,
    codec: FrameCodec,
    appearance: RobotAppearance,
    slots: Slots,
    settings: WorldRecipe,
    rng: torch.Generator,
    place: torch.device,
) -> Tensor:
    """One step of every slot: predict the next latents, compare, and advance."""
    given = slots.inputs()
    batch = len(given.truth)
    level = torch.sigmoid(torch.randn(batch, generator=rng))
    level = torch.where(torch.rand(batch, generator=rng) < settings.pure_noise, torch.ones(batch), level)
    noise = float(model.config.noise_scale) * torch.randn(given.truth.shape, generator=rng)
    noisy = (1 - level)[:, None, None, None] * given.truth + level[:, None, None, None] * noise
    weight = loss_weight(
        slots.data, slots.episode, given.target, slots.first,
        gripper=settings.gripper_weight, objects=settings.object_weight, moved=settings.moved_weight,
    )  # fmt: skip
    lost = lost_objects(slots.data, slots.episode, slots.now, slots.first, given.seen[:, 0] - given.last_truth)
    weight = torch.where(slots.own[:, None, None, None], weight * (1 - lost), weight)
    with autocast(place):
        now = model.trajectory.features(_pictures(given.prompts[:, 0], place))[:, None]
        with torch.no_grad():  # those of earlier prompts come out of the state, as in use
            past = model.trajectory.features(_pictures(given.prompts[:, 1:].flatten(0, 1), place))
        features = torch.cat([now, past.unflatten(0, (batch, PROMPT_TAPS - 1))], dim=1)
        predicted = model(
            given.seen.to(place),
            slots.anchor.to(place),
            noisy.to(place),
            level.to(place),
            slots.stride.float().to(place),
            features,
            slots.displacement.to(place),
            given.bones.to(place),
            _posed(codec, appearance, slots.sight, slots.displacement, slots.data.views[slots.episode, given.target]),
        )
    truth, weight = given.truth.to(place), weight.to(place)
    loss = latent_loss(predicted.latent, truth, weight)
    moving = (weight - 1.0).clamp(min=0.0)  # around gripper and objects; what stands still needs no displacement
    loss = loss + settings.carried_loss * latent_loss(predicted.carried, truth, moving)
    way, counts = true_displacement(slots.data, slots.episode, given.target, slots.first)
    wrong = F.smooth_l1_loss(predicted.displacement, way.to(place), reduction="none", beta=0.5).sum(1, keepdim=True)
    counts = counts.to(place)
    loss = loss + settings.displacement_loss * (wrong * counts).sum() / counts.sum().clamp_min(1.0)
    slots.advance(predicted.latent, predicted.displacement, given.truth)
    return loss


def _pictures(prompts: UInt8[Tensor, "N H W 3"], place: torch.device) -> Float[Tensor, "N 3 H W"]:
    return to_pictures(prompts).contiguous(memory_format=torch.channels_last).to(place)


@torch.no_grad()
def _decoded(codec: FrameCodec, latents: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
    place = next(codec.parameters()).device
    with autocast(place):
        return codec.decode(latents.to(place).contiguous(memory_format=torch.channels_last)).float().clamp(-1, 1).cpu()


@torch.no_grad()
def _posed(
    codec: FrameCodec, appearance: RobotAppearance, sight: FirstSight, displacement: Tensor, views: Tensor
) -> Float[Tensor, "N C h w"]:
    """Latents of first pictures carried along a displacement, with their robots as in `views`."""
    place = next(codec.parameters()).device
    there = FirstSight(*(x.to(place) for x in sight))
    pictures = posed_picture(appearance, there, displacement.to(place), views.to(place))
    with autocast(place):
        return codec.encode(pictures.contiguous(memory_format=torch.channels_last)).float()


def latent_loss(
    predicted: Float[Tensor, "B C h w"], truth: Float[Tensor, "B C h w"], weight: Float[Tensor, "B 1 h w"]
) -> Tensor:
    """Weighted squared plus absolute error, normalised by the mean weight (Sec. 3.3)."""
    error = predicted - truth
    return ((error.square() + 0.3 * charbonnier(error)) * weight).mean() / weight.mean().clamp(min=1e-3)


@torch.no_grad()
def score(
    model: FrameDynamics,
    codec: FrameCodec,
    appearance: RobotAppearance,
    held: LatentEpisodes,
    picture: Path | None = None,
    *,
    steps: int = 24,
) -> dict[str, float]:
    """Roll out `steps` frames on held-out episodes, from shortly before an object moves where one does.

    Returns PSNR against the codec's pictures of the truth, and of the frozen first frame; writes a strip of frames.
    `moved_share` is how wrong the displacement is where moved objects are at last, as a share of how far they moved.
    """
    place = next(model.parameters()).device
    n, steps = len(held), min(steps, held.latents.shape[1] - 1)
    episode, start = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    for i, frame in reversed(contact_starts(held.objects_m).tolist()):
        start[i] = min(frame, held.latents.shape[1] - 1 - steps)
    lags = tuple(model.config.lags)
    anchor = held.latents[episode, start].float().to(place)
    history = anchor[:, None].repeat(1, max(lags), 1, 1, 1)
    displacement = torch.zeros_like(anchor[:, :2])
    features = []
    for t in range(steps + 1):
        pictures = to_pictures(torch.from_numpy(held.prompts(episode, start + t)))
        with autocast(place):
            features.append(model.trajectory.features(pictures.contiguous(memory_format=torch.channels_last).to(place)))
    bones = [held.bones(episode, start + t).to(place) for t in range(steps + 1)]
    sight = seen_first(appearance, _decoded(codec, anchor), held.views[episode, start])
    rows: list[Tensor] = []
    made, real = [], []
    for t in range(1, steps + 1):
        taps = torch.stack([features[t], features[t - 1], features[max(t - 2, 0)], features[0]], 1)
        noise = float(model.config.noise_scale) * torch.randn(anchor.shape, generator=seeded(t)).to(place)
        ones = torch.ones(n, device=place)
        with autocast(place):
            seen, views = history[:, [lag - 1 for lag in lags]], torch.stack([bones[t], bones[t - 1], bones[0]], 1)
            posed = _posed(codec, appearance, sight, displacement, held.views[episode, start + t])
            made_now = model(seen, anchor, noise, ones, ones, taps, displacement, views, posed)
        latent, displacement = made_now.latent, made_now.displacement
        history = torch.cat([latent[:, None], history[:, :-1]], 1)
        truth = held.latents[episode, start + t].float().to(place)
        with autocast(place):
            pair = [
                to_frames(codec.decode(z.contiguous(memory_format=torch.channels_last))).cpu() for z in (latent, truth)
            ]
        made.append(pair[0])
        real.append(pair[1])
        if t in (1, 4, 8, 12, 16, 20, 24):
            rows.append(torch.cat([torch.cat(list(x[:8]), 1) for x in (pair[1], pair[0])], 0))
    error = (torch.stack(made, 1).float() - torch.stack(real, 1).float()).div(255).square().mean((2, 3, 4))
    still = (torch.stack(real, 1).float() - real[0][:, None].float()).div(255).square().mean((2, 3, 4))
    psnr = -10 * torch.log10(error.clamp_min(1e-4))
    scores = {f"psnr_{t}": float(psnr[:, t - 1].mean()) for t in (1, 5, 10, 20, 24) if t <= steps}
    scores["psnr"] = float(psnr.mean())
    scores["psnr_frozen"] = float((-10 * torch.log10(still.clamp_min(1e-4))).mean())
    then, last = held.objects_px[episode, start], held.objects_px[episode, start + steps]
    far = last - then
    moved = far.norm(dim=-1) > MOVED_PX
    if moved.any():
        cells = (last / STRIDE_PX).nan_to_num(0.0).long()
        x, y = (cells[..., i].clamp(0, size - 1) for i, size in ((0, anchor.shape[3]), (1, anchor.shape[2])))
        told = displacement.cpu()[torch.arange(n)[:, None], :, y, x] * STRIDE_PX
        scores["moved_share"] = float((told + far)[moved].norm(dim=-1).sum() / far[moved].norm(dim=-1).sum())
    if picture is not None:
        from PIL import Image

        Image.fromarray(torch.cat(rows, 0).numpy()).save(picture)
    return scores


def _slot_settings(settings: WorldRecipe, model: FrameDynamics) -> SlotSettings:
    return SlotSettings(
        batch_size=settings.batch_size,
        lags=tuple(model.config.lags),
        horizon=settings.horizon,
        own_rollouts=settings.own_rollouts,
        contact_share=settings.contact_share,
        strides=tuple(settings.strides),
    )


def _slice(data: LatentEpisodes, part: slice) -> LatentEpisodes:
    tensors = {k: v[part] for k, v in vars(data).items() if isinstance(v, Tensor)}
    return LatentEpisodes(**tensors, frame_size_px=data.frame_size_px, robot=data.robot)
