"""Sparse matrices by rows, multiplied with dense ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix by rows: row r holds the entries ``offsets[r] : offsets[r + 1]`` (the last row: to the end).

    Attributes:
        columns: [E] int32, column of each entry.
        offsets: [R] int32, first entry of each row.
        weights: [E] float, value of each entry.
    """

    columns: Tensor
    offsets: Tensor
    weights: Tensor

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Multiply with a dense matrix [columns, C]; returns [R, C]. No gradient flows."""
        weights = self.weights.to(dense.dtype)
        return F.embedding_bag(self.columns, dense, self.offsets, mode="sum", per_sample_weights=weights)
