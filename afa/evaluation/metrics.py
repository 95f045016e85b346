"""Scores of labels: pixels of each class are counted, and mIoU, accuracies and error rates follow from the counts.

Counts are whole numbers, which add up the same in any order: sums over images or processes are exact.

Shapes: C classes with background, K = C - 1 foreground classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from afa.errors import UserError
from afa.maps import IGNORE

AbsentClass = Literal["skip", "zero"]
"""What a class that no true mask shows does to the means: it is left out, or it counts as 0."""


@dataclass(frozen=True)
class Counts:
    """Pixels of each class, of one image, or of many along leading axes. Pixels without a true class do not count.

    Attributes:
        intersection: int64 [..., C], pixels of a class that are predicted as it.
        labelled: int64 [..., C], pixels of a class.
        predicted: int64 [..., C], pixels predicted as a class.
        left_open: int64 [...], pixels predicted as no class (255): a miss of their true class, but no false positive.
    """

    intersection: Tensor
    labelled: Tensor
    predicted: Tensor
    left_open: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four, in this order."""
        return self.intersection, self.labelled, self.predicted, self.left_open

    @property
    def union(self) -> Tensor:
        """int64 [..., C], pixels of a class or predicted as it."""
        return self.labelled + self.predicted - self.intersection

    def total(self) -> Counts:
        """The sum over the first axis: of all images."""
        return Counts(*(part.sum(dim=0) for part in self.parts))

    def __getitem__(self, index: int) -> Counts:
        return Counts(*(part[index] for part in self.parts))

    def image_miou(self) -> float | None:
        """The mIoU of one image, of counts [C]: the mean of the IoU over the classes that its truth or its label has.

        A class that is predicted and not there counts as 0, unlike in :meth:`scores`, which many images share.

        Returns:
            0 to 1; None where no pixel has a true class.
        """
        if not self.labelled.any():
            return None
        shown = self.union > 0
        return float((self.intersection[shown].double() / self.union[shown]).mean())

    def scores(self, class_names: Sequence[str], *, absent: AbsentClass = "skip") -> dict[str, Any]:
        """Scores from 0 to 1 of counts [C].

        Of a class, T pixels are labelled, P predicted and TP both; its union is T + P - TP. IoU = TP / union, the rate
        of false positives (P - TP) / union and that of false negatives (T - TP) / union: the three add up to 1.

        Args:
            class_names: C names, background first.
            absent: ``skip``: classes without a true pixel are left out of all means, as the AFA program does. ``zero``:
                the means are over all C classes, and what cannot be computed (0 / 0) counts as 0, as in EDAM's
                published figures.

        Returns:
            ``miou``, ``pacc`` (share of pixels that are right), ``macc`` (mean over classes of that share), ``fp_rate``
            and ``fn_rate`` (means over classes); ``open``, the share of pixels predicted as no class; and ``iou``,
            ``fp`` and ``fn``: name -> value of each class, None for one that does not occur at all.

        Raises:
            UserError: There is not one pixel with a true class.
        """
        right, labelled, predicted, left_open = (part.cpu().double() for part in self.parts)
        if not labelled.any():
            raise UserError("there is nothing to score: the true masks have not one pixel of a class or the background")
        union = self.union.cpu().double()
        occurs = labelled > 0
        values = {"iou": right / union, "fp": (predicted - right) / union, "fn": (labelled - right) / union}
        recall = right / labelled

        def mean(of_classes: Tensor) -> float:
            return (of_classes.nan_to_num(0) if absent == "zero" else of_classes[occurs]).mean().item()

        return {
            "miou": mean(values["iou"]),
            "pacc": (right.sum() / labelled.sum()).item(),
            "macc": mean(recall),
            "fp_rate": mean(values["fp"]),
            "fn_rate": mean(values["fn"]),
            "open": (left_open / labelled.sum()).item(),
            **{
                key: {
                    name: value if pixels else None
                    for name, value, pixels in zip(class_names, of_classes.tolist(), union.tolist(), strict=True)
                }
                for key, of_classes in values.items()
            },
        }


