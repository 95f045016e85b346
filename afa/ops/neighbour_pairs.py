"""Pairs of neighbouring positions on a grid, as PSA pairs them (Ahn and Kwak, CVPR 2018, sec. 3.2, and its program).

An offset (dy, dx) leads from the first position of a pair, its anchor, to the second. Of the offsets (dy, dx) and
(-dy, -dx), which join the same positions, there is one. Every anchor has all offsets: the grid's last r - 1 rows, and
its first and last r - 1 columns, hold no anchors and are only ever second positions. Shapes: h x w positions, O
offsets, A anchors.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def pair_offsets(radius: int) -> tuple[tuple[int, int], ...]:
    """The offsets (dy, dx) of a radius, in their order: 34 of them for PSA's radius 5 (PSA sec. 3.2.2).

    First those in the same row to the right, then row by row downwards, each from left to right. Their length is below
    the radius.

    Args:
        radius: r, in positions, at least 2.

    Raises:
        ValueError: The radius is smaller: there are no pairs.
    """
    if radius < 2:
        raise ValueError(f"a radius of {radius} leaves no pairs: it must be at least 2")
    right = tuple((0, dx) for dx in range(1, radius))
    below = tuple(
        (dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius) if dx * dx + dy * dy < radius * radius
    )
    return right + below


def holds_pairs(height: int, width: int, radius: int) -> bool:
    """Whether a grid is large enough to hold an anchor."""
    return height > radius - 1 and width > 2 * (radius - 1)


def anchor_window(height: int, width: int, radius: int) -> tuple[slice, slice]:
    """Rows and columns of a grid that hold its anchors; anchors are numbered row by row.

    Args:
        height: h, above r - 1.
        width: w, above 2 (r - 1).
        radius: r.

    Raises:
        ValueError: The grid is too small to hold an anchor.
    """
    margin = radius - 1
    if not holds_pairs(height, width, radius):
        raise ValueError(
            f"a grid of {height} x {width} positions is too small for pairs of radius {radius}: it takes at least "
            f"{margin + 1} x {2 * margin + 1}"
        )
    return slice(0, height - margin), slice(margin, width - margin)


def anchors_of(values: Tensor, radius: int) -> Tensor:
    """The values at the anchors, as a view.

    Args:
        values: [..., h, w].
        radius: r.

    Returns:
        [..., h - r + 1, w - 2 (r - 1)].

    Raises:
        ValueError: See :func:`anchor_window`.
    """
    rows, columns = anchor_window(values.shape[-2], values.shape[-1], radius)
    return values[..., rows, columns]


def others_of(values: Tensor, radius: int) -> Iterator[Tensor]:
    """The values at the second positions, one view for each offset, in the order of :func:`pair_offsets`.

    Args:
        values: [..., h, w].
        radius: r.

    Yields:
        [..., h - r + 1, w - 2 (r - 1)], where each anchor has the value of its partner.

    Raises:
        ValueError: See :func:`anchor_window`.
    """
    rows, columns = anchor_window(values.shape[-2], values.shape[-1], radius)
    for dy, dx in pair_offsets(radius):
        yield values[..., rows.start + dy : rows.stop + dy, columns.start + dx : columns.stop + dx]


def paired(values: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Both ends of all pairs, such as the labels of a grid: [..., 1, A] against [..., O, A].

    Args:
        values: [..., h, w], of any type.
        radius: r.

    Returns:
        The values at the anchors [..., 1, A], and at the second positions [..., O, A].

    Raises:
        ValueError: See :func:`anchor_window`.
    """
    anchors = anchors_of(values, radius).flatten(-2)
    others = torch.stack([other.flatten(-2) for other in others_of(values, radius)], dim=-2)
    return anchors.unsqueeze(-2), others
