"""What every encoder offers to the networks that are made of it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """Images in, feature maps out.

    Attributes:
        channels: C_i of the feature maps, finest first.
        strides: Of the feature maps over the image: an image of H x W pixels gives maps of about H / s x W / s, where
            odd sides are rounded as the encoder's convolutions do it.
        mean, std: The normalisation that it is trained with, of R, G, B in 0..255.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> feature maps [B, C_i, h_i, w_i], finest first."""
