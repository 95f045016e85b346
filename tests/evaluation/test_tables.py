from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from afa.errors import UserError
from afa.evaluation.metrics import ConfusionMatrix, ImageCounts
from afa.evaluation.tables import (
    format_table,
    image_counts_csv,
    image_iou,
    protocol_key,
    read_entries,
    read_image_counts,
    write_entry,
)

NAMES = ["background", "cat", "dog"]
FLAT = {
    "segmentation": {"miou": 0.5, "pacc": 0.6, "macc": 0.7, "iou": {"background": 0.5, "cat": None}},
    "cls_f1": 0.9,
    "images": 2,
    "step": 20,
    "split": "val",
    "test": {"long_side": 64, "scales": [1.0, 0.5], "mirror": True, "crf_iterations": 10, "crf_negligible": 0.0},
}


def key(**changes: Any) -> dict[str, Any]:
    settings = {
        "split": "val",
        "step": 20,
        "scales": (1, 0.5),
        "long_side": 64,
        "mirror": True,
        "crf": None,
        "limit": None,
    }
    return protocol_key(**{**settings, **changes})


def scored() -> tuple[dict[str, Any], dict[str, ImageCounts]]:
    matrix, images = ConfusionMatrix(3), ImageCounts()
    images.add("a/b", matrix.update(torch.tensor([[0, 1, 1, 255]]), torch.tensor([[0, 1, 0, 1]])))
    images.add("\u00e9", matrix.update(torch.tensor([[255, 255]]), torch.tensor([[0, 1]])))
    return {"segmentation": matrix.scores(NAMES), "cls_f1": 0.5, "images": 2}, {"segmentation": images}


def test_every_protocol_has_its_entry(tmp_path: Path) -> None:
    path = tmp_path / "run" / "evaluation.json"
    others = [key(split="train"), key(scales=[1]), key(long_side=0), key(mirror=False), key(step=40), key(limit=5)]
    others.append(key(crf={"crf_iterations": 10}))
    others.append(key(crf={"crf_iterations": 3}))
    for number, protocol in enumerate([key(), *others]):
        write_entry(path, protocol, {**FLAT, "images": number})
    write_entry(path, key(scales=(1.0, 0.5)), {**FLAT, "images": 99})
    entries = read_entries(path)
    assert [entry["protocol"] for entry in entries] == [key(), *others]
    assert [entry["table"]["images"] for entry in entries] == [99, 1, 2, 3, 4, 5, 6, 7, 8]
    assert [entry["partial"] for entry in entries] == [False] * 6 + [True] + [False] * 2


def test_a_flat_file_is_one_entry(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(FLAT))
    (entry,) = read_entries(path)
    assert entry["protocol"] == key(crf={"crf_iterations": 10, "crf_negligible": 0.0})
    assert entry["table"] == {name: FLAT[name] for name in ("segmentation", "cls_f1", "images")}
    write_entry(path, key(), FLAT)
    assert [entry["protocol"]["crf"] is None for entry in read_entries(path)] == [False, True]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "3", '{"a": 1}', '{"images": 3}'),
        *('{"evaluations": 3}', '{"evaluations": [3]}', '{"evaluations": [{"table": {}}]}'),
        '{"evaluations": [], "evaluations": []}',
    ],
)
def test_what_is_no_evaluation_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    table, per_image = scored()
    with pytest.raises(UserError, match="evaluation"):
        write_entry(path, key(), table, per_image)
    assert path.read_text() == content and list(tmp_path.iterdir()) == [path]


def test_each_images_counts_lie_beside(tmp_path: Path) -> None:
    table, per_image = scored()
    path = tmp_path / "evaluation.json"
    beside = write_entry(path, key(), table, per_image)
    assert beside is not None and read_entries(path)[0]["per_image"] == beside.name
    rows, names = read_image_counts(beside)
    assert names == tuple(NAMES) and rows["segmentation"].names == ["a/b", "\u00e9"]
    assert rows["segmentation"].stacked().total().scores(NAMES) == table["segmentation"]
    assert write_entry(path, key(step=40), table, per_image) != beside
    beside.write_bytes(beside.read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be read"):
        read_image_counts(beside)


def test_an_entry_holds_confusion_and_the_iou_of_images(tmp_path: Path) -> None:
    table, per_image = scored()
    path = tmp_path / "evaluation.json"
    matrix = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    write_entry(path, key(), table, per_image, {"segmentation": matrix})
    (entry,) = read_entries(path)
    assert entry["confusion"] == {"segmentation": matrix.tolist()}
    half = {"miou": 0.5, "iou": {"background": 0.5, "cat": 0.5}}
    assert entry["image_iou"] == {"segmentation": {"a/b": half, "\u00e9": None}}
    assert "[1, 1, 0, 0]" in path.read_text(), "a row of the matrix takes one line"


def test_a_table_with_fewer_rows_keeps_the_others_of_the_same_weights(tmp_path: Path) -> None:
    table, per_image = scored()
    path, same = tmp_path / "evaluation.json", torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    cams = {"cam": table["segmentation"], **table}, {"cam": per_image["segmentation"], **per_image}
    write_entry(path, key(), *cams, {"cam": same + 1, "segmentation": same})
    beside = write_entry(
        path,
        key(),
        {**table, "segmentation_known": table["segmentation"]},
        per_image,
        {"segmentation": same, "segmentation_known": same},
    )
    (entry,) = read_entries(path)
    assert entry["table"] == {**cams[0], "segmentation_known": table["segmentation"]}
    assert entry["confusion"]["cam"] == (same + 1).tolist() and set(entry["image_iou"]) == {"cam", "segmentation"}
    assert beside is not None and set(read_image_counts(beside)[0]) == {"cam", "segmentation"}

    write_entry(path, key(), table, per_image, {"segmentation": same + 1})  # other weights
    (entry,) = read_entries(path)
    assert entry["table"] == table and set(entry["confusion"]) == {"segmentation"}
    assert beside is not None and set(read_image_counts(beside)[0]) == {"segmentation"}


def test_a_class_that_is_said_and_not_there_counts_for_its_image() -> None:
    matrix, images = ConfusionMatrix(3), ImageCounts()
    images.add("a", matrix.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 2, 1, 1]])))
    assert image_iou(images, NAMES) == {"a": {"miou": 0.5, "iou": {"background": 0.5, "cat": 1.0, "dog": 0.0}}}


def test_a_table_tells_what_it_is_of() -> None:
    table, _ = scored()
    text = format_table(table, {"segmentation": "the mask"}, limit=2)
    assert text.splitlines()[0].split() == ["IoU", "in", "%", "the", "mask"]
    assert "cat             50.0" in text and "dog                -" in text
    assert "F1 of the image-level labels 50.0, 2 images, only the first 2 of the list" in text
    assert "false" not in text and "left open" not in text
    rates = format_table({**table, "other": {**table["segmentation"], "open": 0.125}}, {}, rates=True)
    assert "false negatives" in rates and "left open" in rates and "12.5" in rates and "other" in rates


def test_csv_has_a_line_for_all_and_for_each_image() -> None:
    table, per_image = scored()
    lines = image_counts_csv(per_image, table).splitlines()
    assert lines[0] == "output,image,miou,background,cat,dog"
    assert lines[1] == "segmentation,*,0.500000,0.500000,0.500000,"
    assert lines[2] == "segmentation,a/b,0.500000,0.500000,0.500000,"
    assert lines[3] == "segmentation,\u00e9,,,,"
