"""Labels as colours, alone or over the image."""

from __future__ import annotations

import cv2
import numpy as np

from afa.config.settings import IGNORE
from afa.data.palette import voc_palette

_OUTLINE_SHARE = 1 / 250
_STRIPES = 8  # pixels from one stripe to the next
_STRIPE = 3  # pixels of its width
_LIGHT, _DARK = np.array([235, 235, 225], np.uint8), np.array([70, 70, 76], np.uint8)


def colour_label(label: np.ndarray) -> np.ndarray:
    """A label in VOC's colours.

    Args:
        label: Integers 0..255, [H, W].

    Returns:
        uint8 RGB [H, W, 3].
    """
    return voc_palette()[label]


def overlay_label(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Objects tinted and outlined in their class's colour; background pixels show the image as it is.

    Args:
        image: uint8 RGB [H, W, 3].
        label: Integers [H, W]; 0 background, 255 ignored, which is hatched.

    Returns:
        uint8 RGB [H, W, 3].
    """
    colours = colour_label(label)
    tinted = image * np.float32(0.5) + colours * np.float32(0.5)
    shown = np.where((label != 0)[:, :, None], tinted, image).astype(np.uint8)
    width = max(1, round(max(label.shape) * _OUTLINE_SHARE))
    labels = np.ascontiguousarray(label, dtype=np.uint8)
    # A pixel next to another value belongs to the outline of its object.
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    edge = (cv2.erode(labels, kernel) != labels) | (cv2.dilate(labels, kernel) != labels)
    outline = edge & (labels != 0) & (labels != IGNORE)
    shown[outline] = colours[outline]
    ignored = labels == IGNORE
    shown[ignored] = (0.3 * image[ignored] + 0.7 * hatching(labels.shape)[ignored]).astype(np.uint8)
    return shown


def hatching(size: tuple[int, ...]) -> np.ndarray:
    """Diagonal stripes, which mark ignored pixels.

    Args:
        size: (H, W).

    Returns:
        uint8 RGB [H, W, 3].
    """
    rows, columns = np.ogrid[: size[0], : size[1]]
    is_stripe = (rows + columns) % _STRIPES < _STRIPE
    return np.where(is_stripe[:, :, None], _DARK, _LIGHT)
