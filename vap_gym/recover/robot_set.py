"""A set of robot episodes → a set of (prompt, video) pairs, a report of what was discarded and why, and a sheet."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vap_gym.data import Episode, EpisodeSet, EpisodeWriter, finalise
from vap_gym.data.conventions import columns_of_camera
from vap_gym.data.layout import INFO_PATH, DataError, write_json
from vap_gym.errors import VapError
from vap_gym.pictures import sheet, spread, write_png
from vap_gym.prompts.raster import overlay
from vap_gym.recover.robot import RecoveredEpisode, RobotPipeline

REPORT, SHEET = "report.json", "examples.png"
VIDEO, PROMPT = "video", "prompt"
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


def recover_set(
    source: EpisodeSet,
    out: str | Path,
    view: str,
    pipeline: RobotPipeline,
    *,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Recover every episode of `source`, write what is kept into `out`, and return the report.

    An episode keeps its number. `report.json` lists kept, discarded and failed ones and is brought up to date after
    each, so that a stopped run goes on where it was; one bad episode stops nothing.

    Raises DataError where `out` holds a report of other settings.
    """
    out = Path(out)
    settings = {
        "source": str(source.root),
        "view": view,
        "robot": pipeline.robot.name,
        "prompt": pipeline.prompt,
        "align": pipeline.align,
        "matcher": type(pipeline.matcher).__name__,
        "rule": asdict(pipeline.rule),
    }
    report = _begun(out, settings)
    done = {entry["episode"] for kind in ("kept", "discarded", "failed") for entry in report[kind]}
    writer = EpisodeWriter(out, fps=source.fps, robot_type=pipeline.robot.name)
    rows: dict[str, list[tuple[str, list[NDArray[np.uint8]]]]] = {"kept": [], "discarded": []}
    for i in range(len(source)):
        number = source.index(i)
        if number in done:
            continue
        try:
            episode = source.read(i, views=[view])
            found = pipeline(episode, view)
            kind = "kept" if found.verdict.keep else "discarded"
            if found.verdict.keep and number not in writer.written():
                writer.write(number, pair(episode, view, found, robot=pipeline.robot.name, prompt=pipeline.prompt))
        except VapError as error:
            report["failed"].append({"episode": number, "error": str(error)})
            tell(f"episode {number}: failed. {error}")
        else:
            entry = {"episode": number, **figures(found)}
            report[kind].append(entry if kind == "kept" else {**entry, "reasons": list(found.verdict.reasons)})
            tell(f"episode {number}: {kind}. {_told(entry)}" + "".join(f"; {r}" for r in found.verdict.reasons))
            if len(rows[kind]) < EXAMPLES:
                rows[kind].append((f"{number} {kind}\n{_label(entry)}", _cells(episode.frames[view], found.prompts)))
        write_json(out / REPORT, report)
    if (out / INFO_PATH).exists():
        finalise(out)
    examples = [*rows["kept"], *rows["discarded"]]
    if examples:
        write_png(out / SHEET, _sheet(examples))
    return report


def _begun(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The report of a run that was stopped, or an empty one."""
    path = out / REPORT
    if not path.is_file():
        return {"settings": settings, "kept": [], "discarded": [], "failed": []}
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = report["settings"] == settings and all(kind in report for kind in ("kept", "discarded", "failed"))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} must be a report of this command, got {error!r}. Write into a new folder.") from error
    if not same:
        raise DataError(
            f"{path} is of a run with other settings, {report['settings']}, got {settings}. "
            "Give the same settings to go on, or write into a new folder."
        )
    return report


def _told(entry: dict[str, Any]) -> str:
    def figure(name: str, form: str) -> str:
        return "?" if entry[name] is None else format(entry[name], form)

    return (
        f"{figure('discrepancy_px', '.1f')} px off, score {figure('score', '.2f')}, "
        f"motion {figure('motion', '.2f')}, drift {figure('drift_px', '.1f')} px"
    )


def _label(entry: dict[str, Any]) -> str:
    return ", ".join("?" if entry[n] is None else f"{entry[n]:.2g}" for n in ("discrepancy_px", "score"))


def _cells(frames: NDArray[np.uint8], prompts: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [overlay(frames[t], prompts[t], alpha=0.8) for t in spread(CELLS, len(frames))]


def _sheet(examples: list[tuple[str, list[NDArray[np.uint8]]]]) -> NDArray[np.uint8]:
    width = examples[0][1][0].shape[1]
    most = max(len(cells) for _, cells in examples)
    rows = [[*cells, *[None] * (most - len(cells))] for _, cells in examples]
    return sheet(
        rows, scale=max(1.0, round(CELL_WIDTH_PX / width, 2)), labels=[label for label, _ in examples], note=NOTE
    )
