"""The manifest of a run: a line of JSON for every finished item, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vap_gym.data.layout import DataError, replacing


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of an item: the job's result, or the reason why there is none."""

    key: str
    result: dict[str, Any] | None = None
    error: str | None = None

    @property
    def digest(self) -> str:
        """A short hash of the result."""
        return digest(self.result)


def digest(value: object) -> str:
    """Return the first 16 hexadecimals of the SHA-256 of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def begin(path: Path, settings: Mapping[str, Any]) -> dict[str, Outcome]:
    """Return the outcomes that a manifest holds by key, {} where there is none yet, and leave it fit to be added to.

    A line that a kill cut short, or whose digest is not that of its result, does not count: its item is run again.
    Raises DataError where it is the manifest of a run with other settings, or no manifest.
    """
    header = {"settings": dict(settings), "digest": digest(dict(settings))}
    lines = _lines(path) if path.is_file() else []
    if path.is_file() and lines and (not isinstance(lines[0], dict) or "settings" not in lines[0]):
        raise DataError(f"{path} must be the manifest of a run, got something else. Write into a new folder.")
    if lines and lines[0].get("digest") != header["digest"]:
        raise DataError(
            f"{path} is of a run with other settings, {_differences(lines[0]['settings'], settings)}. "
            "Give the same to go on, or write into a new folder."
        )
    found: dict[str, Outcome] = {}
    for line in lines[1:]:
        outcome = _outcome(line)
        if outcome is not None:
            found[outcome.key] = outcome
    write(path, settings, found.values())
    return found


def settings_in(path: Path) -> dict[str, Any] | None:
    """Return the settings of the run that a manifest is of; None where there is none, or no manifest."""
    head = next(iter(_lines(path) if path.is_file() else []), None)
    settings = head.get("settings") if isinstance(head, dict) else None
    return dict(settings) if isinstance(settings, dict) else None


def _differences(before: object, now: Mapping[str, Any]) -> str:
    """In which settings two runs differ, both values told."""
    old, new = (json.loads(json.dumps(table)) for table in (before, dict(now)))  # tuples are lists in JSON
    if not isinstance(old, dict):
        return f"{old!r}, got {new!r}"
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    told = [json.dumps({key: table.get(key) for key in keys}, ensure_ascii=False) for table in (old, new)]
    return ", got ".join(told)


def write(path: Path, settings: Mapping[str, Any], outcomes: Iterable[Outcome]) -> None:
    """Write a whole manifest, or leave the one that is there."""
    header = {"settings": dict(settings), "digest": digest(dict(settings))}
    with replacing(path) as temporary:
        temporary.write_text("".join([_line(header), *map(entry, outcomes)]), encoding="utf-8")


def entry(outcome: Outcome) -> str:
    """Return the line of an outcome."""
    if outcome.error is not None:
        return _line({"key": outcome.key, "status": "failed", "error": outcome.error})
    return _line({"key": outcome.key, "status": "done", "digest": outcome.digest, "result": outcome.result})


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _lines(path: Path) -> list[Any]:
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            found.append(None)
    return found


def _outcome(line: Any) -> Outcome | None:
    if not isinstance(line, dict) or not isinstance(line.get("key"), str):
        return None
    if line.get("status") == "failed":
        return Outcome(key=line["key"], error=str(line.get("error")))
    outcome = Outcome(key=line["key"], result=line.get("result"))
    return outcome if isinstance(outcome.result, dict) and outcome.digest == line.get("digest") else None
