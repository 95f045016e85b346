"""Convolutional networks of the library timm as encoders: three feature maps at one stride."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afa.config.encoders import timm_normalisation
from afa.errors import UserError
from afa.models.base import Encoder
from afa.models.timm_names import BUILD_ERRORS, require_timm_network

_MAPS = 3
_FROZEN_STRIDE = 4
_WHICH = (
    "those that can be dilated to it do, such as resnet50, resnext50_32x4d, convnext_tiny and tf_efficientnet_lite0"
)


class TimmCNN(Encoder):
    """The last three feature maps of a timm network with dilated convolutions.

    With an output stride of 8, the last three of timm's maps have this stride in a usual network: of a ResNet, layers
    2, 3 and 4. Where one is finer, as the first of the three at output strides 16 and 32, it is averaged over the cells
    of the output stride. Images whose sides are no multiples of the stride are filled up with zeros, the mean colour,
    at the right and at the bottom: all maps have ceil(H / s) x ceil(W / s) positions.

    Weights are the library's initial ones: nothing is downloaded.

    Args:
        name: Of the network in timm, perhaps with the tag of its weights, whose normalisation then counts:
            ``resnet50.a1_in1k``.
        output_stride: 8, 16 or 32.

    Attributes:
        cnn: The network without its last layers, see ``features_only`` in timm.

    Raises:
        UserError: timm has no such network, or it has no three feature maps of this stride.
    """

    def __init__(self, name: str, *, output_stride: int = 8) -> None:
        super().__init__()
        import timm

        require_timm_network(name)
        try:
            self.cnn = timm.create_model(name, pretrained=False, features_only=True, output_stride=output_stride)
            info: Any = self.cnn.feature_info
            strides, channels, layers = list(info.reduction()), list(info.channels()), list(info.module_name())
        except BUILD_ERRORS as error:
            raise _unsuitable(name, output_stride) from error
        if len(strides) < _MAPS or strides[-1] != output_stride or any(output_stride % s for s in strides[-_MAPS:]):
            raise _unsuitable(name, output_stride)
        modules = dict(self.cnn.named_modules())
        fine = [layer for layer, stride in zip(layers, strides, strict=True) if stride <= _FROZEN_STRIDE]
        # timm puts what lies in a container beside it, with another name.
        found = [layer for name in fine[-1:] for layer in (name, name.replace(".", "_", 1)) if layer in modules]
        if isinstance(self.cnn, timm.models.FeatureHookNet) or not found:
            raise _unsuitable(name, output_stride)
        self._last_frozen = found[0]
        self._reductions = [output_stride // stride for stride in strides[-_MAPS:]]
        self.channels = tuple(channels[-_MAPS:])
        self.strides = (output_stride,) * _MAPS
        self.mean, self.std = timm_normalisation(name)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> three maps [B, C_i, ceil(H / s), ceil(W / s)]."""
        stride = self.strides[-1]
        images = F.pad(images, (0, -images.shape[-1] % stride, 0, -images.shape[-2] % stride))
        if images.device.type == "cpu":  # the gradients of depthwise convolutions take half the time
            images = images.contiguous(memory_format=torch.channels_last)
        maps = self.cnn(images)[-_MAPS:]
        return [
            found if factor == 1 else F.avg_pool2d(found, factor)
            for found, factor in zip(maps, self._reductions, strict=True)
        ]

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """All up to the map of stride 4: of a ResNet the stem and layer 1, as torchvision and detectors freeze them."""
        reached = False
        for name, module in self.cnn.named_modules():  # in the order of their use
            reached = reached or name == self._last_frozen
            if reached and not f"{name}.".startswith(f"{self._last_frozen}."):
                return
            yield from module.parameters(recurse=False)


def _unsuitable(name: str, output_stride: int) -> UserError:
    return UserError(
        f"model.encoder: timm/{name} does not give three feature maps at model.output_stride={output_stride}; {_WHICH}"
    )
