"""Playing: one policy in one batch of trials; what it does wrong ends its own episode and no other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vap_gym.errors import VapError
from vap_gym.evaluate.policies_arena import Arena, Moment, observations_of
from vap_gym.evaluate.policies_trials import Trial
from vap_gym.policies import EpisodeStart, Policy
from vap_gym.policies.protocol import as_actions
from vap_gym.starts import Start

Array = np.ndarray
REASON_LETTERS = 300


@dataclass(kw_only=True, eq=False)
class Played:
    """One episode: T + 1 moments and the T actions between them."""

    trial: Trial
    moments: list[Moment] = field(default_factory=list)
    actions: list[Float[Array, " A"]] = field(default_factory=list)
    fault: str | None = None  # what the policy did wrong; it ended the episode

    @property
    def success(self) -> bool:
        """Whether the task was solved, which ends an episode."""
        return self.moments[-1].success

    @property
    def verdict(self) -> str:
        """ "success", "failure", or "unknown" where nobody can tell; a fault of the policy is a failure."""
        if self.fault is not None:
            return "failure"
        if self.moments[-1].source.startswith("none"):
            return "unknown"
        return "success" if self.success else "failure"

    def frames(self, view: str) -> UInt8[Array, "T H W 3"]:
        """What a camera saw, T + 1 frames."""
        return np.stack([moment.pixels[view] for moment in self.moments])


class _FaultError(Exception):
    """A policy did something wrong, and it is not known to whose episode."""


class Patience:
    """Calls functions in a thread of its own, and gives up on one that does not return in time.

    A call that is given up goes on in its thread, which is left behind; the next call gets another thread. What it
    still does to the policy's memory is of slots that are not used again.

    Args:
        timeout_s: for each call; None: wait for ever, in the caller's own thread.
    """

    def __init__(self, timeout_s: float | None) -> None:
        if timeout_s is not None and not timeout_s > 0:
            raise VapError(f"act_timeout_s must be above 0, or None to wait for ever, got {timeout_s}. Try 60.")
        self.timeout_s = timeout_s
        self._todo: queue.Queue[Callable[[], Any] | None] | None = None
        self._done: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()

    def __call__(self, call: Callable[[], Any]) -> Any:
        """Return what the call returns. Raises what it raises, or TimeoutError."""
        if self.timeout_s is None:
            return call()
        if self._todo is None:
            self._todo, self._done = queue.Queue(), queue.Queue()
            threading.Thread(target=_work, args=(self._todo, self._done), daemon=True).start()
        self._todo.put(call)
        try:
            value, error = self._done.get(timeout=self.timeout_s)
        except queue.Empty:
            self._todo = None
            raise TimeoutError(f"it did not return within {self.timeout_s:g} s") from None
        if error is not None:
            raise error
        return value

    def end(self) -> None:
        """Let the thread go."""
        if self._todo is not None:
            self._todo.put(None)
            self._todo = None


def _work(todo: queue.Queue[Callable[[], Any] | None], done: queue.Queue[tuple[Any, Exception | None]]) -> None:
    while (call := todo.get()) is not None:
        try:
            done.put((call(), None))
        except Exception as error:  # whatever it is: the one who waits for the answer raises it
            done.put((None, error))


def play(
    policy: Policy, arena: Arena, trials: Sequence[Trial], *, steps: int, act_timeout_s: float | None = None
) -> list[Played]:
    """Play one policy in these trials, side by side, each until it is solved or `steps` are up.

    Where the policy raises, hangs or returns what has no shape, nobody can tell which episode it was: the trials are
    then played again one by one, and it ends only that in which it happens again. Returned in the order of the trials.
    """
    patience = Patience(act_timeout_s)
    try:
        return _together(policy, arena, trials, steps, patience, first_slot=0)
    except _FaultError:
        played = []
        for i, trial in enumerate(trials):
            played += _together(policy, arena, [trial], steps, patience, first_slot=len(trials) + i)
        return played
    finally:
        patience.end()


def _together(
    policy: Policy, arena: Arena, trials: Sequence[Trial], steps: int, patience: Patience, *, first_slot: int
) -> list[Played]:
    """Play trials in one batch. Raises _FaultError where a policy fails more than one of them at once."""
    starts, moments = arena.begin(trials)
    played = [Played(trial=trial, moments=[moment]) for trial, moment in zip(trials, moments, strict=True)]
    alive = list(range(len(trials)))
    try:
        _asked(patience, lambda: policy.reset(_episodes(trials, starts, first_slot)))
        for _ in range(steps):
            running = [played[row] for row in alive]
            actions = _decided(policy, patience, running, [first_slot + row for row in alive], arena.site.action_size)
            alive, actions = _finite(played, alive, actions)
            if not alive:
                break
            for row, action, moment in zip(alive, actions, arena.step(alive, actions), strict=True):
                played[row].actions.append(action)
                played[row].moments.append(moment)
            alive = [row for row in alive if not played[row].success]
            if not alive:
                break
    except _FaultError as error:
        if len(trials) > 1:
            raise
        played[0].fault = str(error)
    return played


def _asked(patience: Patience, call: Callable[[], Any]) -> Any:
    try:
        return patience(call)
    except Exception as error:  # whatever it is that a policy of others does
        raise _FaultError(reason_of(error)) from error


def _episodes(trials: Sequence[Trial], starts: Sequence[Start], first_slot: int) -> list[EpisodeStart]:
    return [
        EpisodeStart(slot=first_slot + i, seed=trial.seed * 1_000_003 + trial.start, number=trial.start, start=start)
        for i, (trial, start) in enumerate(zip(trials, starts, strict=True))
    ]


def _decided(
    policy: Policy, patience: Patience, running: Sequence[Played], slots: Sequence[int], action_size: int
) -> Float[Array, "b A"]:
    """What a policy says, of the right shape but maybe not finite."""
    newest = [one.moments[-1] for one in running]
    observations, words = observations_of(newest, slots), [moment.instruction for moment in newest]

    def decide() -> Array:
        said = np.asarray(policy.act(observations, words))
        as_actions(np.nan_to_num(said) if said.dtype.kind == "f" else said, len(running), action_size)
        return said.astype(np.float32)

    decided: Array = _asked(patience, decide)
    return decided


def _finite(played: Sequence[Played], alive: list[int], actions: Array) -> tuple[list[int], Array]:
    """The episodes whose actions are finite; the others have failed."""
    good = np.isfinite(actions).all(1)
    for row, fine, action in zip(alive, good, actions, strict=True):
        if not fine:
            bad = np.flatnonzero(~np.isfinite(action)).tolist()
            played[row].fault = f"the policy returned NaN or infinity in entries {bad}"
    return [row for row, fine in zip(alive, good, strict=True) if fine], actions[good]


def reason_of(error: Exception) -> str:
    """Return in a line why a policy failed."""
    told = str(error).strip().splitlines()
    text = told[0] if told else ""
    named = text if isinstance(error, VapError | TimeoutError) and text else f"{type(error).__name__}: {text}"
    return named.removesuffix(": ")[:REASON_LETTERS]


def trust_of(moments: Sequence[Moment]) -> Mapping[str, Float[Array, " T"]]:
    """Return every figure of trust over time, NaN where it is not known."""
    names = sorted({name for moment in moments for name in moment.trust})
    return {name: np.array([moment.trust.get(name, np.nan) for moment in moments], np.float32) for name in names}
