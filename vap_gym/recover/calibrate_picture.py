"""Pictures to check a calibration by: what was seen, where it was reprojected to, and how far that is."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

WIDE_PX = 900  # pictures are enlarged to about this width
SEEN, REPROJECTED, RESIDUAL, OUTLINE, BORDER = (0, 220, 60), (255, 40, 40), (255, 210, 0), (255, 40, 40), (0, 230, 90)
LONGER = 4.0  # residuals of points are drawn so many times as long as they are


def with_residuals(
    frame: UInt8[np.ndarray, "H W 3"], seen_px: Float[np.ndarray, "N 2"], reprojected_px: Float[np.ndarray, "N 2"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the frame, enlarged: green circles where points were seen, red crosses where they are reprojected to, and
    yellow lines from the circle toward the cross, four times as long."""
    picture, scale = _enlarged(frame)
    pen = ImageDraw.Draw(picture)
    for seen, reprojected in zip(seen_px * scale, reprojected_px * scale, strict=True):
        (x, y), (u, v) = seen, reprojected
        far_x, far_y = seen + LONGER * (reprojected - seen)
        pen.line((x, y, far_x, far_y), RESIDUAL, 1)
        pen.ellipse((x - 6, y - 6, x + 6, y + 6), outline=SEEN, width=2)
        pen.line((u - 5, v, u + 5, v), REPROJECTED, 2)
        pen.line((u, v - 5, u, v + 5), REPROJECTED, 2)
    return np.array(picture)


def with_outline(
    frame: UInt8[np.ndarray, "H W 3"], rendered_px: Float[np.ndarray, "N 2"], found_px: Float[np.ndarray, "N 2"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the frame, enlarged: the rendered outline in red, and green lines to where the border seems to be."""
    picture, scale = _enlarged(frame)
    pen = ImageDraw.Draw(picture)
    for (x, y), (u, v) in zip(rendered_px * scale, found_px * scale, strict=True):
        pen.line((x, y, u, v), BORDER, 1)
        pen.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=OUTLINE)
    return np.array(picture)


def _enlarged(frame: UInt8[np.ndarray, "H W 3"]) -> tuple[Image.Image, int]:
    height, width = frame.shape[:2]
    scale = max(1, round(WIDE_PX / width))
    return Image.fromarray(frame).resize((scale * width, scale * height), Image.Resampling.BICUBIC), scale
