"""COCO 2014: object annotations to masks in VOC style, lists and image-level labels."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from afa.data.classes import CLASS_NAMES_FILE, MAX_CLASSES
from afa.data.files import remove_unfinished, replacing, write_json, write_lines
from afa.data.images import read_mask
from afa.data.labels import IGNORE, write_labels
from afa.data.layout import LISTS
from afa.data.manifest import MANIFEST, UNFINISHED_MANIFEST, Prepared
from afa.data.palette import palette_image
from afa.data.parallel import map_files
from afa.errors import UserError

SPLITS = ("train", "val")
CROWD_CHOICES = ("class", "ignore")


@dataclass(frozen=True)
class _Image:
    """One image's annotations: (class id, whether it is a crowd, COCO's segmentation)."""

    name: str
    height: int
    width: int
    objects: tuple[tuple[int, bool, Any], ...]


def prepare_coco(root: str | Path, *, crowd: str = "class", workers: int = 1) -> Prepared:
    """Build masks, lists, ``class_labels.json``, ``classes.txt``, the links to the images and ``manifest.json``.

    Class ids are contiguous from 1, in the order of COCO's category ids. Started again, it goes on where it was
    interrupted.

    Args:
        root: Folder with ``annotations/instances_{train,val}2014.json`` and the images in ``train2014`` and
            ``val2014`` (or already in ``JPEGImages/train`` and ``JPEGImages/val``).
        crowd: Crowd regions lie beneath all other objects, as their ``class`` or as ``ignore`` (255, no label).
        workers: Processes.

    Returns:
        What was made. Images on which nothing is annotated or visible are left out of the lists.

    Raises:
        UserError: A source is missing or damaged; the message says what to put where.
    """
    root = Path(root)
    contents = {split: _read_annotations(root, split) for split in SPLITS}
    categories = _categories(contents)
    for split in SPLITS:
        _link_images(root, split)
    sizes = {split: _annotation_file(root, split).stat().st_size for split in SPLITS}
    settings = {"made_by": "prepare_coco", "crowd": crowd, "annotation_bytes": sizes}
    _begin(root, settings)

    lists: dict[str, list[str]] = {}
    labels: dict[str, list[str]] = {}
    notes = []
    for split in SPLITS:
        images = _annotated_images(contents[split], categories, f"instances_{split}2014.json")
        folder = root / "SegmentationClass" / split
        remove_unfinished(folder)
        write = partial(_write_mask, folder, crowd)
        found = map_files(write, images, workers=workers, description=f"{split} masks")
        shown = {image.name: class_ids for image, class_ids in zip(images, found, strict=True)}
        hidden = sorted(name for name, class_ids in shown.items() if not class_ids)
        if hidden:
            notes.append(f"{split}: {len(hidden)} annotated images show no object and are left out, first {hidden[0]}")
        lists[split] = [name for name, class_ids in shown.items() if class_ids]
        names = [name for _, name in categories.values()]
        labels |= {name: [names[class_id - 1] for class_id in shown[name]] for name in lists[split]}

    for split, listed in lists.items():
        write_lines(root / LISTS / f"{split}.txt", listed)
    write_labels(root / "class_labels.json", labels)
    write_lines(root / CLASS_NAMES_FILE, [name for _, name in categories.values()])
    counts = {split: len(listed) for split, listed in lists.items()}
    write_json(root / MANIFEST, {**settings, "counts": counts})
    (root / UNFINISHED_MANIFEST).unlink()
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
    layers = []
    for class_id, is_crowd, segmentation in objects:
        value = IGNORE if is_crowd and crowd == "ignore" else class_id
        area = _region(segmentation, height, width)
        layers.append((not is_crowd, -int(area.sum()), value, area))
    layers.sort(key=lambda layer: layer[:2])
    mask = np.zeros((height, width), np.uint8)
    for _, _, value, area in layers:
        mask[area] = value
    return mask


def _region(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons [[x, y, x, y, ...], ...] or a run-length encoding to a bool array [height, width]."""
    if isinstance(segmentation, list):
        # pycocotools takes a list of four numbers for a box: fewer than three corners enclose nothing.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return np.zeros((height, width), bool)
        encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif isinstance(segmentation, dict) and list(segmentation.get("size", ())) == [height, width]:
        encoded = segmentation
        if isinstance(segmentation["counts"], list):
            encoded = coco_mask.frPyObjects(segmentation, height, width)
    else:
        raise ValueError("a segmentation is neither a list of polygons nor an encoding of the image's size")
    return coco_mask.decode(encoded).astype(bool)


