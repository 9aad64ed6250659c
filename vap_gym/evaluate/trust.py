"""How far trust can be trusted: signals calibrated on training seeds, checked on held-out episodes of each env."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from vap_gym.assets import weights_dir
from vap_gym.cards import load_env, load_robot
from vap_gym.errors import VapError
from vap_gym.evaluate import report as reports
from vap_gym.evaluate.clips import Clips, played
from vap_gym.evaluate.fidelity import load_bench
from vap_gym.evaluate.fidelity_figures import adherence_by_step, psnr_by_step
from vap_gym.evaluate.fidelity_rollout import Subject, begun, look, subject
from vap_gym.evaluate.heldout import COUNTS, ENVS, MAIN_KINDS, choose, load_heldout, short_name, write_list
from vap_gym.evaluate.trust_alone import ADHERENCE, SPREAD, singly
from vap_gym.evaluate.trust_page import page, plot
from vap_gym.evaluate.trust_scores import Checked, check
from vap_gym.trust import SIGNALS, Calibration, SampleSpread, TrustSignals
from vap_gym.trust.calibration import FILE, OFF_M, write

FIRST_SEED = 900_000  # of the episodes that are calibrated on: below the held-out ones, above those of recipes
SAME_M = 0.05  # an object is taken for the thing that was found so near it, and otherwise for one that was not found


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What was signalled and what was true of N episodes' S steps."""

    signals: Float[np.ndarray, "N S F"]
    spread_grey: Float[np.ndarray, "N S"]  # over samples; NaN where none were asked for
    adherence_px: Float[np.ndarray, "N S"]  # as the judge sees it; NaN where the gripper is not in the picture
    psnr_db: Float[np.ndarray, "N S"]
    error_m: Float[np.ndarray, "N S"]  # of the object that is furthest off

    @property
    def off(self) -> Bool[np.ndarray, "N S"]:
        """Where an object is not where it is shown."""
        return self.error_m > OFF_M

    @property
    def single(self) -> dict[str, Float[np.ndarray, "N S"]]:
        """The signals that are looked at alone; more of either is worse."""
        return {ADHERENCE: self.adherence_px, SPREAD: self.spread_grey}


