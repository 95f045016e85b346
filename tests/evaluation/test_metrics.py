from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from afa.errors import UserError
from afa.evaluation.metrics import ConfusionMatrix, multi_label_f1

GOLDEN = Path(__file__).parents[1] / "data" / "metrics.npz"
NAMES = ["background", "a", "b", "c", "d", "e"]


def golden_scores(order: list[int]) -> tuple[dict, np.lib.npyio.NpzFile]:
    data = np.load(GOLDEN)
    matrix = ConfusionMatrix(6)
    for index in order:
        matrix.update(torch.from_numpy(data["gts"][index]), torch.from_numpy(data["preds"][index]))
    return matrix.scores(NAMES), data


def test_agrees_with_the_released_program() -> None:
    scores, data = golden_scores([0, 1, 2, 3])
    assert scores["miou"] == pytest.approx(float(data["miou"]), abs=1e-9)
    assert scores["pacc"] == pytest.approx(float(data["pAcc"]), abs=1e-9)
    assert scores["macc"] == pytest.approx(float(data["mAcc"]), abs=1e-9)
    assert [scores["iou"][name] for name in NAMES] == pytest.approx(data["iou"].tolist(), abs=1e-9)


def test_order_of_images_does_not_change_a_bit() -> None:
    assert golden_scores([0, 1, 2, 3])[0] == golden_scores([3, 1, 0, 2])[0]


def test_counts_of_parts_add_up_to_the_whole() -> None:
    data = np.load(GOLDEN)
    parts = [ConfusionMatrix(6), ConfusionMatrix(6)]
    for index in range(4):
        parts[index % 2].update(torch.from_numpy(data["gts"][index]), torch.from_numpy(data["preds"][index]))
    parts[0].counts += parts[1].counts
    assert parts[0].scores(NAMES) == golden_scores([0, 1, 2, 3])[0]


def test_ignored_pixels_and_absent_classes() -> None:
    matrix = ConfusionMatrix(4)
    matrix.update(torch.tensor([[0, 0, 1, 255]]), torch.tensor([[0, 2, 1, 2]]))
    scores = matrix.scores(["background", "a", "only predicted", "nowhere"])
    assert scores["iou"] == {"background": 0.5, "a": 1.0, "only predicted": 0.0, "nowhere": None}
    assert scores["miou"] == 0.75
    assert scores["pacc"] == pytest.approx(2 / 3)
    assert scores["macc"] == 0.75
    assert matrix.counts.sum() == 3


def test_no_pixel_at_all_is_refused() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.full((2, 2), 255), torch.zeros(2, 2, dtype=torch.uint8))
    with pytest.raises(UserError, match="nothing to score"):
        matrix.scores(["background", "a"])


def test_f1_of_labels() -> None:
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert multi_label_f1(torch.tensor([True, True, False, False]), labels) == 1.0
    assert multi_label_f1(torch.tensor([True, False, True, True]), labels) == pytest.approx(2 / 5)
    assert multi_label_f1(torch.tensor([False, False, False, True]), torch.zeros(4)) == 0.0
    assert multi_label_f1(torch.zeros(4, dtype=torch.bool), torch.zeros(4)) == 0.0
