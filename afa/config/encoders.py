"""Which encoder a network has: the settings that every method's ``model`` section shares, and their checks."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from afa.config.settings import setting
from afa.config.values import shown


@dataclass(frozen=True)
class EncoderVariant:
    """The differences between the variants of the Mix Transformer."""

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

RESNET38_DEPTHS = (3, 3, 6, 3)
"""Residual units of the groups b2 to b5 of ResNet-38, as published."""

ENCODERS = (*VARIANTS, "custom", "resnet38")
"""Names that :func:`afa.models.encoders.build_encoder` knows, besides ``timm/NAME``."""

TIMM = "timm/"
_TIMM_NAME = re.compile(r"timm/\w+(\.\w+)?", re.ASCII)  # no colon, no slash: timm would look on the hub or the disk
_TIMM_VITS = tuple(
    TIMM + beginning for beginning in ("vit_", "deit", "flexivit_", "aimv2_", "beit3_", "eva_", "test_vit")
)
"""How names of timm's class VisionTransformer begin; some others do, too, which are refused when they are built."""
_PATCH = re.compile(r"_patch(\d+)", re.ASCII)
_OUTPUT_STRIDES = (8, 16, 32)
_MOST_ENLARGED = 4  # times as wide and high: 16 times as many tokens

_FAMILIES = {
    "mit": (
        "a Mix Transformer",
        ("widths", "depths", "heads", "reductions", "strides", "mlp_ratio", "drop_path", "fused_attention"),
    ),
    "resnet38": ("ResNet-38", ("depths", "base_width", "block_dropout")),
    "timm": ("a convolutional network of timm", ("output_stride",)),
    "vit": ("a Vision Transformer of timm", ("drop_path", "token_stride")),
}
"""Families of encoders: what people call them, and the settings that shape them."""


