"""Scores of maps without a background over a range of background thresholds, reading each image once.

At each pixel the class with the highest score competes with the threshold alone. So one histogram of these scores per
class says for every threshold how many pixels are predicted as the class, and how many of them rightly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afa.errors import UserError
from afa.evaluation.metrics import AbsentClass, Counts, ImageCounts
from afa.maps import Maps
from afa.ops.cam import resize

MOST_THRESHOLDS = 10_000


def threshold_range(start: float, stop: float, step: float) -> tuple[float, ...]:
    """Thresholds from ``start`` to ``stop``, both included where the step meets it, without the noise of adding up.

    Raises:
        UserError: The range is empty or too long, or not of finite numbers.
    """
    if not np.isfinite([start, stop, step]).all() or step <= 0 or stop < start:
        raise UserError(
            f"thresholds from {start:g} to {stop:g} by {step:g}: a rising range and a step above 0 are needed"
        )
    steps = (stop - start) / step
    if steps >= MOST_THRESHOLDS:
        raise UserError(f"thresholds from {start:g} to {stop:g} by {step:g} are more than {MOST_THRESHOLDS}")
    values = tuple(round(start + index * step, 10) for index in range(int(steps + 1e-6) + 1))
    if len({np.float32(value) for value in values}) != len(values):
        raise UserError(f"a step of {step:g} is too small: scores are float32, and cannot tell such thresholds apart")
    return values


def best_class(maps: Maps, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The class with the highest score at each position; of equal scores the first class wins.

    Args:
        maps: Of one image, without background.
        size: (H, W) to which the scores are resized first, bilinear.

    Returns:
        Its score, float32 [H, W], and its id, int64 [H, W]; minus infinity and 0 where no class counts.

    Raises:
        ValueError: There is a background, which needs no threshold.
    """
    if maps.has_background:
        raise ValueError("maps with a background give a label without a threshold")
    best = torch.full(tuple(size), -torch.inf)
    ids = torch.zeros(tuple(size), dtype=torch.int64)
    # Channel by channel: memory does not grow with the number of classes.
    for index, (class_id, counted) in enumerate(zip(maps.class_ids[0].tolist(), maps.counted[0].tolist(), strict=True)):
        if counted:
            scores = resize(maps.scores[:, index : index + 1].float().cpu(), size)[0, 0]
            ids = torch.where(scores > best, class_id, ids)
            best = torch.maximum(best, scores)
    return best, ids


@dataclass(frozen=True)
class _ImageHistogram:
    """One image's pixels, of the classes in it alone: int64 [classes, thresholds] predicted and rightly predicted."""

    classes: Tensor
    predicted: Tensor
    right: Tensor
    labelled: Tensor
    true_background: Tensor


