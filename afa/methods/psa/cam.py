"""``psa_cam``: a classifier whose CAMs, refined by DenseCRF at two background scores, teach AffinityNet (sec. 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from afa.data.samples import Sample
from afa.data.transforms import normalise_exactly
from afa.maps import Maps, PresentClasses
from afa.methods.base import (
    Batch,
    Found,
    Method,
    Output,
    ParameterGroup,
    Runtime,
    SegmentationProtocol,
    StepOutput,
    Transform,
)
from afa.methods.cam_transforms import CentreTransform, cam_transform, network_images, scaled_images
from afa.methods.cam_volumes import build_crf, refined, with_background
from afa.methods.classification import classes_that_count, classification_loss
from afa.methods.psa.config import PSACamConfig
from afa.methods.psa.parameters import parameter_groups
from afa.models import CAMNetwork, build_encoder
from afa.ops.cam import fused_cams
from afa.parts import part


class PSACam(Method):
    """The CAM network; see :class:`afa.methods.base.Method`."""

    name = "psa_cam"
    config_class = PSACamConfig
    low_precision = True

    config: PSACamConfig
    network: CAMNetwork

    def __init__(self, config: PSACamConfig, class_names: Sequence[str], runtime: Runtime) -> None:
        super().__init__(config, class_names, runtime)
        self.network = CAMNetwork(build_encoder(config.model), len(self.class_names), config.model.dropout)
        if config.optimiser.freeze == "released":
            self.network.encoder.freeze_released()
        self.crf = build_crf(config.crf)
        self.outputs = (
            Output("crf_low", "CAM, CRF, low alpha", "maps", scored=False),
            Output("crf_high", "CAM, CRF, high alpha", "maps", scored=False),
            Output("cam", "CAM", "maps", threshold=config.cam.background),
        )

    def pretrained(self) -> Sequence[tuple[nn.Module, str]]:
        """The encoder's ImageNet weights."""
        source = self.config.model.pretrained
        return [(self.network.encoder, source)] if source else []

    def transform(self) -> Transform:
        """Random size, mirror, colours, crop."""
        return cam_transform(self.config.augmentation, self.config.dataset)

    def validation_transform(self) -> Transform:
        """The middle of each image."""
        dataset = self.config.dataset
        return CentreTransform(self.config.validation.crop_size, tuple(dataset.image_mean), tuple(dataset.image_std))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Encoder and classifier, weights and biases of each."""
        return parameter_groups(self.network, self.config.optimiser)

    def training_step(self, network: nn.Module, batch: Batch, step: int) -> StepOutput:
        """See :class:`afa.methods.base.Method`."""
        image = batch["image"]
        with part("forward"), self.runtime.autocast():
            logits = network(image)
        labels = batch["class_labels"].to(image.device, non_blocking=True)
        return StepOutput({"cls": classification_loss(logits, labels)}, {"cls": 1.0})

    @torch.no_grad()
    def predict(self, samples: Sequence[Sample], wanted: Sequence[str], protocol: SegmentationProtocol) -> list[Found]:
        """CAMs ``cam`` [1, m, H, W] in 0..1; ``crf_low`` and ``crf_high`` [1, 1 + m, H, W], with background.

        See :class:`afa.methods.base.Method`. ``protocol`` is for segmentations, so it changes nothing here.
        """
        images = network_images(samples)
        device = next(self.network.parameters()).device
        with part("cam"):
            cls_logits, passes, present = self._passes(samples, images, device)
            height, width = images[0].shape[:2]
            cams = present.maps(fused_cams(passes, (height, width), self.config.cam.epsilon))
        found = []
        for index, (sample, image_cams) in enumerate(zip(samples, cams.images(), strict=True)):
            outputs: dict[str, Maps] = {"cam": image_cams}
            if not {"crf_low", "crf_high"}.isdisjoint(wanted):
                with part("crf"):
                    outputs |= self._volumes(sample, image_cams)
            class_ids = image_cams.class_ids[0][image_cams.counted[0]].tolist()
            kept = {name: maps for name, maps in outputs.items() if name in wanted}
            found.append(Found(kept, tuple(class_ids), cls_logits[index]))
        return found

    def _passes(
        self, samples: Sequence[Sample], images: Sequence[np.ndarray], device: torch.device
    ) -> tuple[Tensor, list[Tensor], PresentClasses]:
        """Logits at scale 1, CAMs of the present classes of each scale [2 B, m, *, *], mirrors last; the classes."""
        dataset = self.config.dataset
        scales = sorted(self.config.cam.scales, key=lambda scale: scale != 1)  # the classes are known after scale 1
        by_scale = zip(*(scaled_images(image, scales) for image in images), strict=True)
        passes: list[Tensor] = []
        for of_scale in by_scale:
            plain = torch.stack([normalise_exactly(one, dataset.image_mean, dataset.image_std) for one in of_scale])
            plain = plain.to(device, non_blocking=True)
            with self.network_pass():
                feature = self.network.encoder.features(torch.cat([plain, plain.flip(-1)]))[-1]
                cams = self.network.activate(feature).float()
                if not passes:
                    cls_logits = self.network.classify(feature[: len(plain)]).float()
            if not passes:
                present = classes_that_count(samples, cls_logits)
            passes.append(present.gather(cams))
        return cls_logits, passes, present

    def _volumes(self, sample: Sample, cams: Maps) -> dict[str, Maps]:
        image = torch.from_numpy(sample.image).permute(2, 0, 1).contiguous().to(cams.scores.device)
        full, settings = cams.resized(image.shape[-2:]), self.config.crf
        low, high = refined(
            self.crf, image, [with_background(full, alpha) for alpha in (settings.low_alpha, settings.high_alpha)]
        )
        return {"crf_low": low, "crf_high": high}
