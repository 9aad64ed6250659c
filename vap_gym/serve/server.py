"""The server: a socket, uvicorn on it, and an end in which what was taken on is still answered."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from vap_gym.errors import VapError
from vap_gym.serve.app import application
from vap_gym.serve.service import Service

LINGER_S = 30  # after `slow_s` the kernel may keep a connection for so long that takes nothing
SEND_BUFFER = 256 * 2**10  # bytes that the kernel keeps of answers that a client does not take


class Server(uvicorn.Server):
    """Uvicorn that ends as the service wants: refuse what is new, answer what was taken on, then close.

    Args:
        service: what is served.
        token: see `app.Door`.
        host, port: where it listens; port 0 is any that is free.

    Raises:
        VapError: a host that others reach, without a token; an address that cannot be had.
    """

    def __init__(self, service: Service, *, token: str | None, host: str = "127.0.0.1", port: int = 8000) -> None:
        if token is None and not is_loopback(host):
            raise VapError(
                f"A server that others can reach needs a token, got host '{host}' without one. "
                "Give --token or set VAP_GYM_TOKEN, or leave the host at 127.0.0.1."
            )
        if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
            raise VapError("token must be printable ASCII without spaces around it. Try: openssl rand -hex 16.")
        self.service = service
        self._socket = listening(host, port, slow_s=service.limits.slow_s)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._socket.getsockname()[1]}"
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None
        self._asked_to_stop = False
        super().__init__(
            uvicorn.Config(
                application(service, token),
                ws="websockets-sansio",
                ws_max_size=service.limits.message_bytes,
                ws_per_message_deflate=False,
                http="h11",
                loop="asyncio",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=5,
            )
        )

    def serve_until_stopped(self, ready: Callable[[], None]) -> None:
        """Serve until `stop`, SIGTERM or SIGINT; `ready` is called once requests are answered."""
        asyncio.run(self._until_stopped(ready))
        self.service.stop()

    def stop(self) -> None:
        """Ask it to end: what was taken on is answered first. May be called from any thread."""
        if self._own_loop is not None and not self._own_loop.is_closed():
            self._own_loop.call_soon_threadsafe(self._begin_to_end)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End as `stop` does at the first signal, at once at the second."""
        if self._asked_to_stop:
            self.force_exit = self.should_exit = True
        self._asked_to_stop = True
        self.stop()

    async def _until_stopped(self, ready: Callable[[], None]) -> None:
        self._own_loop = asyncio.get_running_loop()
        serving = asyncio.create_task(self.serve(sockets=[self._socket]))
        while not self.started and not serving.done():
            await asyncio.sleep(0.01)
        if self.started:
            ready()
        await serving

    def _begin_to_end(self) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        await self.service.drain()
        self.should_exit = True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening(host: str, port: int, *, slow_s: float) -> socket.socket:
    """Return a bound socket whose connections give up on clients that take nothing.

    Raises:
        VapError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: the kernel drops who takes nothing, also when we have closed
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1e3 * (slow_s + LINGER_S)))
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        raise VapError(
            f"The server cannot listen at '{host}' port {port}: {error}. Try another --port; 0 is any that is free."
        ) from error
    return made


@contextlib.contextmanager
def serving(service: Service, **where: Any) -> Iterator[Server]:
    """Serve from a thread of this process while the context is entered; `where` as for `Server`."""
    server, ready = Server(service, **({"token": None, "port": 0} | where)), threading.Event()
    thread = threading.Thread(target=server.serve_until_stopped, args=(ready.set,), name="vap-gym serve")
    thread.start()
    try:
        while not ready.wait(0.1) and thread.is_alive():
            pass
        yield server
    finally:
        server.stop()
        thread.join()
