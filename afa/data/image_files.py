"""Image and mask files, decoded. Everything that opens an image or a mask opens it here.

The orientation that a file's EXIF or XMP block names is not applied, in any format: masks, boxes and the released
program's data are stored in the raster's own orientation, and turning only the image would tear the pair apart.
``afa check`` reports such images. Only prediction on people's own images asks for them upright.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from afa.config.settings import MAX_PIXELS
from afa.data.files import open_plain
from afa.errors import UserError

# Pillow knows some thirty formats more: for one of them it starts a program, others were seldom tried on damaged files.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF") + (
    ("AVIF",) if importlib.util.find_spec("PIL.AvifImagePlugin") else ()
)
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
STORED_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UPRIGHT_TO_STORED = {
    **STORED_TO_UPRIGHT,
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
    return orientation if orientation in STORED_TO_UPRIGHT else 1


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
