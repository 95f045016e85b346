"""Data sets: training images with image-level labels, and evaluation images with masks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from afa.config.settings import MAX_PIXELS
from afa.data.class_folders import described
from afa.data.files import beside_missing, missing_files
from afa.data.images import DamagedImage, read_image, read_mask
from afa.data.inputs import Inputs, is_named
from afa.data.labels import classes_in_mask, one_hot, quoted
from afa.data.labels_from_masks import labels_from_masks
from afa.data.layout import HOW_TO_PREPARE, Layout, find_layout
from afa.data.names import two_of_each
from afa.data.notices import say
from afa.data.pair_lists import read_pairs
from afa.data.samples import EvaluationSample, Sample
from afa.errors import UserError
from afa.maps import IGNORE

if TYPE_CHECKING:
    from afa.config import DatasetConfig

logger = logging.getLogger(__name__)

_MAX_DAMAGED_IN_A_ROW = 20

SETTINGS_OF_PLACES = (
    "root", "name_list_dir", "mask_dir", "mask_palette", "labels", "class_names", "pixel_labels", "maps", "saliency",
    "pairs", "bad_image", "max_pixels", "read_timeout",
)  # fmt: skip
"""Settings that say where things lie, and how they are read. :attr:`Split.fingerprint` tells whether what lies there is
the same."""

Transform = Callable[[Sample, np.random.Generator], dict[str, torch.Tensor]]
"""A sample and the only source of randomness -> what a training step needs of it; can be pickled."""


class Split:
    """The images of one list, read one by one with what belongs to them.

    Args:
        config: The data set.
        split: Name of the list.
        inputs: What images must bring, see :class:`afa.data.inputs.Inputs`; ``class_labels`` among them means that
            labels are required. Without, they are read where the data set has a labels file.
        limit: At most this many images: the first ones of the list.

    Raises:
        UserError: Something is missing; the message says what and how to get it.
    """

    def __init__(
        self, config: DatasetConfig, split: str, *, inputs: Sequence[str] = (), limit: int | None = None
    ) -> None:
        self.config, self.split = config, split
        self.layout = find_layout(config)
        self.names = self.layout.names(split)[:limit]
        _say_notes(self.layout)
        if config.bad_image == "stop":
            _require("images", split, [self.layout.image(name, split) for name in self.names])
        self.inputs = Inputs(config, inputs, self.layout.class_names)
        self.class_labels = self._labels(required="class_labels" in inputs)
        self.inputs.require(self.names, split, self.class_labels)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, name: str) -> Sample:
        """An image of the list.

        Raises:
            DamagedImage: It, or what belongs to it, cannot be read.
        """
        image = read_image(self.layout.image(name, self.split), max_pixels=self.config.max_pixels)
        labels = self.class_labels.get(name)
        return Sample(name, image, labels, self.inputs.read(name, image.shape[:2], labels))

    def inputs_there(self, wanted: Sequence[str]) -> tuple[list[str], list[str]]:
        """Which inputs the settings name and all images have; class labels are no concern of this function.

        Args:
            wanted: See :class:`afa.data.inputs.Inputs`.

        Returns:
            Those, and why the others that the settings name cannot be had, a line each.
        """
        there, reasons = [], []
        for name in wanted:
            if not is_named(self.config, name):
                continue
            try:
                Inputs(self.config, [name], self.layout.class_names).require(self.names, self.split, self.class_labels)
            except UserError as error:
                reasons.append(f"{name}: {error}")
            else:
                there.append(name)
        return there, reasons

    @property
    def fingerprint(self) -> str:
        """What the list and its labels hold, as 32 hexadecimal digits.

        It changes with the names, their order, an image's classes, the class names and the inputs. It does not depend
        on where the data set lies, on the kind of the labels file, or on how a file spells the same name.
        """
        ids = [
            (name, [int(index) + 1 for index in np.flatnonzero(self.class_labels[name])])
            if name in self.class_labels
            else (name, None)
            for name in self.names
        ]
        content = [self.layout.class_names, ids, *([dict(self.inputs.facts)] if self.inputs.facts else [])]
        # Lone surrogates (file names that are not UTF-8) have no bytes in UTF-8: json writes them in ASCII.
        return hashlib.blake2b(json.dumps(content).encode("ascii"), digest_size=16).hexdigest()

    def _labels(self, *, required: bool) -> Mapping[str, np.ndarray]:
        if required:
            return find_labels(
                self.layout,
                self.split,
                self.names,
                self.config.ignore_index,
                max_pixels=self.config.max_pixels,
            )
        known = self.layout.told_labels(self.split, self.names)
        if known is None:
            return {}
        return {name: known[name] for name in self.names if name in known}


class TrainingImages(Dataset[dict[str, Any]]):
    """Training samples of a method: what its transform makes of each image.

    Indexed by (position, index): the position in the stream of samples seeds the transform, the index chooses the
    image, see :class:`afa.data.sampler.StreamSampler`.

    Args:
        config: The data set.
        transform: The method's.
        needs: What it needs of an image, see :class:`Split`.
        seed: Seed of the transform.
        sampler: ``pairs``: partners with a class in common lie side by side in a batch.

    Attributes:
        images: Those of the training list.
        pairs: Of the list that ``dataset.pairs`` names, see :func:`afa.data.pair_lists.read_pairs`; None: partners are
            drawn, or there are none.

    Raises:
        UserError: Something is missing; the message says what and how to get it. Or no image has any class.
    """

    def __init__(
        self,
        config: DatasetConfig,
        transform: Transform,
        *,
        needs: Sequence[str],
        seed: int,
        sampler: Literal["images", "pairs"] = "images",
    ) -> None:
        self.images = Split(config, config.train_split, inputs=needs)
        self.seed, self.sampler = seed, sampler
        self._transform = transform
        self._reported: set[str] = set()
        self._classes_needed = "class_labels" in needs
        if self._classes_needed:
            self._refuse_without_classes()
        self.pairs = self._listed_pairs()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_labels(self) -> np.ndarray:
        """float32 [images, K].

        Raises:
            ValueError: The method does not need them, so images without any may be among these.
        """
        if not self._classes_needed:
            raise ValueError("class_labels are not among the method's needs")
        return np.stack([self.images.class_labels[name] for name in self.images.names])

    @property
    def fingerprint(self) -> str:
        """That of :attr:`Split.fingerprint`; where a list of pairs is given, it changes with them, too."""
        if self.pairs is None:
            return self.images.fingerprint
        content = self.images.fingerprint.encode("ascii") + self.pairs.astype("<i8").tobytes()
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Give the sample at a position of the stream.

        Returns:
            What the transform gives, and ``name``.

        Raises:
            DamagedImage: The image cannot be read and bad images stop the run.
        """
        position, index = key
        sample = self._read(index)
        return {**self._transform(sample, np.random.default_rng((self.seed, position))), "name": sample.name}

    def say_what_is_given(self) -> None:
        """Log which classes the images have, where the method needs classes: before the first step, once a run."""
        if not self._classes_needed:
            return
        layout, names, split = self.images.layout, self.images.names, f"'{self.images.split}'"
        if layout.class_folders is not None:
            classes = layout.classes_of_folders(self.images.split, names) or {}
            say(described(classes, layout.class_names, layout.class_folders_parent), logging.INFO)
        class_labels = self.class_labels
        counts = [int(count) for count in class_labels.sum(axis=0).tolist()]
        shown = [count for count in counts if count]
        say(
            f"training on {len(names)} images of {split}: {len(shown)} of {len(counts)} classes, each in "
            f"{min(shown)} to {max(shown)} images",
            logging.INFO,
        )
        absent = [name for name, count in zip(layout.class_names, counts, strict=True) if not count]
        if absent:
            say(f"no image of {split} shows {quoted(absent)}: such classes cannot be learnt")
        without = [names[index] for index in np.flatnonzero(~class_labels.any(axis=1))]
        if without:
            say(f"{len(without)} of the {len(names)} images of {split} have no class, the first is '{without[0]}'")
        if len(names) > 1 and bool((class_labels == class_labels[0]).all()):
            say(f"all images of {split} have the same classes: training needs images with and without a class")

    def _listed_pairs(self) -> np.ndarray | None:
        path, layout = self.images.config.pairs, self.images.layout
        if path is None:
            return None
        if self.sampler != "pairs":
            raise UserError("dataset.pairs is set, but this method trains on single images: leave it out")
        return read_pairs(Path(path), self.images.names, self.class_labels, layout.class_names, self.images.split)

    def _refuse_without_classes(self) -> None:
        if self.class_labels.any():
            return
        layout, split = self.images.layout, self.images.split
        origin, values = str(layout.labels), ""
        if layout.labels is None:
            origin = f"the masks in {layout.split_masks(split)}"
            values = f" (they show nothing but 0 and {self.images.config.ignore_index})"
        raise UserError(
            f"no image of '{split}' has a class, so there is nothing to learn: give the classes, ids 1 to "
            f"{layout.num_classes}, in {origin}{values}"
        )

    def _read(self, index: int) -> Sample:
        """Read an image; where it is damaged and may be skipped, the next one of the list that can be read."""
        names = self.images.names
        for _ in range(min(_MAX_DAMAGED_IN_A_ROW, len(names))):
            name = names[index]
            try:
                return self.images.read(name)
            except DamagedImage as error:
                if self.images.config.bad_image == "stop":
                    raise DamagedImage(f"{error} ('afa check' finds all; dataset.bad_image=skip goes on)") from error
                if name not in self._reported:
                    self._reported.add(name)
                    logger.warning("%s; another image takes its place", error)
                index = (index + 1) % len(names)
        raise DamagedImage(f"too many damaged images in {self.images.layout.images}: run 'afa check'")


