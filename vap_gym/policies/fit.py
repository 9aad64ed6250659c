"""Fitting a policy to an env: what differs is refused before the first step, or converted where the policy says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vap_gym.observations import FRONT
from vap_gym.policies.protocol import (
    MODE_GRIPPER,
    Conventions,
    EpisodeStart,
    Observations,
    Policy,
    PolicyError,
    as_actions,
)
from vap_gym.rig import Rig

Array = np.ndarray
RELATIVE = ("cartesian_delta", "rt1", "bridge")  # modes that say how far to go in one step
SAME_RATE = 0.02  # relative difference of rates that is none


@dataclass(frozen=True, kw_only=True)
class Site:
    """What an env shows and takes."""

    action_mode: str
    action_size: int
    state_size: int
    rate_hz: float
    frame_size_px: tuple[int, int]
    views: tuple[str, ...]
    gripper_step: float  # closedness that a gripper velocity of 1 asks for in a step

    @property
    def gripper(self) -> str:
        """What the last entry of an action means here."""
        return MODE_GRIPPER[self.action_mode]


def site_of(rig: Rig, rate_hz: float, views: Sequence[str] = ()) -> Site:
    """Return what an env of this rig shows and takes; `views` are its further cameras."""
    return Site(
        action_mode=rig.controller.mode,
        action_size=rig.controller.action_size,
        state_size=len(rig.robot.arm_joints) + 1,
        rate_hz=rate_hz,
        frame_size_px=rig.frame_size_px,
        views=(FRONT, *views),
        gripper_step=rig.robot.controller.gripper_step,
    )


def action_mode_for(conventions: Conventions, env_mode: str, known: Sequence[str], name: str) -> str:
    """Return the action mode in which an env is made for a policy: its own one, where the policy asks for that.

    Raises:
        PolicyError: the policy's mode is another one and must not be converted, or the robot does not know it.
    """
    mine = conventions.action_mode
    if mine == env_mode:
        return env_mode
    if mine not in known:
        raise PolicyError(
            f"Policy '{name}' gives '{mine}', this robot takes: {', '.join(known)}. Train it for one of these."
        )
    if "action_mode" not in conventions.convert:
        raise PolicyError(
            f"Policy '{name}' gives '{mine}', got an env that takes '{env_mode}'. Evaluate with action_mode='{mine}', "
            "or let the env be made as the policy wants it: Conventions(…, convert=('action_mode',))."
        )
    return mine


def fitted(policy: Policy, site: Site, name: str) -> Policy:
    """Return the policy as the env wants it: itself where nothing differs, or with its conversions around it.

    Raises:
        PolicyError: something differs that must not, or cannot be converted; every difference is named.
    """
    mine, wrong = policy.conventions, []
    missing = [view for view in mine.views if view not in site.views]
    if missing:
        wrong.append(
            f"it looks through {', '.join(missing)}, the env has {', '.join(site.views)} "
            f"(make the env with views={[view for view in mine.views if view != FRONT]})"
        )
    if mine.action_mode != site.action_mode:
        wrong.append(f"it gives '{mine.action_mode}', the env takes '{site.action_mode}'")
    for what, own, theirs in (
        ("actions have", mine.action_size, site.action_size),
        ("state has", mine.state_size, site.state_size),
    ):
        if own not in (None, theirs):
            wrong.append(f"its {what} {own} numbers, the env's {theirs}")
    if mine.frame_size_px not in (None, site.frame_size_px) and "frame_size_px" not in mine.convert:
        wrong.append(
            f"its frames are {mine.frame_size_px} px, the env's {site.frame_size_px} (convert: 'frame_size_px')"
        )
    if mine.means_by_gripper != site.gripper and "gripper" not in mine.convert:
        wrong.append(f"its gripper means '{mine.means_by_gripper}', the env's '{site.gripper}' (convert: 'gripper')")
    hold = _steps_held(mine, site)
    if hold is None:
        wrong.append(
            f"it acts at {mine.rate_hz:g} Hz, the env at {site.rate_hz:g} Hz "
            + (
                "(only a rate that the env's is a multiple of can be converted)"
                if "rate_hz" in mine.convert
                else "(convert: 'rate_hz')"
            )
        )
    if wrong:
        raise PolicyError(
            f"Policy '{name}' does not fit the env: {'; '.join(wrong)}. Mend the policy's Conventions or the env, or "
            "say what may be converted in Conventions(convert=(…))."
        )
    found = policy
    if mine.frame_size_px not in (None, site.frame_size_px):
        assert mine.frame_size_px is not None
        found = Letterboxed(found, mine.frame_size_px)
    if mine.means_by_gripper != site.gripper:
        found = Regripped(found, mine.means_by_gripper, site.gripper, site.gripper_step)
    return found if hold == 1 or hold is None else Held(found, hold, divided=mine.action_mode in RELATIVE)


def _steps_held(mine: Conventions, site: Site) -> int | None:
    """How many steps of the env an action lasts; None: that is not one or must not be made so."""
    if mine.rate_hz is None:
        return 1
    ratio = site.rate_hz / mine.rate_hz
    steps = round(ratio)
    if steps < 1 or abs(ratio - steps) > SAME_RATE * ratio:
        return None
    return steps if steps == 1 or "rate_hz" in mine.convert else None


class Letterboxed:
    """A policy that is shown frames of its own size: scaled as a whole, with black bars where the shapes differ."""

    def __init__(self, policy: Policy, frame_size_px: tuple[int, int]) -> None:
        self.policy, self.frame_size_px = policy, frame_size_px

    @property
    def conventions(self) -> Conventions:
        """The policy's, but for the size of frames."""
        return replace(self.policy.conventions, frame_size_px=None)

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Begin episodes."""
        self.policy.reset(episodes)

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next actions."""
        pixels = {
            view: np.stack([letterboxed(frame, self.frame_size_px) for frame in frames])
            for view, frames in observations.pixels.items()
        }
        return self.policy.act(replace(observations, pixels=pixels), instructions)


