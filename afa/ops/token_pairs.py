"""Pairs of tokens within a radius of each other in y and in x: those that count in AFA (sec. 3.3-3.4).

Shapes: B images, h x w tokens, radius r. A tensor over pairs is [B, m + 1, 2 n + 1, h, w], where m and n are the
radius, or less on a smaller grid. Its entry (dy, n + dx, y, x) belongs to the tokens (y, x) and (y + dy, x + dx). So
each pair stands once, at its first token in row-major order, and (0, n) is each token with itself. What would lie
beyond the grid is no pair, and neither are the entries of dy = 0 with dx < 0: those pairs stand at their other token.

Memory grows with h w r^2, where all pairs would take (h w)^2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def reach(grid: tuple[int, int], radius: int) -> tuple[int, int]:
    """(m, n): how far pairs of a radius go in y and in x on a grid (h, w)."""
    return min(radius, grid[0] - 1), min(radius, grid[1] - 1)


def reach_of(pairs: Tensor) -> tuple[int, int]:
    """(m, n) of a tensor over pairs."""
    return pairs.shape[1] - 1, pairs.shape[2] // 2


def narrowed(pairs: Tensor, radius: int) -> Tensor:
    """The pairs within a smaller radius, as a view; with a larger one, all of them."""
    high, wide = reach_of(pairs)
    n = min(radius, wide)
    return pairs[:, : min(radius, high) + 1, wide - n : wide + n + 1]


def second_tokens(values: Tensor, radius: int, beyond: float) -> Tensor:
    """What the second token of each pair holds, as a view.

    Args:
        values: Of the tokens, [B, h, w].
        radius: r.
        beyond: What stands for tokens beyond the grid.

    Returns:
        [B, m + 1, 2 n + 1, h, w]; entries of dy = 0 with dx < 0, which are no pairs, hold a token like others.
    """
    height, width = values.shape[-2:]
    m, n = reach((height, width), radius)
    return F.pad(values, (n, n, 0, m), value=beyond).unfold(1, height, 1).unfold(2, width, 1)


def sum_of_ordered_pairs(pairs: Tensor) -> Tensor:
    """The sum over all ordered pairs: each pair counts twice, a token with itself once. Booleans are counted.

    Args:
        pairs: [B, m + 1, 2 n + 1, h, w]; 0 where there is no pair.
    """
    sums = pairs.sum(dim=(0, 3, 4))
    return 2 * sums.sum() - sums[0, pairs.shape[2] // 2]


def around(pairs: Tensor) -> Tensor:
    """What each token has with all tokens around it.

    Args:
        pairs: [B, m + 1, 2 n + 1, h, w]; 0 where there is no pair.

    Returns:
        [B, 2 m + 1, 2 n + 1, h, w]: (m + dy, n + dx, y, x) is that of the tokens (y, x) and (y + dy, x + dx).
    """
    (m, n), (height, width) = reach_of(pairs), pairs.shape[-2:]
    padded = F.pad(pairs, (n, n, m, 0))
    images, rows, columns, down, right = padded.stride()
    # (dy, n + dx, y, x) of this view is the pair that stands at (y - dy, x - dx).
    before = padded.as_strided(
        (len(pairs), m + 1, 2 * n + 1, height, width),
        (images, rows - down, columns - right, down, right),
        m * down + 2 * n * right,
    ).flip(1, 2)
    return torch.cat(
        [before[:, :m], torch.cat([before[:, m:, :n], pairs[:, :1, n:]], dim=2), pairs[:, 1:]],
        dim=1,
    )


def dense(pairs: Tensor) -> Tensor:
    """The symmetric matrix of all tokens; N = h w.

    Args:
        pairs: [B, m + 1, 2 n + 1, h, w]; 0 where there is no pair.

    Returns:
        [B, N, N], row-major tokens; 0 where there is no pair.
    """
    batch, (height, width) = len(pairs), pairs.shape[-2:]
    half = pairs.new_zeros(batch, height, width, height, width)
    for dy in range(pairs.shape[1]):
        products = _products_of(pairs[:, dy, :, : height - dy]).unflatten(0, (height - dy, batch))
        half.diagonal(dy, 1, 3).copy_(products.permute(1, 2, 3, 0))
    half = half.view(batch, height * width, height * width)
    return half + half.triu(1).transpose(1, 2)


def symmetric_products(query: Tensor, key: Tensor, radius: int) -> Tensor:
    """S + S^T of the pairs within a radius, where S = query key^T.

    Rows of tokens are multiplied with rows of tokens, and only the pairs are kept: that takes (h w)(m + 1) w products
    of whole vectors, and room for the pairs and for (h w) w numbers.

    Args:
        query, key: Of the tokens, [B, h, w, D].
        radius: r.

    Returns:
        [B, m + 1, 2 n + 1, h, w], minus infinity where there is no pair.
    """
    products: Tensor = _SymmetricProducts.apply(query, key, radius)
    return products


class _SymmetricProducts(torch.autograd.Function):
    """:func:`symmetric_products`. The gradients of all rows are summed in place, where autograd would copy each."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, radius: int) -> Tensor:
        # Rows first: any rows that follow each other are one block of memory for all images.
        query, key = query.transpose(0, 1).contiguous(), key.transpose(0, 1).contiguous()
        ctx.save_for_backward(query, key)
        height, batch, width, _ = query.shape
        m, n = reach((height, width), radius)
        found = query.new_full((batch, m + 1, 2 * n + 1, height, width), float("-inf"))
        for dy in range(m + 1):
            (first_query, second_query), (first_key, second_key) = (
                _first_and_second(query, dy),
                _first_and_second(key, dy),
            )
            products = torch.bmm(first_query, second_key.transpose(1, 2))
            if dy:
                products.baddbmm_(first_key, second_query.transpose(1, 2))
            else:
                products = products + products.transpose(1, 2)
            padded = F.pad(products, (n, n), value=float("-inf"))
            found[:, dy, :, : height - dy] = _pairs_of(padded, batch)
        found[:, 0, :n] = float("-inf")
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        query, key = ctx.saved_tensors
        height = len(query)
        of_query, of_key = torch.zeros_like(query), torch.zeros_like(key)
        with torch.autocast(query.device.type, enabled=False):
            for dy in range(gradients[0].shape[1]):
                products = _products_of(gradients[0][:, dy, :, : height - dy])
                for gradient, other in ((of_query, key), (of_key, query)):
                    first, second = _first_and_second(gradient, dy)
                    first_other, second_other = _first_and_second(other, dy)
                    first.baddbmm_(products, second_other)
                    second.baddbmm_(products.transpose(1, 2), first_other)
        return of_query.transpose(0, 1), of_key.transpose(0, 1), None


def _first_and_second(rows: Tensor, dy: int) -> tuple[Tensor, Tensor]:
    """Of [h, B, w, D] the rows of the first and of the second tokens of pairs dy apart: views [(h - dy) B, w, D]."""
    return rows[: len(rows) - dy].flatten(0, 1), rows[dy:].flatten(0, 1)


def _pairs_of(padded: Tensor, batch: int) -> Tensor:
    """Products [rows B, w, n + w + n] of each token of a row with all of another -> [B, 2 n + 1, rows, w], a view."""
    width, columns = padded.shape[1:]
    size = (len(padded) // batch, batch, width, columns - width + 1)
    diagonals = padded.as_strided(size, (batch * width * columns, width * columns, columns + 1, 1))
    return diagonals.permute(1, 3, 0, 2)


def _products_of(pairs: Tensor) -> Tensor:
    """The reverse: pairs [B, 2 n + 1, rows, w] -> [rows B, w, w], 0 where there is no pair."""
    batch, columns, rows, width = pairs.shape
    n = columns // 2
    padded = pairs.new_zeros(rows * batch, width, width + 2 * n)
    _pairs_of(padded, batch).copy_(pairs)
    return padded[:, :, n : n + width].contiguous()
