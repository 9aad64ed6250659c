"""Judging again: the kept episodes of an evaluation, by another judge; nothing is played anew."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from vap_gym.data import EpisodeSet
from vap_gym.errors import VapError
from vap_gym.evaluate.policies_judges import VERDICTS, EpisodeJudge, Settled, ShownEpisode, Verdict, write_labels
from vap_gym.evaluate.policies_keep import folder_of
from vap_gym.evaluate.policies_report import Report, Row
from vap_gym.evaluate.policies_trials import Trial
from vap_gym.jobs.manifest import Outcome, begin, digest, entry
from vap_gym.observations import FRONT

REASONS = 3  # why verdicts are unknown: so many are told


def rejudged(report: Report, out: str | Path, judge: EpisodeJudge) -> Report:
    """Return the report with another judge's verdicts. What a policy broke stays a failure.

    Where a judge tells its settings (`Settled`), what it could tell is kept in out/verdicts, and not asked for again.
    How many verdicts it could not tell, and the usual reasons, is said in a line on stderr.

    Args:
        out: the evaluation's folder.

    Raises:
        VapError: an episode of the report that is not kept there, or a verdict that is none of VERDICTS.
    """
    rows: dict[str, list[Row | None]] = {name: list(found) for name, found in report.rows.items()}
    asked = [
        (name, number) for name, found in rows.items() for number, row in enumerate(found) if row and row.fault is None
    ]
    kept, shown = _Kept(report, Path(out)), tqdm(asked, desc="judging", unit="episode", disable=None)
    with _Said(Path(out), judge) as said:
        for name, number in shown:
            verdict = said.get(name, report.trials[number]) or said.put(
                name, report.trials[number], _checked(judge(kept(name, number)))
            )
            row = rows[name][number]
            assert row is not None
            rows[name][number] = replace(row, verdict=verdict)
        said.tell(len(asked))
    about = {**report.about, "judge": getattr(judge, "__name__", type(judge).__name__)}
    return replace(report, about=about, rows={name: tuple(found) for name, found in rows.items()})


def labels_to_fill_in(report: Report, path: str | Path) -> int:
    """Write a file in which people label a report's episodes (see `HumanLabels`), but for those that a policy broke;
    returns how many."""
    words = {
        (name, trial.start, trial.seed): str(report.about.get("task", ""))
        for name, rows in report.rows.items()
        for trial, row in zip(report.trials, rows, strict=True)
        if row is not None and row.fault is None
    }
    return write_labels(path, [(*key, task) for key, task in words.items()])


def _checked(said: Verdict) -> Verdict:
    if said.verdict not in VERDICTS:
        raise VapError(f"A judge must say one of {', '.join(VERDICTS)}, got {said.verdict!r}.")
    return said


class _Kept:
    """Reads the episodes of an evaluation, each when it is asked for."""

    def __init__(self, report: Report, out: Path) -> None:
        self._report, self._out = report, out
        self._sets: dict[str, tuple[EpisodeSet, dict[int, int]]] = {}

    def __call__(self, name: str, number: int) -> ShownEpisode:
        """Return what a judge is shown of an episode. Raises VapError where it is not kept."""
        if name not in self._sets:
            episodes = EpisodeSet(folder_of(self._out, name))
            self._sets[name] = episodes, {episodes.index(i): i for i in range(len(episodes))}
        episodes, places = self._sets[name]
        if number not in places:
            raise VapError(
                f"'{folder_of(self._out, name)}' must hold trial {number} of '{name}', got none. Evaluate again."
            )
        episode = episodes.read(places[number], views=[FRONT], labels=(), columns=())
        trial = self._report.trials[number]
        return ShownEpisode(
            frames=episode.frames[FRONT], task=episode.task, policy=name, start=trial.start, seed=trial.seed
        )


class _Said:
    """What a judge has said, kept as it comes, so that a run that was stopped does not ask again."""

    def __init__(self, out: Path, judge: EpisodeJudge) -> None:
        settings = judge.settings if isinstance(judge, Settled) else None
        self._file: TextIO | None = None
        self._unknown: Counter[str] = Counter()  # verdicts, by their reasons
        self._said: dict[str, Outcome] = {}
        self._path = None if settings is None else out / "verdicts" / f"{type(judge).__name__}-{digest(settings)}.jsonl"
        if self._path is not None:
            self._path.parent.mkdir(exist_ok=True)
            self._said = begin(self._path, settings or {})

    def __enter__(self) -> _Said:
        self._file = None if self._path is None else self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def get(self, name: str, trial: Trial) -> str | None:
        """Return the verdict of an episode, if it was told."""
        found = self._said.get(_key(name, trial))
        return None if found is None or found.result is None else str(found.result["verdict"])

    def put(self, name: str, trial: Trial, said: Verdict) -> str:
        """Keep a verdict, and return it."""
        if self._file is not None and said.verdict != "unknown":  # a server that was away is asked again
            self._file.write(entry(Outcome(key=_key(name, trial), result=asdict(said))))
            self._file.flush()
        if said.verdict == "unknown":
            self._unknown[said.reason] += 1
        return said.verdict

    def tell(self, asked: int) -> None:
        """Say in a line on stderr why verdicts are unknown, where any is."""
        if count := self._unknown.total():
            usual = self._unknown.most_common(REASONS)
            told = [f"{reason} ({times}×)" if times > 1 else reason for reason, times in usual]
            more = " | …" if len(self._unknown) > REASONS else ""
            print(f"judging: {count} of {asked} verdicts are unknown: {' | '.join(told)}{more}", file=sys.stderr)


def _key(name: str, trial: Trial) -> str:
    return f"{name}, start {trial.start}, seed {trial.seed}"
