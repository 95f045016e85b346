"""Networks: tensors in, tensors out. They know no labels, thresholds or files."""

from __future__ import annotations

from afa.models.afa_net import AFANet, AFAOutput
from afa.models.base import Encoder
from afa.models.encoders import build_encoder, build_mit
from afa.models.mit import MixTransformer
from afa.models.segmentation import SegmentationNetwork, build_decoder

__all__ = [
    "AFANet",
    "AFAOutput",
    "Encoder",
    "MixTransformer",
    "SegmentationNetwork",
    "build_decoder",
    "build_encoder",
    "build_mit",
]
