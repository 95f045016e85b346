"""What methods with a segmentation network share: its input, its prediction over scales, its losses.

Shapes: B images of one size, C classes with the background, H x W pixels.

Means of losses are those of one process, as in the released programs. Where the mean over all processes is wanted
(``loss.normalisation=global``), the caller passes a :data:`Denominator` that replaces a process's count by the mean of
all processes' counts: the average of the processes' gradients is then the gradient of the loss over the whole batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afa.config import AugmentationConfig, CropConfig, DatasetConfig
from afa.data.samples import Sample
from afa.data.transforms import ColourJitter, normalise
from afa.maps import IGNORE
from afa.methods.base import Runtime, SegmentationProtocol
from afa.models import Encoder
from afa.ops.cam import resize, scaled_size

Denominator = Callable[[Tensor, float], Tensor]
"""Maps counts of this process (any shape), and a constant added to the whole, to what its sums are divided by."""


def exported_network(network: nn.Module, size: tuple[int, int] | None) -> nn.Module:
    """A copy of a network that other programs can run.

    Args:
        network: With encoders or without.
        size: (H, W) of all images; None: any.

    Raises:
        UserError: An encoder can only be exported for images of one size.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, Encoder):
            module.suit_export(size)
    return network


def colour_jitter(settings: CropConfig) -> ColourJitter:
    """What the settings say of colours."""
    return ColourJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue)


def crop_settings(settings: AugmentationConfig, dataset: DatasetConfig) -> dict[str, Any]:
    """What the settings say of a random crop and its normalisation, as arguments of a method's transform."""
    return {
        "jitter": colour_jitter(settings),
        "crop_size": settings.crop_size,
        "scale_range": (settings.scale_min, settings.scale_max),
        "mirror_probability": settings.mirror_probability,
        "resampling": settings.resampling,
        "mean": tuple(dataset.image_mean),
        "std": tuple(dataset.image_std),
    }


def process_denominator(counts: Tensor, plus: float) -> Tensor:
    """This process's own counts."""
    return counts + plus


def loss_denominator(normalisation: str, runtime: Runtime) -> Denominator:
    """What ``loss.normalisation`` says: this process's counts ("process"), or the mean of all processes' ("global")."""
    if normalisation == "process" or runtime.world_size == 1:
        return process_denominator
    return lambda counts, plus: (runtime.sum(counts) + plus) / runtime.world_size


def network_input(
    samples: Sequence[Sample], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Tensor:
    """Images as the network sees them, normalised, [B, 3, H, W].

    Args:
        samples: Whose images have one size, and one ``network_size``.
        mean, std: Of R, G, B, in 0..255.
        device: Where the network is.
    """
    images = torch.stack([normalise(sample.image, mean, std) for sample in samples])
    images = images.to(device, non_blocking=True)
    size = samples[0].network_size
    return images if size is None else resize(images, size)


@dataclass
class KnownLogits:
    """Segmentation logits [B, C, *, *] that the caller has computed already, by the size (h, w) of the network's input.

    Attributes:
        plain: Of the images.
        mirrored: Of their mirror images.
    """

    plain: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    mirrored: dict[tuple[int, int], Tensor] = field(default_factory=dict)


@torch.no_grad()
def multi_scale_logits(
    segment: Callable[[Tensor], Tensor],
    images: Tensor,
    protocol: SegmentationProtocol,
    known: KnownLogits | None = None,
    network_pass: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """Segmentation over scales: the mean with the mirror image's logits, then the maximum over the scales.

    Args:
        segment: Normalised images [n, 3, *, *] -> logits [n, C, *, *].
        images: Normalised and of the test size, [B, 3, H, W].
        protocol: Scales, which hold 1, whose logits give the size; and whether the mirror images count.
        known: What has been computed already is taken from there.
        network_pass: Gives a context for each pass, see :meth:`afa.methods.base.Method.network_pass`.

    Returns:
        float32 [B, C, *, *] at the decoder's stride.

    Raises:
        ValueError: There is no scale.
    """
    known = known or KnownLogits()
    total: Tensor | None = None
    for scale in sorted(protocol.scales, key=lambda scale: scale != 1):
        size = scaled_size(images.shape[-2:], scale)
        plain, mirrored = known.plain.get(size), known.mirrored.get(size)
        missing = []
        if plain is None or (protocol.mirror and mirrored is None):
            scaled = resize(images, size)
            missing = [scaled] if plain is None else []
            if protocol.mirror and mirrored is None:
                missing.append(scaled.flip(-1))
            with network_pass():
                found = segment(torch.cat(missing))
            logits = list(found.float().split(len(images)))
            plain = logits.pop(0) if plain is None else plain
            mirrored = logits.pop(0) if logits else mirrored
        if protocol.mirror and mirrored is not None:
            plain = (plain + mirrored.flip(-1)) / 2
        total = plain if total is None else torch.maximum(total, resize(plain, total.shape[-2:]))
    if total is None:
        raise ValueError("a segmentation needs at least one scale")
    return total


def segmentation_loss(
    seg_logits: Tensor,
    label: Tensor,
    *,
    background_share: float | None,
    denominator: Denominator = process_denominator,
) -> Tensor:
    """Cross-entropy, with background and foreground averaged apart (AFA eq. 11) or over all pixels alike.

    A side without any pixel counts 0, with zero gradient; the other keeps its share.

    Args:
        seg_logits: [B, C, H, W], at the label's size.
        label: [B, H, W], 255 ignored.
        background_share: Share of the background's mean; the foreground's has the rest. None: all pixels count alike.
        denominator: See the module's text.

    Returns:
        A scalar in float32.
    """
    per_pixel = F.cross_entropy(seg_logits.float(), label.long(), ignore_index=IGNORE, reduction="none")
    background = label == 0
    foreground = (label != 0) & (label != IGNORE)
    sides = torch.stack([background, foreground]).flatten(1)  # [2, pixels]
    sums = torch.stack([(per_pixel * background).sum(), (per_pixel * foreground).sum()])
    return _shared_mean(sums, sides.sum(dim=1).float(), background_share, denominator)


def soft_segmentation_loss(
    seg_logits: Tensor,
    target: Tensor,
    *,
    background_share: float | None,
    denominator: Denominator = process_denominator,
) -> Tensor:
    """Cross-entropy against probabilities; of those that are 0 or 1, the value of :func:`segmentation_loss`.

    Args:
        seg_logits: [B, C, H, W], at the target's size.
        target: [B, C, H, W], of sum 1 at each pixel, or 0 where it is ignored.
        background_share: As :func:`segmentation_loss` takes it; what counts is the sum of the probabilities.
        denominator: See the module's text.

    Returns:
        A scalar in float32.
    """
    terms = -target * F.log_softmax(seg_logits.float(), dim=1)
    sums, counts = (torch.stack([values[:, 0].sum(), values[:, 1:].sum()]) for values in (terms, target))
    return _shared_mean(sums, counts, background_share, denominator)


def _shared_mean(sums: Tensor, counts: Tensor, background_share: float | None, denominator: Denominator) -> Tensor:
    """Of sums and counts [2] of background and foreground."""
    if background_share is None:
        sums, counts = sums.sum(dim=0, keepdim=True), counts.sum(dim=0, keepdim=True)
    counts = denominator(counts, 0)
    # An empty side's sum is 0 already: any divisor but 0 keeps it so.
    means = sums / counts.masked_fill(counts == 0, 1)
    if background_share is None:
        return means[0]
    return background_share * means[0] + (1 - background_share) * means[1]
