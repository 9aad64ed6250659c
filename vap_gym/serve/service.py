"""The service: a request's table in, its answer's table out; knows sessions, queue and order, but no sockets."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vap_gym.errors import VapError, unknown_name
from vap_gym.serve.errors import MessageError, ServerFaultError, StoppingError, TooLargeError, as_table, status_of
from vap_gym.serve.memory import memory_mib
from vap_gym.serve.messages import OPERATIONS, PROTOCOL, encoded
from vap_gym.serve.player import Player
from vap_gym.serve.sessions import Session, Sessions
from vap_gym.serve.worker import Worker

LOG = logging.getLogger("vap_gym.serve")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What keeps a server's memory and waiting times bounded."""

    sessions: int = 64
    queue: int = 256  # requests that wait for the model
    batch: int = 16  # sessions that step together
    chunk: int = 32  # steps of a step_chunk
    message_bytes: int = 16 * 2**20
    connections: int = 256  # websockets
    idle_s: float = 300.0  # a session that is not used for so long is evicted
    slow_s: float = 10.0  # a client that takes longer to take an answer, or to send a request, is dropped
    drain_s: float = 30.0  # to answer what was taken on when the server shuts down

    def __post_init__(self) -> None:
        """Refuse limits that nothing could be done in."""
        for name, value in vars(self).items():
            if not value > 0:
                raise VapError(f"The limit {name} must be above 0, got {value}. Leave it out for the default.")


