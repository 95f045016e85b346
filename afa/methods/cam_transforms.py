"""Training transforms of classifiers whose CAMs are wanted, and the images that they see in prediction, as in PSA.

Shapes: H x W image, S crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from afa.config import DatasetConfig
from afa.data.samples import Sample
from afa.data.transforms import (
    ColourJitter,
    Crop,
    centre_crop,
    draw_place,
    normalise_exactly,
    resize_bicubic,
    rounded_size,
)
from afa.methods.cam_config import CAMAugmentationConfig
from afa.methods.segmentation import colour_jitter


@dataclass(frozen=True)
class CAMTransform:
    """A sample -> a training crop for the CAM network: random size, mirror, colours, place.

    Attributes:
        crop_size: S.
        long_sides: Smallest and largest long side.
        mirror_probability: Chance of a mirror.
        jitter: Of the colours.
        mean, std: Of R, G, B, in 0..255.
    """

    crop_size: int
    long_sides: tuple[int, int]
    mirror_probability: float
    jitter: ColourJitter
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        """Transform.

        Returns:
            ``image`` float32 [3, S, S], normalised, 0 (the mean colour) where no image is, and ``class_labels`` [K].
        """
        long_side = int(rng.integers(self.long_sides[0], self.long_sides[1] + 1))
        image = resize_long_side(sample.image, long_side)
        if rng.random() < self.mirror_probability:
            image = image[:, ::-1]
        image = self.jitter(np.ascontiguousarray(image), rng)
        crop = draw_place(image.shape, rng, crop_size=self.crop_size)
        assert sample.class_labels is not None  # needs
        return {
            "image": cut_normalised(image, crop, self.mean, self.std),
            "class_labels": torch.from_numpy(sample.class_labels),
        }


@dataclass(frozen=True)
class CentreTransform:
    """A sample -> the middle of the image, at its own size: what the validation's loss is computed of.

    Attributes:
        crop_size: Side of the crop.
        mean, std: Of R, G, B, in 0..255.
    """

    crop_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        """As :meth:`CAMTransform.__call__`; nothing is drawn."""
        assert sample.class_labels is not None  # needs
        crop = centre_crop((sample.image.shape[0], sample.image.shape[1]), self.crop_size)
        return {
            "image": cut_normalised(sample.image, crop, self.mean, self.std),
            "class_labels": torch.from_numpy(sample.class_labels),
        }


def cam_transform(settings: CAMAugmentationConfig, dataset: DatasetConfig) -> CAMTransform:
    """The training transform that the settings describe."""
    return CAMTransform(
        crop_size=settings.crop_size,
        long_sides=(settings.long_side_min, settings.long_side_max),
        mirror_probability=settings.mirror_probability,
        jitter=colour_jitter(settings),
        mean=tuple(dataset.image_mean),
        std=tuple(dataset.image_std),
    )


def resize_long_side(image: np.ndarray, long_side: int) -> np.ndarray:
    """Resize an image uint8 [H, W, 3] bicubically to a long side; the other one is rounded, half to even."""
    height, width = image.shape[:2]
    if height > width:
        return resize_bicubic(image, (long_side, max(1, round(width * long_side / height))))
    return resize_bicubic(image, (max(1, round(height * long_side / width)), long_side))


def cut_normalised(image: np.ndarray, crop: Crop, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A crop of the normalised image: float32 [3, S, S], 0 where no image is."""
    cut = normalise_exactly(crop.image(image, "pil"), mean, std)
    y0, y1, x0, x1 = crop.box
    shown = torch.zeros_like(cut)
    shown[:, y0:y1, x0:x1] = cut[:, y0:y1, x0:x1]
    return shown


def network_images(samples: Sequence[Sample]) -> list[np.ndarray]:
    """The images of samples, uint8, at the size at which the network sees them."""
    return [
        sample.image if sample.network_size is None else resize_bicubic(sample.image, sample.network_size)
        for sample in samples
    ]


def scaled_images(image: np.ndarray, scales: Sequence[float]) -> list[np.ndarray]:
    """An image uint8 [H, W, 3] at several scales, resized bicubically to sides rounded half to even."""
    return [resize_bicubic(image, rounded_size(image.shape, scale)) for scale in scales]
