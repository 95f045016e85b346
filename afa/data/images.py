"""Image and mask files to arrays. Everything that opens an image or a mask opens it here.

The orientation that a file's EXIF or XMP block names is not applied, in any format: masks, boxes and the released
program's data are stored in the raster's own orientation, and turning only the image would tear the pair apart.
``tools/check_data.py`` reports such images. Only prediction on people's own images asks for them upright.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from afa.config.settings import MAX_PIXELS
from afa.data.files import open_plain
from afa.data.palette import MaskPalette
from afa.errors import UserError

# Pillow knows some thirty formats more: for one of them it starts a program, others were seldom tried on damaged files.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF") + (
    ("AVIF",) if importlib.util.find_spec("PIL.AvifImagePlugin") else ()
)
_MASK_FORMATS = ("PNG", "TIFF", "BMP", "WEBP")
_MASK_KINDS = "PNG, TIFF, BMP and lossless WebP files"
_OTHER_KINDS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"....ftypavi", re.DOTALL), "AVIF, which this version of Pillow cannot read"),
    (re.compile(rb"\xff\x0a|....JXL ", re.DOTALL), "JPEG XL"),
    (re.compile(rb"\xff\x4f\xff\x51|....jP  ", re.DOTALL), "JPEG 2000"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript"),
    (re.compile(rb"%PDF"), "PDF"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"\s*(<\?xml|<svg)", re.IGNORECASE), "SVG or XML"),
    (re.compile(rb"\s*<(!doctype|html)", re.IGNORECASE), "HTML"),
    (re.compile(rb"PK\x03\x04"), "ZIP"),
)
_LONG_TEXT = re.compile(r"decompressed data too large|text chunks", re.IGNORECASE)
_KNOWN_STARTS = re.compile(rb"\xff\xd8\xff|\x89PNG|BM|RIFF....WEBP|II[*+]\0|MM\0[*+]|GIF8", re.DOTALL)

_ORIENTATION = 0x0112  # EXIF and TIFF tag
_STORED_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UPRIGHT_TO_STORED = {
    **_STORED_TO_UPRIGHT,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}

_TIFF_PAGE, _TIFF_OLD_PAGE, _TIFF_COMPRESSION = 254, 255, 259
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLES, _TIFF_SAMPLE_FORMAT = 258, 262, 277, 339
_TIFF_LOSSLESS = (1, 2, 3, 4, 5, 8, 32771, 32773, 32809, 32946, 34925, 50000)
_MOST_THUMBNAILS = 64  # pages beside a TIFF file's image
_MOST_SCANS = 40  # of a JPEG file; encoders write about ten, and each one passes over all pixels
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # those between and within scans' data left out
_JPEG_SCAN, _JPEG_END, _JPEG_WITHOUT_LENGTH = 0xDA, 0xD9, (0x01, 0xD8)
_JPEG_FRAMES = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))
_BAND_PIXELS = 1 << 22  # converted at once: a large image is not held in memory several times over
_DARKEST_WHITE = 16  # of 255; where nothing reaches it, 16 bits hold values of 12 or fewer

# Of large images, odd metadata and the like: what cannot be read is said in our own words.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class DamagedImage(UserError):
    """An image or mask file that cannot be read; the message names the file."""


class TooManyPixels(DamagedImage):
    """An image or mask that is larger than ``dataset.max_pixels`` allows."""


class ColourMask(DamagedImage):
    """A mask that holds colours where class ids in one channel are needed."""


@dataclass(frozen=True)
class Decoded:
    """A decoded file.

    Attributes:
        path: The file.
        image: Its pixels as they are stored, in one of Pillow's modes.
        format: Its format, as Pillow names it.
        orientation: What the file says of it, as EXIF numbers it; 1 is upright.
        bits: Per sample in the file.
        signed: Whether the samples are signed integers.
        inverted: Whether 0 is white.
        samples: Per pixel in the file.
        exact: Whether the format keeps every value.
    """

    path: Path
    image: Image.Image
    format: str
    orientation: int = 1
    bits: int = 8
    signed: bool = False
    inverted: bool = False
    samples: int = 1
    exact: bool = True


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
            f"the image {path} has 16 bits per channel, but no value above 4095: it would be all but black; save it "
            "with 8 bits, scaled to 0-255"
        )
    if upright and decoded.orientation != 1:
        turned = Image.fromarray(rgb).transpose(_STORED_TO_UPRIGHT[decoded.orientation])
        return np.array(turned)
    return rgb


def read_mask(path: str | Path, *, palette: MaskPalette | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a mask: the class ids as they stand in the file, in the pixels' stored order.

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


def decode(path: str | Path, kind: str = "image", *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Open a file and decode its pixels.

    Args:
        path: The file.
        kind: What the messages call it.
        max_pixels: Larger ones are refused before they are decoded.

    Returns:
        The pixels in their stored order, and what the file says of them.

    Raises:
        DamagedImage: The file is missing, truncated, empty, no plain file, an animation, or of no format that is read.
        TooManyPixels: It is larger than ``max_pixels``.
    """
    try:
        with open_plain(path) as file:
            return _decode(Path(path), kind, file, max_pixels)
    except DamagedImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\d+", str(error))
        raise _too_many(path, kind, pixels.group() if pixels else "too many", max_pixels) from error
    except UserError as error:
        raise DamagedImage(f"the {kind} {error}") from error
    except Exception as error:  # What Pillow's decoders raise on a damaged file is not limited to a few kinds.
        raise DamagedImage(_describe(Path(path), kind, error)) from error


