"""What scripts are made of: what they may look at, and motions toward things, as generators of actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from vap_gym.cards import ControllerCard
from vap_gym.sim.layouts import LAYOUTS, Layout
from vap_gym.sim.scene import Truth
from vap_gym.sim.spec import SceneSpec

Script = Iterator[Float[np.ndarray, " 7"]]

_APPROACH, _TURN = 0.3, 0.24  # share of the gap that is closed in a step
_SAFE_HEIGHT_M = 0.11  # over the table, as all heights here
_CLOSING = 0.675  # of the range: fingers meet the narrowest object and squeeze it


@dataclass
class Situation:
    """What a script may look at: refreshed before every action."""

    spec: SceneSpec
    rng: np.random.Generator
    controller: ControllerCard = field(default_factory=ControllerCard)
    truth: Truth = field(init=False)
    tool_m: Float[np.ndarray, " 3"] = field(init=False)  # nominal, over the table
    yaw_rad: float = field(init=False)  # nominal, of the opening axis

    @property
    def layout(self) -> Layout:
        """Where things stand and may be pushed to."""
        return LAYOUTS[self.spec.layout]

    @property
    def usual_step(self) -> Float[np.ndarray, " 6"]:
        """How much smaller an action moves this robot as far as a DROID station's moves in a step."""
        card, droid = self.controller, ControllerCard()
        linear = droid.gain * droid.linear_step_m / (card.gain * card.linear_step_m)
        turn = droid.gain * droid.rotation_step_rad / (card.gain * card.rotation_step_rad)
        return np.array([linear] * 3 + [turn] * 3)

    @property
    def closing_steps(self) -> int:
        """How long it takes to close the fingers around a thing."""
        card = self.controller
        return max(2, round(_CLOSING / (card.gripper_gain * card.gripper_step)))

    def look(self, truth: Truth, tool: Float[np.ndarray, "4 4"]) -> None:
        """Take in the oracle's truth and the nominal pose of the tool centre, whose y the fingers open along."""
        self.truth, self.tool_m = truth, tool[:3, 3] - [0.0, 0.0, self.spec.table_z_m]
        opening = -tool[:3, 1]
        self.yaw_rad = float(np.arctan2(-opening[0], opening[1]))


def toward(s: Situation, target_m: np.ndarray, *, yaw: float | None, grip: float, pace: float = 1.0) -> np.ndarray:
    """Return the action that closes a share of the way to a place, and of the turn to a yaw."""
    card = s.controller
    move = _APPROACH / (card.gain * card.linear_step_m) * (target_m - s.tool_m)
    move *= min(1.0, pace / max(float(np.linalg.norm(move)), 1e-9))
    turn = _TURN / (card.gain * card.rotation_step_rad)
    turn = 0.0 if yaw is None else float(np.clip(turn * wrapped(yaw - s.yaw_rad), -1, 1))
    return np.array([*move, 0.0, 0.0, turn, grip])


def wrapped(angle: float, period: float = 2 * np.pi) -> float:
    """Return the angle nearest to 0 that differs by whole periods."""
    return float((angle + period / 2) % period - period / 2)


def goto(
    s: Situation, target: Callable[[], np.ndarray], *, yaw: float | None = None, grip: float = 0.0,
    steps: int = 24, within_m: float = 0.008, pace: float = 1.0,
) -> Script:  # fmt: skip
    """Go to a place that may move, until it is near or the steps are up."""
    for _ in range(steps):
        goal = target()
        if np.linalg.norm(goal - s.tool_m) < within_m:
            return
        yield toward(s, goal, yaw=yaw, grip=grip, pace=pace)


def hold(s: Situation, steps: int, grip: float = 0.0) -> Script:
    """Stay where the tool is."""
    place = s.tool_m.copy()
    for _ in range(steps):
        yield toward(s, place, yaw=None, grip=grip)


def thing(s: Situation, index: int) -> np.ndarray:
    """Return where an object's centre is, over the table."""
    return np.array(s.truth.objects_m[index]) - [0.0, 0.0, s.spec.table_z_m]


def above(s: Situation, xy: np.ndarray, *, grip: float, yaw: float | None = None, pace: float = 1.0) -> Script:
    """Rise to the safe height where the way crosses the objects, then move over `xy`."""
    xy = np.array(xy)
    far = np.linalg.norm(s.tool_m[:2] - xy) > 0.05
    if far and s.tool_m[2] < _SAFE_HEIGHT_M - 0.03:
        up = np.array([*s.tool_m[:2], _SAFE_HEIGHT_M])
        yield from goto(s, lambda: up, grip=grip, within_m=0.03, steps=10, pace=pace)
    height = float(np.clip(s.tool_m[2], _SAFE_HEIGHT_M, 0.16))
    yield from goto(s, lambda: np.array([*xy, height]), yaw=yaw, grip=grip, within_m=0.012, steps=34, pace=pace)


