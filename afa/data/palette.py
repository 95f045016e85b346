"""The VOC palette, masks as palette images, and the colours of masks that are colour images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from afa.errors import UserError

_BACKGROUND_NAMES = ("background", "_background_", "__background__")
_IGNORE_NAMES = ("ignore", "void")
_COLOUR = r"(?P<red>\d{1,3})SEPARATOR(?P<green>\d{1,3})SEPARATOR(?P<blue>\d{1,3})"
_NAME_FIRST = re.compile(r"(?P<name>.+?)\s*:\s*" + _COLOUR.replace("SEPARATOR", r"\s*,\s*") + r"\s*(:.*)?")
_COLOUR_FIRST = re.compile(_COLOUR.replace("SEPARATOR", r"[\s,]+") + r"[\s,]+(?P<name>.+)")


@dataclass(frozen=True)
class MaskPalette:
    """Which colour of a mask is which class.

    Attributes:
        source: The file that says so, for messages.
        ids: Colour as ``red * 65536 + green * 256 + blue`` and class id, sorted by colour.
    """

    source: str
    ids: tuple[tuple[int, int], ...]

    def class_ids(self, rgb: np.ndarray) -> np.ndarray:
        """The class of each pixel.

        Args:
            rgb: uint8 [H, W, 3].

        Returns:
            int16 [H, W]: 0 to 255, -1 where the colour is not listed.
        """
        known = np.array([colour for colour, _ in self.ids], np.int32)
        ids = np.array([class_id for _, class_id in self.ids], np.int16)
        colours = rgb[..., 0].astype(np.int32) << 16 | rgb[..., 1].astype(np.int32) << 8 | rgb[..., 2]
        places = np.searchsorted(known, colours).clip(max=len(known) - 1)
        return np.where(known[places] == colours, ids[places], np.int16(-1))


def read_palette(path: Path, class_names: Sequence[str], ignore_index: int = 255) -> MaskPalette:
    """Read the colours of the classes, one per line.

    A line is ``name:red,green,blue``, as in the ``labelmap.txt`` of CVAT (what follows another ``:`` does not count),
    or ``red green blue name``, as in the ``label_colors.txt`` of CamVid. The name is a class's name or id,
    ``background``, or ``ignore`` (also ``void``) for pixels of no class. A class may have several colours. Empty lines
    and lines that begin with ``#`` are left out.

    Args:
        path: Text file in UTF-8.
        class_names: K names, without the background.
        ignore_index: Mask value of ignored pixels.

    Raises:
        UserError: The file is missing or malformed, names no class, or gives one colour to two.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the colours in {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read the colours in {path}: it is no text in UTF-8") from error
    known = dict.fromkeys(_IGNORE_NAMES, ignore_index) | dict.fromkeys(_BACKGROUND_NAMES, 0)
    known |= {str(number): number for number in range(len(class_names) + 1)}
    known |= {name: number for number, name in enumerate(class_names, 1)}
    ids: dict[int, int] = {}
    for number, line in enumerate((line.strip() for line in lines), 1):
        if not line or line.startswith("#"):
            continue
        found = _NAME_FIRST.fullmatch(line) or _COLOUR_FIRST.fullmatch(line)
        if found is None:
            raise UserError(f"{path}, line {number}: 'name:red,green,blue' is needed, with 0 to 255 for each colour")
        red, green, blue = (int(found[colour]) for colour in ("red", "green", "blue"))
        if max(red, green, blue) > 255:
            raise UserError(f"{path}, line {number}: the colour {red},{green},{blue} exceeds 255")
        name = found["name"].strip()
        if name not in known:
            raise UserError(
                f"{path}, line {number}: '{name}' is no class; give a name or an id of the classes, 'background' or "
                "'ignore'"
            )
        colour = red << 16 | green << 8 | blue
        if ids.setdefault(colour, known[name]) != known[name]:
            raise UserError(f"{path}, line {number}: another class has the colour {red},{green},{blue}, too")
    if not ids:
        raise UserError(f"{path} lists no colour: write 'name:red,green,blue' in each line")
    return MaskPalette(str(path), tuple(sorted(ids.items())))


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


@cache
def _voc_palette_bytes() -> bytes:
    return voc_palette().tobytes()


def palette_image(mask: np.ndarray) -> Image.Image:
    """A mask as a palette image in VOC's colours.

    Args:
        mask: uint8 [H, W].

    Returns:
        Image of mode ``P`` whose indices are the mask's values.
    """
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    image.putpalette(_voc_palette_bytes())
    return image
