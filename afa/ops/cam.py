"""Class activation maps: CAMs of several scales and mirrors, fused and normalised (AFA sec. 3.1).

Shapes: B images, c classes, H x W crop, h x w token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.ops.random_walk import PairAffinity

CamPass = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]
"""One pass of a network: normalised images [n, 3, *, *], and of how many of the first ones the affinity is wanted ->
CAMs [n, c, h, w] of any classes, before ReLU, and their affinity as :class:`PairAffinity` holds it, or None."""


class MultiScaleCam(NamedTuple):
    """CAMs [B, c, H, W] in 0..1, and the affinity at the largest scale, if wanted."""

    cams: Tensor
    affinity: PairAffinity | None


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of [B, C, H, W] to an explicit size, align_corners False; the same tensor if nothing changes."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Integer part of scale times height and width, at least 1."""
    return max(1, int(scale * size[0])), max(1, int(scale * size[1]))


def long_side_size(size: Sequence[int], long_side: int, smallest: int = 1) -> tuple[int, int]:
    """Height and width resized to a long side in pixels, integer parts, at least ``smallest``; 0 keeps the size."""
    ratio = long_side / max(size) if long_side else 1.0
    return max(smallest, int(size[0] * ratio)), max(smallest, int(size[1] * ratio))


def normalise_cams(cams: Tensor, epsilon: float) -> Tensor:
    """Per image and class: subtract the spatial minimum, divide by the spatial maximum that is left plus epsilon.

    Args:
        cams: [B, c, H, W].
        epsilon: Keeps a constant map at 0.
    """
    cams = cams - cams.amin(dim=(-2, -1), keepdim=True)
    return cams / (cams.amax(dim=(-2, -1), keepdim=True) + epsilon)


def fused_cams(passes: Sequence[Tensor], size: tuple[int, int], epsilon: float) -> Tensor:
    """Maps of several passes, summed at one size and divided by their maxima (PSA sec. 3.1).

    Args:
        passes: Each [2 B, c, *, *], at least 0: B images, then their mirror images.
        size: (H, W).
        epsilon: Added to the maximum; 0 makes the largest value of every map exactly 1.

    Returns:
        [B, c, H, W] in 0..1; a map that is 0 everywhere stays so.

    Raises:
        ValueError: There is no pass.
    """
    total: Tensor | None = None
    for cams in passes:
        plain, mirrored = resize(cams, size).chunk(2)
        for one in (plain, mirrored.flip(-1)):
            total = one if total is None else total + one
    if total is None:
        raise ValueError("fused_cams needs at least one pass")
    maximum = total.amax(dim=(-2, -1), keepdim=True)
    return total / torch.where(maximum == 0, 1.0, maximum + epsilon)


@torch.no_grad()
def multi_scale_cam(
    cam_pass: CamPass,
    image: Tensor,
    scales: Sequence[float],
    *,
    epsilon: float,
    with_affinity: bool,
    centred: bool = False,
    first_cam: Tensor | None = None,
    first_affinity: Tensor | None = None,
) -> MultiScaleCam:
    """Fuse CAMs over scales and mirrors.

    Every scale runs the image and its mirror image as one batch; of the two the maximum counts, after ReLU the scales
    are summed, then each map is normalised to 0..1. The affinity is that of the un-mirrored image at the largest scale.

    Args:
        cam_pass: Runs the network.
        image: Normalised images [B, 3, H, W].
        scales: In the order in which the passes run.
        epsilon: See :func:`normalise_cams`.
        with_affinity: Whether the affinity is wanted.
        centred: Take each pass's map less its mean over the positions.
        first_cam: CAM [B, c, h, w] of the un-mirrored image at scale 1 where the caller has it already: that pass
            then runs the mirror image alone, unless it is to give the affinity.
        first_affinity: The affinity of that image, where the caller has it as well.

    Returns:
        The CAMs at the image's size, and the affinity of the largest scale.

    Raises:
        ValueError: There is no scale.
    """
    if not scales:
        raise ValueError("multi_scale_cam needs at least one scale")
    batch, _, height, width = image.shape
    largest = max(scales)
    total: Tensor | None = None
    affinity: PairAffinity | None = None
    for scale in scales:
        scaled = resize(image, scaled_size((height, width), scale))
        wants_affinity = with_affinity and scale == largest
        if first_cam is not None and scale == 1 and not (wants_affinity and first_affinity is None):
            plain, mirrored = first_cam, cam_pass(scaled.flip(-1), 0)[0]
            if wants_affinity and first_affinity is not None:
                affinity = PairAffinity(first_affinity)
        else:
            both, scale_affinity = cam_pass(torch.cat([scaled, scaled.flip(-1)]), batch if wants_affinity else 0)
            plain, mirrored = both[:batch], both[batch:]
            if scale_affinity is not None:
                affinity = PairAffinity(scale_affinity)
        plain, mirrored = plain.float(), mirrored.float()
        if centred:
            plain, mirrored = (cam - cam.mean(dim=(-2, -1), keepdim=True) for cam in (plain, mirrored))
        fused = torch.maximum(resize(plain, (height, width)), resize(mirrored, (height, width)).flip(-1)).relu_()
        total = fused if total is None else total.add_(fused)
    assert total is not None
    return MultiScaleCam(normalise_cams(total, epsilon), affinity)
