"""Animated GIFs of a folder of frames."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import cv2
import imageio.v2 as imageio
import numpy as np

from afa.data.files import replacing


def write_gif(path: Path, frames: Iterable[np.ndarray], *, frames_per_second: float = 8.0, long_side: int = 480) -> int:
    """Write frames one by one as an endless GIF, atomically.

    Args:
        path: ``.gif`` file.
        frames: uint8 RGB [H, W, 3]. The first one gives the size; others are fitted into it on black.
        frames_per_second: Speed; GIF rounds to hundredths of a second.
        long_side: Larger frames are shrunk to it.

    Returns:
        Number of frames. Without any, no file is written.
    """
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        return 0
    factor = min(1.0, long_side / max(first.shape[:2]))
    size = (max(1, round(first.shape[0] * factor)), max(1, round(first.shape[1] * factor)))
    count = 0
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
        closing(imageio.get_writer(file, format="GIF", mode="I", duration=1000 / frames_per_second, loop=0)) as writer,
    ):
        frame: np.ndarray | None = first
        while frame is not None:
            writer.append_data(_fit(frame, size))
            count += 1
            frame = next(iterator, None)
    return count


def _fit(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize into a frame of ``size`` (height, width), aspect kept, the rest black."""
    factor = min(size[0] / frame.shape[0], size[1] / frame.shape[1])
    height, width = (max(1, round(side * factor)) for side in frame.shape[:2])
    resized = cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=cv2.INTER_AREA)
    canvas = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas[top : top + height, left : left + width] = resized
    return canvas
