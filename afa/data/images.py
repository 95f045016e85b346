"""Image and mask files to arrays of RGB values and of class ids; :mod:`afa.data.image_files` decodes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from afa.config.settings import MAX_PIXELS
from afa.data.image_files import STORED_TO_UPRIGHT, ColourMask, DamagedImage, Decoded, TooManyPixels, decode
from afa.data.palette import MaskPalette

__all__ = [
    "ColourMask",
    "DamagedImage",
    "Decoded",
    "TooManyPixels",
    "decode",
    "read_image",
    "read_mask",
    "to_class_ids",
    "to_rgb",
]

_MASK_FORMATS = ("PNG", "TIFF", "BMP", "WEBP")
_MASK_KINDS = "PNG, TIFF, BMP and lossless WebP files"
_BAND_PIXELS = 1 << 22  # converted at once: a large image is not held in memory several times over
_DARKEST_WHITE = 16  # of 255; where nothing reaches it, 16 bits hold values of 12 or fewer


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, upright: bool = False) -> np.ndarray:
    """Read an image file as 8-bit RGB.

    Greyscale is replicated, palettes are looked up, of 9 to 16 bits the upper 8 are kept, transparent pixels are
    blended with white, CMYK, YCbCr and Lab are converted. Colour profiles are not applied.

    Args:
        path: JPEG, PNG, BMP, WebP, TIFF, GIF or, where Pillow can, AVIF file; one image, no animation.
        max_pixels: Larger ones are refused before they are decoded.
        upright: Turn it as the file says it should be shown. By default the pixels are given as they are stored.

    Returns:
        uint8 array [H, W, 3].

    Raises:
        DamagedImage: The file is missing, truncated, empty or no image, or its values have no certain meaning.
        TooManyPixels: It is larger than ``max_pixels``.
    """
    return to_rgb(decode(path, max_pixels=max_pixels), upright=upright)


def to_rgb(decoded: Decoded, *, upright: bool = False) -> np.ndarray:
    """A decoded image as 8-bit RGB, see :func:`read_image`.

    Raises:
        DamagedImage: Its values have no certain meaning.
    """
    path, image, mode = decoded.path, decoded.image, decoded.image.mode
    grey = mode == "1" or mode == "L" or mode.startswith("I")
    _refuse_odd_samples(decoded)
    convert = _grey_to_rgb(decoded) if grey else _colours_to_rgb
    try:
        rgb = _by_bands(image, convert)
    except (ValueError, OSError) as error:
        raise DamagedImage(f"the image {path} cannot be read: {error}; save it as 8-bit RGB") from error
    # Of 16-bit colours the lower half is gone: black cannot be told from nearly black.
    if decoded.bits == 16 and rgb.max() < _DARKEST_WHITE and not (grey and not np.asarray(image).any()):
        raise DamagedImage(
            f"the image {path} has 16 bits per channel, but no value above 4095: it would be almost black; save it "
            "with 8 bits, scaled to 0-255"
        )
    if upright and decoded.orientation != 1:
        turned = Image.fromarray(rgb).transpose(STORED_TO_UPRIGHT[decoded.orientation])
        return np.array(turned)
    return rgb


def read_mask(path: str | Path, *, palette: MaskPalette | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a mask: the class ids stored in the file, in the stored order of the pixels.

    - Palette images: the indices count, not the colours.
    - Greyscale of 1 to 32 bits, floats too: the values, which must be whole numbers from 0 to 255.
    - Colours, only with ``palette``: it says which colour is which class. Palette images are then looked up by their
      colours, too.

    An alpha channel that is opaque everywhere is left out.

    Args:
        path: PNG, TIFF, BMP or lossless WebP file.
        palette: Colours of the classes, see :func:`afa.data.palette.read_palette`.
        max_pixels: Larger ones are refused before they are decoded.

    Returns:
        uint8 array [H, W] of class ids; 0 is background.

    Raises:
        ColourMask: It has colours and there is no palette, or more than one channel.
        DamagedImage: The file is missing or damaged, of a format that changes values, or holds values that are no
            class ids, or colours that the palette lacks.
        TooManyPixels: It is larger than ``max_pixels``.
    """
    return to_class_ids(decode(path, "mask", max_pixels=max_pixels), palette)


