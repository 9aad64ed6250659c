"""Scripted behaviours of the oracle: experts, failing variants, play, random and no-op, as closed-loop policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from vap_gym.errors import unknown_name
from vap_gym.sim.scene import Truth
from vap_gym.sim.spec import SceneSpec

BEHAVIOURS = ("expert", "failing", "play", "random", "noop")
Script = Iterator[Float[np.ndarray, " 7"]]

_APPROACH_GAIN = 20.0  # command per metre of error: closes about 30 % of the gap per step on a gain-0.2 controller
_TURN_GAIN = 8.0  # command per radian
_SAFE_HEIGHT_M = 0.11
_CLOSING_STEPS = 9  # at .075 of the range per step: fingers meet the narrowest object and squeeze it


@dataclass
class Situation:
    """What a script may look at: refreshed before every action."""

    spec: SceneSpec
    rng: np.random.Generator
    truth: Truth = field(init=False)
    tool_m: Float[np.ndarray, " 3"] = field(init=False)  # nominal
    yaw_rad: float = field(init=False)  # nominal, of the opening axis

    def look(self, truth: Truth, tip: Float[np.ndarray, "4 4"], tool_m: Float[np.ndarray, " 3"]) -> None:
        """Take in the oracle's truth and the nominal tip pose and tool centre."""
        self.truth, self.tool_m = truth, tool_m
        opening = -tip[:3, 1]
        self.yaw_rad = float(np.arctan2(-opening[0], opening[1]))


class ScriptedPolicy:
    """A behaviour bound to a scene: call it with the oracle's truth, get the next action (7,) in [−1, 1].

    Args:
        spec: the scene.
        behaviour: one of BEHAVIOURS; "expert" and "failing" follow the scene's task.
        seed: of the policy's own randomness.
        noise: standard deviation of the smooth noise added to the motion (0 = none).
    """

    def __init__(self, spec: SceneSpec, behaviour: str, seed: int, *, noise: float | None = None) -> None:
        if behaviour not in BEHAVIOURS:
            raise unknown_name("behaviour", behaviour, BEHAVIOURS)
        rng = np.random.default_rng([seed, 9091])
        self._rng = rng
        self._situation = Situation(spec, rng)
        self._noise = float(rng.choice([0.0, 0.1, 0.35], p=[0.3, 0.45, 0.25])) if noise is None else noise
        if behaviour in ("random", "noop"):
            self._noise = 0.0
        self._wobble = np.zeros(6)
        self._script = _SCRIPTS[behaviour](self._situation)

    def __call__(
        self, truth: Truth, tip: Float[np.ndarray, "4 4"], tool_m: Float[np.ndarray, " 3"]
    ) -> Float[np.ndarray, " 7"]:
        """Next action, float32 (7,), from the truth and the nominal tip pose (4, 4) and tool centre (3,) [m]."""
        self._situation.look(truth, tip, tool_m)
        action = np.array(next(self._script), dtype=np.float64)
        self._wobble = 0.8 * self._wobble + 0.6 * self._rng.normal(0.0, 1.0, 6)
        action[:6] += self._noise * self._wobble * [1, 1, 0.6, 0.3, 0.3, 0.6]
        if tool_m[2] < 0.012:  # keep off the table, as a real operator does
            action[2] = max(action[2], 0.05)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


# --- primitives: generators of actions ---


def _toward(s: Situation, target_m: np.ndarray, *, yaw: float | None, grip: float, pace: float = 1.0) -> np.ndarray:
    move = _APPROACH_GAIN * (target_m - s.tool_m)
    move *= min(1.0, pace / max(float(np.linalg.norm(move)), 1e-9))
    turn = 0.0 if yaw is None else float(np.clip(_TURN_GAIN * _wrapped(yaw - s.yaw_rad), -1, 1))
    return np.array([*move, 0.0, 0.0, turn, grip])


def _wrapped(angle: float, period: float = 2 * np.pi) -> float:
    return float((angle + period / 2) % period - period / 2)


def _goto(
    s: Situation, target: Callable[[], np.ndarray], *, yaw: float | None = None, grip: float = 0.0,
    steps: int = 24, within_m: float = 0.008, pace: float = 1.0,
) -> Script:  # fmt: skip
    for _ in range(steps):
        goal = target()
        if np.linalg.norm(goal - s.tool_m) < within_m:
            return
        yield _toward(s, goal, yaw=yaw, grip=grip, pace=pace)


def _hold(s: Situation, steps: int, grip: float = 0.0) -> Script:
    place = s.tool_m.copy()
    for _ in range(steps):
        yield _toward(s, place, yaw=None, grip=grip)


