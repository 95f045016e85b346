"""Contact sheets: images in rows and columns with titles and a legend of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from afa.data.files import replacing
from afa.data.palette import voc_palette
from afa.errors import one_line

_PAPER = (250, 250, 248)
_INK = (34, 34, 38)
_FAINT = (120, 120, 126)
_GAP = 10
_MARGIN = 20


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[str],
    *,
    row_titles: Sequence[str] = (),
    heading: str = "",
    legend: Sequence[tuple[str, int]] = (),
    cell: int = 200,
) -> np.ndarray:
    """Lay images out in a grid.

    Args:
        rows: Images uint8 RGB [H, W, 3] of any size; None leaves a cell empty.
        titles: One per column.
        row_titles: One per row, below its first image; none by default.
        heading: Line above everything.
        legend: Class names with their ids, shown as swatches in VOC's colours below everything.
        cell: Width of an image in pixels; higher images are shrunk to a height of 1.25 times that.

    Returns:
        uint8 RGB [H, W, 3].
    """
    title_font, text_font, heading_font = _font(15), _font(13), _font(20)
    fitted = [[None if picture is None else _fit(picture, cell) for picture in row] for row in rows]
    heights = [max((len(picture) for picture in row if picture is not None), default=cell) for row in fitted]
    width = 2 * _MARGIN + len(titles) * cell + (len(titles) - 1) * _GAP
    legend_lines = _wrap(legend, text_font, width - 2 * _MARGIN)
    top = _MARGIN + (36 if heading else 0)
    row_gap = _GAP + (20 if row_titles else 0)
    height = top + 28 + sum(heights) + row_gap * len(heights) + (26 * len(legend_lines) + 8 if legend else 0) + _MARGIN

    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if heading:
        line = _shorten(heading, heading_font, width - 2 * _MARGIN)
        draw.text((_MARGIN, _MARGIN - 4), line, fill=_INK, font=heading_font)
    for column, title in enumerate(titles):
        x = _MARGIN + column * (cell + _GAP)
        draw.text((x + cell / 2, top + 10), _shorten(title, title_font, cell), fill=_INK, font=title_font, anchor="mm")
    y = top + 28
    for index, (row, row_height) in enumerate(zip(fitted, heights, strict=True)):
        for column, picture in enumerate(row):
            if picture is not None:
                x = _MARGIN + column * (cell + _GAP) + (cell - picture.shape[1]) // 2
                sheet.paste(Image.fromarray(picture), (x, y + (row_height - len(picture)) // 2))
        if row_titles:
            line = _shorten(row_titles[index], text_font, width - 2 * _MARGIN)
            draw.text((_MARGIN, y + row_height + 3), line, fill=_FAINT, font=text_font)
        y += row_height + row_gap
    palette = voc_palette()
    for entries in legend_lines:
        x = _MARGIN
        for name, class_id, entry_width in entries:
            draw.rectangle((x, y + 6, x + 16, y + 20), fill=tuple(palette[class_id].tolist()), outline=_FAINT)
            draw.text((x + 23, y + 13), name, fill=_INK, font=text_font, anchor="lm")
            x += entry_width
        y += 26
    return np.array(sheet)  # its own: what Pillow lends cannot be written to


def write_picture(path: Path, picture: np.ndarray | Image.Image) -> None:
    """Write an image atomically; the suffix gives the format.

    Args:
        path: ``.png``, ``.jpg``, ...
        picture: uint8 RGB [H, W, 3], or a Pillow image such as a palette image.
    """
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    # Written by ourselves: Pillow does not say that a disk is full.
    content = BytesIO()
    image.save(content, Image.registered_extensions().get(path.suffix.lower()), quality=92)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _fit(picture: np.ndarray, cell: int) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = min(cell / width, 1.25 * cell / height)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=how)


def _wrap(
    legend: Sequence[tuple[str, int]], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[list[tuple[str, int, int]]]:
    """Break the legend into lines of (name, class id, width)."""
    lines: list[list[tuple[str, int, int]]] = []
    used = width + 1
    for name, class_id in legend:
        entry = int(font.getlength(name)) + 45
        if used + entry > width:
            lines.append([])
            used = 0
        lines[-1].append((name, class_id, entry))
        used += entry
    return lines


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    text = one_line(text)  # A font cannot measure line breaks, and file names may hold them.
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
