"""Scripted behaviours of the oracle: experts, failing variants, play, random and no-op, as closed-loop policies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from vap_gym.cards import ControllerCard
from vap_gym.errors import unknown_name
from vap_gym.sim.motions import Script, Situation, goto, hold, lift, push, reach, thing
from vap_gym.sim.scene import Truth
from vap_gym.sim.skills import knock_over, place_upright, slide_drawer
from vap_gym.sim.spec import SceneSpec

BEHAVIOURS = ("expert", "failing", "play", "random", "noop", "clumsy")
BESIDE_M = (0.0, 0.045)  # how far beside its middle a clumsy hand takes a thing
MOST_CLUMSY = 0.6  # noise of its motion


class ScriptedPolicy:
    """A behaviour bound to a scene: call it with the oracle's truth, get the next action (7,) in [−1, 1].

    Args:
        spec: the scene.
        behaviour: one of BEHAVIOURS; "expert" and "failing" follow the scene's task.
        seed: of the policy's own randomness.
        noise: standard deviation of the smooth noise added to the motion (0 = none).
        controller: of the robot; default: DROID's.
    """

    def __init__(
        self,
        spec: SceneSpec,
        behaviour: str,
        seed: int,
        *,
        noise: float | None = None,
        controller: ControllerCard | None = None,
    ) -> None:
        if behaviour not in BEHAVIOURS:
            raise unknown_name("behaviour", behaviour, BEHAVIOURS)
        rng = np.random.default_rng([seed, 9091])
        self._rng = rng
        self._situation = Situation(spec, rng, controller or ControllerCard())
        self._noise = float(rng.choice([0.0, 0.1, 0.35], p=[0.3, 0.45, 0.25])) if noise is None else noise
        if behaviour in ("random", "noop"):
            self._noise = 0.0
        elif behaviour == "clumsy" and noise is None:
            self._noise = float(rng.uniform(0.0, MOST_CLUMSY))
        self._wobble = np.zeros(6)
        self._script = _SCRIPTS[behaviour](self._situation)

    def __call__(self, truth: Truth, tool: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, " 7"]:
        """Next action (cartesian_velocity), float32 (7,), from the truth and the nominal pose of the tool centre."""
        self._situation.look(truth, tool)
        action = np.array(next(self._script), dtype=np.float64)
        self._wobble = 0.8 * self._wobble + 0.6 * self._rng.normal(0.0, 1.0, 6)
        action[:6] += self._noise * self._wobble * [1, 1, 0.6, 0.3, 0.3, 0.6] * self._situation.usual_step
        if (
            self._situation.tool_m[2] < 0.012 and not self._situation.spec.is_about_drawer
        ):  # keep off the table, as a real operator does
            action[2] = max(action[2], 0.05)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def _pushable(s: Situation) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where play pushes things to; a Panda a little further than its tasks."""
    return ((0.3, -0.3), (0.68, 0.3)) if s.spec.layout == "table" else s.layout.reach


# --- behaviours ---


def _task(s: Situation, *, offset: np.ndarray | None = None) -> Script:
    spec, offset = s.spec, np.zeros(3) if offset is None else offset
    if spec.task == "reach":
        yield from reach(s, spec.target, offset, grip=float(s.rng.choice([-1.0, 0.0, 1.0])))
    elif spec.task == "push":
        yield from push(s, spec.target, np.asarray(spec.goal_xy_m))
    elif spec.task == "lift":
        yield from lift(s, spec.target, height_m=float(s.rng.uniform(0.09, 0.14)), offset_m=offset)
    elif spec.task == "knock_over":
        yield from knock_over(s)
    elif spec.task == "place_upright":
        yield from place_upright(s)
    else:
        yield from slide_drawer(s)


def _expert(s: Situation) -> Script:
    yield from _task(s)
    yield from hold(s, 3)
    yield from _play(s)


