"""The service by HTTP and websocket: who may ask, how much may be sent, and who is too slow."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from vap_gym.errors import VapError
from vap_gym.serve.errors import FullError, MessageError, ServeError, TokenError, TooLargeError, as_table
from vap_gym.serve.messages import OPERATIONS, PROTOCOL, decoded, encoded, json_text, read_json
from vap_gym.serve.service import Service

MSGPACK = "application/msgpack"


class Door:
    """The endpoints of one service.

    Args:
        service: what answers.
        token: what clients must send as "Authorization: Bearer …"; None: nothing, but then web pages are refused.
    """

    def __init__(self, service: Service, token: str | None) -> None:
        self._service, self._token = service, token
        self._connections = 0

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise TokenError where the headers of a request do not show that it may be answered."""
        if self._token is None:
            if "origin" in headers:
                raise TokenError(
                    f"A web page of {headers['origin']} asks a server that has no token.",
                    "Start the server with --token, and send it.",
                )
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            raise TokenError(
                f"The server needs its token, got {'another one' if given else 'none'}.",
                "Send the header 'Authorization: Bearer TOKEN', or set VAP_GYM_TOKEN for the Python client.",
            )

    async def health(self, request: Request) -> Response:
        """GET /health: whether it is there, for anyone."""
        return JSONResponse({"status": "stopping" if self._service.draining else "ok", "protocol": PROTOCOL})

    async def sessions(self, request: Request) -> Response:
        """GET /sessions: counts, queue and memory."""
        try:
            self.check(request.headers)
        except ServeError as error:
            return JSONResponse(as_table(error), error.status)
        return JSONResponse(self._service.figures())

    async def operation(self, request: Request) -> Response:
        """POST /open, /reset, …: one request in msgpack or JSON, answered in the same."""
        as_json = not request.headers.get("content-type", "").startswith(MSGPACK)
        try:
            self.check(request.headers)
            body = await self._body(request)
            message = {**(read_json(body) if as_json else decoded(body)), "op": request.path_params["op"]}
            status, answer = await self._service.answer(message)
        except ServeError as error:
            status, answer = error.status, as_table(error)
        except ClientDisconnect:  # nobody to answer
            return Response(status_code=400)
        if as_json:
            return Response(json_text(answer), status, media_type="application/json")
        return Response(encoded(answer), status, media_type=MSGPACK)

    async def socket(self, socket: WebSocket) -> None:
        """WS /ws: requests in msgpack, one after the other."""
        try:
            self.check(socket.headers)
            if self._connections >= self._service.limits.connections:
                raise FullError(f"The server has {self._connections} connections, and no more may be.", "Close some.")
        except ServeError as error:
            await socket.send_denial_response(JSONResponse(as_table(error), error.status))
            return
        self._connections += 1
        try:
            await socket.accept()
            with contextlib.suppress(WebSocketDisconnect):
                while await self._exchange(socket):
                    pass
        finally:
            self._connections -= 1

    async def _exchange(self, socket: WebSocket) -> bool:
        """Answer one request; return whether there may be another."""
        received = await socket.receive()
        if received["type"] == "websocket.disconnect":
            return False
        try:
            data = received.get("bytes")
            if data is None:
                raise MessageError("A websocket message must be binary, got text.", "Send msgpack, or POST JSON.")
            _, answer = await self._service.answer(decoded(data))
        except VapError as error:
            answer = as_table(error)
        try:
            async with asyncio.timeout(self._service.limits.slow_s):
                await socket.send_bytes(encoded(answer))
        except TimeoutError:  # the answers before this one still lie here
            self._service.drop_slow(answer.get("session"))
            return False
        return True

    async def _body(self, request: Request) -> bytes:
        most, body = self._service.limits.message_bytes, bytearray()
        told = request.headers.get("content-length", "0")
        if not told.isdecimal() or len(told) > 20 or int(told) > most:
            raise self._too_large(told)
        try:
            async with asyncio.timeout(self._service.limits.slow_s):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise self._too_large(f"more than {most}")
        except TimeoutError as error:
            raise MessageError(
                f"The request says that it has {told} bytes, got {len(body)} within {self._service.limits.slow_s:g} s.",
                "Send all of it.",
            ) from error
        return bytes(body)

    def _too_large(self, told: str) -> TooLargeError:
        most = self._service.limits.message_bytes
        return TooLargeError(f"A message may have {most} bytes, got {told[:40]}.", "Send less, or smaller pictures.")


def application(service: Service, token: str | None) -> Starlette:
    """Return the ASGI application of a service."""
    door = Door(service, token)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        evicting = asyncio.create_task(service.evict_idle())
        yield
        evicting.cancel()

    async def unknown(request: Request, error: Exception) -> Response:
        known = "GET /health, GET /sessions, WS /ws, " + ", ".join(f"POST /{name}" for name in OPERATIONS)
        told = ServeError(f"There is no {request.method} {request.url.path[:80]} here.", f"There are: {known}.")
        return JSONResponse(as_table(told), getattr(error, "status_code", 404))

    routes = [
        Route("/health", door.health),
        Route("/sessions", door.sessions),
        WebSocketRoute("/ws", door.socket),
        *[Route("/{op:str}", door.operation, methods=["POST"])],
    ]
    handlers: Any = {404: unknown, 405: unknown}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