class Regripped:
    """A policy whose gripper means something else than the env's: velocities, places and signs, either way round."""

    def __init__(self, policy: Policy, mine: str, wanted: str, gripper_step: float) -> None:
        self.policy, self.mine, self.wanted, self.gripper_step = policy, mine, wanted, gripper_step

    @property
    def conventions(self) -> Conventions:
        """The policy's, but for the gripper."""
        return replace(self.policy.conventions, gripper=self.wanted)

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Begin episodes."""
        self.policy.reset(episodes)

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next actions."""
        actions = as_actions(self.policy.act(observations, instructions), len(observations.slots)).copy()
        given, closedness = actions[:, -1], observations.closedness
        actions[:, -1] = converted_gripper(
            given, closedness.astype(np.float32), self.mine, self.wanted, gripper_step=self.gripper_step
        )
        return actions


class Held:
    """A policy that is slower than the env: each of its actions lasts several steps.

    Velocities and places are held; what says how far to go in a step is divided into as many parts.
    """

    def __init__(self, policy: Policy, steps: int, *, divided: bool) -> None:
        self.policy, self.steps, self.divided = policy, steps, divided
        self._held: dict[int, tuple[np.ndarray, int]] = {}  # by slot: the action, and for how many steps more

    @property
    def conventions(self) -> Conventions:
        """The policy's, but for the rate."""
        return replace(self.policy.conventions, rate_hz=None)

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Begin episodes."""
        for episode in episodes:
            self._held.pop(episode.slot, None)
        self.policy.reset(episodes)

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next actions; the policy is asked only where its last one has lasted long enough."""
        due = [i for i, slot in enumerate(observations.slots) if self._held.get(slot, (None, 0))[1] == 0]
        if due:
            asked = self.policy.act(observations.rows(due), [instructions[i] for i in due])
            for i, action in zip(due, as_actions(asked, len(due)), strict=True):
                part = action.copy()
                if self.divided:
                    part[:-1] /= self.steps
                self._held[observations.slots[i]] = (part, self.steps)
        for slot in observations.slots:
            action, left = self._held[slot]
            self._held[slot] = (action, left - 1)
        return np.stack([self._held[slot][0] for slot in observations.slots])


def letterboxed(frame: UInt8[Array, "H W 3"], size_px: tuple[int, int]) -> UInt8[Array, "h w 3"]:
    """Return a frame scaled to fit (width, height), bicubic, centred on black."""
    (width, height), (H, W) = size_px, frame.shape[:2]
    scale = min(width / W, height / H)
    w, h = max(1, round(W * scale)), max(1, round(H * scale))
    found = np.zeros((height, width, 3), np.uint8)
    x, y = (width - w) // 2, (height - h) // 2
    found[y : y + h, x : x + w] = np.asarray(Image.fromarray(frame).resize((w, h), Image.Resampling.BICUBIC))
    return found


def converted_gripper(
    given: Float[Array, " B"], closedness: Float[Array, " B"], mine: str, wanted: str, *, gripper_step: float
) -> Float[Array, " B"]:
    """Return gripper entries in another convention.

    Args:
        given: in the convention `mine`.
        closedness: where the fingers are now, 0 open .. 1 closed: velocities and places differ by it.
        mine, wanted: of `protocol.GRIPPERS`.
        gripper_step: closedness that a velocity of 1 asks for in one step.
    """
    to_target: Mapping[str, Array] = {
        "closing": np.clip(closedness + gripper_step * given, 0.0, 1.0),
        "opening": np.clip(closedness - gripper_step * given, 0.0, 1.0),
        "closed": given,
        "open": 1.0 - given,
        "closed_sign": (given > 0).astype(np.float32),
        "open_sign": (given <= 0).astype(np.float32),
    }
    if {mine, wanted} <= {"closing", "opening"}:  # exactly, whatever the fingers can do
        return np.asarray(given if mine == wanted else -given)
    target = to_target[mine]
    velocity = np.clip((target - closedness) / gripper_step, -1.0, 1.0)
    from_target: Mapping[str, Array] = {
        "closing": velocity,
        "opening": -velocity,
        "closed": target,
        "open": 1.0 - target,
        "closed_sign": np.where(target > 0.5, 1.0, -1.0),
        "open_sign": np.where(target > 0.5, -1.0, 1.0),
    }
    return np.asarray(from_target[wanted], np.float32)