def to_class_ids(decoded: Decoded, palette: MaskPalette | None = None) -> np.ndarray:
    """The class ids of a decoded mask, see :func:`read_mask`.

    Raises:
        ColourMask: It has colours and there is no palette, or more than one channel.
        DamagedImage: It is of a format that changes values, or holds no class ids, or colours that the palette lacks.
    """
    path = decoded.path
    if decoded.format not in _MASK_FORMATS:
        raise DamagedImage(f"the mask {path} is a {decoded.format} file; masks are read from {_MASK_KINDS}")
    if not decoded.exact:
        raise DamagedImage(f"the mask {path} is compressed with losses, which change class ids: save it as PNG")
    if decoded.inverted:
        raise DamagedImage(f"the mask {path} counts from white (WhiteIsZero): save it as PNG, or as BlackIsZero")
    image = _without_alpha(path, decoded.image)
    if image.mode == "RGB" and palette is None:
        raise ColourMask(
            f"the mask {path} has {len(decoded.image.getbands())} channels ({decoded.image.mode}); class ids in one "
            "channel are needed: save it as greyscale or palette PNG, or name the file that lists the colours of the "
            "classes in dataset.mask_palette"
        )
    if palette is not None and image.mode in ("RGB", "P"):
        if decoded.bits > 8:
            raise DamagedImage(f"the mask {path} has {decoded.bits} bits per channel: save colours with 8 bits")
        colours = palette

        def to_ids(part: Image.Image) -> np.ndarray:
            return _looked_up(np.asarray(part.convert("RGB")), colours, path)
    elif image.mode in ("P", "L", "1", "F") or image.mode.startswith("I"):
        if decoded.samples > 1 and image is decoded.image:
            raise ColourMask(f"the mask {path} has {decoded.samples} channels; class ids in one channel are needed")

        def to_ids(part: Image.Image) -> np.ndarray:
            return _checked_ids(_samples(part, decoded), path)
    else:
        raise ColourMask(f"the mask {path} has the colour mode {image.mode}; class ids in one channel are needed")
    return _by_bands(image, to_ids)


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Convert an image to an array, a large one in bands of rows."""
    width, height = image.size
    rows = max(1, _BAND_PIXELS // width)
    if rows >= height:
        return convert(image)
    result: np.ndarray | None = None
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        part = convert(image.crop((0, top, width, bottom)))
        if result is None:
            result = np.empty((height, *part.shape[1:]), part.dtype)
        result[top:bottom] = part
    assert result is not None
    return result


def _refuse_odd_samples(decoded: Decoded) -> None:
    mode, bits = decoded.image.mode, decoded.bits
    odd = None
    if mode == "F":
        odd = "floating-point pixels"
    elif bits > 16:
        odd = f"{bits} bits per channel, and nothing says which value is white"
    elif decoded.signed:
        odd = "signed values"
    elif decoded.inverted and bits > 8:
        odd = f"{bits} bits that count from white"
    elif bits == 16 and mode == "RGB" and "transparency" in decoded.image.info:
        odd = "a transparent colour of 16 bits"
    if odd is not None:
        raise DamagedImage(f"the image {decoded.path} has {odd}: save it with 8 bits per channel, scaled to 0-255")


def _samples(part: Image.Image, decoded: Decoded) -> np.ndarray:
    """The values of one channel as they stand in the file."""
    values = np.array(part)
    if part.mode == "1":
        return values.astype(np.uint8)
    if part.mode == "L" and decoded.bits < 8:
        return values // np.uint8(255 // (2**decoded.bits - 1))  # Pillow spreads them over 0 to 255.
    if part.mode == "L" and decoded.signed:
        return values.view(np.int8)
    return values


def _grey_to_rgb(decoded: Decoded) -> Callable[[Image.Image], np.ndarray]:
    transparent = decoded.image.info.get("transparency")
    is_one_bit = decoded.image.mode == "1"

    def convert(part: Image.Image) -> np.ndarray:
        if part.mode.startswith("I"):
            grey = (np.array(part).astype(np.uint16) >> max(0, decoded.bits - 8)).astype(np.uint8)
        else:
            grey = np.array(part.convert("L"))
        if isinstance(transparent, int):
            # Some Pillow versions give the one bit as 255.
            samples = _samples(part, decoded)
            grey[samples == (min(transparent, 1) if is_one_bit else transparent)] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)

    return convert


def _colours_to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.array(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, rgba).convert("RGB"))
    return np.array(image.convert("RGB"))


def _without_alpha(path: str | Path, image: Image.Image) -> Image.Image:
    """The image without its alpha channel, where that is opaque everywhere; else as it is."""
    plain: Mapping[str, str] = {"RGBA": "RGB", "LA": "L"}
    if image.mode not in plain:
        return image
    if image.getchannel("A").getextrema() != (255, 255):
        raise ColourMask(
            f"the mask {path} has {len(image.getbands())} channels ({image.mode}), and transparent pixels among them: "
            "save the class ids as greyscale or palette PNG"
        )
    return image.convert(plain[image.mode])


def _looked_up(rgb: np.ndarray, palette: MaskPalette, path: str | Path) -> np.ndarray:
    """Class ids of colours as uint8."""
    ids = palette.class_ids(rgb)
    unknown = ids < 0
    if unknown.any():
        red, green, blue = rgb[unknown][0]
        raise DamagedImage(
            f"the mask {path} has the colour {red},{green},{blue}, which {palette.source} does not list: add it there, "
            "with its class or as 'ignore'"
        )
    return ids.astype(np.uint8)


def _checked_ids(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Class ids as uint8."""
    if values.dtype != np.uint8:
        whole = (values >= 0) & (values <= 255)
        if values.dtype.kind == "f":
            whole &= values == np.floor(values)
        if not whole.all():
            raise DamagedImage(
                f"the mask {path} holds the value {values[~whole][0]}; class ids are whole numbers: 0 to 254, 255 = "
                "ignore"
            )
    return values.astype(np.uint8, copy=False)
