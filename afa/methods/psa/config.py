"""The settings of PSA's two methods. References such as "sec. 3.2" point into the paper (CVPR 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from afa.config.encoders import EncoderConfig, convolution_problems, encoder_problems, encoder_stride, name_problem
from afa.config.settings import RunConfig, ValidationConfig, scale_problems, setting
from afa.methods.cam_config import CAMAugmentationConfig, CRFConfig, JitteredCropConfig, ReleasedOptimiserConfig


@dataclass
class PSAModelConfig(EncoderConfig):
    """ResNet-38 or a network of timm; PSA's heads take its last three feature maps."""

    encoder: str = setting("resnet38", "resnet38, or timm/NAME, such as timm/resnet50")


@dataclass
class CAMModelConfig(PSAModelConfig):
    """Encoder and classifier."""

    dropout: float = setting(0.5, "dropout of whole channels before the classifier", minimum=0, maximum=0.9)


@dataclass
class AffinityModelConfig(PSAModelConfig):
    """Encoder and AffinityNet's layers."""

    head_widths: list[int] | None = setting(
        None,
        "channels of the heads on the three feature maps; default: one, two and four times 64 (resnet38: times "
        "model.base_width)",
        minimum=1,
        maximum=8192,
    )


@dataclass
class CAMConfig:
    """Class activation maps (sec. 3.1)."""

    scales: list[float] = setting([1.0, 0.5, 1.5, 2.0], "scales of the CAM passes", above=0, maximum=16)
    epsilon: float = setting(1e-5, "added to the maximum when a CAM is normalised", above=0)
    background: float = setting(0.2, "background score of the CAM's label", minimum=0, maximum=1)


@dataclass
class CAMCRFConfig(CRFConfig):
    """Computation of crf_low and crf_high from CAMs (sec. 3.2.1)."""

    low_alpha: float = setting(4.0, "exponent of the background score (1 - max CAM) in crf_low", above=0)
    high_alpha: float = setting(32.0, "exponent of the background score in crf_high (paper 24)", above=0)


@dataclass
class CAMValidationConfig(ValidationConfig):
    """As for every method; without masks the loss on the validation list is reported."""

    crop_size: int = setting(500, "without masks: side of the central crop on which the loss is computed", minimum=16)


@dataclass
class PSACamConfig(RunConfig):
    """One run of PSA's CAM network."""

    method: str = setting("psa_cam", "training method")
    augmentation: CAMAugmentationConfig = field(default_factory=CAMAugmentationConfig)
    model: CAMModelConfig = field(default_factory=CAMModelConfig)
    cam: CAMConfig = field(default_factory=CAMConfig)
    crf: CAMCRFConfig = field(default_factory=CAMCRFConfig)
    validation: CAMValidationConfig = field(default_factory=CAMValidationConfig)
    optimiser: ReleasedOptimiserConfig = field(default_factory=ReleasedOptimiserConfig)

    def problems(self) -> Iterator[str]:
        """See :meth:`RunConfig.problems`."""
        yield from _encoder_problems(self.model)
        yield from super().problems()
        yield from scale_problems("cam.scales", self.cam.scales)
        if self.crf.low_alpha >= self.crf.high_alpha:
            yield (
                f"crf.low_alpha {self.crf.low_alpha} is not below crf.high_alpha {self.crf.high_alpha}: the larger it "
                "is, the smaller the background's score"
            )


@dataclass
class PairsConfig:
    """Which positions are compared (sec. 3.2.2)."""

    radius: int = setting(5, "only pairs closer than this many positions are compared", minimum=2, maximum=64)


@dataclass
class AffinityLossConfig:
    """Shares of the three kinds of pairs in the loss (sec. 3.2.2)."""

    background: float = setting(0.25, "weight of pairs of background", minimum=0)
    foreground: float = setting(0.25, "weight of pairs of one class", minimum=0)
    negative: float = setting(0.5, "weight of pairs of different classes", minimum=0)
    epsilon: float = setting(1e-5, "added within the logarithms and to the counts", above=0)
    normalisation: str = setting(
        "process",
        "compute means and counts of the loss in each process (as released) or over all processes",
        choices=("process", "global"),
    )


@dataclass
class WalkConfig:
    """The random walk (sec. 3.3)."""

    alpha: float = setting(16.0, "exponent of the background score (1 - max CAM)", above=0)
    beta: float = setting(8.0, "exponent of the affinities", above=0)
    log_steps: int = setting(8, "the walk has 2 to the power of this steps; 8 gives t = 256", minimum=0, maximum=20)


@dataclass
class PSAAffinityConfig(RunConfig):
    """One run of PSA's AffinityNet."""

    method: str = setting("psa_affinity", "training method")
    augmentation: JitteredCropConfig = field(default_factory=JitteredCropConfig)
    model: AffinityModelConfig = field(default_factory=AffinityModelConfig)
    affinity: PairsConfig = field(default_factory=PairsConfig)
    loss: AffinityLossConfig = field(default_factory=AffinityLossConfig)
    walk: WalkConfig = field(default_factory=WalkConfig)
    crf: CRFConfig = field(default_factory=CRFConfig)
    optimiser: ReleasedOptimiserConfig = field(default_factory=ReleasedOptimiserConfig)

    def problems(self) -> Iterator[str]:
        """See :meth:`RunConfig.problems`."""
        yield from _encoder_problems(self.model)
        yield from super().problems()
        widths = self.model.head_widths
        if widths is not None and len(widths) != 3:
            yield f"model.head_widths needs three values, one for each feature map, not {len(widths)}"
        crop, stride, radius = self.augmentation.crop_size, encoder_stride(self.model), self.affinity.radius
        if crop % stride:
            near = max(stride, round(crop / stride) * stride)
            yield (
                f"augmentation.crop_size: {crop} is not a multiple of {stride}, the encoder's stride; the nearest is "
                f"{near}"
            )
        if crop // stride <= 2 * (radius - 1):
            yield (
                f"augmentation.crop_size: {crop} pixels are {crop // stride} positions, too few for pairs of radius "
                f"{radius}; set {stride * (2 * radius - 1)} or more, or a smaller affinity.radius"
            )

    def training_problems(self) -> Iterator[str]:
        """See :meth:`RunConfig.training_problems`."""
        if not self.loss.background + self.loss.foreground or not self.loss.negative:
            yield (
                "loss: without pairs of one class, or without pairs of different ones, all affinities become equal; "
                "give both a weight above 0"
            )


def _encoder_problems(model: PSAModelConfig) -> Iterator[str]:
    problem = name_problem(model.encoder)
    if problem is not None:
        yield problem
    yield from convolution_problems(model, "PSA")
    yield from encoder_problems(model)
