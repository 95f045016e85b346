"""One step of a random walk over tokens that spreads CAM scores along the learned affinity (AFA sec. 3.3, eq. 5-6)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


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


def transition_matrix(
    affinity: Tensor, token_grid: tuple[int, int], *, radius: int = 8, power: float = 2.0, epsilon: float = 0.1
) -> Tensor:
    """T = A^power inside the window, each column divided by its sum + epsilon (eq. 5).

    Args:
        affinity: [B, N, N] in 0..1.
        token_grid: (h, w) with h * w = N.
        radius: In tokens of this grid.
        power: The paper's alpha.
        epsilon: Keeps columns of no affinity at rest.

    Returns:
        [B, N, N].
    """
    raised = affinity.square() if power == 2 else affinity.pow(power)
    raised.mul_(affinity_window(*token_grid, radius, affinity.device))
    return raised.div_(raised.sum(dim=1, keepdim=True).add_(epsilon))


@torch.no_grad()
def propagate(
    scores: Tensor,
    affinity: Tensor,
    *,
    radius: int = 8,
    power: float = 2.0,
    epsilon: float = 0.1,
) -> Tensor:
    """Scores after one step of the walk: scores * T (eq. 6).

    Args:
        scores: [B, C, h, w], background included.
        affinity: [B, N, N], N = h * w.
        radius, power, epsilon: See :func:`transition_matrix`.

    Returns:
        [B, C, h, w].
    """
    height, width = scores.shape[-2:]
    transition = transition_matrix(affinity, (height, width), radius=radius, power=power, epsilon=epsilon)
    return torch.bmm(scores.flatten(2), transition).view_as(scores)
