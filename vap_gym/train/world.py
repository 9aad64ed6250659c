"""Train the dynamics: flow matching with x0-prediction on own rollouts, loss amplified at gripper and objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vap_gym.train.contacts import contact_starts
from vap_gym.train.fit import fit
from vap_gym.train.latents import LatentEpisodes, load_latents, loss_weight
from vap_gym.train.run import Run, Schedule, autocast, initialised_with, load_recipe, seeded
from vap_gym.train.slots import Slots, SlotSettings
from vap_gym.world.appearance import FirstSight, RobotAppearance, first_sight
from vap_gym.world.codec import FrameCodec, charbonnier, to_frames, to_pictures
from vap_gym.world.dynamics import PROMPT_TAPS, FrameDynamics
from vap_gym.world.posing import cell_means, posed_picture
from vap_gym.world.things import ThingFinder


@dataclass(frozen=True, kw_only=True)
class WorldRecipe:
    """Settings of a world model training; a TOML file with these keys."""

    data: list[str]
    codec: str
    appearance: str
    things: str
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
    ema_decay: float = 0.999
    held_out: int = 24
    log_every: int = 50
    save_every: int = 500
    seed: int = 0
    init: str = ""  # folder of dynamics to start from
    episodes: int = 0  # the first so many of the data; 0: all
    strides: list[float] = field(default_factory=lambda: [0.75, 0.15, 0.10])


class Eyes:
    """What the dynamics are given of a picture, by parts that are not trained here."""

    def __init__(
        self, codec: FrameCodec, appearance: RobotAppearance, things: ThingFinder, place: torch.device
    ) -> None:
        form = {"memory_format": torch.channels_last}
        self.codec, self.appearance, self.things = (
            part.eval().requires_grad_(False).to(place, **form) for part in (codec, appearance, things)
        )
        self.place = place

    def look(self, pictures: Float[Tensor, "N 3 H W"], views: Float[Tensor, "N L 3 4"]) -> FirstSight:
        """The first sight of pictures, on the CPU."""
        there = (x.to(self.place) for x in (pictures, views))
        return FirstSight(*(x.cpu() for x in first_sight(self.appearance, self.things, *there)))

    @torch.no_grad()
    def posed(self, sight: FirstSight, place_m: Tensor, turn: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of the posed picture, and what its cells are made of."""
        there = FirstSight(*(x.to(self.place) for x in sight))
        given = (x.to(self.place) for x in (place_m, turn, views))
        posed = posed_picture(self.appearance, there, *given, base=int(self.things.config.base))
        with autocast(self.place):
            latents = self.codec.encode(posed.picture.contiguous(memory_format=torch.channels_last)).float()
        return latents, cell_means(posed.source, (latents.shape[2], latents.shape[3]))


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
    looks = RobotAppearance.from_pretrained(settings.appearance, torch_dtype=torch.float32)
    eyes = Eyes(codec, looks, ThingFinder.from_pretrained(settings.things, torch_dtype=torch.float32), place)
    with initialised_with(settings.seed):
        model = FrameDynamics(**settings.model).to(place, memory_format=torch.channels_last)
    if settings.init:
        given = FrameDynamics.from_pretrained(settings.init, torch_dtype=torch.float32)
        model.load_state_dict(given.state_dict())
    train = _slice(everything, slice(settings.held_out, None))
    held = _slice(everything, slice(0, settings.held_out))
    rng = seeded(settings.seed + 1)
    slots = Slots(train, _slot_settings(settings, model), rng, eyes.look)

    def loss(step: int) -> Tensor:
        ramp = min(1.0, step / max(1, 0.3 * settings.steps))
        horizon = round(settings.first_horizon + (settings.horizon - settings.first_horizon) * ramp)
        slots.begin_finished(settings.own_rollouts * min(1.0, step / max(1, 0.05 * settings.steps)), horizon)
        return _loss(model, eyes, slots, settings, rng)

    fit(
        run,
        model,
        settings,
        name="world",
        loss=loss,
        score=lambda averaged: score(averaged, eyes, held, run.folder / "samples.png"),
        schedule=Schedule(
            peak=settings.learning_rate, steps=settings.steps, warmup_steps=settings.warmup_steps, decay=settings.decay
        ),
        rng=rng,
        weight_decay=settings.weight_decay,
        memory=slots,
    )


