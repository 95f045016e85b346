"""Contact sheets: images in rows and columns with names, colour bars and a legend of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from afa.config.settings import IGNORE
from afa.data.files import replacing
from afa.data.palette import voc_palette
from afa.visual.overlays import hatching
from afa.visual.scores import ScoreScale, scale_bar
from afa.visual.text import fitted_text, text_width

_PAPER = (250, 250, 248)
_INK = (34, 34, 38)
_FAINT = (100, 100, 106)
_GAP = 10
_MARGIN = 20
_TITLE, _TEXT, _HEADING = 15, 13, 20  # heights of the fonts
_LINE = 20  # from one line of text to the next
_TITLE_LINE = 28  # of a row's title, with room above
_LONGEST_ENTRY = 220  # pixels of a name in the legend
_BAR_WIDTH, _BAR_HEIGHT = 180, 12
_BAR_LINE = 56
_ENTRY_GAP = 22
_NARROWEST = 160  # pixels of a legend's width


@dataclass(frozen=True)
class Cell:
    """An image of a sheet.

    Attributes:
        image: uint8 RGB [H, W, 3] of any size.
        caption: A line below it.
    """

    image: np.ndarray
    caption: str = ""


@dataclass(frozen=True)
class Row:
    """Cells side by side.

    Attributes:
        cells: One per column; None leaves a column empty.
        title: A line above them; "" for none.
        detail: Ends that line, and is never cut: of a long title the end is left out.
    """

    cells: Sequence[Cell | None]
    title: str = ""
    detail: str = ""


def stacked_rows(columns: Sequence[Sequence[Cell]], title: str = "", detail: str = "") -> list[Row]:
    """The rows of what belongs to one image.

    Args:
        columns: The cells of each column, one below the other; as many rows come out as the longest has.
        title: Of the first row.
        detail: Likewise.
    """
    rows = [Row(cells) for cells in zip_longest(*columns)]
    return [replace(rows[0], title=title, detail=detail), *rows[1:]] if rows else []


def cell_size(size: Sequence[int], cell: int) -> tuple[int, int]:
    """(h, w) at which a sheet shows an image.

    Args:
        size: (H, W) of the image, or its shape.
        cell: Width of a cell in pixels; an image is at most 1.25 times as high.
    """
    factor = min(cell / size[1], 1.25 * cell / size[0])
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def fitted_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image, uint8 RGB, resized to (h, w)."""
    if image.shape[:2] == size:
        return image
    how = cv2.INTER_AREA if size[0] * size[1] < image.shape[0] * image.shape[1] else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=how)


