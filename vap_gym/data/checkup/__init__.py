"""Looking at a data set for what is most often wrong: units, signs, delays, frames; with figures and a way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vap_gym.data.checkup import actions, columns, pictures, robot
from vap_gym.data.checkup.sample import Finding, Sample, take_sample
from vap_gym.data.conventions import JOINTS
from vap_gym.data.episodes import EpisodeSet

__all__ = ["CHECKS", "Finding", "Sample", "check_sample", "check_set", "take_sample"]

CHECKS: tuple[Callable[[Sample], Iterator[Finding]], ...] = (
    robot.check_card,
    columns.check_finite,
    columns.check_constant,
    columns.check_repeats,
    columns.check_jumps,
    robot.check_reach,
    columns.check_euler,
    columns.check_quaternions,
    robot.check_limits,
    robot.check_speed,
    robot.check_kinematics,
    columns.check_closedness,
    actions.check_gripper_sign,
    actions.check_kind,
    actions.check_tracking,
    pictures.check_views,
    pictures.check_lag,
)
AFTER_UNITS = (robot.check_speed, robot.check_kinematics, actions.check_kind, actions.check_tracking)


def check_set(root: str | Path, *, limit: int = 24, robot: str | None = None) -> Iterator[Finding]:
    """Look at a set: at the counts of all its frames, and closely at `limit` episodes spread over it.

    `robot` is a card's name or path, where the set names none or a wrong one. Raises DataError where `root` is no
    data set; episodes that cannot be read become findings.
    """
    episodes = EpisodeSet(root)
    frames = sum(episodes.length(i) for i in range(len(episodes)))
    if not len(episodes):
        yield Finding(level="fail", subject="set", text=f"'{root}' holds no episode.", mend="Import some first.")
        return
    yield from pictures.check_counts(episodes)
    sample = take_sample(episodes, limit, robot)
    looked = f"{len(sample.episodes)} of {len(episodes)} episodes looked at, {frames} frames in all"
    yield Finding(level="ok", subject="set", text=f"{looked}, {sample.fps:g} per second, robot {sample.robot}")
    for text in sample.damaged:
        yield Finding(level="fail", subject="damaged", text=text)
    yield from check_sample(sample)


def check_sample(sample: Sample) -> Iterator[Finding]:
    """Run every check on episodes that were read."""
    with np.errstate(all="ignore"):
        in_degrees = False
        for check in CHECKS:
            if in_degrees and check in AFTER_UNITS:
                continue  # what they would find follows from the unit
            for finding in check(sample):
                in_degrees |= finding.subject == "degrees" and finding.text.startswith(JOINTS)
                yield finding
