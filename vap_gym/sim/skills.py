"""Skills of the kitchen and the desk: knocking over, placing upright, opening and closing a drawer."""

from __future__ import annotations

import numpy as np

from vap_gym.sim.motions import Script, Situation, above, goto, hold, thing, toward, wrapped
from vap_gym.sim.spec import HANDLE_M


def knock_over(s: Situation) -> Script:
    """Push the top of a tall thing from the side that is nearer."""
    item = s.spec.target_object
    start = thing(s, item.index)
    side = np.sign(s.tool_m[1] - start[1]) or 1.0
    beside = start[:2] + [0.0, side * 0.075]
    high = float(2 * item.half_extents_m[2])
    yield from above(s, beside, grip=1.0)
    yield from goto(s, lambda: np.array([*beside, 0.85 * high]), grip=1.0, within_m=0.012, steps=16)
    yield from goto(s, lambda: np.array([start[0], start[1] - side * 0.06, 0.8 * high]), grip=1.0, steps=16, pace=0.5)
    yield from hold(s, 4, 1.0)


def place_upright(s: Situation) -> Script:
    """Take a lying thing near its far end, lift it, turn that end up, and let go of it where it stands."""
    item = s.spec.target_object
    _, _, hz = item.half_extents_m
    lies_rad = wrapped(float(s.truth.objects_yaw_rad[item.index]), np.pi)
    yaw = s.yaw_rad + wrapped(lies_rad - s.yaw_rad, np.pi)
    ahead = np.array([np.cos(lies_rad), np.sin(lies_rad), 0.0])
    aside = 0.35 * hz  # from the centre to where it is held

    def held() -> np.ndarray:
        return np.asarray(thing(s, item.index) + aside * ahead)

    yield from above(s, held()[:2], grip=-1.0, yaw=yaw)
    yield from goto(s, held, yaw=yaw, grip=-1.0, within_m=0.006, steps=26)
    place = s.tool_m.copy()
    for _ in range(s.closing_steps + 2):
        yield toward(s, place, yaw=None, grip=1.0)
    yield from goto(s, lambda: place + [0, 0, hz + 0.06], grip=1.0, within_m=0.01, steps=16, pace=0.6)
    card, high = s.controller, s.tool_m.copy()
    turned, step = 0.0, 0.12
    across = np.array([ahead[1], -ahead[0], 0.0])  # the far end goes up, and the hand comes down toward the robot
    while turned < np.pi / 2:
        action = toward(s, high, yaw=None, grip=1.0)
        action[3:6] = across * step / (card.gain * card.rotation_step_rad)
        yield action
        turned += step
    low = s.tool_m.copy()
    yield from goto(s, lambda: np.array([*low[:2], hz + aside + 0.003]), grip=1.0, within_m=0.004, steps=24, pace=0.3)
    yield from hold(s, s.closing_steps + 2, -1.0)
    back = np.array([low[0] - 0.09, low[1], s.tool_m[2] + 0.02])
    yield from goto(s, lambda: back, grip=-1.0, within_m=0.01, steps=16, pace=0.4)
    yield from goto(s, lambda: np.array([*back[:2], 2 * hz + 0.09]), grip=-1.0, within_m=0.01, steps=20)
    yield from hold(s, 3, -1.0)


def slide_drawer(s: Situation) -> Script:
    """Close: push the front. Open: hook a finger behind the handle from above, and pull."""
    drawer = s.spec.drawer
    assert drawer is not None
    _, y, z = np.array(drawer.handle_m) - [0.0, 0.0, s.spec.table_z_m]

    def handle_x() -> float:
        return float(s.truth.handle_m[0])

    if s.spec.task == "close_drawer":
        high = z + 0.5 * drawer.size_m[2] + 0.06
        before = handle_x() - 0.07
        yield from goto(s, lambda: np.array([before, y, high]), grip=1.0, within_m=0.015, steps=24)
        yield from goto(s, lambda: np.array([before, y, z + 0.03]), grip=1.0, within_m=0.015, steps=20)
        end = drawer.handle_m[0] + 0.03
        yield from goto(s, lambda: np.array([end, y, z + 0.03]), grip=1.0, within_m=0.01, steps=40, pace=0.35)
        yield from hold(s, 4, 1.0)
        return
    behind = 0.5 * HANDLE_M
    yield from goto(s, lambda: np.array([handle_x() + behind, y, z + 0.10]), grip=1.0, within_m=0.01, steps=24)
    yield from goto(
        s, lambda: np.array([handle_x() + behind, y, z - 0.005]), grip=1.0, within_m=0.008, steps=20, pace=0.4
    )
    end = drawer.handle_m[0] - 0.16
    yield from goto(s, lambda: np.array([end, y, z - 0.005]), grip=1.0, within_m=0.01, steps=40, pace=0.3)
    yield from hold(s, 4, 1.0)
