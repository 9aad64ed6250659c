"""How fast clips for training are: reading, drawing prompts and weights, per kind of prompt, on one core.

    OMP_NUM_THREADS=1 python benchmarks/clips_speed.py [SET] [--view VIEW]

Without a set, one of DROID's size is written first: 8 episodes of 120 frames of 320x192 px at 15 Hz. Each figure is
the best of several rounds, so that a busy machine shows less.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vap_gym.cards import load_robot
from vap_gym.data import Episode, EpisodeSet, EpisodeWriter, finalise
from vap_gym.data.clips import ClipSampler, ClipSource, collate
from vap_gym.data.conventions import ACTION, GRIPPER, JOINTS, columns_of_camera
from vap_gym.geometry import Camera

ROUNDS, CLIPS = 5, 12
SIZES = ((144, 96), (720, 480))


def write_set(root: Path) -> EpisodeSet:
    """Episodes of smooth pictures with some noise, like a camera's, and of an arm that swings and grasps."""
    card = load_robot("panda_robotiq")
    camera = Camera.look_at(
        torch.tensor([1.3, 0.5, 0.7], dtype=torch.float64),
        torch.tensor([0.4, 0.0, 0.3], dtype=torch.float64),
        vertical_fov_rad=0.9,
        frame_size_px=(320, 192),
    )
    writer = EpisodeWriter(root, fps=15, codec="h264", crf=20)
    t = np.arange(120)
    x, y = np.meshgrid(np.arange(320), np.arange(192))
    for i in range(8):
        rng = np.random.default_rng(i)
        base = 120 + 60 * np.sin(x / 23 + i)[None] * np.cos(y / 17 + t[:, None, None] / 9)
        frames = np.clip(base[..., None] + rng.normal(0, 3, (120, 192, 320, 3)), 0, 255).astype(np.uint8)
        q = np.array(card.home_q_rad) + 0.4 * np.sin(t / 25 + i)[:, None] * np.eye(7)[0]
        columns = {JOINTS: q, GRIPPER: 0.5 + 0.5 * np.sin(t / 15), ACTION: np.concatenate([q, q[:, :1]], axis=1)}
        columns |= columns_of_camera(camera, "cam", 120)
        writer.write(i, Episode(frames={"cam": frames}, columns=columns, task="", info={"robot": card.name}))
    finalise(root)
    return EpisodeSet(root)


def best(sampler: ClipSampler) -> float:
    """Least seconds for a clip: the mean of CLIPS of them, in the best of ROUNDS."""
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        collate([sampler[i] for i in range(CLIPS)])
        seconds.append((time.perf_counter() - begin) / CLIPS)
    return min(seconds)


def main() -> None:
    """Print a table: clips and frames a second by size and kind of prompt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", nargs="?", type=Path)
    parser.add_argument("--view", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        episodes = EpisodeSet(options.set) if options.set else write_set(Path(folder) / "set")
        begin = time.perf_counter()
        ClipSampler([ClipSource(episodes=episodes, view=options.view, prompt="none")], clips=1)
        print(f"{len(episodes)} episodes looked through in {(time.perf_counter() - begin) * 1e3:.0f} ms")
        print("clips of 25 frames, one core\n\n| size    | prompt   | ms a clip | clips/s | frames/s |")
        print("|---------|----------|-----------|---------|----------|")
        for size in SIZES:
            for kind in ("none", "skeleton", "mesh", "depth"):
                source = ClipSource(episodes=episodes, view=options.view, prompt=kind)
                seconds = best(ClipSampler([source], clips=CLIPS, frame_size_px=size))
                shown = f"{size[0]}x{size[1]}"
                print(f"| {shown:<7} | {kind:<8} | {seconds * 1e3:9.1f} | {1 / seconds:7.1f} | {25 / seconds:8.0f} |")


if __name__ == "__main__":
    main()
