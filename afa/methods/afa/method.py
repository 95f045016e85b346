"""AFA: CAMs -> refined labels -> affinity -> propagated labels -> segmentation, all in one network (fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from afa.data.samples import Sample
from afa.data.transforms import ColourJitter, normalise, training_transform
from afa.maps import IGNORE, Maps, PresentClasses, present_classes
from afa.methods.afa.config import AFAConfig
from afa.methods.afa.labels import PseudoLabels, affinity_label, box_mask, missing_share, par_image, restore_image
from afa.methods.afa.losses import affinity_loss
from afa.methods.afa.network import build_network
from afa.methods.afa.prediction import predict
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
from afa.methods.classification import classification_loss
from afa.methods.segmentation import crop_settings, loss_denominator, segmentation_loss
from afa.models import AFANet, AFAOutput
from afa.ops.cam import multi_scale_cam, resize
from afa.ops.dense_energy import dense_energy_loss
from afa.ops.random_walk import PairAffinity
from afa.ops.token_pairs import sum_of_ordered_pairs
from afa.parts import part

MOST_TOKENS = 4096

_MANY_OBJECTS = 0.6
"""Share of pixels with a class in the labels from which on they are doubted."""
_MANY_MISSING = 0.1
"""Share of the images' classes without a pixel in the labels above which they are doubted."""