class ConfusionMatrix:
    """Counts of (label, prediction) pairs, streamed image by image.

    Attributes:
        counts: int64 [C, C + 1], rows ground truth, columns prediction; the last column is of pixels that are predicted
            as no class. Processes add theirs up: all-reduce this tensor.

    Args:
        num_classes: C.
        device: Where it counts.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64, device=device)

    def update(self, label: Tensor, prediction: Tensor) -> Counts:
        """Count an image's pixels.

        Args:
            label: Ground truth, integers of any shape; values outside 0..C-1, such as 255, are left out.
            prediction: Integers 0..C-1 of the same shape, or 255 for a pixel that is left open.

        Returns:
            The image's own counts, [C], on the device.

        Raises:
            ValueError: The shapes differ, or a prediction is no class.
        """
        if label.shape != prediction.shape:
            raise ValueError(f"a label of {tuple(label.shape)} and a prediction of {tuple(prediction.shape)} pixels")
        label, prediction = label.to(self.counts.device).flatten(), prediction.to(self.counts.device).flatten()
        classes = self.num_classes
        is_open = prediction == IGNORE
        if ((prediction < 0) | (prediction >= classes) & ~is_open).any():
            raise ValueError(f"predictions are 0 to {classes - 1}, or {IGNORE} for open pixels")
        column = torch.where(is_open, classes, prediction.long())
        # What is left out goes to a bin of its own.
        left_out = classes * (classes + 1)
        valid = (label >= 0) & (label < classes)
        pairs = torch.where(valid, label.long() * (classes + 1) + column, left_out)
        own = torch.bincount(pairs, minlength=left_out + 1)[:-1].view_as(self.counts)
        self.counts += own
        return _class_counts(own)

    def add(self, other: ConfusionMatrix) -> None:
        """Count what another one of the same classes has counted."""
        self.counts += other.counts.to(self.counts.device)

    def class_counts(self) -> Counts:
        """Pixels of each class, [C]."""
        return _class_counts(self.counts)

    def scores(self, class_names: Sequence[str], *, absent: AbsentClass = "skip") -> dict[str, Any]:
        """As :meth:`Counts.scores`."""
        return self.class_counts().scores(class_names, absent=absent)


@dataclass
class ImageCounts:
    """Counts of each image apart, which comparisons of two results need.

    Attributes:
        names: Of the images.
        counts: One of [C] for each name.
    """

    names: list[str] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)

    def add(self, name: str, counts: Counts) -> None:
        """Put another image behind the others; what lies on a GPU is fetched."""
        self.names.append(name)
        self.counts.append(Counts(*(part.cpu() for part in counts.parts)))

    def stacked(self) -> Counts:
        """All counts, [images, C].

        Raises:
            UserError: There is no image.
        """
        if not self.counts:
            raise UserError("there is no image to score")
        return Counts(*(torch.stack(part) for part in zip(*(counts.parts for counts in self.counts), strict=True)))

    def in_order(self, names: Sequence[str]) -> ImageCounts:
        """The same in the order of a list, whatever the order and the processes that counted.

        Args:
            names: Of the list; those that were not counted are passed over.
        """
        found = dict(zip(self.names, self.counts, strict=True))
        kept = [name for name in names if name in found]
        return ImageCounts(kept, [found[name] for name in kept])

    @classmethod
    def joined(cls, parts: Iterable[ImageCounts]) -> ImageCounts:
        """The images of several processes, each once, sorted by name."""
        found = {name: counts for part in parts for name, counts in zip(part.names, part.counts, strict=True)}
        return cls(sorted(found), [found[name] for name in sorted(found)])


def multi_label_f1(prediction: Tensor, class_labels: Tensor) -> float:
    """F1 of one image's labels, 2 TP / (2 TP + FP + FN); 0 when undefined.

    Args:
        prediction: Boolean [K].
        class_labels: [K]; above 0 means present.
    """
    truth = class_labels.to(prediction.device) > 0
    hits, errors = torch.stack([(prediction & truth).sum(), (prediction ^ truth).sum()]).tolist()
    return 2 * hits / (2 * hits + errors) if hits + errors else 0.0


def _class_counts(pairs: Tensor) -> Counts:
    """Counts [C] of a confusion matrix [C, C + 1]."""
    predicted = pairs.sum(dim=0)
    return Counts(pairs.diagonal().clone(), pairs.sum(dim=1), predicted[:-1], predicted[-1])
