"""How near imagination comes to the oracle on held-out episodes of each env, beside a frozen frame, codec and judge."""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vap_gym.cards import load_env
from vap_gym.evaluate import report as reports
from vap_gym.evaluate.clips import Clips, played
from vap_gym.evaluate.fidelity_figures import (
    Report,
    adherence,
    by_episode,
    gap_closed,
    interval,
    motion_masks,
    psnr_by_step,
    segmentation,
    st_iou,
    things,
)
from vap_gym.evaluate.fidelity_kept import Fidelity
from vap_gym.evaluate.fidelity_page import headline, page
from vap_gym.evaluate.fidelity_rollout import Subject, imagine, look, subject
from vap_gym.evaluate.fidelity_truth import Truth
from vap_gym.evaluate.heldout import COUNTS, ENVS, MAIN_KINDS, STEPS, HeldOut, first_of, list_path, load_heldout
from vap_gym.metrics import Interval, paired_bootstrap_interval
from vap_gym.world.model import WorldModel

LONG_STEPS, LONG_EPISODES = 100, 48
SEGMENTED = slice(1, STEPS + 1, 4)  # frames whose segmentation is scored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """The held-out episodes of one env: clips of 24 steps with their kinds, and a few of 100."""

    env: str
    clips: Clips
    kinds: np.ndarray
    long: Clips | None


