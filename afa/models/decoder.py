"""SegFormer's all-MLP decoder: four feature maps -> class logits at the first map's stride (AFA sec. 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Module):
    """Linear layer over channels; a module of its own because published checkpoints name its weights ``proj``."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, width)


class Fusion(nn.Module):
    """1 x 1 convolution without bias over the concatenated maps, and BatchNorm."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-5, momentum=0.1)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")


class SegFormerDecoder(nn.Module):
    """Project each stage, upsample, fuse, classify.

    By definition: fuse(concat(up(proj_4 f4), up(proj_3 f3), up(proj_2 f2), proj_1 f1)). Bilinear upsampling and 1 x 1
    layers commute, so each stage's share of the fusion is taken at its own resolution, with the two linear layers
    multiplied into one, and only the sum is formed at full size: the same values at about a quarter of the arithmetic.

    Args:
        widths: Channels of the four feature maps.
        width: Channels of the decoder.
        num_classes: Background included.
        dropout: Dropout2d before the last layer.
    """

    def __init__(self, *, widths: Sequence[int], width: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.width = width
        w1, w2, w3, w4 = widths
        self.linear_c4 = Projection(w4, width)
        self.linear_c3 = Projection(w3, width)
        self.linear_c2 = Projection(w2, width)
        self.linear_c1 = Projection(w1, width)
        self.linear_fuse = Fusion(4 * width, width)
        self.dropout = nn.Dropout2d(dropout)
        self.linear_pred = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four maps [B, C_i, h_i, w_i], finest first -> logits [B, num_classes, h_1, w_1]."""
        projections = (self.linear_c4, self.linear_c3, self.linear_c2, self.linear_c1)
        shares = self.linear_fuse.conv.weight.flatten(1).split(self.width, dim=1)  # of f4, f3, f2, f1
        # Stages of one size are added before they are upsampled. Lists: while it is exported, sizes have no hash.
        sizes: list[tuple[int, int]] = []
        sums: list[Tensor] = []
        for feature, projection, share in zip(reversed(features), projections, shares, strict=True):
            weight = share @ projection.proj.weight
            bias = share @ projection.proj.bias
            contribution = _linear(feature, weight, bias)
            size = (feature.shape[-2], feature.shape[-1])
            if size in sizes:
                place = sizes.index(size)
                sums[place] = sums[place] + contribution
            else:
                sizes.append(size)
                sums.append(contribution)
        full_size = (features[0].shape[-2], features[0].shape[-1])
        total = sums.pop(sizes.index(full_size))
        for contribution in sums:
            total = total + F.interpolate(contribution, size=full_size, mode="bilinear", align_corners=False)
        fused = F.relu(self.linear_fuse.bn(total), inplace=True)
        return _linear(self.dropout(fused), self.linear_pred.weight.flatten(1), self.linear_pred.bias)


def _linear(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1 x 1 convolution of channels-last maps [B, C, h, w] as a matrix product; channels-last again."""
    return F.linear(maps.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
