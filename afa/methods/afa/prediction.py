"""What an AFA network says about images: every pass that the wanted outputs need, each once.

Shapes: B images of one size, K foreground classes, C = K + 1, H x W as the network sees them, h x w token grid.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from afa.ops.random_walk import TokenAffinity

_OF_CAMS = {"cam", "propagated_cam", "refined_label", "propagated_label"}


class AFAPrediction:
    """Predicts batches of images.

    CAMs and segmentation share their passes: the first forward serves the classifier, the affinity, the first CAM and,
    where sizes agree, the segmentation; CAM passes whose size the protocol uses as well hand over their segmentation
    logits.

    Args:
        network: In evaluation mode.
        config: Its configuration.
        labels: Makes the pseudo labels.
        wanted: Names of outputs.
        protocol: Of the segmentation.
    """

    def __init__(
        self,
        network: AFANet,
        config: AFAConfig,
        labels: PseudoLabels,
        wanted: Sequence[str],
        protocol: SegmentationProtocol,
    ) -> None:
        self.network, self.config, self.labels = network, config, labels
        self.wanted, self.protocol = frozenset(wanted), protocol
        self.largest_scale = max(config.cam.scales)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[Found]:
        """Predict.

        Args:
            samples: Whose images have one size. Where they have no class labels, the classifier's own count: those
                above 0.5, at least the best one.

        Returns:
            CAMs ``cam`` [1, m, H, W] in 0..1; ``propagated`` [1, 1 + m, h, w] with background, at scale 1; the labels
            ``refined_label`` and ``propagated_label`` at the size of the sample's image; ``affinity`` at scale 1; and
            ``segmentation`` [1, C, *, *] logits at the decoder's stride.
        """
        dataset, device = self.config.dataset, next(self.network.parameters()).device
        images = network_input(samples, dataset.image_mean, dataset.image_std, device)
        height, width = images.shape[-2:]
        segmentation = "segmentation" in self.wanted
        test_size = long_side_size((height, width), self.protocol.long_side)
        first = self.network(
            images,
            decode=segmentation and test_size == (height, width),
            with_affinity=bool(self.wanted & {"propagated_cam", "affinity"})
            or ("propagated_label" in self.wanted and self.largest_scale <= 1),
        )
        present = classes_that_count(samples, first.cls_logits)
        grid = (first.cam.shape[-2], first.cam.shape[-1])
        affinity = None if first.affinity is None else TokenAffinity(first.affinity, grid)

        passes = SharedPasses(self.network, present)
        if segmentation:
            passes.wanted = {scaled_size(test_size, scale) for scale in self.protocol.scales}
            passes.mirror = self.protocol.mirror
        if first.seg_logits is not None:
            passes.known.plain[height, width] = first.seg_logits
        cams, largest = None, None
        if self.wanted & _OF_CAMS:
            found = multi_scale_cam(
                passes.cam,
                images,
                self.config.cam.scales,
                epsilon=self.config.cam.epsilon,
                with_affinity="propagated_label" in self.wanted and self.largest_scale > 1,
                first_cam=present.gather(first.cam),
            )
            cams, largest = present.maps(found.cams), found.affinity or affinity
        logits = None
        if segmentation:
            logits = multi_scale_logits(self.network.segment, resize(images, test_size), self.protocol, passes.known)
        return self._images(samples, first.cls_logits, present, cams, affinity, largest, logits)

    def _images(
        self,
        samples: Sequence[Sample],
        cls_logits: Tensor,
        present: PresentClasses,
        cams: Maps | None,
        affinity: TokenAffinity | None,
        largest: TokenAffinity | None,
        logits: Tensor | None,
    ) -> list[Found]:
        """What was computed for the batch, image by image."""
        of_images = [None] * len(samples) if cams is None else cams.images()
        ids = present.channels + 1
        found = []
        for index, (sample, image_cams) in enumerate(zip(samples, of_images, strict=True)):
            one = slice(index, index + 1)
            outputs: dict[str, Maps | Tensor | TokenAffinity] = {}
            if image_cams is not None:
                if "cam" in self.wanted:
                    outputs["cam"] = image_cams
                if "propagated_cam" in self.wanted:
                    outputs["propagated_cam"] = self.labels.walk(
                        image_cams, _one(affinity, one), self.config.validation.propagation_background
                    )
                outputs |= self._pseudo_labels(sample, image_cams, largest, one)
            if "affinity" in self.wanted:
                outputs["affinity"] = _one(affinity, one)
            if logits is not None:
                outputs["segmentation"] = Maps.of_all_classes(logits[one], has_background=True)
            class_ids = tuple(ids[index][present.counted[index]].tolist())
            found.append(Found(outputs, class_ids, cls_logits[index]))
        return found

    def _pseudo_labels(
        self, sample: Sample, cams: Maps, largest: TokenAffinity | None, one: slice
    ) -> dict[str, Maps | Tensor | TokenAffinity]:
        """Labels as training makes them, int64 of the sample's image's size."""
        kinds = self.wanted & {"refined_label", "propagated_label"}
        if not kinds:
            return {}
        dataset = self.config.dataset
        device = cams.scores.device
        normalised = normalise(sample.image, dataset.image_mean, dataset.image_std)[None].to(device)
        image = par_image(normalised, dataset.image_mean, dataset.image_std)
        height, width = image.shape[-2:]
        full = cams.resized((height, width))
        box = torch.tensor([[0, height, 0, width]])
        weights = self.labels.par_weights(image)
        labels: dict[str, Maps | Tensor | TokenAffinity] = {}
        if "refined_label" in kinds:
            labels["refined_label"] = self.labels.refined(image, full, box, weights)[0]
        if "propagated_label" in kinds:
            labels["propagated_label"] = self.labels.propagated(image, full, _one(largest, one), box, weights)[0]
        return labels


class SharedPasses:
    """CAM passes that also keep what the segmentation wants of them.

    Args:
        network: In evaluation mode.
        present: The classes whose CAMs are wanted, of B images.

    Attributes:
        wanted: Sizes (h, w) of passes whose segmentation logits are kept.
        mirror: Whether those of mirror images are, too.
        known: The logits kept.
    """

    def __init__(self, network: AFANet, present: PresentClasses) -> None:
        self.network, self.present = network, present
        self.wanted: set[tuple[int, int]] = set()
        self.mirror = False
        self.known = KnownLogits()

    def cam(self, images: Tensor, affinity_of: int) -> tuple[Tensor, Tensor | None]:
        """A :data:`afa.ops.cam.CamPass` over [images, mirror images] or, at scale 1, the mirror images alone."""
        features, attention = self.network.encoder(
            images, attention_of=affinity_of, attention_blocks=self.network.affinity_blocks
        )
        size = (images.shape[-2], images.shape[-1])
        if size in self.wanted:
            self._keep(size, features)
        affinity = self.network.affinity(attention) if affinity_of else None
        return self.present.gather(self.network.class_activation(features[-1])), affinity

    def _keep(self, size: tuple[int, int], features: Sequence[Tensor]) -> None:
        batch = len(self.present.channels)
        has_plain = len(features[0]) == 2 * batch
        if has_plain and not self.mirror:
            features = [feature[:batch] for feature in features]
        elif not has_plain and not self.mirror:
            return
        logits = list(self.network.decoder(features).split(batch))
        if has_plain:
            self.known.plain[size] = logits.pop(0)
        if logits:
            self.known.mirrored[size] = logits.pop(0)


def _one(affinity: TokenAffinity | None, one: slice) -> TokenAffinity:
    """That of one image of the batch."""
    if affinity is None:
        raise ValueError("no affinity was computed")
    return TokenAffinity(affinity.values[one], affinity.grid)
