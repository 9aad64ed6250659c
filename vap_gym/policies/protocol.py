"""What a policy is: it sees a batch of running episodes, and returns an action for each, in conventions it declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from vap_gym.contract import FRONT
from vap_gym.errors import VapError, unknown_name

if TYPE_CHECKING:
    from vap_gym.starts import Start

Array = np.ndarray
GRIPPERS = ("closing", "opening", "closed", "open", "closed_sign", "open_sign")
"""What an action's last entry means: a velocity in [−1, 1], + closes or + opens; where the fingers are to be in [0, 1],
1 = closed or 1 = open; or the same told by the sign alone, + = closed or + = open."""
CONVERTIBLE = ("action_mode", "rate_hz", "gripper", "frame_size_px")
MODE_GRIPPER: Mapping[str, str] = {
    "cartesian_velocity": "closing", "cartesian_delta": "closing", "joint_velocity": "closing", "rt1": "closing",
    "cartesian_pose": "closed", "joint_position": "closed", "bridge": "open",
}  # fmt: skip
"""What the gripper's entry means in each action mode of an env (see `kinematics.Controller`)."""


class PolicyError(VapError):
    """A policy that does not fit an env, cannot be reached, or gives what is no action."""


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """What a policy expects to see and what its actions mean. A difference from the env is refused before the first
    step, unless `convert` names it."""

    action_mode: str  # absolute or relative, of the tip or of the joints: one of the env's
    gripper: str | None = None  # one of GRIPPERS; None: as the env has it in this action mode
    rate_hz: float | None = None  # at which it is to be asked; None: any
    frame_size_px: tuple[int, int] | None = None  # (width, height) of the frames it takes; None: any
    views: tuple[str, ...] = (FRONT,)  # the cameras it looks through
    action_size: int | None = None  # numbers in an action; None: as many as the env takes in this action mode
    state_size: int | None = None  # numbers in `agent_pos`, which are joints and closedness; None: any
    chunk: int = 1  # actions that it decides on at once
    convert: tuple[str, ...] = ()  # which of CONVERTIBLE may be brought into line

    def __post_init__(self) -> None:
        if self.action_mode not in MODE_GRIPPER:
            raise unknown_name("action mode", self.action_mode, MODE_GRIPPER)
        if self.gripper is not None and self.gripper not in GRIPPERS:
            raise unknown_name("gripper convention", self.gripper, GRIPPERS)
        for name in self.convert:
            if name not in CONVERTIBLE:
                raise unknown_name("convention that can be converted", name, CONVERTIBLE)
        if self.chunk < 1 or (self.rate_hz is not None and not self.rate_hz > 0):
            raise PolicyError(
                f"Conventions need chunk ≥ 1 and a rate_hz above 0 or None, got {self.chunk} and {self.rate_hz}."
            )
        for name, size in (("action_size", self.action_size), ("state_size", self.state_size)):
            if size is not None and size < 1:
                raise PolicyError(f"{name} must be at least 1, or None for what the env has, got {size}.")

    @property
    def means_by_gripper(self) -> str:
        """What the last entry of its actions means."""
        return self.gripper or MODE_GRIPPER[self.action_mode]


@dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """What B running episodes show at one moment."""

    slots: tuple[int, ...]  # which episodes these are
    pixels: Mapping[str, UInt8[Array, "B H W 3"]]  # by view
    joints_rad: Float[Array, "B n"]
    closedness: Float[Array, " B"]  # of the gripper, 0 open .. 1 closed
    tip: Float[Array, "B 6"]  # of the tip link in the base frame: xyz [m], extrinsic-xyz Euler [rad]
    target_m: Float[Array, "B 3"]  # where the task's object is seen (by the judge, or truly); NaN: nobody knows

    @property
    def agent_pos(self) -> Float[Array, "B m"]:
        """Joints and closedness, m = n + 1, float32: as in the env's own observation."""
        return np.concatenate([self.joints_rad, self.closedness[:, None]], 1).astype(np.float32)

    def rows(self, which: Sequence[int]) -> Observations:
        """Return some of the episodes, by their places in the batch."""
        rows = list(which)
        return Observations(
            slots=tuple(self.slots[i] for i in rows),
            pixels={view: frames[rows] for view, frames in self.pixels.items()},
            joints_rad=self.joints_rad[rows],
            closedness=self.closedness[rows],
            tip=self.tip[rows],
            target_m=self.target_m[rows],
        )

    def as_env(self, i: int | slice = slice(None)) -> dict[str, Any]:
        """Return one episode's observation (or the batch's) as an env with obs_type "pixels_agent_pos" gives it."""
        frames = {view: pixels[i] for view, pixels in self.pixels.items()}
        return {"pixels": frames if len(frames) > 1 else next(iter(frames.values())), "agent_pos": self.agent_pos[i]}


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeStart:
    """An episode that begins."""

    slot: int  # by which it is named from now on
    seed: int  # of what the policy draws; the same for every policy that is compared
    number: int  # of the start in its file
    start: Start  # first picture, camera, robot and scene


@runtime_checkable
class Policy(Protocol):
    """Decides what several robots do next. What it remembers of an episode it keeps by its slot."""

    @property
    def conventions(self) -> Conventions:
        """What it takes and gives."""
        ...

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Begin these episodes; what was in their slots is over, the other slots go on."""
        ...

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next action of every episode that is shown, in the batch's order."""
        ...


def as_actions(actions: object, rows: int, size: int | None = None) -> Float[Array, "rows A"]:
    """Return a policy's actions as float32 (rows, A), or say what is wrong with them.

    Raises:
        PolicyError: no numbers, another shape, NaN or infinite.
    """
    try:
        found = np.asarray(actions, np.float32)
    except (TypeError, ValueError) as error:
        raise PolicyError(f"A policy must return numbers, got {type(actions).__name__}: {error}.") from error
    wanted = f"({rows}, {size if size is not None else 'A'})"
    if found.ndim != 2 or len(found) != rows or (size is not None and found.shape[1] != size):
        raise PolicyError(f"A policy must return actions of shape {wanted}, got {found.shape}.")
    if not np.isfinite(found).all():
        bad = np.flatnonzero(~np.isfinite(found).all(0)).tolist()
        raise PolicyError(f"A policy must return finite actions, got NaN or infinity in entries {bad}.")
    return found
