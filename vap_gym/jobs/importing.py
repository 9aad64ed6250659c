"""Importing several episodes at once: written beside the set by workers, taken over in order, the same bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vap_gym.data import layout
from vap_gym.data.adopt import adopt
from vap_gym.data.importing.run import STAGED, Doubts, Job, Outcome, Outcomes
from vap_gym.data.importing.source import Source
from vap_gym.jobs.attempt import DIED, Attempt
from vap_gym.jobs.executors import completed


@dataclass(frozen=True, kw_only=True)
class AtOnce:
    """What `import_source` takes as `write`: `workers` episodes at once, with "processes" or "ray".

    The set comes out as with one process, failures included: the first episode, which fixes rate and features, is
    written here, and so is every one that a worker refuses, so that the reason is told in the same words.
    An episode that kills its worker at every try is a failed one. Raises as `executors.completed` does.
    """

    executor: str
    workers: int

    def __call__(self, job: Job, names: Sequence[str]) -> Outcomes:
        """Yield the outcomes of `names` in order."""
        left = list(names)
        while left and job.writer is None:
            yield job.write(left.pop(0))
        if not left:
            return
        shutil.rmtree(job.out / STAGED, ignore_errors=True)  # of a run that was killed
        staged = job.out / STAGED / str(os.getpid())  # a worker that outlived that run may still write into its own
        task = ImportTask(
            source=job.source,
            path=job.path,
            staged=staged,
            info=layout.read_info(job.out),
            doubts=job.doubts,
            episodes_per_file=job.episodes_per_file,
        )
        items = {name: (name, number) for number, name in enumerate(left)}
        found: dict[str, Attempt] = {}
        turn = 0
        for key, attempted in completed(task, items, self.executor, self.workers):
            found[key] = attempted
            while turn < len(left) and left[turn] in found:
                yield self._taken(job, left[turn], found.pop(left[turn]), staged / str(turn))
                turn += 1

    def _taken(self, job: Job, name: str, attempted: Attempt, staged: Path) -> Outcome:
        if attempted.error == DIED:
            return Outcome(name=name, failed=DIED)
        if attempted.result is None or attempted.result["frames"] is None:
            shutil.rmtree(staged, ignore_errors=True)
            return job.write(name)
        adopt(staged, 0, job.out, job.next_index)
        shutil.rmtree(staged)
        job.next_index += 1
        return Outcome(name=name, index=job.next_index - 1, frames=attempted.result["frames"])


@dataclass(frozen=True, kw_only=True)
class ImportTask:
    """The job of one episode, by its name and a number: written as episode 0 of a set of its own, described by `info`.

    `info` is the meta/info.json of the set that is imported into: what does not fit it is refused here as it is there.
    """

    source: Source
    path: Path
    staged: Path
    info: Mapping[str, Any]
    doubts: Doubts
    episodes_per_file: int

    def __call__(self, item: tuple[str, int]) -> dict[str, Any]:
        """Write an episode; `frames` is None where it is refused."""
        name, number = item
        root = self.staged / str(number)
        shutil.rmtree(root, ignore_errors=True)  # of a worker that died
        layout.write_json(root / layout.INFO_PATH, self.info)
        job = Job(
            source=self.source,
            path=self.path,
            out=root,
            doubts=self.doubts,
            episodes_per_file=self.episodes_per_file,
            first_index=0,
        )
        outcome = job.write(name)
        return {"frames": None if outcome.failed is not None else outcome.frames}