@dataclass
class EncoderConfig:
    """The encoder: a Mix Transformer, a ResNet-38, or a convolutional network or Vision Transformer of timm."""

    encoder: str = setting(
        "mit_b1",
        "mit_b0 to mit_b5; custom (MiT; needs widths, depths and heads); resnet38; timm/NAME, such as timm/resnet50 or "
        "timm/vit_small_patch14_dinov2",
    )
    pretrained: str | None = setting(
        None, "encoder weights: a file, a folder, or a name such as nvidia/mit-b1", path=True
    )
    widths: list[int] | None = setting(
        None, "channels of the four stages; default: the variant's", minimum=1, maximum=8192
    )
    depths: list[int] | None = setting(
        None,
        "blocks of the four stages; default: the variant's. ResNet-38: residual units of b2 to b5, default 3 3 6 3",
        minimum=1,
        maximum=512,
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
    mlp_ratio: float = setting(4.0, "hidden width of the MLPs, relative to their input", above=0, maximum=64)
    drop_path: float = setting(0.1, "stochastic depth, rises linearly over the blocks to this", minimum=0, maximum=0.9)
    fused_attention: bool = setting(
        True, "false: attention step by step, slower, but it rounds as the released program does"
    )
    base_width: int = setting(
        64,
        "ResNet-38: channels of the first convolution; all other widths are multiples of it",
        minimum=1,
        maximum=512,
    )
    block_dropout: list[float] = setting(
        [0.3, 0.5], "ResNet-38: dropout of whole channels in b6 and b7", minimum=0, maximum=0.9
    )
    output_stride: int = setting(
        8, "convolutional networks of timm: stride of the feature maps, 8, 16 or 32", minimum=8, maximum=32
    )
    token_stride: int = setting(
        0,
        "Vision Transformers: distance of two tokens in pixels of the image; a value below the side of a patch "
        "enlarges images for the network, which gives small images more tokens; 0: the side of a patch",
        minimum=0,
        maximum=256,
    )


def encoder_family(config: EncoderConfig) -> str:
    """``mit``, ``resnet38``, ``timm`` (convolutional) or ``vit`` (Vision Transformers of timm, told by their names)."""
    if config.encoder.startswith(_TIMM_VITS):
        return "vit"
    if config.encoder.startswith(TIMM):
        return "timm"
    return "resnet38" if config.encoder == "resnet38" else "mit"


def encoder_variant(config: EncoderConfig) -> EncoderVariant:
    """Widths, depths and heads of the settings; those left out are the variant's, or () where there is none.

    Of ResNet-38 there are depths alone, of timm's networks nothing is known.
    """
    variant = VARIANTS.get(config.encoder, EncoderVariant((), (), ()))
    if encoder_family(config) == "resnet38":
        variant = EncoderVariant((), RESNET38_DEPTHS, ())
    return EncoderVariant(
        tuple(config.widths or variant.widths),
        tuple(config.depths or variant.depths),
        tuple(config.heads or variant.heads),
    )


def encoder_stride(config: EncoderConfig) -> int:
    """Stride of the encoder's last feature map over the image."""
    family = encoder_family(config)
    if family == "vit":
        return config.token_stride or patch_side(config.encoder)
    if family == "timm":
        return config.output_stride
    return 8 if family == "resnet38" else math.prod(config.strides)


def patch_side(name: str) -> int:
    """Side of the patches of a Vision Transformer of timm; names that say nothing, such as flexivit_base, mean 16."""
    return int(match[1]) if (match := _PATCH.search(name)) else 16


def name_problem(name: str) -> str | None:
    """What is wrong with the name of an encoder; whether timm has such a network is seen when it is built."""
    if name in ENCODERS or _TIMM_NAME.fullmatch(name):
        return None
    if name.startswith(TIMM):
        return f"model.encoder: {shown(name)} names no network of timm: letters, digits and _ follow timm/"
    near = difflib.get_close_matches(name, ENCODERS, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"model.encoder: {shown(name)} is none of {', '.join(ENCODERS)}, timm/NAME{hint}"


def encoder_problems(config: EncoderConfig, *, crop_size: int | None = None) -> Iterator[str]:
    """Contradictions in an encoder's settings, one line each; only the first can be relied upon.

    Args:
        config: The ``model`` section, its values within their ranges.
        crop_size: ``augmentation.crop_size``, which the stride of a Mix Transformer must divide; None: not checked.
    """
    problem = name_problem(config.encoder)
    if problem is not None:
        yield problem
    yield from _foreign_settings(config)
    family = encoder_family(config)
    if family == "mit":
        yield from _mit_problems(config, crop_size)
    elif family == "resnet38":
        if config.depths is not None and len(config.depths) != 4:
            yield f"model.depths needs four values, one each for b2 to b5, not {len(config.depths)}"
        if len(config.block_dropout) != 2:
            yield f"model.block_dropout needs two values, for b6 and b7, not {len(config.block_dropout)}"
    elif family == "vit" and config.token_stride:
        patch = patch_side(config.encoder)
        if config.token_stride * _MOST_ENLARGED < patch:
            yield (
                f"model.token_stride: {config.token_stride} would enlarge images {patch / config.token_stride:g} times;"
                f" set {-(-patch // _MOST_ENLARGED)} or more, or 0"
            )
    elif family == "timm" and config.output_stride not in _OUTPUT_STRIDES:
        yield f"model.output_stride: {config.output_stride} is none of 8, 16, 32"


def attention_problems(config: EncoderConfig, what: str) -> Iterator[str]:
    """For networks that read the encoder's attention: whether it has any that can be read.

    Args:
        config: The ``model`` section.
        what: Needs it, as people call it: AFA.
    """
    if encoder_family(config) not in ("mit", "vit"):
        yield (
            f"model.encoder: {what} needs the attention of a Mix Transformer or of a plain Vision Transformer, which "
            f"{shown(config.encoder)} does not have; set mit_b0 to mit_b5, custom, or one such as "
            "timm/vit_small_patch14_dinov2"
        )


def convolution_problems(config: EncoderConfig, what: str) -> Iterator[str]:
    """For methods that are made for convolutional encoders: whether the encoder is one.

    Args:
        config: The ``model`` section.
        what: Needs it, as people call it: PSA.
    """
    family = encoder_family(config)
    if family in ("mit", "vit"):
        yield (
            f"model.encoder: {what} needs a convolutional network, and {shown(config.encoder)} is "
            f"{_FAMILIES[family][0]}; set resnet38 or timm/NAME, such as timm/resnet50"
        )


Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of R, G, B in 0..255."""


def own_normalisation(config: EncoderConfig) -> Normalisation | None:
    """What the encoder's own weights were trained with; None: what the settings have by default."""
    if not config.encoder.startswith(TIMM):
        return None
    return timm_normalisation(config.encoder.removeprefix(TIMM))


def timm_normalisation(name: str) -> Normalisation:
    """timm's facts about the weights of a network; ImageNet's if timm has none.

    Args:
        name: Without ``timm/``, perhaps with the tag of the weights.
    """
    import timm  # takes as long as PyTorch

    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    facts = timm.models.PretrainedCfg() if known is None else known
    return _in_bytes(facts.mean), _in_bytes(facts.std)


def _in_bytes(values: tuple[float, ...]) -> tuple[float, float, float]:
    """0..1 -> 0..255."""
    red, green, blue = (255 * value for value in values)
    return red, green, blue


def _foreign_settings(config: EncoderConfig) -> Iterator[str]:
    """Settings of another family that are not at their default: they would change nothing, without a word."""
    kind, own = _FAMILIES[encoder_family(config)]
    defaults = {item.name: getattr(EncoderConfig(), item.name) for item in fields(EncoderConfig)}
    for other, names in _FAMILIES.values():
        for name in names:
            if name not in own and getattr(config, name) != defaults[name]:
                yield f"model.{name} is a setting of {other}, but {shown(config.encoder)} is {kind}; leave it out"


def _mit_problems(config: EncoderConfig, crop_size: int | None) -> Iterator[str]:
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
