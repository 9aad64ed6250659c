"""Running jobs: every item once, each finished one noted at once, the same outcomes whoever ran them in what order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vap_gym.jobs.attempt import Task
from vap_gym.jobs.executors import completed
from vap_gym.jobs.manifest import Outcome, begin, entry, write


def run_jobs(
    task: Task,
    items: Mapping[str, Any],
    *,
    manifest: Path,
    settings: Mapping[str, Any] | None = None,
    executor: str = "serial",
    workers: int = 1,
    unit: str = "episode",
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run `task` on every item and return the outcomes in the order of `items`.

    An item that fails becomes an outcome with an error, and stops no other. Call it again to go on after a kill:
    items that the manifest holds as done are not run again, failed ones are. In the end the manifest lists the items
    in their own order: its bytes do not depend on executor, workers or interruptions.

    Args:
        task: see `attempt.Task`. It gets the item only, so the item names the index that it may write under.
        items: what to run it on, by a key that stays the same from run to run; anything that can be pickled.
        manifest: the file, one for every run.
        settings: plain JSON that decides what the task makes; a manifest of other settings is refused.
        executor: "serial" (here), "processes" (of this machine) or "ray" (Ray Data; the extra [cluster]).
        workers: jobs at once; with "serial" always one.
        unit: what the progress bar counts.
        tell: called here with every new outcome, in the order in which they end.

    Raises:
        DataError: the manifest is of another run.
        UnknownNameError, MissingDependencyError, VapError: see `executors.completed`.
    """
    from tqdm import tqdm

    told = dict(settings or {})
    found = {key: outcome for key, outcome in begin(manifest, told).items() if outcome.error is None}
    left = {key: item for key, item in items.items() if key not in found}
    with (
        manifest.open("a", encoding="utf-8") as log,
        tqdm(total=len(items), initial=len(items) - len(left), unit=unit, disable=None) as bar,
    ):
        for key, attempted in completed(task, left, executor, workers):
            outcome = Outcome(key=key, result=attempted.result, error=attempted.error)
            found[key] = outcome
            log.write(entry(outcome))
            log.flush()
            bar.update()
            tell(outcome)
    others = [outcome for key, outcome in found.items() if key not in items]
    write(manifest, told, [*others, *(found[key] for key in items)])
    return [found[key] for key in items]
