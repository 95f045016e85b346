"""Scaled dot-product attention (Vaswani et al., 2017, eq. 1), in the way that is fastest for what it is given.

Shapes: B images, h heads, N queries, M keys and values, d channels per head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from afa.ops.dropout import draw_dropped

AT_ONCE = 2**21
"""Scores that are written out at once: 4 MB in bfloat16, which caches hold."""
MOST_WITH_GRADIENT = 2**23
"""Scores of an image that one attention keeps for the gradient: 16 MB in bfloat16."""
MOST_KEYS = 2**14
"""With more, too few queries fit at once."""


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, perhaps with dropout of the probabilities.

    It is PyTorch's fused attention, with two exceptions on the CPU, where the scores are written out, a cache's worth
    at a time (docs/benchmarks.md). In bfloat16, matrix products are much faster than the fused attention. With dropout
    there is no fused attention; the probabilities are then formed anew for the gradient.

    Args:
        query: [B, h, N, d].
        key: [B, h, M, d].
        value: [B, h, M, d].
        dropout: Probability in [0, 1).

    Returns:
        [B, h, N, d].
    """
    on_cpu = query.device.type == "cpu"
    if not on_cpu or not (dropout or (query.dtype == torch.bfloat16 and _worth_writing_out(query, key, value))):
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    # No softmax changes with the keys' mean, but rounding costs less: keys of pretrained networks have much in common.
    key = key - key.mean(dim=-2, keepdim=True)
    return _written_out(query * query.shape[-1] ** -0.5, key, value, dropout)


def _worth_writing_out(query: Tensor, key: Tensor, value: Tensor) -> bool:
    scores = query.shape[1] * query.shape[2] * key.shape[2]
    with_gradient = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    return key.shape[2] <= MOST_KEYS and (scores <= MOST_WITH_GRADIENT or not with_gradient)


def _written_out(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """softmax(q k^T) v, for as many images, heads or queries at once as fit."""
    images, heads, queries = query.shape[:3]
    of_query = key.shape[2]
    if images * heads * queries * of_query <= AT_ONCE or images == heads == queries == 1:
        if not dropout:
            return (query @ key.transpose(-2, -1)).softmax(dim=-1) @ value
        return checkpoint(_with_dropout, query, key, value, dropout, use_reentrant=False)
    if images > 1:
        dim, parts = 0, AT_ONCE // (heads * queries * of_query)
    elif heads > 1:
        dim, parts = 1, AT_ONCE // (queries * of_query)
    else:
        some = query.split(max(1, AT_ONCE // of_query), dim=2)
        return torch.cat([_written_out(part, key, value, dropout) for part in some], dim=2)
    parts = max(1, parts)
    pieces = zip(query.split(parts, dim), key.split(parts, dim), value.split(parts, dim), strict=True)
    return torch.cat([_written_out(*piece, dropout) for piece in pieces], dim)


def _with_dropout(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    probabilities = (query @ key.transpose(-2, -1)).softmax(dim=-1)
    dropped, scale = draw_dropped(probabilities.shape, dropout)
    return probabilities.masked_fill(dropped, 0) @ (value * scale)