class Service:
    """Answers requests for sessions. Everything here runs on one event loop; the model runs in the worker's thread.

    Args:
        make: env and settings → player; called in the worker's thread.
        envs: the ids that are offered.
        limits: what keeps it bounded.
    """

    def __init__(self, make: Callable[[str, Mapping[str, Any]], Player], envs: tuple[str, ...], limits: Limits) -> None:
        self.envs, self.limits = envs, limits
        self.sessions = Sessions(limits.sessions)
        self.draining = False
        self.refused: Counter[str] = Counter()  # errors that were answered, by type
        self._make = make
        self._worker = Worker(queue=limits.queue, batch=limits.batch)
        self._began = time.monotonic()
        self._opening: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._answering = 0

    async def answer(self, message: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return an HTTP status and the answer to a request; whatever goes wrong is an answer, too."""
        self._answering += 1
        try:
            return 200, await self._dispatch(message)
        except VapError as error:
            return self._told(error, message)
        except Exception:  # a fault of ours: told without details, logged with them, and no other session's business
            LOG.exception("a request for '%s' failed", message.get("op"))
            fault = ServerFaultError(
                "The server failed at that request, which was not carried out.", "Its log says why; others go on."
            )
            return self._told(fault, message)
        finally:
            self._answering -= 1

    async def drain(self) -> None:
        """Refuse what is new, and wait until what was taken on is answered, or `drain_s` have passed."""
        self.draining = True
        until = time.monotonic() + self.limits.drain_s
        while self._answering and time.monotonic() < until:
            await asyncio.sleep(0.02)

    async def evict_idle(self) -> None:
        """Take idle sessions away, for as long as the server runs."""
        while True:
            await asyncio.sleep(min(1.0, self.limits.idle_s / 4))
            self.sessions.remove_idle(self.limits.idle_s)

    def drop_slow(self, id: object) -> None:
        """Take away the session whose client does not take its answer."""
        for session in self.sessions:
            if session.id == id:
                told = f"evicted, since an answer was not taken within {self.limits.slow_s:g} s"
                self.sessions.remove(session, "slow", told)

    def figures(self) -> dict[str, Any]:
        """Return counts, queue and memory."""
        now = time.monotonic()
        shown = [
            {
                "env": one.env,
                "requests": one.count,
                "running": one.running,
                "idle_s": round(now - one.used, 1),
            }
            for one in self.sessions
        ]
        return {
            "envs": list(self.envs),
            "sessions": {"open": len(shown), "most": self.sessions.most, "opened": self.sessions.opened},
            "gone": {why: self.sessions.gone[why] for why in ("closed", "idle", "slow")},
            "queue": {"waiting": self._worker.waiting, "most": self.limits.queue, "answering": self._answering},
            "model": {"jobs": self._worker.jobs, "calls": self._worker.calls, "batch": self.limits.batch},
            "refused": dict(self.refused),
            "memory_mib": memory_mib(),
            "up_s": round(now - self._began, 1),
            "stopping": self.draining,
            "each": shown,
        }

    def stop(self) -> None:
        """End the worker's thread; call `drain` first."""
        self._worker.stop()

    def _told(self, error: VapError, message: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        self.refused[type(error).__name__] += 1
        return status_of(error), {**as_table(error), "session": message.get("session"), "count": message.get("count")}

    async def _dispatch(self, message: Mapping[str, Any]) -> dict[str, Any]:
        operation = message.get("op")
        if operation not in OPERATIONS:
            raise unknown_name("operation", str(operation), OPERATIONS)
        if operation == "open":
            return await self._open(message)
        if operation == "close":
            return await self._close(message)
        session = self.sessions.find(message.get("session"))
        content = {key: value for key, value in message.items() if key not in ("session", "count")}
        digest = hashlib.sha256(encoded(content)).digest()

        def begin() -> asyncio.Task[dict[str, Any]]:
            self._refuse_when_draining()
            return asyncio.create_task(self._carried_out(session, message))

        taken = session.taken(_whole(message, "count"), digest, begin)
        reply: dict[str, Any] = await asyncio.shield(taken) if isinstance(taken, asyncio.Task) else taken
        return reply

    async def _open(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if message.get("protocol", PROTOCOL) != PROTOCOL:
            raise MessageError(
                f"The server speaks protocol {PROTOCOL}, got {message.get('protocol')}.",
                "Use the same version of vap-gym on both sides.",
            )
        key = message.get("key")
        if not isinstance(key, str) or len(key) > 64:
            self._refuse_when_draining()
            return await self._opened(message, None)
        session, task = self.sessions.of_key(key), self._opening.get(key)
        if session is not None:  # asked for again, since the answer was lost
            return session.reply if session.count == 0 else self._greeting(session)
        if task is None:
            self._refuse_when_draining()
            task = self._opening[key] = asyncio.create_task(self._opened(message, key))
            task.add_done_callback(lambda done: (self._opening.pop(key), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

    async def _opened(self, message: Mapping[str, Any], key: str | None) -> dict[str, Any]:
        env, settings = message.get("env"), message.get("settings") or {}
        limit = message.get("max_episode_steps")
        if not isinstance(env, str) or not isinstance(settings, Mapping):
            raise MessageError(
                f"open needs an env's id and a table of settings, got {type(env).__name__} and "
                f"{type(settings).__name__}.",
                f"Offered: {', '.join(self.envs)}.",
            )
        self.sessions.reserve(1)
        try:
            player = await self._on_model(lambda: self._make(env, settings))
            slot = player.slot(None if limit is None else _whole(message, "max_episode_steps"))
            session = Session(env=env, player=player, slot=slot, exact=message.get("exact") is True, key=key)
        except BaseException:
            self.sessions.release(1)
            raise
        self.sessions.add(session)
        session.reply = self._greeting(session)
        return session.reply

    def _greeting(self, session: Session) -> dict[str, Any]:
        limits = {
            "chunk": self.limits.chunk, "message_bytes": self.limits.message_bytes, "idle_s": self.limits.idle_s
        }  # fmt: skip
        return {
            **session.player.about(), "env": session.env, "session": session.id, "count": session.count,
            "protocol": PROTOCOL, "limits": limits,
        }  # fmt: skip

    async def _close(self, message: Mapping[str, Any]) -> dict[str, Any]:
        session = self.sessions.find(message.get("session"))
        if session.task is not None and session.running:
            await asyncio.wait([session.task])
        self.sessions.remove(session, "closed", "closed by its client")
        return {"session": session.id, "count": session.count, "closed": True}

    async def _carried_out(self, session: Session, message: Mapping[str, Any]) -> dict[str, Any]:
        began = time.perf_counter()
        operation = message["op"]
        if operation == "branch":
            found = await self._branch(session, message)
        elif operation == "reset":
            found = await self._reset(session, message)
        else:
            found = await self._step(session, message, chunk=operation == "step_chunk")
        session.count += 1
        session.used = time.monotonic()
        took_ms = 1e3 * (time.perf_counter() - began)
        session.reply = {**found, "session": session.id, "count": session.count, "took_ms": took_ms}
        return session.reply

    async def _reset(self, session: Session, message: Mapping[str, Any]) -> dict[str, Any]:
        seed, options = message.get("seed"), message.get("options") or {}
        if not isinstance(options, Mapping):
            raise MessageError(f"Reset options must be a table, got {type(options).__name__}.")
        number = None if seed is None else _whole(message, "seed")
        found: dict[str, Any] = await self._on_model(lambda: session.player.reset(session.slot, number, options))
        return found

    async def _step(self, session: Session, message: Mapping[str, Any], *, chunk: bool) -> dict[str, Any]:
        name = "actions" if chunk else "action"
        actions = session.player.actions(session.slot, message.get(name), chunk=chunk)
        if len(actions) > self.limits.chunk:
            raise TooLargeError(
                f"A chunk may have {self.limits.chunk} steps, got {len(actions)}; none was carried out.",
                "Send several chunks.",
            )
        key = None if session.exact else (id(session.player), len(actions))
        future = self._worker.submit(session.player.steps, (session.slot, actions, chunk), key=key)
        found: dict[str, Any] = await asyncio.wrap_future(future)
        return found

    async def _branch(self, session: Session, message: Mapping[str, Any]) -> dict[str, Any]:
        count, seeds = _whole(message, "n"), message.get("seeds")
        if count < 1 or (seeds is not None and (not isinstance(seeds, list) or len(seeds) != count)):
            raise MessageError(f"branch needs n ≥ 1 and as many seeds or none, got n={count} and seeds={seeds!r}.")
        chosen = [None] * count if seeds is None else [_whole({"seeds": seed}, "seeds") for seed in seeds]
        player = session.player
        self.sessions.reserve(count)
        try:
            slots = await self._on_model(lambda: [player.copy(session.slot, seed) for seed in chosen])
        except BaseException:
            self.sessions.release(count)
            raise
        copies = [Session(env=session.env, player=player, slot=slot, exact=session.exact) for slot in slots]
        for one in copies:
            self.sessions.add(one)
        return {"sessions": [one.id for one in copies]}

    async def _on_model(self, call: Callable[[], Any]) -> Any:
        """Return what a call gives in the worker's thread."""
        return await asyncio.wrap_future(self._worker.submit(lambda items: [item() for item in items], call))

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise StoppingError(
                "The server is shutting down and takes on nothing new.", "Connect again when it is back."
            )


def _whole(message: Mapping[str, Any], name: str) -> int:
    value = message.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise MessageError(f"{name} must be a whole number from 0 on, got {value!r}.")
    return value
