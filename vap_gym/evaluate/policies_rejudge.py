"""Judging again: the kept episodes of an evaluation, by another judge; nothing is played anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from vap_gym.data import EpisodeSet
from vap_gym.errors import VapError
from vap_gym.evaluate.policies_judges import VERDICTS, EpisodeJudge, ShownEpisode, write_labels
from vap_gym.evaluate.policies_keep import folder_of
from vap_gym.evaluate.policies_report import Report, Row
from vap_gym.observations import FRONT


def rejudged(report: Report, out: str | Path, judge: EpisodeJudge) -> Report:
    """Return the report with another judge's verdicts. What a policy broke stays a failure.

    Args:
        out: the evaluation's folder.

    Raises:
        VapError: an episode of the report that is not kept there, or a verdict that is none of VERDICTS.
    """
    rows: dict[str, list[Row | None]] = {name: list(found) for name, found in report.rows.items()}
    total = sum(row is not None for found in report.rows.values() for row in found)
    for name, number, row, shown in tqdm(
        _kept(report, Path(out)), total=total, desc="judging", unit="episode", disable=None
    ):
        said = judge(shown)
        if said.verdict not in VERDICTS:
            raise VapError(f"A judge must say one of {', '.join(VERDICTS)}, got {said.verdict!r}.")
        rows[name][number] = row if row.fault is not None else replace(row, verdict=said.verdict)
    about = {**report.about, "judge": type(judge).__name__}
    return replace(report, about=about, rows={name: tuple(found) for name, found in rows.items()})


def labels_to_fill_in(report: Report, path: str | Path) -> int:
    """Write a file in which people label the episodes of a report (see `HumanLabels`); returns how many."""
    words = {
        (name, trial.start, trial.seed): str(report.about.get("task", ""))
        for name, rows in report.rows.items()
        for trial, row in zip(report.trials, rows, strict=True)
        if row is not None
    }
    return write_labels(path, [(*key, task) for key, task in words.items()])


def _kept(report: Report, out: Path) -> Iterator[tuple[str, int, Row, ShownEpisode]]:
    for name, rows in report.rows.items():
        if not any(row is not None for row in rows):
            continue
        kept = EpisodeSet(folder_of(out, name))
        places = {kept.index(i): i for i in range(len(kept))}
        for number, (trial, row) in enumerate(zip(report.trials, rows, strict=True)):
            if row is None:
                continue
            if number not in places:
                raise VapError(
                    f"'{folder_of(out, name)}' must hold trial {number} of '{name}', got none. Evaluate again."
                )
            episode = kept.read(places[number], views=[FRONT], labels=(), columns=())
            shown = ShownEpisode(
                frames=episode.frames[FRONT], task=episode.task, policy=name, start=trial.start, seed=trial.seed
            )
            yield name, number, row, shown
