"""COCO's two ways to describe an object's pixels, checked before pycocotools' C code sees them.

That code trusts what it is given: run lengths whose sum is not the image's size give pixels from anywhere in memory,
and coordinates of 1e9 or an image of 10^7 rows end the process. The format of run lengths as text is described in
pycocotools' own source, ``common/maskApi.c``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

MAX_PIXELS = 178_956_970
"""Of an image: Pillow opens no larger ones, and pycocotools counts pixels with 32 bits."""
_SHORTEST_LIMIT, _LONGEST_LIMIT = 2**16, 2**24  # of an object's outline, in pixels
_LAST_CHARACTER = 48 + 63  # characters of run lengths hold 6 bits each, from 48 ('0') upwards


def encode(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Check an object's segmentation and bring it into pycocotools' form.

    Polygons may reach out of the image by as much as its own size: some pixels are usual in COCO, more means that
    image and annotation do not belong together.

    Args:
        segmentation: Polygons [[x, y, x, y, ...], ...], or a run-length encoding {"size": [h, w], "counts": ...} whose
            counts are a list of whole numbers or pycocotools' text.
        height: Of the image; height * width is at most :data:`MAX_PIXELS`.
        width: Of the image.

    Returns:
        A compressed run-length encoding, for :func:`area` and :func:`decode`.

    Raises:
        ValueError: It is malformed; the message says how.
    """
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise ValueError(f"{height} x {width} pixels is no size of an image")
    if isinstance(segmentation, dict):
        return _from_run_lengths(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise ValueError("its segmentation is neither a list of polygons nor a run-length encoding")
    _check_polygons(segmentation, height, width)
    # pycocotools takes a list of four numbers for a box: fewer than three corners enclose nothing.
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        return coco_mask.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def area(region: dict[str, Any]) -> int:
    """Number of pixels of what :func:`encode` gave."""
    return int(coco_mask.area(region))


def decode(region: dict[str, Any]) -> np.ndarray:
    """The pixels of what :func:`encode` gave: bool [height, width]."""
    return coco_mask.decode(region).astype(bool)


def _check_polygons(polygons: list[Any], height: int, width: int) -> None:
    outline = 0.0
    for polygon in polygons:
        if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
            raise ValueError("a polygon of its segmentation is no list of numbers")
        if len(polygon) % 2:
            raise ValueError(f"a polygon of its segmentation has {len(polygon)} numbers; x and y come in pairs")
        try:
            points = np.array(polygon, np.float64).reshape(-1, 2)
        except OverflowError as error:
            raise ValueError("a polygon of its segmentation holds a number that is far too large") from error
        # Comparisons with NaN are false.
        if not ((points >= (-width, -height)) & (points <= (2 * width, 2 * height))).all():
            raise ValueError(
                f"a polygon of its segmentation reaches far out of the image of {height} x {width} pixels "
                f"(height x width): x and y go up to {np.abs(points).max(0)[0]:g} and {np.abs(points).max(0)[1]:g}"
            )
        if len(points) > 1:
            outline += float(np.abs(points - np.roll(points, 1, 0)).max(1).sum())
    # pycocotools keeps every fifth of a pixel of the outline in memory. One through every pixel is as long as there are
    # pixels.
    limit = min(max(_SHORTEST_LIMIT, 4 * height * width), _LONGEST_LIMIT)
    if outline > limit:
        raise ValueError(f"the outline of its segmentation is {outline:.0f} pixels long; at most {limit} are possible")


def _from_run_lengths(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or [type(side) for side in size] != [int, int] or size != [height, width]:
        raise ValueError(f"the size of its run-length encoding is not the image's, [{height}, {width}]")
    if isinstance(counts, str):
        lengths = _decode_text(counts)
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        lengths = counts
    else:
        raise ValueError("the counts of its run-length encoding are neither whole numbers nor text")
    if any(length < 0 for length in lengths):
        raise ValueError("the counts of its run-length encoding hold a number below 0")
    if sum(lengths) != height * width:
        raise ValueError(
            f"the counts of its run-length encoding add up to {_short(sum(lengths))}, not to the "
            f"{height} x {width} = {height * width} pixels of the image"
        )
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode("ascii")}
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _decode_text(text: str) -> list[int]:
    """pycocotools' text to counts: groups of 5 bits, the lowest first, bit 6 says that more follow, the last group's
    highest bit is the sign; from the fourth count on, the difference to the count two places before."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits <= _LAST_CHARACTER - 48:
            raise ValueError("the counts of its run-length encoding hold a character that is none of the format's")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            if shift > 30:
                raise ValueError("the counts of its run-length encoding hold a number that is far too large")
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the counts of its run-length encoding break off")
    return counts


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**15 else f"{number.bit_length()} bits"
