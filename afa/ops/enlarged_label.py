"""The class with the highest score at each pixel of a large image, made in tiles that fit the processor's cache.

Scores are resized and compared tile by tile: nothing of the image's size is made but the label. A resized score lies
between the scores around it, so within a tile most classes cannot win, and where one alone can, no pixel of the tile
need be computed. The label is that of resized scores, to the pixel: see :func:`enlarged_label`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from afa.ops.cam import resize

_TILE = (128, 256)
_FEWEST_PIXELS = 1 << 16
"""Smaller labels fit the cache as they are; and PyTorch resizes to the smallest sizes with another formula."""
_ROUNDING = 2.0**-20
"""Of the largest score: by so much a resized score may lie beyond the scores around it, and far more than it does."""


class _Axis(NamedTuple):
    """Which two rows (or columns) each row of the result lies between, int64 [n], and their weights, float32 [n]."""

    first: Tensor
    second: Tensor
    first_weight: Tensor
    second_weight: Tensor

    def part(self, start: int, end: int) -> tuple[_Axis, slice]:
        """Those of some rows of the result, and the rows that they need; indices count from the first of these."""
        low, high = int(self.first[start]), int(self.second[end - 1])
        own = slice(start, end)
        part = _Axis(self.first[own] - low, self.second[own] - low, self.first_weight[own], self.second_weight[own])
        return part, slice(low, high + 1)


@torch.no_grad()
def enlarged_label(
    scores: Tensor, class_ids: Tensor, size: tuple[int, int], *, above: float | None = None, together: bool = False
) -> Tensor | None:
    """The id of the class with the highest resized score at each pixel; of equal scores the first class wins.

    Args:
        scores: [c, h, w], c at least 1.
        class_ids: Integers [c], 0..255.
        size: (H, W).
        above: What a score must exceed for its class to win, else the pixel is 0; None: the highest wins anyway.
        together: Resized as :func:`afa.ops.cam.resize` does all channels at once, which rounds otherwise for some
            numbers of channels; default: as it does a channel alone.

    Returns:
        uint8 [H, W], at each pixel what :func:`afa.ops.cam.resize` and a comparison of all classes give. None where
        that cannot be promised, or does not pay: not on the CPU, not float32, few pixels, scores that are not finite,
        ids that do not rise, a PyTorch that rounds in another way.
    """
    height, width = size
    if scores.device.type != "cpu" or scores.dtype != torch.float32 or height * width < _FEWEST_PIXELS:
        return None
    if not torch.isfinite(scores).all() or int(class_ids.max()) > 255 or not bool((class_ids.diff() > 0).all()):
        return None
    if above is not None and int(class_ids[0]) == 0:
        return None
    if not _is_reproduced(len(scores) if together else 1, together and not scores[None].is_contiguous()):
        return None
    scores = scores.contiguous()
    ids = [int(class_id) for class_id in class_ids]
    rows, columns = _axis(scores.shape[1], height), _axis(scores.shape[2], width)
    column_parts = [
        (slice(left, min(left + _TILE[1], width)), *columns.part(left, min(left + _TILE[1], width)))
        for left in range(0, width, _TILE[1])
    ]
    label = torch.empty(size, dtype=torch.uint8)
    for top in range(0, height, _TILE[0]):
        bottom = min(top + _TILE[0], height)
        row_part, needed_rows = rows.part(top, bottom)
        for place, column_part, needed_columns in column_parts:
            around = scores[:, needed_rows, needed_columns]
            able, is_above = _classes_that_can_win(around, above)
            tile = label[top:bottom, place]
            if not able:
                tile.zero_()
            elif len(able) == 1 and is_above:
                tile.fill_(ids[able[0]])
            else:
                _compare(around[able], [ids[index] for index in able], row_part, column_part, above, tile)
    return label


def _classes_that_can_win(around: Tensor, above: float | None) -> tuple[list[int], bool]:
    """Indices of the classes that may win somewhere between these scores, and whether any score exceeds ``above``."""
    low, high = around.flatten(1).aminmax(dim=1)
    margin = _ROUNDING * max(float(high.max()), -float(low.min()))
    level = float(low.max())  # Some class is nowhere below it.
    is_above = above is None or level - margin > above
    if above is not None:
        level = max(level, above)
    return torch.nonzero(high >= level - margin).flatten().tolist(), is_above


def _compare(
    around: Tensor, class_ids: list[int], rows: _Axis, columns: _Axis, above: float | None, tile: Tensor
) -> None:
    """Write the label of one tile: each class in turn wins where it beats those before."""
    tile.zero_()
    best = torch.full(tile.shape, -torch.inf if above is None else above)
    for channel, class_id in zip(_between(around, columns, -1), class_ids, strict=True):
        scores = _between(channel, rows, -2)
        # Ids rise: the last class that beat those before is the one with the highest id.
        torch.maximum(tile, (scores > best).view(torch.uint8).mul_(class_id), out=tile)
        torch.maximum(best, scores, out=best)


def _between(scores: Tensor, axis: _Axis, dim: int) -> Tensor:
    """Interpolate along one dimension."""
    if dim == -1:
        first_weight, second_weight = axis.first_weight, axis.second_weight
    else:
        first_weight, second_weight = axis.first_weight[:, None], axis.second_weight[:, None]
    total = scores.index_select(dim, axis.second).mul_(second_weight)
    return total.addcmul_(scores.index_select(dim, axis.first), first_weight)


def _axis(length: int, size: int) -> _Axis:
    """The places of a resize with align_corners False, rounded as PyTorch's kernel does."""
    if length == size:
        same = torch.arange(size)
        return _Axis(same, same, torch.ones(size), torch.zeros(size))
    # Product and difference are rounded once, to float32.
    scale = float(np.float32(length) / np.float32(size))
    places = (scale * (np.arange(size) + 0.5) - 0.5).astype(np.float32).clip(0)
    first = np.minimum(places.astype(np.int64), length - 1)
    second_weight = (places - first.astype(np.float32)).clip(0, 1)
    weights = (np.float32(1) - second_weight, second_weight)
    return _Axis(*map(torch.from_numpy, (first, np.minimum(first + 1, length - 1), *weights)))


@cache
def _is_reproduced(channels: int, channels_last: bool) -> bool:
    """Whether this PyTorch, on this processor, resizes with the roundings that are assumed here."""
    generator = torch.Generator().manual_seed(0)
    for length, width, size in ((7, 11, (150, 190)), (190, 3, (97, 260)), (24, 31, (24, 333))):
        scores = torch.randn(1, channels, length, width, generator=generator)
        if channels_last:
            scores = scores.contiguous(memory_format=torch.channels_last)
        own = _between(_between(scores, _axis(width, size[1]), -1), _axis(length, size[0]), -2)
        if not torch.equal(own, resize(scores, size)):
            return False
    return True
