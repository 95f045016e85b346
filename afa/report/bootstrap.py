"""How sure a difference of two mean mIoU is: a paired bootstrap over images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from afa.evaluation.metrics import Counts

RESAMPLES = 10_000
_CHUNK = 4_000_000


def paired_bootstrap(
    first: Sequence[Counts], second: Sequence[Counts], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """How much the mean mIoU of ``second`` is above that of ``first``, with a 95 % interval over images.

    A resample draws as many images as there are, with replacement, the same ones for both. Of each run the mIoU of the
    drawn images is computed from their summed counts, and averaged over the runs; the interval is from the 2.5th to the
    97.5th percentile of the differences (percentile bootstrap, Efron and Tibshirani 1993, chapter 13). It says how much
    hangs on which images were taken, not how much on the seeds. Images without a labelled pixel are left out.

    The draws are those of ``numpy.random.default_rng(seed).integers(N, size=N)``, one call for each resample.

    Args:
        first: Of each run the counts [images, C]. All have the same images in the same order, and the same truth.
        second: The same, of other runs.
        resamples: How many.
        seed: Of the draws.

    Returns:
        Difference over all images, and the two ends; 0 to 1.

    Raises:
        ValueError: The images or their true labels differ.
    """
    labelled = first[0].labelled.numpy().astype(np.float64)
    for counts in (*first, *second):
        if not np.array_equal(counts.labelled.numpy(), labelled):
            raise ValueError("the images, or their true labels, differ")
    kept = labelled.sum(axis=1) > 0
    labelled = labelled[kept]
    parts = [
        [(counts.intersection.numpy()[kept].astype(np.float64), counts.predicted.numpy()[kept].astype(np.float64))
         for counts in side]
        for side in (first, second)
    ]  # fmt: skip
    images = len(labelled)
    if not images:
        raise ValueError("there is not one labelled pixel")

    def differences(weights: np.ndarray) -> np.ndarray:
        true = weights @ labelled
        means = []
        for side in parts:
            values = []
            for intersection, predicted in side:
                right = weights @ intersection
                union = true + weights @ predicted - right
                iou = np.divide(right, union, out=np.zeros_like(right), where=union > 0)
                values.append((iou * (true > 0)).sum(axis=1) / (true > 0).sum(axis=1))
            means.append(np.mean(values, axis=0))
        return means[1] - means[0]

    rng = np.random.default_rng(seed)
    found = []
    chunk = max(1, min(resamples, _CHUNK // images))
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        drawn = rng.integers(images, size=(count, images)) + np.arange(count)[:, None] * images
        weights = np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images).astype(np.float64)
        found.append(differences(weights))
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    return float(differences(np.ones((1, images)))[0]), float(low), float(high)