def main(
    *,
    world_model: str = "tiny",
    env: tuple[str, ...] = (),
    judge: str = "",
    heldout: Path | None = None,
    cache: Path = Path("runs"),
    out: Path = Path("docs/fidelity.md"),
    scores: Path | None = None,
    batch: int = 32,
    limit: int = 0,
    evaluations: int = 0,
    truth: Truth = "",
    workers: int = 1,
    figures: Path | None = None,
    json: bool = False,
) -> None:
    """Print the fidelity table: imagination against the oracle, 24 and 100 steps from the first frame.

    The page is written where all envs are measured in full, and all figures beside it (fidelity.json).

    Args:
        world_model: name or folder of the world model, with its judge.
        env: ids or paths of env cards; none: the four that are shipped.
        judge: name or folder of the judge; none: the world model's own, or "tiny".
        heldout: list of episodes, for one env; none: the env's own in benchmarks/.
        cache: folder in which the oracle's clips are kept between runs.
        out: the markdown page to write.
        scores: also write the main figures, in words.
        batch: imaginations at a time.
        limit: take only about so many episodes (0: all), and no long ones, for a quick look.
        evaluations: network evaluations per frame (0: the model's default).
        truth: let the simulator tell the model of the things, to see what errors come of: "things" tells where they are
            at first and how large, "moves" also where they go.
        workers: processes, each measuring one env at a time on its share of the cores: faster than one by one, but the
            time that is told then says little.
        figures: of an earlier run, such as docs/fidelity.json: the page is made of them, and nothing is measured.
        json: print all figures as JSON instead.
    """
    if figures is not None:
        kept = Fidelity.load(figures)
        text = page(kept.measured, kept.world_model, kept.evaluations, origin=kept.origin)
        print(as_json(kept.measured) if json else text)
        reports.write(out, text)
        return
    told: dict[str, Any] = {"judge": judge, "batch": batch, "limit": limit, "evaluations": evaluations, "truth": truth}
    job = partial(_measured, world_model, heldout, cache, max(1, torch.get_num_threads() // workers), told)
    measured: dict[str, Report] = {}
    for report in reports.each(job, env or ENVS, workers=workers):
        measured[str(report["env"])] = report
        print(f"{report['env']}: {report['seconds']:.0f} s", file=sys.stderr, flush=True)
    origin = reports.stamp()
    text = page(measured, world_model, evaluations, truth=truth, origin=origin)
    print(as_json(measured) if json else text)
    if not limit and not truth and not env:
        reports.write(out, text)
        found = Fidelity(measured=measured, world_model=world_model, evaluations=evaluations, origin=origin)
        found.save(out.with_suffix(".json"))
    if scores is not None:
        reports.write(scores, _dumps(headline(measured)))


def _measured(
    world_model: str, heldout: Path | None, cache: Path, threads: int, told: dict[str, Any], env: str
) -> Report:
    """One env's figures, on so many threads."""
    torch.set_num_threads(threads)
    return measure(load_bench(env, heldout=heldout, cache=cache, long=not told["limit"]), world_model, **told)


def load_bench(env: str, *, heldout: Path | None = None, cache: Path | None = Path("runs"), long: bool = True) -> Bench:
    """Play an env's held-out episodes in the oracle, or read them from the cache."""
    card = load_env(env)
    items = load_heldout(list_path(card.id) if heldout is None else heldout)
    stem = None if cache is None else cache / (heldout or list_path(card.id)).stem
    clips = played(items, robot=card.robot, cache=None if stem is None else stem.with_suffix(".npz"))
    further = None
    if long:
        few = _long(items)
        kept = None if stem is None else stem.with_name(f"{stem.name}_long.npz")
        further = played(few, robot=card.robot, steps=LONG_STEPS, cache=kept)
    return Bench(env=card.source, clips=clips, kinds=np.array([item.kind for item in items]), long=further)


def measure(
    bench: Bench | str,
    world_model: str | Path | WorldModel = "tiny",
    *,
    judge: str | Path = "",
    limit: int = 0,
    batch: int = 32,
    evaluations: int = 0,
    truth: Truth = "",
) -> Report:
    """Return all figures of an env by name: numbers and intervals (None: nothing to measure it on).

    Args:
        bench: from `load_bench`, or the env whose episodes are meant.
        world_model: name or folder, or one that is loaded.
        limit: look at about so many episodes only: the first of each kind.

    For the others see `main`.
    """
    import time

    if isinstance(bench, str):
        bench = load_bench(bench, long=not limit)
    began = time.perf_counter()
    rows = np.arange(len(bench.kinds))
    if limit:
        listed = [HeldOut(seed=0, kind=str(kind), behaviour="", task="", near=False) for kind in bench.kinds]
        rows = np.array(first_of(listed, limit))
    clips, kinds = bench.clips.pick(rows), bench.kinds[rows]
    measured = subject(bench.env, world_model, judge=judge, truth=truth)
    settings: dict[str, Any] = {"batch": batch, "evaluations": evaluations or None}
    report: Report = {"env": bench.env, "evaluations": evaluations or measured.world.evaluations}
    _pictures(report, measured, clips, kinds, settings)
    if bench.long is not None and not limit:
        _long_run(report, measured, bench.long, settings)
    report["seconds"] = round(time.perf_counter() - began, 1)
    return report


def _pictures(report: Report, measured: Subject, clips: Clips, kinds: np.ndarray, settings: dict[str, Any]) -> None:
    """Figures of 24 steps."""
    imagined = imagine(measured, clips, **settings)
    true, first = clips.frames[:, 1:], np.repeat(clips.frames[:, :1], clips.steps, axis=1)
    world = measured.world
    rebuilt = np.stack([world.decode(world.encode(torch.from_numpy(clip))).cpu().numpy() for clip in true])
    made = {"imagined": imagined, "frozen": first, "codec": rebuilt}
    main_rows = np.flatnonzero(np.isin(kinds, MAIN_KINDS))
    report["episodes"] = len(main_rows)
    psnr = {name: psnr_by_step(frames, true) for name, frames in made.items()}
    report["psnr_by_step"] = {name: v[main_rows].mean(0).round(2).tolist() for name, v in psnr.items()}
    for name, value in psnr.items():
        report[f"psnr_{name}"] = interval(value.mean(1)[main_rows])
    columns = np.stack([psnr[name].mean(1) for name in made], 1)
    report["gap_closed"] = interval(columns[main_rows], gap_closed)
    masks = motion_masks(clips.frames[:, 0], true)
    motion = {name: st_iou(motion_masks(clips.frames[:, 0], frames), masks) for name, frames in made.items()}
    for name, suffix in (("imagined", ""), ("frozen", "_frozen"), ("codec", "_codec")):
        report[f"st_iou{suffix}"] = interval(motion[name][main_rows])
    for kind in dict.fromkeys(kinds):
        report[f"gap_closed_{kind}"] = interval(columns[kinds == kind], gap_closed)
        report[f"st_iou_{kind}"] = interval(motion["imagined"][kinds == kind])
    picked = clips.pick(main_rows)
    order = np.roll(np.arange(len(picked)), 1)  # the neighbour's actions, mostly of the same kind
    untold = dataclasses.replace(measured, truth="things" if measured.truth else "")  # things move otherwise there
    swapped = motion_masks(picked.frames[:, 0], imagine(untold, picked, actions=picked.actions[order], **settings))
    report["st_iou_right_minus_swapped"] = paired_bootstrap_interval(
        motion["imagined"][main_rows], st_iou(swapped, masks[main_rows])
    )
    seen, real = (look(measured, frames[main_rows], picked, slice(1, None)) for frames in (imagined, true))
    knows = measured.stage.knows_gripper
    report["adherence_px"] = report["adherence_px_judge"] = None
    if knows:
        adherence(report, picked, seen, real)
    begin = look(measured, picked.frames[:, :1], picked, slice(0, 1))
    things(report, picked, begin, seen, real)
    few = dataclasses.replace(real, segmentation=real.segmentation[:, SEGMENTED.start - 1 :: SEGMENTED.step])
    report["judge_j_and_f"] = segmentation(picked, few, SEGMENTED)


def _long_run(report: Report, measured: Subject, clips: Clips, settings: dict[str, Any]) -> None:
    """Figures of 100 steps, all at their end."""
    imagined = imagine(measured, clips, **settings)
    last, begin = slice(-1, None), slice(0, 1)
    seen, real = (look(measured, frames[:, last], clips, last) for frames in (imagined, clips.frames))
    things(report, clips, look(measured, clips.frames[:, begin], clips, begin), seen, real, suffix="_100")
    report["episodes_100"] = len(clips)
    true = clips.frames[:, last]
    for name, frames in (("imagined", imagined[:, last]), ("frozen", clips.frames[:, :1])):
        report[f"psnr_{name}_100"] = interval(np.stack(by_episode(np.mean, psnr_by_step(frames, true))))


def _long(items: list[HeldOut]) -> list[HeldOut]:
    """The first of each main kind, LONG_EPISODES of them in all, in the proportion of the whole list."""
    whole = sum(COUNTS[kind] for kind in MAIN_KINDS)
    mine = [[item for item in items if item.kind == kind] for kind in MAIN_KINDS]
    return [x for kind, rows in zip(MAIN_KINDS, mine) for x in rows[: round(LONG_EPISODES * COUNTS[kind] / whole)]]


def as_json(measured: dict[str, Report]) -> str:
    """Return the figures of envs as JSON; an interval is {"value", "low", "high"}."""
    return _dumps(measured)


def _dumps(value: object) -> str:
    def plain(x: object) -> object:
        if isinstance(x, Interval):
            return {"value": x.value, "low": x.low, "high": x.high}
        raise TypeError(f"not JSON: {type(x).__name__}")

    return json.dumps(value, indent=1, ensure_ascii=False, default=plain)
