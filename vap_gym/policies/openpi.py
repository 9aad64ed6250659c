"""A policy behind openpi's websocket server: metadata on connecting, then one msgpack message per observation."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vap_gym.errors import require
from vap_gym.observations import FRONT
from vap_gym.policies.chunks import ChunkQueue
from vap_gym.policies.protocol import Conventions, EpisodeStart, Observations, PolicyError
from vap_gym.policies.wire import MOST_BYTES, again, packed, unpacked

Array = np.ndarray
DROID = Conventions(
    action_mode="joint_velocity", gripper="closed", rate_hz=15.0, frame_size_px=(224, 224), views=(FRONT, "wrist"),
    chunk=10, convert=("action_mode", "gripper", "frame_size_px"),
)  # fmt: skip
"""What openpi's policies for DROID take and give."""
DROID_NAMES = {
    FRONT: "observation/exterior_image_1_left", "wrist": "observation/wrist_image_left",
    "joints": "observation/joint_position", "gripper": "observation/gripper_position", "instruction": "prompt",
}  # fmt: skip


class OpenpiPolicy:
    """Asks a server that speaks as openpi's `WebsocketPolicyServer` does, one episode after the other.

    A connection that is lost, or a reply that is late, leads to a new connection and the same question again.

    Args:
        address: "ws://host:port", "wss://…", or "host:port".
        conventions: what the served policy takes and gives; default: openpi's for DROID.
        names: by what name each thing is sent: of a view, "joints" (rad, (n,)), "gripper" (closedness, (1,)),
            "instruction"; what is not named is not sent. Default: openpi's for DROID.
        execute: actions of a chunk that are played before it is asked again; 8 is openpi's for DROID.
        api_key: sent as "Authorization: Api-Key …".
        timeout_s: for connecting, and for each reply; the first one may take long where the server compiles.
        tries: how often a question is asked before it is given up.
        wait_s: before the second try; doubled for each further one.
    """

    def __init__(
        self,
        address: str,
        conventions: Conventions = DROID,
        *,
        names: Mapping[str, str] | None = None,
        execute: int | None = 8,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        tries: int = 3,
        wait_s: float = 0.5,
    ) -> None:
        if timeout_s <= 0 or tries < 1 or wait_s < 0:
            raise PolicyError(
                f"timeout_s must be above 0, tries at least 1 and wait_s 0 or more, got {timeout_s}, {tries}, {wait_s}."
            )
        self.address = address if "://" in address else f"ws://{address}"
        self._conventions, self.names = conventions, dict(DROID_NAMES if names is None else names)
        self._api_key, self.timeout_s, self.tries, self.wait_s = api_key, timeout_s, tries, wait_s
        unsent = [view for view in conventions.views if view not in self.names]
        if unsent:
            raise PolicyError(
                f"Every view needs a name to be sent by, got none for {', '.join(unsent)}. Add it to names."
            )
        self._chunks = ChunkQueue(execute)
        self._connection: Any = None
        self._entered = contextlib.ExitStack()  # closes the connection
        self._metadata: dict[str, Any] = {}

    @property
    def conventions(self) -> Conventions:
        """As they were given."""
        return self._conventions

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server told of itself when it was last connected to."""
        return self._metadata

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Connect, where that was not done, and forget the rest of chunks."""
        self._chunks.reset(episode.slot for episode in episodes)
        self._again(self._connected)

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next actions.

        Raises:
            PolicyError: the server cannot be reached in time, reports an error, or answers something else.
        """
        return self._chunks.act(observations, instructions, self._ask)

    def close(self) -> None:
        """Close the connection, if there is one."""
        self._connection = None
        _abandon(self._entered)

    def _ask(self, observations: Observations, instructions: Sequence[str]) -> object:
        return np.stack([self._chunk(observations, i, words) for i, words in enumerate(instructions)])

    def _chunk(self, observations: Observations, i: int, instruction: str) -> Float[Array, "n A"]:
        held: dict[str, Any] = {view: observations.pixels[view][i] for view in self._conventions.views}
        held |= {
            "joints": observations.joints_rad[i].astype(np.float32),
            "gripper": observations.closedness[i : i + 1].astype(np.float32),
            "instruction": instruction,
        }
        question = packed({name: held[key] for key, name in self.names.items() if key in held})
        reply = self._again(lambda: self._exchange(question))
        if isinstance(reply, str):
            raise PolicyError(f"The policy server {self.address} failed: {reply.strip().splitlines()[-1]}")
        answer = unpacked(reply)
        if not isinstance(answer, dict) or "actions" not in answer:
            raise PolicyError(
                f"The policy server {self.address} must answer a map with 'actions', got "
                f"{sorted(map(str, answer)) if isinstance(answer, dict) else type(answer).__name__}."
            )
        try:
            actions = np.asarray(answer["actions"], np.float32)
        except (TypeError, ValueError) as error:
            raise PolicyError(f"The policy server {self.address} must answer numbers, got: {error}.") from error
        if actions.ndim != 2:
            raise PolicyError(f"The policy server must answer a chunk of actions (n, A), got shape {actions.shape}.")
        return actions

    def _exchange(self, question: bytes) -> bytes | str:
        connection = self._connected()
        try:
            connection.send(question)
            reply: bytes | str = connection.recv(timeout=self.timeout_s)
        except Exception:
            self._connection = None  # or a late reply would be taken for that to the next question
            _abandon(self._entered)
            raise
        return reply

    def _connected(self) -> Any:
        if self._connection is None:
            client: Any = require("websockets.sync.client", "[remote]", "An openpi policy")
            entered = contextlib.ExitStack()
            opened = client.connect(
                self.address,
                compression=None,
                max_size=MOST_BYTES,
                open_timeout=self.timeout_s,
                close_timeout=min(self.timeout_s, 1.0),
                ping_interval=None,  # a server that thinks for long answers no pings meanwhile
                additional_headers={"Authorization": f"Api-Key {self._api_key}"} if self._api_key else None,
            )
            connection = entered.enter_context(opened)
            try:
                told = connection.recv(timeout=self.timeout_s)
            except Exception:
                _abandon(entered)
                raise
            self._metadata = dict(unpacked(told)) if isinstance(told, bytes) else {}
            self._connection, self._entered = connection, entered
        return self._connection

    def _again(self, call: Any) -> Any:
        exceptions: Any = require("websockets.exceptions", "[remote]", "An openpi policy")
        passing = (OSError, TimeoutError, exceptions.WebSocketException)
        return again(call, tries=self.tries, wait_s=self.wait_s, passing=passing, name=f"The server {self.address}")

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the connection: a copy makes its own."""
        own = {"_connection": None, "_entered": contextlib.ExitStack(), "_chunks": ChunkQueue(self._chunks.execute)}
        return {**self.__dict__, **own}


def _abandon(entered: contextlib.ExitStack) -> None:
    """Close a connection that nothing more is expected of, whatever state it is in."""
    with contextlib.suppress(OSError):
        entered.close()
