"""ResNet-38, the encoder of PSA: model A1 of Wu, Shen and van den Hengel, Wider or Deeper (2016), at stride 8.

Residual units are pre-activation: BatchNorm and ReLU come before each convolution, and nothing after the sum. No
convolution has a bias. Modules have the names of the released PSA program. Shapes: B images, W the base width (64),
h = ceil(H / 8), w = ceil(W_image / 8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from afa.models.base import Encoder

_GROUPS = ("b2", "b3", "b4", "b5")


class ResidualUnit(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut.

    Args:
        in_channels: Of the input.
        mid_channels: Between the two convolutions.
        out_channels: Of the output.
        stride: Of the first convolution, and of the shortcut's.
        first_dilation: Of the first convolution.
        dilation: Of the second.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        first_dilation: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(in_channels)
        self.conv_branch2a = _convolution(in_channels, mid_channels, 3, stride=stride, dilation=first_dilation)
        self.bn_branch2b1 = nn.BatchNorm2d(mid_channels)
        self.conv_branch2b1 = _convolution(mid_channels, out_channels, 3, dilation=dilation)
        keeps = in_channels == out_channels and stride == 1
        self.conv_branch1 = None if keeps else _convolution(in_channels, out_channels, 1, stride=stride)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C_in, h, w] -> output [B, C_out, h', w'], and the activated input [B, C_in, h, w]."""
        activated = F.relu(self.bn_branch2a(maps), inplace=True)
        shortcut = maps if self.conv_branch1 is None else self.conv_branch1(activated)
        branch = F.relu(self.bn_branch2b1(self.conv_branch2a(activated)), inplace=True)
        return shortcut + self.conv_branch2b1(branch), activated


class BottleneckUnit(nn.Module):
    """1 x 1, dilated 3 x 3 and 1 x 1 convolution beside a 1 x 1 shortcut.

    Args:
        in_channels: Of the input.
        out_channels: Of the output, a multiple of 4; the branch has a quarter, then half of it.
        dilation: Of the 3 x 3 convolution.
        dropout: Chance of a whole channel to be dropped before the second and before the third convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int, dropout: float) -> None:
        super().__init__()
        quarter, half = out_channels // 4, out_channels // 2
        self.bn_branch2a = nn.BatchNorm2d(in_channels)
        self.conv_branch2a = _convolution(in_channels, quarter, 1)
        self.bn_branch2b1 = nn.BatchNorm2d(quarter)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = _convolution(quarter, half, 3, dilation=dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(half)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = _convolution(half, out_channels, 1)
        self.conv_branch1 = _convolution(in_channels, out_channels, 1)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`ResidualUnit.forward`."""
        activated = F.relu(self.bn_branch2a(maps), inplace=True)
        branch = F.relu(self.bn_branch2b1(self.conv_branch2a(activated)), inplace=True)
        branch = F.relu(self.bn_branch2b2(self.conv_branch2b1(self.dropout_2b1(branch))), inplace=True)
        return self.conv_branch1(activated) + self.conv_branch2b2(self.dropout_2b2(branch)), activated


class ResNet38(Encoder):
    """The encoder. Its three maps have stride 8: the activated inputs of ``b5`` and ``b6``, and the normalised output,
    activated where ``last_relu`` says so.

    Convolutions start from He's normal distribution by fan-out (Kaiming), BatchNorms from 1 and 0: so it can learn
    from scratch, where nothing is frozen.

    Args:
        base_width: W, channels of the first convolution; all other widths are multiples of it.
        depths: Residual units of the groups b2, b3, b4 and b5; the bottlenecks b6 and b7 follow.
        dropout: Dropout2d in b6 and in b7.
        last_relu: Whether the last map goes through ReLU, as in PSA; in EDAM it keeps values of both signs.

    Attributes:
        depths, base_width: As given.

    Raises:
        ValueError: Other numbers of depths or rates, or a group without units.
    """

    channels_last_on_cpu = False  # narrow ones end the process in PyTorch's backward pass (torch 2.14)
    mean = (123.675, 116.28, 103.53)
    std = (58.395, 57.12, 57.375)

    def __init__(
        self,
        *,
        base_width: int = 64,
        depths: Sequence[int] = (3, 3, 6, 3),
        dropout: Sequence[float] = (0.3, 0.5),
        last_relu: bool = True,
    ) -> None:
        super().__init__()
        if len(depths) != len(_GROUPS) or min(depths) < 1:
            raise ValueError(f"ResNet-38 has four groups of at least one unit, not {list(depths)}")
        if len(dropout) != 2:
            raise ValueError(f"ResNet-38 has dropout in two units, not {len(dropout)}")
        width = base_width
        self.base_width, self.depths, self._last_relu = base_width, tuple(depths), last_relu
        self.channels = (8 * width, 16 * width, 64 * width)
        self.strides = (8, 8, 8)
        self.conv1a = _convolution(3, width, 3)
        self._units: list[str] = []
        self._add_group("b2", depths[0], ResidualUnit(width, 2 * width, 2 * width, stride=2))
        self._add_group("b3", depths[1], ResidualUnit(2 * width, 4 * width, 4 * width, stride=2))
        self._add_group("b4", depths[2], ResidualUnit(4 * width, 8 * width, 8 * width, stride=2))
        self._add_group("b5", depths[3], ResidualUnit(8 * width, 8 * width, 16 * width, dilation=2))
        self._add_unit("b6", BottleneckUnit(16 * width, 32 * width, dilation=4, dropout=dropout[0]))
        self._add_unit("b7", BottleneckUnit(32 * width, 64 * width, dilation=4, dropout=dropout[1]))
        self.bn7 = nn.BatchNorm2d(64 * width)

    def _add_group(self, name: str, depth: int, first: ResidualUnit) -> None:
        """The first unit, and ``depth - 1`` more that keep size and width."""
        width = first.conv_branch2b1.out_channels
        dilation = first.conv_branch2b1.dilation[0]
        mid = first.conv_branch2a.out_channels
        self._add_unit(name, first)
        for index in range(1, depth):
            self._add_unit(
                f"{name}_{index}", ResidualUnit(width, mid, width, first_dilation=dilation, dilation=dilation)
            )

    def _add_unit(self, name: str, unit: nn.Module) -> None:
        self.add_module(name, unit)
        self._units.append(name)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> conv4 [B, 8 W, h, w], conv5 [B, 16 W, h, w], conv6 [B, 64 W, h, w]."""
        taps = []
        maps = self.conv1a(images)
        for name in self._units:
            maps, activated = self.get_submodule(name)(maps)
            if name in ("b5", "b6"):
                taps.append(activated)
        last = self.bn7(maps)
        return [*taps, F.relu(last, inplace=True) if self._last_relu else last]

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """``conv1a`` and the group b2."""
        for name, module in self.named_children():
            if name == "conv1a" or name.partition("_")[0] == "b2":
                yield from module.parameters()


def _convolution(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
