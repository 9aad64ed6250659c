"""Branches and chunks: save a moment, imagine several futures of it, keep the best, go on from there.

python examples/04_branch_and_chunk.py --out out/branches.png
"""

from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro

import vap_gym  # noqa: F401 (registers the ids)
from vap_gym.env import VapEnv
from vap_gym.pictures import sheet, spread, write_png


def main(out: Path = Path("out/branches.png"), seed: int = 1, futures: int = 6, steps: int = 16) -> None:
    """Write a picture with one row per imagined future, the best first.

    Args:
        out: the picture to write.
        seed: of the start and of the candidate actions.
        futures: how many candidates to imagine at once.
        steps: how far, in control steps.
    """
    # `step_chunk`, `save`, `load` and `branch` are the env's own, beyond Gymnasium's interface: hence `unwrapped`.
    env = gym.make("VAP-DROID-v0", task="reach").unwrapped
    assert isinstance(env, VapEnv)
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)

    # 1. A chunk is K steps in one call, as policies give them; it gives the frames of K single steps.
    chunk = rng.uniform(-0.3, 0.3, (4, 7)).astype(np.float32)
    before = env.save()  # the whole state, one TensorDict
    frames = env.step_chunk(chunk)[0]  # then rewards, terminated, truncated, infos, K of each
    env.load(before)
    one_by_one = np.stack([np.asarray(env.step(action)[0]) for action in chunk])
    print(f"a chunk of 4 gives the frames of 4 steps: {np.array_equal(frames, one_by_one)}")

    # 2. Branches: copies of this very moment in one batch. Each holds its own action; the env stays where it is.
    directions = rng.normal(size=(futures, 3))
    actions = np.zeros((futures, 7), np.float32)
    actions[:, :3] = 0.6 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    branches = env.branch(futures)
    seen, solved = [np.stack([one_by_one[-1]] * futures)], np.zeros(futures)
    for _ in range(steps):
        pictures, reward, *_ = branches.step(actions)
        seen.append(np.asarray(pictures))
        solved += reward  # rewards sum to the progress of the task, as the judge sees it in imagined frames

    # 3. Go on from the best: a branch is a row of the batch, and a row is a snapshot.
    order = np.argsort(-solved)
    best = int(order[0])
    _, info = env.load(branches.save()[best : best + 1])
    print(f"task: {info['task_description']}; the best of {futures} solves {100 * solved[best]:.0f} % more of it")
    env.step(actions[best])

    shown = spread(6, steps + 1)
    labels = [
        f"x {x:+.1f}\ny {y:+.1f}\nz {z:+.1f}\n{100 * solved[i]:+.0f} %"
        for i, (x, y, z) in zip(order, actions[order, :3])
    ]
    rows = [[seen[t][i] for t in shown] for i in order]
    title = f"{futures} futures of one moment, best first: {info['task_description']}"
    note = "Left: the velocity that is held, and how much of the task it is imagined to solve."
    write_png(out, sheet(rows, scale=1.5, columns=[f"step {t}" for t in shown], labels=labels, title=title, note=note))
    print(f"{out}: {futures} futures of {steps} steps")


if __name__ == "__main__":
    tyro.cli(main)
