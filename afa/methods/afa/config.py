"""The settings of AFA. References such as "sec. 3.2" point into the paper (CVPR 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from afa.config.encoders import EncoderConfig, attention_problems, encoder_family, encoder_problems, encoder_variant
from afa.config.settings import AugmentationConfig, Renamed, RunConfig, ValidationConfig, scale_problems, setting


@dataclass
class ModelConfig(EncoderConfig):
    """Encoder (Mix Transformer or Vision Transformer), classifier, affinity head and MLP decoder (sec. 3.1-3.3)."""

    pooling: str = setting(
        "gmp",
        "an image's class scores: from the maximum or the mean of each channel, or the mean of the highest CAM scores",
        choices=("gmp", "gap", "topk"),
    )
    pooling_share: float = setting(
        0.1, "with pooling=topk: share of the positions whose CAM scores count", above=0, maximum=1
    )
    cam_block: int = setting(
        0,
        "Vision Transformers: block whose tokens the classifier and the CAMs read, counted from 1; the classification "
        "loss then does not train the encoder; 0: the last block, and it does",
        minimum=0,
    )
    decoder_width: int = setting(256, "channels of the decoder", minimum=1, maximum=8192)
    decoder_dropout: float = setting(0.1, "Dropout2d before the decoder's last layer", minimum=0, maximum=0.9)
    affinity_blocks: int = setting(2, "number of last blocks whose raw attention the affinity head reads", minimum=1)


@dataclass
class CamConfig:
    """Class activation maps over scales, and the thresholds that turn them into labels."""

    scales: list[float] = setting([1.0, 0.5, 1.5], "scales of the CAM passes, in their order", above=0, maximum=16)
    epsilon: float = setting(1e-5, "added to the maximum when a CAM is normalised", above=0)
    centred: bool = setting(
        False,
        "subtract the mean of each map of a pass, borders of a crop included, before ReLU: a score that is the same "
        "everywhere does not show where an object is",
    )
    background: float = setting(0.45, "background score of the plain label", minimum=0, maximum=1)
    low: float = setting(0.35, "lower background score; background is where both labels say so", minimum=0, maximum=1)
    high: float = setting(0.55, "higher background score; its label decides where a class is", minimum=0, maximum=1)
    reuse_training_forward: bool = setting(
        True, "use the training forward as the un-mirrored pass at scale 1 (same drop-path sample, no second run)"
    )


@dataclass
class AffinityConfig:
    """Affinity and its random walk (sec. 3.3, eq. 4-6)."""

    radius: int = setting(8, "pairs further apart than this many tokens in y or x are ignored", minimum=1)
    power: float = setting(2.0, "alpha of T = D^-1 A^alpha", above=0)
    epsilon: float = setting(0.1, "added to the sums of the transition matrix's columns", above=0)


@dataclass
class ParConfig:
    """Pixel-adaptive refinement (sec. 3.4, eq. 7-9)."""

    iterations: int = setting(10, "how often the masks are refined (VOC 10, COCO 15)", minimum=0)
    dilations: list[int] = setting(
        [1, 2, 4, 8, 12, 24], "distances of the 8 neighbours in pixels", minimum=1, maximum=8192
    )
    image_scale: float = setting(0.5, "size of the image given to PAR, relative to the crop", above=0, maximum=1)
    temperature: float = setting(0.3, "w1 and w2: scale of colour and position distances", above=0)
    position_weight: float = setting(0.01, "w3: weight of the position kernel", minimum=0)


@dataclass
class RegularisedLossConfig:
    """Dense energy of the segmentation (regularised loss)."""

    weight: float = setting(0.0, "weight in the total loss (paper 0.01, released program 0: off)", minimum=0)
    energy_weight: float = setting(1e-7, "factor of the energy itself", above=0)
    sigma_rgb: float = setting(15.0, "bandwidth in colour, 0-255", minimum=0.5)
    sigma_xy: float = setting(100.0, "bandwidth in pixels of the crop", minimum=0.5)
    scale: float = setting(0.5, "size at which the energy is computed, relative to the crop", above=0, maximum=1)


@dataclass
class LossConfig:
    """Total = cls + seg + aff + reg with these weights (eq. 12); during the first steps cls alone."""

    cls: float = setting(1.0, "weight of the classification loss", minimum=0)
    seg: float = setting(0.1, "weight of the segmentation loss", minimum=0)
    aff: float = setting(0.1, "weight of the affinity loss", minimum=0)
    reg: RegularisedLossConfig = field(default_factory=RegularisedLossConfig)
    seg_background_share: float = setting(0.5, "share of the background in the segmentation loss", minimum=0, maximum=1)
    aff_positive_share: float = setting(0.5, "share of the positive pairs in the affinity loss", minimum=0, maximum=1)
    normalisation: str = setting(
        "process",
        "compute means and counts of the losses in each process (as released) or over all processes",
        choices=("process", "global"),
    )


@dataclass
class ScheduleConfig:
    """When each loss and label is used. Step s counts from 0."""

    cls_until: int = setting(2000, "while s <= this, only the classification loss is used", minimum=-1, of_steps=True)
    refined_until: int = setting(
        6000, "while s <= this, the refined label supervises the decoder; then the propagated label", of_steps=True
    )
    affinity_label_switches: bool = setting(
        False, "after refined_until, compute the affinity label from the propagated label (COCO)"
    )
    released_decoder_passes: bool = setting(
        False,
        "run every pass with its decoder, as the released program does, even if only BatchNorm's running statistics "
        "depend on it; losses and weights stay the same",
    )


@dataclass
class AFAValidationConfig(ValidationConfig):
    """As for every method, and the background score of the propagated CAM."""

    propagation_background: float = setting(0.35, "background score of the propagated CAM", minimum=0, maximum=1)


@dataclass
class AFAConfig(RunConfig):
    """One run of AFA."""

    renamed: ClassVar[Mapping[str, Renamed]] = {
        "optimiser.freeze_norms": Renamed("optimiser.freeze", {True: "released", False: "none"}),
        "validation.cam": Renamed("validation.outputs", {True: None, False: ["segmentation"]}),
    }

    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    cam: CamConfig = field(default_factory=CamConfig)
    affinity: AffinityConfig = field(default_factory=AffinityConfig)
    par: ParConfig = field(default_factory=ParConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    validation: AFAValidationConfig = field(default_factory=AFAValidationConfig)

    def problems(self) -> Iterator[str]:
        """See :meth:`RunConfig.problems`."""
        yield from attention_problems(self.model, "AFA")
        yield from encoder_problems(self.model, crop_size=self.augmentation.crop_size)
        if encoder_family(self.model) == "mit":
            yield from self._affinity_problems()
            if self.model.cam_block:
                yield (
                    f"model.cam_block is for Vision Transformers of timm, not for {self.model.encoder}: "
                    "set model.cam_block=0"
                )
        yield from super().problems()
        yield from scale_problems("cam.scales", self.cam.scales)
        crop = self.augmentation.crop_size
        if min(self.cam.scales) * crop < 16:
            yield f"cam.scales: {min(self.cam.scales)} of a crop of {crop} is less than 16 pixels"
        if self.cam.low > self.cam.high:
            yield f"cam.low {self.cam.low} is above cam.high {self.cam.high}"
        if not self.par.dilations:
            yield "par.dilations is empty"

    def training_problems(self) -> Iterator[str]:
        """See :meth:`RunConfig.training_problems`."""
        steps, schedule, loss = self.train.steps, self.schedule, self.loss
        if steps <= schedule.cls_until + 1:
            yield (
                f"train.steps={steps} ends before the decoder is trained for the first time, which it is after "
                f"{schedule.cls_until + 1} steps (schedule.cls_until={schedule.cls_until}): raise train.steps above "
                "that, or lower schedule.cls_until"
            )
        for name, part in (("cls", "the classifier"), ("seg", "the decoder")):
            if getattr(loss, name) == 0:
                yield f"loss.{name}=0: {part} would never be trained: give it a weight above 0"
        first_propagated = max(schedule.refined_until, schedule.cls_until) + 1
        if loss.aff == 0 and steps > first_propagated:
            yield (
                f"loss.aff=0: the affinity head would never be trained, yet make the decoder's labels after "
                f"{first_propagated} steps (schedule.refined_until={schedule.refined_until}): give loss.aff a weight "
                f"above 0, or raise schedule.refined_until to {steps - 1}"
            )

    def training_remarks(self) -> Iterator[str]:
        """See :meth:`RunConfig.training_remarks`."""
        schedule = self.schedule
        if schedule.refined_until < schedule.cls_until:
            yield (
                f"schedule.refined_until={schedule.refined_until} is below schedule.cls_until={schedule.cls_until}: "
                "the refined label is never used"
            )
        model = self.model
        if model.pooling != "topk" and model.pooling_share != ModelConfig.pooling_share:
            yield f"model.pooling_share changes nothing with model.pooling={model.pooling}"
        yield from super().training_remarks()

    def _affinity_problems(self) -> Iterator[str]:
        model, depths = self.model, encoder_variant(self.model).depths
        stages = [3] * depths[3] + [2] * depths[2]
        if model.affinity_blocks > len(stages) or any(
            model.reductions[stage] != 1 for stage in stages[: model.affinity_blocks]
        ):
            yield (
                f"model.reductions, model.affinity_blocks: the last {model.affinity_blocks} blocks must have reduction "
                "1, because the affinity needs square attention"
            )
        elif stages[model.affinity_blocks - 1] == 2 and model.strides[3] != 1:
            yield "model.affinity_blocks: it reaches into stage 3, whose token grid is another; set model.strides[3]=1"
