"""PSA's training transforms, and the images that its CAM network sees in prediction.

Shapes: H x W image, S crop, s stride of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
from afa.errors import UserError
from afa.maps import Maps
from afa.methods.psa.labels import affinity_map


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


@dataclass(frozen=True)
class AffinityTransform:
    """A sample with its two volumes of scores -> a training crop for AffinityNet: colours, place, mirror.

    Attributes:
        crop_size: S.
        stride: s.
        mirror_probability: Chance of a mirror.
        jitter: Of the colours.
        mean, std: Of R, G, B, in 0..255.
    """

    crop_size: int
    stride: int
    mirror_probability: float
    jitter: ColourJitter
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        """Transform.

        Returns:
            ``image`` float32 [3, S, S], normalised, black where no image is; ``label`` uint8 [S / s, S / s], see
            :func:`afa.methods.psa.labels.affinity_map`.

        Raises:
            UserError: The volumes are not of the same classes, or have no background.
        """
        low, high = volumes(sample)
        image = self.jitter(sample.image, rng)
        crop = draw_place(image.shape, rng, crop_size=self.crop_size, mirror_probability=self.mirror_probability)
        return {
            "image": normalise_exactly(crop.image(image, "pil"), self.mean, self.std),
            "label": affinity_map(crop.maps(low), crop.maps(high), self.stride),
        }


def volumes(sample: Sample) -> tuple[Maps, Maps]:
    """A sample's scores ``crf_low`` and ``crf_high``, both with background and of the same classes.

    Raises:
        UserError: They are not.
    """
    low, high = sample.inputs["maps/crf_low"], sample.inputs["maps/crf_high"]
    for name, maps in (("crf_low", low), ("crf_high", high)):
        if not maps.has_background:
            raise UserError(
                f"the maps {name} of '{sample.name}' have no background: name a folder in dataset.maps that holds "
                "crf_low and crf_high of tools/label.py"
            )
    if low.class_ids.tolist() != high.class_ids.tolist():
        raise UserError(
            f"the maps crf_low and crf_high of '{sample.name}' are of different classes, {low.class_ids[0].tolist()} "
            f"and {high.class_ids[0].tolist()}: they must come from one run"
        )
    return low, high


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


def scaled_images(image: np.ndarray, scales: Sequence[float]) -> list[np.ndarray]:
    """An image uint8 [H, W, 3] at several scales, resized bicubically to sides rounded half to even."""
    return [resize_bicubic(image, rounded_size(image.shape, scale)) for scale in scales]
