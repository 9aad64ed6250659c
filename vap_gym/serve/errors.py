"""What goes wrong between a server of envs and its clients: errors that travel as tables and are raised again there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vap_gym import errors
from vap_gym.errors import VapError


class ServeError(VapError):
    """Base of what a served env adds to the errors of a local one.

    Args:
        message: what is wrong, and what was given.
        hint: what would work.
    """

    status: ClassVar[int] = 400  # of the answer by HTTP

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message, self.hint = message, hint


class MessageError(ServeError):
    """A message that cannot be read, or lacks something."""


class TooLargeError(MessageError):
    """More than the server takes: a message, a chunk of actions."""

    status = 413


class TokenError(ServeError):
    """No token, a wrong one, or a web page that asks a server without one."""

    status = 401


class UnknownSessionError(ServeError):
    """A session that is not open: never opened, closed, evicted, or of a server that has ended."""

    status = 404


class OrderError(ServeError):
    """A request that does not follow on the last one of its session: it was not carried out."""

    status = 409


class BusyError(ServeError):
    """The queue is full; nothing was carried out, and the same request may be sent again later."""

    status = 429


class FullError(ServeError):
    """All sessions that the server may have are open."""

    status = 429


class StoppingError(ServeError):
    """The server is shutting down: it answers what it has taken on, and takes on nothing new."""

    status = 503


class ServerFaultError(ServeError):
    """The server failed at something that should work; nothing was carried out."""

    status = 500


class ConnectionLostError(ServeError):
    """The server cannot be reached, or did not answer in time. Raised by clients only."""


KNOWN: dict[str, type[VapError]] = {
    kind.__name__: kind
    for kind in (
        VapError, errors.ActionError, errors.CardError, errors.CheckpointError, errors.UnknownNameError,
        errors.UrdfError, MessageError, TooLargeError, TokenError, UnknownSessionError, OrderError, BusyError,
        FullError, StoppingError, ServerFaultError,
    )
}  # fmt: skip
"""The errors that keep their kind on the way to the client; of others the client raises a `ServeError`."""


def status_of(error: VapError) -> int:
    """Return the HTTP status that an error is answered with."""
    return error.status if isinstance(error, ServeError) else 400


def as_table(error: VapError) -> dict[str, Any]:
    """Return an error as the table {"error", "type", "hint"} that is sent; `error` is the whole text."""
    hint = error.hint if isinstance(error, ServeError) else ""
    return {"error": str(error), "type": type(error).__name__, "hint": hint}


def from_table(table: Mapping[str, Any]) -> VapError:
    """Return (not raise) the error that `as_table` wrote; of a kind that is not known, a `ServeError`."""
    text, hint = str(table.get("error", "no reason given")), str(table.get("hint", ""))
    kind = KNOWN.get(str(table.get("type")), ServeError)
    if issubclass(kind, ServeError):
        return kind(text.removesuffix(hint).rstrip(), hint)
    return kind(text)
