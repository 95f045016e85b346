"""One step of a random walk over tokens that spreads CAM scores along the learned affinity (AFA sec. 3.3, eq. 5-6)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class TokenAffinity(NamedTuple):
    """Affinity [B, N, N] in 0..1 between the tokens of a grid (h, w), N = h * w, row-major."""

    values: Tensor
    grid: tuple[int, int]


@lru_cache(maxsize=8)
def affinity_window(height: int, width: int, radius: int, device: torch.device | None = None) -> Tensor:
    """Which pairs of tokens lie within ``radius`` of each other in y and in x.

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
