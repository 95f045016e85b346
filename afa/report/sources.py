"""What a report is about: a trained method that predicts images, or a folder of results."""

from __future__ import annotations

import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from afa.config import DatasetConfig
from afa.data.dataset import Split, read_with_truth
from afa.data.files import missing_files, read_json
from afa.data.images import DamagedImage
from afa.data.inputs import CLASS_LABELS
from afa.data.labels import classes_in_mask
from afa.data.layout import find_layout
from afa.data.map_files import LABEL_FACTS
from afa.data.map_folders import MapFolder
from afa.data.samples import Sample
from afa.errors import UserError, one_line
from afa.maps import Maps
from afa.methods.base import Output, named_outputs, possible_outputs
from afa.ops.cam import long_side_size
from afa.ops.random_walk import PairAffinity, TokenAffinity
from afa.prediction.model import Model, scored_class_names
from afa.prediction.predictor import DETAIL_LONG_SIDE, shrunk_inputs

logger = logging.getLogger(__name__)

_LONGEST_TITLE = 60


@dataclass(frozen=True)
class Look:
    """One output for one image.

    Attributes:
        label: Class ids, int64 [H, W] of the image's size, 255 open; None where no label can be made.
        maps: Scores [1, c, h, w]; None where there are none.
        logits: Whether the softmax of the scores gives probabilities.
        affinity: Of the image's grid; None where the output is none.
    """

    label: Tensor | None = None
    maps: Maps | None = None
    logits: bool = False
    affinity: TokenAffinity | PairAffinity | None = None


@dataclass(frozen=True)
class Seen:
    """An image and the outputs of a source for it.

    Attributes:
        sample: The image.
        truth: int64 [H, W], 255 ignored; None where there is no mask.
        class_ids: Of the classes that count, given or predicted.
        looks: Output's name -> what it says.
    """

    sample: Sample
    truth: Tensor | None
    class_ids: tuple[int, ...]
    looks: Mapping[str, Look]


class Source(ABC):
    """Something that says something about the images of a list.

    Attributes:
        where: The run, the file of weights or the folder.
        title: A short name for it.
        class_names: K names, without the background.
        images: The list.
        names: Of those images that it says something about.
        outputs: What it says about them.
        main: The output that images are sorted by: the last one that is scored and gives a label; None: there is none.
        notes: What the reader should know.
        shrunk: How many images were too large for a network to be seen as they are.
    """

    where: Path
    class_names: tuple[str, ...]
    images: Split
    names: Sequence[str]
    outputs: tuple[Output, ...]

    def __init__(self, where: Path) -> None:
        self.where = where
        self.title = one_line(where.resolve().name or str(where), _LONGEST_TITLE)
        self.notes: list[str] = []
        self.shrunk = 0

    @property
    def main(self) -> Output | None:
        with_label = [output for output in self.outputs if output.kind != "affinity"]
        scored = [output for output in with_label if output.scored]
        return next(reversed(scored or with_label), None)

    def seen(self, names: Sequence[str]) -> Iterator[Seen]:
        """Predict or read images, one after the other. Damaged ones are skipped if the data set allows it.

        Raises:
            DamagedImage: An image, its mask or what belongs to it cannot be read.
        """
        for name in names:
            try:
                sample, truth = self._read(name)
                looks, class_ids = self._looks(sample)
            except DamagedImage as error:
                if self.images.config.bad_image == "stop":
                    raise DamagedImage(
                        f"{error} ('afa check' finds all; dataset.bad_image=skip continues without them)"
                    ) from error
                self.notes.append(f"left out: {error}")
                logger.warning("%s; it is left out", error)
                continue
            yield Seen(sample, truth, class_ids, looks)

    @abstractmethod
    def _looks(self, sample: Sample) -> tuple[dict[str, Look], tuple[int, ...]]:
        """What there is to say about an image, and the classes that count."""

    def _open(self, dataset: DatasetConfig, split: str, inputs: Sequence[str], limit: int | None) -> None:
        """Find the list's images, and which of them have a true mask."""
        self.images = Split(dataset, split, inputs=inputs, limit=limit)
        self.names = self.images.names
        layout = self.images.layout
        self._with_mask = layout.names_with_mask(self.names, split)
        lost = len(self.names) - len(self._with_mask) if layout.has_masks(split) else 0
        if lost:
            self.notes.append(
                f"{lost} of the {len(self.names)} images have no true mask in {layout.split_masks(split)}: they "
                "are shown, but not scored"
            )

    def _read(self, name: str) -> tuple[Sample, Tensor | None]:
        if name not in self._with_mask:
            return self.images.read(name), None
        found = read_with_truth(self.images, name)
        return found.sample, found.label


