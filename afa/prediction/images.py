"""People's images: finding them, naming what is made of them."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from afa.data.names import IMAGE_SUFFIXES, image_key
from afa.errors import UserError, one_line

_LONGEST_NAME = 251  # bytes: file systems allow 255, four of them are the result's suffix
_NAMED = 3  # files of a kind that are passed over


@dataclass(frozen=True)
class Picture:
    """An image file to predict.

    Attributes:
        path: The file.
        name: Of its results, without suffix; unique within a run, may hold folders.
        key: Its name in a labels file: the path below the folder that was given, as
            :func:`afa.data.names.image_key` spells it.
        folder: The folder that was given; None for a file that was named itself.
    """

    path: Path
    name: str
    key: str
    folder: Path | None


class Found(NamedTuple):
    """What :func:`find_pictures` found.

    Attributes:
        pictures: In the order in which they are to be looked at.
        passed_over: Files of the folders that are no images, or of a kind that is not read, and folders that cannot be
            listed.
    """

    pictures: list[Picture]
    passed_over: list[Path]


def find_pictures(arguments: Sequence[Path], without: Path) -> Found:
    """List the images of files and folders, folders with all their sub-folders, frames in the order of their numbers.

    In a folder, files with an image's suffix count, those without any suffix, and empty ones: an image that was lost
    shall be missed. Hidden files do not count. Two images of one name keep apart: their results get the suffix, the
    folder, or a number in addition.

    Args:
        arguments: Files and folders.
        without: Folder of the results, left out where it lies in one of the folders.

    Raises:
        UserError: An argument does not exist, or is the folder of the results, or there is no image.
    """
    found: list[tuple[Path, Path | None]] = []
    passed_over: list[Path] = []
    seen: set[Path] = set()
    for argument in arguments:
        if argument.resolve() == without.resolve():
            raise UserError(
                f"--output {without} is the folder of the images: next time the results would count as images; take "
                "another folder, such as one within it"
            )
        if argument.is_dir():
            images, others = _walk(argument, without.resolve())
            members: list[tuple[Path, Path | None]] = [(path, argument) for path in images]
            passed_over += others
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
        more = f"; skipped: {describe_files(passed_over)}" if passed_over else ""
        raise UserError(
            f"no image in {', '.join(map(str, arguments))}: {', '.join(IMAGE_SUFFIXES)} files are read{more}"
        )
    places = [path.relative_to(folder) if folder else Path(path.name) for path, folder in found]
    names = _unique_names(found, [_without_suffix(place) for place in places])
    return Found(
        [
            Picture(path, name, image_key(place.as_posix()), folder)
            for (path, folder), name, place in zip(found, names, places, strict=True)
        ],
        passed_over,
    )


def describe_files(paths: Sequence[Path]) -> str:
    """How many files of each suffix there are, with the first ones' names: ``12 .heic (a.heic, b.heic, ...), 1 .txt``.

    Args:
        paths: Of the files, and of folders.
    """
    kinds: dict[str, list[str]] = {}
    for path in paths:
        kinds.setdefault("folders" if path.is_dir() else path.suffix.lower() or "without suffix", []).append(path.name)
    parts = []
    for kind, names in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])):
        more = ", ..." if len(names) > _NAMED else ""
        shown = ", ".join(one_line(name, 60) for name in names[:_NAMED])
        parts.append(f"{len(names)} {one_line(kind, 30)} ({shown}{more})")
    return ", ".join(parts)


def _walk(folder: Path, without: Path) -> tuple[list[Path], list[Path]]:
    """The files below a folder that may be images, and what is passed over; hidden ones do not count."""
    images: list[Path] = []
    others: list[Path] = []
    entered: set[Path] = set()

    def enter(place: Path) -> bool:
        """Whether a folder is to be searched; links may lead to the same one again and again."""
        place = place.resolve()
        new = place != without and place not in entered
        entered.add(place)
        return new

    enter(folder)
    for parent, folders, files in os.walk(
        folder, followlinks=True, onerror=lambda error: others.append(Path(error.filename))
    ):
        folders[:] = [name for name in sorted(folders) if not name.startswith(".") and enter(Path(parent, name))]
        for name in files:
            path = Path(parent, name)
            if not name.startswith("."):
                (images if _may_be_image(path) else others).append(path)

    def place(path: Path) -> list[tuple[int, int, str]]:
        return _numbers_apart(path.relative_to(folder).as_posix())

    return sorted(images, key=place), sorted(others, key=place)


def _may_be_image(path: Path) -> bool:
    if path.suffix.lower() in IMAGE_SUFFIXES or not path.suffix:
        return True
    try:
        status = path.stat()
    except OSError:
        return True  # A broken link is reported when it is read.
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _without_suffix(path: Path) -> str:
    text = path.as_posix()
    return text[: len(text) - len(path.suffix)]


def _numbers_apart(text: str) -> list[tuple[int, int, str]]:
    """A sorting key by which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in parts if part]


def free_name(name: str, taken: set[str]) -> str:
    """A name for a file, with a number behind it where it is taken; it is taken afterwards.

    Names that differ in case or in how accents are composed are the same to some file systems. Names that no file may
    have with a suffix behind them are cut.
    """
    number, candidate = 1, _cut(name)
    while _folded(candidate) in taken:
        number += 1
        candidate = _cut(name, f"_{number}")
    taken.add(_folded(candidate))
    return candidate


def _cut(name: str, end: str = "") -> str:
    """The name with an end, its last part cut so that a file may have it."""
    folder, slash, file = name.rpartition("/")
    while len(os.fsencode(file + end)) > _LONGEST_NAME:
        file = file[:-1]
    return f"{folder}{slash}{file}{end}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _unique_names(found: Sequence[tuple[Path, Path | None]], keys: Sequence[str]) -> list[str]:
    """Names of the results: the keys, made longer only where two would be the same."""
    names = list(keys)

    def lengthen(longer: Sequence[str]) -> None:
        counts = Counter(_folded(name) for name in names)
        for index, name in enumerate(list(names)):
            if counts[_folded(name)] > 1:
                names[index] = longer[index]

    # a.png and a.jpg of one folder differ by their suffix, two a.png by the folder they come from.
    lengthen([f"{key}_{path.suffix[1:].lower()}" for key, (path, _) in zip(keys, found, strict=True)])
    lengthen(
        [f"{(folder or path.parent).resolve().name}/{name}" for name, (path, folder) in zip(names, found, strict=True)]
    )
    taken: set[str] = set()
    return [free_name(name, taken) for name in names]
