"""A contact sheet: all outputs of a method for some images, with rows for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from afa.data.samples import Sample
from afa.evaluation.metrics import ConfusionMatrix
from afa.methods.base import Output
from afa.prediction.predictor import Predictor
from afa.visual import (
    Cell,
    ClassMaps,
    cell_size,
    class_legend,
    class_maps,
    common_scale,
    contact_sheet,
    fitted_image,
    label_cell,
    map_cells,
    scale_title,
    stacked_rows,
    strongest_classes,
)

MOST_CLASSES = 3
"""Whose maps are shown of an image."""

HOW = "IoU of an image: the mean over the classes that its truth or its mask has."
"""What the figures of images are."""

_AFTER_CRF = ""  # No output has this name.


def iou_text(iou: float | None) -> str:
    """An IoU as people read it: ``IoU 63.2 %``."""
    return "truth is ignored" if iou is None else f"IoU {100 * iou:.1f} %"


def miou_text(matrix: ConfusionMatrix, class_names: Sequence[str]) -> str:
    """The mIoU of all counted pixels, as people read it.

    Args:
        matrix: Of C = K + 1 classes.
        class_names: K names.
    """
    if not matrix.class_counts().labelled.any():
        return "no mIoU, because all true pixels are ignored,"
    return f"mIoU {100 * matrix.scores(['background', *class_names])['miou']:.1f} %"


def images_text(count: int) -> str:
    """How many images there are: ``the image``, ``the 8 images``."""
    return "the image" if count == 1 else f"the {count} images"


@dataclass(frozen=True)
class _Shown:
    """What a sheet shows of one image.

    Attributes:
        title: Its name.
        detail: What is said of it.
        image: The image itself.
        truth: None where it is not known.
        labels: Column -> label.
        maps: Column -> maps of the classes.
    """

    title: str
    detail: str
    image: Cell
    truth: Cell | None
    labels: dict[str, Cell]
    maps: dict[str, ClassMaps]


def output_sheet(
    predictor: Predictor, samples: Iterable[tuple[Sample, Tensor | None]], *, heading: str, cell: int
) -> np.ndarray:
    """Rows for each image: the image, the ground truth where it is known, and each output of the method.

    Maps are shown class by class, one below the other, against the background score; of an image with many classes the
    three with the highest scores. Maps and labels are those of the true classes where they are known; the segmentation
    is the network's alone. A predictor with DenseCRF adds a column: the mask after it. Outputs that the predictor
    cannot give, as their inputs are not there, are named above. Where the truth is known, labels carry their IoU.

    Args:
        predictor: Looks at the images.
        samples: Each with the predictor's inputs, and its true label [H, W] or None.
        heading: Line above everything.
        cell: Width of an image in pixels.

    Returns:
        uint8 RGB [H, W, 3].
    """
    sheet = _Sheet(predictor, cell)
    shown = [sheet.look(sample, truth) for sample, truth in samples]
    return sheet.drawn(shown, heading)


class _Sheet:
    """Looks at images one by one and counts their pixels, then draws."""

    def __init__(self, predictor: Predictor, cell: int) -> None:
        self.predictor, self.cell = predictor, cell
        outputs = [output for output in predictor.outputs if output.kind != "affinity"]
        self.titles = {output.name: output.title for output in outputs}
        self.maps = [output.name for output in outputs if output.kind == "maps" and not output.logits]
        self.asked = [output.name for output in outputs if _is_asked(output) and output is not predictor.mask_output]
        self.scored = predictor.mask_output.name
        if predictor.crf is not None:
            self.scored = _AFTER_CRF
            self.titles[_AFTER_CRF] = "after DenseCRF"
        self.matrix = ConfusionMatrix(len(predictor.class_names) + 1)
        self.class_ids: set[int] = set()
        self.count = 0  # of images with truth

    def look(self, sample: Sample, truth: Tensor | None) -> _Shown:
        """What is shown of an image."""
        seen = self.predictor.predict(
            sample.image,
            sample.class_labels,
            inputs=sample.inputs,
            maps=self.maps,
            labels=self.asked,
            unrefined_mask=self.predictor.crf is not None,
        )
        found = {**seen.labels, self.predictor.mask_output.name: seen.mask}
        if seen.unrefined_mask is not None:
            found |= {self.predictor.mask_output.name: seen.unrefined_mask, _AFTER_CRF: seen.mask}
        ious = {name: "" if truth is None else self._iou(name, truth, label) for name, label in found.items()}
        size = cell_size(sample.image.shape, self.cell)
        kept = strongest_classes(seen.maps[self.maps[0]], MOST_CLASSES) if self.maps else []
        detail = "no truth"
        if truth is not None:
            self.count += 1
            detail = f"{ious[self.scored]} ({self.titles[self.scored]})"
        if self.maps and len(kept) < len(seen.class_ids):
            detail += f", maps of {len(kept)} classes, +{len(seen.class_ids) - len(kept)} more"
        return _Shown(
            sample.name,
            detail,
            Cell(fitted_image(sample.image, size)),
            None if truth is None else self._labelled(sample.image, truth.numpy(), ""),
            {
                name: self._labelled(sample.image, label, ious[name])
                for name, label in found.items()
                if name not in self.maps
            },
            {
                name: class_maps(
                    scores,
                    seen.backgrounds.get(name),
                    seen.class_ids,
                    size=size,
                    label=found.get(name),
                    kept=kept,
                )
                for name, scores in seen.maps.items()
            },
        )

    def drawn(self, shown: Sequence[_Shown], heading: str) -> np.ndarray:
        """The sheet of all images."""
        names = self.predictor.class_names
        scales = {name: common_scale([one.maps[name] for one in shown]) for name in self.maps}
        rows = []
        for one in shown:
            columns: list[list[Cell]] = [[one.image]]
            if self.count:
                columns.append([] if one.truth is None else [one.truth])
            for name in self.titles:
                if name in one.maps:
                    columns.append(map_cells(one.image.image, one.maps[name], scales[name], names))
                else:
                    columns.append([one.labels[name]])
            rows += stacked_rows(columns, one.title, one.detail)
        notes = [self._score()] if self.count else []
        if self.predictor.left_out:
            notes.append(f"without {self.predictor.left_out}")
        bars = [
            (scale_title(self.titles[name], shown[0].maps[name]), scale) for name, scale in scales.items() if shown
        ]  # fmt: skip
        return contact_sheet(
            rows,
            ["image", *(["ground truth"] if self.count else []), *self.titles.values()],
            heading=heading,
            notes=notes,
            bars=bars,
            legend=class_legend(self.class_ids, names),
            cell=self.cell,
        )

    def _iou(self, name: str, truth: Tensor, label: np.ndarray) -> str:
        """The IoU of a label as people read it; the pixels of those that count for the whole sheet are counted."""
        matrix = self.matrix if name == self.scored else ConfusionMatrix(self.matrix.num_classes)
        return iou_text(matrix.update(truth, torch.from_numpy(label)).image_miou())

    def _labelled(self, image: np.ndarray, label: np.ndarray, caption: str) -> Cell:
        """A label over its image; its classes are noted for the legend."""
        self.class_ids.update(np.unique(label).tolist())
        return label_cell(image, label, self.cell, caption)

    def _score(self) -> str:
        miou = miou_text(self.matrix, self.predictor.class_names)
        return f"{self.titles[self.scored]}: {miou} over {images_text(self.count)} shown here. {HOW}"


def _is_asked(output: Output) -> bool:
    """Whether the label of an output is shown, or tells where its maps do not beat the background."""
    return output.kind == "label" or output.logits or output.threshold is not None
