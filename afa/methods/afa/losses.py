"""The loss of AFA's own (sec. 3.5, eq. 10), a scalar in float32.

The classifier's (eq. 2) is :func:`afa.methods.classification.classification_loss`, the segmentation's (eq. 11)
:func:`afa.methods.segmentation.segmentation_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afa.methods.segmentation import Denominator, process_denominator
from afa.ops.token_pairs import sum_of_ordered_pairs


def affinity_loss(
    affinity: Tensor,
    affinity_label: Tensor,
    *,
    positive_share: float,
    denominator: Denominator = process_denominator,
) -> Tensor:
    """Pull pairs of one label together, push others apart (eq. 10), over all ordered pairs.

    Args:
        affinity: [B, m + 1, 2 n + 1, h, w] in 0..1, see :mod:`afa.ops.token_pairs`.
        affinity_label: As :func:`afa.methods.afa.labels.affinity_label` gives it: 1 same, 0 different, 255 ignored.
        positive_share: Share of the positive pairs' mean; the negative ones' has the rest.
        denominator: See :mod:`afa.methods.segmentation`.
    """
    # As bool: they are kept until the backward pass, so in a quarter of the memory.
    positive, negative = affinity_label == 1, affinity_label == 0
    counts = denominator(torch.stack([sum_of_ordered_pairs(positive), sum_of_ordered_pairs(negative)]).float(), 1)
    positive_sum = sum_of_ordered_pairs(positive * (1 - affinity))
    negative_sum = sum_of_ordered_pairs(negative * affinity)
    return positive_share * positive_sum / counts[0] + (1 - positive_share) * negative_sum / counts[1]
