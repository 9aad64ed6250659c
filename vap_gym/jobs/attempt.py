"""One try of one job: its result as plain JSON, or the reason why there is none; nothing that it raises gets out."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vap_gym.errors import VapError

Task = Callable[[Any], Mapping[str, Any]]
"""A job: takes an item, writes what it makes into a place of the item's own, and returns plain JSON about it.

It is run again where its worker died or the run was killed, so it must leave what it finds finished as it is, and
return the same. It is sent to other processes: a function of a module, or a dataclass with `__call__`.
"""

TRIES = 3
DIED = (
    f"The worker process died {TRIES} times at this item. It was killed, for memory most likely, or a library crashed: "
    "try fewer workers, or the item by itself with --executor serial."
)
LAST_FRAMES = 3


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A result, or an error's text."""

    result: dict[str, Any] | None = None
    error: str | None = None


def attempt(task: Task, item: Any) -> Attempt:
    """Run a job. Errors for users are kept in full, others with the end of their traceback."""
    try:
        return Attempt(result=plain(task(item)))
    except VapError as error:
        return Attempt(error=str(error))
    except Exception as error:  # whatever it is: one episode must not stop the others
        frames = traceback.extract_tb(error.__traceback__)[1:][-LAST_FRAMES:]
        places = "; ".join(f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
        return Attempt(error=f"{type(error).__name__}: {error} ({places})")


def plain(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's result as it is read from JSON, keys sorted. Raises VapError where it is none."""
    try:
        found: Any = json.loads(json.dumps(result, sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise VapError(
            f"A job must return plain JSON without NaN, got {error}. Turn arrays into lists, and NaN into None."
        ) from error
    if not isinstance(found, dict):
        raise VapError(
            f"A job must return a dict, got {type(result).__name__}. Return {{}} if there is nothing to say."
        )
    return found
