"""Imagined clips beside the real ones: our scores next to the expected ones, and where the motion is, to look at."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vap_gym import metrics
from vap_gym.data.layout import DataError
from vap_gym.data.video import read_video
from vap_gym.evaluate.report import table
from vap_gym.pictures import Picture, sheet, spread, write_png

SHOWN = 5  # frames of a clip on its sheet
Clip = NDArray[np.uint8]


def _psnr_of_those_that_differ(clip: Clip, truth: Clip) -> float:
    """The mean PSNR over frames that differ, not capped, as the expected file has it."""
    differ = (clip != truth).any(axis=(1, 2, 3))
    return float(metrics.psnr_per_frame(clip[differ], truth[differ], cap_db=math.inf).mean())


SCORES: Mapping[str, tuple[str, Callable[[Clip, Clip], float]]] = {  # by key of the expected file: title, function
    "psnr_mean_finite": ("PSNR dB", _psnr_of_those_that_differ),
    "ssim_gaussian_11_1p5": ("SSIM", metrics.ssim),
    "st_iou": ("ST-IoU", metrics.st_iou),
    "spatial_iou": ("spatial IoU", metrics.spatial_iou),
    "weighted_spatial_iou": ("weighted", metrics.weighted_spatial_iou),
}


def show_generated(folder: Path, out: Path, *, names: tuple[str, ...] = ()) -> str:
    """Score prediction, frozen and reversed clip against the truth, each beside its expected value; return the table.

    Written to `out`: for each clip a sheet of truth, prediction and the motion masks of both.

    Args:
        folder: irasim_<name>_short_gt.mp4, …_pred.mp4 and expected_metrics.json.
        out: where to write.
        names: which clips; all of the expected file where none is named.
    """
    expected = json.loads((folder / "expected_metrics.json").read_text(encoding="utf-8"))
    rows: list[list[str]] = []
    worst = dict.fromkeys(SCORES, 0.0)
    for name in names or expected:
        if name not in expected:
            raise DataError(f"No clip named '{name}' in {folder}. Known: {', '.join(expected)}.")
        truth, prediction = (read_video(folder / f"irasim_{name}_short_{which}.mp4") for which in ("gt", "pred"))
        clips = {
            "pred": prediction,
            "frozen_first_frame": np.repeat(truth[:1], len(truth), axis=0),
            "time_reversed": np.ascontiguousarray(truth[::-1]),
        }
        for which, clip in clips.items():
            cells = []
            for key, (_, function) in SCORES.items():
                ours, theirs = function(clip, truth), float(expected[name][which][key])
                worst[key] = max(worst[key], abs(ours - theirs))
                cells.append(f"{ours:.4f} ({theirs:g})")
            rows.append([name, which.replace("_", " "), *cells])
        _write_sheet(out / f"{name}.png", name, truth, prediction)
    rows.append(["all", "most apart", *(f"{value:.1e}" for value in worst.values())])
    return table(["clip", "against the truth", *(f"{title} (expected)" for title, _ in SCORES.values())], rows)


def _write_sheet(path: Path, name: str, truth: Clip, prediction: Clip) -> None:
    chosen = spread(SHOWN, len(truth))
    rows: dict[str, list[Picture | None]] = {}
    for label, clip in (("truth", truth), ("prediction", prediction)):
        masks = metrics.motion_masks(clip)
        rows[label] = [clip[t] for t in chosen]
        rows[f"{label}'s motion"] = [_marked(clip[t], masks[t]) for t in chosen]
    scale = 320 / truth.shape[2]
    columns = [f"frame {t}" for t in chosen]
    write_png(path, sheet(list(rows.values()), scale=scale, columns=columns, labels=list(rows), title=name))


def _marked(frame: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A dim frame with what moves in it in orange."""
    dim = (frame * 0.45).astype(np.uint8)
    dim[mask] = (0.4 * frame[mask] + 0.6 * np.array([255, 150, 20])).astype(np.uint8)
    return dim
