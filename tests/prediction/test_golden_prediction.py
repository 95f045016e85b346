"""Test-time prediction against the released program's values."""

from __future__ import annotations

from golden import Agreement, golden_network, load_golden, normalised

from afa.methods.base import SegmentationProtocol
from afa.methods.segmentation import multi_scale_logits
from afa.ops.cam import long_side_size, resize


def test_reference_prediction_over_scales(agreement: Agreement) -> None:
    golden = load_golden("test_time")
    image = normalised(golden["images_uint8"])
    image = resize(image, long_side_size(image.shape[-2:], int(golden["resize_long"])))
    network, scales = golden_network(), tuple(golden["scales"].tolist())
    single = multi_scale_logits(network.segment, image, SegmentationProtocol())
    agreement.values("prediction, one scale", single, golden["single_scale_logits"], 1e-4)
    multi = multi_scale_logits(network.segment, image, SegmentationProtocol(scales=scales, mirror=True))
    agreement.values("prediction, three scales and mirrors", multi, golden["multi_scale_logits"], 1e-4)
