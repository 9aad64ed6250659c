"""How many frames a second the metrics score, at 256 × 320 (masks at 480 × 854): on one core, and two clips at once.

`OMP_NUM_THREADS=1 python benchmarks/metrics_speed.py` on an idle machine. ST-IoU counts pairs of frames, masks of both
clips included; its bound is 300 a second. What is told is the fastest of the repeats: other programs only slow down.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vap_gym import metrics
from vap_gym.evaluate.report import load_average, stamp, table
from vap_gym.metrics.control import motion_adherence

BOUND_PER_S = 300


def clip(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """A box that moves over a noisy wall: about a tenth of the pixels move."""
    rng = np.random.default_rng(seed)
    wall = rng.integers(60, 200, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    moving = np.empty((frames, height, width, 3), np.uint8)
    for t, frame in enumerate(moving):
        frame[:] = np.clip(wall + rng.integers(-4, 5, wall.shape), 0, 255)
        left = 20 + (6 * t + 40 * seed) % (width - 120)
        frame[height // 3 : 2 * height // 3, left : left + 80] = (210, 60, 50)
    return moving


def fastest_s(function: Callable[[], object], repeats: int) -> float:
    """Wall-clock of the fastest of several calls."""
    spent = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        spent.append(time.perf_counter() - begin)
    return min(spent)


def main() -> None:
    """Print the table; the machine should be idle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    a, b = (clip(seed, given.frames, 256, 320) for seed in (0, 1))
    few = max(1, given.frames // 6)
    large = [metrics.motion_masks(clip(seed, few, 480, 848)) for seed in (0, 1)]
    jobs: dict[str, tuple[Callable[[], object], int]] = {
        "ST-IoU, both clips' masks and all three scores": (lambda: metrics.motion_iou(a, b), given.frames),
        "motion masks of one clip": (lambda: metrics.motion_masks(a), given.frames),
        "PSNR": (lambda: metrics.psnr(a, b), given.frames),
        "SSIM, Gaussian window": (lambda: metrics.ssim(a, b), given.frames),
        "prompt adherence by motion": (lambda: motion_adherence(a, b), given.frames),
        "J, 480 × 848": (lambda: metrics.region_j_per_frame(*large), few),
        "F, 480 × 848": (lambda: metrics.boundary_f_per_frame(*large), few),
        "Boundary IoU, 480 × 848": (lambda: metrics.boundary_iou_per_frame(*large), few),
    }
    rows = []
    with ThreadPoolExecutor(2) as pool:
        for name, (job, frames) in jobs.items():
            one = frames / fastest_s(job, given.repeats)
            two = 2 * frames / fastest_s(lambda job=job: list(pool.map(lambda _: job(), range(2))), given.repeats)
            met = "" if not name.startswith("ST-IoU") else f"≥ {BOUND_PER_S}: {'yes' if one >= BOUND_PER_S else 'no'}"
            rows.append([name, f"{one:,.0f}", f"{two:,.0f}", met])
    print(table(["frames a second", "one clip", "two clips at once, in threads", "bound"], rows))
    print(f"\n{stamp(load=load_average())}")


if __name__ == "__main__":
    main()
