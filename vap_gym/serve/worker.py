"""One thread owns the model: it takes jobs from a bounded queue, and those that fit together as one batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from vap_gym.serve.errors import BusyError


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Something to do with one item; jobs of one key, which is not None, are done in one call of `run`."""

    run: Callable[[Sequence[Any]], Sequence[Any]]  # items → a result each
    item: Any
    key: Hashable | None
    future: Future[Any] = field(default_factory=Future)


class Worker:
    """Does jobs one after the other in a thread of its own, in the order in which they came.

    A job that is due takes along those of its key that wait anywhere in the queue, up to `batch` together. Where a
    batch fails each of its jobs is done alone: `run` must change nothing before it can no longer fail.

    Args:
        queue: so many jobs may wait.
        batch: so many are done at once.
    """

    def __init__(self, *, queue: int, batch: int) -> None:
        self._most, self._batch = queue, batch
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self.jobs = self.calls = 0  # begun so far
        self._thread = threading.Thread(target=self._work, name="vap-gym model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def submit(
        self, run: Callable[[Sequence[Any]], Sequence[Any]], item: Any, *, key: Hashable | None = None
    ) -> Future[Any]:
        """Queue a job and return its future result.

        Raises:
            BusyError: the queue is full.
        """
        job = Job(run=run, item=item, key=key)
        with self._changed:
            if len(self._waiting) >= self._most:
                raise BusyError(
                    f"The queue is full: {len(self._waiting)} requests wait, and no more may.", "Send it again later."
                )
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def stop(self) -> None:
        """End the thread after the job that it is at, if that ends soon; what waits is not done."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(timeout=10.0)

    def _work(self) -> None:
        while jobs := self._next():
            self.jobs += len(jobs)  # before they are answered: who is answered may ask
            self._do(jobs)

    def _next(self) -> list[Job]:
        with self._changed:
            while not self._waiting and not self._stopped:
                self._changed.wait()
            if not self._waiting:
                return []
            first = self._waiting.popleft()
            if first.key is None:
                return [first]
            fitting = [job for job in self._waiting if job.key == first.key][: self._batch - 1]
            for job in fitting:
                self._waiting.remove(job)
            return [first, *fitting]

    def _do(self, jobs: list[Job]) -> None:
        self.calls += 1
        try:
            results = jobs[0].run([job.item for job in jobs])
        except Exception as error:  # whatever it is, it is news for those who asked, and no reason to stop working
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:
                self._do([job])
            return
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)
