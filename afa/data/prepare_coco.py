"""COCO 2014: object annotations to masks in VOC style, lists and image-level labels."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from afa.data.classes import CLASS_NAMES_FILE, MAX_CLASSES
from afa.data.coco_regions import MAX_PIXELS, area, decode, encode
from afa.data.files import missing_files, read_json, remove_unfinished
from afa.data.images import DamagedImage, read_mask
from afa.data.labels import IGNORE
from afa.data.layout import LISTS
from afa.data.manifest import Prepared
from afa.data.names import image_key
from afa.data.own_files import (
    Preparation,
    check_inside,
    check_size,
    labels_text,
    leads_out,
    lines_text,
    own_masks,
    pixel_sum,
    place_mask,
    read_note,
    source_sum,
)
from afa.data.parallel import map_files
from afa.errors import UserError

SPLITS = ("train", "val")
_MADE_BY = "prepare_coco"
_LARGEST_ANNOTATIONS = 2**32  # bytes; those of COCO 2014 have 0.4 GB
_VERSION = 1  # of the painting: changes with what annotations give


@dataclass(frozen=True)
class _Image:
    """One image's annotations: (class id, whether it is a crowd, COCO's segmentation), and their ids."""

    name: str
    height: int
    width: int
    objects: tuple[tuple[int, bool, Any], ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class _Split:
    """One annotation file, checked."""

    file: Path
    categories: Mapping[int, str]
    images: tuple[_Image, ...]
    notes: tuple[str, ...]


def prepare_coco(root: str | Path, *, crowd: str = "class", workers: int = 1) -> Prepared:
    """Build masks, lists, ``class_labels.json``, ``classes.txt``, the links to the images and ``manifest.json``.

    Class ids are contiguous from 1, in the order of COCO's category ids. Started again, it goes on where it was
    interrupted; a mask of which annotations or settings have changed is made anew.

    Nothing that this command did not make is written over, and nothing is written through a link that leaves the
    folder.

    Args:
        root: Folder with ``annotations/instances_{train,val}2014.json`` and the images in ``train2014`` and
            ``val2014`` (or already in ``JPEGImages/train`` and ``JPEGImages/val``).
        crowd: Crowd regions lie beneath all other objects, as their ``class`` or as ``ignore`` (255, no label).
        workers: Processes.

    Returns:
        What was made. Images on which nothing is annotated or visible are left out of the lists.

    Raises:
        UserError: A source is missing, malformed or damaged, or something that this command did not make is in the
            way; the message says which and where.
    """
    root = Path(root)
    splits = {split: _read_split(_annotation_file(root, split)) for split in SPLITS}
    categories = splits["train"].categories
    if categories != splits["val"].categories:
        raise UserError("the annotation files of train and val list different categories: take both from one release")
    twice = {image.name for image in splits["train"].images} & {image.name for image in splits["val"].images}
    if twice:
        raise UserError(f"the image '{min(twice)}' is in both annotation files, of train and of val")
    preparation = Preparation(root, _MADE_BY, {"crowd": crowd})
    for split in SPLITS:
        _link_images(root, split)
        _check_images_are_there(root, split, splits[split])
    stale = [path for split in SPLITS for path in _stale_masks(root, split, splits[split])]
    check_inside(root, root / LISTS)

    preparation.begin()
    for path in stale:
        path.unlink()
    names = [categories[category] for category in sorted(categories)]
    lists: dict[str, list[str]] = {}
    labels: dict[str, list[str]] = {}
    notes: list[str] = []
    for split, content in splits.items():
        if not leads_out(root, _mask_folder(root, split)):
            remove_unfinished(_mask_folder(root, split))
        write = partial(_write_mask, root, split, content.file, crowd)
        found = map_files(write, content.images, workers=workers, description=f"{split} masks")
        shown = {image.name: class_ids for image, class_ids in zip(content.images, found, strict=True)}
        hidden = sorted(name for name, class_ids in shown.items() if not class_ids)
        notes += content.notes
        if hidden:
            notes.append(f"{split}: {len(hidden)} annotated images show no object and are left out, first {hidden[0]}")
        lists[split] = [name for name, class_ids in shown.items() if class_ids]
        if not lists[split]:
            raise UserError(f"{content.file}: none of the {len(shown)} annotated images shows an object")
        labels |= {name: [names[class_id - 1] for class_id in shown[name]] for name in lists[split]}

    preparation.write(
        {
            **{f"{LISTS}/{split}.txt": lines_text(listed) for split, listed in lists.items()},
            "class_labels.json": labels_text(labels),
            CLASS_NAMES_FILE: lines_text(names),
        }
    )
    counts = {split: len(listed) for split, listed in lists.items()}
    preparation.finish(counts)
    return Prepared(root, counts, tuple(notes))


def paint(height: int, width: int, objects: Sequence[tuple[int, bool, Any]], crowd: str = "class") -> np.ndarray:
    """Paint an image's annotations: crowds first, then objects from the largest to the smallest.

    Args:
        height: Of the image.
        width: Of the image.
        objects: Class id, whether it is a crowd, and the segmentation: polygons, or a run-length encoding.
        crowd: ``class`` or ``ignore``.

    Returns:
        uint8 [height, width]; 0 background, 255 ignore. Of equally large objects the later one lies on top.

    Raises:
        ValueError: A segmentation is malformed.
    """
    regions = [(class_id, is_crowd, encode(found, height, width)) for class_id, is_crowd, found in objects]
    return _paint_regions(height, width, regions, crowd)


def _paint_regions(height: int, width: int, regions: Sequence[tuple[int, bool, Any]], crowd: str) -> np.ndarray:
    # Decoded one by one: many objects of a large image would not fit into memory together.
    layers = sorted(regions, key=lambda region: (not region[1], -area(region[2])))
    mask = np.zeros((height, width), np.uint8)
    for class_id, is_crowd, region in layers:
        mask[decode(region)] = IGNORE if is_crowd and crowd == "ignore" else class_id
    return mask


def _annotation_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}2014.json"


def _mask_folder(root: Path, split: str) -> Path:
    return root / "SegmentationClass" / split


def _read_split(path: Path) -> _Split:
    """Read and check an annotation file, all but the segmentations.

    Raises:
        UserError: It is missing, damaged, or one of its entries is malformed; the message names the entry.
    """
    if not path.exists():
        raise UserError(
            f"{path} is missing: unpack COCO's annotations_trainval2014.zip in {path.parent.parent}, "
            "and train2014.zip and val2014.zip beside it"
        )
    content = read_json(path, "the annotations", largest=_LARGEST_ANNOTATIONS)
    if not isinstance(content, dict):
        raise UserError(f"{path} is no COCO annotation file: it is no object with images, annotations and categories")
    for part in ("images", "annotations", "categories"):
        if not isinstance(content.get(part), list):
            raise UserError(f"{path} is no COCO annotation file: '{part}' is missing or no list")
    categories = _categories(path, content["categories"])
    class_ids = {category: number for number, category in enumerate(sorted(categories), 1)}
    sizes = _image_sizes(path, content["images"])
    objects = _objects(path, content["annotations"], class_ids)
    images = [
        _Image(name, height, width, tuple(found for _, found in entries), tuple(number for number, _ in entries))
        for image_id, (name, height, width) in sizes.items()
        if (entries := objects.pop(image_id, None))
    ]
    if not images:
        raise UserError(
            f"{path}: none of its {len(content['annotations'])} annotations belongs to one of its {len(sizes)} images"
        )
    notes: list[str] = []
    if objects:
        strays = sum(map(len, objects.values()))
        notes.append(
            f"{path.name}: {strays} annotations belong to no image of the file and are left out, the first image_id "
            f"is {next(iter(objects))}"
        )
    return _Split(path, categories, tuple(sorted(images, key=lambda image: image.name)), tuple(notes))


def _categories(path: Path, entries: list[Any]) -> dict[int, str]:
    """COCO's category id -> name."""
    if not 1 <= len(entries) <= MAX_CLASSES:
        raise UserError(f"{path} lists {len(entries)} categories; 1 to {MAX_CLASSES} fit into a mask")
    categories: dict[int, str] = {}
    for place, entry in enumerate(entries, 1):
        where = f"{path}, category {place}"
        number, name = _whole(entry, "id", where), _text(entry, "name", where)
        if number in categories or name in categories.values():
            raise UserError(f"{where}: the id {number} or the name '{name}' is there twice")
        if name.startswith("#") or name.strip("_ ").casefold() == "background":
            raise UserError(f"{where}: '{name}' is no name of a class; the background is not listed")
        categories[number] = name
    return categories


