"""Image-level labels for own data: from masks, or from the names of the images' folders."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from afa.config.settings import MAX_PIXELS
from afa.data.classes import CLASS_NAMES_FILE, check_class_names, class_key, read_class_names
from afa.data.files import FilesBelow, files_below, write_lines
from afa.data.images import read_mask
from afa.data.labels import classes_in_mask, quoted, write_labels
from afa.data.names import IMAGE_SUFFIXES, MASK_SUFFIXES, passed_over
from afa.data.notices import say
from afa.data.palette import MaskPalette, read_palette
from afa.data.parallel import map_files
from afa.errors import UserError

OUTPUT_SUFFIXES = (".json", ".csv")


def labels_from_masks(
    masks: str | Path,
    *,
    class_names: Sequence[str],
    ignore_index: int = 255,
    palette: MaskPalette | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int = 1,
) -> dict[str, list[str]]:
    """The classes that each mask of a folder shows.

    Args:
        masks: Folder of masks; sub-folders are searched too.
        class_names: K names, without the background.
        ignore_index: Mask value of ignored pixels.
        palette: For masks that are colour images: which colour is which class.
        max_pixels: Larger masks are refused.
        workers: Processes.

    Returns:
        Image name (the mask's path below the folder, without suffix) -> class names, sorted by image name.

    Raises:
        UserError: There is no mask, two have one name, one is damaged or holds a value that is no class, or none shows
            a class.
    """
    masks = Path(masks)
    if not 0 <= ignore_index <= 255 or 1 <= ignore_index <= len(class_names):
        raise UserError(
            f"the value {ignore_index} cannot mean ignore: take 0, or one from {len(class_names) + 1} to 255"
        )
    files = _files_below(masks, MASK_SUFFIXES)
    if not files.found:
        others = f"; other files lie there, the first is {files.others[0]}" if files.others else ""
        raise UserError(f"there is no mask ({', '.join(MASK_SUFFIXES)}) in {masks}{others}")
    names = sorted(files.found)
    count = partial(_mask_classes, len(class_names), ignore_index, palette, max_pixels)
    found = map_files(count, [masks / files.found[name] for name in names], workers=workers, description="masks")
    labels = {name: [class_names[number - 1] for number in ids] for name, ids in zip(names, found, strict=True)}
    shown = {class_name for classes in labels.values() for class_name in classes}
    if not shown:
        raise UserError(
            f"none of the {len(names)} masks in {masks} shows a class: they hold nothing but 0 (background) and "
            f"{ignore_index} (ignore); write the ids 1 to {len(class_names)} for the classes"
        )
    absent = [class_name for class_name in class_names if class_name not in shown]
    if absent:
        say(f"no mask in {masks} shows {quoted(absent)}")
    empty = [name for name, classes in labels.items() if not classes]
    if empty:
        say(f"{len(empty)} of the {len(names)} masks in {masks} show no class, the first is that of '{empty[0]}'")
    return labels


def labels_from_folders(images: str | Path) -> dict[str, list[str]]:
    """The name of each image's folder, as its only class.

    Args:
        images: Folder with one sub-folder per class; the sub-folders may lie deeper (``train/cat/1.jpg``).

    Returns:
        Image name (its path below the folder, without suffix) -> its class, sorted by image name.

    Raises:
        UserError: There is no image, one lies in no sub-folder, two have one name, or the name of a folder cannot be
            that of a class.
    """
    images = Path(images)
    files = _files_below(images, IMAGE_SUFFIXES)
    note = passed_over(files.others)
    if note:
        say(f"{images}: {note}")
    if not files.found:
        raise UserError(f"there is no image in {images}: {', '.join(IMAGE_SUFFIXES)} files are read")
    labels: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for name in sorted(files.found):
        path = images / files.found[name]
        if path.parent == images:
            raise UserError(f"{path} is in no sub-folder: its class is unknown; move it into a folder named after it")
        class_name = unicodedata.normalize("NFC", path.parent.name)
        labels[name] = [class_name]
        places.setdefault(class_name, str(path.parent))
    shown = sorted(places)
    check_class_names(shown, [f"the folder {places[class_name]}" for class_name in shown])
    return labels


def write_label_file(
    output: str | Path,
    *,
    masks: str | Path | None = None,
    folders: str | Path | None = None,
    class_names: str | Path | None = None,
    ignore_index: int = 255,
    mask_palette: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int = 1,
) -> tuple[int, tuple[str, ...]]:
    """Write a labels file from masks or from folder names; from folders, the class names beside it too.

    Args:
        output: ``.json`` or ``.csv`` file.
        masks: Folder of masks; or
        folders: folder of images in sub-folders named after the classes.
        class_names: File of the class names; ``classes.txt`` beside the output by default.
        ignore_index: Mask value of ignored pixels.
        mask_palette: For masks that are colour images: file with the classes' colours, see
            :func:`afa.data.palette.read_palette`.
        max_pixels: Larger masks are refused.
        workers: Processes.

    Returns:
        Number of labelled images, and the class names.

    Raises:
        UserError: Something is missing or does not fit; nothing is written then.
    """
    output = Path(output)
    names_file = output.parent / CLASS_NAMES_FILE if class_names is None else Path(class_names)
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"{output}: give a name that ends in {' or '.join(OUTPUT_SUFFIXES)}")
    if masks is not None:
        names = read_class_names(names_file)
        palette = None if mask_palette is None else read_palette(Path(mask_palette), names, ignore_index)
        labels = labels_from_masks(
            masks,
            class_names=names,
            ignore_index=ignore_index,
            palette=palette,
            max_pixels=max_pixels,
            workers=workers,
        )
    elif folders is not None:
        labels = labels_from_folders(folders)
        shown = sorted({name for classes in labels.values() for name in classes})
        names = read_class_names(names_file) if names_file.exists() else tuple(shown)
        known = {class_key(name): name for name in names}
        unknown = [name for name in shown if class_key(name) not in known]
        if unknown:
            raise UserError(
                f"the folder name '{unknown[0]}' is no class of {names_file}: add it there, or delete the file"
            )
        labels = {image: [known[class_key(name)] for name in classes] for image, classes in labels.items()}
    else:
        raise UserError("say what the labels come from: a folder of masks, or a folder of class folders")
    write_labels(output, labels)
    if not names_file.exists():
        write_lines(names_file, list(names))
    return len(labels), names


def _files_below(folder: Path, suffixes: Sequence[str]) -> FilesBelow:
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist")
    return files_below(folder, suffixes).checked()


def _mask_classes(
    num_classes: int, ignore_index: int, palette: MaskPalette | None, max_pixels: int, path: Path
) -> list[int]:
    mask = read_mask(path, palette=palette, max_pixels=max_pixels)
    return classes_in_mask(mask, num_classes, ignore_index, path=path)
