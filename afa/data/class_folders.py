"""A folder per class: the names of the folders are the classes of the images in them, and no list has to be written."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from afa.data.classes import check_class_names, class_key
from afa.data.files import FilesBelow
from afa.errors import UserError

_SHOWN_CLASSES = 10


def class_of(name: str, split: str | None) -> str | None:
    """The name of the class folder of an image; None if the image is in no class folder, or deeper.

    Args:
        name: Of the image, for example ``train/cat/1``.
        split: The sub-folder in which the class folders lie; None: the image's own folder, wherever that is.
    """
    folders = name.split("/")[:-1]
    if split is None:
        return folders[-1] if folders else None
    above = split.split("/")
    return folders[-1] if folders[:-1] == above else None


def folders_of_split(files: FilesBelow, names: Sequence[str], split: str, *, listed: bool) -> dict[str, str] | None:
    """The class folder of each training image.

    Args:
        files: Those below the folder of the images.
        names: Of the training images.
        split: Name of the training list.
        listed: The names are those of a list, and the images may lie anywhere; else they lie below ``images/SPLIT``.

    Returns:
        Image name -> name of its folder, as it is spelled; None where no image lies in a class folder.

    Raises:
        UserError: It is uncertain what the classes are: an image is beside the class folders or deeper than they do,
            or a class folder holds no image.
    """
    parent = files.folder if listed else files.folder / split
    depth = names[0].count("/") if listed else split.count("/") + 2
    beside = [name for name in names if name.count("/") < depth]
    if len(beside) == len(names) or depth == 0:
        return None
    if beside:
        raise UserError(
            f"{_place(files, beside[0])} is beside the class folders in {parent}: move it into the folder of its "
            "class, or write classes.txt and class_labels.csv (docs/data.md)"
        )
    deeper = next((name for name in names if name.count("/") > depth), None)
    if deeper is not None:
        raise UserError(
            f"{_place(files, deeper)} is deeper than the class folders in {parent}: is its class the outer or the "
            "inner folder? Move the images up into the class folders"
        )
    found = {name: name.split("/")[-2] for name in names}
    if not listed:
        holds = set(found.values())
        with os.scandir(parent) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        empty = [name for name in folders if unicodedata.normalize("NFC", name) not in holds]
        if empty:
            raise UserError(
                f"the class folder {parent / empty[0]} holds no image that is read: put images into it, or delete it"
            )
    return found


def class_names_of(folders: Mapping[str, str], parent: Path) -> dict[str, str]:
    """The classes of the folders, in the order of their ids.

    Args:
        folders: Of :func:`folders_of_split`.
        parent: Where they lie, for the error.

    Returns:
        Folder -> class name, sorted by the class name.

    Raises:
        UserError: As :func:`afa.data.classes.check_class_names`.
    """
    spelled = {folder: " ".join(folder.split()) for folder in set(folders.values())}
    ordered = dict(sorted(spelled.items(), key=lambda item: (item[1], item[0])))
    check_class_names(list(ordered.values()), [f"the folder {parent / folder}" for folder in ordered])
    return ordered


def known_classes(folders: Mapping[str, str], class_names: Sequence[str]) -> dict[str, str]:
    """Image name -> class name, for images whose folder is called as a class; others are left out.

    Args:
        folders: Image name -> name of its folder.
        class_names: K names.
    """
    known = {class_key(name): name for name in class_names}
    return {name: known[class_key(folder)] for name, folder in folders.items() if class_key(folder) in known}


def refuse_twins(classes: Mapping[str, str], files: FilesBelow) -> None:
    """Refuse one image in the folders of two classes: each of its copies would deny the other's class.

    Args:
        classes: Image name -> class name.
        files: Those below the folder of the images.

    Raises:
        UserError: Two files of different classes have the same content.
    """
    by_size: dict[int, list[str]] = {}
    for name in classes:
        path = files.path(name)
        if path is not None and path.is_file():
            by_size.setdefault(path.stat().st_size, []).append(name)
    for names in by_size.values():
        if len({classes[name] for name in names}) == 1:
            continue
        seen: dict[bytes, str] = {}
        for name in names:
            content = hashlib.blake2b((files.folder / files.found[name]).read_bytes()).digest()
            twin = seen.setdefault(content, name)
            if classes[twin] != classes[name]:
                raise UserError(
                    f"{_place(files, name)} and {_place(files, twin)} are the same image in two class folders: keep "
                    "one, or, where it shows both classes, write classes.txt and class_labels.csv "
                    "('afa prepare labels --folders' makes them to start from)"
                )


def described(classes: Mapping[str, str], class_names: Sequence[str], parent: Path) -> str:
    """One line: how many classes and images there are, and which class has which id.

    Args:
        classes: Image name -> class name.
        class_names: K names, in the order of their ids.
        parent: Where the class folders lie.
    """
    counts = dict.fromkeys(class_names, 0)
    for name in classes.values():
        counts[name] += 1
    listed = [f"{number} {name} ({counts[name]})" for number, name in enumerate(class_names, 1)]
    shown = listed if len(listed) <= _SHOWN_CLASSES else [*listed[: _SHOWN_CLASSES - 1], "...", listed[-1]]
    return (
        f"classes from the folders in {parent}: {len(class_names)} classes, {len(classes)} images, by id: "
        f"{', '.join(shown)}"
    )


def _place(files: FilesBelow, name: str) -> Path:
    return files.folder / files.found.get(name, name)
