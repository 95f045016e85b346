"""How an image is called: one spelling for lists, label files and the files themselves."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif",
)  # fmt: skip
"""Of the files that are taken for images, in lower case."""
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".webp")
"""Of the files that are taken for masks, in lower case: formats that keep every value."""
OTHER_IMAGE_SUFFIXES = (
    ".apng", ".arw", ".avif", ".avifs", ".cr2", ".cr3", ".dcm", ".dib", ".dng", ".emf", ".eps", ".exr", ".gif", ".hdr",
    ".heic", ".heics", ".heif", ".hif", ".icns", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpf", ".jpx", ".jxl",
    ".jxr", ".mpo", ".nef", ".nrw", ".orf", ".pbm", ".pcx", ".pef", ".pgm", ".pnm", ".ppm", ".ps", ".psd",
    ".qoi", ".raf", ".raw", ".rw2", ".sgi", ".svg", ".tga", ".wbmp", ".wmf", ".xcf",
)  # fmt: skip
"""Files of these kinds are images too. Those that are not read either are passed over, which is said."""


def image_key(name: str) -> str:
    """An image's name in the one spelling in which names are compared.

    Accented letters are composed (Unicode NFC; macOS hands out the other form), ``\\`` becomes ``/``, ``./``, doubled
    slashes, blanks around the name and image suffixes fall away. The key of a key is itself.

    Args:
        name: As a list, a label file or a folder has it, for example ``./train\\a.jpg``.

    Returns:
        The key, for example ``train/a``.
    """
    name = unicodedata.normalize("NFC", name).replace("\\", "/").strip()
    root = "/" if name.startswith("/") else ""
    folder, slash, file = "/".join(part for part in name.split("/") if part not in ("", ".")).rpartition("/")
    while True:
        stem, dot, suffix = file.rpartition(".")
        if not stem or f"{dot}{suffix.lower()}" not in IMAGE_SUFFIXES:
            return f"{root}{folder}{slash}{file}"
        file = stem.rstrip()


def passed_over(files: Sequence[str]) -> str | None:
    """What to say of image files whose kind is not read; None where there are none.

    Args:
        files: Paths of files that were not taken.
    """
    images = [file for file in files if os.path.splitext(file)[1].lower() in OTHER_IMAGE_SUFFIXES]
    if not images:
        return None
    kinds = sorted({os.path.splitext(file)[1].lower() for file in images})
    first = ", ".join(images[:3]) + (", ..." if len(images) > 3 else "")
    return f"{len(images)} image files are skipped, because files of the kind {', '.join(kinds)} are not read: {first}"


def two_of_each(missing: Iterable[str], others: Iterable[str]) -> str:
    """Examples for a message about names that do not match: two missing and two unexpected ones.

    Args:
        missing: Names that were looked for in vain.
        others: Names that are there in their place.

    Returns:
        Begins with a blank; empty where there are no others.
    """
    sides = [", ".join(f"'{name}'" for name in islice(names, 2)) for names in (missing, others)]
    return f" (missing: {sides[0]}; there: {sides[1]})" if all(sides) else ""
