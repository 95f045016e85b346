"""A folder per class: what its folders say, and every arrangement in which they would say something uncertain."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faults import is_one_line
from PIL import Image

from afa.config.settings import DatasetConfig
from afa.data.dataset import Split
from afa.data.layout import find_class_names, find_layout
from afa.errors import UserError


def put(path: Path, shade: int = 0, mode: str = "RGB") -> Path:
    """An image of 8 x 8 with one shade."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 8), shade if mode == "L" else (shade, shade, 200)).save(path)
    return path


def split_of(root: Path, split: str = "train", needed: bool = True, **settings: object) -> Split:
    config = DatasetConfig(type="folder", root=str(root), train_split="train", **settings)  # type: ignore[arg-type]
    return Split(config, split, inputs=["class_labels"] if needed else [])


def told(split: Split) -> dict[str, list[str]]:
    names = split.layout.class_names
    return {
        image: [names[index] for index in np.flatnonzero(split.class_labels[image])]
        for image in split.names
        if image in split.class_labels
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two images; the same file name in both is no mistake."""
    for shade, place in enumerate(["zebra crossing/1.png", "zebra crossing/2.jpg", "Cat/1.png", "Cat/café.png"]):
        put(tmp_path / "my data" / "images" / "train" / place, 20 * shade)
    return tmp_path / "my data"


def test_the_folders_names_in_their_order_are_the_classes(root: Path) -> None:
    split = split_of(root)
    assert split.layout.class_names == ("Cat", "zebra crossing")
    assert told(split) == {
        "train/Cat/1": ["Cat"],
        "train/Cat/café": ["Cat"],
        "train/zebra crossing/1": ["zebra crossing"],
        "train/zebra crossing/2": ["zebra crossing"],
    }
    assert find_class_names(split.config) == split.layout.class_names


@pytest.mark.parametrize("count", [1, 81])
def test_any_number_of_classes(tmp_path: Path, count: int) -> None:
    for number in range(count):
        put(tmp_path / "images" / "train" / f"class {number:02d}" / "-1.png", number)
    split = split_of(tmp_path)
    assert list(told(split).values()) == [[f"class {number:02d}"] for number in range(count)]


def test_grey_images_hidden_folders_and_other_files_do_not_disturb(root: Path) -> None:
    put(root / "images" / "train" / "Cat" / "grey.png", 90, "L")
    put(root / "images" / "train" / ".cache" / "1.png")
    (root / "images" / "train" / "notes.txt").write_text("seen in spring")
    assert len(split_of(root)) == 5


def test_a_list_may_choose_among_class_folders(root: Path) -> None:
    shutil.move(root / "images" / "train" / "Cat", root / "images" / "Cat")
    shutil.move(root / "images" / "train" / "zebra crossing", root / "images" / "dog")
    (root / "train.txt").write_text("Cat/1\ndog/2\n")
    assert told(split_of(root)) == {"Cat/1": ["Cat"], "dog/2": ["dog"]}


def test_classes_txt_gives_the_order_and_may_name_more(root: Path) -> None:
    (root / "classes.txt").write_text("zebra_crossing\nbird\nCat\n")
    split = split_of(root)
    assert split.layout.class_names == ("zebra_crossing", "bird", "Cat")
    assert told(split)["train/zebra crossing/1"] == ["zebra_crossing"]


def test_masks_of_validation_images_tell_more_than_their_folders(root: Path) -> None:
    for place in ("val/Cat/1", "val/plain"):
        put(root / "images" / f"{place}.png", 7)
        put(root / "masks" / f"{place}.png", 2, "L")
    assert told(split_of(root, "val", needed=False)) == {}
    assert told(split_of(root, "val")) == {"val/Cat/1": ["zebra crossing"], "val/plain": ["zebra crossing"]}


def test_validation_images_without_masks_have_the_classes_of_their_folders(root: Path) -> None:
    put(root / "images" / "val" / "Cat" / "1.png")
    assert told(split_of(root, "val")) == {"val/Cat/1": ["Cat"]}
    put(root / "images" / "val" / "bird" / "1.png")
    with pytest.raises(UserError, match=r"val/bird/1\.png is in no class folder"):
        split_of(root, "val")


def test_a_labels_file_with_class_names_counts_and_not_the_folders(root: Path) -> None:
    (root / "classes.txt").write_text("Cat\nbird\n")
    names = ("Cat/1", "Cat/café", "zebra crossing/1", "zebra crossing/2")
    (root / "class_labels.csv").write_text("image,labels\n" + "".join(f"train/{name},bird\n" for name in names))
    assert set(map(tuple, told(split_of(root)).values())) == {("bird",)}


def _beside(root: Path) -> None:
    put(root / "images" / "train" / "0.png")


def _nested(root: Path) -> None:
    put(root / "images" / "train" / "Cat" / "black" / "0.png")


def _empty(root: Path) -> None:
    (root / "images" / "train" / "bird").mkdir()


def _unread(root: Path) -> None:
    (root / "images" / "train" / "bird").mkdir()
    (root / "images" / "train" / "bird" / "1.heic").write_bytes(b"...")


def _twins(root: Path) -> None:
    shutil.copy(root / "images" / "train" / "Cat" / "1.png", root / "images" / "train" / "zebra crossing" / "9.png")


def _labels_too(root: Path) -> None:
    (root / "class_labels.csv").write_text("image,labels\ntrain/Cat/1,Cat\n")


def _background(root: Path) -> None:
    put(root / "images" / "train" / "background" / "0.png", 90)


def _one_class_twice(root: Path) -> None:
    put(root / "images" / "train" / "zebra_crossing" / "0.png", 90)


def _flat(root: Path) -> None:
    shutil.rmtree(root / "images" / "train")
    put(root / "images" / "train" / "0.png")


def _without_split(root: Path) -> None:
    shutil.move(root / "images" / "train" / "Cat", root / "images" / "Cat")
    shutil.rmtree(root / "images" / "train")


def _depths_in_a_list(root: Path) -> None:
    put(root / "images" / "dog" / "1.png", 90)
    (root / "train.txt").write_text("dog/1\ntrain/Cat/1\n")


@pytest.mark.parametrize(
    ("disturb", "words"),
    [
        (_beside, "train/0.png is beside the class folders"),
        (_nested, "train/Cat/black/0.png is deeper than the class folders"),
        (_empty, "the class folder .*train/bird holds no image"),
        (_unread, "the class folder .*train/bird holds no image"),
        (_twins, "are the same image in two class folders"),
        (_labels_too, "classes.txt is missing, and .*class_labels.csv is there"),
        (_background, "'background' is no class"),
        (_one_class_twice, "'zebra.crossing' is named twice"),
        (_flat, "classes.txt is missing.*one folder per class: .*images/train/CLASS"),
        (_without_split, "classes.txt is missing.*one folder per class: .*images/train/CLASS"),
        (_depths_in_a_list, "is deeper than the class folders"),
    ],
)
def test_what_is_uncertain_is_refused(root: Path, disturb: Callable[[Path], None], words: str) -> None:
    disturb(root)
    with pytest.raises(UserError, match=words) as error:
        split_of(root)
    assert is_one_line(str(error.value))


def test_check_data_says_it_too(root: Path, run_tool) -> None:
    put(root / "images" / "val" / "Cat" / "1.png", 99)
    config = root / "config.yaml"
    config.write_text(f'dataset: {{type: folder, root: "{root}", train_split: train}}\n')
    assert "2 classes" in run_tool("check_data.py", config).stdout
    _twins(root)
    done = run_tool("check_data.py", config, code=1)
    assert "error: class-folders (1)" in done.stdout and "the same image in two class folders" in done.stdout


def test_class_names_need_no_second_look(root: Path) -> None:
    layout = find_layout(split_of(root).config)
    assert layout.classes_of_folders("train", layout.names("train")) == {
        name: name.split("/")[1] for name in layout.names("train")
    }
