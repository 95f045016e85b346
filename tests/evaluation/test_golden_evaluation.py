"""Scores and test-time prediction against the released program's values."""

from __future__ import annotations

import torch
from golden import NUM_CLASSES, Agreement, golden_network, load_golden, normalised

from afa.evaluation.metrics import ConfusionMatrix
from afa.evaluation.predict import long_side_size, multi_scale_logits
from afa.ops.cam import resize


def test_reference_scores(agreement: Agreement) -> None:
    golden = load_golden("metrics")
    matrix = ConfusionMatrix(NUM_CLASSES)
    for label, prediction in zip(golden["gts"], golden["preds"], strict=True):
        matrix.update(label, prediction)
    names = [str(number) for number in range(NUM_CLASSES)]
    scores = matrix.scores(names)
    found = [scores["pacc"], scores["macc"], scores["miou"], *(scores["iou"][name] for name in names)]
    expected = torch.cat([golden[key].flatten() for key in ("pAcc", "mAcc", "miou", "iou")])
    agreement.values("pAcc, mAcc, mIoU and IoU", torch.tensor(found, dtype=torch.float64), expected, 1e-9)


def test_reference_prediction_over_scales(agreement: Agreement) -> None:
    golden = load_golden("test_time")
    image = normalised(golden["images_uint8"])
    image = resize(image, long_side_size(image.shape[-2:], int(golden["resize_long"])))
    network, scales = golden_network(), golden["scales"].tolist()
    single = multi_scale_logits(network, image, [1.0], mirror=False)
    agreement.values("prediction, one scale", single, golden["single_scale_logits"], 1e-4)
    multi = multi_scale_logits(network, image, scales, mirror=True)
    agreement.values("prediction, three scales and mirrors", multi, golden["multi_scale_logits"], 1e-4)
