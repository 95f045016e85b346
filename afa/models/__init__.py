"""Networks: tensors in, tensors out. They know no labels, thresholds or files."""

from __future__ import annotations

from afa.config import VARIANTS, ModelConfig
from afa.models.afa_net import AFANet, AFAOutput
from afa.models.mit import MixTransformer

__all__ = ["VARIANTS", "AFANet", "AFAOutput", "MixTransformer", "build_network"]


def build_network(settings: ModelConfig, num_classes: int) -> AFANet:
    """The network that a configuration describes, with initial weights.

    Args:
        settings: The ``model`` section; widths, depths and heads left out are those of the variant.
        num_classes: C, background included.
    """
    variant = VARIANTS.get(settings.encoder)
    widths = settings.widths or (variant.widths if variant else ())
    depths = settings.depths or (variant.depths if variant else ())
    heads = settings.heads or (variant.heads if variant else ())
    encoder = MixTransformer(
        widths=widths,
        depths=depths,
        heads=heads,
        reductions=settings.reductions,
        strides=settings.strides,
        mlp_ratio=settings.mlp_ratio,
        drop_path=settings.drop_path,
        fused_attention=settings.fused_attention,
    )
    return AFANet(
        encoder=encoder,
        num_classes=num_classes,
        pooling=settings.pooling,
        decoder_width=settings.decoder_width,
        decoder_dropout=settings.decoder_dropout,
        affinity_blocks=settings.affinity_blocks,
    )
