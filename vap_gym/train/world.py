"""Train the dynamics: flow matching with x0-prediction on own rollouts, loss amplified at gripper and objects."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vap_gym.train.latents import LatentEpisodes, load_latents, loss_weight, lost_objects
from vap_gym.train.run import (
    Ema,
    Run,
    Schedule,
    autocast,
    initialised_with,
    load_recipe,
    mean,
    seeded,
    set_learning_rate,
)
from vap_gym.train.slots import Slots, SlotSettings
from vap_gym.world.articulated import background_plate, posed_picture
from vap_gym.world.codec import FrameCodec, charbonnier, to_frames, to_pictures
from vap_gym.world.dynamics import PROMPT_TAPS, SOURCES, FrameDynamics


@dataclass(frozen=True, kw_only=True)
class WorldRecipe:
    """Settings of a world model training; a TOML file with these keys."""

    data: list[str]
    codec: str
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
    carried_loss: float = 0.1  # share of the loss that the displaced anchor has by itself
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
    saved = run.load()
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
    with initialised_with(settings.seed):
        model = FrameDynamics(**settings.model).to(place, memory_format=torch.channels_last)
    if settings.init:
        _take_up(model, Path(settings.init))
    optimizer = torch.optim.AdamW(_groups(model, settings.weight_decay), lr=0.0, betas=(0.9, 0.98), fused=True)
    schedule = Schedule(
        peak=settings.learning_rate, steps=settings.steps, warmup_steps=settings.warmup_steps, decay=settings.decay
    )
    train = _slice(everything, slice(settings.held_out, None))
    held = _slice(everything, slice(0, settings.held_out))
    ema, rng, first = Ema(model, settings.ema_decay), seeded(settings.seed + 1), 0
    slots = Slots(train, _slot_settings(settings, model), rng, partial(_decoded, codec))
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        ema.shadow, first = {k: v.to(place) for k, v in saved["ema"].items()}, saved["step"]
        slots.restore(saved["slots"])
        rng.set_state(saved["rng"])
    losses: list[Tensor] = []
    since = time.monotonic()
    for step in range(first, settings.steps):
        ramp = min(1.0, step / max(1, 0.3 * settings.steps))
        horizon = round(settings.first_horizon + (settings.horizon - settings.first_horizon) * ramp)
        slots.begin_finished(settings.own_rollouts * min(1.0, step / max(1, 0.05 * settings.steps)), horizon)
        loss = _loss(model, codec, slots, settings, rng, place)
        set_learning_rate(optimizer, schedule(step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model, step)
        losses.append(loss.detach())
        done = step + 1
        if done % settings.log_every == 0:
            rate = settings.batch_size * len(losses) / (time.monotonic() - since)
            run.log(done, loss=mean(losses), learning_rate=schedule(step), samples_per_s=rate)
            print(f"world step {done}/{settings.steps} loss {mean(losses):.4f} {rate:.0f} samples/s", flush=True)
            losses, since = [], time.monotonic()
        if done % settings.save_every == 0 or done == settings.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.shadow}
            run.save(
                {**state, "slots": slots.state(), "rng": rng.get_state(), "step": done, "recipe": asdict(settings)}
            )
            averaged = FrameDynamics(**settings.model).to(place, memory_format=torch.channels_last).eval()
            ema.copy_into(averaged)
            scores = score(averaged, codec, held, run.folder / "samples.png")
            run.log(done, **scores)
            print(f"world step {done} " + " ".join(f"{k} {v:.2f}" for k, v in scores.items()), flush=True)
            run.draw_curves([("loss",), tuple(k for k in scores if k.startswith("psnr"))])
            averaged.save_pretrained(run.folder / "model")
            since = time.monotonic()


def _loss(
    model: FrameDynamics,
    codec: FrameCodec,
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
            _posed(codec, slots.plate, slots.first_picture, given.bones[:, 0], given.bones[:, -1]).to(place),
        )
    truth, weight = given.truth.to(place), weight.to(place)
    loss = latent_loss(predicted.latent, truth, weight)
    moving = (weight - 1.0).clamp(min=0.0)  # around gripper and objects; what stands still needs no displacement
    loss = loss + settings.carried_loss * latent_loss(predicted.carried, truth, moving)
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
def _posed(codec: FrameCodec, plate: Tensor, first: Tensor, now: Tensor, anchor: Tensor) -> Float[Tensor, "N C h w"]:
    """Latents of first pictures with their robots posed as `now`."""
    place = next(codec.parameters()).device
    pictures = posed_picture(plate.to(place), first.to(place), now.to(place), anchor.to(place))
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
    model: FrameDynamics, codec: FrameCodec, held: LatentEpisodes, picture: Path | None = None, *, steps: int = 24
) -> dict[str, float]:
    """Roll out `steps` frames on held-out episodes; PSNR against the codec's pictures of the truth, and a strip."""
    place = next(model.parameters()).device
    n, steps = len(held), min(steps, held.latents.shape[1] - 1)
    episode = torch.arange(n)
    lags = tuple(model.config.lags)
    anchor = held.latents[:, 0].float().to(place)
    history = anchor[:, None].repeat(1, max(lags), 1, 1, 1)
    displacement = torch.zeros_like(anchor[:, :2])
    features = []
    for t in range(steps + 1):
        pictures = to_pictures(torch.from_numpy(held.prompts(episode, torch.full((n,), t))))
        with autocast(place):
            features.append(model.trajectory.features(pictures.contiguous(memory_format=torch.channels_last).to(place)))
    first_picture = _decoded(codec, anchor)
    bones = [held.bones(episode, torch.full((n,), t)).to(place) for t in range(steps + 1)]
    plate = background_plate(first_picture, bones[0].cpu())
    rows: list[Tensor] = []
    made, real = [], []
    for t in range(1, steps + 1):
        taps = torch.stack([features[t], features[t - 1], features[max(t - 2, 0)], features[0]], 1)
        noise = float(model.config.noise_scale) * torch.randn(anchor.shape, generator=seeded(t)).to(place)
        ones = torch.ones(n, device=place)
        with autocast(place):
            seen, views = history[:, [lag - 1 for lag in lags]], torch.stack([bones[t], bones[t - 1], bones[0]], 1)
            posed = _posed(codec, plate, first_picture, bones[t], bones[0])
            made_now = model(seen, anchor, noise, ones, ones, taps, displacement, views, posed)
        latent, displacement = made_now.latent, made_now.displacement
        history = torch.cat([latent[:, None], history[:, :-1]], 1)
        truth = held.latents[:, t].float().to(place)
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
    if picture is not None:
        from PIL import Image

        Image.fromarray(torch.cat(rows, 0).numpy()).save(picture)
    return scores


def _take_up(model: FrameDynamics, folder: Path) -> None:
    """Start from the weights of a folder. The first release's lack the displacement: weights to do with it are zero."""
    from safetensors.torch import load_file

    given = {k: v.float() for k, v in load_file(folder / "diffusion_pytorch_model.safetensors").items()}
    channels, lags = int(model.config.latent_channels), len(model.config.lags)
    seen, known = given["conv_in.weight"], channels * (lags + 1)
    more = model.conv_in.in_channels - seen.shape[1]
    if more:
        unseen = seen.new_zeros(len(seen), more, *seen.shape[2:])
        given["conv_in.weight"] = torch.cat([seen[:, :known], unseen, seen[:, known:]], dim=1)
        for name in ("head.1.weight", "head.1.bias"):
            made, share, flow = given[name].split([channels, SOURCES - 1, 2])
            given[name] = torch.cat([made, share, torch.zeros_like(share[:1]), flow, torch.zeros_like(flow)])
    model.load_state_dict(given)


def _groups(model: FrameDynamics, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels only."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


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
