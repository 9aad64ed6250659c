"""A policy behind plain HTTP and JSON: three requests, that any language can answer."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vap_gym.policies.chunks import ChunkQueue
from vap_gym.policies.protocol import Conventions, EpisodeStart, Observations, PolicyError
from vap_gym.policies.wire import MOST_BYTES, again, png_text

Array = np.ndarray
BUSY = (429, 502, 503, 504)  # answers that may be others later
REASON_BYTES = 4096


class _LaterError(OSError):
    """The server is there and asks for patience."""


class HttpPolicy:
    """Asks a server for the actions of all running episodes at once.

    GET  /conventions → the keys of `Conventions` that are not as by default; "action_mode" at least
    POST /reset {"slots": [0, …], "seeds": [7, …], "instructions": ["…", …]} → {}
    POST /act {"slots": [0, …], "instructions": ["…", …], "pixels": {"front": ["<PNG in base64>", …]},
               "agent_pos": [[joints in rad and closedness], …], "request": 12} → {"actions": […]}, of each slot an
               action [A] or a chunk of them [n][A]

    A request that is not answered in time, or with 429, 502, 503 or 504, is sent again as it was; a server that counts
    steps knows it by its "request" number. {"error": "…"} with any other status ends the episode with that reason.

    Args:
        url: of the server, e.g. "http://localhost:8000".
        conventions: instead of those that the server tells.
        execute: actions of a chunk that are played before it is asked again; None: all.
        token: sent as "Authorization: Bearer …".
        timeout_s: for each answer.
        tries: how often a request is sent before it is given up.
        wait_s: before the second try; doubled for each further one.
    """

    def __init__(
        self,
        url: str,
        conventions: Conventions | None = None,
        *,
        execute: int | None = None,
        token: str | None = None,
        timeout_s: float = 30.0,
        tries: int = 3,
        wait_s: float = 0.5,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise PolicyError(f"url must begin with http:// or https://, got '{url}'.")
        if timeout_s <= 0 or tries < 1 or wait_s < 0:
            raise PolicyError(
                f"timeout_s must be above 0, tries at least 1 and wait_s 0 or more, got {timeout_s}, {tries}, {wait_s}."
            )
        self.url, self._token = url.rstrip("/"), token
        self.timeout_s, self.tries, self.wait_s = timeout_s, tries, wait_s
        self._told, self._chunks, self._requests = conventions, ChunkQueue(execute), 0

    @property
    def conventions(self) -> Conventions:
        """As they were given, or as the server tells them; it is asked once.

        Raises:
            PolicyError: the server cannot be reached, or tells something else.
        """
        if self._told is None:
            self._told = _read_conventions(self._call("GET", "/conventions"), self.url)
        return self._told

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Begin episodes, here and on the server."""
        slots = [episode.slot for episode in episodes]
        self._chunks.reset(slots)
        words = [episode.start.instruction for episode in episodes]
        self._call("POST", "/reset", {"slots": slots, "seeds": [one.seed for one in episodes], "instructions": words})

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next actions.

        Raises:
            PolicyError: the server cannot be reached in time, reports an error, or answers something else.
        """
        return self._chunks.act(observations, instructions, self._ask)

    def _ask(self, observations: Observations, instructions: Sequence[str]) -> object:
        self._requests += 1
        views = self.conventions.views
        answer = self._call(
            "POST",
            "/act",
            {
                "slots": list(observations.slots),
                "instructions": list(instructions),
                "pixels": {view: [png_text(frame) for frame in observations.pixels[view]] for view in views},
                "agent_pos": observations.agent_pos.tolist(),
                "request": self._requests,
            },
        )
        if "actions" not in answer:
            raise PolicyError(f"{self.url}/act must answer 'actions', got {', '.join(answer) or 'an empty object'}.")
        return answer["actions"]

    def _call(self, method: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)

        def send() -> bytes:
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    return _whole(response, self.url + path)
            except urllib.error.HTTPError as error:
                if error.code in BUSY:
                    raise _LaterError(f"status {error.code}") from error
                reason = _reason(error.read(REASON_BYTES))
                raise PolicyError(
                    f"{method} {self.url}{path} was refused with status {error.code}: {reason}"
                ) from error

        passing = (OSError, http.client.HTTPException)
        body = again(send, tries=self.tries, wait_s=self.wait_s, passing=passing, name=f"The server {self.url}")
        try:
            answer = json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            raise PolicyError(f"{self.url}{path} must answer JSON, got {body[:80]!r}.") from error
        if not isinstance(answer, dict):
            raise PolicyError(f"{self.url}{path} must answer a JSON object, got {type(answer).__name__}.")
        return answer


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace") or "no reason given"


def _whole(response: Any, url: str) -> bytes:
    """The body of an answer, which must be as long as it is told to be, and not too long."""
    told = response.length
    body = bytes(response.read(MOST_BYTES + 1) if told is None else response.read() if told <= MOST_BYTES else b"")
    if (told or 0) > MOST_BYTES or len(body) > MOST_BYTES:
        raise PolicyError(f"{url} must answer at most {MOST_BYTES:,} bytes, got {told or 'more'}. Send actions only.")
    return body


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sizes(value: list[Any]) -> int:
    """How many whole numbers a list is; -1: something else is in it."""
    return len(value) if all(map(_is_size, value)) else -1


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


TOLD: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "action_mode": ("a string", lambda value: isinstance(value, str)),
    "gripper": ("a string", lambda value: isinstance(value, str)),
    "rate_hz": ("a number", lambda value: _is_size(value) or isinstance(value, float)),
    "frame_size_px": (
        "[width, height]",
        lambda value: isinstance(value, list) and [*map(_is_size, value)] == [True] * 2,
    ),
    "views": ("a list of strings", _is_words),
    "action_size": ("a whole number", _is_size),
    "state_size": ("a whole number", _is_size),
    "chunk": ("a whole number", _is_size),
    "convert": ("a list of strings", _is_words),
}
"""What a server may tell of its conventions, and as what. null is as if it was not told."""


def _read_conventions(told: dict[str, Any], url: str) -> Conventions:
    given = {key: value for key, value in told.items() if value is not None}
    if "action_mode" not in given or not set(given) <= TOLD.keys():
        raise PolicyError(
            f"{url}/conventions must tell 'action_mode' and nothing but {', '.join(sorted(TOLD))}, got "
            f"{', '.join(given) or 'nothing'}."
        )
    for key, value in given.items():
        wanted, fits = TOLD[key]
        if not fits(value):
            raise PolicyError(f"{url}/conventions must tell '{key}' as {wanted}, got {json.dumps(value)[:80]}.")
    lists: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return Conventions(**lists)
