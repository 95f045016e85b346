"""Random walks that spread CAM scores along a learned affinity.

Over all tokens, one step: AFA sec. 3.3, eq. 5-6. Over neighbouring positions, many steps: PSA (Ahn and Kwak, CVPR
2018), sec. 3.3.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from afa.ops.neighbour_pairs import anchor_window, pair_offsets
from afa.ops.sparse import SparseRows


class TokenAffinity(NamedTuple):
    """Affinity [B, N, N] in 0..1 between the tokens of a grid (h, w), N = h * w, row-major."""

    values: Tensor
    grid: tuple[int, int]

    def of(self, y: int, x: int) -> Tensor:
        """The affinity of every token with one token, for display: [B, h, w].

        Raises:
            IndexError: There is no such token.
        """
        return self.values[:, _place(y, x, self.grid)].unflatten(1, self.grid)


class PairAffinity(NamedTuple):
    """Affinity between neighbouring positions of one image's grid, stored by offset.

    Attributes:
        values: float32 [O, h, w] in 0..1. At (o, y, x) that of the positions (y, x) and (y + dy, x + dx), where (dy,
            dx) is offset o of :func:`afa.ops.neighbour_pairs.pair_offsets`; 0 where these are no pair.
        radius: r of the pairs.
    """

    values: Tensor
    radius: int

    @classmethod
    def of_pairs(cls, pairs: Tensor, grid: tuple[int, int], radius: int) -> PairAffinity:
        """From the affinities of all pairs.

        Args:
            pairs: [O, A], as :func:`afa.models.psa.pair_affinity` gives them.
            grid: (h, w).
            radius: r.

        Raises:
            ValueError: The grid is too small to hold a pair.
        """
        rows, columns = anchor_window(*grid, radius)
        values = pairs.new_zeros(len(pairs), *grid)
        window = values[:, rows, columns]
        window.copy_(pairs.view_as(window))
        return cls(values, radius)

    @classmethod
    def without_pairs(cls, grid: tuple[int, int], radius: int, device: torch.device) -> PairAffinity:
        """Of a grid that is too small to hold a pair."""
        return cls(torch.zeros(len(pair_offsets(radius)), *grid, device=device), radius)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.values.shape[-2], self.values.shape[-1]

    def of(self, y: int, x: int) -> Tensor:
        """The affinity of every position with one position, for display: [h, w], 1 with itself, 0 beyond the pairs.

        Raises:
            IndexError: There is no such position.
        """
        _place(y, x, self.grid)
        height, width = self.grid
        found = self.values.new_zeros(height, width)
        found[y, x] = 1
        for (dy, dx), values in zip(pair_offsets(self.radius), self.values, strict=True):
            if y + dy < height and 0 <= x + dx < width:
                found[y + dy, x + dx] = values[y, x]
            if y >= dy and 0 <= x - dx < width:
                found[y - dy, x - dx] = values[y - dy, x - dx]
        return found


def _place(y: int, x: int, grid: tuple[int, int]) -> int:
    """Where a position is in row-major order."""
    height, width = grid
    if not (0 <= y < height and 0 <= x < width):
        raise IndexError(f"there is no position ({y}, {x}) in a grid of {height} x {width}")
    return y * width + x


@lru_cache(maxsize=8)
def affinity_window(height: int, width: int, radius: int, device: torch.device | None = None) -> Tensor:
    """Which pairs of tokens are within ``radius`` of each other in y and in x.

    Built once per grid: every step asks for the same few. The last eight are kept: large grids have large ones.

    Returns:
        Boolean [N, N], N = height * width, row-major tokens.
    """
    rows = torch.arange(height)
    columns = torch.arange(width)
    near_rows = (rows[:, None] - rows).abs() <= radius  # [h, h]
    near_columns = (columns[:, None] - columns).abs() <= radius  # [w, w]
    window = near_rows[:, None, :, None] & near_columns[None, :, None, :]  # [h, w, h, w]
    return window.reshape(height * width, height * width).to(device)


def transition_matrix(affinity: TokenAffinity, *, radius: int, power: float, epsilon: float) -> Tensor:
    """T = A^power inside the window, each column divided by its sum + epsilon (eq. 5).

    Args:
        affinity: [B, N, N] in 0..1.
        radius: In tokens of its grid.
        power: The paper's alpha.
        epsilon: Keeps columns of no affinity at rest.

    Returns:
        [B, N, N].
    """
    values = affinity.values
    raised = values.square() if power == 2 else values.pow(power)
    raised.mul_(affinity_window(*affinity.grid, radius, values.device))
    return raised.div_(raised.sum(dim=1, keepdim=True).add_(epsilon))


@torch.no_grad()
def propagate(scores: Tensor, affinity: TokenAffinity, *, radius: int, power: float, epsilon: float) -> Tensor:
    """Scores after one step of the walk: scores * T (eq. 6).

    Args:
        scores: [B, c, h, w] on the affinity's grid, background included.
        affinity: [B, N, N].
        radius, power, epsilon: See :func:`transition_matrix`.

    Returns:
        [B, c, h, w].
    """
    transition = transition_matrix(affinity, radius=radius, power=power, epsilon=epsilon)
    return torch.bmm(scores.flatten(2), transition).view_as(scores)


@torch.no_grad()
def walk(scores: Tensor, affinity: PairAffinity, *, power: float, steps: int) -> Tensor:
    """Scores after ``steps`` steps of the walk: scores * T^steps, T = A^power with columns divided by their sums.

    A is symmetric, 1 on its diagonal, 0 between positions that are no pair. Its rows have few entries, so scores are
    multiplied step by step: T^steps, which is dense, is never formed.

    Args:
        scores: [c, h, w] on the affinity's grid, background included.
        affinity: Of one image.
        power: The paper's beta.
        steps: The paper's t.

    Returns:
        [c, h, w].
    """
    transition = _transition_rows(affinity, power)
    walked = scores.flatten(1).t().contiguous()  # [N, c]
    for _ in range(steps):
        walked = transition @ walked
    return walked.t().reshape(scores.shape)


def _transition_rows(affinity: PairAffinity, power: float) -> SparseRows:
    """T transposed: row j holds what position j takes of each position, itself first, whose sum is 1."""
    height, width = affinity.grid
    raised = affinity.values.pow(power)
    positions = torch.arange(height * width, dtype=torch.int32, device=raised.device).view(height, width)
    columns, weights = [positions], [torch.ones_like(raised[0])]
    for (dy, dx), values in zip(pair_offsets(affinity.radius), raised, strict=True):
        # What is rolled in from the other side is no pair, so it has no weight.
        columns += [positions.roll((-dy, -dx), (0, 1)), positions.roll((dy, dx), (0, 1))]
        weights += [values, values.roll((dy, dx), (0, 1))]
    shares = torch.stack(weights, dim=-1)
    shares /= shares.sum(dim=-1, keepdim=True)
    entries = len(columns)
    offsets = torch.arange(0, height * width * entries, entries, dtype=torch.int32, device=raised.device)
    return SparseRows(torch.stack(columns, dim=-1).flatten(), offsets, shares.flatten())
