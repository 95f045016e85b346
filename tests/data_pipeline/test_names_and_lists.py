"""How images are named in lists, label files and folders, and what training makes of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from data_sources import write_image, write_list

from afa.config import AugmentationConfig, DatasetConfig
from afa.data.dataset import TrainingImages
from afa.data.labels import write_labels
from afa.data.names import image_key

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
    return TrainingImages(config, AugmentationConfig(crop_size=16), seed=0)


def test_the_fingerprint_is_that_of_the_content(voc: DatasetConfig, tmp_path: Path) -> None:
    def fingerprint(names: Sequence[str], labels: dict[str, list[str]], classes: str = "cat\nred panda\n") -> str:
        write_list(tmp_path / "train.txt", names)
        write_labels(tmp_path / "labels.csv", labels)
        (tmp_path / "names.txt").write_text(classes)
        own = {"name_list_dir": tmp_path, "labels": tmp_path / "labels.csv", "class_names": tmp_path / "names.txt"}
        return training(replace(voc, **{key: str(path) for key, path in own.items()})).fingerprint

    known = training(voc).fingerprint
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
