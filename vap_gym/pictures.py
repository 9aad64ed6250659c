"""Pictures to look at: frames side by side with labels, as contact sheets, strips, and the frames of videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from vap_gym.errors import VapError

PAPER, INK, PALE = (250, 250, 248), (25, 25, 30), (110, 110, 118)
GAP_PX = 6  # between cells
MARGIN_PX = 16  # around everything
TEXT_PX = 20  # height of letters in labels
LINE_PX = 28  # and of a line of them

Picture = UInt8[np.ndarray, "_ _ 3"]  # several sizes may meet in one call
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def enlarged(picture: Picture, scale: float) -> Picture:
    """Return a picture scaled by `scale`, bicubic: small frames stay smooth."""
    if scale == 1:
        return picture
    height, width = picture.shape[:2]
    size = (round(width * scale), round(height * scale))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def sheet(
    rows: Sequence[Sequence[Picture | None]],
    *,
    scale: float = 1.0,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    title: str = "",
    note: str = "",
    insets: Sequence[Picture] = (),
) -> Picture:
    """Return pictures of one size in rows and columns, on light paper, with even height and width.

    Args:
        rows: R rows of C pictures; None leaves a cell empty.
        scale: how much to enlarge them.
        columns: C headings, one line each; "\\n" begins another.
        labels: R labels to the left of the rows, wrapped.
        title: a line above, larger.
        note: a line below, paler.
        insets: R pictures that stand below the rows' labels, as large as they are.

    Raises:
        VapError: rows of several lengths, pictures of several sizes, or other numbers of labels.
    """
    cell_width, cell_height = _cell_size(rows, scale)
    count = len(rows[0])
    for name, given, wanted in (
        ("columns", columns, count),
        ("labels", labels, len(rows)),
        ("insets", insets, len(rows)),
    ):
        if given and len(given) != wanted:
            raise VapError(f"{name} must be {wanted}, one each, or none; got {len(given)}.")
    font, large = ImageFont.load_default(TEXT_PX), ImageFont.load_default(TEXT_PX * 1.3)
    left = MARGIN_PX + _label_width(labels, insets, font)
    heading_px = LINE_PX * max((text.count("\n") + 1 for text in columns), default=0)
    top = MARGIN_PX + (round(1.5 * LINE_PX) if title else 0) + heading_px
    width = left + count * (cell_width + GAP_PX) - GAP_PX + MARGIN_PX
    width = max(width, 2 * MARGIN_PX + round(max(large.getlength(title), font.getlength(note))))
    height = top + len(rows) * (cell_height + GAP_PX) - GAP_PX + MARGIN_PX + (LINE_PX if note else 0)
    paper = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)  # even, as browsers want of videos
    pen = ImageDraw.Draw(paper)
    pen.text((MARGIN_PX, MARGIN_PX - 4), title, INK, large)
    for c, text in enumerate(columns):
        middle = left + c * (cell_width + GAP_PX) + cell_width // 2
        pen.multiline_text((middle, top - 6), text, INK, font, anchor="md", align="center")
    for r, row in enumerate(rows):
        y = top + r * (cell_height + GAP_PX)
        for c, picture in enumerate(row):
            if picture is not None:
                paper.paste(Image.fromarray(enlarged(picture, scale)), (left + c * (cell_width + GAP_PX), y))
        if labels:
            lines = _wrapped(labels[r], font, left - MARGIN_PX - 10)
            pen.multiline_text((MARGIN_PX, y), lines, INK, font)
        if insets:
            paper.paste(Image.fromarray(insets[r]), (MARGIN_PX, y + cell_height - insets[r].shape[0]))
    pen.text((MARGIN_PX, height - LINE_PX - 8), note, PALE, font)
    return np.array(paper)


def message(text: str, like: Picture) -> Picture:
    """Return a grey cell of the size of another, with words in it: why there is no picture."""
    height, width = like.shape[:2]
    paper = Image.new("RGB", (width, height), (205, 205, 205))
    font = ImageFont.load_default(11)
    lines = _wrapped(text, font, width - 12)
    ImageDraw.Draw(paper).multiline_text((width / 2, height / 2), lines, INK, font, anchor="mm", align="center")
    return np.array(paper)


def spread(count: int, among: int) -> list[int]:
    """Return `count` indices spread evenly over 0 … among − 1, both ends included (fewer where there are fewer)."""
    return [round(i) for i in np.linspace(0, among - 1, min(count, among))]


def write_png(path: str | Path, picture: Picture) -> None:
    """Write a picture, under a temporary name until it is whole; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    Image.fromarray(picture).save(temporary, format="PNG", optimize=True)
    temporary.replace(path)


def _cell_size(rows: Sequence[Sequence[Picture | None]], scale: float) -> tuple[int, int]:
    """Return width and height of a cell on paper."""
    sizes = {picture.shape for row in rows for picture in row if picture is not None}
    if len(sizes) != 1 or len({len(row) for row in rows}) != 1:
        raise VapError(
            f"A sheet needs rows of one length with pictures of one size, got lengths {[len(row) for row in rows]} and "
            f"sizes {sorted(sizes)}."
        )
    height, width, _ = sizes.pop()
    return round(width * scale), round(height * scale)


def _label_width(labels: Sequence[str], insets: Sequence[Picture], font: Font) -> int:
    """Return how much room labels need: their longest word, and or about twelve letters and wrapped."""
    if not labels and not insets:
        return 0
    longest = max((font.getlength(line) for text in labels for line in text.split("\n")), default=0.0)
    word = max((font.getlength(part) for text in labels for part in text.split()), default=0.0)
    widest_inset = max((inset.shape[1] for inset in insets), default=0)
    return round(max(word, min(longest, 12 * TEXT_PX * 0.6), widest_inset)) + 12


def _wrapped(text: str, font: Font, width_px: int) -> str:
    """Break a text into lines that fit."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and font.getlength(longer) > width_px:
                lines.append(word)
            else:
                lines[-1] = longer
    return "\n".join(lines)
