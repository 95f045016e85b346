from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sources import (
    VOC_TRAIN,
    VOC_VAL,
    make_coco_source,
    make_folder_source,
    make_voc_source,
    sbd_truth,
    write_image,
    write_list,
    write_mask,
)
from PIL import Image

from afa.config import DatasetConfig
from afa.data.check import REMEDIES, Report, check_data
from afa.data.images import read_image
from afa.data.labels import write_labels
from afa.data.layout import find_layout
from afa.data.prepare_coco import prepare_coco
from afa.data.prepare_voc import prepare_voc
from afa.data.shapes import ShapesStyle, make_shapes

TRAINED, SCORED = VOC_TRAIN[0], VOC_VAL[1]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_voc_source(tmp_path_factory.mktemp("check") / "VOC2012")
    prepare_voc(root)
    return root


@pytest.fixture
def root(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "VOC2012"))


def image(root: Path, name: str = TRAINED) -> Path:
    return root / "JPEGImages" / f"{name}.jpg"


def mask(root: Path, name: str = SCORED) -> Path:
    return root / "SegmentationClassAug" / f"{name}.png"


def edit_labels(root: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = root / "class_labels.json"
    labels = json.loads(path.read_text())
    edit(labels)
    path.write_text(json.dumps(labels))


def add_to_list(root: Path, split: str, name: str) -> None:
    path = root / "ImageSets/Segmentation" / f"{split}.txt"
    path.write_text(f"{path.read_text()}{name}\n")


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


# Kind of problem -> how it is planted, and the file that the report must name.
FAULTS: dict[str, tuple[Callable[[Path], object], Callable[[Path], Path]]] = {
    "missing-image": (lambda root: image(root).unlink(), image),
    "unreadable-image": (lambda root: image(root).write_bytes(b"no picture"), image),
    "truncated-image": (lambda root: image(root).write_bytes(image(root).read_bytes()[:-200]), image),
    "too-many-pixels": (lambda root: Image.new("1", (8100, 8100)).save(image(root), "PNG"), image),
    "exif-rotation": (lambda root: write_image(image(root), exif=exif(6)), image),
    "image-channels": (lambda root: Image.new("CMYK", (64, 48)).save(image(root)), image),
    "missing-mask": (lambda root: mask(root).unlink(), mask),
    "missing-training-mask": (
        lambda root: mask(root, TRAINED).unlink(),
        lambda root: mask(root, TRAINED),
    ),
    "unreadable-mask": (lambda root: mask(root).write_bytes(mask(root).read_bytes()[:50]), mask),
    "mask-channels": (lambda root: Image.new("RGBA", (64, 48)).save(mask(root)), mask),
    "mask-values": (lambda root: write_mask(mask(root), np.full((48, 64), 21)), mask),
    "mask-size": (lambda root: write_mask(mask(root), sbd_truth(SCORED).T), mask),
    "label-contradiction": (
        lambda root: edit_labels(root, lambda labels: labels[TRAINED].pop()),
        lambda root: mask(root, TRAINED),
    ),
    "absent-class": (
        lambda root: edit_labels(root, lambda labels: labels[TRAINED].extend(["person", "train"])),
        lambda root: mask(root, TRAINED),
    ),
    "unlabelled-image": (
        lambda root: edit_labels(root, lambda labels: labels.pop(TRAINED)),
        lambda root: root / "class_labels.json",
    ),
    "labels-file": (
        lambda root: edit_labels(root, lambda labels: labels.update(more=["unicorn"])),
        lambda root: root / "class_labels.json",
    ),
    "two-splits": (
        lambda root: add_to_list(root, "train_aug", SCORED),
        lambda root: root / "ImageSets/Segmentation/val.txt",
    ),
    "same-content": (
        lambda root: shutil.copy(image(root), image(root, SCORED)),
        lambda root: image(root, SCORED),
    ),
    "list": (
        lambda root: (root / "ImageSets/Segmentation/val.txt").unlink(),
        lambda root: root / "ImageSets/Segmentation/val.txt",
    ),
    "count": (
        lambda root: write_list(root / "ImageSets/Segmentation/val.txt", VOC_VAL[1:]),
        lambda root: root / "ImageSets/Segmentation/val.txt",
    ),
}


def check(root: Path, **settings: Any) -> Report:
    """The report, without the classes that so few images cannot show."""
    report = check_data(DatasetConfig(root=str(root), **settings))
    report.problems = [problem for problem in report.problems if problem.kind != "unseen-class"]
    return report


def test_nothing_is_found_in_clean_data_sets(clean: Path, tmp_path: Path) -> None:
    assert check(clean).problems == []
    coco = make_coco_source(tmp_path / "coco")
    prepare_coco(coco)
    assert check(coco, type="coco", train_split="train").problems == []
    shapes = make_shapes(tmp_path / "shapes", train=4, val=2, style=ShapesStyle(size=64))
    assert check(shapes, train_split="train").problems == []
    folder = make_folder_source(tmp_path / "mine")
    assert check(folder, type="folder", train_split="train").problems == []


@pytest.mark.parametrize("kind", FAULTS)
def test_each_planted_fault_is_found(root: Path, kind: str) -> None:
    plant, place = FAULTS[kind]
    plant(root)
    report = check(root)
    found = {(problem.kind, problem.file) for problem in report.problems}
    assert (kind, str(place(root))) in found
    # Some faults entail others; nothing else may be found.
    entailed = {
        "absent-class": {"absent-class"},
        "two-splits": {"two-splits", "count"},
        "list": {"list", "count"},
        "same-content": {"same-content"},
        "missing-training-mask": {"missing-training-mask"},
        "mask-values": {"mask-values"},
    }
    assert {problem.kind for problem in report.problems} <= entailed.get(kind, {kind})
    assert report.ok == (kind in ("absent-class", "missing-training-mask"))


def test_empty_labels(root: Path) -> None:
    edit_labels(root, lambda labels: labels.update({TRAINED: []}))
    write_mask(mask(root, TRAINED), np.zeros((48, 64)))
    assert [problem.kind for problem in check(root).problems] == ["empty-labels"]


def test_every_kind_has_a_remedy_and_is_tested(tmp_path: Path) -> None:
    of_other_tests = {"no-class", "class-folders", "unseen-class", "passed-over", "note", "input", "saliency-range"}
    assert set(REMEDIES) == {*FAULTS, "empty-labels", "no-masks", "no-labels", *of_other_tests}
    folder = make_folder_source(tmp_path / "mine")
    shutil.rmtree(folder / "masks")
    write_labels(folder / "class_labels.json", {f"train/picture {number}": ["cat"] for number in range(5)})
    report = check(folder, type="folder", train_split="train")
    assert [problem.kind for problem in report.problems] == ["no-masks"] and report.ok
    (folder / "class_labels.json").unlink()
    report = check(folder, type="folder", train_split="train")
    assert [problem.kind for problem in report.problems] == ["no-labels", "no-masks"] and not report.ok


def test_what_training_reads_beside_the_images_is_checked(clean: Path, tmp_path: Path, run_tool) -> None:
    config, labels = tmp_path / "config.yaml", tmp_path / "labels"
    config.write_text(f"method: segment\ndataset: {{root: {clean}, pixel_labels: {labels}}}\n")
    names = find_layout(DatasetConfig(root=str(clean))).names("train_aug")
    assert "there is no folder" in run_tool("check_data.py", config, code=1).stdout
    for name in names:
        write_mask(labels / f"{name}.png", np.zeros((48, 64)))
    assert "nothing is wrong" in run_tool("check_data.py", config).stdout
    write_mask(labels / f"{names[0]}.png", np.full((48, 64), 21))
    write_mask(labels / f"{names[1]}.png", np.zeros((48, 63)))
    said = run_tool("check_data.py", config, code=1).stdout
    assert "error: input (2)" in said and f"{names[0]}.png" in said and f"'{names[1]}'" in said
    (labels / f"{names[2]}.png").unlink()
    assert f"{names[2]}.png" in run_tool("check_data.py", config, code=1).stdout


def test_no_class_labels_are_asked_for_where_training_needs_none(tmp_path: Path) -> None:
    folder = make_folder_source(tmp_path / "mine")
    shutil.rmtree(folder / "masks")
    config = DatasetConfig(type="folder", root=str(folder), train_split="train", pixel_labels=str(tmp_path / "labels"))
    for name in find_layout(config).names("train"):
        image = read_image(find_layout(config).image(name, "train"))
        write_mask(tmp_path / "labels" / f"{name}.png", np.zeros(image.shape[:2]))
    report = check_data(config, needs=["pixel_labels"])
    assert [problem.kind for problem in report.problems] == ["no-masks"] and report.ok


def test_the_command(root: Path, tmp_path: Path, run_tool) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"dataset:\n  root: {root}\n")
    done = run_tool("check_data.py", config, "--output", tmp_path / "clean.json")
    assert "nothing is wrong" in done.stdout and "train_aug: 5 images, expected 5" in done.stdout
    assert json.loads((tmp_path / "clean.json").read_text())["ok"] is True

    for kind in ("truncated-image", "exif-rotation", "mask-channels"):
        FAULTS[kind][0](root)
    image(root, "2008_000010").unlink()
    done = run_tool("check_data.py", config, "dataset.val_split=val", "--output", tmp_path / "report.json", code=1)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is False and report["counts"] == {"train_aug": 5, "val": 2}
    kinds = {problem["kind"] for problem in report["problems"]}
    # The rotated picture took the truncated one's place.
    faults = {"exif-rotation", "mask-channels", "missing-image"}
    assert kinds == {*faults, "unseen-class"} == set(report["remedies"])
    for kind in faults:
        assert f"error: {kind} (1)" in done.stdout and REMEDIES[kind] in done.stdout
    assert "3 thing(s) wrong" in done.stdout