class ThresholdSweep:
    """Counts images at many background thresholds: a pixel is background where its highest score is at most that.

    Args:
        num_classes: C, with background.
        thresholds: Rising.
        per_image: Whether :meth:`images_at` is wanted: some kilobytes per image are kept.
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float], *, per_image: bool = False) -> None:
        self.num_classes, self.thresholds = num_classes, tuple(thresholds)
        # Scores are float32: so they are compared.
        self._thresholds = torch.tensor(self.thresholds, dtype=torch.float32)
        bins = len(self.thresholds) + 1
        self._predicted = torch.zeros(num_classes, bins, dtype=torch.int64)
        self._right = torch.zeros(num_classes, bins, dtype=torch.int64)
        self._labelled = torch.zeros(num_classes, dtype=torch.int64)
        self._true_background = torch.zeros(bins, dtype=torch.int64)
        # (True class, class of the highest score) -> its histogram: of the pairs that occur, which are few.
        self._pairs: dict[int, Tensor] = {}
        self._images: list[tuple[str, _ImageHistogram]] | None = [] if per_image else None

    def add(self, name: str, truth: Tensor, maps: Maps) -> None:
        """Count an image.

        Args:
            name: Of the image.
            truth: Ground truth, integers [H, W]; values outside 0..C-1, such as 255, are left out.
            maps: Of the image, without background; resized to the truth's size.

        Raises:
            ValueError: The maps have a background, or are of a class that is none of these.
        """
        if int(maps.class_ids.max()) >= self.num_classes:
            raise ValueError(f"maps of the class {int(maps.class_ids.max())}, but there are {self.num_classes - 1}")
        self.add_best(name, truth, *best_class(maps, (truth.shape[-2], truth.shape[-1])))

    def add_best(self, name: str, truth: Tensor, score: Tensor, winner: Tensor) -> None:
        """Count an image of which the best class at each pixel is known.

        Args:
            name: Of the image.
            truth: As :meth:`add` takes it.
            score, winner: As :func:`best_class` gives them, of the truth's size.
        """
        valid = (truth >= 0) & (truth < self.num_classes)
        score, winner, truth = score[valid], winner[valid], truth[valid].long()
        # How many thresholds a pixel is above: at those, the first ones, it is foreground.
        bins = len(self.thresholds) + 1
        above = torch.searchsorted(self._thresholds, score, right=False)
        place = winner * bins + above
        size = self.num_classes * bins
        predicted = torch.bincount(place, minlength=size).view(-1, bins)
        right = torch.bincount(place[winner == truth], minlength=size).view(-1, bins)
        pairs, numbers = torch.unique(truth * self.num_classes + winner, return_inverse=True)
        histograms = torch.bincount(numbers * bins + above, minlength=len(pairs) * bins).view(-1, bins)
        for pair, histogram in zip(pairs.tolist(), histograms, strict=True):
            known = self._pairs.get(pair)
            self._pairs[pair] = histogram.clone() if known is None else known + histogram
        labelled = torch.bincount(truth, minlength=self.num_classes)
        true_background = torch.bincount(above[truth == 0], minlength=bins)
        self._predicted += predicted
        self._right += right
        self._labelled += labelled
        self._true_background += true_background
        if self._images is not None:
            classes = torch.nonzero((labelled > 0) | (predicted.sum(dim=1) > 0)).flatten()
            own = _ImageHistogram(classes, predicted[classes], right[classes], labelled[classes], true_background)
            self._images.append((name, own))

    def join(self, other: ThresholdSweep) -> None:
        """Count what another sweep of the same classes and thresholds has counted.

        Args:
            other: Of other images; it keeps images where this one does.
        """
        self._predicted += other._predicted
        self._right += other._right
        self._labelled += other._labelled
        self._true_background += other._true_background
        for pair, histogram in other._pairs.items():
            known = self._pairs.get(pair)
            self._pairs[pair] = histogram.clone() if known is None else known + histogram
        if self._images is not None:
            self._images += other._images or ()

    def counts(self) -> Counts:
        """Pixels of each class at each threshold, [thresholds, C]."""
        return _at_thresholds(self._predicted, self._right, self._labelled, self._true_background)

    def confusion_at(self, index: int) -> Tensor:
        """The confusion matrix at one threshold, int64 [C, C + 1] as :attr:`ConfusionMatrix.counts` has it.

        Args:
            index: Of the threshold.
        """
        matrix = torch.zeros(self.num_classes, self.num_classes + 1, dtype=torch.int64)
        for pair, histogram in self._pairs.items():
            true, winner = divmod(pair, self.num_classes)
            foreground = histogram[index + 1 :].sum()
            matrix[true, winner] += foreground
            matrix[true, 0] += histogram.sum() - foreground
        return matrix

    def images_at(self, index: int) -> ImageCounts:
        """Each image's counts at one threshold.

        Args:
            index: Of the threshold.

        Raises:
            ValueError: They were not kept.
        """
        if self._images is None:
            raise ValueError("the images' own counts were not kept: per_image")
        found = ImageCounts()
        for name, own in self._images:
            full = torch.zeros(2, self.num_classes, len(self.thresholds) + 1, dtype=torch.int64)
            full[0, own.classes], full[1, own.classes] = own.predicted, own.right
            labelled = torch.zeros(self.num_classes, dtype=torch.int64)
            labelled[own.classes] = own.labelled
            found.add(name, _at_thresholds(full[0], full[1], labelled, own.true_background)[index])
        return found

    def scores(self, class_names: Sequence[str], *, absent: AbsentClass = "skip") -> dict[str, Any]:
        """Scores at every threshold.

        Args:
            class_names: C names, background first.
            absent: As :meth:`Counts.scores` takes it.

        Returns:
            ``thresholds``, ``miou``, ``fp_rate`` and ``fn_rate``: a value for each threshold; ``best``:
            :meth:`Counts.scores` at the threshold with the highest mIoU (the lowest of equal ones), with ``threshold``.

        Raises:
            UserError: There is nothing to score.
        """
        counts = self.counts()
        rows = [counts[index].scores(class_names, absent=absent) for index in range(len(self.thresholds))]
        best = max(range(len(rows)), key=lambda index: rows[index]["miou"])
        return {
            "thresholds": list(self.thresholds),
            **{key: [row[key] for row in rows] for key in ("miou", "fp_rate", "fn_rate")},
            "best": {"threshold": self.thresholds[best], **rows[best]},
        }


def _at_thresholds(predicted: Tensor, right: Tensor, labelled: Tensor, true_background: Tensor) -> Counts:
    """Histograms [C, thresholds + 1] of how many thresholds the pixels are above -> counts [thresholds, C]."""
    # Foreground at threshold j: above more than j thresholds.
    predicted_at = _from_behind(predicted)
    right_at = _from_behind(right)
    pixels = labelled.sum()
    predicted_at[:, 0] = pixels - predicted_at[:, 1:].sum(dim=1)
    right_at[:, 0] = true_background.cumsum(0)[:-1]
    count = len(predicted_at)
    none_open = torch.zeros(count, dtype=torch.int64)
    return Counts(right_at, labelled.expand(count, -1), predicted_at, none_open)


def _from_behind(histogram: Tensor) -> Tensor:
    """[C, bins] -> [bins - 1, C], the sum of all bins behind each."""
    return histogram.flip(1).cumsum(1).flip(1)[:, 1:].T.clone()
