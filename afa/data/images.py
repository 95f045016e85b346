"""Image and mask files to arrays.

EXIF orientation is not applied to images: masks, boxes and the released program's data are stored in the raster's own
orientation, and turning only the image would tear the pair apart. ``tools/check_data.py`` reports rotated images.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from afa.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
EXIF_ORIENTATION = 0x0112  # tag
MASK_MODES = ("P", "L", "1", "I;16", "I")
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error, Image.DecompressionBombError)


class DamagedImage(UserError):
    """An image or mask file that cannot be read; the message names the file."""


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as 8-bit RGB.

    Greyscale is replicated, palettes are looked up, 16-bit values keep their high byte, transparent pixels are blended
    with white, CMYK is converted. EXIF orientation is not applied.

    Args:
        path: JPEG, PNG, BMP, WebP or TIFF file.

    Returns:
        uint8 array [H, W, 3].

    Raises:
        DamagedImage: The file is missing, truncated, empty or no image.
    """
    try:
        with open_quietly(path) as image:
            return _to_rgb(image)
    except _DECODING_ERRORS as error:
        raise DamagedImage(_describe(path, "image", error)) from error


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask: palette PNG (the indices count, not the colours) or greyscale PNG.

    Args:
        path: Mask file.

    Returns:
        uint8 array [H, W] of class ids; 0 is background.

    Raises:
        DamagedImage: The file is missing or damaged, has colour channels, or values above 255.
    """
    try:
        with open_quietly(path) as image:
            if image.mode not in MASK_MODES:
                channels = len(image.getbands())
                raise DamagedImage(
                    f"the mask {path} has {channels} channels ({image.mode}); class ids in one channel are needed: "
                    "save it as greyscale or palette PNG"
                )
            mask = np.array(image)
    except _DECODING_ERRORS as error:
        raise DamagedImage(_describe(path, "mask", error)) from error
    if mask.dtype != np.uint8:
        if mask.dtype != np.bool_ and mask.size and (int(mask.max()) > 255 or int(mask.min()) < 0):
            raise DamagedImage(
                f"the mask {path} holds the value {int(mask.max())}; class ids are 0 to 254, 255 = ignore"
            )
        mask = mask.astype(np.uint8)
    return mask


@contextmanager
def open_quietly(file: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image with Pillow, without its warnings of large pictures and odd metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file) as image:
            yield image


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.array(image)
    if image.mode == "L" and "transparency" not in image.info:
        return np.repeat(np.array(image)[:, :, None], 3, axis=2)
    if image.mode.startswith("I"):
        # 16-bit greyscale: some Pillow versions open it as "I", others as "I;16".
        grey = (np.array(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 bits per channel")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, rgba).convert("RGB"))
    return np.array(image.convert("RGB"))


def _describe(path: str | Path, kind: str, error: BaseException) -> str:
    path = Path(path)
    if isinstance(error, FileNotFoundError):
        return f"the {kind} {path} is missing"
    if isinstance(error, IsADirectoryError):
        return f"the {kind} {path} is a folder"
    if isinstance(error, PermissionError):
        return f"the {kind} {path} may not be read (permissions)"
    if path.is_file() and path.stat().st_size == 0:
        return f"the {kind} {path} is an empty file"
    reason = "it is not an image file" if "cannot identify" in str(error) else str(error) or type(error).__name__
    return f"the {kind} {path} cannot be read: {reason}"
