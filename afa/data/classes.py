"""Class names of the known data sets, and reading them from a file."""

from __future__ import annotations

import unicodedata
from pathlib import Path

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

CLASS_NAMES_FILE = "classes.txt"
MAX_CLASSES = 254  # masks are 8 bit: 0 is background, 255 is ignore


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read class names, one per line; empty lines and lines that begin with ``#`` are left out.

    Args:
        path: Text file in UTF-8. The first name has the id 1: background is not listed.

    Returns:
        The names in the order of their ids.

    Raises:
        UserError: The file is missing, empty, or names a class twice or the background.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the class names in {path} ({_reason(error)}): write one name per line") from error
    lines = [unicodedata.normalize("NFC", line) for line in lines]
    names = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not names:
        raise UserError(f"{path} holds no class name: write one name per line")
    if names[0].lower() == "background":
        raise UserError(f"{path} begins with 'background': leave it out, class 0 is always the background")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path} names the class '{twice}' twice")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{path} names {len(names)} classes; masks of 8 bit hold at most {MAX_CLASSES}")
    return names


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "not UTF-8 text"
