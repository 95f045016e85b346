"""AffinityNet's training transform.

Shapes: H x W image, S crop, s stride of the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from afa.data.samples import Sample
from afa.data.transforms import (
    ColourJitter,
    draw_place,
    normalise_exactly,
)
from afa.errors import UserError
from afa.maps import Maps
from afa.methods.psa.labels import affinity_map


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
    if not low.counted.any() and not high.counted.any():
        nothing = low.without_classes(sample.image.shape[:2])
        return nothing, nothing
    for name, maps in (("crf_low", low), ("crf_high", high)):
        if not maps.has_background:
            raise UserError(
                f"the maps {name} of '{sample.name}' have no background: name a folder in dataset.maps that holds "
                "crf_low and crf_high of 'afa label'"
            )
    if low.class_ids.tolist() != high.class_ids.tolist():
        raise UserError(
            f"the maps crf_low and crf_high of '{sample.name}' are of different classes, {low.class_ids[0].tolist()} "
            f"and {high.class_ids[0].tolist()}: they must come from one run"
        )
    return low, high
