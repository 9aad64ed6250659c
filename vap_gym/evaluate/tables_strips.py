"""Sheets of pictures: the same held-out clip as each row of a table tells it, beside what was true."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

NAME_PX = 110
SHOWN = (1, 6, 12, 18, 24)  # frames


def write_sheet(
    path: Path, rows: Mapping[str, UInt8[np.ndarray, "T H W 3"]], *, frames: tuple[int, ...] = SHOWN
) -> None:
    """Write a PNG with a row of frames for each name, the first frame on the left."""
    height, width = next(iter(rows.values())).shape[1:3]
    shown = (0, *frames)
    sheet = Image.new("RGB", (NAME_PX + (width + 2) * len(shown), (height + 2) * len(rows) + 14), "white")
    pen = ImageDraw.Draw(sheet)
    for k, t in enumerate(shown):
        pen.text((NAME_PX + k * (width + 2) + 4, 1), f"frame {t}", fill="black")
    for i, (name, clip) in enumerate(rows.items()):
        top = 14 + i * (height + 2)
        pen.text((4, top + height // 2 - 6), name, fill="black")
        for k, t in enumerate(shown):
            sheet.paste(Image.fromarray(clip[min(t, len(clip) - 1)]), (NAME_PX + k * (width + 2), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part.png")
    sheet.save(temporary)
    temporary.replace(path)
