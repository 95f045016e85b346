"""Mix Transformer (MiT), the encoder of SegFormer, with a last stride of 1 as AFA uses it (sec. 3.1).

Shapes: B images, C channels, h x w token grid, N = h * w tokens, M tokens after spatial reduction, d channels per head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import mul

import torch.nn.functional as F
from torch import Tensor, nn

from afa.models.base import AttentiveEncoder, EncoderOutput, RawAttention
from afa.ops.attention import attend


class Attention(nn.Module):
    """Multi-head self-attention whose keys and values come from a spatially reduced token grid."""

    def __init__(self, width: int, heads: int, reduction: int, fused: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.reduction = reduction
        self.attend = attend if fused else written_out_attention
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, kernel_size=reduction, stride=reduction)
            self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], attention_of: int = 0
    ) -> tuple[Tensor, RawAttention | None]:
        """Attend.

        Args:
            tokens: [B, N, C].
            grid: (h, w) with h * w = N.
            attention_of: Of how many of the first images the raw attention is wanted.

        Returns:
            Tokens [B, N, C], and the raw attention of the first ``attention_of`` images, or None.
        """
        query = self._heads(self.q(tokens))  # [B, heads, N, d]
        key, value = (self._heads(part) for part in self.kv(self._reduce(tokens, grid)).chunk(2, dim=-1))
        attended = self.attend(query, key, value)
        raw = RawAttention(query[:attention_of], key[:attention_of]) if attention_of else None
        return self.proj(attended.transpose(1, 2).flatten(2)), raw

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.view(tokens.shape[0], tokens.shape[1], self.heads, -1).transpose(1, 2)

    def _reduce(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.reduction == 1:
            return tokens
        maps = to_map(tokens, grid)
        # A grid smaller than the window still needs one reduced token.
        short = [max(0, self.reduction - side) for side in grid]
        if any(short):
            maps = F.pad(maps, (0, short[1], 0, short[0]))
        return self.norm(to_tokens(self.sr(maps)))


class DepthwiseConv(nn.Module):
    """3 x 3 depth-wise convolution on the token grid: the encoder's only sense of position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        return to_tokens(self.dwconv(to_map(tokens, grid)))


class MixFeedForward(nn.Module):
    """Linear, depth-wise convolution, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(tokens), grid)))


class DropPath(nn.Module):
    """Stochastic depth: in training, a residual branch of each image is dropped at random, and what stays is scaled up.

    The draws are those of ``timm.layers.DropPath``, whose import takes as long as PyTorch's own.

    Args:
        drop_prob: Chance of being dropped, in [0, 1).
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, branch: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]."""
        if self.drop_prob == 0 or not self.training:
            return branch
        keep = 1 - self.drop_prob
        kept = branch.new_empty(branch.shape[0], *(1,) * (branch.ndim - 1)).bernoulli_(keep)
        return branch * kept.div_(keep)


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth."""

    def __init__(
        self, width: int, heads: int, reduction: int, mlp_ratio: float, drop_path: float, fused_attention: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, reduction, fused_attention)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MixFeedForward(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], attention_of: int = 0
    ) -> tuple[Tensor, RawAttention | None]:
        """[B, N, C] -> [B, N, C], and the raw attention of :class:`Attention`."""
        attended, raw = self.attn(self.norm1(tokens), grid, attention_of)
        tokens = tokens + self.drop_path(attended)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens), grid)), raw