class SplitImages(Dataset[Sample]):
    """Whole images of a list, as they are.

    Args:
        images: The list.
    """

    def __init__(self, images: Split) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Give an image.

        Raises:
            DamagedImage: It cannot be read.
        """
        return self.images.read(self.images.names[index])


class EvaluationImages(Dataset[EvaluationSample]):
    """Whole images with their masks.

    Args:
        config: The data set.
        split: Name of the list; the validation list by default.
        inputs: What the outputs to be scored need, see :class:`Split`.
        limit: At most this many images: the first ones of the list.

    Raises:
        UserError: Something is missing; the message says what and how to get it.
    """

    def __init__(
        self,
        config: DatasetConfig,
        *,
        split: str | None = None,
        inputs: Sequence[str] = (),
        limit: int | None = None,
    ) -> None:
        wanted = [name for name in inputs if name != "class_labels"]  # those of the masks do, where there is no file
        self.images = Split(config, split or config.val_split, inputs=wanted, limit=limit)
        layout, split = self.images.layout, self.images.split
        if not layout.has_masks(split):
            raise UserError(
                f"evaluation needs masks, but {layout.split_masks(split)} has none of '{split}': "
                f"{HOW_TO_PREPARE[layout.type]}"
            )
        if config.bad_image == "stop":
            _require("masks", split, [layout.mask(name, split) for name in self.images.names])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> EvaluationSample:
        """Give an image.

        Returns:
            The sample, with the class labels of the labels file, else of the mask; and its label, where 255 is ignored,
            whatever the files' ignore value is.

        Raises:
            UserError: Image or mask cannot be read, or do not fit together or to the classes.
        """
        return read_with_truth(self.images, self.images.names[index])


def read_with_truth(images: Split, name: str) -> EvaluationSample:
    """An image of a list, and its mask.

    Args:
        images: The list.
        name: Of the image.

    Returns:
        As :meth:`EvaluationImages.__getitem__` gives it.

    Raises:
        UserError: Image or mask cannot be read, or do not fit together or to the classes.
    """
    sample = images.read(name)
    path = images.layout.mask(sample.name, images.split)
    mask = read_mask(path, palette=images.layout.palette, max_pixels=images.config.max_pixels)
    if mask.shape != sample.image.shape[:2]:
        raise DamagedImage(
            f"the mask {path} has {mask.shape[1]} x {mask.shape[0]} pixels, its image "
            f"{sample.image.shape[1]} x {sample.image.shape[0]}: run 'afa check'"
        )
    ignore_index, num_classes = images.config.ignore_index, images.layout.num_classes
    classes = classes_in_mask(mask, num_classes, ignore_index, path=path)
    if ignore_index != IGNORE:
        mask = np.where(mask == ignore_index, np.uint8(IGNORE), mask)
    if sample.class_labels is None:
        sample = dataclasses.replace(sample, class_labels=one_hot(classes, num_classes))
    return EvaluationSample(sample, torch.from_numpy(mask.astype(np.int64)))


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
            f"{len(missing)} of the {len(paths)} {kind} of '{split}' are missing, the first is {missing[0]}"
            f"{beside_missing(missing, paths)}: "
            "afa check lists all; dataset.bad_image=skip continues without them"
        )


def find_labels(
    layout: Layout,
    split: str,
    names: Sequence[str],
    ignore_index: int = IGNORE,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Mapping[str, np.ndarray]:
    """Image-level labels of a split: from the labels file or class folders, or, where there are none, from its masks.

    Labels from masks are kept in ``ROOT/.class_labels_from_masks/SPLIT.json`` for the next time, where the folder may
    be written to, until a mask's size or time of change is another.

    Args:
        layout: The data set.
        split: Name of the list.
        names: Its image names.
        ignore_index: Mask value of ignored pixels.
        max_pixels: Larger masks are refused.

    Returns:
        Image name -> float32 [K], for every name.

    Raises:
        UserError: There is neither a labels file nor masks, or an image is in neither.
    """
    labels = layout.told_labels(split, names)
    if labels is not None:
        missing = [name for name in names if name not in labels]
        if missing:
            wanted = set(names)
            compared = two_of_each(missing, (name for name in labels if name not in wanted))
            raise UserError(
                f"the labels file {layout.labels} has no labels for {len(missing)} of the {len(names)} images of "
                f"'{split}', the first is '{missing[0]}'{compared}: "
                "add them, or make a new file with 'afa prepare labels'"
            )
        return labels
    if not layout.has_masks(split):
        folder = layout.split_masks(split)
        raise UserError(
            f"{layout.root} has no image-level labels (class_labels.json, .csv, .txt or cls_labels_onehot.npy, or "
            f"folders called as the classes) and no masks in {folder} to take them from: {HOW_TO_PREPARE[layout.type]}"
        )
    return labels_from_masks(layout, split, names, ignore_index, max_pixels)
