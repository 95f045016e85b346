"""DeepLab's heads and their like: dilated convolutions on an encoder's last feature map.

LargeFOV: Chen et al., Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs (ICLR 2015),
sec. 3.1; ASPP: Chen et al., DeepLab (TPAMI 2017), sec. 3.2, as with ResNet. Shapes: B images, C classes with the
background, h x w positions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class LargeFOV(nn.Sequential):
    """One dilated 3 x 3 and one 1 x 1 hidden layer, each with ReLU and dropout, then the classes' 1 x 1 layer.

    Args:
        channels: Of the feature map.
        stride: Of the feature map, 8 or 16.
        num_classes: C.
        width: Channels of the hidden layers (published: 1024).
        dropout: After each hidden layer (published: 0.5).
        rate: Dilation at stride 8 (published: 12); at stride 16 it is half of that.

    Raises:
        ValueError: The stride is another, or the rate is odd and would have to be halved.
    """

    def __init__(self, *, channels: int, stride: int, num_classes: int, width: int, dropout: float, rate: int) -> None:
        (dilation,) = dilations([rate], stride)
        super().__init__(
            _hidden(channels, width, kernel=3, dilation=dilation),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            _hidden(width, width, kernel=1),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            _classifier(width, num_classes, kernel=1),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps, of which the last [B, channels, h, w] counts -> logits [B, C, h, w]."""
        return super().forward(features[-1])


class Dilated(nn.Sequential):
    """Two dilated 3 x 3 convolutions, to a hidden layer with ReLU and to the classes.

    On a ResNet-38 the segmentation network of Wu, Shen and van den Hengel, Wider or Deeper (2016), which PSA trains
    (sec. 3.4); PSA's own was not released, so its sizes are second-hand.

    Args:
        channels: Of the feature map.
        stride: Of the feature map, 8 or 16.
        num_classes: C.
        width: Channels of the hidden layer (published: 512).
        dropout: After it.
        rate: Dilation at stride 8 (published: 12); at stride 16 it is half of that.

    Raises:
        ValueError: The stride is another, or the rate is odd and would have to be halved.
    """

    def __init__(self, *, channels: int, stride: int, num_classes: int, width: int, dropout: float, rate: int) -> None:
        (dilation,) = dilations([rate], stride)
        super().__init__(
            _hidden(channels, width, kernel=3, dilation=dilation),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            _classifier(width, num_classes, kernel=3, dilation=dilation),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps, of which the last [B, channels, h, w] counts -> logits [B, C, h, w]."""
        return super().forward(features[-1])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: dilated 3 x 3 convolutions straight to the classes, summed.

    Args:
        channels: Of the feature map.
        stride: Of the feature map, 8 or 16.
        num_classes: C.
        rates: Dilations of the branches at stride 8 (published: 6, 12, 18, 24); at stride 16 they are half of that.

    Raises:
        ValueError: The stride is another, there is no rate, or a rate is odd and would have to be halved.
    """

    def __init__(self, *, channels: int, stride: int, num_classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        if not rates:
            raise ValueError("ASPP needs at least one rate")
        self.branches = nn.ModuleList(
            _classifier(channels, num_classes, kernel=3, dilation=dilation) for dilation in dilations(rates, stride)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps, of which the last [B, channels, h, w] counts -> logits [B, C, h, w]."""
        first, *others = (branch(features[-1]) for branch in self.branches)
        return sum(others, start=first)


def dilations(rates: Sequence[int], stride: int) -> list[int]:
    """Rates, which hold at stride 8, as dilations of a feature map's stride: the same reach in pixels of the image.

    Raises:
        ValueError: The stride is neither 8 nor 16, or a rate cannot be halved.
    """
    if stride not in (8, 16):
        raise ValueError(f"DeepLab's heads need features of stride 8 or 16, not {stride}")
    if any(rate * 8 % stride for rate in rates):
        raise ValueError(f"at stride {stride} the rates are halved: {list(rates)} must be even")
    return [rate * 8 // stride for rate in rates]


def _hidden(channels: int, width: int, *, kernel: int, dilation: int = 1) -> nn.Conv2d:
    """Initialised for the ReLU after it."""
    convolution = _convolution(channels, width, kernel, dilation)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return convolution


def _classifier(channels: int, num_classes: int, *, kernel: int, dilation: int = 1) -> nn.Conv2d:
    """Normal with std 0.01, as DeepLab starts its new layers."""
    convolution = _convolution(channels, num_classes, kernel, dilation)
    nn.init.normal_(convolution.weight, std=0.01)
    return convolution


def _convolution(channels: int, width: int, kernel: int, dilation: int) -> nn.Conv2d:
    """A convolution that keeps the size; biases start at 0."""
    convolution = nn.Conv2d(channels, width, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution
