"""The VOC palette and masks as palette images."""

from __future__ import annotations

import numpy as np
from PIL import Image


def voc_palette() -> np.ndarray:
    """The 256 colours of the VOC development kit.

    Of an index, bits 0, 1, 2 are the top bits of red, green, blue, bits 3, 4, 5 the next ones, and so on.

    Returns:
        uint8 RGB [256, 3].
    """
    indices = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            palette[:, channel] |= (((indices >> (3 * level + channel)) & 1) << (7 - level)).astype(np.uint8)
    return palette


def palette_image(mask: np.ndarray) -> Image.Image:
    """A mask as a palette image in VOC's colours.

    Args:
        mask: uint8 [H, W].

    Returns:
        Image of mode ``P`` whose indices are the mask's values.
    """
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    image.putpalette(voc_palette().tobytes())
    return image
