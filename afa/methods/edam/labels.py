"""From EDAM's distribution over classes (Wu et al., CVPR 2021) to scores, and labels with and without saliency.

All that a threshold or an arg max meets is float32: with CRF beta is 0.99999, which float16 rounds to 1.

Shapes: B images, K classes, m classes of an image's image-level label, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.maps import Maps, PresentClasses
from afa.methods.cam_volumes import refined, with_background
from afa.methods.edam.config import SaliencyConfig
from afa.ops.cam import fused_cams
from afa.ops.dense_crf import DenseCRF


def fused_distribution(passes: Sequence[Tensor], present: PresentClasses, size: tuple[int, int]) -> Maps:
    """The distribution of several passes as scores: summed at one size, each channel divided by its maximum (sec. 3.2).

    Args:
        passes: Of scales, each [2 B, K + 1, *, *]: B images, then their mirror images. As the network gives it, the
            last channel is the background.
        present: The classes of the B images.
        size: (H, W).

    Returns:
        [B, 1 + m, H, W] in 0..1 with the background in front; only Algorithm 1 reads it. The largest value of every
        channel is exactly 1; a channel that is 0 everywhere stays so.
    """
    kept = [torch.cat([one[:, -1:], present.gather(one[:, :-1])], dim=1).float() for one in passes]
    return Maps(
        fused_cams(kept, size, epsilon=0.0),
        F.pad(present.channels + 1, (1, 0)),
        F.pad(present.counted, (1, 0), value=True),
        has_background=True,
    )


def crf_scores(crf: DenseCRF, image: Tensor, cams: Maps, exponent: float) -> Maps:
    """Scores refined by DenseCRF, the background's being (1 - the largest score) ** exponent.

    Args:
        crf: Its settings.
        image: uint8 [3, H, W].
        cams: Scores of the image's classes without background, [1, m, H, W] in 0..1.
        exponent: 1 as released. The larger, the smaller the background's score.

    Returns:
        Marginals [1, 1 + m, H, W] with background, of the channels that count; of an image without classes all is
        background. The label without saliency is their arg max.
    """
    return refined(crf, image, [with_background(cams, exponent)])[0]


def label_with_saliency(scores: Maps, saliency: Tensor, settings: SaliencyConfig) -> Tensor:
    """The label by the rule of the settings; an image without classes is background.

    Args:
        scores: [B, 1 + m, H, W] with background: of :func:`fused_distribution`, for the rule ``crf`` those of
            :func:`crf_scores`.
        saliency: uint8 [B, H, W], grey values as stored.
        settings: Rule and thresholds.

    Returns:
        Class ids, int64 [B, H, W].
    """
    grey = settings.theta * settings.saliency_maximum
    if settings.rule == "algorithm1":
        return algorithm_1(scores, saliency, grey=grey, alpha=settings.alpha, beta=settings.beta)
    refines = settings.rule == "crf"
    return released_rule(
        scores,
        saliency,
        grey=grey,
        alpha=settings.crf_alpha if refines else settings.alpha,
        beta=settings.crf_beta if refines else settings.beta,
        strongest=settings.above_beta == "strongest",
    )


def released_rule(
    scores: Maps, saliency: Tensor, *, grey: float, alpha: float, beta: float, strongest: bool = False
) -> Tensor:
    """The rule of the released program.

    Where a pixel is salient, the strongest class wins that reaches alpha, else the background. Where it is not, it is
    background. A class above beta wins in both.

    Args:
        scores: [B, 1 + m, H, W] in 0..1 with a background, which counts for nothing: saliency takes its place.
        saliency: uint8 [B, H, W].
        grey: Pixels above this grey value are salient.
        alpha: Scores below are no scores.
        beta: At least alpha.
        strongest: Of several classes above beta, the strongest wins rather than the first.

    Returns:
        Class ids, int64 [B, H, W].
    """
    if scores.scores.shape[1] == 1:  # no class
        return torch.zeros_like(saliency, dtype=torch.int64)
    salient = saliency > math.floor(grey)  # of whole numbers the same, and free of a grey value's rounding
    classes = scores.without_background()
    values = classes.scores.masked_fill(~classes.counted[:, :, None, None], -1.0)
    best, winner = values.max(dim=1)  # of equal scores the first
    above = best > beta
    if not strongest:
        winner = torch.where(above, (values > beta).int().argmax(dim=1), winner)
    kept = above | (salient & (best >= alpha) & (best > 0))  # of two zeros the background is the first
    return torch.where(kept, _ids(classes, winner), 0)


def algorithm_1(scores: Maps, saliency: Tensor, *, grey: float, alpha: float, beta: float) -> Tensor:
    """The paper's Algorithm 1: the strongest of the classes and the background, P, with the score M_P.

    Where a pixel is salient, P counts unless M_P is below alpha; where it is not, only if M_P is above beta.

    Args:
        scores: [B, 1 + m, H, W] in 0..1 with the network's own background channel in front.
        saliency: uint8 [B, H, W].
        grey: Pixels of this grey value or more are salient.
        alpha, beta: See above.

    Returns:
        Class ids, int64 [B, H, W].
    """
    salient = saliency >= math.ceil(grey)
    values = scores.scores.masked_fill(~scores.counted[:, :, None, None], -1.0)
    best, winner = values.max(dim=1)
    kept = torch.where(salient, best >= alpha, best > beta)
    return torch.where(kept, _ids(scores, winner), 0)


def _ids(maps: Maps, winner: Tensor) -> Tensor:
    return maps.class_ids.gather(1, winner.flatten(1)).view_as(winner)
