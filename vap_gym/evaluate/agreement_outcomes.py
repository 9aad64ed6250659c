"""Outcomes of the agreement experiment: what became of every policy in every trial, in one small file of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vap_gym.errors import CheckpointError, VapError
from vap_gym.evaluate.policies_report import VALUES, Row
from vap_gym.evaluate.report import write

Array = np.ndarray
FORMAT = "vap_gym agreement 1"
MARKS = {"success": "1", "failure": "0", "unknown": "?"}
MEANS = {mark: VALUES[verdict] for verdict, mark in MARKS.items()}
Settings = Mapping[str, Any]


class Outcomes:
    """Conditions × tasks × policies, each with its trials in the order of its starts.

    A condition is a world that policies were tried in ("oracle", "imagined", "replay", …). What differs between runs
    that go on from one file is refused (settings, weights) or forgotten and tried anew (a policy that is another now).

    Args:
        settings: plain JSON that decides what the trials are.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self.policies: dict[str, dict[str, Any]] = {}  # by task and name: what each one is
        self.weights: dict[str, dict[str, str]] = {}  # by condition: the world model's name and digest
        self.runs: list[dict[str, Any]] = []
        self.units: dict[str, dict[str, Any]] = {}

    @classmethod
    def load(cls, path: str | Path) -> Outcomes:
        """Read what `save` wrote. Raises CheckpointError where it is something else."""
        try:
            held = json.loads(Path(path).read_text(encoding="utf-8"))
            if held["format"] != FORMAT:
                raise KeyError(f"format '{FORMAT}', got '{held['format']}'")
            found = cls(held["settings"])
            found.policies, found.weights = dict(held["policies"]), dict(held["weights"])
            found.runs, found.units = list(held["runs"]), dict(held["units"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"'{path}' holds no outcomes of the agreement experiment: {error}. benchmarks/agreement.py writes them."
            ) from error
        return found

    def save(self, path: str | Path) -> None:
        """Write everything, whole or not at all; a line for each policy, so that changes can be read."""
        head = {
            "format": FORMAT, "settings": self.settings, "policies": self.policies, "weights": self.weights,
            "runs": self.runs,
        }  # fmt: skip
        lines = [f"{json.dumps(key)}: {_compact(self.units[key])}" for key in sorted(self.units)]
        told = ",\n".join([*(f"{json.dumps(key)}: {_compact(value)}" for key, value in head.items())])
        write(Path(path), "{\n" + told + ',\n"units": {\n' + ",\n".join(lines) + "\n}\n}")

    # --- going on ---

    def claim(self, settings: Settings) -> None:
        """Go on with these settings. Raises VapError where the file is of others."""
        given = json.loads(json.dumps(dict(settings)))
        differ = [key for key in {**self.settings, **given} if self.settings.get(key) != given.get(key)]
        if differ:
            told = "; ".join(f"{key} {self.settings.get(key)!r}, got {given.get(key)!r}" for key in differ)
            raise VapError(
                f"The outcomes that are kept are of other settings: {told}. Give the same ones, or another --page."
            )

    def claim_weights(self, condition: str, name: str, digest: str, familiar: str = "") -> None:
        """Note with which weights a condition is imagined (a name or folder), and by what strange starts are told
        (`familiar_digest`). Raises VapError where it holds trials of others."""
        name = Path(name).name
        before = self.weights.get(condition)
        if before is not None and before["digest"] != digest and self.tasks(condition):
            raise VapError(
                f"'{condition}' holds trials that were imagined by other weights: {before['name']} "
                f"{before['digest']}, got {name} {digest}. Drop them with --forget {condition}, or give another --page."
            )
        if before is not None and before.get("familiar", "") != familiar and self.tasks(condition):
            raise VapError(
                f"'{condition}' holds trials whose strange starts were told otherwise ('{before.get('familiar', '')}', "
                f"got '{familiar}'). Bring them up to date: python benchmarks/agreement_familiar.py."
            )
        self.weights[condition] = {"name": name, "digest": digest} | ({"familiar": familiar} if familiar else {})

    def claim_policies(
        self, task: str, policies: Mapping[str, Any], everyone: Sequence[str], *, section: str = ""
    ) -> list[str]:
        """Note what the policies of a task are, and forget the trials of those that were others, or are no more.

        Args:
            policies: what each of those is that are tried now.
            everyone: the names of all that are in the grid.
            section: policies that are told apart from those of the experiment itself, such as those gone wrong.

        Returns:
            the names whose trials were forgotten.
        """
        key = f"{section}/{task}" if section else task
        before = self.policies.get(key, {})
        now = {**before, **json.loads(json.dumps(dict(policies)))}
        given = {name: now[name] for name in everyone if name in now}
        gone = [name for name in before if given.get(name) != before[name]]
        lost = [unit for unit in self.units if unit.split("/")[1:] in [[task, name] for name in gone]]
        for unit in lost:
            del self.units[unit]
        self.policies[key] = given
        return sorted({unit.rsplit("/", 1)[1] for unit in lost})

    def forget(self, conditions: Iterable[str]) -> None:
        """Drop all trials of these conditions. Raises VapError for one that is not there."""
        for condition in conditions:
            if not self.tasks(condition):
                raise VapError(
                    f"No trials of '{condition}' are kept, got --forget {condition}. There are: "
                    f"{', '.join(self.conditions()) or 'none'}."
                )
            self.units = {key: unit for key, unit in self.units.items() if not key.startswith(f"{condition}/")}
            self.weights.pop(condition, None)

    # --- trials ---

    def add(self, condition: str, task: str, name: str, rows: Sequence[Row], seconds: float | None = None) -> None:
        """Keep one policy's trials, and the seconds that each took where that is known."""
        trust = [None if row.trust is None else round(row.trust, 3) for row in rows]
        self.units[f"{condition}/{task}/{name}"] = {
            "verdicts": "".join(MARKS[row.verdict] for row in rows),
            "steps": [row.steps for row in rows],
            "progress": [round(row.progress, 2) for row in rows],
            "trust": trust if any(value is not None for value in trust) else None,
            "faults": sum(row.fault is not None for row in rows),
            "seconds": None if seconds is None else round(seconds, 3),
        }

    def has(self, condition: str, task: str, name: str) -> bool:
        """Whether a policy's trials are kept."""
        return f"{condition}/{task}/{name}" in self.units

    def conditions(self) -> list[str]:
        """The conditions of which there are trials."""
        return list(dict.fromkeys(key.split("/")[0] for key in self.units))

    def tasks(self, condition: str) -> list[str]:
        """The tasks of which a condition has trials."""
        return list(dict.fromkeys(key.split("/")[1] for key in self.units if key.startswith(f"{condition}/")))

    def names(self, task: str, *conditions: str, section: str = "") -> list[str]:
        """The policies of a task whose trials all these conditions have, in the order of the grid."""
        known = self.policies.get(f"{section}/{task}" if section else task, {})
        return [name for name in known if all(self.has(condition, task, name) for condition in conditions)]

    def outcomes(self, condition: str, task: str, names: Sequence[str]) -> Float[Array, "P N"]:
        """1 for success, 0 for failure, NaN for unknown; of as many starts as all of them were tried from."""
        rows = [[MEANS[mark] for mark in self._unit(condition, task, name)["verdicts"]] for name in names]
        return _even(rows)

    def trust(self, condition: str, task: str, names: Sequence[str]) -> Float[Array, "P N"]:
        """Trust in each verdict, NaN where it is not known."""
        units = [self._unit(condition, task, name) for name in names]
        told = [unit["trust"] or [None] * len(unit["verdicts"]) for unit in units]
        return _even([[np.nan if value is None else value for value in row] for row in told])

    def meet(self, condition: str, unfamiliar: Mapping[str, Sequence[float]], familiar: str) -> int:
        """Bring the trust of trials that were tried before strange starts were told up to what is told now.

        A step's risk is raised towards one half by as much as its start is unfamiliar, so the mean trust of a trial
        falls towards one half by as much: exactly what trials would have that were tried anew, where no risk was above
        one half (of the shipped world model none is).

        Args:
            condition: worlds whose trials are imagined; those that have been brought up to date are left alone.
            unfamiliar: of each task's starts, 0 to 1, in their order.
            familiar: by what it is told (`familiar_digest`).

        Returns:
            how many trials' trust has changed.

        Raises:
            VapError: the condition's trust was told by something else before, or starts are missing.
        """
        weights, changed = self.weights[condition], 0
        if before := weights.get("familiar"):
            if before != familiar:
                told = f"Strange starts of '{condition}' were told by '{before}' before, now by '{familiar}'."
                raise VapError(f"{told} Try them anew: --forget {condition}.")
            return 0
        for key, unit in self.units.items():
            own, task, _ = key.split("/")
            if own != condition or unit["trust"] is None:
                continue
            if len(unfamiliar[task]) < len(unit["trust"]):
                raise VapError(f"{len(unit['trust'])} starts of '{task}' are needed, got {len(unfamiliar[task])}.")
            kept = unit["trust"]
            unit["trust"] = [
                value if value is None or not u else round(value + float(u) * min(0.5 - value, 0.0), 3)
                for value, u in zip(kept, unfamiliar[task], strict=False)
            ]
            changed += sum(x != y for x, y in zip(kept, unit["trust"], strict=True))
        weights["familiar"] = familiar
        return changed

    def seconds(self, condition: str) -> float | None:
        """Median seconds that a trial of a condition took; None where it was not measured."""
        found = [unit["seconds"] for key, unit in self.units.items() if key.startswith(f"{condition}/")]
        known = [value for value in found if value is not None]
        return float(np.median(known)) if known else None

    def _unit(self, condition: str, task: str, name: str) -> dict[str, Any]:
        return self.units[f"{condition}/{task}/{name}"]


def _even(rows: Sequence[Sequence[float]]) -> Float[Array, "P N"]:
    count = min((len(row) for row in rows), default=0)
    return np.array([row[:count] for row in rows], np.float64).reshape(len(rows), count)


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