class RunSource(Source):
    """A trained method.

    Args:
        model: Looks at the images.
        where: What the user named.
        split: List of images; None: the validation list.
        outputs: Names of those that are wanted; None: all that the data set allows.
        affinity: Whether outputs of that kind are wanted.
        limit: The first images of the list only.

    Raises:
        UserError: The data set is missing, is of other classes, or there is no such output.
    """

    def __init__(
        self,
        model: Model,
        where: Path,
        *,
        split: str | None,
        outputs: Sequence[str] | None,
        affinity: bool,
        limit: int | None,
    ) -> None:
        super().__init__(where)
        self.model = model
        dataset, method = model.config.dataset, model.method
        self.class_names = scored_class_names(model)
        split = split or dataset.val_split
        offered = [output for output in method.outputs if affinity or output.kind != "affinity"]
        if outputs is None:
            wanted = sorted({name for output in offered for name in output.inputs})
            inputs, reasons = Split(dataset, split, limit=limit).inputs_there(wanted)
            there = possible_outputs(method, [CLASS_LABELS, *inputs])
            self.outputs = tuple(output for output in offered if output in there)
            self.notes += reasons
            self.notes += [
                f"the output '{output.title}' is left out: it needs {', '.join(output.inputs)}"
                for output in offered
                if output not in self.outputs
            ]
            if not self.outputs:
                raise UserError(f"nothing can be shown of {where}: {self.notes[-1]}, set the folders in dataset.*")
        else:
            self.outputs = tuple(named_outputs(offered, outputs, "--outputs"))
        self._open(dataset, split, sorted({name for output in self.outputs for name in output.inputs}), limit)

    @torch.no_grad()
    def _looks(self, sample: Sample) -> tuple[dict[str, Look], tuple[int, ...]]:
        size = (sample.image.shape[0], sample.image.shape[1])
        wanted = [output.name for output in self.outputs]
        shown = self._bounded(sample, wanted)
        (found,) = self.model.method.predict([shown], wanted, self.model.protocol)
        looks = {}
        for output in self.outputs:
            said = found.outputs[output.name]
            if isinstance(said, TokenAffinity | PairAffinity):
                looks[output.name] = Look(affinity=said)
                continue
            maps = said.to(_CPU) if isinstance(said, Maps) else None
            looks[output.name] = Look(output.label(said, size).cpu(), maps, output.logits)
        return looks, tuple(found.class_ids)

    def _bounded(self, sample: Sample, wanted: Sequence[str]) -> Sample:
        """The sample, shrunk where its image is larger than memory allows; others are seen as evaluation sees them."""
        size = (sample.image.shape[0], sample.image.shape[1])
        if max(size) <= DETAIL_LONG_SIDE:
            return sample
        self.shrunk += 1
        height, width = long_side_size(size, DETAIL_LONG_SIDE)
        most = self.model.method.most_pixels(wanted) or height * width
        long_side = int(max(height, width) * min(1.0, (most / (height * width)) ** 0.5))
        return dataclasses.replace(
            sample,
            image=cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_AREA),
            inputs=shrunk_inputs(sample.inputs, size, (height, width)),
            network_size=long_side_size((height, width), long_side),
        )


