"""The eye-hand recording shown: three cameras found from a marker, and the Franka drawn over their sixty pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image

from vap_gym.cards import load_robot
from vap_gym.evaluate.real_sources import FOUR, Laid, Layer, figure, joints_for
from vap_gym.evaluate.report import table
from vap_gym.pictures import Picture, sheet, spread, write_png
from vap_gym.recover.calibrate import Calibration, camera_apart, write_cameras
from vap_gym.recover.calibrate_marker import EyeHand, Lens, fit_eye_hand

SHOWN = 2  # poses of each camera on the sheet of four
OPEN = 0.0  # the fingers are taken for open: their opening was not logged


def show_eye_hand(
    folder: Path,
    out: Path,
    *,
    T_base_hand: Float[np.ndarray, "N 4 4"],
    pixels: Mapping[str, Float[np.ndarray, "N 2"]],
    lenses: Mapping[str, Lens],
    images: Mapping[str, Sequence[str]],
    poses: int | None = None,
) -> str:
    """Fit the cameras and return the table beside the recording's own solution.

    Written to `out`: cameras.json, residuals.png, four.png (frame, skeleton, mesh, overlay) and overlays.png (all
    poses, or `poses` of them). The joints are found from the hand's pose, so that the elbow may be off, not the hand.
    """
    made = fit_eye_hand(T_base_hand, pixels, lenses)
    method = f"eye-hand: marker shared by {len(pixels)} cameras"
    write_cameras(out / "cameras.json", {name: one.table(method=method) for name, one in made.cameras.items()})
    chosen = spread(poses or len(T_base_hand), len(T_base_hand))
    found = joints_for(load_robot("panda_hand"), torch.from_numpy(T_base_hand[chosen]))
    laid = {
        name: _drawn(one, [folder / images[name][i] for i in chosen], found.q) for name, one in made.cameras.items()
    }
    _write_sheets(out, laid, chosen)
    _write_residuals(out, made, folder, images)
    solution = json.loads((folder / "solution.json").read_text(encoding="utf-8"))["cameras"]
    rows = [_row(made, name, told) for name, told in zip(made.cameras, solution, strict=True)]
    head = [
        "camera",
        "seen",
        "mean px",
        "median px",
        "max px",
        "mean px of theirs",
        "apart mm",
        "apart deg",
        "marker off mm",
    ]
    off = (float(x.max()) for x in (1e3 * found.position_error_m, torch.rad2deg(found.rotation_error_rad)))
    ik = "joints from the hand's pose: off by at most {:.1e} mm and {:.1e} deg, {} of {} found".format(
        *off, int(found.converged.sum()), len(chosen)
    )
    x, y, z = 1e3 * made.marker_hand_m
    marker = f"marker in link8, all cameras: {x:.1f}, {y:.1f}, {z:.1f} mm (± {1e3 * made.marker_std_m.max():.1f})"
    return "\n\n".join([table(head, rows), f"{marker}; {ik}."])


def _row(made: EyeHand, name: str, told: Mapping[str, Any]) -> list[str]:
    """Figures of a camera; where it stands and the marker fitted alone, against the recording's solution."""
    one = made.cameras[name]
    known = replace(one.camera, T_world_camera=torch.tensor(told["T_base_from_camera"], dtype=torch.float64))
    apart_m, apart_deg = camera_apart(one.camera, known)
    marker = np.linalg.norm(made.marker_alone_m[name] - np.asarray(told["marker_corner_in_link8_m"], np.float64))
    return [
        name,
        str(len(one.pixels)),
        f"{one.mean_px:.3f}",
        f"{one.median_px:.3f}",
        f"{one.error_px.max():.2f}",
        figure(float(told["mean_reprojection_px"]), ".2f"),
        f"{1e3 * apart_m:.2f}",
        f"{apart_deg:.3f}",
        f"{1e3 * float(marker):.2f}",
    ]


def _drawn(one: Calibration, paths: Sequence[Path], q: torch.Tensor) -> Laid:
    frames = np.stack([read_picture(path) for path in paths])
    layer = Layer(load_robot("panda_hand"), one.camera.frame_size_px)
    return layer(frames, q, torch.full((len(q),), OPEN), one.camera)


def _write_sheets(out: Path, laid: Mapping[str, Laid], chosen: Sequence[int]) -> None:
    four = [(name, k) for name, own in laid.items() for k in spread(SHOWN, len(own.frame))]
    write_png(
        out / "four.png",
        sheet(
            [laid[name].row(k) for name, k in four],
            scale=0.6,
            columns=FOUR,
            labels=[f"{name} pose {chosen[k]}" for name, k in four],
            title="Franka from the hand's pose and the fitted cameras (the elbow is a guess)",
        ),
    )
    rows = [[own.overlay[k] for own in laid.values()] for k in range(len(chosen))]
    half = (len(rows) + 1) // 2
    paired = [
        [*a, *(b or [None] * len(a))] for a, b in zip(rows[:half], [*rows[half:], *[[]] * (2 * half - len(rows))])
    ]
    names = list(laid) * 2
    labels = [f"poses {chosen[k]}" + (f", {chosen[k + half]}" if k + half < len(rows) else "") for k in range(half)]
    write_png(out / "overlays.png", sheet(paired, scale=0.5, columns=names, labels=labels))


def _write_residuals(out: Path, made: EyeHand, folder: Path, images: Mapping[str, Sequence[str]]) -> None:
    """All sightings of each camera over its first picture."""
    shown: list[Picture | None] = []
    for name, one in made.cameras.items():
        shown.append(one.picture(read_picture(folder / images[name][int(one.index[0])])))
    note = "green where the marker was seen in all poses, red where reprojected, yellow the residual x 4"
    write_png(out / "residuals.png", sheet([shown], scale=0.5, columns=list(made.cameras), note=note))


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read a picture as uint8 RGB."""
    with Image.open(path) as opened:
        return np.array(opened.convert("RGB"))
