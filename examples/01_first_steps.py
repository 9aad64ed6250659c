"""First steps: make the env, send it actions, look at what it imagines.

python examples/01_first_steps.py --out out/first_steps.mp4
"""

from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro

import vap_gym  # noqa: F401 (registers the ids: it has to come before gym.make)
from vap_gym.data.video import write_video
from vap_gym.pictures import enlarged, sheet, spread, write_png


def main(out: Path = Path("out/first_steps.mp4"), seed: int = 0, steps: int = 24) -> None:
    """Write a video of a robot that moves as it is told, and a strip of stills beside it.

    Args:
        out: the mp4 to write.
        seed: chooses where the episode starts; the same seed gives the same frames.
        steps: control steps, 15 a second.
    """
    # 1. An env like any other of Gymnasium's. No simulator runs: a video model imagines every frame.
    env = gym.make("VAP-DROID-v0")
    frame, info = env.reset(seed=seed)  # uint8 (96, 144, 3)
    print(f"task: {info['task_description']}")
    frames, prompts = [frame], [info["prompt"]]

    # 2. Actions as DROID has them: velocity (x forward, y left, z up), turning, and the gripper (+ closes), in [-1, 1].
    downward = np.array([0.2, 0.0, -0.4, 0.0, 0.0, 0.0, 0.0], np.float32)
    forward_closing = np.array([0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5], np.float32)
    for t in range(steps):
        action = downward if t < steps // 2 else forward_closing
        frame, reward, terminated, truncated, info = env.step(action)
        frames.append(frame)
        prompts.append(info["prompt"])
        if terminated or truncated:
            break

    # 3. `info` tells what kinematics knows exactly, how far the picture can be trusted, and what took how long.
    print(f"gripper closed to {info['proprioception']['gripper_position']:.2f}, reward of the last step {reward:.3f}")
    for name, value in info["trust"].items():
        print(f"trust: {name} = {value:.2f}")
    print(f"last step: {info['timings_ms']}")
    env.close()

    # 4. A video, and stills with the drawn actions that the model was given.
    out.parent.mkdir(parents=True, exist_ok=True)
    write_video(out, np.stack([enlarged(picture, 3.0) for picture in frames]), fps=15)
    shown = spread(7, len(frames))
    rows = [[prompts[t] for t in shown], [frames[t] for t in shown]]
    strip = sheet(rows, scale=1.5, columns=[f"step {t}" for t in shown], labels=["prompt", "imagined"])
    write_png(out.with_suffix(".png"), strip)
    print(f"{out}, {out.with_suffix('.png')}: {len(frames)} frames")


if __name__ == "__main__":
    tyro.cli(main)
