from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from afa.ops.token_pairs import around, dense, narrowed, second_tokens, sum_of_ordered_pairs, symmetric_products

GRIDS = pytest.mark.parametrize(("height", "width", "radius"), [(4, 5, 1), (3, 7, 2), (1, 6, 3), (5, 1, 2), (4, 4, 8)])


def places(height: int, width: int, radius: int) -> Iterator[tuple[tuple[int, int, int, int], int, int]]:
    """Every pair once: where it stands, and its first and second token."""
    n = min(radius, width - 1)
    for first in range(height * width):
        for second in range(first, height * width):
            (y, x), (to_y, to_x) = divmod(first, width), divmod(second, width)
            if abs(to_y - y) <= radius and abs(to_x - x) <= radius:
                yield (to_y - y, n + to_x - x, y, x), first, second


def tokens(batch: int, height: int, width: int, channels: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height * width)
    shape = (batch, height, width, channels)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@GRIDS
def test_products_of_pairs_are_those_of_the_matrix(height: int, width: int, radius: int) -> None:
    query, key = tokens(2, height, width)
    found = symmetric_products(query, key, radius)
    total = query.flatten(1, 2) @ key.flatten(1, 2).transpose(1, 2)
    total = total + total.transpose(1, 2)
    expected = torch.full(found.shape, float("-inf"))
    for (dy, column, y, x), first, second in places(height, width, radius):
        expected[:, dy, column, y, x] = total[:, first, second]
    torch.testing.assert_close(found, expected)


@GRIDS
def test_gradients_of_products(height: int, width: int, radius: int) -> None:
    query, key = (factor.double().requires_grad_() for factor in tokens(2, height, width, channels=3))
    assert torch.autograd.gradcheck(lambda q, k: symmetric_products(q, k, radius).sigmoid(), (query, key))


def test_gradients_keep_their_precision_under_autocast() -> None:
    query, key = (factor.requires_grad_() for factor in tokens(1, 4, 5))
    wanted = torch.autograd.grad(symmetric_products(query, key, 2).sigmoid().sum(), (query, key))
    logits = symmetric_products(query, key, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(logits.sigmoid().sum(), (query, key))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@GRIDS
def test_every_pair_once_around_each_token_and_as_a_matrix(height: int, width: int, radius: int) -> None:
    query, key = tokens(2, height, width)
    pairs = symmetric_products(query, key, radius).sigmoid()
    m, n = min(radius, height - 1), min(radius, width - 1)
    matrix = torch.zeros(2, height * width, height * width)
    windows = torch.zeros(2, 2 * m + 1, 2 * n + 1, height, width)
    for (dy, column, y, x), first, second in places(height, width, radius):
        value = pairs[:, dy, column, y, x]
        matrix[:, first, second] = matrix[:, second, first] = value
        windows[:, m + dy, column, y, x] = value
        windows[:, m - dy, 2 * n - column, second // width, second % width] = value
    assert torch.equal(dense(pairs), matrix)
    assert torch.equal(around(pairs), windows)
    torch.testing.assert_close(sum_of_ordered_pairs(pairs), matrix.sum())
    assert sum_of_ordered_pairs(pairs > 0) == (matrix > 0).sum()
    smaller = symmetric_products(query, key, radius - 1).sigmoid()
    torch.testing.assert_close(narrowed(pairs, radius - 1), smaller)
    assert torch.equal(narrowed(pairs, 99), pairs)


@GRIDS
def test_what_the_second_token_holds(height: int, width: int, radius: int) -> None:
    values = torch.arange(height * width).view(1, height, width)
    found = second_tokens(values, radius, beyond=-1)
    for (dy, column, y, x), _, second in places(height, width, radius):
        assert found[0, dy, column, y, x] == second
    # Beyond the last row and column.
    assert (found[0, 1:, :, -1] == -1).all() and (found[0, :, found.shape[2] // 2 + 1 :, :, -1] == -1).all()
