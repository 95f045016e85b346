"""How good a source's outputs are: counted while its images pass by, each once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from afa.evaluation.metrics import ConfusionMatrix
from afa.evaluation.sweep import ThresholdSweep, best_class, threshold_range
from afa.evaluation.tables import confusion_rows
from afa.maps import Maps
from afa.methods.base import Output
from afa.ops.cam import resize
from afa.report.sources import Look, Seen

THRESHOLDS = threshold_range(0.0, 1.0, 0.01)


class Scores:
    """Counts of every output of a source.

    Args:
        class_names: C names, background first.
        outputs: Of the source, those that are scored.

    Attributes:
        matrices: Output's name -> confusion matrix of its labels.
        sweeps: Output's name -> counts of its maps over thresholds. What is compared with the threshold is the score s
            of the best class; of maps with a background, whose score is b, it is s / (s + b), so that a threshold of
            0.5 gives their own label.
        with_background: Names of the outputs whose maps have a background, and so need no threshold.
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
        self.with_background: set[str] = set()
        self.images = 0

    def add(self, seen: Seen) -> dict[str, float]:
        """Count an image.

        Returns:
            Output's name -> the image's mIoU, see :meth:`afa.evaluation.metrics.Counts.image_miou`. Without a mask, or
            without a labelled pixel in it, nothing.
        """
        if seen.truth is None:
            return {}
        self.images += 1
        found: dict[str, float] = {}
        for name, look in seen.looks.items():
            if name not in self.outputs:
                continue
            if look.maps is not None:
                self._sweep(name, seen, look)
            if look.label is not None:
                miou = self.matrices[name].update(seen.truth, look.label).image_miou()
                if miou is not None:
                    found[name] = miou
        return found

    def _sweep(self, name: str, seen: Seen, look: Look) -> None:
        assert look.maps is not None and seen.truth is not None
        if not look.maps.has_background:
            self.sweeps[name].add(seen.sample.name, seen.truth, look.maps)
            return
        self.with_background.add(name)
        share, winner = share_of_best_class(look.maps, tuple(seen.truth.shape), logits=look.logits)
        self.sweeps[name].add_best(seen.sample.name, seen.truth, share, winner)

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
        return {name: confusion_rows(matrix.counts) for name, matrix in self.matrices.items() if matrix.counts.any()}


def share_of_best_class(maps: Maps, size: Sequence[int], *, logits: bool) -> tuple[Tensor, Tensor]:
    """The best class at each position, and how it stands against the background.

    Args:
        maps: Of one image, with background.
        size: (H, W) to which the scores are resized first, bilinear.
        logits: Whether the softmax of the scores gives probabilities; then these stand against each other.

    Returns:
        s / (s + b), float32 [H, W] in 0..1, for the scores s of the best class and b of the background, 0 where both
        are 0; and the id of that class, int64 [H, W], 0 where the maps have no class.
    """
    background = resize(maps.scores[:, :1].float(), size)[0, 0]
    if maps.scores.shape[1] < 2:
        return torch.zeros_like(background), torch.zeros(tuple(size), dtype=torch.int64)
    best, winner = best_class(maps.without_background(), size)
    if logits:
        return (best - background).sigmoid(), winner
    best, background = best.clamp(min=0), background.clamp(min=0)
    total = best + background
    return best / total.masked_fill(total == 0, 1), winner
