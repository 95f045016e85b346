"""COCO annotation files that are wrong somewhere: one line that names the entry, before any C code sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sources import make_coco_source, rectangle, run_lengths
from pycocotools import mask as coco_mask

from afa.data.coco_regions import area, decode, encode
from afa.data.prepare_coco import prepare_coco
from afa.errors import UserError

BOX = rectangle(10, 10, 20, 20)
WHOLE = {"size": [48, 64], "counts": [48 * 64]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_coco_source(tmp_path / "coco", {"train": 1, "val": 1})


def change(root: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = root / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1e9, *BOX[1:]]],
        [[float("nan"), *BOX[1:]]],
        [[float("inf"), *BOX[1:]]],
        [[10**400, *BOX[1:]]],
        [[-1e5, *BOX[1:]]],
        [BOX[:-1]],
        [[True, *BOX[1:]]],
        [["10", *BOX[1:]]],
        [[None, *BOX[1:]]],
        [[BOX]],
        BOX,
        [dict.fromkeys(BOX)],
        [[-60, -40, 120, 90] * 40_000],
        "text",
        {},
        {"size": [48, 64]},
        {"size": [48.0, 64], "counts": [3072]},
        {"size": [48, True], "counts": [48]},
        {"size": [64, 48], "counts": [3072]},
        {"size": "48", "counts": [3072]},
        {"size": [10**7, 10**7], "counts": [10**14]},
        {**WHOLE, "counts": []},
        {**WHOLE, "counts": [3071]},
        {**WHOLE, "counts": [3072, 1]},
        {**WHOLE, "counts": [10**400]},
        {**WHOLE, "counts": [3073, -1]},
        {**WHOLE, "counts": [3072.0]},
        {**WHOLE, "counts": [3071, True]},
        {**WHOLE, "counts": ["3072"]},
        {**WHOLE, "counts": 3072},
        {**WHOLE, "counts": ""},
        {**WHOLE, "counts": "11"},
        {**WHOLE, "counts": "o" * 50 + "0"},
        {**WHOLE, "counts": "Poo"},
        {**WHOLE, "counts": "\u00e9\u4e2d"},
        {**WHOLE, "counts": "\x00\x01"},
        {**WHOLE, "counts": "O"},
    ],
    ids=lambda segmentation: str(segmentation)[:40].encode("unicode_escape").decode(),
)
def test_a_malformed_segmentation_is_refused(segmentation: Any) -> None:
    with pytest.raises(ValueError, match=r"segmentation|encoding"):
        encode(segmentation, 48, 64)


def test_what_is_accepted_is_what_pycocotools_makes_of_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        # Runs of all lengths: from noise to one run over the whole image.
        region = np.cumsum(rng.random((width, height)) < rng.choice([0, 0.01, 0.2, 1])).reshape(width, height).T % 2 > 0
        text = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
        for form in (run_lengths(region), {"size": [height, width], "counts": text["counts"].decode()}):
            found = encode(form, height, width)
            assert area(found) == region.sum() and np.array_equal(decode(found), region)
        polygons = [(rng.uniform(-0.1, 1.1, (7, 2)) * (width, height)).flatten().tolist() for _ in range(2)]
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
        assert np.array_equal(decode(encode(polygons, height, width)), expected.astype(bool))


def twice(entries: list[dict[str, Any]], **changes: object) -> None:
    entries.append({**entries[0], **changes})


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda c: c["annotations"][0].update(image_id="1"), ["annotation 1", "'image_id'", '"1"']),
        (lambda c: c["annotations"][0].update(image_id=1.0), ["annotation 1", "'image_id'"]),
        (lambda c: c["annotations"][0].update(image_id=True), ["annotation 1", "'image_id'"]),
        (lambda c: c["annotations"][0].pop("image_id"), ["annotation 1", "missing"]),
        (lambda c: c["annotations"][0].update(id=None), ["annotation 1", "'id'"]),
        (lambda c: c["annotations"][0].update(category_id=99), ["image 1, annotation 1", "99"]),
        (lambda c: c["annotations"][0].update(category_id=[1]), ["image 1, annotation 1", "'category_id'"]),
        (lambda c: c["annotations"][0].update(iscrowd="0"), ["image 1, annotation 1", "iscrowd"]),
        (lambda c: c["annotations"][0].update(iscrowd=2), ["image 1, annotation 1", "iscrowd"]),
        (lambda c: c["annotations"][0].update(segmentation=[[1e9, 2, 3, 4, 5, 6]]), ["annotation 1", "000001'"]),
        (lambda c: c["annotations"][0].update(segmentation=None), ["image 1, annotation 1", "segmentation"]),
        (lambda c: c["annotations"].append(7), ["annotation 4", "missing"]),
        (lambda c: twice(c["annotations"]), ["annotation 1", "twice"]),
        (lambda c: c["images"][0].update(id="1"), ["image 1", "'id'"]),
        (lambda c: c["images"][0].update(height=10**7, width=10**7), ["image 1", "size"]),
        (lambda c: c["images"][0].update(height=0), ["image 1", "size"]),
        (lambda c: c["images"][0].update(width=-64), ["image 1", "size"]),
        (lambda c: c["images"][0].update(height=47), ["000001", "47 x 64", "48 x 64"]),
        (lambda c: c["images"][0].update(height="48"), ["image 1", "'height'"]),
        (lambda c: c["images"][0].update(file_name="../a.jpg"), ["image 1", "without folders"]),
        (lambda c: c["images"][0].update(file_name="a\nb.jpg"), ["image 1", "'file_name'"]),
        (lambda c: c["images"][0].update(file_name="a.png"), ["image 1", ".jpg"]),
        (lambda c: c["images"][0].update(file_name="a.jpg.jpg"), ["image 1", ".jpg"]),
        (lambda c: c["images"][0].update(file_name="COCO_val2014_000000000001.jpg"), ["both"]),
        (lambda c: c["images"][0].update(file_name="b.jpg"), ["b.jpg", "missing"]),
        (lambda c: twice(c["images"]), ["image 1", "twice"]),
        (lambda c: twice(c["images"], id=2), ["file name", "twice"]),
        (lambda c: twice(c["categories"], id=99), ["category 4", "twice"]),
        (lambda c: twice(c["categories"], name="tree"), ["category 4", "twice"]),
        (lambda c: c["categories"][0].update(name="__background__"), ["category 1", "background"]),
        (lambda c: c["categories"][0].update(name="# person"), ["category 1"]),
        (lambda c: c["categories"][0].update(name=1), ["category 1", "'name'"]),
        (lambda c: c["categories"].clear(), ["0 categories"]),
        (lambda c: c.pop("images"), ["'images'"]),
        (lambda c: c.update(annotations={}), ["'annotations'"]),
        (lambda c: c["annotations"].clear(), ["none of its 0 annotations"]),
        (lambda c: [found.update(image_id=77) for found in c["annotations"]], ["none of its 3 annotations"]),
        (lambda c: [found.update(segmentation=[]) for found in c["annotations"]], ["shows an object"]),
    ],
)
def test_a_wrong_entry_is_one_line_that_names_it(
    root: Path, edit: Callable[[Any], object], expected: list[str]
) -> None:
    change(root, edit)
    with pytest.raises(UserError) as error:
        prepare_coco(root)
    assert all(part in str(error.value) for part in expected), str(error.value)
    assert not (root / "manifest.json").exists() and not (root / "class_labels.json").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"images": NaN}', "NaN"),
        ('{"images": [], "images": [], "annotations": [], "categories": []}', "'images'"),
        ('{"images": [' + "9" * 5000 + "]}", "digits"),
        ("\x00\xff", "UTF-8"),
        ("7", "no COCO annotation file"),
    ],
)
def test_a_file_that_is_no_annotation_file(root: Path, text: str, expected: str) -> None:
    path = root / "annotations/instances_train2014.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=expected) as error:
        prepare_coco(root)
    assert str(path) in str(error.value)


def test_annotations_of_no_image_are_counted(root: Path) -> None:
    change(root, lambda content: twice(content["annotations"], id=50, image_id=77))
    assert any("1 annotations belong to no image" in note and "77" in note for note in prepare_coco(root).notes)


def test_true_and_false_say_what_a_crowd_is(root: Path) -> None:
    change(root, lambda content: [found.update(iscrowd=bool(found["iscrowd"])) for found in content["annotations"]])
    assert prepare_coco(root).counts == {"train": 1, "val": 1}
