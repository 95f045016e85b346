"""``edam``: pairs of images teach a distribution over classes and background, which labels images with saliency.

EDAM is built on PSA: its ResNet-38, its training transform, its passes over scales and its DenseCRF are PSA's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afa.data.samples import Sample
from afa.data.transforms import normalise_exactly
from afa.maps import Maps, present_classes
from afa.methods.base import (
    Batch,
    Found,
    Method,
    Output,
    ParameterGroup,
    Runtime,
    Said,
    SegmentationProtocol,
    StepOutput,
    Transform,
)
from afa.methods.cam_transforms import cam_transform, network_images, resize_long_side, scaled_images
from afa.methods.cam_volumes import build_crf
from afa.methods.classification import choose_classes, given_labels
from afa.methods.edam.config import EDAMConfig
from afa.methods.edam.labels import crf_scores, fused_distribution, label_with_saliency
from afa.methods.edam.parameters import parameter_groups
from afa.models import EDAMNetwork, build_encoder
from afa.parts import part


class EDAM(Method):
    """See :class:`afa.methods.base.Method`."""

    name = "edam"
    config_class = EDAMConfig
    low_precision = True
    sampler = "pairs"
    on_host = frozenset()

    config: EDAMConfig
    network: EDAMNetwork

    def __init__(self, config: EDAMConfig, class_names: Sequence[str], runtime: Runtime) -> None:
        super().__init__(config, class_names, runtime)
        model = config.model
        self.network = EDAMNetwork(
            build_encoder(model, last_relu=False),
            len(self.class_names),
            width=model.attention_width,
            heads=model.attention_heads,
            dropout=model.attention_dropout,
        )
        if config.optimiser.freeze == "released":
            self.network.encoder.freeze_released()
        self.crf = build_crf(config.crf)
        self.outputs = (
            Output("crf", "distribution, CRF", "maps", scored=False),
            Output("cam", "distribution", "maps", threshold=config.cam.background),
            Output("with_saliency", "with saliency", "label", inputs=("saliency",)),
        )

    def pretrained(self) -> Sequence[tuple[nn.Module, str]]:
        """The encoder's ImageNet weights."""
        source = self.config.model.pretrained
        return [(self.network.encoder, source)] if source else []

    def transform(self) -> Transform:
        """Random size, mirror, colours, crop, of each image of a pair on its own."""
        return cam_transform(self.config.augmentation, self.config.dataset)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Encoder, new convolutions, and attention."""
        return parameter_groups(self.network, self.config.optimiser)

    def training_step(self, network: nn.Module, batch: Batch, step: int) -> StepOutput:
        """See :class:`afa.methods.base.Method`; the images 2 a and 2 a + 1 are a pair (sec. 3.3)."""
        with part("forward"), self.runtime.autocast():
            logits = network(batch["image"])
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch["class_labels"])
        return StepOutput({"cls": loss}, {"cls": 1.0})

    @torch.no_grad()
    def predict(self, samples: Sequence[Sample], wanted: Sequence[str], protocol: SegmentationProtocol) -> list[Found]:
        """``cam`` [1, m, H, W] in 0..1; ``crf`` [1, 1 + m, H, W] with background; the label ``with_saliency`` [H, W].

        See :class:`afa.methods.base.Method`. ``protocol`` is for segmentations, so it changes nothing here. Where
        nobody knows an image's classes, the classifier of the training tells them: the image is its own partner.
        """
        images = network_images(samples)
        labels, cls_logits = given_labels(samples), None
        with part("cam"):
            if labels is None:
                cls_logits = self._classified(images)
                labels = choose_classes(cls_logits).cpu()
            present = present_classes(labels, next(self.network.parameters()).device)
            scores = fused_distribution(self._passes(images), present, images[0].shape[:2])
        cams, found = scores.without_background().images(), []
        for index, (sample, own, own_cams) in enumerate(zip(samples, scores.images(), cams, strict=True)):
            class_ids = own_cams.class_ids[0][own_cams.counted[0]].tolist()
            logits = None if cls_logits is None else cls_logits[index]
            found.append(Found(self._outputs(sample, own, own_cams, wanted), tuple(class_ids), logits))
        return found

    def _outputs(self, sample: Sample, scores: Maps, cams: Maps, wanted: Sequence[str]) -> dict[str, Said]:
        """What is wanted of one image: scores with the network's background [1, 1 + m, H, W], and without."""
        outputs: dict[str, Said] = {}
        if "cam" in wanted:
            outputs["cam"] = cams
        settings, size = self.config.edam, (sample.image.shape[0], sample.image.shape[1])
        labels = "with_saliency" in wanted
        refined: Maps | None = None
        if "crf" in wanted or (labels and settings.rule == "crf"):
            with part("crf"):
                image = torch.from_numpy(sample.image).permute(2, 0, 1).contiguous().to(cams.scores.device)
                refined = crf_scores(self.crf, image, cams.resized(size), self.config.crf.background_exponent)
            if "crf" in wanted:
                outputs["crf"] = refined
        if labels and cams.counted.any():
            chosen = refined if refined is not None and settings.rule == "crf" else scores.resized(size)
            saliency = torch.from_numpy(sample.inputs["saliency"])[None].to(cams.scores.device)
            outputs["with_saliency"] = label_with_saliency(chosen, saliency, settings)[0]
        elif labels:
            outputs["with_saliency"] = torch.zeros(size, dtype=torch.int64, device=cams.scores.device)
        return outputs

    def _passes(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        """Distributions at each scale, [2 B, K + 1, *, *], those of the mirror images last."""
        scales, passes = self.config.cam.scales, []
        for of_scale in zip(*(scaled_images(image, scales) for image in images), strict=True):
            plain = self._input(of_scale)
            with self.network_pass():
                passes.append(self.network.distribution(torch.cat([plain, plain.flip(-1)])).float())
        return passes

    def _classified(self, images: Sequence[np.ndarray]) -> Tensor:
        """Logits [B, K] of images as large as training may see them, or smaller: attention compares all positions."""
        long_side = min(max(images[0].shape[:2]), self.config.augmentation.long_side_max)
        plain = self._input([resize_long_side(image, long_side) for image in images])
        with self.network_pass():
            feature = self.network.encoder.features(plain)[-1]
            return self.network.classify(feature.repeat_interleave(2, dim=0))[::2].float()

    def _input(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images of one size as the network sees them, normalised, [B, 3, *, *]."""
        mean, std = self.config.dataset.image_mean, self.config.dataset.image_std
        batch = torch.stack([normalise_exactly(image, mean, std) for image in images])
        return batch.to(next(self.network.parameters()).device, non_blocking=True)
