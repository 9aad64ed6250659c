"""Other robots and more cameras: a kitchen robot seen from its head, its side and its wrist, beside the truth.

    python examples/08_other_robots_and_views.py --env VAP-RT1-v0 --out out/views.mp4

The upper two rows are imagined, the lower two are what PyBullet sees (Python 3.11 only), each without and with its
prompts. Every view begins at a picture of its own; the prompts are exact in all of them.
"""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

import vap_gym  # noqa: F401 (registers the ids)
from vap_gym.data import write_video
from vap_gym.prompts.raster import overlay

VIEWS = ("front", "second", "wrist")


def row(observation: dict[str, Any], info: dict[str, Any]) -> np.ndarray:
    """Put the views side by side, and the same with their prompts over them below."""
    frames = [observation["pixels"][view] for view in VIEWS]
    prompts = [info["prompt"], *(info["prompts"][view] for view in VIEWS[1:])]
    shown = [overlay(frame, prompt, alpha=0.7) for frame, prompt in zip(frames, prompts, strict=True)]
    return np.concatenate([np.concatenate(frames, axis=1), np.concatenate(shown, axis=1)])


def main(
    env: str = "VAP-RT1-v0",
    task: str = "any",
    out: Path = Path("out/views.mp4"),
    steps: int = 30,
    seed: int = 0,
    reach: float = 0.06,
) -> None:
    """Move smoothly at random on both sides and write a video.

    Args:
        env: VAP-RT1-v0, VAP-Bridge-v0, VAP-Hand-v0 or VAP-DROID-v0.
        task: one of the env's, or any.
        out: the mp4 to write.
        steps: how many actions.
        seed: of the start and of the actions.
        reach: how large actions are, as a share of the env's range (RT-1's is ±1 m a step: a twentieth is plenty).
    """
    imagined: Any = gym.make(env, views=VIEWS[1:], task=task, judge=None)
    oracle: Any = gym.make(env.replace("-v0", "-Oracle-v0"), views=VIEWS[1:], task=task)
    both = [imagined.reset(seed=seed), oracle.reset(seed=seed)]
    print(f"{env}: {both[0][1]['task_description']}")
    low, high = imagined.action_space.low, imagined.action_space.high
    rng, drift, frames = np.random.default_rng(seed), np.zeros(len(low)), []
    for _ in range(steps):
        frames.append(np.concatenate([row(*side) for side in both]))
        drift = 0.8 * drift + 0.6 * rng.normal(0.0, 1.0, len(low))
        action = np.clip(0.5 * (low + high) + reach * (high - low) * drift, low, high).astype(np.float32)
        both = []
        for side in (imagined, oracle):
            observation, _, _, _, info = side.step(action)
            both.append((observation, info))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_video(out, np.stack(frames), max(1, round(imagined.metadata["render_fps"])))
    print(f"{out}: {steps} frames; imagined above, true below; the views are {', '.join(VIEWS)}")


if __name__ == "__main__":
    tyro.cli(main)
