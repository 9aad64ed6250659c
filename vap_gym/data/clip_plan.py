"""Where training clips lie: set, episode, stride and first frame of clip i, as a pure function of i and the seed.

Half of the clips (`near_changes`) are laid around a moment at which a gripper opens or closes (paper Sec. 3.3), the
others anywhere. A clip's frames are `stride` recorded frames apart, so that it runs at rate / stride; the stride is
drawn among those that keep it within `rate_hz`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vap_gym.data.changes import gripper_changes
from vap_gym.data.layout import DataError
from vap_gym.data.mixing import Mixture, choose


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a plan must know of an episode: its position in the set, frames, rate, and its gripper if it tells one.

    `moments` are frames that clips are laid around like gripper changes: contacts, for instance. `unusable` says why no
    clip may come from it; empty: one may.
    """

    episode: int
    frames: int
    rate_hz: float
    closedness: Float[np.ndarray, " T"] | None = None
    moments: tuple[int, ...] = ()
    unusable: str = ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A clip: frames start, start + stride, … of the `episode`-th episode of the `source`-th set.

    `change` is the frame of the gripper change that it was laid around, None where it was laid anywhere.
    """

    source: int
    episode: int
    start: int
    stride: int
    rate_hz: float
    change: int | None = None


class ClipPlan:
    """Lays clips into the episodes of several sets; settings and tables only.

    Args:
        sets: for each set its episodes. Those that are too short, or have no stride within `rate_hz`, give no clips:
            `left_out` counts them by reason.
        weights: of the sets; None: by the recorded frames that clips may come from.
        frames: of a clip.
        rate_hz: lowest and highest rate of a clip.
        near_changes: share of clips that are laid around gripper changes, in sets that show any.
        jitter: how far a change may be from such a clip's middle, as a share of the clip's length; at an episode's
            ends it may be farther.
        seed: of all that is drawn.

    Raises:
        DataError: settings out of range, or a set in which no clip has room.
    """

    def __init__(
        self,
        sets: Sequence[Sequence[Recorded]],
        *,
        weights: Sequence[float | None] | None = None,
        frames: int = 25,
        rate_hz: tuple[float, float] = (4.0, 15.0),
        near_changes: float = 0.5,
        jitter: float = 0.25,
        seed: int = 0,
    ) -> None:
        slowest, fastest = rate_hz
        if frames < 1 or not 0 < slowest <= fastest or not 0 <= near_changes <= 1 or not 0 <= jitter <= 0.5:
            raise DataError(
                "Clips need frames >= 1, 0 < slowest <= fastest rate, near_changes in [0, 1] and jitter in [0, 0.5], "
                f"got {frames}, {rate_hz}, {near_changes} and {jitter}. Try 25, (4, 15), 0.5 and 0.25."
            )
        if not sets:
            raise DataError("Clips need at least one set of episodes, got none.")
        self.frames, self.rate_hz, self.near_changes, self.jitter = frames, (slowest, fastest), near_changes, jitter
        self._tables = [_Table(number, episodes, frames, rate_hz) for number, episodes in enumerate(sets)]
        given = [None] * len(sets) if weights is None else list(weights)
        if len(given) != len(sets):
            raise DataError(f"Clips need one weight for each of {len(sets)} sets, got {len(given)}.")
        known = [float(table.starts.sum()) if w is None else float(w) for w, table in zip(given, self._tables)]
        self.mixture = Mixture(weights=tuple(known), seed=seed)

    @property
    def left_out(self) -> list[Counter[str]]:
        """For each set, how many episodes give no clips, by reason."""
        return [table.left_out for table in self._tables]

    @property
    def near_share(self) -> float:
        """The share of clips around gripper changes, in expectation: less than asked where a set shows no change."""
        shows = [bool(len(table.changes)) for table in self._tables]
        return self.near_changes * sum(share for share, s in zip(self.mixture.shares, shows) if s)

    def __call__(self, index: int) -> Place:
        """Return clip `index` >= 0: the same at every call and in every process."""
        rng = self.mixture.rng(index)
        number = self.mixture.draw(rng)
        table = self._tables[number]
        is_near = rng.random() < self.near_changes and len(table.changes) > 0
        if is_near:
            row, change = (int(x) for x in table.changes[rng.integers(len(table.changes))])
        else:
            row, change = choose(table.starts, rng), -1
        episode = table.used[row]
        stride = int(rng.choice(table.strides[row]))
        span = (self.frames - 1) * stride
        last_start = episode.frames - 1 - span
        if is_near:
            off = rng.uniform(-self.jitter, self.jitter) * span
            start = min(max(round(change - span / 2 + off), 0), last_start)
        else:
            start = int(rng.integers(last_start + 1))
        return Place(
            source=number,
            episode=episode.episode,
            start=start,
            stride=stride,
            rate_hz=episode.rate_hz / stride,
            change=change if is_near else None,
        )


class _Table:
    """What can be drawn from one set."""

    def __init__(self, number: int, episodes: Sequence[Recorded], frames: int, rate_hz: tuple[float, float]) -> None:
        self.left_out: Counter[str] = Counter()
        self.used: list[Recorded] = []
        self.strides: list[NDArray[np.int64]] = []
        changes: list[tuple[int, int]] = []
        for episode in episodes:
            strides = _strides(episode.rate_hz, rate_hz)
            fitting = strides[(frames - 1) * strides < episode.frames]
            if episode.unusable or not len(fitting):
                self.left_out[episode.unusable or _reason(episode, strides, frames, rate_hz)] += 1
                continue
            if episode.closedness is not None:
                changes += [(len(self.used), int(frame)) for frame in gripper_changes(episode.closedness)]
            changes += [(len(self.used), frame) for frame in episode.moments]
            self.used.append(episode)
            self.strides.append(fitting)
        if not self.used:
            why = "; ".join(f"{count} x {reason}" for reason, count in self.left_out.most_common(3)) or "it is empty"
            raise DataError(
                f"Set {number} must have room for a clip of {frames} frames at {rate_hz[0]:g} to {rate_hz[1]:g} Hz, "
                f"got none in {len(episodes)} episodes ({why}). Ask for fewer frames or another range of rates."
            )
        self.changes = np.array(changes, np.int64).reshape(-1, 2)
        least = [int(strides[0]) for strides in self.strides]
        self.starts = np.array([e.frames - (frames - 1) * s for e, s in zip(self.used, least)], np.float64)


def _strides(rate_hz: float, within_hz: tuple[float, float]) -> NDArray[np.int64]:
    """Whole numbers of recorded frames from one frame of a clip to the next."""
    slowest, fastest = within_hz
    first = max(1, int(np.ceil(rate_hz / fastest * (1 - 1e-6))))
    last = int(np.floor(rate_hz / slowest * (1 + 1e-6)))
    return np.arange(first, last + 1, dtype=np.int64)


def _reason(episode: Recorded, strides: NDArray[np.int64], frames: int, rate_hz: tuple[float, float]) -> str:
    if not len(strides):
        return f"{episode.rate_hz:g} Hz, of which no whole part is {rate_hz[0]:g} to {rate_hz[1]:g} Hz"
    return f"shorter than {(frames - 1) * int(strides[0]) + 1} frames"
