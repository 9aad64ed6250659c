"""How fast joint logs become skeleton prompts: forward kinematics and drawing at 320x192, as the pipelines do it.

Prints frames/s of one process, of its two halves, and of one process per core, which is how sets are processed (each
takes episodes of its own); the best of several runs, since other load only ever slows it down. Measure on an idle
machine. With a log, its joints are taken; otherwise random ones about the home pose.

    python benchmarks/prompt_speed.py --log ../shared/data/droid/newsetup_0012/log.npz
"""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import torch
import tyro

from vap_gym.cards import load_robot
from vap_gym.geometry import Camera
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton

CLIP = 250  # frames of an episode, drawn together


def joint_log(robot: str, log: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return joints and closedness of one episode."""
    card = load_robot(robot)
    if log is not None:
        with np.load(log) as file:
            q, gripper = (torch.from_numpy(file[key]).float() for key in ("joint_position", "gripper_position"))
    else:
        rng = torch.Generator().manual_seed(0)
        q = torch.tensor(card.home_q_rad) + 0.3 * torch.randn(CLIP, len(card.home_q_rad), generator=rng)
        gripper = torch.rand(CLIP, generator=rng)
    rows = torch.arange(CLIP) % len(q)
    return q[rows], gripper[rows]


def seconds(robot: str, log: Path | None, size: tuple[int, int], episodes: int) -> tuple[float, float]:
    """Return the seconds that kinematics and drawing of some episodes take in this process."""
    torch.set_num_threads(1)
    skeleton = Skeleton(load_robot(robot))
    q, gripper = joint_log(robot, log)
    eye, target = torch.tensor([0.9, 0.7, 0.6]), torch.tensor([0.4, 0.0, 0.25])
    camera = Camera.look_at(eye, target, vertical_fov_rad=1.1, frame_size_px=size)
    spent = np.zeros(2)
    for _ in range(episodes):
        begin = time.perf_counter()
        keypoints = skeleton.at_joints(q, gripper)
        middle = time.perf_counter()
        draw(keypoints, camera, skeleton)
        spent += middle - begin, time.perf_counter() - middle
    return float(spent[0]), float(spent[1])


def _worker(robot: str, log: Path | None, size: tuple[int, int], episodes: int, ready: object, go: object) -> None:
    seconds(robot, log, size, 1)
    ready.release()  # type: ignore[attr-defined]
    go.wait()  # type: ignore[attr-defined]
    seconds(robot, log, size, episodes)


def together(robot: str, log: Path | None, size: tuple[int, int], episodes: int, processes: int) -> float:
    """Return frames/s of several processes, each drawing that many episodes, after all have warmed up."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    workers = [context.Process(target=_worker, args=(robot, log, size, episodes, ready, go)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    begin = time.perf_counter()
    go.set()
    for worker in workers:
        worker.join()
    return processes * episodes * CLIP / (time.perf_counter() - begin)


def main(
    robot: str = "panda_robotiq",
    log: Path | None = None,
    size: tuple[int, int] = (320, 192),
    repeats: int = 5,
    episodes: int = 4,
    processes: int = 0,
) -> None:
    """Print a table.

    Args:
        robot: whose joints they are.
        log: an npz with joint_position and gripper_position.
        size: width and height of the pictures.
        repeats: runs of which the best counts.
        episodes: of 250 frames, in each run.
        processes: for the last line; one per core if 0.
    """
    processes = processes or len(os.sched_getaffinity(0))
    seconds(robot, log, size, 1)
    runs = [seconds(robot, log, size, episodes) for _ in range(repeats)]
    frames = episodes * CLIP
    fk, drawing = (frames / min(run[i] for run in runs) for i in (0, 1))
    both = frames / min(sum(run) for run in runs)
    parallel = max(together(robot, log, size, 6 * episodes, processes) for _ in range(max(1, repeats // 2)))
    print(f"{robot}, {size[0]}x{size[1]}, best of {repeats} runs, frames/s")
    print(f"| forward kinematics | drawing | both, one process | both, {processes} processes |\n|---|---|---|---|")
    print(f"| {fk:,.0f} | {drawing:,.0f} | {both:,.0f} | {parallel:,.0f} |")


if __name__ == "__main__":
    tyro.cli(main)
