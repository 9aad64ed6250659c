"""True trials: what a robot's trials came to, in a file that people keep, as a report to compare imagination with."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from vap_gym.errors import VapError, unknown_name
from vap_gym.evaluate.policies_judges import HumanLabels
from vap_gym.evaluate.policies_report import Report, Row
from vap_gym.evaluate.policies_trials import Trial

COLUMNS = ("policy", "start", "verdict")  # seed, too, where starts were imagined with several
SHARED = ("card", "task", "steps", "starts_file", "starts_digest")  # which trials these are: as in imagination


def read_report(path: str | Path, imagined: Report) -> Report:
    """Return the true side of an agreement: a report, or where it is a CSV file the trials in it (`read_trials`)."""
    return read_trials(path, imagined) if Path(path).suffix.lower() == ".csv" else Report.load(path)


def read_trials(path: str | Path, imagined: Report) -> Report:
    """Return the trials of a CSV file as a report of the world "robot".

    Its columns are policy, start and verdict, and seed where starts were imagined with several seeds; others are not
    looked at. `policy` and `start` are the names and numbers that they have in imagination; a verdict is one of
    `HumanLabels.WORDS`: success or failure, and empty for what is yet to be tried.

    Args:
        imagined: whose trials were truly tried, some of them at least.

    Raises:
        VapError: a file that is missing or lacks a column; a line with a policy or start that was not imagined, another
            verdict, or a trial that has a line already.
    """
    file, found = Path(path), dict[tuple[str, Trial], str]()
    if not file.is_file():
        raise VapError(f"No true trials at '{path}'. Write a line for each: {','.join(COLUMNS)}, then mine,12,success.")
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise VapError(
                    f"'{path}' must have the columns {', '.join(COLUMNS)} (and seed, where starts were imagined with "
                    f"several), it lacks {', '.join(missing)}."
                )
            for row in reader:
                try:
                    key, verdict = _line(row, imagined)
                    if key in found:
                        raise VapError(f"{key[0]}, start {key[1].start}, seed {key[1].seed} has a line already.")
                except VapError as error:
                    raise VapError(f"'{path}', line {reader.line_num}: {error}") from error
                found[key] = verdict
    except (UnicodeDecodeError, csv.Error) as error:
        raise VapError(f"'{path}' must be a CSV file in UTF-8, got: {error}. Save it again as such.") from error
    if not found:
        raise VapError(f"'{path}' must hold one trial or more, got none. Write policy,start,verdict of each.")
    names = [name for name in imagined.policies if any(name == policy for policy, _ in found)]
    trials = tuple(trial for trial in imagined.trials if any(trial == tried for _, tried in found))
    return Report(
        world="robot",
        about={key: imagined.about[key] for key in SHARED if key in imagined.about},
        trials=trials,
        rows={name: tuple(_row(found, name, i, trial) for i, trial in enumerate(trials)) for name in names},
        lost={},
    )


def _row(found: Mapping[tuple[str, Trial], str], name: str, i: int, trial: Trial) -> Row | None:
    """The row of a trial, None where it was not tried; what nobody has noted of it is 0."""
    verdict = found.get((name, trial))
    if verdict is None:
        return None
    progress = 1.0 if verdict == "success" else 0.0
    return Row(trial=i, verdict=verdict, fault=None, steps=0, progress=progress, trust=None, adherence_px=None)


def _line(row: Mapping[str, str | None], imagined: Report) -> tuple[tuple[str, Trial], str]:
    """The policy, trial and verdict of a line. Raises VapError without the file's name."""
    policy, word = ((row[name] or "").strip() for name in ("policy", "verdict"))
    if policy not in imagined.policies:
        raise unknown_name("policy in the imagined report", policy, imagined.policies)
    if word.lower() not in HumanLabels.WORDS:
        raise VapError(f"a verdict is success, failure or empty, got '{word}'.")
    start, seed = _number("start", row["start"]), (row.get("seed") or "").strip()
    tried = [trial for trial in imagined.trials if trial.start == start]
    if not tried:
        known = ", ".join(str(number) for number in dict.fromkeys(imagined.starts))
        raise VapError(f"start {start} was not imagined. Imagined were: {known}.")
    if not seed and len(tried) > 1:
        raise VapError(f"start {start} was imagined with {len(tried)} seeds, got no seed. Add the column seed.")
    trial = tried[0] if not seed else Trial(start=start, seed=_number("seed", seed))
    if trial not in tried:
        raise VapError(
            f"start {start} was imagined with seed {', '.join(str(one.seed) for one in tried)}, got {trial.seed}. "
            "Leave the column seed out where each start has one."
        )
    return (policy, trial), HumanLabels.WORDS[word.lower()]


def _number(name: str, text: str | None) -> int:
    try:
        return int((text or "").strip())
    except ValueError as error:
        raise VapError(f"{name} must be a whole number, got '{text or ''}'.") from error