class AFA(Method):
    """The method of the paper; see :class:`afa.methods.base.Method`."""

    name = "afa"
    config_class = AFAConfig
    low_precision = True
    on_host = frozenset({"class_labels", "valid_box"})

    config: AFAConfig
    network: AFANet

    def __init__(self, config: AFAConfig, class_names: Sequence[str], runtime: Runtime) -> None:
        super().__init__(config, class_names, runtime)
        self.network = build_network(config.model, len(self.class_names) + 1, config.affinity.radius)
        self.labels = PseudoLabels(config.cam, config.affinity, config.par)
        self.passes = ReleasedPasses() if config.schedule.released_decoder_passes else Passes()
        self.outputs = (
            Output("cam", "CAM", "maps", threshold=config.cam.background),
            Output("propagated_cam", "propagated CAM", "maps"),
            Output("refined_label", "refined label", "label", scored=False),
            Output("propagated_label", "propagated label", "label", scored=False),
            Output("affinity", "affinity", "affinity", scored=False),
            Output("segmentation", "segmentation", "maps", logits=True),
        )
        if self._freezes:
            for name, parameter in self.network.encoder.named_parameters():
                if "norm" in name:
                    parameter.requires_grad_(False)

    @property
    def _freezes(self) -> bool:
        """Whether the encoder's norms stay as they are."""
        return self.config.optimiser.freeze == "released"

    @property
    def _encoder_rests(self) -> bool:
        """Whether the classification loss leaves the encoder alone."""
        return self.config.model.cam_block > 0

    @property
    def _resting(self) -> Sequence[nn.Parameter]:
        """What a step of classification alone leaves as it is."""
        return list(self.network.encoder.parameters()) if self._encoder_rests else ()

    def pretrained(self) -> Sequence[tuple[nn.Module, str]]:
        """The encoder's ImageNet weights."""
        source = self.config.model.pretrained
        return [(self.network.encoder, source)] if source else []

    def transform(self) -> Transform:
        """Scale, mirror, pad, crop, normalise (sec. 4.1)."""
        return partial(training_sample, **crop_settings(self.config.augmentation, self.config.dataset))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Encoder, its norms, the heads, the decoder (sec. 4.1)."""
        settings = self.config.optimiser
        encoder: list[nn.Parameter] = []
        norms: list[nn.Parameter] = []
        for name, parameter in self.network.encoder.named_parameters():
            (norms if "norm" in name else encoder).append(parameter)
        norm_lr, norm_decay = (0.0, 0.0) if self._freezes else (settings.lr, settings.weight_decay)
        head_lr = settings.lr * settings.head_lr_factor
        heads = [*self.network.classifier.parameters(), *self.network.attn_proj.parameters()]
        decoder = list(self.network.decoder.parameters())
        return [
            ParameterGroup(name="encoder", params=encoder, base_lr=settings.lr, weight_decay=settings.weight_decay),
            ParameterGroup(name="norms", params=norms, base_lr=norm_lr, weight_decay=norm_decay),
            ParameterGroup(name="heads", params=heads, base_lr=head_lr, weight_decay=settings.weight_decay),
            ParameterGroup(name="decoder", params=decoder, base_lr=head_lr, weight_decay=settings.weight_decay),
        ]

    def training_step(self, network: nn.Module, batch: Batch, step: int) -> StepOutput:
        """One step (eq. 12); see :class:`afa.methods.base.Method`.

        While ``step <= schedule.cls_until`` only the classification loss counts.
        """
        schedule, weights = self.config.schedule, self.config.loss
        cls_only = step <= schedule.cls_until
        if cls_only and self.passes.skip_unused:
            return self._classification_step(network, batch)

        image, device = batch["image"], batch["image"].device
        with part("forward"), self.runtime.autocast():
            output = network(image)
        present = present_classes(batch["class_labels"], device)
        with part("cam"):
            cams, affinity = self._cams(image, output, present, with_affinity=step > schedule.refined_until)
        with part("labels"):
            seg_target, aff_source = self._labels(batch, cams, affinity, step)
        del cams, affinity  # would stay through the losses

        denominator = loss_denominator(weights.normalisation, self.runtime)
        seg_logits = resize(output.seg_logits.float(), image.shape[-2:])
        token_grid = (output.cam.shape[-2], output.cam.shape[-1])
        pairs = affinity_label(aff_source, token_grid, self.config.affinity.radius)
        losses = {
            "cls": classification_loss(output.cls_logits, batch["class_labels"].to(device, non_blocking=True)),
            "seg": segmentation_loss(
                seg_logits,
                seg_target,
                background_share=weights.seg_background_share,
                denominator=denominator,
            ),
            "aff": affinity_loss(
                output.affinity,
                pairs,
                positive_share=weights.aff_positive_share,
                denominator=denominator,
            ),
        }
        step_weights = {"cls": weights.cls, "seg": weights.seg, "aff": weights.aff}
        if weights.reg.weight and not cls_only:
            losses["reg"] = self._regularised_loss(batch, seg_logits, seg_target)
            step_weights["reg"] = weights.reg.weight
        targets = {"seg": seg_target, "aff": aff_source}
        if cls_only:  # nothing learns from these labels, so there are no figures of them
            step_weights = {name: weights.cls if name == "cls" else 0.0 for name in losses}
            return StepOutput(losses, step_weights, targets=targets, resting=self._resting)
        all_pairs = len(pairs) * (token_grid[0] * token_grid[1]) ** 2
        scalars = {
            "pixels/background": (seg_target == 0).float().mean(),
            "pixels/foreground": ((seg_target != 0) & (seg_target != IGNORE)).float().mean(),
            "pixels/ignored": (seg_target == IGNORE).float().mean(),
            "classes/missing": missing_share(seg_target, present),
            "pairs/positive": sum_of_ordered_pairs(pairs == 1) / all_pairs,
            "pairs/negative": sum_of_ordered_pairs(pairs == 0) / all_pairs,
        }
        return StepOutput(losses, step_weights, scalars, targets)

    def concerns(self, means: Mapping[str, float]) -> Mapping[str, str]:
        """See :class:`afa.methods.base.Method`: labels that cover the images, or leave classes out.

        No loss shows either.
        """
        concerns = {}
        covered, missing = means.get("pixels/foreground", 0.0), means.get("classes/missing", 0.0)
        if covered > _MANY_OBJECTS:
            concerns["pixels/foreground"] = (
                f"the labels give {covered:.0%} of the pixels to classes; if your objects are smaller, CAMs have "
                "spread over the images, and the segmentation learns that: look at 'afa sheet', and lower loss.seg and "
                "loss.aff, or optimiser.lr; docs/recipes.md has more"
            )
        if missing > _MANY_MISSING:
            first = "" if self.config.cam.centred else "set cam.centred=true, then "
            concerns["classes/missing"] = (
                f"{missing:.0%} of the images' classes have no pixel in the labels, so the segmentation may learn that "
                f"they are background: {first}lower cam.high and cam.low; docs/recipes.md has more"
            )
        return concerns

    def most_pixels(self, wanted: Sequence[str]) -> float | None:
        """So many that the affinity of all pairs, which is for display, is between 4096 tokens at most.

        Affinities that scores walk along are of neighbours alone, so the other outputs could be made of larger images;
        their limit is the same, so that all outputs are of one size.
        """
        return MOST_TOKENS * self.network.encoder.strides[-1] ** 2

    def predict(self, samples: Sequence[Sample], wanted: Sequence[str], protocol: SegmentationProtocol) -> list[Found]:
        """See :class:`afa.methods.base.Method`."""
        return predict(self.network, self.config, self.labels, samples, wanted, protocol, self.network_pass)

    def _classification_step(self, network: nn.Module, batch: Batch) -> StepOutput:
        """Neither decoder nor affinity head runs; their gradients are zero, so weight decay still reaches them.

        So has it the released program. The encoder, where the classification does not train it, rests instead: it is
        pretrained, and the large first steps that follow gradients of zero would cost it what it knows.
        """
        image = batch["image"]
        with part("forward"), self.runtime.autocast():
            output = network(image, decode=False, with_affinity=False)
        losses = {
            "cls": classification_loss(output.cls_logits, batch["class_labels"].to(image.device, non_blocking=True)),
            "seg": _zero(self.network.decoder),
            "aff": _zero(self.network.attn_proj),
        }
        if self._encoder_rests:
            losses["seg"] = losses["seg"] + _zero(self.network.encoder)
        weights = {"cls": self.config.loss.cls, "seg": 0.0, "aff": 0.0}
        return StepOutput(losses, weights, resting=self._resting)

    def _cams(
        self, image: Tensor, first: AFAOutput, present: PresentClasses, *, with_affinity: bool
    ) -> tuple[Maps, PairAffinity | None]:
        """CAMs of the present classes; the labels need no others."""
        settings = self.config.cam

        def cam_pass(images: Tensor, affinity_of: int) -> tuple[Tensor, Tensor | None]:
            cam, affinity = self.network.cam(images, affinity_of, decode=self.passes.decode_cams)
            return present.gather(cam), affinity

        reuse = settings.reuse_training_forward and self.passes.skip_unused
        with self.runtime.autocast():
            found = multi_scale_cam(
                cam_pass,
                image,
                settings.scales,
                epsilon=settings.epsilon,
                centred=settings.centred,
                with_affinity=with_affinity,
                first_cam=present.gather(first.cam) if reuse else None,
                first_affinity=first.affinity.detach() if reuse and first.affinity is not None else None,
            )
        return present.maps(found.cams), found.affinity

    def _labels(self, batch: Batch, cams: Maps, affinity: PairAffinity | None, step: int) -> tuple[Tensor, Tensor]:
        """Targets of this step: the decoder's label, and the label that the affinity label comes from."""
        schedule, labels, box = self.config.schedule, self.labels, batch["valid_box"]
        image = par_image(batch["image"], self.config.dataset.image_mean, self.config.dataset.image_std)
        if affinity is None:
            refined = labels.refined(image, cams, box)
            return refined, refined
        weights = None if schedule.affinity_label_switches else labels.par_weights(image)
        propagated = labels.propagated(image, cams, affinity, box, weights)
        if schedule.affinity_label_switches:
            return propagated, propagated
        return propagated, labels.refined(image, cams, box, weights)

    def _regularised_loss(self, batch: Batch, seg_logits: Tensor, label: Tensor) -> Tensor:
        settings, image = self.config.loss.reg, batch["image"]
        return dense_energy_loss(
            restore_image(image, self.config.dataset.image_mean, self.config.dataset.image_std),
            seg_logits.softmax(dim=1),
            box_mask(batch["valid_box"], image.shape[-2:], image.device).float(),
            label,
            weight=settings.energy_weight,
            sigma_rgb=settings.sigma_rgb,
            sigma_xy=settings.sigma_xy,
            scale=settings.scale,
        )


