"""Random walks that spread CAM scores along a learned affinity between neighbours.

One step: AFA sec. 3.3, eq. 5-6. Many steps: PSA (Ahn and Kwak, CVPR 2018), sec. 3.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.ops.neighbour_pairs import anchor_window, pair_offsets
from afa.ops.sparse import SparseRows
from afa.ops.token_pairs import around, dense, narrowed, reach, reach_of, second_tokens


class TokenAffinity(NamedTuple):
    """Affinity [B, N, N] in 0..1 between all tokens of a grid (h, w), N = h * w, row-major: for display."""

    values: Tensor
    grid: tuple[int, int]

    def within(self, radius: int) -> PairAffinity:
        """That of the pairs within a radius in y and in x."""
        tokens = torch.arange(self.values.shape[-1], device=self.values.device).view(1, *self.grid)
        others = second_tokens(tokens, radius, beyond=tokens.numel())
        pairs = F.pad(self.values, (0, 1))[:, tokens[0], others[0]]
        pairs[:, 0, : pairs.shape[2] // 2] = 0  # they stand at their other token
        return PairAffinity(pairs)

    def of(self, y: int, x: int) -> Tensor:
        """The affinity of every token with one token, for display: [B, h, w].

        Raises:
            IndexError: There is no such token.
        """
        return self.values[:, _place(y, x, self.grid)].unflatten(1, self.grid)


class PairAffinity(NamedTuple):
    """Affinity between neighbouring tokens.

    Attributes:
        values: float32 [B, m + 1, 2 n + 1, h, w] in 0..1, 0 where there is no pair; see :mod:`afa.ops.token_pairs`.
    """

    values: Tensor

    @classmethod
    def of_pairs(cls, pairs: Tensor, grid: tuple[int, int], radius: int) -> PairAffinity:
        """Of one image, from the affinities of PSA's pairs; that of a position with itself is 1.

        Args:
            pairs: [O, A], as :func:`afa.models.psa.pair_affinity` gives them.
            grid: (h, w).
            radius: r of :mod:`afa.ops.neighbour_pairs`.

        Raises:
            ValueError: The grid is too small to hold a pair.
        """
        rows, columns = anchor_window(*grid, radius)
        affinity = cls.without_pairs(grid, radius, pairs.device)
        for (dy, dx), values in zip(pair_offsets(radius), pairs, strict=True):
            window = affinity.values[0, dy, radius - 1 + dx, rows, columns]
            window.copy_(values.view_as(window))
        return affinity

    @classmethod
    def without_pairs(cls, grid: tuple[int, int], radius: int, device: torch.device) -> PairAffinity:
        """Of a grid that is too small to hold one of PSA's pairs: that of each position with itself is 1."""
        m, n = reach(grid, radius - 1)
        values = torch.zeros(1, m + 1, 2 * n + 1, *grid, device=device)
        values[:, 0, n] = 1
        return cls(values)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.values.shape[-2], self.values.shape[-1]

    def within(self, radius: int) -> PairAffinity:
        """That of the pairs within a smaller radius in y and in x."""
        return PairAffinity(narrowed(self.values, radius))

    def all_pairs(self) -> TokenAffinity:
        """The same as a matrix, for display."""
        return TokenAffinity(dense(self.values), self.grid)

    def of(self, y: int, x: int) -> Tensor:
        """The affinity of every token with one token, for display: [B, h, w], 0 where they are no pair.

        Raises:
            IndexError: There is no such token.
        """
        _place(y, x, self.grid)
        (height, width), (m, n) = self.grid, reach_of(self.values)
        found = self.values.new_zeros(len(self.values), height + 2 * m, width + 2 * n)
        found[:, y : y + 2 * m + 1, x : x + 2 * n + 1] = around(self.values)[..., y, x]
        return found[:, m : m + height, n : n + width]


def _place(y: int, x: int, grid: tuple[int, int]) -> int:
    """Where a position is in row-major order."""
    height, width = grid
    if not (0 <= y < height and 0 <= x < width):
        raise IndexError(f"there is no position ({y}, {x}) in a grid of {height} x {width}")
    return y * width + x


@torch.no_grad()
def walk(scores: Tensor, affinity: PairAffinity, *, power: float, steps: int, epsilon: float = 0) -> Tensor:
    """Scores after ``steps`` steps of the walk: scores * T^steps, T = A^power with columns divided by their sums.

    A is 0 between tokens that are no pair. Its rows have few entries, so scores are multiplied step by step: neither T
    nor T^steps, which is dense, is ever formed.

    Args:
        scores: [B, c, h, w] on the affinity's grid, background included.
        affinity: Of the same images.
        power: AFA's alpha (eq. 5), PSA's beta.
        steps: PSA's t; AFA takes one.
        epsilon: Added to the sums; keeps columns of no affinity at rest.

    Returns:
        [B, c, h, w].
    """
    transition = _transition_rows(affinity, power, epsilon)
    walked = scores.transpose(0, 1).flatten(1).t().contiguous()  # [B N, c]
    for _ in range(steps):
        walked = transition @ walked
    return walked.t().unflatten(1, (len(scores), *affinity.grid)).transpose(0, 1)


def _transition_rows(affinity: PairAffinity, power: float, epsilon: float) -> SparseRows:
    """T transposed: row j holds what token j takes of each token around it."""
    (m, n), (height, width) = reach_of(affinity.values), affinity.grid
    values = affinity.values.square() if power == 2 else affinity.values.pow(power)
    shares = around(values)
    shares /= shares.sum(dim=(1, 2), keepdim=True).add_(epsilon)
    images, device = len(shares), shares.device
    whole = torch.int32 if shares.numel() < 2**31 else torch.int64
    down, right = (torch.arange(-far, far + 1, dtype=whole, device=device) for far in (m, n))
    tokens = torch.arange(images * height * width, dtype=whole, device=device)
    rows, columns = (torch.arange(side, dtype=whole, device=device) for side in (height, width))
    on_grid = _on_line(rows, down)[:, None, :, None] & _on_line(columns, right)[None, :, None, :]  # [h, w, dy, dx]
    # What lies beyond the grid has no share. The token itself stands there: another one's NaN would not be lost.
    steps = ((down * width)[:, None] + right) * on_grid
    taken = tokens.view(images, height, width, 1, 1) + steps
    return SparseRows(taken.flatten(), tokens * steps[0, 0].numel(), shares.flatten(1, 2).permute(0, 2, 3, 1).flatten())


def _on_line(places: Tensor, steps: Tensor) -> Tensor:
    """Whether each step from each of the places 0 to len(places) - 1 leads to one of them; bool [places, steps]."""
    reached = places[:, None] + steps
    return (reached >= 0) & (reached < len(places))
