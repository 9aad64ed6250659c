"""Figures of camera calibration on real recordings, as a table: clicks, a marker on the hand, and no clicks at all.

python benchmarks/calibration.py --data ../shared/data
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import tyro
from scipy.spatial.transform import Rotation

from vap_gym.cards import load_robot
from vap_gym.commands.calibrate import read_clip, read_samples
from vap_gym.geometry import Camera
from vap_gym.photo import read_camera
from vap_gym.recover.calibrate import camera_apart, fit_camera
from vap_gym.recover.calibrate_align import align_camera
from vap_gym.recover.calibrate_clicks import ClickedPoints, located, read_clicks
from vap_gym.recover.calibrate_marker import fit_eye_hand

ROBOT = load_robot("panda_robotiq")


def by_clicks(droid: Path, name: str) -> None:
    """The camera from all clicks, and from all but one episode's."""
    card = json.loads((droid / "cameras.json").read_text())[name]
    seen = located(read_clicks(droid / "finger_clicks.json", ROBOT), name, droid, ROBOT)
    given = {"K": np.array(card["K"], np.float64), "frame_size_px": tuple(card["image_size_wh"])}
    begin = time.perf_counter()
    made = fit_camera(seen.points_base_m, seen.pixels, **given)
    spent_ms = 1e3 * (time.perf_counter() - begin)
    apart_m, apart_deg = camera_apart(made.camera, read_camera(card))
    shipped = np.linalg.norm(projected(read_camera(card), seen.points_base_m) - seen.pixels, axis=1)
    print(
        f"| DROID {name}, {len(seen.pixels)} clicks | median {made.median_px:.2f}, mean {made.mean_px:.2f} px | "
        f"± {1e3 * made.position_std_m:.0f} mm {made.rotation_std_deg:.1f}° | "
        f"{1e3 * apart_m:.1f} mm {apart_deg:.2f}° from cameras.json (its own median "
        f"{np.median(shipped):.2f}) | {spent_ms:.0f} ms |"
    )
    for episode in seen.episodes if len(seen.episodes) > 1 else ():
        out = seen.of(episode)
        fitted = fit_camera(seen.points_base_m[~out], seen.pixels[~out], **given)
        error_px = fitted.errors_px(seen.points_base_m[out], seen.pixels[out])
        print(f"| … {episode} left out, its {out.sum()} clicks | median {np.median(error_px):.2f} px | | | |")


def by_marker(folder: Path) -> None:
    """Three cameras that see one marker, together; and where each puts the marker alone."""
    T_base_hand, pixels, lenses, _ = read_samples(folder / "samples.json")
    begin = time.perf_counter()
    made = fit_eye_hand(T_base_hand, pixels, lenses)
    spent_ms = 1e3 * (time.perf_counter() - begin)
    for c, known in enumerate(json.loads((folder / "solution.json").read_text())["cameras"]):
        one, alone = made.cameras[f"cam{c}"], made.marker_alone_m[f"cam{c}"]
        T = torch.tensor(known["T_base_from_camera"], dtype=torch.float64)
        apart_m, apart_deg = camera_apart(one.camera, replace(one.camera, T_world_camera=T))
        print(
            f"| eye-hand cam{c}, {len(one.pixels)} sightings | mean {one.mean_px:.2f} px | "
            f"± {1e3 * one.position_std_m:.1f} mm {one.rotation_std_deg:.2f}° | {1e3 * apart_m:.1f} mm "
            f"{apart_deg:.2f}° from "
            f"solution.json; marker alone {1e3 * np.linalg.norm(alone - made.marker_hand_m):.1f} mm from "
            f"the shared one | {spent_ms:.0f} ms, all |"
        )


def without_clicks(droid: Path, name: str, *, metres: float, degrees: float, trials: int, frames: int) -> None:
    """From cameras that are wrong by so much: how far finger ends are from clicks, before and after."""
    card = json.loads((droid / "cameras.json").read_text())[name]
    seen = located(read_clicks(droid / "finger_clicks.json", ROBOT), name, droid, ROBOT)
    true, episodes = read_camera(card), card["valid_for_episodes"]
    clips = [read_clip(droid, episode, name, most=frames // len(episodes)) for episode in episodes]
    rows = []
    begin = time.perf_counter()
    for seed in range(trials):
        rough = off_by(true, seed, metres, degrees)
        made = align_camera(clips, ROBOT, rough, rough_m=metres, rough_deg=degrees)
        plain = align_camera(clips, ROBOT, rough, rough_m=metres, rough_deg=degrees, fit_tool=False)
        longer = seen.points_base_m + made.tool_shift_m * seen.tool_axis_base
        by_tool = fit_camera(longer, seen.pixels, K=true.K.numpy(), frame_size_px=true.frame_size_px)
        rows.append(
            [
                median_px(rough, seen, seen.points_base_m),
                median_px(made.camera, seen, longer),
                median_px(plain.camera, seen, seen.points_base_m),
                1e3 * made.tool_shift_m,
                *(np.array(camera_apart(made.camera, by_tool.camera)) * [1e3, 1]),
                made.median_px,
            ]
        )
    spent_s = (time.perf_counter() - begin) / (2 * trials)
    low, middle, high = np.percentile(rows, [0, 50, 100], axis=0)
    say = [f"{m:.1f} [{a:.1f}, {b:.1f}]" for a, m, b in zip(low, middle, high, strict=True)]
    print(
        f"| DROID {name} off by {1e3 * metres:.0f} mm {degrees:g}°, {trials} starts | clicks before {say[0]}, "
        f"after {say[1]} px (tool not fitted: {say[2]}) | tool {say[3]} mm longer | {say[4]} mm {say[5]}° "
        f"from clicks with "
        f"that tool; outlines {say[6]} px off | {spent_s:.1f} s |",
        flush=True,
    )


def projected(camera: Camera, points_m: np.ndarray) -> np.ndarray:
    """Where points appear [px]."""
    return np.asarray(camera.project(torch.from_numpy(points_m))[0])


def median_px(camera: Camera, seen: ClickedPoints, points_m: np.ndarray) -> float:
    """Median distance of points from their clicks."""
    return float(np.median(np.linalg.norm(projected(camera, points_m) - seen.pixels, axis=1)))


def off_by(camera: Camera, seed: int, metres: float, degrees: float) -> Camera:
    """A camera moved and turned by so much, any way."""
    rng = np.random.default_rng(seed)
    move, turn = (x / np.linalg.norm(x) for x in rng.normal(size=(2, 3)))
    T = camera.T_world_camera.numpy().copy()
    T[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * turn).as_matrix() @ T[:3, :3]
    T[:3, 3] += metres * move
    return replace(camera, T_world_camera=torch.from_numpy(T))


def main(data: Path = Path("../shared/data"), trials: int = 10, frames: int = 36) -> None:
    """Print the table.

    Args:
        data: the folder of recordings.
        trials: wrong starts for each camera without clicks.
        frames: that are aligned to.
    """
    print("| what | error | standard error, or tool | beside it | time |\n|---|---|---|---|---|")
    for name in ("cam0", "cam1"):
        by_clicks(data / "droid", name)
    by_marker(data / "franka_eyehand" / "world_cams_20poses")
    for metres, degrees in ((0.03, 3.0), (0.06, 6.0)):
        for name in ("cam0", "cam1"):
            without_clicks(data / "droid", name, metres=metres, degrees=degrees, trials=trials, frames=frames)


if __name__ == "__main__":
    tyro.cli(main)
