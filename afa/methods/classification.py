"""What methods with a classifier share: its loss, and which classes of an image count.

Shapes: B images, K foreground classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afa.data.samples import Sample
from afa.maps import PresentClasses, present_classes


def classification_loss(cls_logits: Tensor, class_labels: Tensor) -> Tensor:
    """Multi-label soft margin (AFA eq. 2), the mean over images and classes.

    Args:
        cls_logits: [B, K].
        class_labels: [B, K], 0 or 1.
    """
    return F.multilabel_soft_margin_loss(cls_logits.float(), class_labels.float())


def choose_classes(cls_logits: Tensor) -> Tensor:
    """Image-level labels that the classifier predicts: logits [B, K] above 0, at least the best one; float [B, K]."""
    return (cls_logits > 0).float().scatter_(1, cls_logits.argmax(dim=1, keepdim=True), 1.0)


def classes_that_count(samples: Sequence[Sample], cls_logits: Tensor) -> PresentClasses:
    """The classes of the samples' labels; if unknown, those that the classifier predicts.

    Args:
        samples: B of them.
        cls_logits: [B, K].

    Raises:
        ValueError: Only some of the samples have labels.
    """
    given = given_labels(samples)
    labels = choose_classes(cls_logits).cpu() if given is None else given
    return present_classes(labels, cls_logits.device)


def given_labels(samples: Sequence[Sample]) -> Tensor | None:
    """The samples' labels [B, K], on the host; None if unknown.

    Raises:
        ValueError: Only some of the samples have labels.
    """
    given = [sample.class_labels for sample in samples if sample.class_labels is not None]
    if given and len(given) < len(samples):
        raise ValueError("class labels are given for all images of a batch or for none")
    return torch.from_numpy(np.stack(given)) if given else None