def fitted_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label [H, W] resized to (h, w), uint8: each pixel has the value of one that was there."""
    return cv2.resize(np.ascontiguousarray(label, np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)


def contact_sheet(
    rows: Sequence[Row],
    titles: Sequence[str],
    *,
    heading: str = "",
    notes: Sequence[str] = (),
    bars: Sequence[tuple[str, ScoreScale]] = (),
    legend: Sequence[tuple[str, int]] = (),
    cell: int = 200,
) -> np.ndarray:
    """Lay images out in a grid.

    Args:
        rows: Of cells.
        titles: One per column.
        heading: Line above everything.
        notes: Lines below the heading.
        bars: Colour bars of maps, each with what it is of; they stand below the images.
        legend: Class names with their ids, shown as swatches in VOC's colours below everything; 255 is hatched.
        cell: Width of an image in pixels; higher images are shrunk to a height of 1.25 times that.

    Returns:
        uint8 RGB [H, W, 3]. Texts that do not fit are cut and end in ``...``.
    """
    width = 2 * _MARGIN + len(titles) * cell + (len(titles) - 1) * _GAP
    inner = width - 2 * _MARGIN
    fitted = [[None if one is None else fitted_image(one.image, cell_size(one.image.shape, cell)) for one in row.cells]
              for row in rows]  # fmt: skip
    heights = [max((len(image) for image in row if image is not None), default=cell) for row in fitted]
    captions = [any(one is not None and one.caption for one in row.cells) for row in rows]
    bar_lines = _wrap([_bar_width(name, inner) for name, _ in bars], inner)

    top = _MARGIN + (30 if heading else 0) + _LINE * len(notes) + (8 if notes else 0)
    height = top + 26 + sum(heights) + _LINE * sum(captions) + _TITLE_LINE * sum(bool(row.title) for row in rows)
    height += _GAP * len(rows) + _BAR_LINE * len(bar_lines) + _legend_height(legend, inner) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)

    if heading:
        _write(draw, (_MARGIN, _MARGIN - 4), heading, _HEADING, inner)
    for number, note in enumerate(notes):
        _write(draw, (_MARGIN, top - 8 - _LINE * (len(notes) - number)), note, _TEXT, inner, fill=_FAINT)
    for column, title in enumerate(titles):
        x = _MARGIN + column * (cell + _GAP)
        _write(draw, (x + cell / 2, top + 10), title, _TITLE, cell, anchor="mm")
    y = top + 26
    for row, images, row_height, has_captions in zip(rows, fitted, heights, captions, strict=True):
        if row.title:
            _write_title(draw, (_MARGIN, y + _TITLE_LINE - _LINE), row, inner)
            y += _TITLE_LINE
        for column, (one, image) in enumerate(zip(row.cells, images, strict=True)):
            if one is None or image is None:
                continue
            x = _MARGIN + column * (cell + _GAP)
            sheet.paste(Image.fromarray(image), (x + (cell - image.shape[1]) // 2, y + (row_height - len(image)) // 2))
            if one.caption:
                _write(draw, (x + cell / 2, y + row_height + 10), one.caption, _TEXT, cell, anchor="mm")
        y += row_height + _GAP + (_LINE if has_captions else 0)
    for line in bar_lines:
        for index, x in line:
            _draw_bar(sheet, draw, (_MARGIN + x, y), *bars[index], inner)
        y += _BAR_LINE
    _draw_legend(sheet, draw, (_MARGIN, y), legend, inner)
    return np.array(sheet)  # its own: what Pillow lends cannot be written to


def with_legend(image: np.ndarray, legend: Sequence[tuple[str, int]]) -> np.ndarray:
    """An image with the names of its classes below.

    Args:
        image: uint8 RGB [H, W, 3].
        legend: Class names with their ids; without any, the image is given back.

    Returns:
        uint8 RGB [H + h, W, 3]; a narrow image stands at the left of a wider one.
    """
    if not legend:
        return image
    width = max(image.shape[1], _NARROWEST)
    height = len(image) + _legend_height(legend, width - 16)
    page = Image.new("RGB", (width, height), _PAPER)
    page.paste(Image.fromarray(image), (0, 0))
    _draw_legend(page, ImageDraw.Draw(page), (8, len(image)), legend, width - 16)
    return np.array(page)


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


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int,
    width: float,
    *,
    fill: tuple[int, int, int] = _INK,
    anchor: str = "la",
) -> float:
    """Draw a text, cut to a width; returns the pixels that it takes."""
    shown, font = fitted_text(text, size, width)
    draw.text(place, shown, fill=fill, font=font, anchor=anchor)
    return font.getlength(shown)


def _write_title(draw: ImageDraw.ImageDraw, place: tuple[int, int], row: Row, width: int) -> None:
    x, y = place
    gap = 14 if row.detail else 0
    of_detail = min(text_width(row.detail, _TEXT), width) if row.detail else 0
    x += round(_write(draw, (x, y), row.title, _TEXT, max(0, width - of_detail - gap))) + gap
    _write(draw, (x, y), row.detail, _TEXT, width, fill=_FAINT)


def _wrap(widths: Sequence[int], width: int) -> list[list[tuple[int, int]]]:
    """Break entries of some widths into lines of (index, x)."""
    lines: list[list[tuple[int, int]]] = []
    used = width + 1
    for index, entry in enumerate(widths):
        if used + entry > width:
            lines.append([])
            used = 0
        lines[-1].append((index, used))
        used += entry + _ENTRY_GAP
    return lines


def _legend_lines(legend: Sequence[tuple[str, int]], width: int) -> list[list[tuple[int, int]]]:
    return _wrap([23 + round(min(text_width(name, _TEXT), _LONGEST_ENTRY, width - 23)) for name, _ in legend], width)


def _legend_height(legend: Sequence[tuple[str, int]], width: int) -> int:
    return 26 * len(_legend_lines(legend, width)) + 8 if legend else 0


def _draw_legend(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    legend: Sequence[tuple[str, int]],
    width: int,
) -> None:
    palette, (left, y) = voc_palette(), place
    for line in _legend_lines(legend, width):
        for index, x in line:
            name, class_id = legend[index]
            box = (left + x, y + 6, left + x + 16, y + 20)
            if class_id == IGNORE:
                sheet.paste(Image.fromarray(hatching((15, 17))), box[:2])
                draw.rectangle(box, outline=_FAINT)
            else:
                draw.rectangle(box, fill=tuple(palette[class_id].tolist()), outline=_FAINT)
            _write(draw, (left + x + 23, y + 13), name, _TEXT, min(_LONGEST_ENTRY, width - 23), anchor="lm")
        y += 26


def _bar_width(name: str, width: int) -> int:
    return min(width, max(_BAR_WIDTH, round(text_width(name, _TEXT))))


def _draw_bar(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, place: tuple[int, int], name: str, scale: ScoreScale, width: int
) -> None:
    x, y = place
    _write(draw, (x, y), name, _TEXT, width)
    length = min(_BAR_WIDTH, width)
    sheet.paste(Image.fromarray(scale_bar(scale, length, _BAR_HEIGHT)), (x, y + 18))
    taken: list[tuple[float, float]] = []
    ends = [(scale.low, "la"), (scale.high, "ra")]
    for value, anchor in ends if scale.background is None else [(scale.background, "ma"), *ends]:
        at = x + (value - scale.low) / max(scale.high - scale.low, 1e-6) * (length - 1)
        text = f"{value:.4g}"
        long = text_width(text, _TEXT)
        start = {"la": at, "ma": at - long / 2, "ra": at - long + 1}[anchor]
        if any(start < end + 4 and begin - 4 < start + long for begin, end in taken):
            continue  # The background score comes first: an end so close to it goes without a number.
        taken.append((start, start + long))
        draw.line((at, y + 18, at, y + 18 + _BAR_HEIGHT + 3), fill=_INK)
        _write(draw, (start, y + 34), text, _TEXT, length)
