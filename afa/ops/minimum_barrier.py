"""Saliency of an image by minimum barrier distance: no network, no training (Zhang et al., ICCV 2015).

"Minimum Barrier Salient Object Detection at 80 FPS". A pixel stands out where every way to the image's border crosses
great differences of colour, and where its colour is unlike the border's.

Shapes: H x W image, h x w shrunk image.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

_LONG_SIDE = 300  # the paper's
_CYCLES = 3
_BORDER = 0.1
_SMOOTHING = 20.0  # alpha of the paper: width of the kernel over the root of the mean
_STEEPNESS = 10.0  # b of its sigmoid


def minimum_barrier_saliency(image: np.ndarray) -> np.ndarray:
    """The saliency of every pixel (MB+ of the paper, without its preference for the image's middle).

    Args:
        image: uint8 RGB [H, W, 3].

    Returns:
        float32 [H, W] in 0..1; 0 everywhere where all pixels are alike.
    """
    height, width = image.shape[:2]
    scale = _LONG_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    colours = cv2.cvtColor(shrunk, cv2.COLOR_RGB2LAB).astype(np.float32)
    raw = _of_maximum_1(_of_maximum_1(barrier_distance(colours)) + _of_maximum_1(unlike_the_border(colours)))
    smooth = _of_maximum_1(_without_details(raw))
    steep = 1 / (1 + np.exp(_STEEPNESS * (0.5 - smooth)))
    found = _of_maximum_1(steep - steep.min())
    return cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR).clip(0, 1)


def barrier_distance(values: np.ndarray) -> np.ndarray:
    """Minimum barrier distance to the border, summed over channels (FastMBD of the paper).

    The barrier of a way is its highest value less its lowest; the distance is that of the best way. As in the paper it
    is approximated by passes over the image. They go by whole rows and columns - down, right, left, up - instead of by
    pixels, which numpy does at once.

    Args:
        values: float32 [h, w, channels].

    Returns:
        float32 [h, w], 0 at the border.
    """
    planes = np.ascontiguousarray(np.moveaxis(values, 2, 0))
    distance = np.full_like(planes, np.inf)
    distance[:, [0, -1]] = 0
    distance[:, :, [0, -1]] = 0
    state = [planes, distance, planes.copy(), planes.copy()]
    for _ in range(_CYCLES):
        rows, columns = range(planes.shape[1]), range(planes.shape[2])
        _pass(state, rows)
        state = _turned(state)
        _pass(state, columns)
        _pass(state, columns[::-1])
        state = _turned(state)
        _pass(state, rows[::-1])
    return state[1].sum(axis=0)


def unlike_the_border(colours: np.ndarray) -> np.ndarray:
    """How far each colour is from those of the border (backgroundness in the paper).

    For each of the four sides the Mahalanobis distance to its colours, divided by the largest; the sum of all but the
    largest of the four, because an object may touch one side.

    Args:
        colours: float32 [h, w, 3].

    Returns:
        float32 [h, w], at least 0.
    """
    rows, columns = (max(1, round(_BORDER * side)) for side in colours.shape[:2])
    sides = (colours[:rows], colours[-rows:], colours[:, :columns], colours[:, -columns:])
    distances = []
    for side in sides:
        pixels = side.reshape(-1, 3)
        mean = pixels.mean(axis=0)
        spread = (pixels - mean).T @ (pixels - mean) / len(pixels) + np.eye(3, dtype=np.float32)
        away = colours - mean
        squares = np.einsum("hwi,ij,hwj->hw", away, np.linalg.inv(spread), away)
        distances.append(_of_maximum_1(np.sqrt(squares.clip(0))))
    return np.sum(distances, axis=0) - np.max(distances, axis=0)


def _pass(state: list[np.ndarray], order: Iterable[int]) -> None:
    """Go on from each row to the next one: values, distances, and the highest and lowest value on the best way."""
    values, distance, highest, lowest = state
    before: int | None = None
    for row in order:
        if before is not None:
            high = np.maximum(highest[:, before], values[:, row])
            low = np.minimum(lowest[:, before], values[:, row])
            barrier = high - low
            better = barrier < distance[:, row]
            np.copyto(distance[:, row], barrier, where=better)
            np.copyto(highest[:, row], high, where=better)
            np.copyto(lowest[:, row], low, where=better)
        before = row


def _turned(state: list[np.ndarray]) -> list[np.ndarray]:
    """Rows become columns."""
    return [np.ascontiguousarray(plane.transpose(0, 2, 1)) for plane in state]


def _without_details(saliency: np.ndarray) -> np.ndarray:
    """Small bright spots, then small dark ones, are filled up to what surrounds them."""
    reach = max(1, round(_SMOOTHING * float(np.sqrt(saliency.mean())) / 2))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    opened = _reconstructed(cv2.erode(saliency, kernel), saliency)
    return 1 - _reconstructed(1 - cv2.dilate(opened, kernel), 1 - opened)


def _reconstructed(marker: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """The marker, dilated below a limit until nothing changes."""
    around = np.ones((3, 3), np.uint8)
    while True:
        grown = np.minimum(cv2.dilate(marker, around), limit)
        if np.array_equal(grown, marker):
            return grown
        marker = grown


def _of_maximum_1(values: np.ndarray) -> np.ndarray:
    largest = float(values.max())
    return (values / largest if largest > 0 else values).astype(np.float32)
