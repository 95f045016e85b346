"""Scores against the released program's values."""

from __future__ import annotations

import torch
from golden import NUM_CLASSES, Agreement, load_golden

from afa.evaluation.metrics import ConfusionMatrix


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