class FolderSource(Source):
    """A label folder, a folder of masks, or one of ``.npy`` dictionaries of maps.

    Args:
        where: The folder.
        dataset: The images that it is about.
        split: List of images; None: that of the label folder, else the validation list.
        outputs: Names of those that are wanted; None: all.
        limit: The first images of the list only.

    Attributes:
        facts: What ``label.json`` says; empty without one.

    Raises:
        UserError: The folder or the data set is missing, is of other classes, or has nothing for these images.
    """

    def __init__(
        self,
        where: Path,
        dataset: DatasetConfig,
        *,
        split: str | None,
        outputs: Sequence[str] | None,
        limit: int | None,
    ) -> None:
        super().__init__(where)
        self.folder = MapFolder(where)
        self.facts = label_facts(where)
        self.class_names = tuple(find_layout(dataset).class_names)
        self.folder.require_classes(self.class_names, "set dataset.root to the data set that it was made for")
        known = self.facts.get("outputs")
        known = known if isinstance(known, dict) else {}
        held = [name for name in known if name in {*self.folder.map_outputs, *self.folder.label_outputs}]
        held += [name for name in (*self.folder.map_outputs, *self.folder.label_outputs) if name not in held]
        offered = [self._output(name, known.get(name)) for name in dict.fromkeys(held)]
        self.outputs = tuple(named_outputs(offered, outputs, "--outputs"))
        self._open(dataset, split or _text(self.facts.get("split")) or dataset.val_split, [], limit)
        self._keep_those_with_files()
        self._found_thresholds: dict[str, float] = {}

    def needs_threshold(self, output: Output) -> bool:
        """Whether an output is of maps alone, without labels and without a known threshold."""
        return output.name not in self.folder.label_outputs and output.threshold is None

    def set_threshold(self, name: str, threshold: float) -> None:
        """Make labels of an output's maps with a threshold from now on."""
        self._found_thresholds[name] = threshold
        self.outputs = tuple(
            dataclasses.replace(output, threshold=threshold) if output.name == name else output
            for output in self.outputs
        )

    def _output(self, name: str, facts: Any) -> Output:
        threshold: Any = facts.get("threshold") if isinstance(facts, dict) else None
        kind: Any = "maps" if name in self.folder.map_outputs else "label"
        return Output(name, name, kind, threshold=float(threshold) if type(threshold) in (int, float) else None)

    def _keep_those_with_files(self) -> None:
        missing: set[str] = set()
        for output in self.outputs:
            for held, file in (
                (self.folder.label_outputs, self.folder.label_file),
                (self.folder.map_outputs, self.folder.maps_file),
            ):
                if output.name in held:
                    paths = {name: file(name, output.name) for name in self.names}
                    lost = set(missing_files(paths.values()))
                    missing |= {name for name, path in paths.items() if path in lost}
        kept = [name for name in self.names if name not in missing]
        if not kept:  # says what is missing, and what may be the reason
            for output in self.outputs:
                if output.name in self.folder.label_outputs:
                    self.folder.require_labels(self.names, output.name)
                if output.name in self.folder.map_outputs:
                    self.folder.require_maps(self.names, None, output.name)
        if missing:
            self.notes.append(
                f"{len(missing)} of the {len(self.names)} images of '{self.images.split}' have no file in "
                f"{self.where}: they are neither shown nor scored"
            )
        self.names = kept

    def _looks(self, sample: Sample) -> tuple[dict[str, Look], tuple[int, ...]]:
        size = (sample.image.shape[0], sample.image.shape[1])
        looks = {}
        for output in self.outputs:
            maps = self._maps(sample, output, size) if output.name in self.folder.map_outputs else None
            looks[output.name] = Look(self._label(sample.name, output, maps, size), maps)
        if sample.class_labels is not None:
            return looks, tuple((np.flatnonzero(sample.class_labels > 0) + 1).tolist())
        return looks, tuple(sorted({id_ for look in looks.values() for id_ in _classes_of(look)}))

    def _maps(self, sample: Sample, output: Output, size: tuple[int, int]) -> Maps:
        maps = self.folder.read(sample.name, sample.class_labels, output.name, size=size)
        if int(maps.class_ids.max()) > len(self.class_names):
            path = self.folder.maps_file(sample.name, output.name)
            raise UserError(
                f"the maps {path} are of the class {int(maps.class_ids.max())}, but there are {len(self.class_names)}"
            )
        return maps

    def _label(self, name: str, output: Output, maps: Maps | None, size: tuple[int, int]) -> Tensor | None:
        if output.name in self.folder.label_outputs:
            path, label = self.folder.label_file(name, output.name), self.folder.read_label(name, output.name)
            if label.shape != size:
                raise DamagedImage(
                    f"the mask {path} has {label.shape[1]} x {label.shape[0]} pixels, its image {size[1]} x {size[0]}: "
                    "masks must have their images' size"
                )
            classes_in_mask(label, len(self.class_names), path=path)
            return torch.from_numpy(label.astype(np.int64))
        if maps is None or (not maps.has_background and output.threshold is None):
            return None
        return output.label(maps, size)


_CPU = torch.device("cpu")


def label_facts(folder: Path) -> dict[str, Any]:
    """What the ``label.json`` of a folder says; nothing where there is none.

    Raises:
        UserError: It cannot be read.
    """
    path = folder / LABEL_FACTS
    facts = read_json(path, "the file") if path.is_file() else {}
    if not isinstance(facts, dict):
        raise UserError(f"{path} is no label.json of ours: it holds no object")
    return facts


def require_same_images(first: Source, second: Source) -> list[str]:
    """The images that two sources both say something about.

    Raises:
        UserError: They are of other classes or other images.
    """
    if first.class_names != second.class_names:
        raise UserError(
            f"{first.where} ({len(first.class_names)} classes) and {second.where} ({len(second.class_names)}) have "
            "different classes: only results with the same classes can be compared"
        )
    both = set(second.names)
    names = [name for name in first.names if name in both]
    if not names or first.images.layout.root.resolve() != second.images.layout.root.resolve():
        raise UserError(
            f"{first.where} and {second.where} do not have the same images: give dataset.root=FOLDER and --split "
            "NAME, which then apply to both"
        )
    return names


def _classes_of(look: Look) -> list[int]:
    if look.label is None:
        return []
    return [value for value in look.label.unique().tolist() if value not in (0, 255)]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
