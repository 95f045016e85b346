"""What AffinityNet learns from two volumes of scores: labels of positions and of pairs (sec. 3.2.1).

Shapes: B images, P present classes, H x W pixels, h x w positions, O offsets and A anchors of the pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.maps import IGNORE, Maps
from afa.ops.neighbour_pairs import paired

_PADDING = 1e-5
"""Cells whose scores are all below this lie outside of the image."""


def affinity_map(low: Maps, high: Maps, stride: int) -> Tensor:
    """The label of each position: certain objects and certain background, all else ignored.

    A position belongs to the class that wins in ``low``, which favours the background; where the background wins even
    in ``high``, which disfavours it, it is background.

    Args:
        low, high: A crop's scores with background, [1, 1 + P, S, S] of the same classes; 0 where no image is.
        stride: Positions are averages over cells of this side.

    Returns:
        uint8 [S / stride, S / stride]: 0 background, channel 1..P of the maps, 255 ignored.
    """
    low_cells, high_cells = (F.avg_pool2d(maps.scores, stride)[0] for maps in (low, high))
    label = low_cells.argmax(dim=0)  # of equal scores the first
    label[label == 0] = IGNORE
    label[high_cells.argmax(dim=0) == 0] = 0
    outside = torch.maximum(low_cells.amax(dim=0), high_cells.amax(dim=0)) < _PADDING
    label[outside] = IGNORE
    return label.to(torch.uint8)


class PairLabels(NamedTuple):
    """Which pairs are of one class, bool [B, O, A] each; pairs with an ignored position are in none.

    Attributes:
        background: Both are background.
        foreground: Both are of one class.
        negative: They are of different classes.
    """

    background: Tensor
    foreground: Tensor
    negative: Tensor


def pair_labels(label: Tensor, radius: int) -> PairLabels:
    """The labels of all pairs of neighbouring positions.

    Args:
        label: [B, h, w] as :func:`affinity_map` gives it.
        radius: r of the pairs.

    Raises:
        ValueError: The grid is too small to hold a pair.
    """
    anchors, others = paired(label, radius)
    valid = (anchors != IGNORE) & (others != IGNORE)
    same = valid & (anchors == others)
    background = same & (anchors == 0)
    return PairLabels(background, same & ~background, valid & ~same)
