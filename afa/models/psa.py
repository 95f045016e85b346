"""The two networks of PSA (Ahn and Kwak, CVPR 2018): classifier with CAM, and AffinityNet.

Shapes: B images, K foreground classes, h x w positions of the encoder's last maps, O offsets and A anchors of the pairs
(:mod:`afa.ops.neighbour_pairs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afa.models.base import Encoder
from afa.ops.neighbour_pairs import anchors_of, others_of


class CAMNetwork(nn.Module):
    """Classifier by global average pooling, whose weights at each position give CAMs (sec. 3.1).

    Args:
        encoder: Its last map is classified.
        num_classes: K, without the background.
        dropout: Of whole channels of the last map, in training.

    Raises:
        ValueError: There is no class.
    """

    def __init__(self, encoder: Encoder, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes counts the foreground: at least 1, not {num_classes}")
        self.num_classes = num_classes
        self.encoder = encoder
        self.dropout7 = nn.Dropout2d(dropout)
        self.fc8 = nn.Conv2d(encoder.channels[-1], num_classes, kernel_size=1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> logits [B, K]."""
        return self.classify(self.encoder.features(images)[-1])

    def classify(self, feature: Tensor) -> Tensor:
        """The encoder's last map [B, C, h, w] -> logits [B, K]."""
        return self.fc8(F.adaptive_avg_pool2d(self.dropout7(feature), 1)).flatten(1)

    def cam(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> CAMs [B, K, h, w], at least 0: ReLU of the classifier at each position."""
        return self.activate(self.encoder.features(images)[-1])

    def activate(self, feature: Tensor) -> Tensor:
        """The encoder's last map [B, C, h, w] -> CAMs [B, K, h, w] (eq. 1)."""
        return F.relu(self.fc8(feature))


class AffinityNetwork(nn.Module):
    """AffinityNet (sec. 3.2): a feature at each position, and of two the affinity exp(-L1 distance).

    Args:
        encoder: Gives three maps on one grid.
        widths: Channels that each of them is brought to; default: one, two and four times the base width of a
            ResNet-38, else 64, 128 and 256, as the released program has them (the paper: 128, 256, 512).
        radius: r of the pairs that it is trained on.

    Raises:
        ValueError: The encoder gives other maps, or there are other widths.
    """

    def __init__(self, encoder: Encoder, widths: Sequence[int] | None = None, radius: int = 5) -> None:
        super().__init__()
        if len(encoder.channels) != 3 or len(set(encoder.strides)) != 1:
            raise ValueError(f"AffinityNet needs three feature maps of one stride, not maps of {list(encoder.strides)}")
        if widths is None:
            base_width = getattr(encoder, "base_width", 64)
            widths = (base_width, 2 * base_width, 4 * base_width)
        if len(widths) != 3:
            raise ValueError(f"AffinityNet needs three widths, one for each map, not {len(widths)}")
        self.radius = radius
        self.encoder = encoder
        self.f8_3 = _reduction(encoder.channels[0], widths[0])
        self.f8_4 = _reduction(encoder.channels[1], widths[1])
        self.f8_5 = _reduction(encoder.channels[2], widths[2])
        self.f9 = nn.Conv2d(sum(widths), sum(widths), kernel_size=1, bias=False)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> affinity of all pairs, float32 [B, O, A] in 0..1.

        Raises:
            ValueError: The grid is too small for a pair.
        """
        return pair_affinity(self.features(images), self.radius)

    def concatenated(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> the three reduced maps side by side [B, sum of widths, h, w]."""
        conv4, conv5, conv6 = self.encoder.features(images)
        return torch.cat([F.elu(self.f8_3(conv4)), F.elu(self.f8_4(conv5)), F.elu(self.f8_5(conv6))], dim=1)

    def features(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> the features that are compared [B, sum of widths, h, w]."""
        return F.elu(self.f9(self.concatenated(images)))


def pair_affinity(features: Tensor, radius: int) -> Tensor:
    """Affinity of neighbouring positions: exp(-mean over the channels of |second - anchor|) (eq. 3).

    Neither now nor in the backward pass do differences of more than one offset exist at a time.

    Args:
        features: [B, C, h, w].
        radius: r.

    Returns:
        float32 [B, O, A] in 0..1.

    Raises:
        ValueError: The grid is too small, see :func:`afa.ops.neighbour_pairs.anchor_window`.
    """
    distances: Tensor = _PairDistances.apply(features.float(), radius)
    return distances.neg().exp()


class _PairDistances(torch.autograd.Function):
    """[B, C, h, w] -> mean absolute differences [B, O, A]; the differences are formed anew for the gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, radius: int) -> Tensor:
        ctx.save_for_backward(features)
        ctx.radius = radius
        anchors = anchors_of(features, radius)
        distances = [(other - anchors).abs_().mean(dim=1).flatten(1) for other in others_of(features, radius)]
        return torch.stack(distances, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (features,), radius = ctx.saved_tensors, ctx.radius
        total = torch.zeros_like(features)
        anchors, of_anchors = anchors_of(features, radius), anchors_of(total, radius)
        shares = gradients[0].unflatten(-1, anchors.shape[-2:]).div(features.shape[1]).unbind(dim=1)
        pairs = zip(others_of(features, radius), others_of(total, radius), shares, strict=True)
        for other, of_other, share in pairs:
            slope = (other - anchors).sign_().mul_(share.unsqueeze(1))
            of_other += slope
            of_anchors -= slope
        return total, None


def _reduction(in_channels: int, width: int) -> nn.Conv2d:
    """1 x 1 without bias, Kaiming normal by fan-in."""
    convolution = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    return convolution