def main(
    *,
    world_model: str = "tiny",
    env: tuple[str, ...] = (),
    episodes: int = 96,
    samples: int = 4,
    cache: Path = Path("runs"),
    out: Path = Path("docs/trust.md"),
    limit: int = 0,
    batch: int = 32,
    workers: int = 1,
    write_calibration: bool = False,
) -> dict[str, Any]:
    """Calibrate trust on training seeds and check it on held-out episodes; print and write the page.

    Args:
        world_model: name or folder of the world model.
        env: ids or paths of env cards; none: the four that are shipped.
        episodes: of each env, to calibrate on.
        samples: how many roll-outs with other noise the spread is measured over; 0: none. 4 take almost four times as
            long as none, a fifth of it where the spread alone is calibrated.
        cache: folder in which the oracle's clips are kept between runs.
        out: the markdown page; its picture goes into the folder img beside it.
        limit: check on about so many held-out episodes only (0: all).
        batch: imaginations at a time.
        workers: processes, each measuring one env at a time on its share of the cores.
        write_calibration: keep it in the world model's folder, from where envs read it.
    """
    names = env or ENVS
    told = _Told(world_model, episodes, samples, cache, limit, batch, max(1, torch.get_num_threads() // workers))
    measured = dict(zip(names, reports.each(partial(_measured, told), names, workers=workers), strict=True))
    calibrations = {load_env(name).robot: one for name, (one, _) in measured.items()}
    checked = {load_env(name).id: one for name, (_, one) in measured.items()}
    picture = out.parent / "img" / f"{out.stem}.png"
    text = page(checked, world_model, episodes, samples, picture.name)
    print(text)
    if limit == 0 and not env:  # a part is no page
        plot(checked, picture)
        reports.write(out, text)
    if write_calibration:
        folder = Path(world_model) if Path(world_model).is_dir() else weights_dir() / world_model
        write(folder, calibrations)
        print(f"Wrote {folder / FILE}.")
    return {name: reports.plain(one) for name, one in checked.items()}


class _Told(NamedTuple):
    """What every env is measured with."""

    world_model: str
    episodes: int
    samples: int
    cache: Path
    limit: int
    batch: int
    threads: int


def _measured(told: _Told, env: str) -> tuple[Calibration, Checked]:
    """One env's calibration, and what it is worth on the held-out episodes."""
    torch.set_num_threads(told.threads)
    measured = subject(env, told.world_model)
    fitted = watch(
        measured, training_clips(env, told.episodes, cache=told.cache), batch=told.batch, samples=told.samples
    )
    flat = fitted.signals.reshape(-1, fitted.signals.shape[-1])
    calibration = Calibration.fit(flat, fitted.psnr_db.reshape(-1), fitted.off.reshape(-1))
    bench = load_bench(env, cache=told.cache, long=False)
    rows = np.flatnonzero(np.isin(bench.kinds, MAIN_KINDS))
    rows = rows[:: max(1, len(rows) // told.limit)] if told.limit else rows
    seen = watch(measured, bench.clips.pick(rows), batch=told.batch, samples=told.samples)
    alone = singly(fitted.single, fitted.psnr_db, fitted.off, seen.single, seen.psnr_db, seen.error_m)
    checked = check(calibration, seen.signals, seen.spread_grey, seen.psnr_db, seen.error_m,
                    adherence_px=seen.adherence_px, alone=alone)  # fmt: skip
    return calibration, checked


def training_clips(env: str, episodes: int, *, cache: Path | None = Path("runs")) -> Clips:
    """Play episodes of the kinds that the held-out ones are of, and in their proportion, from seeds below theirs.

    Which they are is kept beside the clips.
    """
    if not 3 <= episodes <= 2000:
        raise VapError(f"episodes must be 3 to 2000, got {episodes}. Try 96.")
    card = load_env(env)
    whole = sum(COUNTS[kind] for kind in MAIN_KINDS)
    counts = {kind: max(1, round(episodes * COUNTS[kind] / whole)) for kind in MAIN_KINDS}
    listed = None if cache is None else cache / f"trust_{short_name(card.id)}_{episodes}.toml"
    if listed is not None and listed.is_file():
        items = load_heldout(listed)
    else:
        items = choose(load_robot(card.robot), card.layout, counts, first=FIRST_SEED)
        if listed is not None:
            write_list(listed, items, ["# Episodes that trust is calibrated on."])
    return played(items, robot=card.robot, cache=None if listed is None else listed.with_suffix(".npz"))


def watch(measured: Subject, clips: Clips, *, batch: int = 32, samples: int = 0) -> Watched:
    """Imagine clips, and note every step's signals and errors, and where the judge sees the gripper; with `samples`
    roll-outs also how far they spread."""
    signals = TrustSignals(measured.world)
    spread = SampleSpread(measured.world, samples) if samples else None
    N, S = len(clips), clips.steps
    made = np.empty((N, S, *clips.frames.shape[2:]), np.uint8)
    told, error_m = np.empty((N, S, len(SIGNALS))), np.empty((N, S))
    grey, off_px = np.full((N, S), np.nan), np.full((N, S), np.nan)
    for i in range(0, N, batch):
        part, rows = clips.pick(slice(i, i + batch)), slice(i, min(i + batch, N))
        imagination, state = begun(measured, part, first=i)
        signals.start(state)
        if spread is not None:
            spread.start(state)
        places_m = [_places(state)]
        for t in range(S):
            motion = imagination.follow(state, torch.from_numpy(part.actions[:, t : t + 1]).float())
            state, frames = imagination.imagine(state, motion)
            assert frames is not None
            made[rows, t] = frames[:, 0].numpy()
            told[rows, t] = signals.step(state, motion.views[:, 0]).numpy()
            places_m.append(_places(state))
            if spread is not None:
                grey[rows, t] = spread.step(state, motion, frames[:, 0]).numpy()
        if measured.stage.knows_gripper:
            off_px[rows] = adherence_by_step(part, look(measured, made[rows], part, slice(1, None)))
        there = state["world_thing_there"].numpy()
        error_m[rows] = object_errors(np.stack(places_m, 1), there, part.objects_m, table_m=measured.table_m)
    psnr_db = psnr_by_step(made, clips.frames[:, 1:])
    return Watched(signals=told, spread_grey=grey, adherence_px=off_px, psnr_db=psnr_db, error_m=error_m)


def object_errors(
    places_m: Float[np.ndarray, "N T M 3"],
    there: Bool[np.ndarray, "N M"],
    objects_m: Float[np.ndarray, "N T K 3"],
    *,
    table_m: float,
) -> Float[np.ndarray, "N S"]:
    """Return how far off that object is which is furthest off, after each step, m.

    An object is where the model has the thing that was found nearest to it at first; one that was not found (or lies
    hidden) is taken to stay where it was.
    """
    above_m = places_m + [0.0, 0.0, table_m]
    apart = np.linalg.norm(objects_m[:, 0, :, None] - above_m[:, 0, None], axis=-1)  # N K M
    apart = np.where(there[:, None] & np.isfinite(apart), apart, np.inf)
    which, found = apart.argmin(-1), apart.min(-1) < SAME_M
    rows = np.arange(len(places_m))[:, None]
    believed = np.where(found[:, None, :, None], above_m[rows, :, which].swapaxes(1, 2), objects_m[:, :1])
    off = np.linalg.norm(believed - objects_m, axis=-1)[:, 1:]
    worst: np.ndarray = np.nan_to_num(off, nan=0.0).max(-1).clip(max=1.0)
    return worst


def _places(state: object) -> np.ndarray:
    from tensordict import TensorDict

    assert isinstance(state, TensorDict)
    return np.array(state["world_thing_place_m"].cpu().numpy())