def _failing(s: Situation) -> Script:
    spec, rng = s.spec, s.rng
    angle = rng.uniform(-np.pi, np.pi)
    offset = rng.uniform(0.05, 0.09) * np.array([np.cos(angle), np.sin(angle), 0.0])
    others = [o.index for o in spec.objects if o.index != spec.target]
    if spec.task == "reach":
        yield from reach(s, spec.target, offset + [0, 0, 0.03])
    elif spec.task == "push":
        if rng.random() < 0.5:
            yield from push(s, spec.target, np.asarray(spec.goal_xy_m), stop_short_m=float(rng.uniform(0.06, 0.11)))
        else:
            miss = float(rng.choice([-1, 1]) * rng.uniform(0.02, 0.06))
            yield from push(s, spec.target, np.asarray(spec.goal_xy_m), miss_m=miss)
    elif spec.task != "lift":
        yield from reach(s, int(rng.choice([o.index for o in spec.objects])), offset + [0, 0, 0.08])
    elif others and rng.random() < 0.35:
        yield from lift(s, int(rng.choice(others)), height_m=0.1, offset_m=np.zeros(3))
    elif rng.random() < 0.5:
        yield from lift(s, spec.target, height_m=0.1, offset_m=offset)
    elif rng.random() < 0.5:
        yield from lift(s, spec.target, height_m=0.1, offset_m=np.zeros(3), close=False)
    else:
        yield from lift(s, spec.target, height_m=float(rng.uniform(0.03, 0.1)), offset_m=np.zeros(3), drop=True)
    while True:
        yield from hold(s, 10)


def _play(s: Situation) -> Script:
    rng = s.rng
    while True:
        index = int(rng.choice([o.index for o in s.spec.objects]))
        kind = rng.choice(["push", "lift", "reach", "wander"], p=[0.45, 0.3, 0.05, 0.2])
        if kind == "push":
            angle, length = rng.uniform(-np.pi, np.pi), rng.uniform(0.06, 0.2)
            goal = thing(s, index)[:2] + length * np.array([np.cos(angle), np.sin(angle)])
            goal = np.clip(goal, *_pushable(s))
            yield from push(s, index, goal, miss_m=float(rng.normal(0, 0.008)))
        elif kind == "lift":
            yield from lift(
                s, index, height_m=float(rng.uniform(0.05, 0.15)),
                offset_m=np.array([*rng.normal(0, 0.006, 2), 0.0]), drop=bool(rng.random() < 0.6),
            )  # fmt: skip
        elif kind == "reach":
            yield from reach(s, index, rng.normal(0, 0.02, 3), grip=float(rng.choice([-1.0, 0.0, 1.0])))
        else:
            place = rng.uniform(*s.layout.start_m)
            turn = s.yaw_rad + rng.normal(0, 0.5)
            grip = float(rng.choice([-1.0, 0.0, 1.0]))
            yield from goto(s, lambda p=place: p, yaw=turn, grip=grip, steps=24, within_m=0.03)  # type: ignore[misc]


def _random(s: Situation) -> Script:
    rng, level = s.rng, float(s.rng.uniform(0.3, 1.0))
    table = s.spec.layout == "table"
    middle = np.array([0.48, 0.0, 0.14]) if table else np.mean(s.layout.start_m, axis=0)
    drift = rng.normal(0.0, 1.0, 6)
    longer = 15.0 / s.controller.control_hz  # a step of a slow robot takes longer, and goes further
    grip = 0.0
    while True:
        drift = 0.85 * drift + 0.53 * rng.normal(0.0, 1.0, 6)
        if rng.random() < 0.1:
            grip = float(rng.uniform(-1, 1)) * (rng.random() < 0.6)
        back = np.clip((middle - s.tool_m) * 2.0, -0.6, 0.6)  # stay about the workspace
        twist = np.array([*(level * drift[:3] + back), *(0.3 * level * drift[3:])])
        yield np.array([*(longer * s.usual_step * twist), grip])


def _clumsy(s: Situation) -> Script:
    """Grasp beside the middle and push past it, again and again: how things move that are not handled well."""
    rng, index = s.rng, s.spec.target
    while True:
        index = int(rng.choice([o.index for o in s.spec.objects])) if index < 0 else index
        if rng.random() < 0.75:
            angle, far = rng.uniform(-np.pi, np.pi), rng.uniform(*BESIDE_M)
            yield from lift(
                s, index, height_m=float(rng.uniform(0.05, 0.13)),
                offset_m=far * np.array([np.cos(angle), np.sin(angle), 0.0]), drop=bool(rng.random() < 0.5),
            )  # fmt: skip
        else:
            angle, length = rng.uniform(-np.pi, np.pi), rng.uniform(0.06, 0.2)
            goal = thing(s, index)[:2] + length * np.array([np.cos(angle), np.sin(angle)])
            miss = float(rng.choice([-1.0, 1.0]) * rng.uniform(*BESIDE_M))
            yield from push(s, index, np.clip(goal, *_pushable(s)), miss_m=miss)
        index = -1


def _noop(s: Situation) -> Script:
    while True:
        yield np.zeros(7)


_SCRIPTS: dict[str, Callable[[Situation], Script]] = {
    "expert": _expert,
    "failing": _failing,
    "play": _play,
    "random": _random,
    "noop": _noop,
    "clumsy": _clumsy,
}
