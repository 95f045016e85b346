"""Networks: tensors in, tensors out. They know no labels, thresholds or files."""

from __future__ import annotations

from afa.models.afa_net import AFANet, AFAOutput
from afa.models.base import Encoder
from afa.models.edam import EDAMNetwork
from afa.models.encoders import build_encoder, build_mit
from afa.models.mit import MixTransformer
from afa.models.psa import AffinityNetwork, CAMNetwork, pair_affinity
from afa.models.resnet38 import ResNet38
from afa.models.segmentation import SegmentationNetwork, build_decoder
from afa.models.timm_cnn import TimmCNN

__all__ = [
    "AFANet",
    "AFAOutput",
    "AffinityNetwork",
    "CAMNetwork",
    "EDAMNetwork",
    "Encoder",
    "MixTransformer",
    "ResNet38",
    "SegmentationNetwork",
    "TimmCNN",
    "build_decoder",
    "build_encoder",
    "build_mit",
    "pair_affinity",
]
