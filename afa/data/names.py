"""How an image is called: one spelling for lists, label files and the files themselves."""

from __future__ import annotations

import unicodedata

from afa.data.images import IMAGE_SUFFIXES


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
