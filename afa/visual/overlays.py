"""Labels and heat maps as colours, alone or over the image."""

from __future__ import annotations

import cv2
import numpy as np

from afa.data.palette import voc_palette

_OUTLINE_SHARE = 1 / 250


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
        label: Integers [H, W]; 0 background, 255 ignored (a pale tint).

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
    outline = edge & (labels != 0) & (labels != 255)
    shown[outline] = colours[outline]
    return shown


def heat_map(values: np.ndarray) -> np.ndarray:
    """Values from 0 (blue) to 1 (red) as colours.

    Args:
        values: Floats [H, W]; clipped to 0..1.

    Returns:
        uint8 RGB [H, W, 3].
    """
    levels = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)


def overlay_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Scores as heat over the image; where they are low, it is fainter, so that the image stays visible.

    Args:
        image: uint8 RGB [H, W, 3].
        heat: Floats in 0..1, [H, W].

    Returns:
        uint8 RGB [H, W, 3].
    """
    alpha = (np.float32(0.6) * (0.5 + 0.5 * heat.clip(0, 1))).astype(np.float32)[:, :, None]
    return (image * (1 - alpha) + heat_map(heat) * alpha).astype(np.uint8)
