"""The report of an evaluation: what became of every policy in every trial, and what follows from it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vap_gym.errors import VapError, unknown_name
from vap_gym.evaluate.policies_trials import Setting, Trial
from vap_gym.evaluate.report import table, write
from vap_gym.evaluate.trials import mean_over_starts, paired_difference, start_numbers, wilson
from vap_gym.metrics import Interval

Array = np.ndarray
FORMAT = "vap_gym evaluation 1"
VALUES = {"success": 1.0, "failure": 0.0, "unknown": np.nan}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one policy in one trial."""

    trial: int
    verdict: str  # "success", "failure" or "unknown"
    fault: str | None  # what the policy did wrong, which is a failure
    steps: int
    progress: float  # the most that was reached, 0 to 1
    trust: float | None  # 1 − the mean risk, over its steps, that an object is off; None: nobody knows
    adherence_px: float | None  # median distance from where the gripper is seen to where it was commanded to be


@dataclass(frozen=True, kw_only=True)
class Report:
    """Policies × trials. An entry is None where the episode could not be played (a full disk, a killed worker)."""

    world: str  # "imagination" or "oracle"
    about: Mapping[str, Any]  # settings that are the same for all policies
    trials: tuple[Trial, ...]
    rows: Mapping[str, tuple[Row | None, ...]]  # by policy
    lost: Mapping[str, str]  # why entries are None, by policy

    @property
    def policies(self) -> tuple[str, ...]:
        """Their names, in the order in which they were given."""
        return tuple(self.rows)

    @property
    def starts(self) -> list[int]:
        """The number of each trial's start."""
        return [trial.start for trial in self.trials]

    def outcomes(self) -> Float[Array, "P N"]:
        """1 for success, 0 for failure, NaN where it is unknown or was not played."""
        return self._values(lambda row: VALUES[row.verdict])

    def trust(self) -> Float[Array, "P N"]:
        """Trust in each verdict, NaN where it is not known."""
        return self._values(lambda row: np.nan if row.trust is None else row.trust)

    def progress(self) -> Float[Array, "P N"]:
        """The most that was reached of each task, NaN where it was not played."""
        return self._values(lambda row: row.progress)

    def rate(self, policy: str, *, level: float = 0.95) -> Interval:
        """A policy's success rate: Wilson's interval, or where starts were tried with several seeds a bootstrap of
        whole starts.

        Raises:
            VapError: a policy that is not there, or of which no verdict is known.
        """
        outcomes = self._of(policy)
        known = np.isfinite(outcomes)
        if not known.any():
            why = self.lost.get(policy, "the judge cannot tell.")
            raise VapError(
                f"A success rate needs a verdict that is known, got none of '{policy}': {why} Play it again, or leave "
                "it out."
            )
        if len(set(self.starts)) == len(self.trials):
            return wilson(int(outcomes[known].sum()), int(known.sum()), level=level)
        groups = start_numbers(self.starts, len(self.trials))
        return mean_over_starts(outcomes[known], groups[known], level=level)

    def difference(self, a: str, b: str, *, level: float = 0.95) -> Interval:
        """How much more often `a` succeeds than `b` in the same trials. Raises VapError as `rate`."""
        return paired_difference(self._of(a), self._of(b), starts=self.starts, level=level)

    def correlation(self, a: str, b: str) -> float:
        """Correlation of two policies' outcomes in the same trials: what pairing gains. 0 where one never changes."""
        left, right = self._of(a), self._of(b)
        known = np.isfinite(left) & np.isfinite(right)
        left, right = left[known], right[known]
        if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
            return 0.0
        return float(np.corrcoef(left, right)[0, 1])

    def ranked(self) -> list[str]:
        """Policies with a known verdict, the best first; equal ones in their own order."""
        means = {
            name: float(np.nanmean(row)) for name, row in zip(self.policies, self.outcomes()) if np.isfinite(row).any()
        }
        return sorted(means, key=lambda name: -means[name])

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON, with what follows from it: the same rows give the same bytes."""
        ranked = self.ranked()
        return {
            "format": FORMAT,
            "world": self.world,
            "about": dict(self.about),
            "success": {name: asdict(self.rate(name)) for name in ranked},
            "differences": [
                {"better": a, "worse": b, **asdict(self.difference(a, b))}
                for a, b in itertools.pairwise(ranked)
                if np.isfinite(self._of(a) - self._of(b)).any()
            ],
            "trials": [asdict(trial) for trial in self.trials],
            "rows": {name: [None if row is None else asdict(row) for row in rows] for name, rows in self.rows.items()},
            "lost": dict(self.lost),
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, whole or not at all."""
        write(Path(path), json.dumps(self.to_json(), ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a report, from its file or the folder that it is in. Raises VapError where it is none."""
        file = Path(path)
        file = file / "report.json" if file.is_dir() else file
        if not file.is_file():
            raise VapError(f"No report at '{file}'. Give report.json of an evaluation, or its folder.")
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            if held["format"] != FORMAT:
                raise KeyError(f"format '{FORMAT}', got '{held['format']}'")
            return cls(
                world=held["world"],
                about=held["about"],
                trials=tuple(Trial(**trial) for trial in held["trials"]),
                rows={
                    name: tuple(None if row is None else Row(**row) for row in rows)
                    for name, rows in held["rows"].items()
                },
                lost=held["lost"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VapError(
                f"'{file}' must be a report of an evaluation, got: {error}. Write it with vap-gym evaluate."
            ) from error

    def __str__(self) -> str:
        """Return a table to read."""
        lines = []
        for name in [*self.ranked(), *(name for name in self.policies if name not in self.ranked())]:
            rows = [row for row in self.rows[name] if row is not None]
            verdicts = [row.verdict for row in rows]
            told = str(self.rate(name)) if name in self.ranked() else "unknown"
            lines.append(
                [name, told, *(str(verdicts.count(v)) for v in VALUES), str(sum(row.fault is not None for row in rows)),
                 str(len(self.trials) - len(rows))]
            )  # fmt: skip
        return table(["policy", "success", *VALUES, "faults", "not played"], lines)

    def _of(self, policy: str) -> Float[Array, " N"]:
        if policy not in self.rows:
            raise unknown_name("policy", policy, self.rows)
        return np.asarray(self.outcomes()[self.policies.index(policy)])

    def _values(self, value: Any) -> Float[Array, "P N"]:
        return np.array(
            [[np.nan if row is None else value(row) for row in rows] for rows in self.rows.values()], np.float64
        )


def assembled(
    setting: Setting, names: Sequence[str], trials: Sequence[Trial],
    rows: Mapping[str, Mapping[int, Mapping[str, Any]]], lost: Mapping[str, str], *, starts_digest: str | None = None,
) -> Report:  # fmt: skip
    """Return the report of what jobs gave, by policy and trial.

    Args:
        starts_digest: of the file of starts; None: it is not known.
    """
    shared = {key: value for key, value in setting.to_json().items() if key != "action_mode"}
    shared |= {} if starts_digest is None else {"starts_digest": starts_digest}
    return Report(
        world="oracle" if setting.oracle else "imagination",
        about=shared,
        trials=tuple(trials),
        rows={
            name: tuple(Row(**rows[name][i]) if i in rows[name] else None for i in range(len(trials))) for name in names
        },
        lost=dict(lost),
    )
