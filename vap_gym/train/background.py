"""Train what is behind a robot: frames in which it has moved away tell; masks of other frames hide more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from vap_gym.data import EpisodeSet
from vap_gym.errors import VapError
from vap_gym.sim.scene import LABELS
from vap_gym.train.fit import fit
from vap_gym.train.run import Run, Schedule, autocast, load_recipe, seeded
from vap_gym.train.sets import check_set
from vap_gym.world.appearance import RobotAppearance
from vap_gym.world.background import BackgroundFiller
from vap_gym.world.codec import charbonnier, to_frames, to_pictures
from vap_gym.world.filling import continued, filled_in

MIXED_PX = 1  # so near an edge pixels show both sides
STILL = 1e-5  # of a camera's matrices
MIRRORED = 0.5  # of the batches


@dataclass(frozen=True, kw_only=True)
class BackgroundRecipe:
    """Settings of the training of what is behind a robot; a TOML file with these keys."""

    data: list[str]
    appearance: str  # folder of the appearance that is given it
    steps: int
    init: str = ""  # folder of an appearance whose network is trained on
    view: str = "front"
    every: int = 12  # frames from one that is taken to the next
    batch_size: int = 16
    learning_rate: float = 2e-3
    borrowed: float = 0.7  # of the pictures that also hide what the robot of another hides
    ema_decay: float = 0.998
    held_out: int = 200
    log_every: int = 50
    save_every: int = 500
    seed: int = 0
    episodes: int = 0  # the first so many of each set; 0: all


@dataclass(frozen=True, kw_only=True)
class Backgrounds:
    """N frames; what is in front in them; and, of each one's episode, the background and where that is known."""

    frames: UInt8[Tensor, "N H W 3"]
    hidden: Bool[Tensor, "N H W"]
    plate: UInt8[Tensor, "E H W 3"]
    known: Bool[Tensor, "E H W"]
    episode: Int64[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.frames)


def main(
    recipe: Path, *, out: Path = Path("runs/background"), resume: bool = False, device: str = "cpu", threads: int = 0
) -> dict[str, Any]:
    """Train what is behind a robot and its things; the run's model is the appearance with it.

    Args:
        recipe: a TOML file, or the name of a shipped recipe, e.g. tiny_background.
        out: folder of the run.
        resume: go on with a run that was stopped.
        device: cpu or cuda.
        threads: CPU threads; 0 leaves torch's choice.
    """
    settings = load_recipe(BackgroundRecipe, recipe)
    if threads:
        torch.set_num_threads(threads)
    run, place = Run(out, resume=resume), torch.device(device)
    data = load_backgrounds(
        [Path(p) for p in settings.data], every=settings.every, view=settings.view, episodes=settings.episodes
    )
    given = RobotAppearance.from_pretrained(settings.appearance, torch_dtype=torch.float32)
    model = given.with_filler(settings.seed).to(place, memory_format=torch.channels_last)
    filler = model.filler
    assert filler is not None
    if settings.init:
        begin_from(filler, RobotAppearance.from_pretrained(settings.init, torch_dtype=torch.float32))
    held = torch.linspace(0, len(data) - 1, min(settings.held_out, len(data))).long()
    apart = torch.isin(data.episode, data.episode[held])  # no frame of an episode that is scored is trained on
    train = torch.arange(len(data))[~apart]
    rng = seeded(settings.seed + 1)

    def loss(_: int) -> Tensor:
        pick = train[torch.randint(len(train), (settings.batch_size,), generator=rng)]
        other = train[torch.randint(len(train), (settings.batch_size,), generator=rng)]
        borrows = torch.rand(settings.batch_size, generator=rng) < settings.borrowed
        flip = bool(torch.rand((), generator=rng) < MIRRORED)
        pictures, covered, truth, known = (
            (x.flip(-1) if flip else x).to(place) for x in drawn(data, pick, other, borrows)
        )
        with autocast(place):
            made = filler(pictures, covered)
        weight = covered * known
        error = made.float() - truth
        off: Tensor = ((charbonnier(error) + 2.0 * error.square()) * weight).sum() / (3.0 * weight.sum().clamp_min(1.0))
        return off

    return fit(
        run,
        model,
        settings,
        name="background",
        loss=loss,
        score=lambda averaged: score(averaged, data, held, run.folder / "samples.png"),
        schedule=Schedule(peak=settings.learning_rate, steps=settings.steps),
        rng=rng,
        weight_decay=1e-3,
    )


def begin_from(filler: BackgroundFiller, given: RobotAppearance) -> None:
    """Take another appearance's network of what is behind."""
    if given.filler is None:
        raise VapError(
            "init must name an appearance that fills in what is behind, got one that does not (fills=False)."
        )
    filler.load_state_dict(given.filler.state_dict())


