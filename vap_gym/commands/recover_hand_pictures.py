"""`vap-gym recover hand-pictures`: annotated pictures of hands as one-frame episodes, with overlays to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vap_gym.data import Episode, EpisodeWriter, finalise
from vap_gym.data.conventions import HANDS, camera_columns
from vap_gym.data.layout import INFO_PATH, DataError
from vap_gym.pictures import sheet, write_png
from vap_gym.prompts.raster import overlay
from vap_gym.recover.hands.annotated import AnnotatedPicture, letterboxed, read_annotated
from vap_gym.recover.hands.joints import SIDES
from vap_gym.recover.hands.pipeline import HANDS_PRESENT, HANDS_PX
from vap_gym.recover.hands.skeleton21 import draw_hands


def main(folder: Path, out: Path, *, side_px: int = 512) -> dict[str, Any]:
    """Import pictures of InterHand2.6M or OneHand10K: draw their skeletons, write one-frame episodes and overlays.

    Args:
        folder: the pictures and the data set's json files.
        out: the data set to write, a new folder.
        side_px: pictures are scaled to fit a square of this side.
    """
    if side_px < 16:
        raise DataError(f"side_px must be at least 16, got {side_px}. Try 512.")
    if (out / INFO_PATH).exists():
        raise DataError(f"'{out}' is a data set already, and must be a new folder. Remove it, or name another.")
    kind, pictures = read_annotated(folder)
    writer = EpisodeWriter(out, fps=1, robot_type="hand_21")
    rows: list[tuple[str, ...]] = [("picture", "size", "hands", "joints", "in box", "nearest m")]
    cells: list[NDArray[np.uint8] | None] = []
    for one in pictures:
        square = letterboxed(one, side_px)
        prompt, columns = _prompt_and_columns(square)
        info = {"robot": "hand_21", "source": {"kind": kind, "path": str(folder), "episode": one.name}, "rate_hz": None}
        frames = {"video": square.picture[None], "prompt": prompt}
        writer.append(Episode(frames=frames, columns=columns, task="", info=info))
        cells.append(overlay(square.picture[None], prompt)[0])
        rows.append(_row(one))
    if not pictures:
        raise DataError(f"'{folder}' must hold at least one annotated picture, got none. Fetch the files again.")
    finalise(out)
    path = out / "overlays" / f"{kind}.png"
    write_png(path, sheet([cells], scale=min(1.0, 400 / side_px), columns=[one.name for one in pictures]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print("\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths)) for row in rows))
    print(f"{out}: {len(pictures)} pictures of {kind}; look at {path}")
    return {"out": out, "kind": kind, "pictures": [dict(zip(rows[0], row)) for row in rows[1:]], "overlays": path}


def _prompt_and_columns(one: AnnotatedPicture) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
    side = one.picture.shape[0]
    columns: dict[str, NDArray[Any]] = {
        HANDS_PX: one.joints_px[None],
        HANDS_PRESENT: np.isfinite(one.joints_px).all(-1).any(-1)[None],
    }
    depth = None
    if one.K is not None:
        names = camera_columns("video")
        columns |= {HANDS: one.joints_m[None], names[0]: one.K[None], names[1]: np.eye(4)[None]}
        depth = one.joints_m[None, ..., 2]
    return draw_hands(one.joints_px[None], frame_size_px=(side, side), depth_m=depth), columns


def _row(one: AnnotatedPicture) -> tuple[str, ...]:
    """What is annotated, and the share of joints inside the annotated box (a check of order, camera and units)."""
    height, width = one.picture.shape[:2]
    known = np.isfinite(one.joints_px).all(-1)
    points = one.joints_px[known]
    inside = ((points >= one.box_px[:2]) & (points <= one.box_px[2:])).all(-1)
    near = f"{np.nanmin(one.joints_m[..., 2]):.2f}" if one.K is not None and known.any() else "-"
    sides = "+".join(SIDES[s] for s in range(2) if known[s].any()) if one.K is not None else "side not told"
    share = f"{inside.mean():.0%}" if len(inside) else "-"
    return (one.name, f"{width}x{height}", sides, str(int(known.sum())), share, near)
