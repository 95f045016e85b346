"""Class lists of labelling tools, labels that say nothing, and ids that are none."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_sources import training_images, write_image, write_list, write_mask

from afa.config import DatasetConfig
from afa.data.check import check_data
from afa.data.classes import read_class_names
from afa.data.dataset import TrainingImages
from afa.data.labels import one_hot, read_labels, write_labels
from afa.data.layout import find_layout
from afa.data.make_labels import write_label_file
from afa.errors import UserError

SAID = "afa.data.notices"


def write_classes(path: Path, *names: str) -> Path:
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return path


NO_CLASSES = (
    "background", "_background_", "__ignore__", "__BACKGROUND__", "BG", "Ignore", "void", "Unlabeled", "unlabelled",
    "un-labelled", "don't care",
)  # fmt: skip


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", NO_CLASSES)
def test_what_is_no_class_is_no_line_of_a_class_list(tmp_path: Path, name: str, place: int) -> None:
    names = ["cat", "dog"]
    names.insert(place, name)
    path = write_classes(tmp_path / "classes.txt", "# mine", *names)
    with pytest.raises(
        UserError, match=rf"classes\.txt, line {place + 2}: .* is no class: leave it out.*in their order"
    ):
        read_class_names(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0 background", "1 cat"], "numbers its lines from 0"),
        (["0: cat", "1: dog"], "numbers its lines from 0"),
        (["0,cat", "1,dog"], "numbers its lines from 0"),
        (["1 cat", "2 background"], "line 2: .*no class"),
        (["background,0", "cat,1"], "line 1: .*no class"),
        (["cat 1", "void 255"], "line 2: .*no class"),
        (
            ["# label:color_rgb:parts:actions", "background:0,0,0::", "cat:128,0,0::"],
            "line 2: .*gives a class its colour",
        ),
        (["cat", "x" * 300], "line 2: .*too long"),
        (["cat", "dog", " cat "], "line 3: .*named twice"),
        (["traffic light", "traffic_light"], r"line 2: .*once as 'traffic light' \(.*line 1\)"),
        (["Zoë", unicodedata.normalize("NFD", "Zoë")], "twice"),
        (["a\0b"], "NUL"),
        (["a\x1bb"], r"a\\\\?x1bb"),
    ],
)
def test_lists_of_other_forms(tmp_path: Path, lines: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_class_names(write_classes(tmp_path / "classes.txt", *lines))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 601


def test_classes_that_only_contain_such_words(tmp_path: Path) -> None:
    names = ("background music", "voided ticket", "bgr", "7 of hearts", "1 euro", "2 euro", "ignored sign x", "Zoë")
    path = write_classes(tmp_path / "classes.txt", *(unicodedata.normalize("NFD", name) for name in names))
    assert read_class_names(path) == names


@pytest.mark.parametrize("name", ["background", "__ignore__", "_background_", "void"])
def test_folders_of_no_class(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "images/train/cat/1.jpg", (8, 8))
    write_image(tmp_path / f"images/train/{name}/2.jpg", (8, 8))
    with pytest.raises(UserError, match=rf"the folder .*{name}: '{name}' is no class"):
        write_label_file(tmp_path / "class_labels.json", folders=tmp_path / "images")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("folders", [("traffic light", "traffic_light"), ("#1", "cat"), ("a\nb", "cat")])
def test_folders_that_no_class_list_can_name(tmp_path: Path, folders: Sequence[str]) -> None:
    for number, folder in enumerate(folders):
        write_image(tmp_path / f"images/{folder}/{number}.jpg", (8, 8))
    with pytest.raises(UserError, match="folder"):
        write_label_file(tmp_path / "class_labels.json", folders=tmp_path / "images")


def test_folders_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    classes = ("traffic light", unicodedata.normalize("NFD", "Zoë"), "3")
    for number, folder in enumerate(classes):
        write_image(tmp_path / f"images/{folder}/im {number}.jpg.png", (8, 8))
    for file in ("class_labels.json", "class_labels.csv"):
        write_label_file(tmp_path / file, folders=tmp_path / "images")
        names = read_class_names(tmp_path / "classes.txt")
        labels = read_labels(tmp_path / file, names)
        assert names == ("3", "Zoë", "traffic light")
        found = {name: names[int(row.argmax())] for name, row in labels.items()}
        assert found == {"traffic light/im 0": "traffic light", "Zoë/im 1": "Zoë", "3/im 2": "3"}
        layout = find_layout(DatasetConfig(type="folder", root=str(tmp_path), train_split="Zoë"))
        assert layout.names("Zoë") == ["Zoë/im 1"] and layout.image("Zoë/im 1", "Zoë").is_file()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("l.json", '{"a": ["cat", "background"]}', "image 'a': 'background' is no class: leave it out"),
        ("l.json", '{"a": [0]}', "'0' is no class"),
        ("l.json", '{"a": [null]}', "not a list of class names"),
        ("l.json", '{"a": [1.0]}', "not a list of class names"),
        ("l.json", '{"a": [-1]}', "'-1' is neither"),
        ("l.json", '{"a": ["' + "9" * 5000 + '"]}', "is neither"),
        ("l.json", '{"a": ["cat"], "a": ["dog"]}', "the key 'a' appears twice"),
        ("l.json", '{"a.jpg": ["cat"], "./a": ["dog"]}', r"twice, as 'a\.jpg' .*and as '\./a'"),
        ("l.json", '{"a\\\\b": ["cat"], "a/b ": ["dog"]}', "twice, as"),
        ("l.json", '{"Zo\u00eb": ["cat"], "Zoe\u0308": ["dog"]}', "twice, as"),
        ("l.csv", "image,labels\na.jpg,cat\na.png,cat\n", r"line 3: .*twice, as 'a\.jpg' .*line 2.*and as 'a\.png'"),
        ("l.csv", "image,cat,dog,cat\na,1,0,1\n", "columns 'cat' and 'cat' are the same"),
        ("l.csv", "image,cat,1\na,1,0\n", "columns 'cat' and '1' are the same"),
        ("l.csv", "image,background,cat\na,1,0\n", "'background' is no class"),
        ("l.csv", "image,cat,dog\na,1,0,1,1\n", "line 2: 2 cells"),
        ("l.csv", "image,labels\na," + "x" * 200_000 + "\n", "line 2: it is no CSV file"),
        ("l.csv", "image,labels\na,c\0at\n", "NUL"),
        ("l.txt", "a cat\na.jpg dog\n", r"line 2: .*twice, as 'a' .*and as 'a\.jpg'"),
        ("l.txt", "a __ignore__\n", "is no class"),
        ("l.txt", "a cat\x1b[2J\n", r"'cat\\x1b\[2J' is neither"),
    ],
)
def test_label_files_that_cannot_be_right(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / file).write_bytes(content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_labels(tmp_path / file, ("cat", "dog"))
    assert len(str(caught.value)) < 601


def test_classes_that_are_called_by_numbers(tmp_path: Path) -> None:
    digits = tuple(str(digit) for digit in range(10))
    (tmp_path / "l.csv").write_text("image,labels\na,3\n")
    assert read_labels(tmp_path / "l.csv", digits)["a"].argmax() == 3
    for content in ('{"a": [3]}', '{"a": ["10"]}'):
        (tmp_path / "l.json").write_text(content)
        with pytest.raises(UserError, match="ids are not read where class names are numbers"):
            read_labels(tmp_path / "l.json", digits)


@pytest.mark.parametrize("ids", [[0], [-1], [4], [1.0], [True], ["1"], [2**40]])
def test_an_id_that_is_none_is_refused(ids: list[int]) -> None:
    with pytest.raises(UserError, match="whole numbers from 1 to 3"):
        one_hot(ids, 3)


# Data sets whose masks and labels say little.


def make_data(
    root: Path, values: Sequence[int], *, classes: Sequence[str] = ("cat", "dog"), labels: bool = False
) -> Path:
    """Images in VOC layout, one per value, which its mask shows; training and validation list are the same images."""
    names = [f"image {number}" for number in range(len(values))]
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        write_image(root / f"JPEGImages/{name}.jpg", (8, 8), seed=number)
        mask = np.zeros((8, 8), np.uint8)
        mask[2:5, 2:5] = value
        write_mask(root / f"SegmentationClass/{name}.png", mask)
    for split in ("train", "val"):
        write_list(root / f"ImageSets/Segmentation/{split}.txt", names)
    write_classes(root / "classes.txt", *classes)
    if labels:
        shown = {
            name: [classes[value - 1]] if 0 < value < 255 else [] for name, value in zip(names, values, strict=True)
        }
        write_labels(root / "class_labels.json", shown)
    return root


def train(root: Path, **settings: object) -> TrainingImages:
    config = DatasetConfig(root=str(root), train_split="train")
    images = training_images(replace(config, **settings), crop_size=16)
    images.say_what_is_given()
    return images


def found(root: Path, **settings: object) -> dict[tuple[str, str], str]:
    report = check_data(replace(DatasetConfig(root=str(root), train_split="train"), **settings))
    wanted = ("no-class", "unseen-class", "passed-over")
    return {(problem.kind, problem.split): problem.message for problem in report.problems if problem.kind in wanted}


@pytest.mark.parametrize("labels", [False, True])
def test_masks_of_0_and_255_only(tmp_path: Path, labels: bool) -> None:
    root = make_data(tmp_path / "data", [255, 0, 255], labels=labels)
    with pytest.raises(UserError, match="no image of 'train' has a class, so there is nothing to learn"):
        train(root)
    problems = found(root)
    assert set(problems) == {("no-class", "train"), ("no-class", "val")}
    report = check_data(DatasetConfig(root=str(root), train_split="train"))
    assert not report.ok and "error: no-class (2)" in report.as_text()
    with pytest.raises(UserError, match=r"none of the 3 masks .* shows a class: .* 0 \(background\) and 255"):
        write_label_file(root / "labels.json", masks=root / "SegmentationClass")
    assert not (root / "labels.json").exists()


@pytest.mark.parametrize("labels", [False, True])
def test_what_is_missing_is_named(tmp_path: Path, labels: bool, caplog: pytest.LogCaptureFixture) -> None:
    root = make_data(tmp_path / "data", [1, 0, 1, 3], classes=("cat", "dog", "owl", "cow"), labels=labels)
    with caplog.at_level(logging.INFO, SAID):
        train(root)
    assert "training on 4 images of 'train': 2 of 4 classes, each in 1 to 2 images" in caplog.text
    assert "no image of 'train' shows 'dog', 'cow'" in caplog.text
    assert "1 of the 4 images of 'train' have no class, the first is 'image 1'" in caplog.text
    assert found(root) == {
        ("unseen-class", split): f"no image of '{split}' shows 'dog', 'cow'" for split in ("train", "val")
    }
    caplog.clear()
    write_label_file(root / "labels.csv", masks=root / "SegmentationClass")
    assert "shows 'dog', 'cow'" in caplog.text and "1 of the 4 masks" in caplog.text


def test_nothing_is_said_of_labels_that_are_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_data(tmp_path / "data", [1, 2, 2], labels=True)
    train(root)
    assert not caplog.text and found(root) == {}
    same = make_data(tmp_path / "same", [2, 2], labels=True)
    train(same)
    assert "have the same classes" in caplog.text and "shows 'cat'" in caplog.text


def test_an_ignore_value_that_is_a_class(tmp_path: Path) -> None:
    root = make_data(tmp_path / "data", [1, 2])
    with pytest.raises(UserError, match="ignore_index=2 is the id of the class 'dog'"):
        train(root, ignore_index=2)
    for value in (2, -1, 256):
        with pytest.raises(UserError, match=f"{value} cannot mean ignore"):
            write_label_file(root / "l.json", masks=root / "SegmentationClass", ignore_index=value)


BAD_CACHES = {
    "class 0": lambda labels: {**labels, "image 0": [0]},
    "a class too many": lambda labels: {**labels, "image 0": [3]},
    "a negative id": lambda labels: {**labels, "image 1": [-1]},
    "text": lambda labels: {**labels, "image 1": ["1"]},
    "true": lambda labels: {**labels, "image 1": [True]},
    "no list": lambda labels: {**labels, "image 1": 2},
    "a list": lambda labels: [1, 2],
}


@pytest.mark.parametrize("case", BAD_CACHES)
def test_the_cache_of_labels_is_not_trusted(tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    root = make_data(tmp_path / "data", [1, 2])
    expected = train(root).class_labels.tolist()
    cache = root / ".class_labels_from_masks/train.json"
    content = json.loads(cache.read_text())
    cache.write_text(json.dumps({**content, "labels": BAD_CACHES[case](content["labels"])}))
    caplog.clear()
    assert train(root).class_labels.tolist() == expected == [[1, 0], [0, 1]]
    assert "taken from the masks again" in caplog.text
    for text in ("[" * 100_000, "{", "[]", '{"made_from": 1}', '{"labels": NaN}'):
        cache.write_text(text)
        assert train(root).class_labels.tolist() == expected


def test_files_of_other_kinds_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "mine"
    for number, name in enumerate(("cat", "dog")):
        write_image(root / f"images/train/{name}/{number}.jpg", (8, 8))
    for name in ("a.HEIC", "b.heif", "c.jxl", "d.psd", "notes.txt"):
        (root / "images/train/cat" / name).write_bytes(b"")
    write_label_file(root / "class_labels.json", folders=root / "images")
    said = (
        "4 image files are skipped, because files of the kind .heic, .heif, .jxl, .psd are not read: "
        "train/cat/a.HEIC, train/cat/b.heif, train/cat/c.jxl, ..."
    )
    assert said in caplog.text
    assert found(root, type="folder", val_split="train")["passed-over", ""] == said
