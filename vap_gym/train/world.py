"""Train the dynamics: flow matching with x0-prediction on own rollouts, loss amplified at gripper and objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vap_gym.errors import CardError, CheckpointError
from vap_gym.train.contacts import contact_starts
from vap_gym.train.fit import fit
from vap_gym.train.latents import LatentEpisodes, load_latents, loss_weight
from vap_gym.train.run import Run, Schedule, autocast, initialised_with, load_recipe, seeded
from vap_gym.train.slots import Slots, SlotSettings
from vap_gym.world.appearance import FirstSight, RobotAppearance, first_sight
from vap_gym.world.codec import FrameCodec, charbonnier, codec_loss, to_frames, to_pictures, upsample_weight
from vap_gym.world.dynamics import LAGS, PROMPT_TAPS, FrameDynamics, composed
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
    robots: list[str] = field(default_factory=lambda: ["panda_robotiq"])
    shares: list[int] = field(default_factory=lambda: [32])  # of the batch, for each robot
    view: str = "front"
    cache: str = ""  # a folder; empty: the run's own
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
    pixel_weight: float = 1.0  # of the composed picture's error, where there is a gate
    pixel_share: float = 0.5  # of the batch whose pictures are composed
    ema_decay: float = 0.999
    held_out: int = 24
    log_every: int = 50
    save_every: int = 500
    seed: int = 0
    init: str = ""  # folder of dynamics to start from
    episodes: int = 0  # the first so many of the data; 0: all
    strides: list[float] = field(default_factory=lambda: [0.75, 0.15, 0.10])

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.robots):
            raise CardError(
                f"shares must have one number for each of robots, got {len(self.shares)} for {len(self.robots)} "
                f"({', '.join(self.robots)}). Give as many, e.g. shares = {[8] * len(self.robots)}."
            )

    @property
    def batch_size(self) -> int:
        """Samples of a step."""
        return sum(self.shares)


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
    def posed(
        self, sight: FirstSight, place_m: Tensor, turn: Tensor, views: Tensor
    ) -> tuple[Float[Tensor, "N 3 H W"], Float[Tensor, "N C h w"], Float[Tensor, "N 4 h w"]]:
        """The posed picture, its latents, and what its cells are made of."""
        there = FirstSight(*(x.to(self.place) for x in sight))
        given = (x.to(self.place) for x in (place_m, turn, views))
        posed = posed_picture(self.appearance, there, *given, base=int(self.things.config.base))
        with autocast(self.place):
            latents = self.codec.encode(posed.picture.contiguous(memory_format=torch.channels_last)).float()
        return posed.picture, latents, cell_means(posed.source, (latents.shape[2], latents.shape[3]))


@dataclass(frozen=True)
class Group:
    """What of a batch shows one robot: ongoing rollouts, and who looks at them."""

    eyes: Eyes
    slots: Slots


class Groups:
    """All of a batch, robot after robot; remembered from step to step."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = tuple(groups)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {str(i): group.slots.state() for i, group in enumerate(self.groups)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a saved state. Raises CheckpointError where it is of another number of robots, or does not fit."""
        if state.keys() != {str(i) for i in range(len(self.groups))}:
            raise CheckpointError(
                f"A saved state must hold the rollouts of {len(self.groups)} robots, one after the other, but holds "
                f"{', '.join(sorted(state)[:4]) or 'none'}. Resume with the recipe that it was saved by, or begin "
                "another run with its `model` folder as init."
            )
        for i, group in enumerate(self.groups):
            group.slots.restore(state[str(i)])


def main(
    recipe: Path, *, out: Path = Path("runs/world"), resume: bool = False, device: str = "cpu", threads: int = 0
) -> dict[str, Any]:
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
    cache = Path(settings.cache) if settings.cache else run.folder
    looks = RobotAppearance.from_pretrained(settings.appearance, torch_dtype=torch.float32)
    finder = ThingFinder.from_pretrained(settings.things, torch_dtype=torch.float32)
    eyes = [Eyes(codec, looks.of(robot), finder, place) for robot in settings.robots]
    data = [
        load_latents(
            [Path(p) for p in settings.data],
            codec,
            robot=robot,
            view=settings.view,
            episodes=settings.episodes,
            cache=cache / f"latents_{robot}.pt",
        )
        for robot in settings.robots
    ]
    with initialised_with(settings.seed):
        model = FrameDynamics(**settings.model).to(place, memory_format=torch.channels_last)
    if settings.init:
        given = FrameDynamics.from_pretrained(settings.init, torch_dtype=torch.float32)
        model.load_state_dict(given.state_dict())
    rng = seeded(settings.seed + 1)
    held = [one.pick(slice(0, settings.held_out)) for one in data]
    groups = Groups(
        [
            Group(
                sees, Slots(one.pick(slice(settings.held_out, None)), _slot_settings(settings, share), rng, sees.look)
            )
            for sees, one, share in zip(eyes, data, settings.shares, strict=True)
        ]
    )

    def loss(step: int) -> Tensor:
        ramp = min(1.0, step / max(1, 0.3 * settings.steps))
        horizon = round(settings.first_horizon + (settings.horizon - settings.first_horizon) * ramp)
        for group in groups.groups:
            group.slots.begin_finished(settings.own_rollouts * min(1.0, step / max(1, 0.05 * settings.steps)), horizon)
        return _loss(model, groups.groups, settings, rng)

    def scored(averaged: FrameDynamics) -> dict[str, float]:
        found: dict[str, float] = {}
        for sees, one in zip(eyes, held, strict=True):
            mine = score(averaged, sees, one, run.folder / f"samples_{one.robot}.png")
            found |= mine if len(eyes) == 1 else {f"psnr {one.robot}{k[4:]}": v for k, v in mine.items()}
        return found

    return fit(
        run,
        model,
        settings,
        name="world",
        loss=loss,
        score=scored,
        schedule=Schedule(
            peak=settings.learning_rate, steps=settings.steps, warmup_steps=settings.warmup_steps, decay=settings.decay
        ),
        rng=rng,
        weight_decay=settings.weight_decay,
        memory=groups,
    )


