"""The registry of the tables' trainings: what each is made of, so that another recipe is never taken for a done one.

```
<folder>/<name>/<seed>/manifest.json   key, recipe, base, data, steps, samples, hours, and whether it is done
<folder>/<name>/<seed>/…               the run itself: log, curves, states, model
```
The key is a hash of the recipe, but for what is as usual in it, of the data and of the key of the training before.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vap_gym.data import EpisodeSet
from vap_gym.data.layout import write_json
from vap_gym.errors import CheckpointError
from vap_gym.evaluate.report import commit, machine
from vap_gym.evaluate.tables_page import RunFact
from vap_gym.evaluate.tables_plan import Plan, RunPlan

MANIFEST = "manifest.json"
DONE, BEGUN, MISSING, OTHER = "done", "begun", "to do", "another recipe's"
NO_MATTER = ("cache", "workers", "log_every", "save_every", "score_clips", "evaluations")  # give no other weights
SPOTS = 4  # episodes of a set whose pictures are looked at


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training under one seed: where it is kept, and what it is made of."""

    run: RunPlan
    seed: int
    folder: Path
    base: Job | None
    data: Mapping[str, str]  # by set: a digest of what is trained on
    held: Mapping[str, int]  # what of it is held out

    @property
    def told(self) -> dict[str, Any]:
        """All that its outcome follows from, as JSON."""
        base = self.base.key if self.base else ""
        recipe = {
            key: value for key, value in self.run.recipe.items() if key not in NO_MATTER and not _usual(key, value)
        }
        return {"recipe": recipe, "seed": self.seed, self.run.starts: base, "data": dict(self.data), **self.held}

    @property
    def key(self) -> str:
        """A hash of `told`."""
        return hashlib.sha256(json.dumps(self.told, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Say which it is."""
        return f"{self.run.name}, seed {self.seed}"


def _usual(key: str, value: Any) -> bool:
    """Whether a recipe that leaves this out is the same."""
    from vap_gym.train.video_recipe import VideoRecipe

    field = VideoRecipe.__dataclass_fields__.get(key)
    return field is not None and type(field.default) is type(value) and bool(field.default == value)


def jobs_of(plan: Plan, folder: Path) -> list[Job]:
    """All trainings of a plan, each after the one that it starts from. What is no row of a table has one seed."""
    digests = {name: data_digest(Path(plan.sets[name].data), plan.episodes) for name in _sets_used(plan)}
    made: dict[tuple[str, int], Job] = {}
    for seed in plan.seeds:  # all of a seed before the next: of several seeds there may be as many as there is time for
        for name, run in plan.runs.items():
            if name in plan.stages and seed != plan.seeds[0]:
                continue
            base = made.get((run.base, seed)) or made.get((run.base, plan.seeds[0]))
            made[name, seed] = Job(
                run=run, seed=seed, folder=folder / name / str(seed), base=base if run.base else None,
                data={one: digests[one] for one in run.sets},
                held={"held_out": plan.held_out},
            )  # fmt: skip
    return list(made.values())


def data_digest(root: Path, episodes: int = 0) -> str:
    """A hash of what a data set says of its first `episodes` (0: all), and of what some of them show."""
    source = EpisodeSet(root)
    count = min(episodes or len(source), len(source))
    if not count:
        raise CheckpointError(
            f"'{root}' must hold episodes to be trained on, got none. Make some: vap-gym data generate"
        )
    digest = hashlib.sha256()
    for i in range(count):
        row = [source.index(i), source.length(i), source.task(i), source.info(i)]
        digest.update(json.dumps(row, sort_keys=True).encode())
    for i in sorted({round(k * (count - 1) / max(SPOTS - 1, 1)) for k in range(SPOTS)}):
        shown = source.read(i, stop=1, labels=())
        for table in (shown.frames, shown.columns):
            for name in sorted(table):
                digest.update(name.encode() + np.ascontiguousarray(table[name]).tobytes())
    return digest.hexdigest()


def state_of(job: Job) -> str:
    """Whether a training is DONE, BEGUN, MISSING, or the folder holds ANOTHER recipe's."""
    told = manifest(job)
    if told is None:
        return MISSING
    if told.get("key") != job.key:
        return OTHER
    return DONE if told.get("done") else BEGUN


def manifest(job: Job) -> dict[str, Any] | None:
    """What the folder of a training says of itself; None where it says nothing."""
    path = job.folder / MANIFEST
    if not path.is_file():
        return None
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"'{path}' must be JSON, got {error}. Remove the folder to train anew.") from error
    return told


def refuse_others(jobs: Sequence[Job]) -> None:
    """Raise CheckpointError where a folder holds a training of another recipe, and say in what it differs."""
    others = [job for job in jobs if state_of(job) == OTHER]
    if others:
        job, told = others[0], manifest(others[0]) or {}
        rest = f", and {len(others) - 1} more" if len(others) > 1 else ""
        given = f"one with {_differs(told, job.told)}{rest}"
        raise CheckpointError(
            f"'{job.folder}' must hold '{job.run.name}' as the plan has it, got {given}. "
            "Train anew with --retrain (what is there is kept beside), or name another folder with --runs."
        )


def put_aside(job: Job) -> Path:
    """Move a training of another recipe out of the way; return where to."""
    told = manifest(job) or {}
    aside = job.folder.with_name(f"{job.folder.name}.{str(told.get('key'))[:8]}")
    number = 1
    while aside.exists():
        number += 1
        aside = job.folder.with_name(f"{job.folder.name}.{str(told.get('key'))[:8]}-{number}")
    job.folder.rename(aside)
    return aside


@contextmanager
def claimed(job: Job) -> Iterator[bool]:
    """Be the only process at a training; False where another one is. The claim ends with the process."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with (job.folder.parent / f".{job.folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def begin(job: Job) -> None:
    """Write the manifest of a training that begins, or goes on."""
    if state_of(job) == BEGUN:
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    about = {"key": job.key, "name": job.run.name, **job.told, "done": False, "started": _now(), "hours": 0.0}
    about["started_from"] = str((manifest(job.base) or {}).get("finished", "")) if job.base else ""
    write_json(job.folder / MANIFEST, about | {"machine": machine(), "commit": commit(), "pid": os.getpid()})


def note(job: Job, *, hours: float, samples: int, done: bool) -> None:
    """Note in a training's manifest what it took so far, after it ended or was stopped."""
    told = manifest(job) or {}
    more = {"hours": hours, "samples": samples, "steps": job.run.steps, "done": done}
    write_json(job.folder / MANIFEST, told | more | ({"finished": _now()} if done else {}))


def fact_of(job: Job) -> RunFact:
    """What a training that is done cost."""
    told = manifest(job) or {}
    return RunFact(
        name=job.run.name,
        seed=job.seed,
        steps=job.run.steps,
        samples=int(told["samples"]),
        hours=float(told["hours"]),
        recipe=job.key[:8],
        started_from=str(told.get("started_from", "")),
    )


def _sets_used(plan: Plan) -> list[str]:
    used = {name for run in plan.runs.values() for name in run.sets}
    return [name for name in plan.sets if name in used]


def _differs(given: Mapping[str, Any], wanted: Mapping[str, Any], where: str = "") -> str:
    """In what a manifest differs from a plan: "recipe.steps 300 (now 400)"."""
    parts = []
    for key in sorted({*given, *wanted} if where else wanted):
        old, new, name = given.get(key), json.loads(json.dumps(wanted.get(key))), f"{where}{key}"
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            parts.append(_differs(old, new, f"{name}."))
        else:
            parts.append(f"{name} {_short(old)} (now {_short(new)})")
    return ", ".join(parts)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:8]}…" if len(text) > 24 else text or "none"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
