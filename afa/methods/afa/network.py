"""The network that an AFA configuration describes."""

from __future__ import annotations

from afa.methods.afa.config import AffinityConfig, ModelConfig
from afa.models import AFANet, build_attentive_encoder


def build_network(settings: ModelConfig, num_classes: int, affinity_radius: int = AffinityConfig.radius) -> AFANet:
    """AFA's network with initial weights.

    Args:
        settings: The ``model`` section; widths, depths and heads left out are those of the variant.
        num_classes: C, background included.
        affinity_radius: Of the pairs of tokens that have an affinity.

    Raises:
        UserError: No such encoder, or none whose attention can be read.
    """
    return AFANet(
        encoder=build_attentive_encoder(settings, settings.affinity_blocks, settings.cam_block),
        num_classes=num_classes,
        pooling=settings.pooling,
        pooling_share=settings.pooling_share,
        decoder_width=settings.decoder_width,
        decoder_dropout=settings.decoder_dropout,
        affinity_blocks=settings.affinity_blocks,
        affinity_radius=affinity_radius,
    )
