"""A segmentation network: any encoder, and a decoder that makes logits of its feature maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from afa.models.base import Encoder
from afa.models.decoder import SegFormerDecoder
from afa.models.deeplab import ASPP, Dilated, LargeFOV


class SegmentationNetwork(nn.Module):
    """Images in, logits out.

    Args:
        encoder: Gives feature maps.
        decoder: Feature maps, finest first -> logits [B, C, h, w].
    """

    def __init__(self, encoder: Encoder, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> logits [B, C, h, w] at the decoder's stride."""
        return self.decoder(self.encoder.features(images))

    def segment(self, images: Tensor) -> Tensor:
        """As :meth:`forward`, under the name that every network which segments has."""
        return self(images)


def build_decoder(
    name: str, encoder: Encoder, num_classes: int, *, width: int, dropout: float, rates: Sequence[int]
) -> nn.Module:
    """The decoder of a name, with initial weights, for an encoder's feature maps.

    Args:
        name: ``segformer``, ``deeplab_largefov``, ``deeplab_v2`` or ``dilated``.
        encoder: Whose channels and strides it must fit.
        num_classes: C, background included.
        width: Channels of hidden layers; ``deeplab_v2`` has none.
        dropout: After hidden layers.
        rates: Dilations at stride 8, but for ``segformer``; ``deeplab_largefov`` and ``dilated`` have one.

    Raises:
        ValueError: There is no such decoder, or it does not fit the encoder.
    """
    channels, stride = encoder.channels[-1], encoder.strides[-1]
    if name == "segformer":
        if len(encoder.channels) != 4:
            raise ValueError(
                f"the decoder segformer needs four feature maps, and the encoder has {len(encoder.channels)}"
            )
        return SegFormerDecoder(widths=encoder.channels, width=width, num_classes=num_classes, dropout=dropout)
    if name in ("deeplab_largefov", "dilated"):
        (rate,) = rates
        head = LargeFOV if name == "deeplab_largefov" else Dilated
        return head(channels=channels, stride=stride, num_classes=num_classes, width=width, dropout=dropout, rate=rate)
    if name == "deeplab_v2":
        return ASPP(channels=channels, stride=stride, num_classes=num_classes, rates=rates)
    raise ValueError(f"there is no decoder '{name}'")