class Passes:
    """Which passes a training step makes: those whose results are used."""

    skip_unused = True
    """Leave out what no loss needs, and share what two need."""
    decode_cams = False
    """Run the decoder in the CAM passes, for its BatchNorm statistics' sake."""


class ReleasedPasses(Passes):
    """Every pass of the released program, also where only BatchNorm's running statistics notice."""

    skip_unused = False
    decode_cams = True


def training_sample(
    sample: Sample,
    rng: np.random.Generator,
    *,
    crop_size: int,
    scale_range: tuple[float, float],
    mirror_probability: float,
    resampling: str,
    jitter: ColourJitter,
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, Tensor]:
    """One training crop.

    Args:
        sample: With class labels.
        rng: The only source of randomness.
        crop_size, scale_range, mirror_probability, resampling: See :func:`afa.data.transforms.training_transform`.
        jitter: Of the colours, before all else.
        mean, std: Of R, G, B, in 0..255.

    Returns:
        ``image`` float32 [3, S, S] normalised, ``class_labels`` float32 [K], and ``valid_box`` int64 [4] (y0, y1, x0,
        x1), the part of the crop that shows image.
    """
    crop, valid_box = training_transform(
        jitter(sample.image, rng),
        rng,
        crop_size=crop_size,
        scale_range=scale_range,
        mirror_probability=mirror_probability,
        resampling=resampling,
    )
    assert sample.class_labels is not None  # needs
    return {
        "image": normalise(crop, mean, std),
        "class_labels": torch.from_numpy(sample.class_labels),
        "valid_box": torch.from_numpy(valid_box),
    }


def _zero(module: nn.Module) -> Tensor:
    """A zero through which every parameter of a module gets a zero gradient."""
    return torch.stack([parameter.sum() for parameter in module.parameters()]).sum() * 0
