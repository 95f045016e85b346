"""Scaled dot-product attention (Vaswani et al., 2017, eq. 1), in the way that is fastest for what it is given.

Shapes: B images, h heads, N queries, M keys and values, d channels per head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 2**21
"""Scores that are written out at once: 4 MB in bfloat16, which caches hold."""
MOST_WITH_GRADIENT = 2**23
"""Scores of an image that are kept for the gradient: 16 MB in bfloat16."""
MOST_KEYS = 2**14
"""With more, too few queries fit at once."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v.

    It is PyTorch's fused attention, except for bfloat16 on the CPU: matrix products are much faster there, so the
    scores are written out, a cache's worth at a time (docs/benchmarks.md).

    Args:
        query: [B, h, N, d].
        key: [B, h, M, d].
        value: [B, h, M, d].

    Returns:
        [B, h, N, d].
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not _worth_writing_out(query, key):
        return F.scaled_dot_product_attention(query, key, value)
    # No softmax changes with the keys' mean, but rounding costs less: keys of pretrained networks have much in common.
    key = key - key.mean(dim=-2, keepdim=True)
    return _written_out(query * query.shape[-1] ** -0.5, key, value)


def _worth_writing_out(query: Tensor, key: Tensor) -> bool:
    scores = query.shape[1] * query.shape[2] * key.shape[2]
    with_gradient = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    return key.shape[2] <= MOST_KEYS and (scores <= MOST_WITH_GRADIENT or not with_gradient)


def _written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T) v, for as many images, heads or queries at once as fit."""
    images, heads, queries = query.shape[:3]
    of_query = key.shape[2]
    if images * heads * queries * of_query <= AT_ONCE:
        return (query @ key.transpose(-2, -1)).softmax(dim=-1) @ value
    if images > 1:
        dim, parts = 0, max(1, AT_ONCE // (heads * queries * of_query))
    elif heads > 1:
        dim, parts = 1, max(1, AT_ONCE // (queries * of_query))
    else:
        found = [_written_out(some, key, value) for some in query.split(AT_ONCE // of_query, dim=2)]
        return torch.cat(found, dim=2)
    pieces = zip(*(part.split(parts, dim) for part in (query, key, value)), strict=True)
    return torch.cat([_written_out(*piece) for piece in pieces], dim)
