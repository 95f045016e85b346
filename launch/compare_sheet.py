"""The masks of several runs side by side, image by image.

    python launch/compare_sheet.py OUTPUT.png DATA TITLE=RUN [TITLE=RUN ...]

Shows eight images, evenly from the validation list of the data set in the folder DATA, which all runs were trained on.
Masks are the networks' own: no labels, no CRF. A run's last checkpoint counts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from afa.data.dataset import EvaluationImages
from afa.errors import UserError, run_command
from afa.prediction.model import load
from afa.visual import contact_sheet, overlay_label, write_picture
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
    images = EvaluationImages(models[0].config.dataset)
    count, rows, shown = min(_COUNT, len(images)), [], {0}
    for index in range(count):
        found = images[index * len(images) // count]
        image = found.sample.image
        masks = [found.label.numpy(), *(predictor.predict(image).mask for predictor in predictors)]
        shown.update(int(class_id) for mask in masks for class_id in np.unique(mask))
        rows.append([image, *(overlay_label(image, mask) for mask in masks)])
    legend = [(dict(enumerate(names, 1)).get(class_id, "ignored"), class_id) for class_id in sorted(shown - {0})]
    sheet = contact_sheet(rows, ["image", "ground truth", *titles], legend=legend, cell=_CELL)
    try:
        write_picture(Path(output), sheet)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from error
    print(f"{count} images in {output}")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
