from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import load_golden

from afa.errors import UserError
from afa.evaluation.metrics import ConfusionMatrix, Counts, ImageCounts
from afa.evaluation.sweep import ThresholdSweep, threshold_range
from afa.maps import Maps

NAMES = ["background", "a", "b", "only predicted", "nowhere"]


def random_labels(images: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    """Truth with ignored pixels and without class 3, predictions with open pixels."""
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(images):
        size = (11 + number, 17)
        pairs.append((rng.choice([0, 0, 1, 2, 255], size), rng.choice([0, 1, 2, 3, 255], size)))
    return [(truth.astype(np.uint8), prediction.astype(np.uint8)) for truth, prediction in pairs]


def by_hand(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, list[float]]:
    """IoU and error rates of each class by comparing pixel after pixel; nan where a class occurs nowhere."""
    found: dict[str, list[float]] = {"iou": [], "fp": [], "fn": []}
    for class_id in range(len(NAMES)):
        hits = false_alarms = misses = 0
        for truth, prediction in pairs:
            for true, predicted in zip(truth.flat, prediction.flat, strict=True):
                if true != 255:
                    hits += true == predicted == class_id
                    false_alarms += predicted == class_id != true
                    misses += true == class_id != predicted
        union = hits + false_alarms + misses
        for key, count in (("iou", hits), ("fp", false_alarms), ("fn", misses)):
            found[key].append(count / union if union else float("nan"))
    return found


def counted(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[ConfusionMatrix, ImageCounts]:
    matrix, images = ConfusionMatrix(len(NAMES)), ImageCounts()
    for number, (truth, prediction) in enumerate(pairs):
        images.add(str(number), matrix.update(torch.from_numpy(truth), torch.from_numpy(prediction)))
    return matrix, images


@pytest.mark.parametrize("absent", ["skip", "zero"])
def test_scores_are_those_of_counting_pixels(absent: str) -> None:
    pairs = random_labels()
    expected = by_hand(pairs)
    scores = counted(pairs)[0].scores(NAMES, absent=absent)  # type: ignore[arg-type]
    for key, values in expected.items():
        found = [float("nan") if value is None else value for value in scores[key].values()]
        assert found == pytest.approx(values, nan_ok=True)
    for mean, key in (("miou", "iou"), ("fp_rate", "fp"), ("fn_rate", "fn")):
        values = expected[key][:3] if absent == "skip" else np.nan_to_num(expected[key])
        assert scores[mean] == pytest.approx(np.mean(values))
    labelled = sum(int((truth != 255).sum()) for truth, _ in pairs)
    opened = sum(int(((truth != 255) & (prediction == 255)).sum()) for truth, prediction in pairs)
    assert scores["open"] == pytest.approx(opened / labelled)
    assert scores["pacc"] == pytest.approx(sum(int((t == p)[t != 255].sum()) for t, p in pairs) / labelled)


def test_counts_of_images_add_up_to_the_matrix() -> None:
    matrix, images = counted(random_labels())
    stacked = images.stacked()
    assert stacked.labelled.shape == (3, len(NAMES))
    assert stacked.total().scores(NAMES) == matrix.scores(NAMES)
    assert stacked[1].scores(NAMES) == counted(random_labels()[1:2])[0].scores(NAMES)


def test_images_of_processes_are_joined_once_each() -> None:
    _, images = counted(random_labels())
    parts = [
        ImageCounts(["2", "0"], [images.counts[2], images.counts[0]]),
        ImageCounts(["1", "0"], images.counts[1::-1]),
    ]
    joined = ImageCounts.joined(parts)
    assert joined.names == ["0", "1", "2"]
    assert joined.stacked().total().scores(NAMES) == images.stacked().total().scores(NAMES)


@pytest.mark.parametrize("kind", ["cam", "cam_saliency", "crf", "crf_saliency"])
def test_agrees_with_the_reference_of_edam(kind: str) -> None:
    golden = load_golden("edam_labels")
    label = "label_plain" if kind == "cam" else f"label_{kind}"
    matrix = ConfusionMatrix(21)
    for image in range(2):
        matrix.update(golden[f"truth{image}"], golden[f"{label}{image}"])
    scores = matrix.scores([str(number) for number in range(21)], absent="zero")
    values = [value or 0.0 for value in scores["iou"].values()]
    assert [100 * value for value in (*values, scores["miou"])] == pytest.approx(
        golden[f"eval_iou/{kind}"].tolist(), abs=1e-6
    )


def test_all_open_is_all_missed() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([[0, 1, 255]]), torch.full((1, 3), 255))
    scores = matrix.scores(["background", "a"])
    assert (scores["miou"], scores["fn_rate"], scores["fp_rate"], scores["open"]) == (0, 1, 0, 1)


@pytest.mark.parametrize("value", [-1, 2, 254, 256])
def test_a_prediction_that_is_no_class_is_refused(value: int) -> None:
    matrix = ConfusionMatrix(2)
    with pytest.raises(ValueError, match="0 to 1"):
        matrix.update(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[0, value]]))
    with pytest.raises(ValueError, match="pixels"):
        matrix.update(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64))
    assert matrix.counts.sum() == 0


