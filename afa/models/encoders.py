"""Encoders by name."""

from __future__ import annotations

import difflib

from afa.config.encoders import ENCODERS, EncoderConfig, encoder_variant
from afa.errors import UserError
from afa.models.base import Encoder
from afa.models.mit import MixTransformer


def build_encoder(settings: EncoderConfig) -> Encoder:
    """The encoder that a configuration describes, with initial weights.

    Args:
        settings: The ``model`` section of any method; widths, depths and heads left out are those of the variant.

    Raises:
        UserError: No encoder has this name.
    """
    return build_mit(settings)


def build_mit(settings: EncoderConfig) -> MixTransformer:
    """As :func:`build_encoder`, for networks that need a Mix Transformer's attention.

    Raises:
        UserError: No Mix Transformer has this name.
    """
    if settings.encoder not in ENCODERS:
        near = difflib.get_close_matches(settings.encoder, ENCODERS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"model.encoder: '{settings.encoder}' is none of {', '.join(ENCODERS)}{hint}")
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
