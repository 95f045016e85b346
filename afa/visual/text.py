"""Text in images: one line that fits, in a font that has its letters.

Pillow's built-in font holds ASCII alone. Text with other letters takes a font of the system that has them (DejaVu,
Noto, Arial, ...). Where there is none, a letter with an accent loses it (``é`` becomes ``e``), and any other character
is written as its number (``U+732B``).
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from PIL import ImageFont

from afa.errors import one_line

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_LONGEST = 300  # characters
_SYSTEM_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf",
    "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "msyh.ttc", "Hiragino Sans GB.ttc",
)  # fmt: skip
_NO_CHARACTER = "\uffff"  # Drawn as what a font draws for characters that it lacks.


def fitted_text(text: str, size: int, width: float) -> tuple[str, Font]:
    """A text as it is drawn, and the font.

    Args:
        text: Any text; line breaks and invisible characters are escaped, see :func:`afa.errors.one_line`.
        size: Height of the font in pixels.
        width: Pixels; what is longer is cut and ends in ``...``.
    """
    text, font = _spelled(unicodedata.normalize("NFC", one_line(text, _LONGEST)), size)
    if font.getlength(text) <= width:
        return text, font
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "...", font


def text_width(text: str, size: int) -> float:
    """Pixels that an uncut text takes."""
    shown, font = fitted_text(text, size, float("inf"))
    return font.getlength(shown)


def _spelled(text: str, size: int) -> tuple[str, Font]:
    """The text without characters that no font has, and the font that has most of it."""
    font = _built_in(size)
    if text.isascii():
        return text, font
    characters = sorted(set(text))
    missing = [character for character in characters if not _has(font, character)]
    for name in _SYSTEM_FONTS:
        if not missing:
            break
        other = _system(name, size)
        lacks = missing if other is None else [character for character in characters if not _has(other, character)]
        if other is not None and len(lacks) < len(missing):
            font, missing = other, lacks
    for character in missing:
        text = text.replace(character, _substitute(character))
    return text, font


def _substitute(character: str) -> str:
    letters = [part for part in unicodedata.normalize("NFKD", character) if not unicodedata.combining(part)]
    if letters and all(letter.isascii() for letter in letters):
        return "".join(letters)
    return f"U+{ord(character):04X}"


@lru_cache(maxsize=64)
def _built_in(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache(maxsize=64)
def _system(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=4096)
def _has(font: Font, character: str) -> bool:
    mask, of_none = font.getmask(character), font.getmask(_NO_CHARACTER)
    return (mask.size, bytes(mask)) != (of_none.size, bytes(of_none))
