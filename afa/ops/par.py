"""Pixel-adaptive refinement, PAR (AFA sec. 3.4, eq. 7-9): masks drawn to the image's edges, without parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# (dy, dx) of the 8 neighbours at dilation 1.
_NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


class PAR:
    """Replace each pixel's scores, again and again, by a mean of its neighbours' weighted by likeness and nearness.

    Args:
        dilations: Distances of the 8 neighbours; all of them together are one neighbourhood.
        iterations: How often the scores are replaced.
        temperature: Scale of colour and position distances (w1, w2 of the paper).
        position_weight: Weight of the position kernel (w3 of the paper).
    """

    def __init__(
        self,
        *,
        dilations: Sequence[int],
        iterations: int,
        temperature: float,
        position_weight: float,
    ) -> None:
        self.iterations = iterations
        self.temperature = temperature
        self.position_weight = position_weight
        self.margin = max(dilations)
        self.offsets = [(dy * dilation, dx * dilation) for dilation in dilations for dy, dx in _NEIGHBOURS]

    def __call__(self, image: Tensor, masks: Tensor) -> Tensor:
        """Refine masks with the weights of an image: RGB values in 0..1, [B, 3, h, w]. As :meth:`refine`."""
        return self.refine(self.weights(image), masks)

    @torch.no_grad()
    def refine(self, weights: Tensor, masks: Tensor) -> Tensor:
        """Refine masks.

        Args:
            weights: :meth:`weights` of the image: most of the work, and the same for all masks of an image.
            masks: Scores [B, C, *, *], resized to the image first (bilinear, align_corners True).

        Returns:
            Refined scores [B, C, h, w].
        """
        height, width = weights.shape[-2:]
        if masks.shape[-2:] != weights.shape[-2:]:
            masks = F.interpolate(masks, size=(height, width), mode="bilinear", align_corners=True)
        for _ in range(self.iterations):
            padded = self._pad(masks)
            refined = torch.zeros_like(masks)
            for index, neighbour in enumerate(self._neighbours(padded, height, width)):
                refined.addcmul_(neighbour, weights[:, index, None])
            masks = refined
        return masks

    @torch.no_grad()
    def weights(self, image: Tensor) -> Tensor:
        """Weights of the M neighbours of every pixel, [B, M, h, w]; they sum to 1 + position_weight.

        Args:
            image: RGB values in 0..1, [B, 3, h, w].
        """
        neighbours = self._neighbours(self._pad(image), *image.shape[-2:])
        count = len(neighbours)
        # One neighbour at a time: the stack of all 48 would leave the cache, and is 48 times the image in memory.
        mean = torch.zeros_like(image)
        for neighbour in neighbours:
            mean.add_(neighbour)
        mean.div_(count)
        variance, difference = torch.zeros_like(image), torch.empty_like(image)
        for neighbour in neighbours:
            torch.sub(neighbour, mean, out=difference)
            variance.addcmul_(difference, difference)
        spread = variance.div_(count - 1).sqrt_()
        # The factor of (I(neighbour) - I)^2 in the mean over the channels.
        factor = spread.add_(1e-8).mul_(self.temperature).square_().reciprocal_().mul_(-1 / image.shape[1])
        exponents = image.new_empty(len(image), count, *image.shape[-2:])
        for index, neighbour in enumerate(neighbours):
            torch.sub(neighbour, image, out=difference)
            torch.sum(difference.square_().mul_(factor), dim=1, out=exponents[:, index])
        weights = exponents.softmax(dim=1)
        return weights.add_(self._position_weights(image)[None, :, None, None], alpha=self.position_weight)

    def _position_weights(self, image: Tensor) -> Tensor:
        distances = torch.tensor(self.offsets, dtype=image.dtype).square().sum(dim=1).sqrt()
        scaled = distances / (distances.std() + 1e-8) / self.temperature
        return (-scaled.square()).softmax(dim=0).to(image.device, non_blocking=True)

    def _pad(self, maps: Tensor) -> Tensor:
        return F.pad(maps, (self.margin,) * 4, mode="replicate")

    def _neighbours(self, padded: Tensor, height: int, width: int) -> list[Tensor]:
        margin = self.margin
        return [
            padded[..., margin + dy : margin + dy + height, margin + dx : margin + dx + width]
            for dy, dx in self.offsets
        ]
