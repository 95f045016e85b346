"""The contact sheet: a column for the image, the truth where it is known, and each output of the method."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from afa.data.samples import Sample
from afa.methods.afa.method import AFA
from afa.ops.dense_crf import DenseCRF
from afa.prediction.predictor import Predictor
from afa.prediction.sheet import output_sheet

CELL = 60


@pytest.fixture
def predictor(method: AFA) -> Predictor:
    method.config.cam.scales = [1.0]
    method.config.test.scales = [1.0]
    method.network.eval()
    return Predictor(method, method.config)


def sample(labels: list[float] | None, seed: int = 0) -> Sample:
    image = np.random.default_rng(seed).integers(0, 256, (CELL, CELL, 3), np.uint8)
    return Sample(f"image_{seed}", image, None if labels is None else np.array(labels, np.float32))


def columns(sheet: np.ndarray) -> int:
    return (sheet.shape[1] - 2 * 20 + 10) // (CELL + 10)


def cells(sheet: np.ndarray, column: int) -> np.ndarray:
    """What stands in a column: [H, cell, 3]."""
    left = 20 + column * (CELL + 10)
    return sheet[:, left : left + CELL]


def holds(strip: np.ndarray, image: np.ndarray) -> bool:
    return any((strip[top : top + CELL] == image).all() for top in range(len(strip) - CELL + 1))


def test_each_output_has_a_column(predictor: Predictor) -> None:
    label = torch.zeros(CELL, CELL, dtype=torch.int64)
    label[10:30, 10:30] = 2
    one = sample([0, 1, 0])
    sheet = output_sheet(predictor, [(one, label)], heading="AFA", cell=CELL)
    # Image, truth, CAM, propagated CAM, two labels, segmentation; the affinity is no image.
    assert sheet.dtype == np.uint8 and columns(sheet) == 7
    assert holds(cells(sheet, 0), one.image)
    assert not any(holds(cells(sheet, column), one.image) for column in (1, 2, 3))


def test_a_mask_after_crf_has_one_more(predictor: Predictor) -> None:
    with_crf = Predictor(predictor.method, predictor.config, crf=DenseCRF(iterations=1))
    label = torch.zeros(CELL, CELL, dtype=torch.int64)
    assert columns(output_sheet(with_crf, [(sample([0, 1, 0]), label)], heading="", cell=CELL)) == 8


def test_a_truth_that_is_not_known_moves_no_column(predictor: Predictor) -> None:
    first, second = sample(None, 1), sample([0, 1, 0], 2)
    label = torch.zeros(CELL, CELL, dtype=torch.int64)
    without = output_sheet(predictor, [(first, None), (second, None)], heading="", cell=CELL)
    assert columns(without) == 6
    for known in ((None, label), (label, None)):
        rows = list(zip((first, second), known, strict=True))
        sheet = output_sheet(predictor, rows, heading="", cell=CELL)
        assert columns(sheet) == 7
        # A truth that is all background shows the image as it is; an unknown one shows nothing.
        shown = [holds(cells(sheet, 1), one.image) for one in (first, second)]
        assert shown == [truth is not None for truth in known]
        assert all(holds(cells(sheet, 0), one.image) for one in (first, second))