def _object(s: Situation, index: int) -> np.ndarray:
    return np.array(s.truth.objects_m[index])


def _above(s: Situation, xy: np.ndarray, *, grip: float, yaw: float | None = None, pace: float = 1.0) -> Script:
    """Rise to the safe height where the way crosses the objects, then move over `xy`."""
    xy = np.array(xy)
    far = np.linalg.norm(s.tool_m[:2] - xy) > 0.05
    if far and s.tool_m[2] < _SAFE_HEIGHT_M - 0.03:
        up = np.array([*s.tool_m[:2], _SAFE_HEIGHT_M])
        yield from _goto(s, lambda: up, grip=grip, within_m=0.03, steps=10, pace=pace)
    height = float(np.clip(s.tool_m[2], _SAFE_HEIGHT_M, 0.16))
    yield from _goto(s, lambda: np.array([*xy, height]), yaw=yaw, grip=grip, within_m=0.012, steps=34, pace=pace)


def _reach(s: Situation, index: int, offset_m: np.ndarray, grip: float = -1.0) -> Script:
    yield from _goto(
        s, lambda: _object(s, index) + [0, 0, 0.045] + offset_m, grip=grip, steps=50, within_m=0.006,
        pace=float(s.rng.uniform(0.5, 1.0)),
    )  # fmt: skip
    yield from _hold(s, 6)


def _push(s: Situation, index: int, toward_xy: np.ndarray, *, miss_m: float = 0.0, stop_short_m: float = 0.0) -> Script:
    item = next(o for o in s.spec.objects if o.index == index)
    radius = float(np.hypot(*item.half_extents_m[:2])) * 0.8
    start = _object(s, index)[:2]
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
        yield from _above(s, behind, grip=1.0, pace=pace)
    yield from _goto(s, lambda: np.array([*behind, height]), grip=1.0, within_m=0.012, steps=14, pace=pace)

    def follow() -> np.ndarray:
        # Aim through the object: correct sideways drift while pushing.
        now = _object(s, index)[:2]
        rest = np.asarray(toward_xy) - now
        direction = rest / max(float(np.linalg.norm(rest)), 1e-6)
        lateral = (s.tool_m[:2] - now) @ np.array([-direction[1], direction[0]])
        aim = s.tool_m[:2] + direction * 0.05 + np.array([direction[1], -direction[0]]) * (lateral - miss_m) * 0.8
        return np.array([*aim, height])

    for _ in range(45):
        left = float(np.linalg.norm(np.asarray(toward_xy) - _object(s, index)[:2]))
        if left < 0.012 + stop_short_m:
            break
        yield _toward(s, follow(), yaw=None, grip=1.0, pace=pace * (1.0 if left > 0.04 else 0.5))
    yield from _hold(s, 4, 1.0)


def _lift(
    s: Situation, index: int, *, height_m: float, offset_m: np.ndarray, close: bool = True, drop: bool = False
) -> Script:
    item = next(o for o in s.spec.objects if o.index == index)
    period = np.pi if item.shape in ("brick", "cross") else np.pi / 2
    object_yaw = s.yaw_rad if item.shape in ("cylinder", "disc", "ball") else float(s.truth.objects_yaw_rad[index])
    yaw = s.yaw_rad + _wrapped(object_yaw - s.yaw_rad, period)
    pace = float(s.rng.uniform(0.7, 1.0))
    over = np.linalg.norm(s.tool_m[:2] - _object(s, index)[:2]) < 0.03
    if not over:
        yield from _above(s, (_object(s, index) + offset_m)[:2], grip=-1.0, yaw=yaw, pace=pace)

    def grasp() -> np.ndarray:
        place = _object(s, index) + offset_m
        return np.array([*place[:2], max(place[2] + 0.2 * item.half_extents_m[2], 0.014)])

    yield from _goto(s, grasp, yaw=yaw, grip=-1.0, within_m=0.007, steps=26, pace=pace)
    place = s.tool_m.copy()
    for _ in range(_CLOSING_STEPS):
        yield _toward(s, place, yaw=None, grip=1.0 if close else -1.0)
    top = place + [0, 0, height_m]
    sway = np.array([*s.rng.normal(0.0, 0.04, 2), 0.0]) * (s.rng.random() < 0.5)
    grip = 1.0 if close else 0.0
    yield from _goto(s, lambda: top + sway, grip=grip, within_m=0.01, steps=22, pace=0.8 * pace)
    if drop:
        yield from _hold(s, 6, -1.0)
    else:
        yield from _hold(s, 4, grip)


# --- behaviours ---


