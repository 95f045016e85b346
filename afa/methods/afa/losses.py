"""Losses of AFA's own (sec. 3.5, eq. 2, 10), each a scalar in float32.

The segmentation's (eq. 11) is :func:`afa.methods.segmentation.segmentation_loss`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.methods.segmentation import Denominator, process_denominator


def classification_loss(cls_logits: Tensor, class_labels: Tensor) -> Tensor:
    """Multi-label soft margin (eq. 2), the mean over images and classes.

    Args:
        cls_logits: [B, K].
        class_labels: [B, K], 0 or 1.
    """
    return F.multilabel_soft_margin_loss(cls_logits.float(), class_labels.float())


def affinity_loss(
    affinity: Tensor,
    affinity_label: Tensor,
    *,
    positive_share: float,
    denominator: Denominator = process_denominator,
) -> Tensor:
    """Pull pairs of one label together, push others apart (eq. 10).

    Args:
        affinity: [B, N, N] in 0..1.
        affinity_label: [B, N, N]: 1 same, 0 different, 255 ignored.
        positive_share: Share of the positive pairs' mean; the negative ones' has the rest.
        denominator: See :mod:`afa.methods.segmentation`.
    """
    # As bool: they are kept until the backward pass, so in a quarter of the memory.
    positive, negative = affinity_label == 1, affinity_label == 0
    counts = denominator(torch.stack([positive.sum(), negative.sum()]).float(), 1)
    positive_sum = (positive * (1 - affinity)).sum()
    negative_sum = (negative * affinity).sum()
    return positive_share * positive_sum / counts[0] + (1 - positive_share) * negative_sum / counts[1]
