"""What every encoder offers to the networks that are made of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple, Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Encoder(nn.Module, ABC):
    """Images in, feature maps out.

    Attributes:
        channels: C_i of the feature maps, finest first.
        strides: Of the feature maps over the image: an image of H x W pixels gives maps of about H / s x W / s, where
            odd sides are rounded as the encoder does it.
        mean, std: The normalisation that it is trained with, of R, G, B in 0..255.
        channels_last_on_cpu: Whether ``train.channels_last`` works on the CPU.
        norms_are_frozen: Whether :meth:`freeze_released` was called.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels_last_on_cpu: bool = True
    norms_are_frozen: bool = False

    def features(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> feature maps [B, C_i, h_i, w_i], finest first.

        By default what the module gives where it is called, which is what ``torch.compile`` compiles.
        """
        return self(images)

    @abstractmethod
    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """What the released programs do not train in an encoder of this family, besides BatchNorms."""

    def suit_export(self, size: tuple[int, int] | None) -> None:
        """Change the module into one of the same values that other programs can run; most encoders need no change.

        Args:
            size: (H, W) of all images from now on; None: any.

        Raises:
            UserError: It can only be exported for images of one size.
        """

    def freeze_released(self) -> None:
        """Leave untrained what the released programs leave: ``optimiser.freeze=released``.

        That is :meth:`frozen_parameters`, and scale and shift of every BatchNorm, which from now on uses its stored
        statistics in training, too, and does not change them. Frozen parameters get no gradient, so neither updates nor
        weight decay. The weights have to come from a file: nothing of this can be learned any more.
        """
        for parameter in self.frozen_parameters():
            parameter.requires_grad_(False)
        for norm in self._batch_norms():
            norm.requires_grad_(False)
        self.norms_are_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As :meth:`torch.nn.Module.train`; BatchNorms that are frozen stay in evaluation mode."""
        super().train(mode)
        if self.norms_are_frozen:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def _batch_norms(self) -> Iterator[nn.Module]:
        return (module for module in self.modules() if isinstance(module, _BatchNorm))


class RawAttention(NamedTuple):
    """One block's raw attention between the positions of its grid as its two factors: logits = query key^T.

    Whoever needs only a weighted sum over the heads gets it from the factors without forming the logits.
    """

    query: Tensor  # [n, heads, N, d]
    key: Tensor  # [n, heads, M, d]

    def logits(self) -> Tensor:
        """[n, heads, N, M]."""
        return self.query @ self.key.transpose(-2, -1)


class EncoderOutput(NamedTuple):
    """What an encoder with attention gives.

    Attributes:
        features: Maps [B, C_i, h_i, w_i], finest first.
        attention: Raw, of the blocks asked for, earlier blocks first.
        cam_features: Map [B, C_4, h_4, w_4] that classifier and CAMs read: the last of the features, or that of an
            earlier block, then without gradient.
    """

    features: list[Tensor]
    attention: list[RawAttention]
    cam_features: Tensor

    @property
    def attention_logits(self) -> list[Tensor]:
        """Logits q k^T [n, heads, N, N] of the blocks asked for, formed on each call."""
        return [attention.logits() for attention in self.attention]


class AttentiveEncoder(Encoder):
    """An encoder that also gives the attention of its last blocks, on the grid of its last feature map.

    Attributes:
        centred_attention: Whether whoever learns from its logits should take each query's less their mean over the
            keys, which the softmax does not notice.
    """

    centred_attention: bool = False

    @abstractmethod
    def attention_maps(self, blocks: int) -> int:
        """How many attention maps, one for each head, the last blocks give together.

        Args:
            blocks: How many of the last blocks.

        Raises:
            ValueError: There are fewer, or they do not attend from all positions of the last grid to all others.
        """

    @abstractmethod
    def forward(
        self, image: Tensor, *, attention_of: int = 0, attention_blocks: int = 0, cam_only: bool = False
    ) -> EncoderOutput:
        """Encode images.

        Args:
            image: Normalised, [B, 3, H, W].
            attention_of: Of how many of the first images the raw attention is wanted.
            attention_blocks: Of how many of the last blocks, see :meth:`attention_maps`.
            cam_only: Nothing is wanted but ``cam_features``: the other lists may be empty.
        """

    def features(self, images: Tensor) -> list[Tensor]:
        """See :class:`Encoder`."""
        return self(images).features
