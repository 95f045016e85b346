"""Which encoder a network has: the settings that every method's ``model`` section shares, and their checks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from afa.config.settings import setting


@dataclass(frozen=True)
class EncoderVariant:
    """What tells the Mix Transformer's variants apart; all else they share."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...] = (1, 2, 5, 8)


VARIANTS = {
    "mit_b0": EncoderVariant((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": EncoderVariant((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": EncoderVariant((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": EncoderVariant((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": EncoderVariant((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": EncoderVariant((64, 128, 320, 512), (3, 6, 40, 3)),
}

ENCODERS = (*VARIANTS, "custom")
"""Names that :func:`afa.models.encoders.build_encoder` knows."""


@dataclass
class EncoderConfig:
    """The encoder: a Mix Transformer."""

    encoder: str = setting("mit_b1", "MiT variant; custom needs widths, depths and heads", choices=ENCODERS)
    pretrained: str | None = setting(
        None, "encoder weights: a file, a folder, or a name such as nvidia/mit-b1", path=True
    )
    widths: list[int] | None = setting(
        None, "channels of the four stages; default: the variant's", minimum=1, maximum=8192
    )
    depths: list[int] | None = setting(
        None, "blocks of the four stages; default: the variant's", minimum=1, maximum=512
    )
    heads: list[int] | None = setting(
        None, "attention heads of the four stages; default: the variant's", minimum=1, maximum=512
    )
    reductions: list[int] = setting(
        [8, 4, 2, 1], "spatial reduction of keys and values in the four stages", minimum=1, maximum=1024
    )
    strides: list[int] = setting(
        [4, 2, 2, 1], "strides of the four patch embeddings (SegFormer: 4 2 2 2)", minimum=1, maximum=1024
    )
    mlp_ratio: float = setting(4.0, "hidden width of the MLPs over their input's", above=0, maximum=64)
    drop_path: float = setting(0.1, "stochastic depth, rising linearly to this over the blocks", minimum=0, maximum=0.9)
    fused_attention: bool = setting(
        True, "false writes attention out: slower, but it rounds as the released program does"
    )


def encoder_variant(config: EncoderConfig) -> EncoderVariant:
    """Widths, depths and heads of the settings; those left out are the variant's, or () where there is none."""
    variant = VARIANTS.get(config.encoder, EncoderVariant((), (), ()))
    return EncoderVariant(
        tuple(config.widths or variant.widths),
        tuple(config.depths or variant.depths),
        tuple(config.heads or variant.heads),
    )


def encoder_problems(config: EncoderConfig, *, crop_size: int | None = None) -> Iterator[str]:
    """What contradicts itself in an encoder's settings, one line each; only the first can be relied upon.

    Args:
        config: The ``model`` section, its values within their ranges.
        crop_size: ``augmentation.crop_size``, which the encoder's stride must divide; None: not checked.
    """
    for name in ("widths", "depths", "heads", "reductions", "strides"):
        value = getattr(config, name)
        if value is not None and len(value) != 4:
            yield f"model.{name} needs four values, one per stage, not {len(value)}"
        if value is None and config.encoder == "custom":
            yield f"model.encoder=custom needs model.{name}"
    shape = encoder_variant(config)
    for width, count in zip(shape.widths, shape.heads, strict=False):
        if width % count:
            yield f"model.widths, model.heads: {width} channels cannot be shared by {count} heads"
    if any(int(width * config.mlp_ratio) < 1 for width in shape.widths):
        yield (f"model.mlp_ratio: {config.mlp_ratio} leaves the MLPs of {min(shape.widths)} channels no hidden one")
    stride = math.prod(config.strides)
    if crop_size is not None and crop_size % stride:
        near = max(stride, round(crop_size / stride) * stride)
        yield (
            f"augmentation.crop_size: {crop_size} is not a multiple of {stride}, the encoder's stride; "
            f"the nearest is {near}"
        )
