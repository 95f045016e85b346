"""How images are named in lists, label files and folders, and what training makes of it."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_sources import make_folder_source, training_images, write_image, write_list, write_mask

from afa.config import DatasetConfig
from afa.data.dataset import EvaluationImages, TrainingImages
from afa.data.labels import write_labels
from afa.data.layout import find_layout
from afa.data.make_labels import write_label_file
from afa.data.names import image_key
from afa.errors import UserError

NAMES = ("a", "b", "Zoë")
LABELS = {"a": ["cat"], "b": ["red panda"], "Zoë": ["cat", "red panda"]}


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    "spelling", ["sub/Zoë", "./sub/Zoë.jpg", "sub//Zoë.PNG ", "sub\\Zoë", "sub/Zoë.jpg.png", decomposed("sub/Zoë.jpg")]
)
def test_one_key_for_every_spelling(spelling: str) -> None:
    assert image_key(spelling) == "sub/Zoë" == image_key(image_key(spelling))


@pytest.mark.parametrize("name", [".jpg", "a.b", "a.jpg b", "x/.png", "2007_000032", "/abs/x"])
def test_what_is_no_suffix_stays(name: str) -> None:
    assert image_key(name) == name


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    """Images in VOC layout with a labels file, a list and two classes; one name has an accent."""
    root = tmp_path_factory.mktemp("voc")
    for name in NAMES:
        write_image(root / "JPEGImages" / f"{name}.jpg", (16, 16))
    (root / "classes.txt").write_text("cat\nred panda\n")
    write_labels(root / "class_labels.json", LABELS)
    write_list(root / "ImageSets/Segmentation/train.txt", NAMES)
    return DatasetConfig(root=str(root), train_split="train")


def training(config: DatasetConfig) -> TrainingImages:
    return training_images(config, crop_size=16)


def test_the_fingerprint_is_that_of_the_content(voc: DatasetConfig, tmp_path: Path) -> None:
    def fingerprint(names: Sequence[str], labels: dict[str, list[str]], classes: str = "cat\nred panda\n") -> str:
        write_list(tmp_path / "train.txt", names)
        write_labels(tmp_path / "labels.csv", labels)
        (tmp_path / "names.txt").write_text(classes)
        own = {"name_list_dir": tmp_path, "labels": tmp_path / "labels.csv", "class_names": tmp_path / "names.txt"}
        return training(replace(voc, **{key: str(path) for key, path in own.items()})).images.fingerprint

    known = training(voc).images.fingerprint
    # Other places, another kind of file, other spellings, labels of further images, another order of the labels.
    spelled = {"./a.jpg": ["1"], "b": ["red_panda"], decomposed("Zoë"): ["red panda", "cat"], "more": ["cat"]}
    assert fingerprint(["a.jpg", "b", decomposed("Zoë")], spelled) == known
    others = {
        fingerprint(["b", "a", "Zoë"], LABELS),
        fingerprint(["a", "b"], LABELS),
        fingerprint(NAMES, {**LABELS, "a": ["red panda"]}),
        fingerprint(NAMES, {**LABELS, "a": []}),
        fingerprint(NAMES, LABELS, "cat\nred panda\nowl\n"),
    }
    assert len(others) == 5 and known not in others


def read_as(voc: DatasetConfig, lines: str, folder: Path) -> list[str]:
    (folder / "train.txt").write_bytes(lines.encode())
    return find_layout(replace(voc, name_list_dir=str(folder))).names("train")


@pytest.mark.parametrize(
    "lines",
    [
        "a\nZoë\n",
        "\ufeffa.jpg\r\n./Zoë\r\n\r\n",
        f"JPEGImages/a.jpg\n{decomposed('JPEGImages/Zoë.jpg')}\n",
        "/data/VOC/JPEGImages/a.jpg\nC:\\VOC\\JPEGImages\\Zoë.jpg\n",
        "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n/JPEGImages/Zoë.jpg /SegmentationClassAug/Zoë.png\n",
        "JPEGImages/a.jpg\tSegmentationClass/a.png\nJPEGImages/Zoë.jpg  SegmentationClass/Zoë.png\n",
        "a  1\nb -1\nZoë  1\nmore  0\n",
    ],
)
def test_lists_as_people_have_them(voc: DatasetConfig, tmp_path: Path, lines: str) -> None:
    assert read_as(voc, lines, tmp_path) == ["a", "Zoë"]


def test_what_a_list_says_beyond_names_is_said(
    voc: DatasetConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for lines, said in (
        ("a 1\nb -1\nZoë 1\n", "marks 2 of 3 names with 1: only these are taken"),
        ("JPEGImages/a.jpg Masks/a.png\nJPEGImages/b.jpg Masks/b.png\n", "names masks in 'Masks'"),
    ):
        write_list(tmp_path / "train.txt", lines.splitlines())
        caplog.clear()
        training(replace(voc, name_list_dir=str(tmp_path)))
        assert said in caplog.text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "is empty"),
        ("a\nb\na.jpg\n", r"line 3: the list names the image 'a' twice, first in line 1 as 'a'"),
        (f"Zoë\n{decomposed('Zoë')}\n", "line 2: .* twice, first in line 1 as"),
        ("a 1\nb 0\n", "line 1: 'a 1' is no image's name"),
        ("a cat\nb dog\n", "line 1: 'a cat' is no image's name"),
        ("a -1\nb -1\n", "marks no image with 1"),
        ("JPEGImages/a.jpg x/b.png\n", r"line 1: the mask 'x/b\.png' has another name"),
        ("/elsewhere/a.jpg\n", "line 1: .*outside the image folder"),
        ("../JPEGImages/../../a\n", "line 1: .*outside the image folder"),
        ("a\nx" + "y" * 5000 + "\n", "line 2: .*too long"),
        ("a\0b\n", "NUL"),
    ],
)
def test_lists_that_cannot_be_right(voc: DatasetConfig, tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_as(voc, lines, tmp_path)


def test_a_split_that_is_not_there_names_those_that_are(voc: DatasetConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no split 'val': .*; there are: train$"):
        find_layout(voc).names("val")
    root = make_folder_source(tmp_path / "mine")
    with pytest.raises(
        UserError, match=r"images.training holds no images, and the list .* is missing; there are: train, val$"
    ):
        find_layout(DatasetConfig(type="folder", root=str(root))).names("training")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train/c.jpg", "train/c.png"),
        ("train/c.jpg", "train/c.JPG"),
        ("train/c.jpg", "train/c.jpg.png"),
        ("train/c.jpg", "train/c .jpg"),
        (f"train/{decomposed('ë')}.jpg", "train/ë.jpg"),
        ("train/d/c.jpg", "train/d\\c.jpg"),
    ],
)
def test_files_whose_names_meet_are_both_named(tmp_path: Path, one: str, other: str) -> None:
    root = make_folder_source(tmp_path / "mine")
    for name in (one, other):
        write_image(root / "images" / name, (8, 8))
    both = rf"{re.escape(other)} and .*{re.escape(one)} have the same name|{re.escape(one)} and .*{re.escape(other)}"
    with pytest.raises(UserError, match=both):
        find_layout(DatasetConfig(type="folder", root=str(root)))
    with pytest.raises(UserError, match=both):
        write_label_file(root / "labels.json", folders=root / "images")


def test_masks_whose_names_meet_are_both_named(voc: DatasetConfig, tmp_path: Path) -> None:
    for name in ("a.png", "a.PNG"):
        write_mask(tmp_path / name, np.ones((16, 16)))
    layout = find_layout(replace(voc, mask_dir=str(tmp_path)))
    with pytest.raises(UserError, match=r"a\.png and .*a\.PNG have the same name|a\.PNG and .*a\.png"):
        layout.mask("a", "train")
    with pytest.raises(UserError, match="have the same name"):
        write_label_file(tmp_path / "l.json", masks=tmp_path, class_names=Path(voc.root, "classes.txt"))


def test_files_that_spell_names_in_their_own_way(tmp_path: Path) -> None:
    """Accents as macOS has them, upper-case suffixes, blanks, two suffixes: in every layout and tool."""
    files = {f"{decomposed('Zoë')}.JPG": "Zoë", "b .jpeg": "b", "c.jpg.png": "c"}
    for layout in ("voc", "folder"):
        root = tmp_path / layout
        images, masks = root / ("images" if layout == "folder" else "JPEGImages"), root / "masks"
        for number, (file, key) in enumerate(files.items()):
            write_image(images / file, (8, 8), seed=number)
            write_mask(masks / f"{decomposed(key)}.PNG", np.full((8, 8), number % 2 + 1))
        (root / "classes.txt").write_text("cat\ndog\n")
        lists = root if layout == "folder" else root / "ImageSets/Segmentation"
        write_list(lists / "train.txt", sorted(files.values()))
        write_label_file(root / "class_labels.csv", masks=masks, workers=1)
        config = DatasetConfig(type=layout, root=str(root), train_split="train", val_split="train", mask_dir="masks")
        assert training(config).class_labels.tolist() == [[1, 0], [0, 1], [1, 0]]
        samples = [EvaluationImages(config)[index] for index in range(3)]
        assert [(sample.sample.name, int(sample.label.max())) for sample in samples] == [("Zoë", 1), ("b", 2), ("c", 1)]


def test_a_folder_that_links_to_itself_is_searched_once(tmp_path: Path) -> None:
    root = make_folder_source(tmp_path / "mine")
    (root / "images/train/loop").symlink_to(root / "images")
    (root / "images/other").symlink_to(root / "images/val")
    layout = find_layout(DatasetConfig(type="folder", root=str(root)))
    assert len(layout.names("train")) == 5 and layout.names("other") == ["other/picture 0", "other/picture 1"]


def test_several_labels_files_are_said(voc: DatasetConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = Path(shutil.copytree(voc.root, tmp_path / "copy"))
    write_labels(root / "class_labels.csv", LABELS)
    training(replace(voc, root=str(root)))
    assert "class_labels.json is taken" in caplog.text and "class_labels.csv is not" in caplog.text
