"""CAMs with a background score, and such volumes after DenseCRF (PSA sec. 3.2.1).

Shapes: P present classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from afa.maps import Maps
from afa.methods.cam_config import CRFConfig
from afa.ops.dense_crf import DenseCRF


def with_background(cams: Maps, alpha: float) -> Maps:
    """Put the background's score (1 - the largest CAM) ** alpha in front (eq. 2).

    Args:
        cams: Of one image, [1, P, H, W] in 0..1, without background.
        alpha: The larger, the smaller the background's score.

    Returns:
        [1, 1 + P, H, W].
    """
    whole = cams.with_background(0.0)
    scores = whole.scores.clone()
    scores[:, 1:] *= cams.counted[:, :, None, None]
    scores[:, 0] = (1 - scores[:, 1:].amax(dim=1)).clamp(min=0) ** alpha
    return whole.with_scores(scores)


def build_crf(settings: CRFConfig) -> DenseCRF:
    """DenseCRF as the settings of a PSA method have it."""
    return DenseCRF(
        iterations=settings.iterations,
        gaussian_sxy=settings.gaussian_sxy,
        gaussian_weight=settings.gaussian_weight,
        bilateral_sxy=settings.bilateral_sxy,
        bilateral_srgb=settings.bilateral_srgb,
        bilateral_weight=settings.bilateral_weight,
    )


def refined(crf: DenseCRF, image: Tensor, volumes: Sequence[Maps]) -> list[Maps]:
    """Scores of one image refined by DenseCRF; of an image without classes all is background.

    Args:
        crf: Its settings.
        image: uint8 [3, H, W].
        volumes: Of the same classes, each [1, 1 + P, H, W] with background; any scores of 0 or more.

    Returns:
        Marginals of each, of sum 1, with the channels that count.
    """
    (kept,) = volumes[0].images()
    count = kept.scores.shape[1]
    scores = torch.stack([volume.scores[:, :count] for volume in volumes], dim=1)  # [1, V, 1 + P, H, W]
    marginals = crf(image[None], scores) if count > 1 else torch.ones_like(scores)
    return [kept.with_scores(of_one) for of_one in marginals.unbind(dim=1)]