def load_backgrounds(folders: list[Path], *, every: int, view: str, episodes: int = 0) -> Backgrounds:
    """Every `every`-th frame, and the mean of what each episode shows of its background while its camera rests."""
    from tqdm import tqdm

    parts: dict[str, list[Tensor]] = {"frames": [], "hidden": [], "plate": [], "known": [], "episode": []}
    for folder in folders:
        source = EpisodeSet(folder)
        check_set(source, view=view, labels=True)
        count = min(episodes or len(source), len(source))
        for i in tqdm(range(count), desc=f"reading {folder}", unit="episode", mininterval=5):
            one = source.read(i, views=[view], labels=[view])
            frames, labels = (torch.from_numpy(x[view]) for x in (one.frames, one.labels))
            hidden = widened(in_front(labels), MIXED_PX)
            pick, looked = torch.arange(i % min(every, len(frames)), len(frames), every), torch.arange(len(frames))
            if not _rests(one.columns):
                pick = looked = pick[:1]  # no other frame shows what is behind in this one
            seen = (~hidden[looked])[..., None].float()
            times = seen.sum(0)
            mean = (frames[looked].float() * seen).sum(0) / times.clamp_min(1.0)
            parts["episode"].append(torch.full((len(pick),), len(parts["plate"])))
            parts["plate"].append(mean.round().to(torch.uint8)[None])
            parts["known"].append((times[..., 0] > 0)[None])
            parts["frames"].append(frames[pick])
            parts["hidden"].append(hidden[pick])
    return Backgrounds(**{name: torch.cat(values) for name, values in parts.items()})


def in_front(labels: UInt8[Tensor, "N H W"]) -> Bool[Tensor, "N H W"]:
    """Which pixels show a robot or a thing."""
    behind = torch.tensor([LABELS.index(name) for name in ("background", "goal", "drawer")])
    return ~torch.isin(labels, behind.to(labels.dtype))


def widened(mask: Bool[Tensor, "N H W"], by_px: int) -> Bool[Tensor, "N H W"]:
    """Return a mask that reaches so many pixels further."""
    return F.max_pool2d(mask[:, None].float(), 2 * by_px + 1, 1, by_px)[:, 0] > 0.5


def drawn(
    data: Backgrounds, pick: Int64[Tensor, " B"], other: Int64[Tensor, " B"], borrows: Bool[Tensor, " B"]
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 1 H W"], Float[Tensor, "B 3 H W"], Float[Tensor, "B 1 H W"]]:
    """Return pictures, what is covered in them, their true background, and where it is known."""
    hidden = data.hidden[pick]
    covered = hidden | (data.hidden[other] & borrows[:, None, None])
    one = data.episode[pick]
    mine = (~hidden)[..., None]
    truth = torch.where(mine, data.frames[pick], data.plate[one])
    known = ~hidden | data.known[one]
    return to_pictures(data.frames[pick]), covered[:, None].float(), to_pictures(truth), known[:, None].float()


@torch.no_grad()
def score(
    model: RobotAppearance, data: Backgrounds, pick: Int64[Tensor, " n"], picture: Path | None = None
) -> dict[str, float]:
    """PSNR in dB of what is hidden where another frame shows it: as filled in by the network, by averages of what is
    around, and by lines that go on."""
    place, filler = next(model.parameters()).device, model.filler
    assert filler is not None
    error, total = {"learned": 0.0, "averaged": 0.0, "continued": 0.0}, 0.0
    shown: list[Tensor] = []
    for part in pick.split(32):
        pictures, covered, truth, known = (
            x.to(place) for x in drawn(data, part, part, torch.zeros(len(part), dtype=torch.bool))
        )
        with autocast(place):
            made = {"learned": filler(pictures, covered), "averaged": filled_in(pictures, 1.0 - covered)}
        made["continued"] = continued(pictures, 1.0 - covered)
        weight = covered * known
        total += float(3.0 * weight.sum())
        for name, value in made.items():
            error[name] += float(((value.float() - truth).div(2.0).square() * weight).sum())
        rows = (pictures, *made.values(), truth)
        shown.append(torch.cat([torch.cat(list(to_frames(row[:4])), 1) for row in rows], 0))
    if picture is not None and shown:
        from PIL import Image

        Image.fromarray(torch.cat(shown[:4], 1).cpu().numpy()).save(picture)
    return {f"psnr_{name}": float(-10.0 * np.log10(value / max(total, 1.0) + 1e-9)) for name, value in error.items()}


def _rests(columns: Mapping[str, np.ndarray]) -> bool:
    """Whether an episode's camera stays where it is."""
    return all(float(np.ptp(columns[name], axis=0).max()) < STILL for name in ("camera.K", "camera.T_world_camera"))