def _loss(model: FrameDynamics, groups: Sequence[Group], settings: WorldRecipe, rng: torch.Generator) -> Tensor:
    """One step of every slot: predict the next latents, compare, and advance."""
    place = groups[0].eyes.place
    given = [group.slots.inputs() for group in groups]
    truth = torch.cat([one.truth for one in given])
    batch = len(truth)
    level = torch.sigmoid(torch.randn(batch, generator=rng))
    level = torch.where(torch.rand(batch, generator=rng) < settings.pure_noise, torch.ones(batch), level)
    noise = float(model.config.noise_scale) * torch.randn(truth.shape, generator=rng)
    noisy = (1 - level)[:, None, None, None] * truth + level[:, None, None, None] * noise
    weight = torch.cat([
        loss_weight(
            group.slots.data, group.slots.episode, one.target, group.slots.first,
            gripper=settings.gripper_weight, objects=settings.object_weight, moved=settings.moved_weight,
        )
        for group, one in zip(groups, given, strict=True)
    ])  # fmt: skip
    posed, latents, source = (
        torch.cat(parts)
        for parts in zip(
            *(g.eyes.posed(g.slots.sight, x.place_m, x.turn, x.views) for g, x in zip(groups, given, strict=True)),
            strict=True,
        )
    )
    prompts = torch.cat([one.prompts for one in given])
    with autocast(place):
        now = model.trajectory.features(_pictures(prompts[:, 0], place))[:, None]
        with torch.no_grad():  # those of earlier prompts come out of the state, as in use
            past = model.trajectory.features(_pictures(prompts[:, 1:].flatten(0, 1), place))
        features = torch.cat([now, past.unflatten(0, (batch, PROMPT_TAPS - 1))], dim=1)
        predicted, gate = model(
            torch.cat([one.seen for one in given]).to(place),
            torch.cat([group.slots.anchor for group in groups]).to(place),
            noisy.to(place),
            level.to(place),
            torch.cat([group.slots.stride for group in groups]).float().to(place),
            features,
            latents,
            source,
        )
    loss = latent_loss(predicted, truth.to(place), weight.to(place))
    if gate is not None:
        pick = torch.randperm(batch, generator=rng)[: round(settings.pixel_share * batch)]
        frames = torch.cat([g.slots.data.frames[g.slots.episode, x.target] for g, x in zip(groups, given, strict=True)])
        with autocast(place):
            decoded = groups[0].eyes.codec.decode(predicted[pick].contiguous(memory_format=torch.channels_last))
        picture, true = composed(decoded, posed[pick], gate[pick]), to_pictures(frames[pick]).to(place)
        there = upsample_weight(weight[pick], (true.shape[2], true.shape[3])).to(place)
        loss = loss + settings.pixel_weight * codec_loss(picture, true, there)
    parts = predicted.split([len(one.truth) for one in given])
    for group, part, one in zip(groups, parts, given, strict=True):
        group.slots.advance(part, one.truth)
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

    Returns PSNR against the true frames; beside it that of the posed pictures, and of the frozen first frame. Writes a
    strip of frames.
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
        whole, posed, source = eyes.posed(slots.sight, given.place_m, given.turn, given.views)
        with autocast(place):
            features = model.trajectory.features(_pictures(given.prompts.flatten(0, 1), place))
            features = features.unflatten(0, (n, PROMPT_TAPS))
            seen, anchor = given.seen.to(place), slots.anchor.to(place)
            latent, gate = model(seen, anchor, noise, ones, ones, features, posed, source)
            decoded = eyes.codec.decode(latent.contiguous(memory_format=torch.channels_last))
        imagined, carried = to_frames(composed(decoded, whole, gate)).cpu(), to_frames(whole).cpu()
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


def _slot_settings(settings: WorldRecipe, share: int) -> SlotSettings:
    return SlotSettings(
        batch_size=share,
        lags=tuple(settings.model.get("lags", LAGS)),
        horizon=settings.horizon,
        own_rollouts=settings.own_rollouts,
        contact_share=settings.contact_share,
        strides=tuple(settings.strides),
    )
