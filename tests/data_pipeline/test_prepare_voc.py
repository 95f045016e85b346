from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from data_sources import (
    SBD_TRAIN,
    SBD_VAL,
    VOC_TRAIN,
    VOC_VAL,
    kill_half_way,
    make_voc_source,
    sbd_truth,
    stored_mask,
    tree_bytes,
    voc_truth,
    write_mask,
)
from PIL import Image

from afa.data.classes import VOC_CLASS_NAMES
from afa.data.images import DamagedImage
from afa.data.prepare_voc import prepare_voc, read_sbd_mask

ALL = {*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL}


def read_list(root: Path, split: str) -> list[str]:
    return (root / "ImageSets/Segmentation" / f"{split}.txt").read_text().split()


def check_result(root: Path) -> None:
    for name in ALL:
        truth = voc_truth(name) if name in {*VOC_TRAIN, *VOC_VAL} else sbd_truth(name)
        assert np.array_equal(stored_mask(root / "SegmentationClassAug" / f"{name}.png"), truth), name
    assert len(list((root / "SegmentationClassAug").iterdir())) == len(ALL)
    assert set(read_list(root, "train_aug")) == ALL - set(VOC_VAL)
    assert read_list(root, "train") == list(VOC_TRAIN)
    assert read_list(root, "val") == list(VOC_VAL)
    assert set(read_list(root, "trainval")) == {*VOC_TRAIN, *VOC_VAL}
    labels = json.loads((root / "class_labels.json").read_text())
    assert set(labels) == ALL
    for name in ALL:
        shown = set(np.unique(sbd_truth(name) if name.startswith("2008") else voc_truth(name))) - {0, 255}
        assert labels[name] == [VOC_CLASS_NAMES[class_id - 1] for class_id in sorted(shown)]


def test_unpacked_folders(tmp_path: Path, run_tool) -> None:
    root = make_voc_source(tmp_path / "VOC2012")
    done = run_tool("prepare_voc.py", root, "--workers", 2)
    assert "train_aug: 5 images (published: 10582)" in done.stdout
    assert "VOC2012test.tar" in done.stdout
    check_result(root)
    # VOC's palette: class 1 is dark red.
    with Image.open(root / "SegmentationClassAug" / f"{SBD_TRAIN[1]}.png") as image:
        assert image.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
    before = tree_bytes(root)
    run_tool("prepare_voc.py", root)
    assert tree_bytes(root) == before


def test_archives(tmp_path: Path, run_tool) -> None:
    source, root = make_voc_source(tmp_path / "source"), tmp_path / "VOC2012"
    root.mkdir()
    with tarfile.open(root / "benchmark.tgz", "w:gz") as archive:
        archive.add(source / "dataset", "benchmark_RELEASE/dataset")
    shutil.rmtree(source / "dataset")
    with tarfile.open(root / "VOCtrainval_11-May-2012.tar", "w") as archive:
        archive.add(source, "VOCdevkit/VOC2012")
    run_tool("prepare_voc.py", root, "--workers", 1)
    check_result(root)
    assert tree_bytes(root / "JPEGImages") == tree_bytes(source / "JPEGImages")


def test_truncated_archive_is_one_clear_line(tmp_path: Path, run_tool) -> None:
    source, root = make_voc_source(tmp_path / "source"), tmp_path / "VOC2012"
    root.mkdir()
    path = root / "VOCtrainval_11-May-2012.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(source, "VOCdevkit/VOC2012")
    path.write_bytes(path.read_bytes()[:9000])
    done = run_tool("prepare_voc.py", root, code=2)
    assert "fetch it again" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_archive_members_cannot_leave_the_folder(tmp_path: Path) -> None:
    source, root = make_voc_source(tmp_path / "source"), tmp_path / "deep/VOC2012"
    root.mkdir(parents=True)
    with tarfile.open(root / "VOCtrainval_11-May-2012.tar", "w") as archive:
        archive.add(source, "VOCdevkit/VOC2012")
        archive.add(source / "dataset/train.txt", "VOCdevkit/VOC2012/JPEGImages/..")
        archive.add(source / "dataset/train.txt", "VOCdevkit/VOC2012/JPEGImages/../../../escaped.txt")
    prepare_voc(root, sbd=source / "dataset")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_existing_augmented_masks_serve_without_sbd(tmp_path: Path, run_tool) -> None:
    root = make_voc_source(tmp_path / "VOC2012")
    shutil.rmtree(root / "dataset")
    for name in {*SBD_TRAIN, *SBD_VAL}:
        # Found in the wild: grey instead of palette, and SBD's mask where VOC has a better one.
        write_mask(root / "SegmentationClassAug" / f"{name}.png", sbd_truth(name))
    for name in ALL - {*SBD_TRAIN, *SBD_VAL}:
        write_mask(root / "SegmentationClassAug" / f"{name}.png", voc_truth(name))
    lent = tree_bytes(root / "SegmentationClassAug")
    done = run_tool("prepare_voc.py", root, code=2)
    assert "was not made by this command" in done.stderr and "--sbd" in done.stderr
    assert tree_bytes(root / "SegmentationClassAug") == lent
    (root / "SegmentationClassAug").rename(root / "lent")
    run_tool("prepare_voc.py", root, "--sbd", root / "lent")
    check_result(root)
    assert tree_bytes(root / "lent") == lent


