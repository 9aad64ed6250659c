"""Train what tells a model what is unfamiliar: how odd things look, and which starts are usual."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vap_gym.assets import weights_dir
from vap_gym.cards import load_env
from vap_gym.errors import VapError
from vap_gym.train.familiar_data import Looks, looks
from vap_gym.train.fit import fit
from vap_gym.train.run import Run, Schedule, autocast, initialised_with, load_recipe, seeded
from vap_gym.train.things_data import recoloured
from vap_gym.trust.calibration import FILE as CALIBRATION
from vap_gym.trust.familiar import FILE, Usual, finds, usual_of, write
from vap_gym.trust.oddness import CROP_PX, Oddness

HELD_OUT_EVERY = 10  # one start in so many is not trained on


@dataclass(frozen=True, kw_only=True)
class FamiliarRecipe:
    """Settings of the training; a TOML file with these keys."""

    envs: list[str]
    steps: int
    scenes: list[int]  # of each env, half of whose things are odd
    usual: int = 300  # likewise, as in training: how strange these are is the scale
    model: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 128
    learning_rate: float = 2e-3
    recolour: float = 0.8  # share of crops whose colours are changed: oddness is not to be known by colour
    dropout: float = 0.3  # of what the network has seen
    weight_decay: float = 0.05
    ema_decay: float = 0.99
    log_every: int = 50
    save_every: int = 500
    seed: int = 0


def main(
    recipe: Path,
    *,
    world_model: str = "tiny",
    out: Path = Path("runs/familiar"),
    write_into: bool = False,
    resume: bool = False,
    threads: int = 0,
) -> dict[str, Any]:
    """Train what tells a world model which starts are unlike those of its training.

    Args:
        recipe: a TOML file, or the name of a shipped recipe, e.g. tiny_familiar.
        world_model: name or folder of the model that finds the things.
        out: folder of the run; first pictures are kept in it.
        write_into: keep what was learned in the world model's folder, from where envs read it.
        resume: go on with a run that was stopped.
        threads: CPU threads; 0 leaves torch's choice.
    """
    settings = load_recipe(FamiliarRecipe, recipe)
    if threads:
        torch.set_num_threads(threads)
    if len(settings.scenes) != len(settings.envs):
        raise VapError(f"scenes must be a number for each of {len(settings.envs)} envs, got {settings.scenes}.")
    run = Run(out, resume=resume)
    folder = Path(world_model) if Path(world_model).is_dir() else weights_dir() / world_model
    found = finds(folder)["things"][:8]  # another finder sees other things
    shown, usual = [], []
    for env, count in zip(settings.envs, settings.scenes, strict=True):
        name = load_env(env).id
        kept = [out / f"{what}_{name}_{n}_{found}.npz" for what, n in (("shown", count), ("usual", settings.usual))]
        shown.append(looks(env, world_model, scenes=count, odd=True, cache=kept[0]))
        usual.append(looks(env, world_model, scenes=settings.usual, odd=False, cache=kept[1]))
    apart = [look.start % HELD_OUT_EVERY == 0 for look in shown]
    train, held_out = (_joined(shown, [a == kept for a in apart]) for kept in (False, True))
    with initialised_with(settings.seed):
        model = Oddness(**settings.model)
    model = model.to(memory_format=torch.channels_last)
    rng = seeded(settings.seed + 1)

    def loss(_: int) -> Tensor:
        which = torch.randint(len(train["odd"]), (settings.batch_size,), generator=rng)
        pictures, told = changed(train["pictures"][which], train["told"][which], rng, recolour=settings.recolour)
        features = model.tell[0].in_features
        kept = (torch.rand(len(which), features, generator=rng) >= settings.dropout) / (1.0 - settings.dropout)
        with autocast(model.device):
            logits = model(pictures.contiguous(memory_format=torch.channels_last), told, kept=kept)
        return F.binary_cross_entropy_with_logits(logits.float(), train["odd"][which].float())

    fit(
        run,
        model,
        settings,
        name="familiar",
        loss=loss,
        score=lambda averaged: score(averaged, held_out),
        schedule=Schedule(peak=settings.learning_rate, steps=settings.steps, warmup_steps=50, decay=0.8),
        rng=rng,
        weight_decay=settings.weight_decay,
    )
    trained = Oddness.from_pretrained(out / "model", torch_dtype=torch.float32).eval()
    robots = {load_env(env).robot: _usual(trained, look) for env, look in zip(settings.envs, usual, strict=True)}
    if write_into:
        write(folder, trained, robots)
        print(f"Wrote {folder / FILE}.")
        if not (folder / CALIBRATION).is_file():
            print(f"Envs tell it once trust is calibrated: vap-gym bench trust --world-model {world_model} "
                  "--write-calibration.")  # fmt: skip
    return run.told()


def changed(
    pictures: Float[Tensor, "N 6 24 24"], told: Float[Tensor, "N 8"], rng: torch.Generator, *, recolour: float
) -> tuple[Tensor, Tensor]:
    """Return crops as they might be as well: in other colours, mirrored, turned, stretched, moved a little."""
    n = len(pictures)

    def drawn(*size: int) -> Tensor:
        return torch.randn(n, *size, generator=rng)

    colours = recoloured(pictures[:, :3], recolour, rng)
    colours = colours * (1.0 + 0.25 * drawn(1, 1, 1)) + 0.15 * drawn(1, 1, 1) + 0.03 * drawn(3, CROP_PX, CROP_PX)
    side = torch.where(torch.rand(n, generator=rng) < 0.5, 1.0, -1.0)
    turn, wide, high = 0.3 * drawn(), (0.12 * drawn()).exp(), (0.12 * drawn()).exp()
    rows = [side * wide * turn.cos(), -high * turn.sin(), side * wide * turn.sin(), high * turn.cos()]
    ways = torch.cat([torch.stack(rows, -1).view(n, 2, 2), 0.08 * drawn(2, 1)], -1)
    pictures = torch.cat([colours.clamp(-1.0, 1.0), pictures[:, 3:]], 1)
    grid = F.affine_grid(ways, list(pictures.shape), align_corners=False)
    told = torch.cat([told[:, :-1], told[:, -1:] * side[:, None]], -1)  # in a mirror a thing is turned the other way
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False), told


@torch.no_grad()
def score(model: Oddness, things: dict[str, Tensor]) -> dict[str, float]:
    """On things of starts that were not trained on: cross-entropy, and how likely an odd thing looks odder than a known
    one (area under the ROC curve)."""
    logits, odd = model(things["pictures"], things["told"]), things["odd"]
    told = F.binary_cross_entropy_with_logits(logits, odd.float())
    above = (logits[odd][:, None] > logits[~odd]).float().mean() if odd.any() and (~odd).any() else torch.tensor(0.5)
    return {"cross_entropy": float(told), "area": float(above)}


def _joined(of: list[Looks], which: list[Tensor]) -> dict[str, Tensor]:
    return {
        name: torch.cat([getattr(look, name)[mine] for look, mine in zip(of, which, strict=True)])
        for name in ("pictures", "told", "odd")
    }


@torch.no_grad()
def _usual(model: Oddness, look: Looks) -> Usual:
    scores = model(look.pictures, look.told).double().numpy() if len(look) else np.zeros(0)
    return usual_of(np.concatenate([look.cameras, look.later]), look.of_starts(scores))
