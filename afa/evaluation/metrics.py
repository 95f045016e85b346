"""Scores: confusion matrix with mIoU, pixel and class accuracy; F1 of image-level labels.

Shapes: C classes with background, K = C - 1 foreground classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ConfusionMatrix:
    """Counts of (label, prediction) pairs, streamed image by image.

    Attributes:
        counts: int64 [C, C], rows ground truth, columns prediction. Whole numbers add up the same in any order, so
            the sums over images or processes (all-reduce this tensor) are exact.

    Args:
        num_classes: C.
        device: Where it counts.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, label: Tensor, prediction: Tensor) -> None:
        """Count an image's pixels.

        Args:
            label: Ground truth, integers of any shape; values outside 0..C-1, such as 255, are left out.
            prediction: Integers 0..C-1 of the same shape.
        """
        label, prediction = label.to(self.counts.device).flatten(), prediction.to(self.counts.device).flatten()
        # What is left out goes to a bin of its own: choosing pixels would make a GPU wait.
        left_out = self.num_classes**2
        valid = (label >= 0) & (label < self.num_classes)
        pairs = torch.where(valid, label.long() * self.num_classes + prediction, left_out)
        self.counts += torch.bincount(pairs, minlength=left_out + 1)[:-1].view_as(self.counts)

    def scores(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Scores from 0 to 1.

        Classes without a ground-truth pixel are left out of the means. With no pixel at all every mean is 0.

        Args:
            class_names: C names, background first.

        Returns:
            ``miou``, ``pacc`` (share of pixels that are right), ``macc`` (mean over classes of that share) and
            ``iou``: name -> value, 0 for a class that is only predicted, None for one that does not occur at all.
        """
        counts = self.counts.cpu().double()
        right, labelled, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
        union = labelled + predicted - right
        occurs = labelled > 0
        iou = right / union
        return {
            "miou": _mean(iou[occurs]),
            "pacc": (right.sum() / labelled.sum()).item() if occurs.any() else 0.0,
            "macc": _mean((right / labelled)[occurs]),
            "iou": {
                name: value if pixels else None
                for name, value, pixels in zip(class_names, iou.tolist(), union.tolist(), strict=True)
            },
        }


def multi_label_f1(prediction: Tensor, class_labels: Tensor) -> float:
    """F1 of one image's labels, 2 TP / (2 TP + FP + FN); 0 when undefined.

    Args:
        prediction: Boolean [K].
        class_labels: [K]; above 0 means present.
    """
    truth = class_labels.to(prediction.device) > 0
    hits, errors = torch.stack([(prediction & truth).sum(), (prediction ^ truth).sum()]).tolist()
    return 2 * hits / (2 * hits + errors) if hits + errors else 0.0


def _mean(values: Tensor) -> float:
    return values.mean().item() if len(values) else 0.0
