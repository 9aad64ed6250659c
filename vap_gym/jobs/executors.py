"""Where jobs run: here, in processes of this machine, or on Ray; each yields results as they come."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import re
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, get_args

from vap_gym.errors import VapError, require, unknown_name
from vap_gym.jobs.attempt import DIED, TRIES, Attempt, Task, attempt

Executor = Literal["serial", "processes", "ray"]
EXECUTORS: tuple[str, ...] = get_args(Executor)
ANSWER_S = 10.0
LET_IN = (
    "Ray's versions must be the same there and here. If the cluster asks for a token, set RAY_AUTH_MODE=token, and "
    "RAY_AUTH_TOKEN or ~/.ray/auth_token to its token."
)
OBJECT_STORE_BYTES = 80 * 2**20  # the least that Ray takes; items and results are small, frames go to disk


def completed(task: Task, items: Mapping[str, Any], executor: str, workers: int) -> Iterator[tuple[str, Attempt]]:
    """Run `task` on every item and yield (key, attempt) in the order in which they end.

    Raises UnknownNameError for another executor, MissingDependencyError where Ray is not installed, VapError where
    the task cannot be sent to other processes.
    """
    if executor not in EXECUTORS:
        raise unknown_name("executor", executor, EXECUTORS)
    if workers < 1:
        raise VapError(f"Jobs need at least 1 worker, got {workers}. As many as there are cores is usual.")
    if executor == "serial":
        return _here(task, items)
    try:
        pickle.dumps(task)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise VapError(
            f"A job for other processes must be picklable, got {type(task).__name__}: {error}. Use a function of a "
            "module, or a dataclass with __call__; or --executor serial."
        ) from error
    return _in_processes(task, items, workers) if executor == "processes" else _on_ray(task, items, workers)


def _here(task: Task, items: Mapping[str, Any]) -> Iterator[tuple[str, Attempt]]:
    """One after the other, with one thread of torch: as in workers, so that sums come out the same to the last bit."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for key, item in items.items():
            yield key, attempt(task, item)
    finally:
        torch.set_num_threads(threads)


_TASK: list[Task] = []  # of a worker process: sent once, since it may hold a network's weights


def _begin(task: Task) -> None:
    _TASK[:] = [task]
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A worker whose run was killed would wait for its next item for ever, and hold its memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _attempt(item: Any) -> Attempt:
    return attempt(_TASK[0], item)


def _in_processes(task: Task, items: Mapping[str, Any], workers: int) -> Iterator[tuple[str, Attempt]]:
    """A pool breaks when one of its processes dies; who was at work then is tried again, one by one, each alone.

    A pool may break between any two lines here, so an item leaves `left` only together with its outcome.
    """
    left = dict(items)
    while left:
        running: dict[Future[Attempt], str] = {}
        try:
            with _pool(task, min(workers, len(left))) as pool:
                waiting = iter(list(left))
                for key in islice(waiting, workers):
                    running[pool.submit(_attempt, left[key])] = key
                while running:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        found = future.result()
                        key = running.pop(future)
                        del left[key]
                        yield key, found
                        for after in islice(waiting, 1):
                            running[pool.submit(_attempt, left[after])] = after
        except BrokenProcessPool:
            for future, key in running.items():
                item = left.pop(key)
                ended = future.done() and not future.cancelled() and future.exception() is None
                yield key, future.result() if ended else _alone(task, item)


def _alone(task: Task, item: Any) -> Attempt:
    for _ in range(TRIES):
        try:
            with _pool(task, 1) as pool:
                return pool.submit(_attempt, item).result()
        except BrokenProcessPool:
            continue
    return Attempt(error=DIED)


@contextmanager
def _pool(task: Task, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh interpreters (a fork of a process with threads may hang) of one thread each."""
    context = multiprocessing.get_context("spawn")
    with _one_thread():
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(task,))
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that are started meanwhile have one thread for sums, so that they share the cores."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _on_ray(task: Task, items: Mapping[str, Any], workers: int) -> Iterator[tuple[str, Attempt]]:
    """Ray Data, a block and a task for each item; Ray runs it again where its worker died, on any node that is left."""
    ray_data: Any = require("ray.data", "[cluster]", "--executor ray")
    if not items:
        return
    with _cluster(workers):
        context = ray_data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # an item that kills its worker at every try is left out, the others go on
        sent = [{"key": key, "item": pickle.dumps(item)} for key, item in items.items()]

        def one(row: dict[str, Any]) -> dict[str, Any]:
            return {"key": row["key"], "attempt": pickle.dumps(attempt(task, pickle.loads(row["item"])))}

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's default is to try for ever; its newer way to say so is yet to come
            rows = ray_data.from_items(sent, override_num_blocks=len(sent)).map(
                one, num_cpus=1, concurrency=workers, max_retries=TRIES - 1
            )
        left = dict(items)
        try:
            for row in rows.iter_rows():
                del left[row["key"]]
                yield row["key"], pickle.loads(row["attempt"])
        except Exception as error:
            if len(left) == len(items) and not _is_death(error):
                raise
        for key in left:
            yield key, Attempt(error=DIED)


def _is_death(error: BaseException) -> bool:
    """Whether Ray says that all blocks failed because workers died: it raises then, instead of giving none."""
    import ray

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ray.exceptions.WorkerCrashedError):
            return True
        seen = seen.__cause__
    return False


def _answers(address: str) -> None:
    """Raise VapError where nobody listens at host:port: Ray itself would try for many minutes. Other forms pass."""
    found = re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise VapError(
            f"No Ray cluster at '{address}': {error}. Start one with `ray start --head`, which tells its address, and "
            "see that no firewall is in between."
        ) from error


@contextmanager
def _cluster(workers: int) -> Iterator[None]:
    """The cluster that runs already, or that $RAY_ADDRESS names; else one of our own on this machine, shut down after.

    Two things are quiet: no dashboard, no bars. That a worker died is said by Ray itself. Raises VapError where there
    is no cluster at that address, or one that does not let us in.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    for name in ("ray.data", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _answers(address)
    else:
        settings |= {
            "address": "local",
            "num_cpus": workers,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with _one_thread():
        try:
            ray.init(**settings)
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise VapError(
                f"A Ray cluster must let us in, got from '{address}': {str(error).splitlines()[0]} {LET_IN}"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
