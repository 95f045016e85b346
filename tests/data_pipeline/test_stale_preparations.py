"""A preparation notices what is out of date or incomplete, and never says "ready" of nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_sources import (
    SBD_TRAIN,
    SBD_VAL,
    VOC_TRAIN,
    VOC_VAL,
    make_coco_source,
    make_voc_source,
    rectangle,
    stored_mask,
    write_image,
    write_list,
    write_mask,
)
from scipy.io import savemat

from afa.data.images import DamagedImage
from afa.data.parallel import map_files
from afa.data.prepare_coco import prepare_coco
from afa.data.prepare_voc import prepare_voc, read_sbd_mask
from afa.errors import UserError

LISTS = "ImageSets/Segmentation"
MASK = "SegmentationClass/train/COCO_train2014_000000000001.png"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return make_voc_source(tmp_path / "deep/VOC2012")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return make_coco_source(tmp_path / "coco", {"train": 1, "val": 1})


def annotations(root: Path) -> Path:
    return root / "annotations/instances_train2014.json"


def test_annotations_of_the_same_number_of_bytes(coco: Path) -> None:
    prepare_coco(coco)
    before, text = stored_mask(coco / MASK), annotations(coco).read_text()
    changed = text.replace(json.dumps(rectangle(50, 2, 8, 8)), json.dumps(rectangle(51, 2, 8, 8)))
    assert len(changed) == len(text) and changed != text
    annotations(coco).write_text(changed)
    prepare_coco(coco)
    assert np.argwhere(stored_mask(coco / MASK) != before)[:, 1].min() == 50


def test_masks_of_images_that_are_not_annotated_any_more_go(coco: Path) -> None:
    content = json.loads(annotations(coco).read_text())
    content["images"].append({**content["images"][0], "id": 2, "file_name": "b.jpg"})
    shutil.copy(next((coco / "train2014").iterdir()), coco / "train2014/b.jpg")
    content["annotations"].append({**content["annotations"][0], "id": 9, "image_id": 2})
    first = annotations(coco).read_text()
    annotations(coco).write_text(json.dumps(content))
    assert prepare_coco(coco).counts["train"] == 2
    annotations(coco).write_text(first)
    assert prepare_coco(coco).counts["train"] == 1
    assert [path.name for path in (coco / MASK).parent.iterdir()] == [Path(MASK).name]


def test_only_what_changed_is_painted_again(coco: Path) -> None:
    prepare_coco(coco)
    val = next((coco / "SegmentationClass/val").iterdir())
    before = val.stat().st_mtime_ns
    content = json.loads(annotations(coco).read_text())
    content["annotations"].pop()
    annotations(coco).write_text(json.dumps(content))
    prepare_coco(coco)
    assert val.stat().st_mtime_ns == before


def test_an_image_of_another_size_than_its_annotations(coco: Path) -> None:
    write_image(next((coco / "train2014").iterdir()), (64, 48))
    with pytest.raises(UserError, match=r"48 x 64 .* has 64 x 48"):
        prepare_coco(coco)


def test_a_pipe_in_an_images_place(coco: Path) -> None:
    path = next((coco / "train2014").iterdir())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="no plain file"):
        prepare_coco(coco)


def set_mask(root: Path, name: str, values: object) -> None:
    savemat(root / "dataset/cls" / f"{name}.mat", {"GTcls": {"Segmentation": values}})


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (lambda root: (root / LISTS / "train.txt").write_text(""), "train.txt cannot be used (it is empty)"),
        (lambda root: (root / LISTS / "val.txt").write_bytes(b"\xff\n"), "val.txt cannot be used"),
        (lambda root: pipe(root / LISTS / "val.txt"), "val.txt cannot be used (it is no plain file)"),
        (lambda root: write_list(root / LISTS / "val.txt", [VOC_VAL[0]] * 2), "twice"),
        (lambda root: write_list(root / LISTS / "val.txt", [VOC_VAL[0], VOC_TRAIN[0]]), "both name"),
        (lambda root: write_list(root / LISTS / "val.txt", ["../../etc/passwd"]), "have no image or mask"),
        (lambda root: (root / "JPEGImages" / f"{SBD_TRAIN[1]}.jpg").unlink(), "have no image in JPEGImages"),
        (lambda root: (root / "JPEGImages" / f"{VOC_VAL[0]}.jpg").unlink(), "VOCtrainval_11-May-2012.tar"),
        (lambda root: (root / "dataset/cls" / f"{SBD_VAL[1]}.mat").unlink(), "benchmark.tgz"),
        (lambda root: pipe(root / "dataset/cls" / f"{SBD_VAL[1]}.mat"), "no plain file"),
        (lambda root: pipe(root / "SegmentationClass" / f"{VOC_VAL[0]}.png"), f"{VOC_VAL[0]}.png"),
        (lambda root: set_mask(root, SBD_VAL[1], np.ones((47, 64), np.uint8)), "47 x 64"),
        (lambda root: write_mask(root / "SegmentationClass" / f"{VOC_VAL[0]}.png", np.ones((64, 48))), "64 x 48"),
        (lambda root: pipe(root / "VOCtrainval_11-May-2012.tar"), "no plain file"),
        (lambda root: pipe(root / "benchmark.tgz"), "no plain file"),
    ],
)
def test_what_cannot_be_right_is_no_data_set(voc: Path, plant: Callable[[Path], object], expected: str) -> None:
    plant(voc)
    with pytest.raises(UserError) as error:
        prepare_voc(voc)
    assert expected in str(error.value)
    assert not (voc / "manifest.json").exists() and not (voc / "class_labels.json").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<a><object><name>unicorn</name></object></a>", "'unicorn'"),
        ("<a><object>", "cannot be used"),
        ("<?xml version='1.0' encoding='klingon'?><a/>", "cannot be used"),
        ("<!DOCTYPE a [<!ENTITY b '" + "x" * 99 + "'>" + "".join(
            f"<!ENTITY {new} '{('&' + old + ';') * 99}'>" for old, new in zip("bcdef", "cdefg", strict=True)
        ) + "]><a><object><name>&g;</name></object></a>", "cannot be used"),
    ],
)  # fmt: skip
def test_annotations_that_cannot_be_used(voc: Path, text: str, expected: str) -> None:
    for path in (voc / "JPEGImages").iterdir():
        (voc / "Annotations").mkdir(exist_ok=True)
        (voc / "Annotations" / f"{path.stem}.xml").write_text(text)
    with pytest.raises(UserError, match=expected):
        prepare_voc(voc, labels_from="annotations")


def test_another_sbd_changes_the_masks(voc: Path) -> None:
    prepare_voc(voc)
    set_mask(voc, SBD_VAL[1], np.full((48, 64), 9, np.uint8))
    prepare_voc(voc)
    assert (stored_mask(voc / "SegmentationClassAug" / f"{SBD_VAL[1]}.png") == 9).all()
    assert json.loads((voc / "class_labels.json").read_text())[SBD_VAL[1]] == ["chair"]


def test_images_without_any_class_are_counted(voc: Path) -> None:
    set_mask(voc, SBD_VAL[1], np.zeros((48, 64), np.uint8))
    assert any("1 images have no class" in note and SBD_VAL[1] in note for note in prepare_voc(voc).notes)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_files_of_every_number_are_read(tmp_path: Path, dtype: type, compressed: bool) -> None:
    mask = np.random.default_rng(0).integers(0, 21, (5, 7))
    content = {"Boundaries": np.zeros((20, 1), object), "Segmentation": mask.astype(dtype), "x": "text"}
    savemat(tmp_path / "a.mat", {"other": 1, "GTcls": content}, do_compression=compressed)
    found = read_sbd_mask(tmp_path / "a.mat")
    assert found.dtype == np.uint8 and np.array_equal(found, mask)


@pytest.mark.parametrize(
    "values",
    [
        np.full((4, 4), -1, np.int8),
        np.full((4, 4), 255, np.uint8),
        np.full((4, 4), 21, np.int32),
        np.full((4, 4), 257, np.uint16),
        np.full((4, 4), 1.5),
        np.full((4, 4), np.nan),
        np.full((4, 4), 1j),
        np.ones((2, 2, 2), np.uint8),
        np.zeros((0, 4), np.uint8),
        "text",
        np.zeros((2, 2), object),
    ],
    ids=lambda values: str(values)[:12],
)
def test_values_that_are_no_classes_are_refused(tmp_path: Path, values: object) -> None:
    savemat(tmp_path / "a.mat", {"GTcls": {"Segmentation": values}})
    with pytest.raises(DamagedImage, match=r"a\.mat"):
        read_sbd_mask(tmp_path / "a.mat")


def test_every_damage_of_a_matlab_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    mask = np.random.default_rng(0).integers(0, 21, (9, 7)).astype(np.uint8)
    rng = np.random.default_rng(1)
    for compressed in (False, True):
        savemat(path, {"GTcls": {"Segmentation": mask}}, do_compression=compressed)
        whole = path.read_bytes()
        read = 0
        for _ in range(100):
            content = bytearray(whole[: rng.integers(len(whole) + 1)] if rng.random() < 0.5 else whole)
            for place in rng.integers(0, max(1, len(content)), 3):
                content[place : place + 1] = bytes([rng.integers(256)])
            path.write_bytes(content)
            with contextlib.suppress(DamagedImage):
                read += read_sbd_mask(path).max() <= 20
        assert 0 < read < 100


def broken(kind: str) -> int:
    if kind == "memory":
        raise MemoryError
    if kind == "depth":
        raise RecursionError("maximum recursion depth exceeded")
    if kind == "disk":
        raise OSError(28, "No space left on device")
    raise IndexError("a library's own business")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("memory", "memory ran out"), ("depth", "it is nested too deep"), ("library", "IndexError: a lib")],
)
def test_an_error_in_a_job_names_the_job(kind: str, expected: str) -> None:
    with pytest.raises(UserError, match=f"masks: {kind}: {expected}"):
        list(map_files(broken, [kind], workers=1, description="masks"))
    with pytest.raises(OSError, match="No space left"):
        list(map_files(broken, ["disk"], workers=1, description="masks"))
