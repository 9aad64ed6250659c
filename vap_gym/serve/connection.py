"""A client's connection: questions are asked again where that is safe, and errors are raised as the server's."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

from vap_gym.errors import VapError, require
from vap_gym.serve.errors import BusyError, ConnectionLostError, OrderError, TooLargeError, from_table
from vap_gym.serve.messages import decoded, encoded, read_json

TOKEN = "VAP_GYM_TOKEN"  # the environment variable
LARGEST_ANSWER = 256 * 2**20
TOO_LARGE = 1009  # websockets' code for a message that is


class Connection:
    """Asks a server of envs, one question after the other.

    A connection that is lost, an answer that is late and a full queue lead to the same question again: the server knows
    it by its count, and carries it out once.

    Args:
        url: "ws://host:port", "http://host:port" or "host:port".
        token: the server's; None takes the environment variable VAP_GYM_TOKEN, if it is set.
        timeout_s: for connecting, and for each answer.
        tries: how often a question is asked before it is given up.
        wait_s: before the second try; doubled for each further one.
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout_s: float = 60.0, tries: int = 4, wait_s: float = 0.25
    ) -> None:
        if timeout_s <= 0 or tries < 1 or wait_s < 0:
            raise VapError(
                f"timeout_s must be above 0, tries at least 1 and wait_s 0 or more, got {timeout_s}, {tries}, {wait_s}."
            )
        scheme, _, place = url.rpartition("://")
        if scheme not in ("", "ws", "wss", "http", "https"):
            raise VapError(f"url must begin with ws://, wss://, http:// or https://, got '{url}'.")
        secure = "s" if scheme in ("wss", "https") else ""
        self.url = f"ws{secure}://{place.rstrip('/').removesuffix('/ws')}/ws"
        self.token = os.environ.get(TOKEN) if token is None else token
        self.timeout_s, self.tries, self.wait_s = timeout_s, tries, wait_s
        self._socket: Any = None

    def another(self) -> Connection:
        """Return a connection to the same server, made like this one."""
        return Connection(self.url, token=self.token, timeout_s=self.timeout_s, tries=self.tries, wait_s=self.wait_s)

    def ask(self, question: Mapping[str, Any], *, tries: int | None = None) -> dict[str, Any]:
        """Return the answer to a question.

        Raises:
            VapError: what the server answered as an error.
            ConnectionLostError: it cannot be reached, or did not answer in time.
        """
        exceptions: Any = require("websockets.exceptions", "[remote]", "A served env")
        data, most = encoded(question), self.tries if tries is None else tries
        for attempt in range(most):
            last = attempt + 1 == most
            try:
                return self._asked(data, question)
            except BusyError:
                if last:
                    raise
            except exceptions.InvalidStatus as error:
                raise _refusal(error, self.url) from error
            except (OSError, exceptions.WebSocketException) as error:  # TimeoutError is an OSError
                self.close()
                if getattr(getattr(error, "rcvd", None), "code", None) == TOO_LARGE:
                    raise TooLargeError(
                        f"The server takes no message of {len(data)} bytes.", "Send less, or smaller pictures."
                    ) from error
                if last:
                    raise ConnectionLostError(
                        f"The server {self.url} could not be reached in {most} tries: "
                        f"{str(error) or type(error).__name__}.",
                        "Is it running, and is the address right? Its sessions are lost if it was started anew.",
                    ) from error
            time.sleep(self.wait_s * 2**attempt)
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """Close the connection, if there is one."""
        opened, self._socket = self._socket, None
        if opened is not None:
            with contextlib.suppress(OSError):
                opened.__exit__(None, None, None)

    def _asked(self, data: bytes, question: Mapping[str, Any]) -> dict[str, Any]:
        socket = self._opened()
        socket.send(data)
        received = socket.recv(timeout=self.timeout_s)
        answer = decoded(received if isinstance(received, bytes) else received.encode())
        if "error" in answer:
            raise from_table(answer)
        session = question.get("session")
        if session is not None and answer.get("session") != session:
            self.close()
            raise OrderError(
                f"The answer is for another session: asked for '{session}', got '{answer.get('session')}'.",
                "That is a fault of the server or of what stands between.",
            )
        return answer

    def _opened(self) -> Any:
        if self._socket is None:
            client: Any = require("websockets.sync.client", "[remote]", "A served env")
            self._socket = client.connect(
                self.url,
                compression=None,
                max_size=LARGEST_ANSWER,
                open_timeout=self.timeout_s,
                close_timeout=1.0,
                ping_interval=None,  # the server asks whether we are there
                additional_headers={"Authorization": f"Bearer {self.token}"} if self.token else None,
            ).__enter__()
        return self._socket

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the socket: a copy makes its own."""
        return {**self.__dict__, "_socket": None}


def _refusal(error: Any, url: str) -> VapError:
    """Return the server's own error from a handshake that it refused."""
    body = bytes(error.response.body or b"")
    try:
        return from_table(read_json(body))
    except VapError:
        return ConnectionLostError(
            f"{url} refused with status {error.response.status_code}: {body[:200].decode(errors='replace')}",
            "Is that a server of vap-gym?",
        )
