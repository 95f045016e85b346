"""One image and all that is known about it: what training transforms and predictions get alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """An image with what belongs to it.

    Attributes:
        name: In the lists.
        image: uint8 RGB [H, W, 3].
        class_labels: Image-level labels, float32 [K] of 0 and 1; None if unknown.
        inputs: What else was asked for, by the name in a method's ``needs`` or an output's ``inputs``:
            ``pixel_labels`` uint8 [H, W] (255 is ignored), ``maps/NAME`` :class:`afa.maps.Maps` [1, c, H, W],
            ``saliency`` uint8 [H, W].
        network_size: (h, w) to which networks see the image resized; None: its own size.
    """

    name: str
    image: np.ndarray
    class_labels: np.ndarray | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    network_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class EvaluationSample:
    """A sample with its true label, int64 [H, W]: 0 background, 1..K, 255 ignored."""

    sample: Sample
    label: Tensor
