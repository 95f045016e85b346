"""The outputs of an AFA network for images: every pass that the wanted outputs need runs once.

Shapes: B images of one size, K foreground classes, C = K + 1, H x W as the network sees them, h x w token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from afa.data.samples import Sample
from afa.data.transforms import normalise
from afa.maps import Maps, PresentClasses
from afa.methods.afa.config import AFAConfig
from afa.methods.afa.labels import PseudoLabels, par_image
from afa.methods.base import Found, SegmentationProtocol
from afa.methods.classification import classes_that_count
from afa.methods.segmentation import KnownLogits, multi_scale_logits, network_input
from afa.models import AFANet
from afa.ops.cam import long_side_size, multi_scale_cam, resize, scaled_size
from afa.ops.random_walk import PairAffinity, TokenAffinity

_OF_CAMS = {"cam", "propagated_cam", "refined_label", "propagated_label"}


@torch.no_grad()
def predict(
    network: AFANet,
    config: AFAConfig,
    labels: PseudoLabels,
    samples: Sequence[Sample],
    wanted: Collection[str],
    protocol: SegmentationProtocol,
    network_pass: Callable[[], AbstractContextManager[None]],
) -> list[Found]:
    """Predict a batch of images.

    CAMs and segmentation share their passes: the first forward serves the classifier, the affinity, the first CAM and,
    where sizes agree, the segmentation; CAM passes whose size the protocol uses as well hand over their segmentation
    logits.

    Args:
        network: In evaluation mode.
        config: Its configuration.
        labels: Makes the pseudo labels.
        samples: Whose images have one size. Where they have no class labels, the classifier's own count: those above
            0.5, at least the best one.
        wanted: Names of outputs.
        protocol: Of the segmentation.
        network_pass: Gives a context for each pass of the network; what comes out of one is float32 from then on.

    Returns:
        CAMs ``cam`` [1, m, H, W] in 0..1; ``propagated_cam`` [1, 1 + m, h, w] with background, at scale 1; the labels
        ``refined_label`` and ``propagated_label`` at the size of the sample's image; ``affinity`` at scale 1; and
        ``segmentation`` [1, C, *, *] logits at the decoder's stride.
    """
    dataset, device = config.dataset, next(network.parameters()).device
    images = network_input(samples, dataset.image_mean, dataset.image_std, device)
    height, width = images.shape[-2:]
    segmentation, of_largest = "segmentation" in wanted, "propagated_label" in wanted
    largest_is_first = max(config.cam.scales) <= 1
    test_size = long_side_size((height, width), protocol.long_side)
    with network_pass():
        first = network(
            images,
            decode=segmentation and test_size == (height, width),
            with_affinity="propagated_cam" in wanted or "affinity" in wanted or (of_largest and largest_is_first),
            all_pairs="affinity" in wanted,
        )
    cls_logits = first.cls_logits.float()
    present = classes_that_count(samples, cls_logits)
    affinity = None if first.affinity is None else PairAffinity(first.affinity)

    shared = SharedPasses(network, present, network_pass)
    if segmentation:
        shared.wanted = {scaled_size(test_size, scale) for scale in protocol.scales}
        shared.mirror = protocol.mirror
    if first.seg_logits is not None:
        shared.known.plain[height, width] = first.seg_logits.float()
    of_images: Sequence[Maps | None] = [None] * len(samples)
    largest = affinity
    if not _OF_CAMS.isdisjoint(wanted):
        found = multi_scale_cam(
            shared.cam,
            images,
            config.cam.scales,
            epsilon=config.cam.epsilon,
            centred=config.cam.centred,
            with_affinity=of_largest and not largest_is_first,
            first_cam=present.gather(first.cam.float()),
        )
        of_images, largest = present.maps(found.cams).images(), found.affinity or affinity
    logits = None
    if segmentation:
        logits = multi_scale_logits(network.segment, resize(images, test_size), protocol, shared.known, network_pass)

    predictions = []
    for index, (sample, cams) in enumerate(zip(samples, of_images, strict=True)):
        one = slice(index, index + 1)
        outputs: dict[str, Maps | Tensor | TokenAffinity] = {}
        if cams is not None:
            if "cam" in wanted:
                outputs["cam"] = cams
            if "propagated_cam" in wanted:
                background = config.validation.propagation_background
                outputs["propagated_cam"] = labels.walk(cams, _one(affinity, one), background)
            outputs |= _pseudo_labels(config, labels, sample, cams, largest, one, wanted)
        if "affinity" in wanted:
            outputs["affinity"] = _one(affinity, one).all_pairs()
        if logits is not None:
            outputs["segmentation"] = Maps.of_all_classes(logits[one], has_background=True)
        class_ids = present.channels[index][present.counted[index]] + 1
        predictions.append(Found(outputs, tuple(class_ids.tolist()), cls_logits[index]))
    return predictions


def _pseudo_labels(
    config: AFAConfig,
    labels: PseudoLabels,
    sample: Sample,
    cams: Maps,
    largest: PairAffinity | None,
    one: slice,
    wanted: Collection[str],
) -> dict[str, Maps | Tensor | TokenAffinity]:
    """The wanted labels as training makes them, int64 of the sample's image's size."""
    made: dict[str, Maps | Tensor | TokenAffinity] = {}
    if "refined_label" not in wanted and "propagated_label" not in wanted:
        return made
    mean, std = config.dataset.image_mean, config.dataset.image_std
    image = par_image(normalise(sample.image, mean, std)[None].to(cams.scores.device), mean, std)
    height, width = image.shape[-2:]
    full, box = cams.resized((height, width)), torch.tensor([[0, height, 0, width]])
    weights = labels.par_weights(image)
    if "refined_label" in wanted:
        made["refined_label"] = labels.refined(image, full, box, weights)[0]
    if "propagated_label" in wanted:
        made["propagated_label"] = labels.propagated(image, full, _one(largest, one), box, weights)[0]
    return made


class SharedPasses:
    """CAM passes that also keep what the segmentation wants of them.

    Args:
        network: In evaluation mode.
        present: The classes whose CAMs are wanted, of B images.
        network_pass: As :func:`predict` takes it.

    Attributes:
        wanted: Sizes (h, w) of passes whose segmentation logits are kept.
        mirror: Whether those of mirror images are, too.
        known: The logits kept.
    """

    def __init__(
        self, network: AFANet, present: PresentClasses, network_pass: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.network, self.present, self.network_pass = network, present, network_pass
        self.wanted: set[tuple[int, int]] = set()
        self.mirror = False
        self.known = KnownLogits()

    def cam(self, images: Tensor, affinity_of: int) -> tuple[Tensor, Tensor | None]:
        """A :data:`afa.ops.cam.CamPass` over [images, mirror images] or, at scale 1, the mirror images alone."""
        with self.network_pass():
            size = (images.shape[-2], images.shape[-1])
            kept = size in self.wanted
            features, attention, cam_features = self.network.encoder(
                images,
                attention_of=affinity_of,
                attention_blocks=self.network.affinity_blocks,
                cam_only=not (kept or affinity_of),
            )
            if kept:
                self._keep(size, features)
            cam = self.network.class_activation(cam_features)
            affinity = self.network.affinity(attention, (cam.shape[-2], cam.shape[-1])) if affinity_of else None
        return self.present.gather(cam.float()), affinity

    def _keep(self, size: tuple[int, int], features: Sequence[Tensor]) -> None:
        batch = len(self.present.channels)
        has_plain = len(features[0]) == 2 * batch
        if has_plain and not self.mirror:
            features = [feature[:batch] for feature in features]
        elif not has_plain and not self.mirror:
            return
        logits = list(self.network.decoder(features).float().split(batch))
        if has_plain:
            self.known.plain[size] = logits.pop(0)
        if logits:
            self.known.mirrored[size] = logits.pop(0)


def _one(affinity: PairAffinity | None, one: slice) -> PairAffinity:
    """That of one image of the batch."""
    if affinity is None:
        raise ValueError("no affinity was computed")
    return PairAffinity(affinity.values[one])