def _image_sizes(path: Path, entries: list[Any]) -> dict[int, tuple[str, int, int]]:
    """Image id -> name, height, width."""
    images: dict[int, tuple[str, int, int]] = {}
    for place, entry in enumerate(entries, 1):
        where = f"{path}, image {place}"
        number, file = _whole(entry, "id", where), _text(entry, "file_name", where)
        where = f"{path}, image {number} ('{file}')"
        height, width = _whole(entry, "height", where), _whole(entry, "width", where)
        name, suffix = os.path.splitext(file)
        if number in images:
            raise UserError(f"{where}: this image id is there twice")
        if suffix != ".jpg" or "/" in file or image_key(name) != name:
            raise UserError(f"{where}: the file name must be that of a .jpg file, without folders")
        if height < 1 or width < 1 or height * width > MAX_PIXELS:
            raise UserError(f"{where}: {height} x {width} pixels (height x width) is no size of an image")
        images[number] = (name, height, width)
    names = Counter(name for name, _, _ in images.values())
    if len(names) < len(images):
        raise UserError(f"{path}: the file name '{names.most_common(1)[0][0]}.jpg' is there twice")
    return images


def _objects(
    path: Path, entries: list[Any], class_ids: Mapping[int, int]
) -> dict[int, list[tuple[int, tuple[int, bool, Any]]]]:
    """Image id -> (annotation id, (class id, whether it is a crowd, segmentation)), in the order of annotation ids."""
    objects: dict[int, tuple[int, tuple[int, bool, Any]]] = {}
    for place, entry in enumerate(entries, 1):
        number = _whole(entry, "id", f"{path}, annotation {place}")
        image_id = _whole(entry, "image_id", f"{path}, annotation {number}")
        where = f"{path}, image {image_id}, annotation {number}"
        category = _whole(entry, "category_id", where)
        if number in objects:
            raise UserError(f"{where}: this annotation id is there twice")
        if category not in class_ids:
            raise UserError(f"{where}: its category_id {category} is none of the file's categories")
        # Some programs write true and false.
        crowd = entry.get("iscrowd", 0)
        if type(crowd) not in (int, bool) or crowd not in (0, 1):
            raise UserError(f"{where}: its iscrowd is {_shown(crowd)}; 0 and 1 are known")
        if not isinstance(entry.get("segmentation"), (list, dict)):
            raise UserError(f"{where}: its segmentation is missing or neither polygons nor an encoding")
        objects[number] = (image_id, (class_ids[category], bool(crowd), entry["segmentation"]))
    by_image: dict[int, list[tuple[int, tuple[int, bool, Any]]]] = {}
    for number in sorted(objects):
        image_id, found = objects[number]
        by_image.setdefault(image_id, []).append((number, found))
    return by_image