def _annotation_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}2014.json"


def _read_annotations(root: Path, split: str) -> dict[str, Any]:
    path = _annotation_file(root, split)
    if not path.is_file():
        raise UserError(
            f"{path} is missing: unpack COCO's annotations_trainval2014.zip in {root}, "
            "and train2014.zip and val2014.zip beside it"
        )
    try:
        with path.open("rb") as file:
            content = json.load(file)
        for part in ("images", "annotations", "categories"):
            if not isinstance(content[part], list):
                raise ValueError(f"'{part}' is no list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no COCO annotation file or damaged ({error}): unpack it again") from error
    return content


def _categories(contents: Mapping[str, dict[str, Any]]) -> dict[int, tuple[int, str]]:
    """COCO's category id -> (contiguous class id from 1, name), in ascending order."""
    tables = [{int(item["id"]): str(item["name"]) for item in content["categories"]} for content in contents.values()]
    if any(table != tables[0] for table in tables):
        raise UserError("the annotation files of train and val list different categories: take both from one release")
    if not 1 <= len(tables[0]) <= MAX_CLASSES:
        raise UserError(f"the annotation files list {len(tables[0])} categories; 1 to {MAX_CLASSES} fit into a mask")
    return {category: (number, tables[0][category]) for number, category in enumerate(sorted(tables[0]), 1)}


def _link_images(root: Path, split: str) -> None:
    """Make ``JPEGImages/SPLIT`` lead to the images, where it does not exist."""
    link = root / "JPEGImages" / split
    if link.is_dir():
        return
    source = root / f"{split}2014"
    if not source.is_dir():
        raise UserError(f"neither {source} nor {link} exists: unpack COCO's {split}2014.zip in {root}")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)  # A link that leads nowhere any more.
    link.symlink_to(Path("..") / source.name, target_is_directory=True)


def _begin(root: Path, settings: Mapping[str, Any]) -> None:
    """Note what is being made, and remove the masks of an earlier preparation with other settings.

    Raises:
        UserError: There are masks that no preparation made.
    """
    marker, manifest = root / UNFINISHED_MANIFEST, root / MANIFEST
    if manifest.is_file():
        os.replace(manifest, marker)  # From now on the data set is not whole.
    try:
        stored = json.loads(marker.read_text(encoding="utf-8"))
        same = all(stored.get(key) == value for key, value in settings.items())
    except (OSError, ValueError, AttributeError):
        same = False
    masks = [path for split in SPLITS for path in (root / "SegmentationClass" / split).glob("*.png")]
    if masks and not marker.is_file():
        raise UserError(f"{masks[0].parent} holds masks that this program did not make: move the folder away")
    if not same:
        for path in masks:
            path.unlink()
        write_json(marker, settings)


def _annotated_images(content: dict[str, Any], categories: Mapping[int, tuple[int, str]], file: str) -> list[_Image]:
    """The images that have annotations, in the order of their names."""
    objects: dict[int, list[tuple[int, bool, Any]]] = {}
    try:
        for annotation in sorted(content["annotations"], key=lambda annotation: annotation["id"]):
            class_id = categories[annotation["category_id"]][0]
            entry = (class_id, bool(annotation.get("iscrowd", 0)), annotation["segmentation"])
            objects.setdefault(annotation["image_id"], []).append(entry)
        images = [
            _Image(
                Path(image["file_name"]).stem, int(image["height"]), int(image["width"]), tuple(objects[image["id"]])
            )
            for image in content["images"]
            if image["id"] in objects
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: an image or annotation lacks what it needs, or has an unknown value: {error}"
        ) from error
    return sorted(images, key=lambda image: image.name)


def _write_mask(folder: Path, crowd: str, image: _Image) -> list[int]:
    """Write one mask unless it is there; returns its classes."""
    path = folder / f"{image.name}.png"
    if path.is_file():
        mask = read_mask(path)
    else:
        try:
            mask = paint(image.height, image.width, image.objects, crowd)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"the annotations of the image '{image.name}' are malformed: {error}") from error
        with replacing(path) as temporary:
            palette_image(mask).save(temporary)
    return [int(value) for value in np.unique(mask) if value not in (0, IGNORE)]
