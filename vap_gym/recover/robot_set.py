"""A set of robot episodes → a set of (prompt, video) pairs, a report of what was discarded and why, and a sheet."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vap_gym.data import Episode, EpisodeSet, EpisodeWriter, finalise
from vap_gym.data.adopt import adopt
from vap_gym.data.conventions import columns_of_camera
from vap_gym.data.layout import INFO_PATH, refuse_other_sets, write_json
from vap_gym.jobs import Outcome, run_jobs
from vap_gym.pictures import sheet, spread, write_png
from vap_gym.prompts.raster import overlay
from vap_gym.recover.robot import RecoveredEpisode, RobotPipeline

REPORT, SHEET = "report.json", "examples.png"
MANIFEST, STAGED, STRIPS = "meta/recover.jsonl", ".staged", "strips"
VIDEO, PROMPT, NUMBER = "video", "prompt", "source_number"
HOMOGRAPHY, MATCH_SCORE = "homography", "match_score"
EXAMPLES, CELLS = 4, 5  # of kept and of discarded episodes on the sheet, and frames of each
CELL_WIDTH_PX = 256
NOTE = "number of the episode; how many px matches on the robot are off, and with what score the robot is found"


def pair(episode: Episode, view: str, found: RecoveredEpisode, *, robot: str, prompt: str) -> Episode:
    """Return a (prompt, video) pair: the source's columns and the rectified camera of the view `video`.

    Further columns: `homography` (T, 3, 3), px of the nominal prompt → px of the frame; `match_score` (T,).
    """
    camera = columns_of_camera(found.camera, VIDEO, len(episode))
    return Episode(
        frames={VIDEO: episode.frames[view], PROMPT: found.prompts},
        columns={
            **episode.columns,
            **camera,
            HOMOGRAPHY: found.homography,
            MATCH_SCORE: found.match_score.astype(np.float32),
        },
        task=episode.task,
        info={**episode.info, "robot": robot, "view": view, "prompt": prompt, "recovered": figures(found)},
    )


def figures(found: RecoveredEpisode) -> dict[str, Any]:
    """Return how well an episode fits, as plain JSON: None where something could not be measured."""
    verdict = asdict(found.verdict)
    told = {name: verdict[name] for name in ("discrepancy_px", "score", "motion", "visible")}
    told |= {"drift_px": found.drift_px, "drift_share": found.drift_share, "offset_px": found.offset_px}
    rounded = {name: round(float(value), 4) if math.isfinite(value) else None for name, value in told.items()}
    return {**rounded, "frames_without_state": np.flatnonzero(~found.has_state).tolist()}


@dataclass(frozen=True, kw_only=True)
class RecoverTask:
    """The job of one episode, by its position in `source`: its verdict, and if it is kept its pair in `staged`.

    The pair is written under the number that the episode has in `source`, and a strip of examples beside it.
    """

    source: EpisodeSet
    staged: Path
    view: str
    pipeline: RobotPipeline

    def __call__(self, i: int) -> dict[str, Any]:
        """Recover an episode; one that is written already is left as it is."""
        number = self.source.index(i)
        episode = self.source.read(i, views=[self.view])
        found = self.pipeline(episode, self.view)
        name = self.pipeline.robot.name
        writer = EpisodeWriter(self.staged, fps=self.source.fps, robot_type=name)
        if found.verdict.keep and number not in writer.written():
            made = pair(episode, self.view, found, robot=name, prompt=self.pipeline.prompt)
            writer.write(number, replace(made, info={**made.info, NUMBER: number}))
        kind = "kept" if found.verdict.keep else "discarded"
        strip = np.concatenate(_cells(episode.frames[self.view], found.prompts), axis=1)
        write_png(self.staged / STRIPS / f"{number}.png", strip)
        return {"kind": kind, "episode": number, **figures(found), "reasons": list(found.verdict.reasons)}


def recover_set(
    source: EpisodeSet,
    out: str | Path,
    view: str,
    pipeline: RobotPipeline,
    *,
    executor: str = "serial",
    workers: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Recover every episode of `source`, write what is kept into `out`, and return the report.

    What is kept is numbered anew, without gaps, in the order of `source`; `info["source_number"]` is its number there.
    A stopped run goes on where it was, and failed episodes are tried again; one bad episode stops nothing. The files
    do not depend on executor and workers (see `vap_gym.jobs`). `report.json` lists kept, discarded and failed ones.

    Raises DataError where `out` holds a run with other settings, or another data set; see `run_jobs` for executors.
    """
    out = Path(out)
    refuse_other_sets(out, MANIFEST)
    settings = {
        "source": str(source.root.resolve()),
        "view": view,
        "robot": pipeline.robot.name,
        "prompt": pipeline.prompt,
        "align": pipeline.align,
        "matcher": type(pipeline.matcher).__name__,
        "rule": asdict(pipeline.rule),
    }
    numbers = {str(source.index(i)): i for i in range(len(source))}
    kept = _Kept(out=out, staged=out / STAGED, numbers=tuple(numbers))

    def take(outcome: Outcome) -> None:
        kept.take(outcome)
        tell(_line(outcome))

    outcomes = run_jobs(
        RecoverTask(source=source, staged=out / STAGED, view=view, pipeline=pipeline),
        numbers,
        manifest=out / MANIFEST,
        settings=settings,
        executor=executor,
        workers=workers,
        tell=take,
    )
    for outcome in outcomes:
        kept.take(outcome)
    report: dict[str, Any] = {"settings": settings, "kept": [], "discarded": [], "failed": []}
    for outcome in outcomes:
        if outcome.result is None:
            report["failed"].append({"episode": int(outcome.key), "error": outcome.error})
            continue
        told = {name: value for name, value in outcome.result.items() if name not in ("kind", "reasons")}
        more = {"index": kept.index[outcome.key]} if outcome.key in kept.index else {}
        more |= {"reasons": outcome.result["reasons"]} if outcome.result["reasons"] else {}
        report[outcome.result["kind"]].append({**told, **more})
    write_json(out / REPORT, report)
    if (out / INFO_PATH).exists():
        finalise(out)
    _write_sheet(out, outcomes, width_px=source.features.views[view][1])
    shutil.rmtree(out / STAGED, ignore_errors=True)
    return report