def _loss(model: FrameDynamics, eyes: Eyes, slots: Slots, settings: WorldRecipe, rng: torch.Generator) -> Tensor:
    """One step of every slot: predict the next latents, compare, and advance."""
    given, place = slots.inputs(), eyes.place
    batch = len(given.truth)
    level = torch.sigmoid(torch.randn(batch, generator=rng))
    level = torch.where(torch.rand(batch, generator=rng) < settings.pure_noise, torch.ones(batch), level)
    noise = float(model.config.noise_scale) * torch.randn(given.truth.shape, generator=rng)
    noisy = (1 - level)[:, None, None, None] * given.truth + level[:, None, None, None] * noise
    weight = loss_weight(
        slots.data, slots.episode, given.target, slots.first,
        gripper=settings.gripper_weight, objects=settings.object_weight, moved=settings.moved_weight,
    )  # fmt: skip
    posed, source = eyes.posed(slots.sight, given.place_m, given.turn, given.views)
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
            posed,
            source,
        )
    loss = latent_loss(predicted, given.truth.to(place), weight.to(place))
    slots.advance(predicted, given.truth)
    return loss


def _pictures(prompts: UInt8[Tensor, "N H W 3"], place: torch.device) -> Float[Tensor, "N 3 H W"]:
    return to_pictures(prompts).contiguous(memory_format=torch.channels_last).to(place)


def latent_loss(
    predicted: Float[Tensor, "B C h w"], truth: Float[Tensor, "B C h w"], weight: Float[Tensor, "B 1 h w"]
) -> Tensor:
    """Weighted squared plus absolute error, normalised by the mean weight (Sec. 3.3)."""
    error = predicted - truth
    return ((error.square() + 0.3 * charbonnier(error)) * weight).mean() / weight.mean().clamp(min=1e-3)


@torch.no_grad()
def score(
    model: FrameDynamics, eyes: Eyes, held: LatentEpisodes, picture: Path | None = None, *, steps: int = 24
) -> dict[str, float]:
    """Roll out `steps` frames on held-out episodes, from shortly before an object moves where one does; things are
    posed where they truly are.

    Returns PSNR against the true frames; beside it that of the posed pictures as the codec shows them, and of the
    frozen first frame. Writes a strip of frames.
    """
    place, n, steps = eyes.place, len(held), min(steps, held.latents.shape[1] - 1)
    settings = SlotSettings(batch_size=n, lags=tuple(model.config.lags), horizon=steps, strides=(1.0,))
    slots = Slots(held, settings, seeded(0), eyes.look)
    first = torch.zeros(n, dtype=torch.int64)
    for i, frame in reversed(contact_starts(held.objects_m).tolist()):
        first[i] = min(frame, held.latents.shape[1] - 1 - steps)
    slots.begin(torch.arange(n), torch.arange(n), first, torch.ones_like(first), torch.full_like(first, steps))
    slots.own[:] = True
    shown: dict[str, list[Tensor]] = {"imagined": [], "posed": [], "frozen": []}
    rows: list[Tensor] = []
    for t in range(1, steps + 1):
        given = slots.inputs()
        noise = float(model.config.noise_scale) * torch.randn(slots.anchor.shape, generator=seeded(t)).to(place)
        ones = torch.ones(n, device=place)
        posed, source = eyes.posed(slots.sight, given.place_m, given.turn, given.views)
        with autocast(place):
            features = model.trajectory.features(_pictures(given.prompts.flatten(0, 1), place))
            features = features.unflatten(0, (n, PROMPT_TAPS))
            latent = model(given.seen.to(place), slots.anchor.to(place), noise, ones, ones, features, posed, source)
            imagined, carried = (
                to_frames(eyes.codec.decode(z.contiguous(memory_format=torch.channels_last))).cpu()
                for z in (latent, posed)
            )
        truth = held.frames[slots.episode, given.target]
        frames = {"imagined": imagined, "posed": carried, "frozen": held.frames[slots.episode, slots.first]}
        for name, made in frames.items():
            error = (made.float() - truth.float()).div(255).square().mean((1, 2, 3))
            shown[name].append(-10 * torch.log10(error.clamp_min(1e-4)))
        if t in (1, 4, 8, 12, 16, 20, 24):
            rows.append(torch.cat([torch.cat(list(x[:8]), 1) for x in (truth, imagined)], 0))
        slots.advance(latent, given.truth)
    psnr = {name: torch.stack(values, 1) for name, values in shown.items()}
    scores = {f"psnr_{t}": float(psnr["imagined"][:, t - 1].mean()) for t in (1, 5, 10, 20, 24) if t <= steps}
    scores["psnr"] = float(psnr["imagined"].mean())
    scores |= {f"psnr_{name}": float(psnr[name].mean()) for name in ("posed", "frozen")}
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
