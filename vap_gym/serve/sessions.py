"""Sessions: who plays what and how far; a bounded table, from which those that are not used are taken."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vap_gym.serve.errors import FullError, OrderError, UnknownSessionError
from vap_gym.serve.player import Player

REMEMBERED = 1024  # sessions that are gone, so that their clients can be told why


@dataclass(kw_only=True, eq=False)
class Session:
    """One served env.

    A request carries the count of those that were carried out before it. The last one may come again, when its answer
    was lost: it is answered again and not carried out again. An answer that is an error does not count.
    """

    env: str
    player: Player
    slot: Any
    exact: bool  # its steps are never part of a batch with others'
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))  # whoever knows it may use it
    key: str | None = None  # by which the client may ask for it again
    count: int = 0  # requests that were carried out
    digest: bytes = b""  # of the last request
    reply: dict[str, Any] = field(default_factory=dict)  # to the last request that was carried out
    task: asyncio.Task[dict[str, Any]] | None = None  # of the last request
    used: float = field(default_factory=time.monotonic)

    @property
    def running(self) -> bool:
        """Whether a request is being carried out."""
        return self.task is not None and not self.task.done()

    def taken(self, count: int, digest: bytes, begin: Callable[[], asyncio.Task[dict[str, Any]]]) -> Any:
        """Return what the answer to a request comes from: a new task, that of the same request, or its answer.

        Raises:
            OrderError: the request does not follow on the last one.
        """
        self.used = time.monotonic()
        if self.task is not None and not self.task.done():
            if (count, digest) == (self.count, self.digest):
                return self.task
            raise OrderError(
                "The session is busy with another request, got one more.", "Wait for the answer before you go on."
            )
        if count == self.count - 1 and digest == self.digest:
            return self.reply
        if count != self.count:
            raise OrderError(
                f"The session has carried out {self.count} requests, got one that counts {count} before it; it was not "
                "carried out.",
                f"Send count {self.count}, or the last request exactly as it was.",
            )
        self.task, self.digest = begin(), digest
        self.task.add_done_callback(_seen)
        return self.task


class Sessions:
    """The open sessions, at most so many; counts what became of all of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.gone: Counter[str] = Counter()  # how many are "closed", "idle", "slow"
        self.opened = 0
        self._open: dict[str, Session] = {}
        self._keys: dict[str, str] = {}
        self._why: OrderedDict[str, str] = OrderedDict()
        self._reserved = 0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._open.values()))

    def reserve(self, count: int) -> None:
        """Keep places for sessions that are being made; `add` and `release` give them back.

        Raises:
            FullError: there are not so many.
        """
        free = self.most - len(self._open) - self._reserved
        if count > free:
            raise FullError(
                f"The server may have {self.most} sessions and has {max(0, free)} free, got a wish for {count}.",
                "Close some, or come back when others have ended.",
            )
        self._reserved += count

    def release(self, count: int) -> None:
        """Give back places that were reserved for sessions that could not be made."""
        self._reserved -= count

    def add(self, session: Session) -> None:
        """Open a session on a place that was reserved."""
        self._reserved -= 1
        self.opened += 1
        self._open[session.id] = session
        if session.key is not None:
            self._keys[session.key] = session.id

    def of_key(self, key: str) -> Session | None:
        """Return the session that was opened with a client's key."""
        return self._open.get(self._keys.get(key, ""))

    def find(self, id: object) -> Session:
        """Return an open session. Raises UnknownSessionError, which says what became of one that is gone."""
        session = self._open.get(id) if isinstance(id, str) else None
        if session is not None:
            return session
        why = self._why.get(str(id))
        raise UnknownSessionError(
            f"That session is no longer open: it was {why}." if why else "No session of that name was opened here.",
            "Open a new one: RemoteEnv.reset does.",
        )

    def remove(self, session: Session, why: str, told: str) -> None:
        """Take a session away; `why` is counted, `told` is what its client is told."""
        if self._open.pop(session.id, None) is None:
            return
        if session.key is not None:
            self._keys.pop(session.key, None)
        self.gone[why] += 1
        self._why[session.id] = told
        while len(self._why) > REMEMBERED:
            self._why.popitem(last=False)

    def remove_idle(self, idle_s: float) -> None:
        """Take away sessions that were not used for so long."""
        now = time.monotonic()
        for session in self:
            if not session.running and now - session.used > idle_s:
                self.remove(session, "idle", f"evicted after {idle_s:g} s without a request")


def _seen(task: asyncio.Task[Any]) -> None:
    """Look at a task's error, since its client may have left without doing so."""
    if not task.cancelled():
        task.exception()