def test_nothing_is_not_a_score() -> None:
    with pytest.raises(UserError, match="nothing to score"):
        ConfusionMatrix(2).scores(["background", "a"])
    with pytest.raises(UserError, match="no image"):
        ImageCounts().stacked()
    with pytest.raises(UserError, match="nothing to score"):
        ThresholdSweep(2, [0.5]).scores(["background", "a"])


THRESHOLDS = (0.0, 0.1, 0.25, 0.5, 0.999, 0.99999, 1.0)


def maps_of(scores: np.ndarray, ids: list[int]) -> Maps:
    index = torch.tensor([ids])
    return Maps(torch.from_numpy(scores)[None].float(), index, torch.ones_like(index, dtype=torch.bool), False)


def swept_images() -> list[tuple[str, torch.Tensor, Maps]]:
    """Scores that lie on thresholds, ties between classes, maps of another size, and an image without a class."""
    rng = np.random.default_rng(1)
    images = []
    for number, ids in enumerate(([1, 2], [3], [1, 2, 3])):
        truth = rng.choice([0, 1, 2, 3, 255], (9, 12)).astype(np.uint8)
        size = (9, 12) if number < 2 else (4, 5)
        scores = rng.choice([*THRESHOLDS, 0.3, 0.75, -0.2], (len(ids), *size)).astype(np.float32)
        images.append((str(number), torch.from_numpy(truth), maps_of(scores, ids)))
    nothing = Maps(torch.zeros(1, 1, 1, 1), torch.tensor([[1]]), torch.tensor([[False]]), False)
    return [*images, ("none", torch.zeros(5, 6, dtype=torch.uint8), nothing)]


def test_a_sweep_equals_a_label_per_threshold() -> None:
    names = NAMES[:4]
    sweep = ThresholdSweep(4, THRESHOLDS, per_image=True)
    for name, truth, maps in swept_images():
        sweep.add(name, truth, maps)
    found = sweep.scores(names)
    counts = sweep.counts()
    expected = []
    for index, threshold in enumerate(THRESHOLDS):
        matrix, images = ConfusionMatrix(4), ImageCounts()
        for name, truth, maps in swept_images():
            images.add(name, matrix.update(truth, maps.label_above(threshold, truth.shape)[0]))
        expected.append(matrix.scores(names))
        assert counts[index].scores(names) == expected[-1]
        at_threshold = sweep.images_at(index)
        assert at_threshold.names == images.names
        for mine, other in zip(at_threshold.counts, images.counts, strict=True):
            assert all(torch.equal(getattr(mine, part), getattr(other, part)) for part in vars(other))
    for key in ("miou", "fp_rate", "fn_rate"):
        assert found[key] == [scores[key] for scores in expected]
    best = int(np.argmax(found["miou"]))
    assert found["best"] == {"threshold": THRESHOLDS[best], **expected[best]}


def test_a_sweep_refuses_what_it_cannot_count() -> None:
    sweep = ThresholdSweep(2, [0.5])
    with pytest.raises(ValueError, match="class 2"):
        sweep.add("a", torch.zeros(2, 2), maps_of(np.zeros((1, 2, 2)), [2]))
    with pytest.raises(ValueError, match="background"):
        sweep.add("a", torch.zeros(2, 2), Maps.of_all_classes(torch.zeros(1, 2, 2, 2), has_background=True))
    with pytest.raises(ValueError, match="not kept"):
        sweep.images_at(0)


def test_thresholds_are_the_numbers_that_people_write() -> None:
    assert threshold_range(0, 1, 0.01)[7] == 0.07 and len(threshold_range(0, 1, 0.01)) == 101
    assert threshold_range(0.4, 0.58, 0.02) == (0.4, 0.42, 0.44, 0.46, 0.48, 0.5, 0.52, 0.54, 0.56, 0.58)
    assert threshold_range(0.3, 0.3, 1) == (0.3,)
    assert threshold_range(0, 1, 0.3) == (0, 0.3, 0.6, 0.9)


@pytest.mark.parametrize(
    "bad",
    [
        (1, 0, 0.1),
        (0, 1, 0),
        (0, 1, -1),
        (0, 1, 1e-9),
        (0, float("inf"), 1),
        (float("nan"), 1, 1),
        (100, 101, 1e-3 / 500),
    ],
)
def test_bad_ranges_of_thresholds(bad: tuple[float, float, float]) -> None:
    with pytest.raises(UserError, match=r"threshold|step"):
        threshold_range(*bad)


def test_counts_know_no_device_but_their_own() -> None:
    part = torch.ones(2, dtype=torch.int64)
    images = ImageCounts()
    images.add("a", Counts(part, part, part, torch.tensor(0)))
    assert images.stacked().total().scores(["background", "a"])["miou"] == 1
