"""Data sets: training images with image-level labels, and evaluation images with masks."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from afa.config.settings import MAX_PIXELS
from afa.data.files import missing_files, read_json, write_json
from afa.data.images import DamagedImage, read_image, read_mask
from afa.data.labels import IGNORE, classes_in_mask, is_class_id, one_hot, quoted, read_labels
from afa.data.layout import HOW_TO_PREPARE, Layout, find_layout
from afa.data.notices import say
from afa.data.transforms import normalise, training_transform
from afa.errors import UserError

if TYPE_CHECKING:
    from afa.config import AugmentationConfig, DatasetConfig

logger = logging.getLogger(__name__)

_MAX_DAMAGED_IN_A_ROW = 20


class TrainingImages(Dataset[dict[str, Any]]):
    """Randomly cropped training images with image-level labels; no mask is read.

    Indexed by (position, index): the position in the stream of samples seeds the augmentation, the index chooses the
    image, see :class:`afa.data.sampler.StreamSampler`.

    Args:
        config: The data set.
        augmentation: The training transform.
        seed: Seed of the augmentation.

    Raises:
        UserError: Something is missing; the message says what and how to get it. Or no image has any class.
    """

    def __init__(self, config: DatasetConfig, augmentation: AugmentationConfig, *, seed: int) -> None:
        self.layout = find_layout(config)
        self.split = config.train_split
        self.names = self.layout.names(self.split)
        if config.bad_image == "stop":
            _require("images", self.split, [self.layout.image(name, self.split) for name in self.names])
        labels = find_labels(self.layout, self.split, self.names, config.ignore_index, max_pixels=config.max_pixels)
        self.class_labels = torch.from_numpy(np.stack([labels[name] for name in self.names]))  # [images, K]
        self.seed = seed
        self._config = config
        self._augmentation = augmentation
        self._reported: set[str] = set()
        self._say_what_is_given()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """What the training list and its labels hold, as 32 hexadecimal digits.

        It changes with the names, their order, an image's classes and the class names. It does not depend on where
        the data set lies, on the kind of the labels file, or on how a file spells the same name.
        """
        ids = ((row.nonzero().flatten() + 1).tolist() for row in self.class_labels)
        content = [self.layout.class_names, list(zip(self.names, ids, strict=True))]
        # Lone surrogates (file names that are not UTF-8) have no bytes in UTF-8: json writes them in ASCII.
        return hashlib.blake2b(json.dumps(content).encode("ascii"), digest_size=16).hexdigest()

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Give the sample at a position of the stream.

        Returns:
            ``image`` float32 [3, S, S] normalised, ``class_labels`` float32 [K], ``valid_box`` int64 [4] (y0, y1, x0,
            x1) and ``name``.

        Raises:
            DamagedImage: The image cannot be read and bad images stop the run.
        """
        position, index = key
        image, index = self._read(index)
        augmentation = self._augmentation
        crop, valid_box = training_transform(
            image,
            np.random.default_rng((self.seed, position)),
            crop_size=augmentation.crop_size,
            scale_range=(augmentation.scale_min, augmentation.scale_max),
            mirror_probability=augmentation.mirror_probability,
            resampling=augmentation.resampling,
        )
        return {
            "image": normalise(crop, self._config.image_mean, self._config.image_std),
            "class_labels": self.class_labels[index],
            "valid_box": torch.from_numpy(valid_box),
            "name": self.names[index],
        }

    def _say_what_is_given(self) -> None:
        """Log which classes the images have, and refuse images of which nothing can be learnt."""
        layout, split = self.layout, f"'{self.split}'"
        _say_notes(layout)
        counts = [int(count) for count in self.class_labels.sum(dim=0).tolist()]
        shown = [count for count in counts if count]
        if not shown:
            origin = f"the masks in {layout.split_masks(self.split)}" if layout.labels is None else str(layout.labels)
            values = f" (they show nothing but 0 and {self._config.ignore_index})" if layout.labels is None else ""
            raise UserError(
                f"no image of {split} has a class, so there is nothing to learn: give the classes, ids 1 to "
                f"{layout.num_classes}, in {origin}{values}"
            )
        say(
            f"training on {len(self.names)} images of {split}: {len(shown)} of {len(counts)} classes, each in "
            f"{min(shown)} to {max(shown)} images",
            logging.INFO,
        )
        absent = [name for name, count in zip(layout.class_names, counts, strict=True) if not count]
        if absent:
            say(f"no image of {split} shows {quoted(absent)}: what no image shows cannot be learnt")
        without = [self.names[index] for index in (~self.class_labels.bool().any(dim=1)).nonzero().flatten().tolist()]
        if without:
            say(f"{len(without)} of the {len(self.names)} images of {split} have no class, the first is '{without[0]}'")
        if len(self.names) > 1 and bool((self.class_labels == self.class_labels[0]).all()):
            say(f"all images of {split} have the same classes: nothing tells images with a class from those without")

    def _read(self, index: int) -> tuple[np.ndarray, int]:
        """Read an image; where it is damaged and may be skipped, the next one of the list that can be read."""
        for _ in range(min(_MAX_DAMAGED_IN_A_ROW, len(self.names))):
            name = self.names[index]
            try:
                path = self.layout.image(name, self.split)
                return read_image(path, max_pixels=self._config.max_pixels), index
            except DamagedImage as error:
                if self._config.bad_image == "stop":
                    raise DamagedImage(
                        f"{error} (tools/check_data.py finds all; dataset.bad_image=skip goes on)"
                    ) from error
                if name not in self._reported:
                    self._reported.add(name)
                    logger.warning("%s; another image takes its place", error)
                index = (index + 1) % len(self.names)
        raise DamagedImage(f"too many damaged images in {self.layout.images}: run tools/check_data.py")


