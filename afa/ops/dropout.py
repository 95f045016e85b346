"""Dropout (Srivastava et al., 2014) whose draws are cheap on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 2**16


def drop(values: Tensor, probability: float) -> Tensor:
    """Each value is zero with this probability, and otherwise scaled so that the mean stays.

    Args:
        values: Of any shape.
        probability: In [0, 1). On the CPU the nearest multiple of 2^-16 counts.

    Returns:
        The shape of ``values``.
    """
    if not probability:
        return values
    if values.device.type != "cpu":
        return F.dropout(values, probability)
    dropped, scale = draw_dropped(values.shape, probability)
    return values.masked_fill(dropped, 0) * scale


def draw_dropped(shape: Sequence[int], probability: float) -> tuple[Tensor, float]:
    """Which of so many values are dropped, from PyTorch's generator of the CPU, and the factor of the others.

    PyTorch's own dropout there takes a random number of 64 bits for each value, one after the other: longer than the
    matrix products of an attention. Here a value takes 16 bits.

    Args:
        shape: Of the values.
        probability: In [0, 1).

    Returns:
        Boolean of this shape, and the factor.
    """
    count = torch.Size(shape).numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    share = min(round(probability * _LEVELS), _LEVELS - 1)
    return (bits < share - _LEVELS // 2).view(shape), _LEVELS / (_LEVELS - share)