def reach(s: Situation, index: int, offset_m: np.ndarray, grip: float = -1.0) -> Script:
    """Go over an object, and stay."""
    yield from goto(
        s, lambda: thing(s, index) + [0, 0, 0.045] + offset_m, grip=grip, steps=50, within_m=0.006,
        pace=float(s.rng.uniform(0.5, 1.0)),
    )  # fmt: skip
    yield from hold(s, 6)


def push(s: Situation, index: int, toward_xy: np.ndarray, *, miss_m: float = 0.0, stop_short_m: float = 0.0) -> Script:
    """Push an object along the table to a place."""
    item = next(o for o in s.spec.objects if o.index == index)
    radius = float(np.hypot(*item.half_extents_m[:2])) * 0.8
    start = thing(s, index)[:2]
    way = np.asarray(toward_xy) - start
    length = max(float(np.linalg.norm(way)), 1e-6)
    ahead = way / length
    side = np.array([-ahead[1], ahead[0]])
    behind = start - ahead * (radius + 0.035) + side * miss_m
    height = float(np.clip(item.half_extents_m[2] * s.rng.uniform(0.6, 1.1), 0.016, 0.035))
    pace = float(s.rng.uniform(0.7, 1.0))
    back_off = s.tool_m[:2] - start
    along, across = float(back_off @ ahead), float(back_off @ side)
    if not (along < -0.5 * radius and abs(across) < 0.03 and s.tool_m[2] < 0.06):
        yield from above(s, behind, grip=1.0, pace=pace)
    yield from goto(s, lambda: np.array([*behind, height]), grip=1.0, within_m=0.012, steps=14, pace=pace)

    def follow() -> np.ndarray:
        # Aim through the object: correct sideways drift while pushing.
        now = thing(s, index)[:2]
        rest = np.asarray(toward_xy) - now
        direction = rest / max(float(np.linalg.norm(rest)), 1e-6)
        lateral = (s.tool_m[:2] - now) @ np.array([-direction[1], direction[0]])
        aim = s.tool_m[:2] + direction * 0.05 + np.array([direction[1], -direction[0]]) * (lateral - miss_m) * 0.8
        return np.array([*aim, height])

    for _ in range(45):
        left = float(np.linalg.norm(np.asarray(toward_xy) - thing(s, index)[:2]))
        if left < 0.012 + stop_short_m:
            break
        yield toward(s, follow(), yaw=None, grip=1.0, pace=pace * (1.0 if left > 0.04 else 0.5))
    yield from hold(s, 4, 1.0)


def lift(
    s: Situation, index: int, *, height_m: float, offset_m: np.ndarray, close: bool = True, drop: bool = False
) -> Script:
    """Take an object from above and lift it, with what can go wrong."""
    item = next(o for o in s.spec.objects if o.index == index)
    period = np.pi if item.shape in ("brick", "cross") else np.pi / 2
    object_yaw = (
        s.yaw_rad if item.shape in ("cylinder", "disc", "ball", "bottle") else float(s.truth.objects_yaw_rad[index])
    )
    yaw = s.yaw_rad + wrapped(object_yaw - s.yaw_rad, period)
    pace = float(s.rng.uniform(0.7, 1.0))
    over = np.linalg.norm(s.tool_m[:2] - thing(s, index)[:2]) < 0.03
    if not over:
        yield from above(s, (thing(s, index) + offset_m)[:2], grip=-1.0, yaw=yaw, pace=pace)

    def grasp() -> np.ndarray:
        place = thing(s, index) + offset_m
        return np.array([*place[:2], max(place[2] + 0.2 * item.half_extents_m[2], 0.014)])

    yield from goto(s, grasp, yaw=yaw, grip=-1.0, within_m=0.007, steps=26, pace=pace)
    place = s.tool_m.copy()
    for _ in range(s.closing_steps):
        yield toward(s, place, yaw=None, grip=1.0 if close else -1.0)
    top = place + [0, 0, height_m]
    sway = np.array([*s.rng.normal(0.0, 0.04, 2), 0.0]) * (s.rng.random() < 0.5)
    grip = 1.0 if close else 0.0
    yield from goto(s, lambda: top + sway, grip=grip, within_m=0.01, steps=22, pace=0.8 * pace)
    if drop:
        yield from hold(s, 6, -1.0)
    else:
        yield from hold(s, 4, grip)
