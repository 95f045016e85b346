"""What a preparation did not make stays as it is, byte for byte, also behind links."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from data_sources import (
    SBD_TRAIN,
    VOC_TRAIN,
    make_coco_source,
    make_voc_source,
    sbd_truth,
    stored_mask,
    tree_bytes,
    write_list,
    write_mask,
)

from afa.data.images import read_mask
from afa.data.prepare_coco import prepare_coco
from afa.data.prepare_voc import prepare_voc
from afa.data.shapes import ShapesStyle, make_shapes
from afa.errors import UserError

LISTS = "ImageSets/Segmentation"


def link_away(root: Path, folder: str) -> Path:
    """Move a folder of the data set elsewhere, and put a link to it into its place."""
    lent = root.parent / "lent" / folder
    lent.mkdir(parents=True)
    if (root / folder).is_dir():
        lent.rmdir()
        (root / folder).rename(lent)
    (root / folder).parent.mkdir(parents=True, exist_ok=True)
    (root / folder).symlink_to(lent, target_is_directory=True)
    return lent


def put(path: Path, text: str = "mine\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(prepare: Callable[[Path], object], root: Path, *named: object) -> None:
    before = tree_bytes(root.parent)
    with pytest.raises(UserError) as error:
        prepare(root)
    assert all(str(part) in str(error.value) for part in named), str(error.value)
    after = tree_bytes(root.parent)
    assert {path: after.get(path) for path in before} == before
    made = str((root / "manifest.json").relative_to(root.parent))
    assert after.get(made) == before.get(made)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    make_voc_source(folder / "voc")
    make_coco_source(folder / "coco", {"train": 1, "val": 1})
    return folder


@pytest.fixture
def voc(sources: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sources / "voc", tmp_path / "deep/VOC2012"))


@pytest.fixture
def coco(sources: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sources / "coco", tmp_path / "deep/coco"))


@pytest.mark.parametrize("folder", ["SegmentationClassAug", LISTS, "ImageSets"])
def test_voc_writes_through_no_link(voc: Path, folder: str) -> None:
    link_away(voc, folder)
    refused(prepare_voc, voc, voc / folder)


def test_another_projects_masks_behind_a_link(voc: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(voc, tmp_path / "deep/other"))
    prepare_voc(other)
    write_mask(other / "SegmentationClass" / f"{VOC_TRAIN[0]}.png", sbd_truth(VOC_TRAIN[0]))
    prepare_voc(other)  # It may change its own.
    before = tree_bytes(other)
    (voc / "SegmentationClassAug").symlink_to(other / "SegmentationClassAug")
    refused(prepare_voc, voc, "SegmentationClassAug")
    assert tree_bytes(other) == before
    # Where they are what would be made, they serve.
    shutil.copy(other / "SegmentationClass" / f"{VOC_TRAIN[0]}.png", voc / "SegmentationClass")
    prepare_voc(voc)
    assert tree_bytes(other) == before and (voc / "SegmentationClassAug").is_symlink()


@pytest.mark.parametrize(
    "file", [f"{LISTS}/train_aug.txt", "class_labels.json", "classes.txt", "manifest.json", "manifest.unfinished.json"]
)
@pytest.mark.parametrize("kind", ["plain", "link", "folder", "pipe"])
def test_voc_writes_over_nobodys_files(voc: Path, file: str, kind: str) -> None:
    mine = put(voc.parent / "mine.txt", '{"made_by": "me"}')
    if kind == "plain":
        shutil.copy(mine, voc / file)
    elif kind == "link":
        (voc / file).symlink_to(mine)
    elif kind == "folder":
        (voc / file).mkdir()
    else:
        os.mkfifo(voc / file)
    refused(prepare_voc, voc, voc / file)
    assert mine.read_text() == '{"made_by": "me"}'


def test_vocs_own_lists_are_never_written(voc: Path) -> None:
    lists = {"train": "2007_000001.jpg\r\n2007_000002\r\n", "trainval": "2007_000001\n2007_000003\n", "test": "2009_1"}
    for split, text in lists.items():
        (voc / LISTS / f"{split}.txt").write_bytes(text.encode())
    assert prepare_voc(voc).counts == {"train": 2, "val": 2, "trainval": 2, "train_aug": 5, "test": 1}
    assert {split: (voc / LISTS / f"{split}.txt").read_bytes().decode() for split in lists} == lists


def test_a_list_of_the_same_images_keeps_its_order(voc: Path) -> None:
    prepare_voc(voc)
    path = voc / LISTS / "train_aug.txt"
    names = path.read_text().split()[::-1]
    (voc / "manifest.json").unlink()
    write_list(path, names)
    for _ in range(2):
        prepare_voc(voc)
        assert path.read_text().split() == names


def test_own_files_are_made_anew_and_edited_ones_are_kept(voc: Path) -> None:
    prepare_voc(voc)
    (voc / "dataset/val.txt").unlink()
    (voc / "dataset/cls/2008_000012.mat").unlink()
    (voc / "JPEGImages/2008_000012.jpg").unlink()
    assert "1 masks of an earlier start" in prepare_voc(voc).notes[0]
    assert "2008_000012" not in json.loads((voc / "class_labels.json").read_text())
    path = voc / "SegmentationClassAug" / f"{SBD_TRAIN[1]}.png"
    mask = stored_mask(path)
    mask[:2] = 7
    write_mask(path, mask)
    with pytest.raises(UserError, match="edited since"):
        prepare_voc(voc)
    assert (read_mask(path)[:2] == 7).all()


def test_a_voc_folder_behind_a_link_is_lent(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/VOC2012").symlink_to(voc)
    before = tree_bytes(voc)
    with pytest.raises(UserError, match="through a link"):
        prepare_voc(tmp_path / "mine")
    assert tree_bytes(voc) == before


@pytest.mark.parametrize("folder", ["SegmentationClass", "SegmentationClass/train", LISTS, "JPEGImages"])
def test_coco_writes_through_no_link(coco: Path, folder: str) -> None:
    link_away(coco, folder)
    refused(prepare_coco, coco, coco / folder)


@pytest.mark.parametrize("file", [f"{LISTS}/val.txt", "class_labels.json", "classes.txt", "manifest.json"])
def test_coco_writes_over_nobodys_files(coco: Path, file: str) -> None:
    put(coco / file)
    refused(prepare_coco, coco, coco / file)


def test_coco_keeps_masks_that_were_edited(coco: Path) -> None:
    prepare_coco(coco)
    path = next((coco / "SegmentationClass/train").iterdir())
    mask = stored_mask(path)
    mask[:] = 1
    write_mask(path, mask)
    with pytest.raises(UserError, match=path.name):
        prepare_coco(coco, crowd="ignore")
    assert (read_mask(path) == 1).all()


def test_coco_keeps_what_stands_where_its_link_belongs(coco: Path) -> None:
    put(coco / "JPEGImages/train")
    refused(prepare_coco, coco, coco / "JPEGImages/train")
    (coco / "JPEGImages/train").unlink()
    (coco / "JPEGImages/train").symlink_to("/a/disk/that/is/not/there/now")
    refused(prepare_coco, coco, "/a/disk/that/is/not/there/now")
    assert os.readlink(coco / "JPEGImages/train") == "/a/disk/that/is/not/there/now"


def test_shapes_keep_what_was_changed_and_bring_back_what_is_missing(tmp_path: Path) -> None:
    def make() -> None:
        make_shapes(tmp_path / "deep/shapes", train=2, val=1, style=ShapesStyle(size=48))

    make()
    root = tmp_path / "deep/shapes"
    whole = tree_bytes(root)
    (root / "JPEGImages/train_00001.jpg").unlink()
    (root / LISTS / "val.txt").unlink()
    make()
    assert tree_bytes(root) == whole
    (root / "JPEGImages/train_00001.jpg").unlink()
    put(root / LISTS / "train.txt", "train_00001\n")
    with pytest.raises(UserError, match=r"train\.txt was changed"):
        make()
    assert (root / LISTS / "train.txt").read_text() == "train_00001\n"
    lent = link_away(root, "SegmentationClass")
    before = tree_bytes(lent)
    with pytest.raises(UserError, match="through a link"):
        make()
    assert tree_bytes(lent) == before