class PatchEmbedding(nn.Module):
    """Overlapping patches: a strided convolution and a LayerNorm."""

    def __init__(self, in_channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, C_in, H, W] -> tokens [B, N, C] and their grid (h, w)."""
        embedded = self.proj(maps)
        return self.norm(to_tokens(embedded)), (embedded.shape[-2], embedded.shape[-1])


class MixTransformer(AttentiveEncoder):
    """The four-stage encoder.

    Args:
        widths: Channels of the stages.
        depths: Blocks of the stages.
        heads: Attention heads of the stages.
        reductions: Spatial reduction of keys and values.
        strides: Of the patch embeddings. (4, 2, 2, 1) puts stages 3 and 4 both at stride 16.
        mlp_ratio: Hidden width of the feed-forward part over the stage's width.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.
        fused_attention: False writes attention out, as the released program does, at the cost of time and memory.

    Attributes:
        depths, heads, reductions: As given.
        embedding_strides: Those of the patch embeddings; their products are the features' strides.

    Raises:
        ValueError: A width that its heads do not divide.
    """

    mean = (123.675, 116.28, 103.53)
    std = (58.395, 57.12, 57.375)

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        reductions: Sequence[int] = (8, 4, 2, 1),
        strides: Sequence[int] = (4, 2, 2, 1),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        fused_attention: bool = True,
    ) -> None:
        super().__init__()
        for width, count in zip(widths, heads, strict=True):
            if width % count:
                raise ValueError(f"{count} heads do not divide a width of {width}")
        self.channels = tuple(widths)
        self.depths = tuple(depths)
        self.heads = tuple(heads)
        self.embedding_strides = tuple(strides)
        self.strides = tuple(accumulate(strides, mul))
        self.reductions = tuple(reductions)
        blocks_in_all = sum(depths)
        drop_rates = (drop_path * block / max(1, blocks_in_all - 1) for block in range(blocks_in_all))
        in_channels, kernel = 3, 7
        for stage, (width, depth, count, reduction, stride) in enumerate(
            zip(widths, depths, heads, reductions, strides, strict=True), start=1
        ):
            blocks = [
                Block(width, count, reduction, mlp_ratio, next(drop_rates), fused_attention) for _ in range(depth)
            ]
            self.add_module(f"patch_embed{stage}", PatchEmbedding(in_channels, width, kernel, stride))
            self.add_module(f"block{stage}", nn.ModuleList(blocks))
            self.add_module(f"norm{stage}", nn.LayerNorm(width, eps=1e-6))
            in_channels, kernel = width, 3
        self.apply(_initialise)

    def forward(
        self, image: Tensor, *, attention_of: int = 0, attention_blocks: int = 0, cam_only: bool = False
    ) -> EncoderOutput:
        """Encode images.

        Args:
            image: Normalised, [B, 3, H, W].
            attention_of: Of how many of the first images the raw attention is wanted.
            attention_blocks: Of how many of the last blocks, all with reduction 1 and on the last token grid.
            cam_only: Changes nothing: CAMs are made of the last map, which needs all others.

        Returns:
            Feature maps at strides 4, 8, 16, 16 (with the default strides) and the raw attention before scale and
            softmax, as the released program takes it, earlier blocks first.
        """
        features: list[Tensor] = []
        attention: list[RawAttention] = []
        blocks_left = sum(self.depths)
        maps = image
        for stage in range(1, 5):
            tokens, grid = self.get_submodule(f"patch_embed{stage}")(maps)
            for block in self.get_submodule(f"block{stage}").children():
                wanted = attention_of if blocks_left <= attention_blocks else 0
                tokens, raw = block(tokens, grid, wanted)
                if raw is not None:
                    attention.append(raw)
                blocks_left -= 1
            maps = to_map(self.get_submodule(f"norm{stage}")(tokens), grid)
            features.append(maps)
        return EncoderOutput(features, attention, features[-1])

    def attention_maps(self, blocks: int) -> int:
        """See :class:`afa.models.base.AttentiveEncoder`: the blocks need reduction 1 and the last token grid."""
        stages = [stage for stage, depth in enumerate(self.depths) for _ in range(depth)][-blocks:]
        if len(stages) < blocks or any(self.reductions[stage] != 1 for stage in stages):
            raise ValueError(
                f"the last {blocks} blocks must have spatial reduction 1: the affinity needs square attention"
            )
        if self.strides[stages[0]] != self.strides[-1]:
            raise ValueError(f"the last {blocks} blocks lie on different token grids")
        return sum(self.heads[stage] for stage in stages)

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """Those whose name holds ``norm``, as the released AFA program has it."""
        return (parameter for name, parameter in self.named_parameters() if "norm" in name)


def written_out_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What fused attention computes, by definition: softmax(q k^T / sqrt(d)) v."""
    return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1) @ value


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, N, C] -> [B, C, h, w], a view (channels-last in memory)."""
    return tokens.transpose(1, 2).view(tokens.shape[0], tokens.shape[2], *grid)


def to_tokens(maps: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, N, C], a view."""
    return maps.flatten(2).transpose(1, 2)


def _initialise(module: nn.Module) -> None:
    """Linear: truncated normal, std 0.02; convolution: normal by fan-out per group; biases 0; norms 1 and 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
