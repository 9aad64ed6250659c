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


def main(out: Path = Path("out/branches.png"), seed: int = 1, steps: int = 16) -> None:
    """Write a picture with one row per imagined future, the best first.

    Args:
        out: the picture to write.
        seed: of the start.
        steps: how far, in control steps.
    """
    # `step_chunk`, `save`, `load` and `branch` are the env's own, beyond Gymnasium's interface: hence `unwrapped`.
    env = gym.make("VAP-DROID-v0", task="reach").unwrapped
    assert isinstance(env, VapEnv)
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)

    # 1. A chunk is K steps in one call, as policies give them; it gives the frames of K single steps.
    chunk = rng.uniform(-0.2, 0.2, (4, 7)).astype(np.float32)
    before = env.save()  # the whole state, one TensorDict
    frames = env.step_chunk(chunk)[0]  # then rewards, terminated, truncated, infos, K of each
    env.load(before)
    one_by_one = np.stack([np.asarray(env.step(action)[0]) for action in chunk])
    print(f"a chunk of 4 gives the frames of 4 steps: {np.array_equal(frames, one_by_one)}")

    # 2. Branches: copies of this very moment in one batch. Each holds an action of its own; the env stays where it is.
    directions = {"forward": (1, 0, 0), "back": (-1, 0, 0), "left": (0, 1, 0), "right": (0, -1, 0), "down": (0, 0, -1)}
    actions = np.array([(*(0.5 * np.array(d)), 0, 0, 0, 0) for d in directions.values()], np.float32)
    branches = env.branch(len(actions))
    seen, solved = [np.stack([one_by_one[-1]] * len(actions))], np.zeros(len(actions))
    for _ in range(steps):
        pictures, reward, *_ = branches.step(actions)
        seen.append(np.asarray(pictures))
        solved += reward  # rewards sum to the progress of the task, as the judge sees it in imagined frames

    # 3. Go on from the best: a branch is a row of the batch, and a row is a snapshot.
    best_first = np.argsort(-solved)
    best = int(best_first[0])
    _, info = env.load(branches.save()[best : best + 1])
    env.step(actions[best])
    names = list(directions)
    print(f"{info['task_description']}: going {names[best]} solves {100 * solved[best]:+.0f} % of it")

    shown = spread(6, steps + 1)
    picture = sheet(
        [[seen[t][i] for t in shown] for i in best_first],
        scale=1.5,
        columns=[f"step {t}" for t in shown],
        labels=[f"{names[i]}\n{100 * solved[i]:+.0f} %" for i in best_first],
        title=f"Futures of one moment, the best first: {info['task_description']}",
        note="Left: the action that is held, and how much of the task it is imagined to solve.",
    )
    write_png(out, picture)
    print(f"{out}: {len(actions)} futures of {steps} steps")


if __name__ == "__main__":
    tyro.cli(main)
