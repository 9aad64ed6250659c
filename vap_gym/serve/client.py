"""RemoteEnv: an env that a server plays, as a Gymnasium env."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from jaxtyping import Bool, Float, UInt8

from vap_gym.contract import FRONT, Observation
from vap_gym.errors import CheckpointError, VapError, unknown_name
from vap_gym.serve.connection import Connection
from vap_gym.serve.errors import UnknownSessionError
from vap_gym.serve.messages import PROTOCOL, info_of, own, read_space


class RemoteEnv(gym.Env[Observation, np.ndarray]):
    """One session of a server, with the spaces, episodes and infos of `gym.make(env)` made here.

    Episodes with the same seed are the same as those of a local env; where the server steps it together with others, up
    to the rounding of other batch sizes (2 grey levels at p99 over 24 steps), and with `exact` to the bit.

    Args:
        url: the server's address, e.g. "ws://127.0.0.1:8000".
        env: the id of an env that it offers.
        settings: of the env, as for `VapEnv`: "action_mode", "camera", "judge", "max_adherence_px", "min_trust",
            "obs_type", "prompt", "reward", "robot", "task", "trust_samples", "views".
        exact: step alone, never as part of a batch with others.
        max_episode_steps: truncate an episode after so many steps; None: as the env's card says, 0: never.
        action_space: what you will send; refused at once where the server's world model takes other actions.
        token: the server's; None takes the environment variable VAP_GYM_TOKEN.
        timeout_s, tries, wait_s: see `connection.Connection`.
        render_mode: "rgb_array" or None.

    Raises:
        VapError: the server cannot be reached, is full, or cannot make such an env.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 15}  # type: ignore[misc]

    def __init__(
        self,
        url: str,
        env: str = "VAP-DROID-v0",
        *,
        settings: Mapping[str, Any] | None = None,
        exact: bool = False,
        max_episode_steps: int | None = None,
        action_space: gym.Space[Any] | None = None,
        token: str | None = None,
        timeout_s: float = 60.0,
        tries: int = 4,
        wait_s: float = 0.25,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise unknown_name("render_mode of a served env", str(render_mode), self.metadata["render_modes"])
        self._asked_for: dict[str, Any] = {
            "env": env, "settings": dict(settings or {}), "exact": exact, "max_episode_steps": max_episode_steps
        }  # fmt: skip
        self.render_mode = render_mode
        self._connection = Connection(url, token=token, timeout_s=timeout_s, tries=tries, wait_s=wait_s)
        self._session: str | None = None
        self._count = 0
        self._frame: np.ndarray | None = None
        self.about: dict[str, Any] = {}
        self._open()
        if action_space is not None and action_space != self.action_space:
            told = f"The server's {env} takes actions of {self.action_space}, wanted was {action_space}."
            self.close()
            raise CheckpointError(f"{told} Ask for another action_mode, or a server with another world model.")

    @property
    def took_ms(self) -> float:
        """How long the server had the last request, waiting included, ms."""
        return float(self.about.get("took_ms", 0.0))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode as `VapEnv.reset` does; in a new session where the old one is gone.

        Options are those of `VapEnv.reset`; cameras are given as tables, and starts by their number.
        """
        super().reset(seed=seed)
        question = {"seed": None if seed is None else int(seed), "options": options or {}}
        try:
            answer = self._ask("reset", **question)
        except UnknownSessionError:
            self._open()
            answer = self._ask("reset", **question)
        return self._seen(answer), info_of(answer["info"])

    def step(self, action: object) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Imagine one control step, as `VapEnv.step` does; truncated at the time limit.

        Raises:
            ActionError: an action of the wrong shape or type, or not finite; it was not carried out.
            UnknownSessionError: the session was evicted, or its server has ended. Call `reset`.
        """
        answer = self._ask("step", action=_numbers(action))
        return (
            self._seen(answer), float(answer["reward"]), bool(answer["terminated"]), bool(answer["truncated"]),
            info_of(answer["info"]),
        )  # fmt: skip

    def step_chunk(
        self, actions: object
    ) -> tuple[
        Observation, Float[np.ndarray, " K"], Bool[np.ndarray, " K"], Bool[np.ndarray, " K"], list[dict[str, Any]]
    ]:
        """Imagine K control steps at once, as `VapEnv.step_chunk` does; steps after the time limit are truncated ones.

        Raises as `step` does, and TooLargeError for more steps than the server takes (`about["limits"]["chunk"]`).
        """
        answer = own(self._ask("step_chunk", actions=_numbers(actions)))
        infos = [info_of(info) for info in answer["info"]]
        observations = self._seen(answer, newest=-1)
        return observations, answer["reward"], answer["terminated"], answer["truncated"], infos

    def branch(self, n: int, *, seeds: Sequence[int] | None = None) -> list[RemoteEnv]:
        """Return n envs that go on from the present moment; this one is left as it is. Close them.

        Without `seeds` they share this env's noise and differ by their actions alone, with n `seeds` they imagine
        different samples.
        """
        answer = self._ask("branch", n=int(n), seeds=None if seeds is None else [int(seed) for seed in seeds])
        return [self._copy(session) for session in answer["sessions"]]

    def render(self) -> UInt8[np.ndarray, "H W 3"] | None:
        """Return the newest frame with render_mode "rgb_array", else None."""
        if self.render_mode is None:
            gym.logger.warn('render() does nothing without a render_mode. Make the env with render_mode="rgb_array".')
            return None
        if self._frame is None:
            raise VapError("The env has no picture yet. Call reset() first.")
        return self._frame.copy()

    def close(self) -> None:
        """Close the session on the server, if that can still be reached, and the connection."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(VapError):
                self._connection.ask({"op": "close", "session": session}, tries=1)
        self._connection.close()

    def _open(self) -> None:
        question = {"op": "open", "protocol": PROTOCOL, "key": secrets.token_urlsafe(16), **self._asked_for}
        self._began(self._connection.ask(question))

    def _began(self, answer: dict[str, Any]) -> None:
        self._session, self._count, self.about = answer["session"], answer["count"], answer
        self.observation_space = read_space(answer["observation_space"])
        self.action_space = read_space(answer["action_space"])
        self.metadata = {**self.metadata, "render_fps": answer["fps"]}  # type: ignore[misc]

    def _copy(self, session: str) -> RemoteEnv:
        copied: RemoteEnv = object.__new__(RemoteEnv)
        copied.__dict__.update(self.__dict__)
        copied._connection, copied._np_random = self._connection.another(), None
        copied._began({**self.about, "session": session, "count": 0})
        return copied

    def _ask(self, operation: str, **content: Any) -> dict[str, Any]:
        if self._session is None:
            raise VapError("The env was closed. Make another.")
        question = {"op": operation, "session": self._session, "count": self._count, **content}
        answer = self._connection.ask(question)
        self._count = answer["count"]
        self.about["took_ms"] = answer["took_ms"]
        return answer

    def _seen(self, answer: Mapping[str, Any], *, newest: int | None = None) -> Observation:
        """Return the observation in an answer, and keep its newest frame for `render`."""
        observation = own(answer["observation"])
        pixels = observation["pixels"] if isinstance(observation, dict) else observation
        frames = pixels[FRONT] if isinstance(pixels, dict) else pixels
        self._frame = frames if newest is None else frames[newest]
        return observation


def _numbers(action: object) -> Any:
    """Return an action as an array; what makes none is sent as it is, for the server to refuse."""
    try:
        return np.asarray(action) if isinstance(action, list | tuple) else action
    except ValueError:  # lists of unequal length
        return action