class _Kept:
    """Gives kept episodes their final places as soon as all before them are done, so that order is the source's."""

    def __init__(self, *, out: Path, staged: Path, numbers: tuple[str, ...]) -> None:
        self.out, self.staged, self.numbers = out, staged, numbers
        self.outcomes: dict[str, Outcome] = {}
        self.index: dict[str, int] = {}  # of episodes that are in the set, by their numbers in the source
        self._next = 0
        self._shown = {"kept": 0, "discarded": 0}
        if (out / INFO_PATH).exists():
            there = EpisodeSet(out)
            self.index = {str(there.info(i)[NUMBER]): there.index(i) for i in range(len(there))}

    def take(self, outcome: Outcome) -> None:
        """Note what became of an episode, and move those whose turn it is."""
        self.outcomes[outcome.key] = outcome
        while self._next < len(self.numbers) and self.numbers[self._next] in self.outcomes:
            key = self.numbers[self._next]
            result = self.outcomes[key].result
            if result is not None and result["kind"] == "kept" and key not in self.index:
                index = max(self.index.values(), default=-1) + 1
                adopt(self.staged, int(key), self.out, index)
                self.index[key] = index
            if result is not None:
                self._shown[result["kind"]] += 1
                if self._shown[result["kind"]] > EXAMPLES:
                    (self.staged / STRIPS / f"{key}.png").unlink(missing_ok=True)
            self._next += 1


def _line(outcome: Outcome) -> str:
    """What is told of an episode when it is done."""
    if outcome.result is None:
        return f"episode {outcome.key}: failed. {outcome.error}"
    told = outcome.result
    return f"episode {outcome.key}: {told['kind']}. {_told(told)}" + "".join(f"; {r}" for r in told["reasons"])


def _write_sheet(out: Path, outcomes: list[Outcome], *, width_px: int) -> None:
    """The first kept and discarded episodes; left as it was, where a strip of theirs is gone since an older run."""
    rows = []
    for kind in ("kept", "discarded"):
        chosen = [(o.key, o.result) for o in outcomes if o.result is not None and o.result["kind"] == kind][:EXAMPLES]
        rows += [(f"{k} {kind}\n{_label(told)}", out / STAGED / STRIPS / f"{k}.png") for k, told in chosen]
    if not rows or not all(path.is_file() for _, path in rows):
        return
    strips = [(label, np.asarray(Image.open(path))) for label, path in rows]
    starts = [(label, strip, range(0, strip.shape[1], width_px)) for label, strip in strips]
    write_png(out / SHEET, _sheet([(label, [strip[:, x : x + width_px] for x in xs]) for label, strip, xs in starts]))


def _told(entry: dict[str, Any]) -> str:
    def figure(name: str, form: str) -> str:
        return "?" if entry[name] is None else format(entry[name], form)

    return (
        f"{figure('discrepancy_px', '.1f')} px off, score {figure('score', '.2f')}, "
        f"motion {figure('motion', '.2f')}, drift {figure('drift_px', '.1f')} px"
    )


def _label(entry: dict[str, Any]) -> str:
    off, score = (("?" if entry[n] is None else f"{entry[n]:.2g}") for n in ("discrepancy_px", "score"))
    return f"{off} px, {score}"


def _cells(frames: NDArray[np.uint8], prompts: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [overlay(frames[t], prompts[t], alpha=0.8) for t in spread(CELLS, len(frames))]


def _sheet(examples: list[tuple[str, list[NDArray[np.uint8]]]]) -> NDArray[np.uint8]:
    width = examples[0][1][0].shape[1]
    most = max(len(cells) for _, cells in examples)
    rows = [[*cells, *[None] * (most - len(cells))] for _, cells in examples]
    return sheet(
        rows, scale=max(1.0, round(CELL_WIDTH_PX / width, 2)), labels=[label for label, _ in examples], note=NOTE
    )
