"""Encoders by name."""

from __future__ import annotations

from afa.config.encoders import (
    TIMM,
    EncoderConfig,
    attention_problems,
    encoder_family,
    encoder_variant,
    name_problem,
)
from afa.errors import UserError
from afa.models.base import AttentiveEncoder, Encoder
from afa.models.mit import MixTransformer
from afa.models.resnet38 import ResNet38
from afa.models.timm_cnn import TimmCNN
from afa.models.timm_vit import TimmViT


def build_encoder(settings: EncoderConfig, *, last_relu: bool = True) -> Encoder:
    """The encoder that a configuration describes, with initial weights.

    Args:
        settings: The ``model`` section of any method; what is left out is the variant's.
        last_relu: Of a ResNet-38, see there; other encoders end as they do.

    Raises:
        UserError: No encoder has this name, or timm has no such network.
    """
    _require_name(settings)
    family = encoder_family(settings)
    if family == "timm":
        return TimmCNN(settings.encoder.removeprefix(TIMM), output_stride=settings.output_stride)
    if family == "resnet38":
        return ResNet38(
            base_width=settings.base_width,
            depths=encoder_variant(settings).depths,
            dropout=settings.block_dropout,
            last_relu=last_relu,
        )
    return _vit(settings) if family == "vit" else _mit(settings)


def build_attentive_encoder(settings: EncoderConfig, blocks: int, cam_block: int = 0) -> AttentiveEncoder:
    """As :func:`build_encoder`, for networks that read the attention of the last blocks.

    Args:
        settings: The ``model`` section.
        blocks: How many of them, ``model.affinity_blocks``.
        cam_block: Of a Vision Transformer, ``model.cam_block``, see :class:`afa.models.timm_vit.TimmViT`.

    Raises:
        UserError: No such encoder, one without attention that can be read, or with fewer such blocks.
    """
    _require_name(settings)
    for problem in attention_problems(settings, "this network"):
        raise UserError(problem)
    encoder = _vit(settings, cam_block) if encoder_family(settings) == "vit" else _mit(settings)
    try:
        encoder.attention_maps(blocks)
    except ValueError as error:
        raise UserError(f"model.affinity_blocks={blocks} does not suit {settings.encoder}: {error}") from error
    return encoder


def _vit(settings: EncoderConfig, cam_block: int = 0) -> TimmViT:
    return TimmViT(
        settings.encoder.removeprefix(TIMM),
        drop_path=settings.drop_path,
        token_stride=settings.token_stride,
        cam_block=cam_block,
    )


def _mit(settings: EncoderConfig) -> MixTransformer:
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
