"""The contact sheet: a column for the image, the truth where it is known, and each output of the method."""

from __future__ import annotations

import golden
import numpy as np
import pytest
import torch

from afa.data.samples import Sample
from afa.evaluation.metrics import ConfusionMatrix
from afa.methods import build_method
from afa.methods.afa.method import AFA
from afa.methods.base import SingleProcess
from afa.ops.dense_crf import DenseCRF
from afa.prediction.predictor import Predictor
from afa.prediction.sheet import output_sheet
from afa.visual import fitted_text, sheets

CELL = 60


@pytest.fixture
def predictor(method: AFA) -> Predictor:
    method.config.cam.scales = [1.0]
    method.config.test.scales = [1.0]
    method.network.eval()
    return Predictor(method, method.config)


LABEL = torch.zeros(CELL, CELL, dtype=torch.int64)
LABEL[10:30, 10:30] = 2


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
    one = sample([0, 1, 0])
    sheet = output_sheet(predictor, [(one, LABEL)], heading="AFA", cell=CELL)
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


def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written into images from here on, uncut."""
    texts: list[str] = []

    def noted(text: str, size: int, width: float) -> object:
        texts.append(text)
        return fitted_text(text, size, width)

    monkeypatch.setattr(sheets, "fitted_text", noted)
    return texts


def plain_iou(truth: np.ndarray, mask: np.ndarray) -> float:
    known = truth != 255
    ids = set(truth[known].tolist()) | (set(mask[known].tolist()) - {255})
    ious = []
    for class_id in ids:
        own, found = (truth == class_id) & known, (mask == class_id) & known
        ious.append((own & found).sum() / (own | found).sum())
    return 100 * float(np.mean(ious))


@pytest.mark.parametrize("with_crf", [False, True])
def test_rows_carry_names_and_ious(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, with_crf: bool) -> None:
    texts = drawn_texts(monkeypatch)
    if with_crf:
        predictor = Predictor(predictor.method, predictor.config, crf=DenseCRF(iterations=1))
    truth = LABEL.clone()
    truth[:, 50:] = 255
    pairs = [
        (sample([0, 1, 0], 1), truth),
        (sample([1, 0, 1], 2), torch.full_like(truth, 255)),
        (sample(None, 3), None),
    ]
    output_sheet(predictor, pairs, heading="run, split val", cell=CELL)
    seen = predictor.predict(pairs[0][0].image, pairs[0][0].class_labels, labels=["refined_label"], unrefined_mask=True)
    iou = f"IoU {plain_iou(truth.numpy(), seen.mask):.1f} %"
    assert f"{iou} ({'after DenseCRF' if with_crf else 'segmentation'})" in texts
    assert f"IoU {plain_iou(truth.numpy(), seen.labels['refined_label']):.1f} %" in texts
    assert f"IoU {plain_iou(truth.numpy(), seen.unrefined_mask):.1f} %" in texts
    assert {"image_1", "image_2", "image_3", "no truth", "run, split val", "ignored"} <= set(texts)
    assert any(text.startswith("truth is ignored (") for text in texts)
    matrix = ConfusionMatrix(4)
    matrix.update(truth, torch.from_numpy(seen.mask))
    miou = 100 * matrix.scores(["background", *predictor.class_names])["miou"]
    assert any(f"mIoU {miou:.1f} % over the 2 images shown here" in text for text in texts)
    legend = {name for name in predictor.class_names if name in texts}
    assert predictor.class_names[1] in legend


def test_each_class_has_its_own_panel_with_its_name(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch)
    heights = []
    for labels in ([0, 1, 0], [1, 1, 0], [1, 1, 1]):
        texts.clear()
        sheet = output_sheet(predictor, [(sample(labels), None)], heading="", cell=CELL)
        heights.append(len(sheet))
        for name, present in zip(predictor.class_names, labels, strict=True):
            assert texts.count(name) >= 2 * present  # of the CAM, and of the propagated CAM
        assert columns(sheet) == 6
    assert heights[0] < heights[1] < heights[2]
    threshold = predictor.config.cam.background
    assert f"CAM: score; grey up to {threshold:g}: background" in texts


def test_many_classes_are_counted_and_not_all_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch)
    names = [f"class {number}" for number in range(81)]
    method = build_method(golden.small_config(), names, SingleProcess())
    method.network.eval()
    labels = np.zeros(81, np.float32)
    labels[::10] = 1
    of_many = Sample("many", sample(None).image, labels)
    sheet = output_sheet(Predictor(method, method.config), [(of_many, None)], heading="", cell=CELL)
    assert "no truth, maps of 3 classes, +6 more" in texts
    assert len(sheet) < 3 * (CELL + 40) + 700


def test_background_of_a_map_is_grey_in_its_panel(predictor: Predictor) -> None:
    one = sample([0, 1, 0])
    sheet = output_sheet(predictor, [(one, None)], heading="", cell=CELL)
    panel, shown = cells(sheet, 1), cells(sheet, 0)
    seen = predictor.predict(one.image, one.class_labels, maps=["cam"], labels=["cam"])
    is_grey = (panel == panel[:, :, :1]).all(axis=2)
    top = next(top for top in range(len(shown)) if holds(shown[top : top + CELL], one.image))
    assert is_grey[top : top + CELL][seen.labels["cam"] == 0].all()
    assert not is_grey[top : top + CELL].all()
