"""The hand pipeline on made-up hands: frames a second of every stage, and how much of the truth is found again.

`python benchmarks/hands_speed.py` (about a minute idle; times are the best of several rounds, one thread).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro

from vap_gym.recover.hands.hands import CAUSAL_FILTER, ZERO_LAG_FILTER, HandSettings, fill, gather, recover, smooth
from vap_gym.recover.hands.hands import without_outliers as tidy
from vap_gym.recover.hands.linking import TrackSettings
from vap_gym.recover.hands.skeleton21 import draw_hands
from vap_gym.recover.hands.synthetic import Faults, crossing_hands, seen
from vap_gym.recover.hands.tracklets import algorithm_1
from vap_gym.recover.hands.viewpoint import measure_viewpoint

RATE_HZ = 30.0
DETECTORS = {
    "20 % missed, 10 % flipped, 1.5 px noise": Faults(),
    "the same, 3 px noise": Faults(noise_px=3.0),
    "40 % missed": Faults(missed=0.4),
    "20 % flipped": Faults(flipped=0.2),
    "a third hand for 60 % of the time, 10 % doubles": Faults(third_hand=0.6, doubles=0.1),
    "flipped hands have mirrored joints": Faults(mirrored=True),
    "the farther hand hidden within 6 cm of the other": Faults(hidden_m=0.06),
}


def main(frames: int = 3000, rounds: int = 5, seeds: int = 50) -> None:
    """Print both tables.

    Args:
        frames: length of the video that is timed.
        rounds: how often; the best counts.
        seeds: how many videos of 300 frames each detector is tried on.
    """
    speed(frames, rounds)
    accuracy(seeds)


def speed(frames: int, rounds: int) -> None:
    """Frames a second of each stage, two hands and a third for a while."""
    truth = crossing_hands(frames, seed=0)
    table = seen(truth, Faults(third_hand=0.3), seed=0)
    chosen = HandSettings()
    rows = algorithm_1(table, TrackSettings())
    hands = fill(tidy(gather(table, rows), chosen.outlier), chosen.fill_gap)
    noise = np.random.default_rng(0).integers(0, 255, (30, 240, 320, 3), dtype=np.uint8)
    small = hands.joints_px[:200] * 0.5
    stages: list[tuple[str, int, Callable[[], Any]]] = [
        ("Algorithm 1", frames, lambda: algorithm_1(table, TrackSettings())),
        ("outliers out, gaps filled", frames, lambda: fill(tidy(gather(table, rows), 0.12), 20)),
        ("One-Euro, causal (2-D, 3-D and boxes)", frames, lambda: smooth(hands, RATE_HZ, CAUSAL_FILTER, causal=True)),
        ("One-Euro, zero lag (2-D, 3-D and boxes)", frames, lambda: smooth(hands, RATE_HZ, ZERO_LAG_FILTER)),
        ("all of these (zero lag)", frames, lambda: recover(table, RATE_HZ)),
        ("skeletons drawn at 320 x 240", 200, lambda: draw_hands(small, frame_size_px=(320, 240))),
        ("camera motion at 320 x 240 (OpenCV)", 30, lambda: measure_viewpoint(noise)),
    ]
    print(f"{'stage':<42}{'frames/s':>10}")
    for name, count, stage in stages:
        best = np.inf
        for _ in range(rounds):
            begin = time.perf_counter()
            stage()
            best = min(best, time.perf_counter() - begin)
        print(f"{name:<42}{count / best:>10,.0f}")


def accuracy(seeds: int) -> None:
    """Share of joints within 5 px of the truth at 640 x 480, hands about 200 px tall, over many videos."""
    print(f"\n{'joints within 5 px at 640 x 480':<50}{'worst':>8}{'5 %':>8}{'median':>8}{'error':>9}")
    trials = [(name, faults, RATE_HZ) for name, faults in DETECTORS.items()]
    trials += [(f"first line, filmed at {rate:.0f} frames/s", Faults(), rate) for rate in (15.0, 10.0, 5.0)]
    for name, faults, rate in trials:
        shares, errors = [], []
        for seed in range(seeds):
            truth = crossing_hands(300, seed=seed, rate_hz=rate)
            hands = recover(seen(truth, faults, seed=1000 + seed), rate)
            off = np.linalg.norm(hands.joints_px - truth.joints_px, axis=-1)
            shares.append(float((np.nan_to_num(off, nan=np.inf) < 5).mean()))
            errors.append(float(np.nanmedian(off)))
        low, tail, middle = min(shares), *np.quantile(shares, [0.05, 0.5]).tolist()
        print(f"{name:<50}{low:>8.1%}{tail:>8.1%}{middle:>8.1%}{np.median(errors):>6.2f} px")


if __name__ == "__main__":
    import cv2

    cv2.setNumThreads(1)
    tyro.cli(main)
