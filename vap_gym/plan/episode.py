"""An episode that a planning policy drives, in any env of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vap_gym.plan.policy import Driver, front_of, start_of
from vap_gym.starts import Start


@dataclass(frozen=True, kw_only=True, eq=False)
class Played:
    """What happened, step by step."""

    start: Start
    instruction: str
    frames: UInt8[np.ndarray, "T1 H W 3"]  # the first one included
    actions: tuple[np.ndarray, ...]
    progress: tuple[float, ...]
    success: bool


def play_episode(
    env: Any, driver: Driver, *, seed: int = 0, options: dict[str, Any] | None = None, steps: int = 100
) -> Played:
    """Reset an env, drive its robot until the task is solved, or the episode or the steps are over.

    Args:
        env: a `VapEnv` or an `OracleEnv`, wrapped or not.
        driver: begins anew.
        seed: of the env's start and noise, and of the driver.
        options: of the env's reset.
        steps: at most.
    """
    observation, info = env.reset(seed=seed, options=options)
    start = start_of(env)
    driver.begin(start, seed=seed)
    frames, actions, progress, success = [front_of(observation)], [], [], False
    for _ in range(steps):
        action = driver(observation, info)
        observation, _, terminated, truncated, info = env.step(action)
        frames.append(front_of(observation))
        actions.append(action)
        progress.append(float(info["progress"]))
        success |= bool(info["is_success"])
        if terminated or truncated or success:
            break
    return Played(
        start=start,
        instruction=str(info["task_description"]),
        frames=np.stack(frames),
        actions=tuple(actions),
        progress=tuple(progress),
        success=success,
    )
