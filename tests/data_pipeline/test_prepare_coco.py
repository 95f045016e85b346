from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_sources import (
    coco_truth,
    kill_half_way,
    make_coco_source,
    rectangle,
    stored_mask,
    tree_bytes,
)

from afa.config import DatasetConfig
from afa.data.classes import COCO_CLASS_NAMES
from afa.data.dataset import EvaluationImages
from afa.data.prepare_coco import paint


def image_name(split: str, number: int) -> str:
    return f"COCO_{split}2014_{number + 1:012d}"


def test_masks_lists_and_labels(tmp_path: Path, run_tool) -> None:
    root = make_coco_source(tmp_path / "coco")
    done = run_tool("prepare_coco.py", root, "--workers", 2)
    assert "train: 3 images (published: 82081)" in done.stdout
    for split, numbers in (("train", (0, 2, 3)), ("val", (0, 2))):
        names = [image_name(split, number) for number in numbers]
        assert (root / "ImageSets/Segmentation" / f"{split}.txt").read_text().split() == names
        for name, number in zip(names, numbers, strict=True):
            mask = stored_mask(root / "SegmentationClass" / split / f"{name}.png")
            assert np.array_equal(mask, coco_truth(number)), name
        assert len(list((root / "SegmentationClass" / split).iterdir())) == len(names)
    assert (root / "classes.txt").read_text().splitlines() == ["person", "car", "stop sign"]
    labels = json.loads((root / "class_labels.json").read_text())
    assert labels[image_name("train", 0)] == ["person", "car", "stop sign"]
    assert labels[image_name("train", 3)] == ["person"] and len(labels) == 5


def test_the_loader_reads_what_was_prepared(tmp_path: Path, run_tool) -> None:
    root = make_coco_source(tmp_path / "coco")
    run_tool("prepare_coco.py", root)
    images = EvaluationImages(DatasetConfig(type="coco", root=str(root)))
    sample = images[1]
    assert np.array_equal(sample.label.numpy(), coco_truth(2))
    assert sample.sample.image.shape == (48, 64, 3)


def test_ignored_crowds(tmp_path: Path, run_tool) -> None:
    root = make_coco_source(tmp_path / "coco")
    run_tool("prepare_coco.py", root)
    done = run_tool("prepare_coco.py", root, "--crowd", "ignore")
    # Image 3 shows nothing but a crowd: no label can be given.
    assert "1 annotated images show no object" in done.stdout
    names = (root / "ImageSets/Segmentation/train.txt").read_text().split()
    assert names == [image_name("train", 0), image_name("train", 2)]
    mask = stored_mask(root / "SegmentationClass/train" / f"{names[1]}.png")
    assert np.array_equal(mask, coco_truth(2, crowd_value=255))


def test_order_of_painting() -> None:
    small, large = [rectangle(4, 4, 4, 4)], [rectangle(0, 0, 10, 10)]
    assert paint(12, 12, [(1, False, small), (2, False, large)])[5, 5] == 1
    assert paint(12, 12, [(2, False, large), (1, False, small)])[5, 5] == 1
    assert paint(12, 12, [(1, True, small), (2, False, large)])[5, 5] == 2
    same = [(1, False, small), (2, False, small)]
    assert paint(12, 12, same)[5, 5] == 2
    # Degenerate polygons, which COCO has, enclose nothing.
    assert paint(12, 12, [(1, False, [[1, 1, 5, 5]])]).max() == 0


def test_killed_half_way_it_goes_on_to_the_same_bytes(tmp_path: Path, run_tool) -> None:
    sizes = {"train": 12, "val": 4}
    whole, killed = make_coco_source(tmp_path / "whole", sizes), tmp_path / "killed"
    shutil.copytree(whole, killed)
    run_tool("prepare_coco.py", whole)
    kill_half_way(killed / "SegmentationClass/train", 5, "prepare_coco.py", killed)
    assert not (killed / "manifest.json").exists()
    run_tool("prepare_coco.py", killed)
    assert tree_bytes(killed) == tree_bytes(whole)


def test_changed_annotations_are_painted_anew(tmp_path: Path, run_tool) -> None:
    root = make_coco_source(tmp_path / "coco")
    run_tool("prepare_coco.py", root)
    path = root / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    content["annotations"] = [item for item in content["annotations"] if item["category_id"] != 13]
    path.write_text(json.dumps(content))
    run_tool("prepare_coco.py", root)
    assert 3 not in stored_mask(root / "SegmentationClass/train" / f"{image_name('train', 0)}.png")


def test_foreign_masks_stay(tmp_path: Path, run_tool) -> None:
    root = make_coco_source(tmp_path / "coco")
    foreign = root / "SegmentationClass/train/mine.png"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"mine")
    assert "did not make" in run_tool("prepare_coco.py", root, code=2).stderr
    assert foreign.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (lambda root: shutil.rmtree(root / "annotations"), "annotations_trainval2014.zip"),
        (lambda root: shutil.rmtree(root / "val2014"), "val2014.zip"),
        (lambda root: (root / "annotations/instances_val2014.json").write_text("{"), "instances_val2014.json"),
        (lambda root: (root / "annotations/instances_val2014.json").write_text("[]"), "instances_val2014.json"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path: Path, run_tool, plant, expected: str) -> None:
    root = make_coco_source(tmp_path / "coco")
    plant(root)
    error = run_tool("prepare_coco.py", root, code=2).stderr
    assert expected in error and len(error.strip().splitlines()) == 1


def test_coco_has_80_classes_in_the_order_of_its_ids() -> None:
    assert len(COCO_CLASS_NAMES) == len(set(COCO_CLASS_NAMES)) == 80
    assert (COCO_CLASS_NAMES[0], COCO_CLASS_NAMES[11], COCO_CLASS_NAMES[79]) == ("person", "stop sign", "toothbrush")