def test_an_image_that_a_list_names_twice_is_reported(root: Path) -> None:
    add_to_list(root, "val", f"JPEGImages/{SCORED}.jpg")
    (problem,) = [problem for problem in check(root).problems if problem.kind == "list"]
    assert f"names the image '{SCORED}' twice, first in line" in problem.message


def test_many_files_in_several_processes(tmp_path: Path, run_tool) -> None:
    root, names = tmp_path / "voc", [f"image_{number}" for number in range(70)]
    for number, name in enumerate(names):
        write_image(root / "JPEGImages" / f"{name}.jpg", (16, 16), seed=number)
        write_mask(root / "SegmentationClass" / f"{name}.png", np.ones((16, 16)))
    write_list(root / "ImageSets/Segmentation/train.txt", names[:-1])
    write_list(root / "ImageSets/Segmentation/val.txt", names[-1:])
    (root / "classes.txt").write_text("thing\n")
    write_labels(root / "class_labels.json", {name: ["thing"] for name in names})
    (root / "JPEGImages/image_68.jpg").write_bytes(b"")
    config = tmp_path / "config.yaml"
    config.write_text(f"dataset:\n  root: {root}\n  train_split: train\n")
    done = run_tool("check_data.py", config, "--workers", 2, code=1)
    assert "image_68.jpg is an empty file" in done.stdout and "1 thing(s) wrong" in done.stdout


def test_no_data_set_is_a_mistake_of_the_user(tmp_path: Path, run_tool) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"dataset:\n  root: {tmp_path / 'nothing'}\n")
    assert "afa prepare voc" in run_tool("check_data.py", config, code=2).stderr


def test_a_foreign_voc_folder_is_compared_with_the_published_sizes(root: Path) -> None:
    (root / "manifest.json").unlink()
    messages = [problem.message for problem in check(root).problems]
    assert messages == ["5 images, expected 10582", "2 images, expected 1449"]