def _task(s: Situation, *, offset: np.ndarray | None = None) -> Script:
    spec, offset = s.spec, np.zeros(3) if offset is None else offset
    if spec.task == "reach":
        yield from _reach(s, spec.target, offset, grip=float(s.rng.choice([-1.0, 0.0, 1.0])))
    elif spec.task == "push":
        yield from _push(s, spec.target, np.asarray(spec.goal_xy_m))
    else:
        yield from _lift(s, spec.target, height_m=float(s.rng.uniform(0.09, 0.14)), offset_m=offset)


def _expert(s: Situation) -> Script:
    yield from _task(s)
    yield from _hold(s, 3)
    yield from _play(s)


def _failing(s: Situation) -> Script:
    spec, rng = s.spec, s.rng
    angle = rng.uniform(-np.pi, np.pi)
    offset = rng.uniform(0.05, 0.09) * np.array([np.cos(angle), np.sin(angle), 0.0])
    others = [o.index for o in spec.objects if o.index != spec.target]
    if spec.task == "reach":
        yield from _reach(s, spec.target, offset + [0, 0, 0.03])
    elif spec.task == "push":
        if rng.random() < 0.5:
            yield from _push(s, spec.target, np.asarray(spec.goal_xy_m), stop_short_m=float(rng.uniform(0.06, 0.11)))
        else:
            miss = float(rng.choice([-1, 1]) * rng.uniform(0.02, 0.06))
            yield from _push(s, spec.target, np.asarray(spec.goal_xy_m), miss_m=miss)
    elif others and rng.random() < 0.35:
        yield from _lift(s, int(rng.choice(others)), height_m=0.1, offset_m=np.zeros(3))
    elif rng.random() < 0.5:
        yield from _lift(s, spec.target, height_m=0.1, offset_m=offset)
    elif rng.random() < 0.5:
        yield from _lift(s, spec.target, height_m=0.1, offset_m=np.zeros(3), close=False)
    else:
        yield from _lift(s, spec.target, height_m=float(rng.uniform(0.03, 0.1)), offset_m=np.zeros(3), drop=True)
    while True:
        yield from _hold(s, 10)


def _play(s: Situation) -> Script:
    rng = s.rng
    while True:
        index = int(rng.choice([o.index for o in s.spec.objects]))
        kind = rng.choice(["push", "lift", "reach", "wander"], p=[0.45, 0.3, 0.05, 0.2])
        if kind == "push":
            angle, length = rng.uniform(-np.pi, np.pi), rng.uniform(0.06, 0.2)
            goal = _object(s, index)[:2] + length * np.array([np.cos(angle), np.sin(angle)])
            goal = np.clip(goal, [0.3, -0.3], [0.68, 0.3])
            yield from _push(s, index, goal, miss_m=float(rng.normal(0, 0.008)))
        elif kind == "lift":
            yield from _lift(
                s, index, height_m=float(rng.uniform(0.05, 0.15)),
                offset_m=np.array([*rng.normal(0, 0.006, 2), 0.0]), drop=bool(rng.random() < 0.6),
            )  # fmt: skip
        elif kind == "reach":
            yield from _reach(s, index, rng.normal(0, 0.02, 3), grip=float(rng.choice([-1.0, 0.0, 1.0])))
        else:
            place = rng.uniform([0.32, -0.26, 0.05], [0.64, 0.26, 0.34])
            turn = s.yaw_rad + rng.normal(0, 0.5)
            grip = float(rng.choice([-1.0, 0.0, 1.0]))
            yield from _goto(s, lambda p=place: p, yaw=turn, grip=grip, steps=24, within_m=0.03)  # type: ignore[misc]


def _random(s: Situation) -> Script:
    rng, level = s.rng, float(s.rng.uniform(0.3, 1.0))
    drift = rng.normal(0.0, 1.0, 6)
    grip = 0.0
    while True:
        drift = 0.85 * drift + 0.53 * rng.normal(0.0, 1.0, 6)
        if rng.random() < 0.1:
            grip = float(rng.uniform(-1, 1)) * (rng.random() < 0.6)
        back = np.clip((np.array([0.48, 0.0, 0.14]) - s.tool_m) * 2.0, -0.6, 0.6)  # stay about the workspace
        yield np.array([*(level * drift[:3] + back), *(0.3 * level * drift[3:]), grip])


def _noop(s: Situation) -> Script:
    while True:
        yield np.zeros(7)


_SCRIPTS: dict[str, Callable[[Situation], Script]] = {
    "expert": _expert,
    "failing": _failing,
    "play": _play,
    "random": _random,
    "noop": _noop,
}
