"""People's pictures: finding them, reading them, naming what is made of them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afa.data.images import EXIF_ORIENTATION, IMAGE_SUFFIXES, open_quietly, read_image
from afa.errors import UserError


@dataclass(frozen=True)
class Picture:
    """A file to look at.

    Attributes:
        path: The file.
        name: Of its results, without suffix; unique within a run, may hold folders.
        key: Its name in a labels file: the path below the folder that was given, without suffix.
        folder: The folder that was given; None for a file that was named itself.
    """

    path: Path
    name: str
    key: str
    folder: Path | None


def find_pictures(arguments: Sequence[Path], without: Path) -> list[Picture]:
    """List the pictures of files and folders, folders with all their sub-folders, frames in the order of their numbers.

    In a folder, files with an image's suffix count, those without any suffix, and empty ones: a picture that was lost
    shall be missed. Hidden files do not count. Two pictures of one name keep apart: their results get the suffix, the
    folder, or a number in addition.

    Args:
        arguments: Files and folders.
        without: Folder of the results, left out where it lies in one of the folders.

    Raises:
        UserError: An argument does not exist, or is the folder of the results, or there is no picture.
    """
    found: list[tuple[Path, Path | None]] = []
    seen: set[Path] = set()
    for argument in arguments:
        if argument.resolve() == without.resolve():
            raise UserError(
                f"--out {without} is the folder of the pictures: next time the results would count as pictures; take "
                "another folder, such as one within it"
            )
        if argument.is_dir():
            members: list[tuple[Path, Path | None]] = [(path, argument) for path in _walk(argument, without.resolve())]
        elif argument.exists():
            members = [(argument, None)]
        else:
            raise UserError(f"{argument} does not exist: name image files, or folders of images")
        for path, folder in members:
            place = path.resolve()
            if place not in seen:
                seen.add(place)
                found.append((path, folder))
    if not found:
        raise UserError(f"no image in {', '.join(map(str, arguments))}: {', '.join(IMAGE_SUFFIXES)} files are read")
    keys = [
        (path.relative_to(folder) if folder else Path(path.name)).with_suffix("").as_posix() for path, folder in found
    ]
    names = _unique_names(found, keys)
    return [Picture(path, name, key, folder) for (path, folder), name, key in zip(found, names, keys, strict=True)]


def read_picture(path: Path, *, upright: bool = True) -> np.ndarray:
    """Read a picture as 8-bit RGB.

    Args:
        path: Image file.
        upright: Turn it as its EXIF orientation says, as viewers show it.

    Returns:
        uint8 [H, W, 3].

    Raises:
        DamagedImage: The file cannot be read.
    """
    image = read_image(path)
    if not upright:
        return image
    try:
        with open_quietly(path) as file:
            orientation = file.getexif().get(EXIF_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError):
        return image  # The pixels are fine, only their EXIF block is not.
    return np.ascontiguousarray(_turn(image, orientation))


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    if orientation >= 5:  # 5 to 8: rows and columns are exchanged first
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


def _walk(folder: Path, without: Path) -> list[Path]:
    paths = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(parent, name).resolve() != without]
        for name in files:
            path = Path(parent, name)
            if not name.startswith(".") and _may_be_image(path):
                paths.append(path)
    return sorted(paths, key=lambda path: _numbers_apart(path.relative_to(folder).as_posix()))


def _may_be_image(path: Path) -> bool:
    if path.suffix.lower() in IMAGE_SUFFIXES or not path.suffix:
        return True
    try:
        return path.stat().st_size == 0
    except OSError:
        return True  # A broken link is reported when it is read.


def _numbers_apart(text: str) -> list[tuple[int, int, str]]:
    """A sorting key by which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in parts if part]


def free_name(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken (also without regard to case); it is taken afterwards."""
    number, candidate = 1, name
    while candidate.lower() in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate.lower())
    return candidate


def _unique_names(found: Sequence[tuple[Path, Path | None]], keys: Sequence[str]) -> list[str]:
    """Names of the results: the keys, made longer only where two would be the same (also without regard to case)."""
    names = list(keys)

    def lengthen(longer: Sequence[str]) -> None:
        counts = Counter(name.lower() for name in names)
        for index, name in enumerate(list(names)):
            if counts[name.lower()] > 1:
                names[index] = longer[index]

    # a.png and a.jpg of one folder differ by their suffix, two a.png by the folder they come from.
    lengthen([f"{key}_{path.suffix[1:].lower()}" for key, (path, _) in zip(keys, found, strict=True)])
    lengthen(
        [f"{(folder or path.parent).resolve().name}/{name}" for name, (path, folder) in zip(names, found, strict=True)]
    )
    taken: set[str] = set()
    return [free_name(name, taken) for name in names]
