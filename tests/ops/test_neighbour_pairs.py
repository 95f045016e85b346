"""Pairs of neighbouring positions: which there are, and in which order."""

from __future__ import annotations

import pytest
import torch

from afa.ops.neighbour_pairs import anchor_window, pair_offsets, paired


@pytest.mark.parametrize(("radius", "count"), [(2, 4), (3, 12), (4, 22), (5, 34)])
def test_offsets_lie_inside_the_circle_and_name_each_pair_once(radius: int, count: int) -> None:
    offsets = pair_offsets(radius)
    near = {
        (dy, dx)
        for dy in range(-radius, radius + 1)
        for dx in range(-radius, radius + 1)
        if 0 < dx * dx + dy * dy < radius * radius
    }
    assert len(offsets) == len(set(offsets)) == count
    assert set(offsets) | {(-dy, -dx) for dy, dx in offsets} == near
    assert list(offsets) == sorted(offsets)


def test_anchors_have_all_offsets_inside_the_grid() -> None:
    height, width, radius = 6, 11, 4
    rows, columns = anchor_window(height, width, radius)
    positions = torch.arange(height * width).view(height, width)
    anchors, others = paired(positions, radius)
    assert anchors.tolist() == [[y * width + x for y in range(3) for x in range(3, 8)]]
    assert (rows, columns) == (slice(0, 3), slice(3, 8))
    for (dy, dx), ends in zip(pair_offsets(radius), others.tolist(), strict=True):
        assert ends == [anchor + dy * width + dx for anchor in anchors[0].tolist()]


def test_leading_dimensions_and_types_are_kept() -> None:
    labels = torch.randint(0, 256, (2, 3, 7, 9), dtype=torch.uint8)
    anchors, others = paired(labels, 3)
    assert (anchors.shape, others.shape) == ((2, 3, 1, 25), (2, 3, 12, 25))
    assert anchors.dtype == others.dtype == torch.uint8
    assert torch.equal(others[1, 2], paired(labels[1, 2], 3)[1])


@pytest.mark.parametrize(("height", "width"), [(4, 9), (5, 8)])
def test_a_grid_without_anchors_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=rf"{height} x {width} positions is too small .* at least 5 x 9"):
        paired(torch.zeros(height, width), 5)
    assert paired(torch.zeros(5, 9), 5)[1].shape == (34, 1)


def test_a_radius_without_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        pair_offsets(1)