def _decode(path: Path, kind: str, file: BinaryIO, max_pixels: int) -> Decoded:
    header = file.read(64)
    file.seek(0)
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit gives way to the setting.
    with Image.open(file, formats=_FORMATS) as image:
        _require_size(path, kind, image.size, max_pixels)
        format = image.format or ""
        _refuse_several(path, kind, image, file)
        facts = _facts(image, header, file)
        if format in ("JPEG", "MPO"):
            _refuse_many_scans(path, kind, file)
        # In a PNG file it may stand behind the pixels: asking for it would decode them.
        before = None if format == "PNG" else _orientation(image)
        image.load()
        orientation = _orientation(image)
        pixels: Image.Image = image
        if before is not None and before != orientation:
            # Some of Pillow's decoders turn the pixels and then forget the orientation.
            pixels, orientation = image.transpose(_UPRIGHT_TO_STORED[before]), before
        return Decoded(path, pixels, format, orientation, **facts)


def _require_size(path: Path, kind: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise _too_many(path, kind, f"{width} x {height}", max_pixels)
    if width < 1 or height < 1:
        raise DamagedImage(f"the {kind} {path} has no pixels")


def _too_many(path: str | Path, kind: str, pixels: str, max_pixels: int) -> TooManyPixels:
    return TooManyPixels(
        f"the {kind} {path} has {pixels} pixels, more than dataset.max_pixels={max_pixels}: raise it if the {kind} is "
        "really that large (memory grows with it)"
    )


def _refuse_several(path: Path, kind: str, image: Image.Image, file: BinaryIO) -> None:
    """Refuse a file of several images: which one is meant is not known."""
    if image.format == "TIFF":
        with Image.open(file, formats=("TIFF",)) as pages:
            for number in range(1, _MOST_THUMBNAILS + 1):
                try:
                    pages.seek(number)
                except EOFError:
                    return
                except SyntaxError:
                    pass  # A page of a kind that is not read; its tags say what it is for.
                tags = cast(TiffImageFile, pages).tag_v2
                # Smaller versions of the image, and masks of its transparent parts, come with it.
                if not (int(tags.get(_TIFF_PAGE, 0)) & 5 or tags.get(_TIFF_OLD_PAGE) == 2):
                    break
        raise DamagedImage(f"the {kind} {path} has several pages: save the one that is meant as a file of its own")
    # The other images of a phone's MPO file are the same view again.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise DamagedImage(f"the {kind} {path} is animated: save the image that is meant as a file of its own")


def _refuse_many_scans(path: Path, kind: str, file: BinaryIO) -> None:
    place = file.tell()
    file.seek(0)
    scans = _count_scans(file.read())
    file.seek(place)
    if scans > _MOST_SCANS:
        raise DamagedImage(f"the {kind} {path} is a JPEG file of {scans} scans, encoders write about 10: save it anew")


def _count_scans(content: bytes) -> int:
    """How often a JPEG file passes over its pixels; what comes after the image, such as a film, does not count."""
    scans, place, components, progressive = 0, 2, b"", False
    while found := _JPEG_MARKER.search(content, place):
        marker, place = found[0][1], found.end()
        if marker == _JPEG_END:
            break
        if marker in _JPEG_WITHOUT_LENGTH:
            continue
        if marker in _JPEG_FRAMES:
            components, progressive = content[place + 7 : place + 8], marker & 3 == 2
        if marker == _JPEG_SCAN:
            scans += 1
            if not progressive and content[place + 2 : place + 3] == components:
                break  # All is in one scan.
        place += int.from_bytes(content[place : place + 2], "big")
    return scans


def _facts(image: Image.Image, header: bytes, file: BinaryIO) -> dict[str, Any]:
    """What a file says of its samples, which Pillow's mode alone does not tell."""
    if image.format == "PNG":
        if header[12:16] != b"IHDR":
            raise ValueError("it does not begin with its header")
        return {"bits": header[24]}
    if image.format == "BMP":
        bits = int.from_bytes(header[24:26] if header[14] == 12 else header[28:30], "little")
        if (image.mode == "1" and bits != 1) or (image.mode == "L" and bits != 8):
            raise ValueError(f"its {bits} bits per pixel do not agree with its palette; save it as PNG")
        return {"bits": 8}
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        return {
            "bits": max(tags.get(_TIFF_BITS, (1,))),
            "signed": 2 in tags.get(_TIFF_SAMPLE_FORMAT, (1,)),
            "inverted": tags.get(_TIFF_PHOTOMETRIC, 0) == 0,
            "samples": tags.get(_TIFF_SAMPLES, 1),
            "exact": tags.get(_TIFF_COMPRESSION, 1) in _TIFF_LOSSLESS,
        }
    if image.format == "WEBP":
        return {"exact": _is_lossless_webp(file)}
    return {"exact": image.format == "GIF"}


def _is_lossless_webp(file: BinaryIO) -> bool:
    place = file.tell()
    file.seek(12)
    kind = b""
    while kind not in (b"VP8 ", b"VP8L") and len(chunk := file.read(8)) == 8:
        kind, length = chunk[:4], int.from_bytes(chunk[4:], "little")
        file.seek(length + length % 2, 1)
    file.seek(place)
    return kind == b"VP8L"


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # The pixels may be fine where their EXIF block is not.
        return 1
    return orientation if orientation in _STORED_TO_UPRIGHT else 1


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


def _describe(path: Path, kind: str, error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return f"the {kind} {path} is missing"
    if isinstance(error, IsADirectoryError):
        return f"the {kind} {path} is a folder"
    if isinstance(error, PermissionError):
        return f"the {kind} {path} may not be read (permissions)"
    if isinstance(error, MemoryError):
        return f"the {kind} {path} needs more memory than there is"
    try:
        with open_plain(path) as file:
            start = file.read(64)
    except (OSError, ValueError, UserError):
        start = None
    if start == b"":
        return f"the {kind} {path} is an empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        other = next((name for pattern, name in _OTHER_KINDS if start and pattern.match(start)), None)
        if other is not None:
            return f"the {kind} {path} cannot be read: it is {other}; save it as JPEG or PNG"
        if start and _KNOWN_STARTS.match(start):
            return f"the {kind} {path} cannot be read: it is damaged, or of a kind that is not read; save it as PNG"
        return f"the {kind} {path} cannot be read: it is not an image file"
    if _LONG_TEXT.search(str(error)):
        return f"the {kind} {path} cannot be read: its texts or colour profile are too long; save it without them"
    return f"the {kind} {path} cannot be read: {str(error) or type(error).__name__}"