def _whole(entry: Any, key: str, where: str) -> int:
    """A whole number of an entry. Numbers as text, fractions and true or false are refused, not converted."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not int:
        raise UserError(f"{where}: its '{key}' is {_shown(value)}; a whole number is needed")
    return value


def _text(entry: Any, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str) or not value or not value.isprintable() or value != value.strip():
        raise UserError(f"{where}: its '{key}' is {_shown(value)}; a name is needed, without blanks at its ends")
    return value


def _shown(value: Any) -> str:
    """A value for a message: short, with control characters escaped."""
    if value is None:
        return "missing"
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    return f"{json.dumps(value)[:60]}"


def _link_images(root: Path, split: str) -> None:
    """Make ``JPEGImages/SPLIT`` lead to the images, where it does not exist."""
    link, target = root / "JPEGImages" / split, Path("..") / f"{split}2014"
    if link.is_dir():
        return
    source = root / f"{split}2014"
    if link.is_symlink() and Path(os.readlink(link)) != target:
        raise UserError(
            f"{link} leads to {os.readlink(link)}, which is not there now: bring it back, or delete the link"
        )
    if link.exists():
        raise UserError(f"{link} is a file, where a folder of images or a link to one is needed: move it away")
    if not source.is_dir():
        raise UserError(f"neither {source} nor {link} exists: unpack COCO's {split}2014.zip in {root}")
    check_inside(root, link.parent)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)  # Our own, which led nowhere for a while.
    link.symlink_to(target, target_is_directory=True)


def _check_images_are_there(root: Path, split: str, content: _Split) -> None:
    folder = root / "JPEGImages" / split
    missing = missing_files([folder / f"{image.name}.jpg" for image in content.images])
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} images that {content.file.name} annotates are missing, the first is "
            f"{missing[0].name}: unpack the whole of COCO's {split}2014.zip"
        )


def _stale_masks(root: Path, split: str, content: _Split) -> list[Path]:
    """Masks of an earlier start whose image is not annotated any more.

    Raises:
        UserError: There are such masks that this command did not make.
    """
    folder = _mask_folder(root, split)
    wanted = {image.name for image in content.images}
    others = [path for path in folder.glob("*.png") if path.stem not in wanted and not path.name.startswith(".")]
    own = own_masks(root, others, _MADE_BY)
    foreign = sorted(set(others) - set(own))
    if foreign:
        raise UserError(
            f"{folder} holds masks that this program did not make and that belong to no annotated image, the first is "
            f"{foreign[0].name}: move the folder away"
        )
    return own


def _write_mask(root: Path, split: str, file: Path, crowd: str, image: _Image) -> list[int]:
    """Write one mask unless it is there; returns its classes."""
    size, where = (image.height, image.width), f"{file}, image '{image.name}'"
    check_size(root / "JPEGImages" / split / f"{image.name}.jpg", size, lambda: where)
    path = _mask_folder(root, split) / f"{image.name}.png"
    source = source_sum(json.dumps([_VERSION, crowd, size, image.objects]).encode())
    mask = _made_before(path, source)
    if mask is None:
        regions = []
        for number, (class_id, is_crowd, segmentation) in zip(image.ids, image.objects, strict=True):
            try:
                regions.append((class_id, is_crowd, encode(segmentation, *size)))
            except ValueError as error:
                raise UserError(f"{where}, annotation {number}: {error}") from error
        mask = _paint_regions(*size, regions, crowd)
        place_mask(root, path, mask, made_by=_MADE_BY, source=source)
    return [int(value) for value in np.unique(mask) if value not in (0, IGNORE)]


def _made_before(path: Path, source: str) -> np.ndarray | None:
    """The mask in a file, if this command made it from the same annotations and nobody changed it since."""
    note = read_note(path)
    if note is None or (note.made_by, note.source) != (_MADE_BY, source):
        return None
    try:
        mask = read_mask(path)
    except DamagedImage:
        return None
    return mask if pixel_sum(mask) == note.pixels else None
