"""Networks: tensors in, tensors out. They know no labels, thresholds or files."""

from __future__ import annotations

from afa.models.afa_net import AFANet, AFAOutput
from afa.models.base import AttentiveEncoder, Encoder
from afa.models.edam import EDAMNetwork
from afa.models.encoders import build_attentive_encoder, build_encoder
from afa.models.mit import MixTransformer
from afa.models.psa import AffinityNetwork, CAMNetwork, pair_affinity
from afa.models.resnet38 import ResNet38
from afa.models.segmentation import SegmentationNetwork, build_decoder
from afa.models.timm_cnn import TimmCNN
from afa.models.timm_vit import TimmViT

__all__ = [
    "AFANet",
    "AFAOutput",
    "AffinityNetwork",
    "AttentiveEncoder",
    "CAMNetwork",
    "EDAMNetwork",
    "Encoder",
    "MixTransformer",
    "ResNet38",
    "SegmentationNetwork",
    "TimmCNN",
    "TimmViT",
    "build_attentive_encoder",
    "build_decoder",
    "build_encoder",
    "pair_affinity",
]
