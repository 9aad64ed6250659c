"""What the checks look at: episodes spread over a set, with their pictures reduced to how much they change."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vap_gym.cards import RobotCard, known_robots, load_robot
from vap_gym.data.conventions import CARTESIAN, GRIPPER, JOINTS
from vap_gym.data.episodes import EpisodeSet
from vap_gym.data.layout import DataError
from vap_gym.errors import VapError
from vap_gym.kinematics import Chain, load_chain

Array = NDArray[np.float64]
ABSURD = 1e9  # whatever the unit
MAX_FRAMES = 300  # of an episode's pictures


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check saw, in figures; for notes and failures also why it matters and what would mend it."""

    level: Literal["ok", "note", "fail"]
    subject: str
    text: str
    why: str = ""
    mend: str = ""

    def __str__(self) -> str:
        """All of it in one line."""
        return " ".join(part for part in (self.text, self.why, self.mend) if part)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Of one view and episode: how much each frame differs from the one before, 0 to 255, and the spread of grey."""

    motion: Array  # (T - 1,)
    spread: float


@dataclass(frozen=True, kw_only=True)
class Looked:
    """One episode as the checks see it."""

    index: int
    columns: Mapping[str, NDArray[Any]]
    info: Mapping[str, Any]
    views: Mapping[str, Pictures] = field(default_factory=dict)

    def get(self, name: str, width: int | None = None) -> Array | None:
        """A column as float64 (T, n), NaN for what is no usable number; None where it is absent or of another width."""
        values = self.columns.get(name)
        if values is None or name in self.info.get("absent", ()) or values.dtype.kind not in "fiu":
            return None
        flat = values.reshape(len(values), -1).astype(np.float64)
        flat[~(np.abs(flat) < ABSURD)] = np.nan
        return flat if width is None or flat.shape[1] == width else None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Episodes of a set, and the robot that they name: its card and the chain of its arm, where they are known."""

    episodes: Sequence[Looked]
    fps: float
    robot: str
    card: RobotCard | None = None
    arm: Chain | None = None
    damaged: Sequence[str] = ()

    def series(self, name: str, width: int | None = None) -> list[Array]:
        """A column of all episodes that have it: those rows that are finite throughout, where there are any."""
        found = [episode.get(name, width) for episode in self.episodes]
        finite = [values[np.isfinite(values).all(axis=1)] for values in found if values is not None]
        return [values for values in finite if len(values)]

    def fk(self, joints: Array, link: str | None = None) -> Array | None:
        """Poses of the tip (or another link) in the base frame, (T, 4, 4); None where no card tells."""
        if self.card is None or self.arm is None or joints.shape[1] != self.arm.size:
            return None
        chain = self.arm if link is None else load_chain(self.card).subchain([link])
        if link is not None and chain.joint_names != self.arm.joint_names:
            return None
        poses: Array = chain.fk(torch.from_numpy(np.ascontiguousarray(joints)), link or self.card.tip_link).numpy()
        return poses


def take_sample(episodes: EpisodeSet, limit: int, robot: str | None = None) -> Sample:
    """Read `limit` episodes spread over a set; those that cannot be read are told, and the others looked at."""
    chosen = sorted({round(x) for x in np.linspace(0, len(episodes) - 1, min(limit, len(episodes)))})
    looked, damaged = [], []
    for i in chosen:
        try:
            looked.append(_look(episodes, i))
        except DataError as error:
            damaged.append(f"episode {episodes.index(i)}: {error}")
    names = Counter(str(episodes.info(i).get("robot") or episodes.meta.get("robot_type") or "unknown") for i in chosen)
    name = robot or names.most_common(1)[0][0]
    card, arm = _robot(name) if robot is None else _named(name)
    rates = {float(e.info["rate_hz"]) for e in looked if isinstance(e.info.get("rate_hz"), int | float)}
    stated = rates.pop() if len(rates) == 1 else float(episodes.fps)
    return Sample(
        episodes=looked,
        fps=stated if math.isfinite(stated) and stated > 0 else float(episodes.fps),
        robot=name,
        card=card,
        arm=arm,
        damaged=damaged,
    )


def _named(name: str) -> tuple[RobotCard, Chain]:
    """The card that a user asks for; its errors are theirs."""
    card = load_robot(name)
    return card, load_chain(card).subchain([card.tip_link])


def _robot(name: str) -> tuple[RobotCard | None, Chain | None]:
    if name not in known_robots():
        return None, None
    try:
        return _named(name)
    except VapError:  # a card that is broken is for its own checks
        return None, None


def _look(episodes: EpisodeSet, i: int) -> Looked:
    columns = episodes.read(i, views=(), labels=()).columns
    length = episodes.length(i)
    views = {}
    for view in episodes.features.views:
        frames = episodes.read(i, views=[view], labels=(), columns=(), stop=min(length, MAX_FRAMES)).frames[view]
        views[view] = _reduced(frames)
    return Looked(index=episodes.index(i), columns=columns, info=episodes.info(i), views=views)


def _reduced(frames: NDArray[np.uint8]) -> Pictures:
    """Grey pictures of about 96 columns, and the root mean square of what changes from one to the next."""
    step = max(1, frames.shape[2] // 96)
    grey = frames[:, ::step, ::step].astype(np.float32).mean(axis=-1)
    change = np.sqrt((np.diff(grey, axis=0) ** 2).mean(axis=(1, 2)))
    return Pictures(motion=change.astype(np.float64), spread=float(grey.std(axis=(1, 2)).max()))


def speeds(sample: Sample, episode: Looked) -> Array | None:
    """How much the robot moves from each frame to the next, (T - 1,): of all joints, or of the tip where none are."""
    joints = episode.get(JOINTS)
    if joints is not None:
        return np.asarray(np.linalg.norm(np.diff(joints, axis=0), axis=1), np.float64)
    pose = episode.get(CARTESIAN, 6)
    if pose is None:
        return None
    turn = (np.diff(pose[:, 3:], axis=0) + np.pi) % (2 * np.pi) - np.pi
    return np.asarray(np.hypot(*(np.linalg.norm(x, axis=1) for x in (np.diff(pose[:, :3], axis=0), 0.1 * turn))))


def states(episode: Looked) -> Iterator[tuple[str, Array]]:
    """The columns of the robot's state that an episode has."""
    for name in (JOINTS, CARTESIAN, GRIPPER):
        values = episode.get(name)
        if values is not None:
            yield name, values
