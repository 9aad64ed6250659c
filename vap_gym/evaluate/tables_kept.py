"""Scores of the tables in one small file of JSON beside the page: what was trained and scored in another checkout is
neither trained nor scored again, and the page can be made anew without any model.

```
trainings   by name and seed: recipe's key, cost, which training of its base it started from, and scores
references  by kind: scores of frozen frame, codec and judge
sets        by set and split: how many episodes, and whether the camera moves
origin      where and when the last of it was measured
```
Scores stand under "set/split", a figure an episode (null where it does not apply), beside what decides them: the judge,
the way of sampling and a hash of the clips.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vap_gym.errors import CheckpointError
from vap_gym.evaluate.report import write
from vap_gym.evaluate.tables_page import REFERENCES, Results, RunFact
from vap_gym.evaluate.tables_plan import Plan
from vap_gym.evaluate.tables_runs import Job, fact_of, manifest
from vap_gym.evaluate.tables_scores import Scores

FORMAT = "vap_gym tables 1"
DIGITS = 5


@dataclass(kw_only=True)
class Kept:
    """All scores that are kept. `mark` of a cell is a hash of what decides it beside the training."""

    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    origin: str = ""

    @classmethod
    def load(cls, path: Path) -> Kept:
        """Read what `save` wrote; nothing where there is no file. Raises CheckpointError where it is something else."""
        if not path.is_file():
            return cls()
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if held["format"] != FORMAT:
                raise KeyError(f"format '{FORMAT}', got '{held['format']}'")
            parts = {name: dict(held[name]) for name in ("trainings", "references", "sets")}
            return cls(**parts, origin=str(held["origin"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"'{path}' holds no scores of the tables: {error}. vap-gym bench tables writes them."
            ) from error

    def save(self, path: Path) -> None:
        """Write everything, and what the file has beside, whole or not at all; a line for each training."""
        self._take(Kept.load(path))
        parts = []
        for name in ("trainings", "references", "sets"):
            held = getattr(self, name)
            rows = ",\n".join(f"{json.dumps(key)}: {_compact(held[key])}" for key in sorted(held))
            parts.append(f'"{name}": {{\n{rows}\n}}')
        head = f'"format": "{FORMAT}",\n"origin": {_compact(self.origin)}'
        write(path, "{" + ",\n".join([head, *parts]) + "\n}")

    def _take(self, other: Kept) -> None:
        """Add what another process kept in the meantime."""
        for name, told in other.trainings.items():
            own = self.trainings.setdefault(name, told)
            if all(own[key] == told[key] for key in ("key", "finished")):
                own["scores"] = {**told["scores"], **own["scores"]}
        self.references = {**other.references, **self.references}
        self.sets = {**other.sets, **self.sets}

    def note(self, job: Job) -> None:
        """Keep what a training that is done cost; scores of another one under its name are dropped."""
        about = {"key": job.key, "finished": (manifest(job) or {}).get("finished"), **fact_of(job).to_json()}
        before = self.trainings.get(_name(job), {})
        same = all(before.get(name) == about[name] for name in ("key", "finished"))
        self.trainings[_name(job)] = about | {"scores": before["scores"] if same else {}}

    def add(self, job: Job, cell: str, mark: str, scores: Scores) -> None:
        """Keep a trained model's scores."""
        self.note(job)
        self.trainings[_name(job)]["scores"][cell] = _unit(mark, scores)

    def add_reference(self, key: str, cell: str, mark: str, scores: Scores) -> None:
        """Keep what a reference scores."""
        self.references[f"{key}/{cell}"] = _unit(mark, scores)

    def of_job(self, job: Job, cell: str, mark: str) -> Scores | None:
        """A training's scores; None where they are not kept, or follow from something else."""
        return _scores(self._of(job).get("scores", {}).get(cell), mark)

    def of_reference(self, key: str, cell: str, mark: str) -> Scores | None:
        """A reference's scores; None likewise."""
        return _scores(self.references.get(f"{key}/{cell}"), mark)

    def fact(self, job: Job) -> RunFact | None:
        """What a training that is kept here cost."""
        told = self._of(job)
        return _fact(told) if told else None

    def _of(self, job: Job) -> Mapping[str, Any]:
        told = self.trainings.get(_name(job), {})
        return told if told.get("key") == job.key else {}

    def results(self, plan: Plan) -> Results:
        """All that is kept of a plan, without its data and trainings."""
        measured: dict[tuple[str, str, str], Sequence[Scores]] = {}
        facts, skipped = [], []
        for run in plan.runs:
            for seed in plan.seeds[:1] if run in plan.stages else plan.seeds:
                told = self.trainings.get(f"{run}/{seed}")
                if told is not None:
                    facts.append(_fact(told))
                elif run not in plan.stages:
                    skipped.append(f"{run}, seed {seed}")
        for cell in self.sets:
            name, split = cell.split("/")
            for key in REFERENCES:
                if (unit := self.references.get(f"{key}/{cell}")) is not None:
                    measured[key, name, split] = [_arrays(unit)]
            for row in (row for table in plan.tables.values() for row in table.rows if name in row.runs):
                units = [
                    self.trainings.get(f"{row.runs[name]}/{seed}", {}).get("scores", {}).get(cell)
                    for seed in plan.seeds
                ]
                if found := [_arrays(unit) for unit in units if unit is not None]:
                    measured[row.name, name, split] = found
        moving: dict[str, bool] = {}
        episodes: dict[tuple[str, str], int] = {}
        for cell, told in self.sets.items():
            name, split = cell.split("/")
            moving[name] = moving.get(name, False) or bool(told["moving"])
            episodes[name, split] = int(told["episodes"])
        return Results(
            measured=measured, moving=moving, facts=facts, skipped=skipped, episodes=episodes, origin=self.origin
        )  # fmt: skip


def _name(job: Job) -> str:
    return f"{job.run.name}/{job.seed}"


def _fact(told: Mapping[str, Any]) -> RunFact:
    return RunFact(**{name: told[name] for name in RunFact.__dataclass_fields__})


def _unit(mark: str, scores: Scores) -> dict[str, Any]:
    return {"mark": mark} | {name: [_short(value) for value in values] for name, values in scores.items()}


def _short(value: float) -> float | None:
    return None if np.isnan(value) else float(f"{value:.{DIGITS}g}")


def _scores(unit: Mapping[str, Any] | None, mark: str) -> Scores | None:
    return None if unit is None or unit["mark"] != mark else _arrays(unit)


def _arrays(unit: Mapping[str, Any]) -> Scores:
    return {
        name: np.array([np.nan if value is None else value for value in values], np.float64)
        for name, values in unit.items()
        if name != "mark"
    }


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
