"""How good a source's outputs are: counted while its images pass by, each once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from afa.evaluation.metrics import ConfusionMatrix
from afa.evaluation.sweep import ThresholdSweep, threshold_range
from afa.maps import Maps
from afa.methods.base import Output
from afa.report.sources import Seen

THRESHOLDS = threshold_range(0.0, 1.0, 0.01)


class Scores:
    """Counts of every output of a source.

    Args:
        class_names: C names, background first.
        outputs: Of the source.

    Attributes:
        matrices: Output's name -> confusion matrix of its labels.
        sweeps: Output's name -> counts of its maps over thresholds. Of maps with a background the classes' scores
            alone count here, as if there were none.
        images: How many images had a true mask.
    """

    def __init__(self, class_names: Sequence[str], outputs: Sequence[Output]) -> None:
        self.class_names = tuple(class_names)
        self.outputs = {output.name: output for output in outputs}
        self.matrices = {
            output.name: ConfusionMatrix(len(self.class_names)) for output in outputs if output.kind != "affinity"
        }
        self.sweeps = {
            output.name: ThresholdSweep(len(self.class_names), THRESHOLDS)
            for output in outputs
            if output.kind == "maps"
        }
        self.images = 0

    def add(self, seen: Seen) -> dict[str, float | None]:
        """Count an image.

        Returns:
            Output's name -> the image's mIoU: the mean over the classes that its true mask shows. Without a mask, or
            without a labelled pixel in it, nothing.
        """
        if seen.truth is None:
            return {}
        self.images += 1
        found: dict[str, float | None] = {}
        for name, look in seen.looks.items():
            if look.maps is not None:
                self.sweeps[name].add(seen.sample.name, seen.truth, _classes_alone(look.maps))
            if look.label is not None:
                counts = self.matrices[name].update(seen.truth, look.label)
                if counts.labelled.any():
                    found[name] = counts.scores(self.class_names)["miou"]
        return found

    def table(self) -> dict[str, Any]:
        """Output's name -> scores, as :meth:`afa.evaluation.metrics.Counts.scores` gives them; what was counted."""
        return {
            name: matrix.scores(self.class_names)
            for name, matrix in self.matrices.items()
            if matrix.class_counts().labelled.any()
        }

    def curves(self) -> dict[str, Any]:
        """Output's name -> scores over thresholds, as :meth:`ThresholdSweep.scores` gives them; what was counted."""
        return {
            name: sweep.scores(self.class_names) for name, sweep in self.sweeps.items() if sweep.counts().labelled.any()
        }

    def confusion(self) -> dict[str, list[list[int]]]:
        """Output's name -> pixels [C][C + 1]: rows truth, columns prediction, the last one open; what was counted."""
        return {name: matrix.counts.tolist() for name, matrix in self.matrices.items() if matrix.counts.any()}


def _classes_alone(maps: Maps) -> Maps:
    """The maps without their background."""
    if not maps.has_background:
        return maps
    if maps.scores.shape[1] > 1:
        return maps.without_background()
    nothing: Tensor = torch.zeros(1, 1, dtype=torch.bool)
    return Maps(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, dtype=torch.int64), nothing, has_background=False)
