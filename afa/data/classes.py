"""Class names of the known data sets, and reading them from a file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from afa.data.files import read_text
from afa.errors import UserError

# Class 0 is the background everywhere and is not listed: name i (from 0) has the id i + 1.
VOC_CLASS_NAMES: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

COCO_CLASS_NAMES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip

_LONGEST_NAME = 200
CLASS_NAMES_FILE = "classes.txt"
MAX_CLASSES = 254  # masks are 8 bit: 0 is background, 255 is ignore


# How labelling tools call what is no class, with blanks, hyphens and underscores left out.
_NO_CLASSES = ("background", "bg", "ignore", "ignored", "void", "unlabeled", "unlabelled", "dontcare")
_COLOUR_MAP_LINE = re.compile(r".*:\s*\d+\s*,\s*\d+\s*,\s*\d+\s*(:.*)?")
_NUMBERED_LINE = re.compile(r"(\d{1,4})\s*[\s:.,;=)]\s*(.+)")
_NAME_AND_NUMBERS = re.compile(r"(.+?)\s*[\s:,;=(]\s*[\d\s:,;.]+\)?")


def class_key(name: str) -> str:
    """A class name in the one spelling in which names are compared: accents composed, ``_`` and blanks alike."""
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").split())


def is_no_class(name: str) -> bool:
    """Whether a name means the background or ignored pixels, such as ``__ignore__``.

    Names that only contain such a word, as "background music", are classes.
    """
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFC", name).casefold()) in _NO_CLASSES


def check_class_names(names: Sequence[str], places: Sequence[str]) -> None:
    """Refuse names that cannot all be classes, or that a list of them cannot hold.

    Args:
        names: In the order of their ids.
        places: Where each of them stands, for the error.

    Raises:
        UserError: One is the background or the like, is empty or too long, begins with ``#`` or has a line break or
            another control character in it; two are equal when written another way; or there are too many.
    """
    seen: dict[str, int] = {}
    for number, (name, place) in enumerate(zip(names, places, strict=True)):
        if is_no_class(name):
            raise UserError(
                f"{place}: '{name}' is no class: leave it out. Class 0 is always the background; the remaining names "
                "have the ids 1, 2, ... in their order, which masks and labels must keep to"
            )
        key = class_key(name)
        if not key or name.startswith("#") or len(name) > _LONGEST_NAME or not name.isprintable():
            raise UserError(f"{place}: {name!r} cannot be a class name, because a list could not hold it: rename it")
        if key in seen:
            first = seen[key]
            how = "twice" if names[first] == name else f"twice, once as '{names[first]}' ({places[first]})"
            raise UserError(f"{place}: the class '{name}' is named {how}: leave one of the two out or rename it")
        seen[key] = number
    if len(names) > MAX_CLASSES:
        raise UserError(f"{places[-1]}: there are {len(names)} classes; masks of 8 bit hold at most {MAX_CLASSES}")


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read class names, one per line; empty lines and lines that begin with ``#`` are left out.

    Args:
        path: Text file in UTF-8. The first name has the id 1: background is not listed.

    Returns:
        The names in the order of their ids.

    Raises:
        UserError: The file is missing, empty, numbers its lines from 0, maps colours, or its names are refused by
            :func:`check_class_names`.
    """
    if not path.exists():
        raise UserError(f"the class names {path} are missing: write one name per line, without the background")
    text = unicodedata.normalize("NFC", read_text(path, "the file of class names"))
    lines = [(number, " ".join(line.split())) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"{path} holds no class name: write one name per line")
    names, places = tuple(line for _, line in lines), [f"{path}, line {number}" for number, _ in lines]
    numbered = [_NUMBERED_LINE.fullmatch(name) for name in names]
    if len(names) > 1 and all(match and int(match[1]) == number for number, match in enumerate(numbered)):
        raise UserError(
            f"{path} numbers its lines from 0 ('{names[0]}'): write the bare names; ids count from 1, in the order of "
            "the lines, and the background is left out"
        )
    for name, place in zip(names, places, strict=True):
        if len(name) > _LONGEST_NAME:
            raise UserError(f"{place}: '{name}' is too long for a class name: write one name per line")
        if _COLOUR_MAP_LINE.fullmatch(name):
            raise UserError(f"{place}: '{name}' gives a class its colour: write the bare class name, one per line")
        for form in (_NUMBERED_LINE.fullmatch(name), _NAME_AND_NUMBERS.fullmatch(name)):
            if form and is_no_class(form[form.re.groups]):
                raise UserError(f"{place}: '{name}' is no class: write bare class names, without the background")
    check_class_names(names, places)
    return names
