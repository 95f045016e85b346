"""The masks of several runs side by side, image by image.

    python launch/compare_sheet.py OUTPUT.png DATA TITLE=RUN [TITLE=RUN ...]

Shows eight images, evenly from the validation list of the data set in the folder DATA, which all runs were trained on.
Masks are the networks' own: no labels, no CRF. A run's last checkpoint counts. Below each mask stands its IoU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from afa.data.dataset import EvaluationImages
from afa.errors import UserError, run_command
from afa.evaluation.metrics import ConfusionMatrix
from afa.prediction.model import load
from afa.prediction.sheet import HOW, images_text, iou_text, miou_text
from afa.visual import Cell, Row, class_legend, contact_sheet, label_cell, write_picture
from afa.weights import last_checkpoint

_COUNT = 8
_CELL = 160


def main(arguments: Sequence[str]) -> None:
    """Draw the sheet.

    Raises:
        UserError: The arguments, a run or the data set is wrong, the runs know other classes, or the file cannot be
            written.
    """
    if len(arguments) < 3 or not all(argument.partition("=")[2] for argument in arguments[2:]):
        raise UserError("give OUTPUT.png DATA TITLE=RUN ...")
    output, root, *runs = arguments
    titles = [run.partition("=")[0] for run in runs]
    models = [load(last_checkpoint(run.partition("=")[2]), overrides=[f"dataset.root={root}"]) for run in runs]
    names = models[0].class_names
    for run, model in zip(runs, models, strict=True):
        if model.class_names != names:
            raise UserError(f"{run} knows the classes {', '.join(model.class_names)}, {runs[0]} {', '.join(names)}")
    predictors = [model.predictor() for model in models]
    matrices = [ConfusionMatrix(len(names) + 1) for _ in models]
    images = EvaluationImages(models[0].config.dataset)
    count, rows, shown = min(_COUNT, len(images)), [], set()
    for index in range(count):
        found = images[index * len(images) // count]
        image, truth = found.sample.image, found.label
        cells = [label_cell(image, truth.numpy(), _CELL)]
        shown.update(np.unique(truth).tolist())
        for predictor, matrix in zip(predictors, matrices, strict=True):
            mask = predictor.predict(image).mask
            iou = matrix.update(truth, torch.from_numpy(mask)).image_miou()
            cells.append(label_cell(image, mask, _CELL, iou_text(iou)))
            shown.update(np.unique(mask).tolist())
        rows.append(Row([Cell(image), *cells], found.sample.name))
    sheet = contact_sheet(
        rows,
        ["image", "ground truth", *titles],
        heading=f"{root}, split {images.images.split}",
        notes=[
            f"{title}: {miou_text(matrix, names)} over {images_text(count)} shown here"
            for title, matrix in zip(titles, matrices, strict=True)
        ]
        + [HOW],
        legend=class_legend(shown, names),
        cell=_CELL,
    )
    try:
        write_picture(Path(output), sheet)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from error
    print(f"{count} images in {output}")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
