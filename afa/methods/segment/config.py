"""The settings of the method ``segment``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from afa.config.encoders import EncoderConfig, encoder_family, encoder_problems, encoder_stride
from afa.config.settings import AugmentationConfig, OptimiserConfig, RunConfig, setting

_STRIDE_SETTINGS = {
    "mit": ("strides", "[4, 2, 1, 1] or [4, 2, 2, 1]"),
    "timm": ("output_stride", "8 or 16"),
    "vit": ("token_stride", "8 or 16"),
}
"""Family of encoders -> the setting that gives its stride, and what suits decoders with dilations."""


@dataclass(frozen=True)
class DecoderShape:
    """The shape of a decoder's layers.

    Attributes:
        width: Channels of its hidden layers; 0: it has none.
        dropout: After them.
        rates: Its dilations at stride 8; (): it has none.
    """

    width: int = 0
    dropout: float = 0.0
    rates: tuple[int, ...] = ()


DECODERS = {
    "segformer": DecoderShape(width=256, dropout=0.1),
    "deeplab_largefov": DecoderShape(width=1024, dropout=0.5, rates=(12,)),
    "deeplab_v2": DecoderShape(rates=(6, 12, 18, 24)),
    "dilated": DecoderShape(width=512, rates=(12,)),
}
"""Decoders as they are published."""


@dataclass
class SegmentModelConfig(EncoderConfig):
    """Encoder and decoder."""

    decoder: str = setting(
        "segformer",
        "decoder: SegFormer's MLPs on all feature maps of the encoder; or, on the last one, whose stride must be 8 or "
        "16: DeepLab-LargeFOV, DeepLab-v2's ASPP or two dilated layers (as PSA with ResNet-38)",
        choices=tuple(DECODERS),
    )
    decoder_width: int | None = setting(
        None,
        "channels of the decoder's hidden layers; default: 256 (segformer), 1024 (deeplab_largefov), 512 (dilated)",
        minimum=1,
        maximum=8192,
    )
    decoder_dropout: float | None = setting(
        None,
        "dropout after the decoder's hidden layers; default: 0.1 (segformer), 0.5 (deeplab_largefov), 0 (dilated)",
        minimum=0,
        maximum=0.9,
    )
    decoder_rates: list[int] | None = setting(
        None,
        "dilations of the decoder at stride 8, halved at stride 16; default: 12 (deeplab_largefov, dilated), "
        "6 12 18 24 (deeplab_v2)",
        minimum=1,
    )


def decoder_shape(model: SegmentModelConfig) -> DecoderShape:
    """The decoder of the settings; what they leave out is as published."""
    published = DECODERS[model.decoder]
    return DecoderShape(
        published.width if model.decoder_width is None else model.decoder_width,
        published.dropout if model.decoder_dropout is None else model.decoder_dropout,
        published.rates if model.decoder_rates is None else tuple(model.decoder_rates),
    )


@dataclass
class SegmentLossConfig:
    """Cross-entropy of the segmentation."""

    soft_labels: str | None = setting(
        None,
        "output in dataset.maps whose scores are the labels, for example propagated; default: the pixel labels in "
        "dataset.pixel_labels",
    )
    soft_background: float | None = setting(
        None,
        "score of the background in maps that have none, such as CAMs; default: such maps are refused",
        above=0,
    )
    background_share: float | None = setting(
        None,
        "average background and foreground separately, with this share for the background (AFA: 0.5); default: all "
        "pixels have the same weight",
        minimum=0,
        maximum=1,
    )
    normalisation: str = setting(
        "process",
        "compute means and counts of the loss in each process or over all processes",
        choices=("process", "global"),
    )


@dataclass
class SegmentOptimiserConfig(OptimiserConfig):
    """As for every method, and the learning rate of the decoder's biases."""

    freeze: str = setting(
        "none",
        "parameters that are not trained; only none is possible: there is no released program",
        choices=("released", "none"),
    )
    bias_lr_factor: float = setting(
        2.0,
        "learning rate of the decoder's biases, as a multiple of that of its weights (DeepLab: 2); no weight decay",
        above=0,
    )


@dataclass
class SegmentConfig(RunConfig):
    """One run of a segmentation network on existing labels."""

    method: str = setting("segment", "training method")
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    model: SegmentModelConfig = field(default_factory=SegmentModelConfig)
    loss: SegmentLossConfig = field(default_factory=SegmentLossConfig)
    optimiser: SegmentOptimiserConfig = field(default_factory=SegmentOptimiserConfig)

    def problems(self) -> Iterator[str]:
        """See :meth:`RunConfig.problems`."""
        yield from encoder_problems(self.model, crop_size=self.augmentation.crop_size)
        yield from self._decoder_problems()
        yield from self._label_problems()
        if self.optimiser.freeze != "none":
            yield f"optimiser.freeze: there is no released program of the method {self.method}; set none"
        yield from super().problems()

    def _decoder_problems(self) -> Iterator[str]:
        model, published = self.model, DECODERS[self.model.decoder]
        if not published.width:
            for name in ("decoder_width", "decoder_dropout"):
                if getattr(model, name) is not None:
                    yield f"model.{name}: {model.decoder} has no hidden layers; leave it out"
        if not published.rates:
            if model.decoder_rates is not None:
                yield f"model.decoder_rates: {model.decoder} has no dilations; leave it out"
            if encoder_family(model) not in ("mit", "vit"):
                yield (
                    "model.decoder: segformer needs the four feature maps of a Mix Transformer or Vision Transformer, "
                    f"and {model.encoder} has three; set dilated, deeplab_largefov or deeplab_v2"
                )
            return
        stride = encoder_stride(model)
        if stride not in (8, 16):
            name, values = _STRIDE_SETTINGS[encoder_family(model)]
            yield f"model.{name}: {model.decoder} needs features of stride 8 or 16, not {stride}; set {values}"
        rates = decoder_shape(model).rates
        if not rates:
            yield "model.decoder_rates is empty"
        if len(published.rates) == 1 and len(rates) != 1:
            yield f"model.decoder_rates: {model.decoder} has one, not {len(rates)}"
        if any(rate * 8 % stride for rate in rates):
            yield f"model.decoder_rates: they are halved at stride 16, so they must be even, not {list(rates)}"

    def _label_problems(self) -> Iterator[str]:
        soft, dataset = self.loss.soft_labels, self.dataset
        if soft is None and dataset.pixel_labels is None:
            yield (
                "dataset.pixel_labels is not set: name the folder of the labels; or name dataset.maps and, as "
                "loss.soft_labels, an output in it"
            )
        if soft is None and self.loss.soft_background is not None:
            yield "loss.soft_background is for maps: set loss.soft_labels, too, or leave it out"
        if soft is None and dataset.maps is not None:
            yield "dataset.maps is not read without loss.soft_labels: set that to an output in it, or leave both out"
        if soft is not None and dataset.maps is None:
            yield "loss.soft_labels needs dataset.maps: name the folder that holds this output"
        if soft is not None and dataset.pixel_labels is not None:
            yield "dataset.pixel_labels is not read where loss.soft_labels is set: leave one of them out"
