"""Shared fixtures: where real recordings are, checks of tensor shapes, ways to ask a server; and a count of skips."""

import json
import os
import socket
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent

# Types and tensor shapes in annotations are checked while testing; VAP_TYPECHECK=0 switches that off.
if os.environ.get("VAP_TYPECHECK", "1") != "0":
    from typing import Protocol, runtime_checkable

    from jaxtyping import install_import_hook

    # Not the interfaces: their bodies are empty. All others, named one by one.
    modules = [path.stem for path in (REPO / "vap_gym").iterdir() if path.stem not in ("interfaces", "__main__")]
    install_import_hook([f"vap_gym.{name}" for name in modules], "beartype.beartype")

    import vap_gym.interfaces

    for interface in vars(vap_gym.interfaces).values():
        if isinstance(interface, type) and Protocol in interface.__bases__:
            runtime_checkable(interface)  # or beartype refuses functions that take one


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings: $VAP_SHARED_DATA, or ../shared/data beside the checkout.

    Tests that ask for it are skipped where it is absent, and fail there when VAP_REQUIRE_SHARED=1.
    """
    folder = Path(os.environ.get("VAP_SHARED_DATA") or REPO.parent / "shared" / "data")
    if folder.is_dir():
        return folder
    message = f"no recordings at {folder}: set VAP_SHARED_DATA to their folder"
    if os.environ.get("VAP_REQUIRE_SHARED") == "1":
        pytest.fail(f"{message} (VAP_REQUIRE_SHARED=1 makes their absence a failure)", pytrace=False)
    pytest.skip(message)


class Asking:
    """Ways to ask a server of envs that `RemoteEnv` does not go."""

    @staticmethod
    def http(url: str, content: object = None, **headers: str) -> tuple[int, dict[str, Any]]:
        """GET, or POST JSON; return status and JSON."""
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(url, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    @staticmethod
    def question(env: Any, op: str, **content: Any) -> dict[str, Any]:
        """What a `RemoteEnv`'s next request is."""
        return {"op": op, "session": env._session, "count": env._count, **content}

    @staticmethod
    def connected(url: str) -> socket.socket:
        """A connection to a server, by which nothing was said yet."""
        host, port = url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=20)

    @staticmethod
    def websocket(url: str) -> socket.socket:
        """A connection that has become a websocket; nothing reads what comes by it."""
        raw = Asking.connected(url)
        raw.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert b" 101 " in raw.recv(2**12)
        return raw

    @staticmethod
    def message(data: bytes, says: int | None = None) -> bytes:
        """A binary websocket message (masked with zeros) that says it has `says` bytes; None: as many as it has."""
        return struct.pack("!BBQ", 0x82, 0x80 | 127, len(data) if says is None else says) + bytes(4) + data


@pytest.fixture(scope="session")
def asking() -> type[Asking]:
    """Ways to ask a server of envs by HTTP and by hand-made websocket messages."""
    return Asking


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of skipped tests, none included, so that a silent skip is seen."""
    skipped = len(terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"skipped tests: {skipped}")
