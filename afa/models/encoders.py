"""Encoders by name."""

from __future__ import annotations

from afa.config.encoders import TIMM, EncoderConfig, encoder_family, encoder_variant, mit_problems, name_problem
from afa.errors import UserError
from afa.models.base import Encoder
from afa.models.mit import MixTransformer
from afa.models.resnet38 import ResNet38
from afa.models.timm_cnn import TimmCNN


def build_encoder(settings: EncoderConfig, *, last_relu: bool = True) -> Encoder:
    """The encoder that a configuration describes, with initial weights.

    Args:
        settings: The ``model`` section of any method; what is left out is the variant's.
        last_relu: Of a ResNet-38, see there; other encoders end as they do.

    Raises:
        UserError: No encoder has this name, or timm has no such network.
    """
    family = encoder_family(settings)
    if family == "timm":
        _require_name(settings)
        return TimmCNN(settings.encoder.removeprefix(TIMM), output_stride=settings.output_stride)
    if family == "resnet38":
        return ResNet38(
            base_width=settings.base_width,
            depths=encoder_variant(settings).depths,
            dropout=settings.block_dropout,
            last_relu=last_relu,
        )
    return build_mit(settings)


def build_mit(settings: EncoderConfig) -> MixTransformer:
    """As :func:`build_encoder`, for networks that need a Mix Transformer's attention.

    Raises:
        UserError: No Mix Transformer has this name.
    """
    _require_name(settings)
    for problem in mit_problems(settings, "this network"):
        raise UserError(problem)
    shape = encoder_variant(settings)
    return MixTransformer(
        widths=shape.widths,
        depths=shape.depths,
        heads=shape.heads,
        reductions=settings.reductions,
        strides=settings.strides,
        mlp_ratio=settings.mlp_ratio,
        drop_path=settings.drop_path,
        fused_attention=settings.fused_attention,
    )


def _require_name(settings: EncoderConfig) -> None:
    problem = name_problem(settings.encoder)
    if problem is not None:
        raise UserError(problem)