class EvaluationImages(Dataset[dict[str, Any]]):
    """Whole images with their masks.

    Args:
        config: The data set.
        split: Name of the list; the validation list by default.
        limit: At most this many images: the first ones of the list.

    Raises:
        UserError: Something is missing; the message says what and how to get it.
    """

    def __init__(self, config: DatasetConfig, *, split: str | None = None, limit: int | None = None) -> None:
        self.layout = find_layout(config)
        self.split = split or config.val_split
        self.names = self.layout.names(self.split)[:limit]
        _say_notes(self.layout)
        self._config = config
        known = read_labels(self.layout.labels, self.layout.class_names) if self.layout.labels else {}
        self._labels = {name: known[name] for name in self.names if name in known}
        if not self.layout.has_masks(self.split):
            folder = self.layout.split_masks(self.split)
            raise UserError(
                f"evaluation needs masks, but {folder} has none of '{self.split}': {HOW_TO_PREPARE[self.layout.type]}"
            )
        if config.bad_image == "stop":
            _require("images", self.split, [self.layout.image(name, self.split) for name in self.names])
            _require("masks", self.split, [self.layout.mask(name, self.split) for name in self.names])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Give an image.

        Returns:
            ``image`` float32 [3, H, W] normalised, ``image_uint8`` uint8 [H, W, 3] RGB, ``label`` int64 [H, W] (0
            background, 1 to K, 255 ignore, whatever the files' ignore value is), ``class_labels`` float32 [K] (of the
            labels file, else of the mask) and ``name``.

        Raises:
            UserError: Image or mask cannot be read, or do not fit together or to the classes.
        """
        name = self.names[index]
        image = read_image(self.layout.image(name, self.split), max_pixels=self._config.max_pixels)
        path = self.layout.mask(name, self.split)
        mask = read_mask(path, palette=self.layout.palette, max_pixels=self._config.max_pixels)
        if mask.shape != image.shape[:2]:
            raise DamagedImage(
                f"the mask {path} has {mask.shape[1]} x {mask.shape[0]} pixels, its image "
                f"{image.shape[1]} x {image.shape[0]}: run tools/check_data.py"
            )
        classes = classes_in_mask(mask, self.layout.num_classes, self._config.ignore_index, path=path)
        if self._config.ignore_index != IGNORE:
            mask = np.where(mask == self._config.ignore_index, np.uint8(IGNORE), mask)
        labels = self._labels.get(name)
        if labels is None:
            labels = one_hot(classes, self.layout.num_classes)
        return {
            "image": normalise(image, self._config.image_mean, self._config.image_std),
            "image_uint8": torch.from_numpy(image),
            "label": torch.from_numpy(mask.astype(np.int64)),
            "class_labels": torch.from_numpy(labels),
            "name": name,
        }


def _say_notes(layout: Layout) -> None:
    for note in layout.notes:
        say(note)
    if passed_over := layout.passed_over():
        say(f"{layout.images}: {passed_over}")


def _require(kind: str, split: str, paths: Sequence[Path]) -> None:
    """Refuse files that are not there before hours of training stand behind them."""
    missing = missing_files(paths)
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(paths)} {kind} of '{split}' are missing, the first is {missing[0]}: "
            "tools/check_data.py lists all; dataset.bad_image=skip goes on without"
        )


def find_labels(
    layout: Layout,
    split: str,
    names: Sequence[str],
    ignore_index: int = IGNORE,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Mapping[str, np.ndarray]:
    """Image-level labels of a split: from the labels file, or, where the data set has none, from its masks.

    Labels from masks are kept in ``ROOT/.class_labels_from_masks/SPLIT.json`` for the next time, where the folder may
    be written to, until a mask's size or time of change is another.

    Args:
        layout: The data set.
        split: Name of the list.
        names: Its image names.
        ignore_index: Mask value that counts for nothing.
        max_pixels: Larger masks are refused.

    Returns:
        Image name -> float32 [K], for every name.

    Raises:
        UserError: There is neither a labels file nor masks, or an image is in neither.
    """
    if layout.labels is not None:
        labels = read_labels(layout.labels, layout.class_names)
        missing = [name for name in names if name not in labels]
        if missing:
            raise UserError(
                f"the labels file {layout.labels} has no labels for {len(missing)} of the {len(names)} images of "
                f"'{split}', the first is '{missing[0]}': add them, or make a new file with tools/make_labels.py"
            )
        return labels
    if not layout.has_masks(split):
        folder = layout.split_masks(split)
        raise UserError(
            f"{layout.root} has no image-level labels (class_labels.json, .csv, .txt or cls_labels_onehot.npy) and no "
            f"masks in {folder} to take them from: {HOW_TO_PREPARE[layout.type]}"
        )
    return _labels_from_masks(layout, split, names, ignore_index, max_pixels)


def _labels_from_masks(
    layout: Layout, split: str, names: Sequence[str], ignore_index: int, max_pixels: int
) -> Mapping[str, np.ndarray]:
    cache = layout.root / ".class_labels_from_masks" / f"{split}.json"
    folder = layout.split_masks(split)
    made_from = {
        "folder": str(folder.relative_to(layout.root) if folder.is_relative_to(layout.root) else folder.resolve()),
        "files": _fingerprint([layout.mask(name, split) for name in names]),
        "ignore_index": ignore_index,
        "num_classes": layout.num_classes,
        "colours": None if layout.palette is None else [list(pair) for pair in layout.palette.ids],
    }
    table = _cached(cache, made_from, layout.num_classes)
    if any(name not in table for name in names):
        logger.warning("no labels file in %s: taking the image-level labels of '%s' from its masks", layout.root, split)

        def read(name: str) -> list[int]:
            path = layout.mask(name, split)
            mask = read_mask(path, palette=layout.palette, max_pixels=max_pixels)
            return classes_in_mask(mask, layout.num_classes, ignore_index, path=path)

        with ThreadPoolExecutor() as pool:
            table = dict(zip(names, pool.map(read, names), strict=True))
        try:
            write_json(cache, {"made_from": made_from, "labels": table})
        except (OSError, UserError):
            logger.warning("%s cannot be written: the labels are taken from the masks again next time", cache)
    return {name: one_hot(table[name], layout.num_classes) for name in names}


def _cached(cache: Path, made_from: Mapping[str, Any], num_classes: int) -> dict[str, list[int]]:
    """Image name -> class ids of an earlier start; empty where there are none, or none of the same masks."""
    if not cache.exists():
        return {}
    try:
        content = read_json(cache)
        if not isinstance(content, dict) or content.get("made_from") != made_from:
            return {}
        table = content.get("labels")
        if not isinstance(table, dict) or not all(
            isinstance(ids, list) and all(is_class_id(class_id, num_classes) for class_id in ids)
            for ids in table.values()
        ):
            raise UserError(f"{cache} holds something else than class ids from 1 to {num_classes}")
    except UserError as error:
        logger.warning("%s: the labels are taken from the masks again", error)
        return {}
    return table


def _fingerprint(paths: Sequence[Path]) -> str:
    """Changes with the names, sizes and times of change of files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue  # reported by whoever reads it
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