def test_existing_augmented_masks_that_are_right_stay_as_they_are(tmp_path: Path) -> None:
    root = make_voc_source(tmp_path / "VOC2012")
    shutil.rmtree(root / "dataset")
    for name in ALL:
        truth = voc_truth(name) if name in {*VOC_TRAIN, *VOC_VAL} else sbd_truth(name)
        write_mask(root / "SegmentationClassAug" / f"{name}.png", truth)
    lent = tree_bytes(root / "SegmentationClassAug")
    prepare_voc(root)
    assert tree_bytes(root / "SegmentationClassAug") == lent
    assert set(read_list(root, "train_aug")) == ALL - set(VOC_VAL)


def test_labels_from_annotations(tmp_path: Path, run_tool) -> None:
    root = make_voc_source(tmp_path / "VOC2012")
    (root / "Annotations").mkdir()
    for name in ALL:
        objects = "".join(f"<object><name>{found}</name></object>" for found in ("sofa", "cat", "cat"))
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    run_tool("prepare_voc.py", root, "--labels-from", "annotations")
    assert set(map(tuple, json.loads((root / "class_labels.json").read_text()).values())) == {("cat", "sofa")}


def test_killed_half_way_it_goes_on_to_the_same_bytes(tmp_path: Path, run_tool) -> None:
    whole, killed = make_voc_source(tmp_path / "whole"), tmp_path / "killed"
    for number in range(12):
        name = f"2009_{number:06d}"
        shutil.copy(whole / "JPEGImages" / f"{VOC_TRAIN[0]}.jpg", whole / "JPEGImages" / f"{name}.jpg")
        shutil.copy(whole / "dataset/cls" / f"{SBD_TRAIN[0]}.mat", whole / "dataset/cls" / f"{name}.mat")
    shutil.copytree(whole, killed)
    run_tool("prepare_voc.py", whole)
    kill_half_way(killed / "SegmentationClassAug", 5, "prepare_voc.py", killed)
    assert not (killed / "manifest.json").exists()
    run_tool("prepare_voc.py", killed)
    assert tree_bytes(killed) == tree_bytes(whole)


def test_what_is_missing_is_said_in_one_line(tmp_path: Path, run_tool) -> None:
    assert "VOCtrainval_11-May-2012.tar" in run_tool("prepare_voc.py", tmp_path / "nothing", code=2).stderr
    root = make_voc_source(tmp_path / "VOC2012")
    (root / "dataset").rename(tmp_path / "elsewhere")
    done = run_tool("prepare_voc.py", root, code=2)
    assert "benchmark.tgz" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (root / "SegmentationClassAug").exists() and not (root / "class_labels.json").exists()
    assert "cls/*.mat" in run_tool("prepare_voc.py", root, "--sbd", tmp_path, code=2).stderr
    run_tool("prepare_voc.py", root, "--sbd", tmp_path / "elsewhere")
    check_result(root)


def test_damaged_sbd_file_is_named(tmp_path: Path, run_tool) -> None:
    root = make_voc_source(tmp_path / "VOC2012")
    path = root / "dataset/cls" / f"{SBD_TRAIN[1]}.mat"
    path.write_bytes(path.read_bytes()[:100])
    assert str(path) in run_tool("prepare_voc.py", root, code=2).stderr
    path.write_bytes(b"")
    with pytest.raises(DamagedImage, match=path.name):
        read_sbd_mask(path)
