"""Saliency maps: grey images of how salient each pixel is, for any class (EDAM reads them)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from afa.config.settings import MAX_PIXELS
from afa.data.images import DamagedImage, decode, to_rgb


def read_saliency(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a saliency map: the grey values as they are stored.

    Colour images and palettes whose channels are equal are grey, too. Of 16 bits the upper 8 are kept; of 1 bit, white
    is 255.

    Args:
        path: A file of any format that :func:`afa.data.images.read_image` reads.
        max_pixels: Larger ones are refused before they are decoded.

    Returns:
        uint8 [H, W].

    Raises:
        DamagedImage: The file is missing or damaged, has colours or transparent pixels, or its values have no certain
            meaning.
    """
    decoded = decode(path, "saliency map", max_pixels=max_pixels)
    if _is_transparent(decoded.image):
        raise DamagedImage(f"the saliency map {path} has transparent pixels: save it as a grey image of 8 bits")
    values = to_rgb(decoded)
    if (values != values[:, :, :1]).any():
        raise DamagedImage(f"the saliency map {path} has colours: save it as a grey image of 8 bits")
    return np.ascontiguousarray(values[:, :, 0])


def _is_transparent(image: Image.Image) -> bool:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return False
    return image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


@dataclass(frozen=True)
class SaliencyRange:
    """What some saliency maps hold.

    Attributes:
        maps: How many.
        lowest, highest: Grey values, 0..255.
        smallest, largest: (width, height) of the maps of fewest and most pixels.
    """

    maps: int
    lowest: int
    highest: int
    smallest: tuple[int, int]
    largest: tuple[int, int]

    @classmethod
    def of(cls, values: np.ndarray) -> SaliencyRange:
        """Of one map, uint8 [H, W]."""
        size = (values.shape[1], values.shape[0])
        return cls(1, int(values.min()), int(values.max()), size, size)

    def __add__(self, other: SaliencyRange) -> SaliencyRange:
        """Of both together."""
        sizes = (self.smallest, self.largest, other.smallest, other.largest)
        return SaliencyRange(
            self.maps + other.maps,
            min(self.lowest, other.lowest),
            max(self.highest, other.highest),
            min(sizes, key=_pixels),
            max(sizes, key=_pixels),
        )

    def as_text(self) -> str:
        """For people, in one line."""
        sizes = dict.fromkeys(f"{width} x {height}" for width, height in (self.smallest, self.largest))
        return f"{self.maps} maps, grey values {self.lowest} to {self.highest}, {' to '.join(sizes)} pixels"

    def remark(self) -> str | None:
        """What is odd about the range: which ``edam.saliency_maximum`` fits, where that is not plain."""
        if self.lowest == self.highest:
            return f"every grey value is {self.lowest}: such maps contain no information"
        if self.highest <= 1:
            return (
                "no grey value is above 1: these are masks of zeros and ones, which need edam.saliency_maximum=1; with "
                "100, as released, or 255 hardly any theta makes a pixel salient"
            )
        if self.highest <= 100:
            return (
                f"no grey value is above {self.highest}: if they are percentages, edam.saliency_maximum=100 makes "
                "edam.theta a share of full saliency; with 255, theta above "
                f"{self.highest / 255:.2f} makes no pixel salient"
            )
        return None


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]
