"""Annotated hands shown: from the set that was written of them, is every joint where its camera puts it?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vap_gym.data.conventions import HANDS, HANDS_PX, camera_of, has_camera
from vap_gym.data.episodes import Episode, EpisodeSet
from vap_gym.evaluate.real_sources import LAID, figure
from vap_gym.evaluate.report import table
from vap_gym.pictures import Picture, sheet, write_png
from vap_gym.prompts.raster import overlay
from vap_gym.recover.hands.annotated import AnnotatedPicture, read_annotated
from vap_gym.recover.hands.skeleton21 import project_hands


def show_hands(folder: Path, episodes: EpisodeSet, out: Path) -> str:
    """Check a set that was written of annotated pictures against these, write a sheet, and return the table.

    The columns: joints of the left and of the right hand; the share of them inside the annotated box; how far the
    pixels in the set are from its 3-D joints seen by its camera, at the most; and the share of joints in the picture
    on which the prompt is drawn. Without 3-D joints there is no camera to check.
    """
    kind, pictures = read_annotated(folder)
    named = {one.name: one for one in pictures}
    rows, cells = [], []
    for episode in episodes:
        name = str(episode.info["source"]["episode"])
        rows.append([kind, *_row(named[name], episode)])
        frame, prompt = (episode.frames[view][0] for view in ("video", "prompt"))
        cells.append([frame, prompt, overlay(frame, prompt, alpha=LAID)])
    paired: list[list[Picture | None]] = [[*a, *b] for a, b in zip(cells[::2], cells[1::2])]
    paired += [[*cells[-1], None, None, None]] if len(cells) % 2 else []
    names = [row[1] for row in rows]
    labels = [", ".join(names[i : i + 2]) for i in range(0, len(names), 2)]
    columns = ("frame", "skeleton", "overlay") * 2
    scale = 320 / cells[0][0].shape[1]
    write_png(out / f"{kind}.png", sheet(paired, scale=scale, columns=columns, labels=labels, title=kind))
    head = ["set", "picture", "size", "left", "right", "in box", "reprojected px", "drawn on", "nearest m"]
    return table(head, rows)


def _row(one: AnnotatedPicture, episode: Episode) -> list[str]:
    known = np.isfinite(one.joints_px).all(-1)
    inside = ((one.joints_px[known] >= one.box_px[:2]) & (one.joints_px[known] <= one.box_px[2:])).all(-1)
    left, right = known.sum(-1).tolist()
    reach_m = float(np.nanmin(one.joints_m[..., 2])) if one.K is not None and known.any() else float("nan")
    height, width = one.picture.shape[:2]
    return [
        one.name,
        f"{width}x{height}",
        str(left) if one.K is not None else "-",
        str(right) if one.K is not None else f"{right}, side not told",
        f"{inside.mean():.0%}" if known.any() else "-",
        figure(reprojected_px(episode), ".1e"),
        f"{drawn_on(episode):.0%}",
        figure(reach_m, ".2f"),
    ]


def reprojected_px(episode: Episode) -> float:
    """Return how far pixels are from the 3-D joints as the episode's own camera sees them, at the most; NaN: no 3-D."""
    if HANDS not in episode.columns or not has_camera(episode.columns, "video"):
        return float("nan")
    frames = episode.frames["video"]
    camera = camera_of(episode.columns, "video", (frames.shape[2], frames.shape[1])).to(torch.float64)
    joints_px, _ = project_hands(np.asarray(episode.columns[HANDS], np.float64), camera)
    return float(np.nanmax(np.linalg.norm(joints_px - episode.columns[HANDS_PX], axis=-1)))


def drawn_on(episode: Episode) -> float:
    """Return the share of joints inside the picture on which the prompt is not black."""
    prompt = episode.frames["prompt"][0]
    height, width = prompt.shape[:2]
    points = np.asarray(episode.columns[HANDS_PX], np.float64)[0].reshape(-1, 2)
    points = points[np.isfinite(points).all(-1)]
    column, row = np.floor(points).astype(np.int64).T
    seen = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return float((prompt[row[seen], column[seen]].max(-1) > 60).mean()) if seen.any() else float("nan")
