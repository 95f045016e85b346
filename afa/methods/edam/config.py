"""The settings of EDAM (Wu et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from afa.config.encoders import EncoderConfig, convolution_problems, encoder_problems
from afa.config.settings import RunConfig, scale_problems, setting
from afa.methods.cam_config import CAMAugmentationConfig, CRFConfig, ReleasedOptimiserConfig


@dataclass
class EDAMModelConfig(EncoderConfig):
    """ResNet-38 or a network of timm, and the transformers over pairs (collaborative multi-attention)."""

    encoder: str = setting("resnet38", "resnet38, or timm/NAME, such as timm/resnet50")
    attention_width: int = setting(
        128, "channels of the transformers over pairs; their feed-forward layers have four times as many", minimum=2
    )
    attention_heads: int = setting(2, "attention heads of the transformers over pairs", minimum=1, maximum=512)
    attention_dropout: float = setting(0.1, "dropout in the transformers over pairs", minimum=0, maximum=0.9)


@dataclass
class EDAMAugmentationConfig(CAMAugmentationConfig):
    """As for PSA's CAM network, with a smaller crop."""

    crop_size: int = setting(
        368,
        "side of the square training crop in pixels; the released program supports only 368",
        minimum=16,
        maximum=8192,
    )


@dataclass
class EDAMOptimiserConfig(ReleasedOptimiserConfig):
    """As for every method; the defaults are those of the released README."""

    lr: float = setting(
        0.001, "learning rate of the encoder and of the transformers (the released program's default is 0.01)", above=0
    )
    momentum: float = setting(0.9, "SGD's momentum", minimum=0, below=1)
    warmup_steps: int = setting(2000, "steps of linear warm-up", minimum=0, of_steps=True)
    warmup_ratio: float = setting(0.1, "factor of the learning rate at step 0", above=0, maximum=1)
    decay_from: str = setting(
        "warmup",
        "first step of the decay: start of training (the rate then drops at the end of the warm-up), or end of warm-up",
        choices=("start", "warmup"),
    )


@dataclass
class EDAMScoresConfig:
    """The distribution over classes, summed over passes."""

    scales: list[float] = setting([1.0, 0.5, 1.5, 2.0], "scales of the passes", above=0, maximum=16)
    background: float = setting(0.5, "background score of the label without saliency", minimum=0, maximum=1)


@dataclass
class EDAMCRFConfig(CRFConfig):
    """As for PSA, with fewer iterations."""

    iterations: int = setting(3, "mean-field iterations", minimum=1)
    background_exponent: float = setting(
        1.0,
        "exponent of the background score (1 - the largest score of a class): the larger, the smaller the background",
        above=0,
    )


@dataclass
class SaliencyConfig:
    """Labels with saliency. Published: theta 0.2; alpha 0.25 and beta 0.95, with CRF 1e-6 and 0.99999.

    The released program's own defaults, theta 0.5, alpha 0 and beta 1, neither suppress nor bring back anything.
    """

    rule: str = setting(
        "released",
        "rule that makes labels from saliency and scores: released (of the released program), algorithm1 (of the "
        "paper), crf (as released, but with the scores after CRF; gives the published 68.1)",
        choices=("released", "algorithm1", "crf"),
    )
    above_beta: str = setting(
        "first",
        "if several classes are above beta: the first one wins (as released), or the strongest; algorithm1 always "
        "takes the strongest",
        choices=("first", "strongest"),
    )
    saliency_maximum: float = setting(
        100.0,
        "grey value of full saliency; stored grey values are compared with theta times this. 100: as released, for all "
        "maps; 255: theta is a share of the 8-bit range; 1: for maps of zeros and ones",
        above=0,
        maximum=255,
    )
    theta: float = setting(
        0.2,
        "pixels with higher saliency are salient (algorithm1: equal or higher); with saliency_maximum=100, 0.2 is the "
        "grey value 20 of 255",
        minimum=0,
        maximum=255,
    )
    alpha: float = setting(0.25, "a salient pixel whose class scores less is background", minimum=0, maximum=1)
    beta: float = setting(
        0.95, "a pixel that is not salient still gets its class if the class scores more", minimum=0, maximum=1
    )
    crf_alpha: float = setting(1e-6, "alpha of the rule crf, whose scores are nearly 0 or 1", minimum=0, maximum=1)
    crf_beta: float = setting(0.99999, "beta of the rule crf", minimum=0, maximum=1)


@dataclass
class EDAMConfig(RunConfig):
    """One run of EDAM."""

    method: str = setting("edam", "training method")
    augmentation: EDAMAugmentationConfig = field(default_factory=EDAMAugmentationConfig)
    model: EDAMModelConfig = field(default_factory=EDAMModelConfig)
    cam: EDAMScoresConfig = field(default_factory=EDAMScoresConfig)
    crf: EDAMCRFConfig = field(default_factory=EDAMCRFConfig)
    edam: SaliencyConfig = field(default_factory=SaliencyConfig)
    optimiser: EDAMOptimiserConfig = field(default_factory=EDAMOptimiserConfig)

    def problems(self) -> Iterator[str]:
        """See :meth:`RunConfig.problems`."""
        model = self.model
        yield from convolution_problems(model, "EDAM")
        yield from encoder_problems(model)
        if model.attention_width % model.attention_heads:
            yield (
                f"model.attention_width: {model.attention_width} channels cannot be shared out among "
                f"model.attention_heads={model.attention_heads}; set a multiple"
            )
        if model.attention_width % 2:
            yield (
                f"model.attention_width: {model.attention_width} is odd, but the code of a position has sines and "
                "cosines alike; set an even number"
            )
        yield from super().problems()
        yield from scale_problems("cam.scales", self.cam.scales)
        yield from _saliency_problems(self.edam)

    def training_problems(self) -> Iterator[str]:
        """See :meth:`RunConfig.training_problems`."""
        if self.train.batch_size % 2:
            yield f"train.batch_size counts images, and pairs need an even number: {self.train.batch_size} is odd"


def _saliency_problems(settings: SaliencyConfig) -> Iterator[str]:
    for alpha, beta in (("alpha", "beta"), ("crf_alpha", "crf_beta")):
        low, high = getattr(settings, alpha), getattr(settings, beta)
        if low > high:
            yield (
                f"edam.{alpha} {low} is above edam.{beta} {high}: a class that scores between the two would count "
                "where nothing is salient, and not where something is"
            )
    grey = settings.theta * settings.saliency_maximum
    if grey >= 255:
        yield (
            f"edam.theta {settings.theta:g} times edam.saliency_maximum {settings.saliency_maximum:g} is {grey:g}, and "
            f"no grey value of 8 bits is above 255: set edam.theta below {255 / settings.saliency_maximum:g}"
        )
    if settings.rule == "algorithm1" and settings.above_beta != "first":
        yield (
            "edam.above_beta is a setting of the rules released and crf, but edam.rule is algorithm1, where the "
            "strongest class wins everywhere; leave it out"
        )
