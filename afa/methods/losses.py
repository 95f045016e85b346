"""The losses of AFA (sec. 3.5, eq. 2, 10-12), each a scalar in float32.

Means and counts are those of one process, as in the released program. For ``loss.normalisation=global`` the caller
passes a :data:`Denominator` that replaces a process's count by the mean over all processes: the average of the
processes' gradients is then the gradient of the loss over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.methods.pseudo_labels import IGNORE

Denominator = Callable[[Tensor, float], Tensor]
"""Maps counts of this process (any shape), and a constant added to the whole, to what its sums are divided by."""


def process_denominator(counts: Tensor, plus: float) -> Tensor:
    """This process's own counts."""
    return counts + plus


def classification_loss(cls_logits: Tensor, class_labels: Tensor) -> Tensor:
    """Multi-label soft margin (eq. 2), the mean over images and classes.

    Args:
        cls_logits: [B, K].
        class_labels: [B, K], 0 or 1.
    """
    return F.multilabel_soft_margin_loss(cls_logits.float(), class_labels.float())


def segmentation_loss(
    seg_logits: Tensor,
    label: Tensor,
    *,
    background_share: float = 0.5,
    denominator: Denominator = process_denominator,
) -> Tensor:
    """Cross-entropy with background and foreground averaged apart (eq. 11).

    A side without any pixel counts 0, with zero gradient; the other keeps its share.

    Args:
        seg_logits: [B, C, H, W], at the label's size.
        label: [B, H, W], 255 ignored.
        background_share: Share of the background's mean; the foreground's has the rest.
        denominator: See the module's text.
    """
    per_pixel = F.cross_entropy(seg_logits.float(), label.long(), ignore_index=IGNORE, reduction="none")
    background = label == 0
    foreground = (label != 0) & (label != IGNORE)
    sides = torch.stack([background, foreground]).flatten(1)  # [2, pixels]
    sums = torch.stack([(per_pixel * background).sum(), (per_pixel * foreground).sum()])
    counts = denominator(sides.sum(dim=1).float(), 0)
    # An empty side's sum is 0 already: any divisor but 0 keeps it so.
    means = sums / counts.masked_fill(counts == 0, 1)
    return background_share * means[0] + (1 - background_share) * means[1]


def affinity_loss(
    affinity: Tensor,
    affinity_label: Tensor,
    *,
    positive_share: float = 0.5,
    denominator: Denominator = process_denominator,
) -> Tensor:
    """Pull pairs of one label together, push others apart (eq. 10).

    Args:
        affinity: [B, N, N] in 0..1.
        affinity_label: [B, N, N]: 1 same, 0 different, 255 ignored.
        positive_share: Share of the positive pairs' mean; the negative ones' has the rest.
        denominator: See the module's text.
    """
    # As bool: they are kept until the backward pass, so in a quarter of the memory.
    positive, negative = affinity_label == 1, affinity_label == 0
    counts = denominator(torch.stack([positive.sum(), negative.sum()]).float(), 1)
    positive_sum = (positive * (1 - affinity)).sum()
    negative_sum = (negative * affinity).sum()
    return positive_share * positive_sum / counts[0] + (1 - positive_share) * negative_sum / counts[1]
