"""Image-level labels for own data: from masks, or from the names of the images' folders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from afa.data.classes import CLASS_NAMES_FILE, MAX_CLASSES, read_class_names
from afa.data.files import find_files, write_lines
from afa.data.images import IMAGE_SUFFIXES, read_mask
from afa.data.labels import classes_in_mask, write_labels
from afa.data.parallel import map_files
from afa.errors import UserError

OUTPUT_SUFFIXES = (".json", ".csv")


def labels_from_masks(
    masks: str | Path, *, class_names: Sequence[str], ignore_index: int = 255, workers: int = 1
) -> dict[str, list[str]]:
    """The classes that each mask of a folder shows.

    Args:
        masks: Folder of PNG masks; sub-folders are searched too.
        class_names: K names, background left out.
        ignore_index: Mask value that counts for nothing.
        workers: Processes.

    Returns:
        Image name (the mask's path below the folder, without suffix) -> class names, sorted by image name.

    Raises:
        UserError: There is no mask, or one is damaged or holds a value that is no class.
    """
    masks = Path(masks)
    names = _files_below(masks, (".png",))
    if not names:
        raise UserError(f"there is no PNG mask in {masks}")
    count = partial(_mask_classes, len(class_names), ignore_index)
    found = map_files(count, list(names.values()), workers=workers, description="masks")
    return {name: [class_names[number - 1] for number in ids] for name, ids in zip(names, found, strict=True)}


def labels_from_folders(images: str | Path) -> dict[str, list[str]]:
    """The name of the folder in which each image lies, as its only class.

    Args:
        images: Folder with one sub-folder per class; the sub-folders may lie deeper (``train/cat/1.jpg``).

    Returns:
        Image name (its path below the folder, without suffix) -> its class, sorted by image name.

    Raises:
        UserError: There is no image, or one lies in no sub-folder.
    """
    images = Path(images)
    names = _files_below(images, IMAGE_SUFFIXES)
    if not names:
        raise UserError(f"there is no image in {images}")
    for name, path in names.items():
        if "/" not in name:
            raise UserError(f"{path} lies in no sub-folder: its class is unknown; move it into a folder named after it")
    return {name: [path.parent.name] for name, path in names.items()}


def write_label_file(
    output: str | Path,
    *,
    masks: str | Path | None = None,
    folders: str | Path | None = None,
    class_names: str | Path | None = None,
    ignore_index: int = 255,
    workers: int = 1,
) -> tuple[int, tuple[str, ...]]:
    """Write a labels file from masks or from folder names; from folders, the class names beside it too.

    Args:
        output: ``.json`` or ``.csv`` file.
        masks: Folder of masks; or
        folders: folder of images in sub-folders named after the classes.
        class_names: File of the class names; ``classes.txt`` beside the output by default.
        ignore_index: Mask value that counts for nothing.
        workers: Processes.

    Returns:
        Number of labelled images, and the class names.

    Raises:
        UserError: Something is missing or does not fit; nothing is written then.
    """
    output = Path(output)
    names_file = output.parent / CLASS_NAMES_FILE if class_names is None else Path(class_names)
    if output.suffix not in OUTPUT_SUFFIXES:
        raise UserError(f"{output}: give a name that ends in {' or '.join(OUTPUT_SUFFIXES)}")
    if masks is not None:
        names = read_class_names(names_file)
        labels = labels_from_masks(masks, class_names=names, ignore_index=ignore_index, workers=workers)
    elif folders is not None:
        labels = labels_from_folders(folders)
        shown = sorted({name for classes in labels.values() for name in classes})
        if len(shown) > MAX_CLASSES:
            raise UserError(f"{folders} has {len(shown)} class folders; at most {MAX_CLASSES} classes are possible")
        names = read_class_names(names_file) if names_file.is_file() else tuple(shown)
        unknown = [name for name in shown if name not in names]
        if unknown:
            raise UserError(
                f"the folder name '{unknown[0]}' is no class of {names_file}: add it there, or delete the file"
            )
        if not names_file.is_file():
            write_lines(names_file, list(names))
    else:
        raise UserError("say what the labels come from: a folder of masks, or a folder of class folders")
    write_labels(output, labels)
    return len(labels), names


def _files_below(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist")
    return dict(sorted(find_files(folder, suffixes).items()))


def _mask_classes(num_classes: int, ignore_index: int, path: Path) -> list[int]:
    return classes_in_mask(read_mask(path), num_classes, ignore_index, path=path)
