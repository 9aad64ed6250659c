"""What trust costs: milliseconds of its always-on part beside those of imagining a step, least of many repeats.

python benchmarks/trust_cost.py
"""

import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch

import vap_gym  # noqa: F401  (registers the ids)
from vap_gym.evaluate.report import load_average, stamp, table
from vap_gym.trust import Calibration, Doubt
from vap_gym.trust.signals import SIGNALS

REPEATS = 20


def least_ms(function: Callable[[], object]) -> float:
    """Return the least of REPEATS timings."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    calibration = Calibration.fit(
        rng.uniform(0.01, 0.3, (500, len(SIGNALS))), rng.uniform(20, 40, 500), rng.uniform(0, 1, 500) > 0.7
    )
    rows = []
    for env in ("VAP-DROID-v0", "VAP-RT1-v0"):
        for slots in (1, 16):
            envs = gym.make_vec(env, num_envs=slots, judge=None).unwrapped
            envs.reset(seed=0)
            stage = envs.stage  # type: ignore[attr-defined]
            state = envs.state  # type: ignore[attr-defined]
            doubt = Doubt(stage.imagination.world, calibration)
            began = least_ms(lambda d=doubt, s=state: d.start(s.clone()))
            doubt.start(state)
            motion = stage.imagination.follow(state, torch.zeros(slots, 1, stage.rig.controller.action_size))
            step = least_ms(lambda s=stage, x=state, m=motion: s.imagination.imagine(x, m))
            views, row = motion.views[:, 0], {"untrusted": np.zeros(slots, bool)}
            told = least_ms(lambda d=doubt, s=state, v=views, r=row: d.step(s.clone(), v, r))
            rows.append([env, str(slots), f"{step:.1f}", f"{told:.2f}", f"{100 * told / step:.1f} %", f"{began:.1f}"])
    print(table(["env", "slots", "imagining a step [ms]", "trust [ms]", "share", "trust at a reset [ms]"], rows))
    print(f"\n{stamp(load=load_average())}")


if __name__ == "__main__":
    main()
