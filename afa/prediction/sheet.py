"""A contact sheet: everything that a method says about some images, a row for each."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from afa.data.samples import Sample
from afa.methods.base import Output
from afa.prediction.predictor import Prediction, Predictor
from afa.visual import contact_sheet, map_heat, overlay_heat, overlay_label


def output_sheet(
    predictor: Predictor, samples: Iterable[tuple[Sample, Tensor | None]], *, heading: str, cell: int
) -> np.ndarray:
    """One row per image: image, ground truth where it is known, and each output of the method.

    Maps and labels are those of the true classes where they are known; the segmentation is the network's alone. A
    predictor with DenseCRF adds a column: the mask after it. Outputs that the predictor cannot give, as their inputs
    are not there, are named in the heading.

    Args:
        predictor: Looks at the images.
        samples: Each with the predictor's inputs, and its true label [H, W] or None.
        heading: Line above everything.
        cell: Width of an image in pixels.

    Returns:
        uint8 RGB [H, W, 3].
    """
    outputs = [output for output in predictor.outputs if output.kind != "affinity"]
    heats = [output.name for output in outputs if output.kind == "maps" and not output.logits]
    labels = [output.name for output in outputs if output.name not in heats and output is not predictor.mask_output]
    rows: list[list[np.ndarray | None]] = []
    row_titles: list[str] = []
    shown: set[int] = set()
    for sample, truth in samples:
        seen = predictor.predict(
            sample.image,
            sample.class_labels,
            inputs=sample.inputs,
            maps=heats,
            labels=labels,
            unrefined_mask=predictor.crf is not None,
        )
        row = [sample.image, None if truth is None else _overlaid(sample.image, truth.numpy(), shown)]
        for output in outputs:
            if output.name in heats:
                heat = map_heat(seen.maps[output.name], seen.background.get(output.name))
                row.append(overlay_heat(sample.image, heat))
            else:
                row.append(_overlaid(sample.image, _label_of(output, predictor, seen), shown))
        if predictor.crf is not None:
            row.append(_overlaid(sample.image, seen.mask, shown))
        rows.append(row)
        row_titles.append(f"{sample.name}: {', '.join(seen.class_names) or 'background only'}")
    names = dict(enumerate(predictor.class_names, 1)) | {255: "ignored"}
    legend = [(names[class_id], class_id) for class_id in sorted(shown - {0})]
    titles = ["image", "ground truth", *(output.title for output in outputs)]
    if predictor.crf is not None:
        titles.append("after DenseCRF")
    if predictor.left_out:
        heading = ", ".join(filter(None, [heading, f"without {predictor.left_out}"]))
    if all(row[1] is None for row in rows):
        rows, titles = [[row[0], *row[2:]] for row in rows], [titles[0], *titles[2:]]
    return contact_sheet(rows, titles, row_titles=row_titles, heading=heading, legend=legend, cell=cell)


def _label_of(output: Output, predictor: Predictor, seen: Prediction) -> np.ndarray:
    if output is predictor.mask_output:
        return seen.mask if seen.unrefined_mask is None else seen.unrefined_mask
    return seen.labels[output.name]


def _overlaid(image: np.ndarray, label: np.ndarray, shown: set[int]) -> np.ndarray:
    """A label over its image; its classes are noted for the legend."""
    shown.update(np.unique(label).tolist())
    return overlay_label(image, label)
