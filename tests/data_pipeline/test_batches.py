from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_sources import make_folder_source, training_images, write_image, write_list, write_mask
from PIL import Image

from afa.config import DatasetConfig
from afa.data.dataset import EvaluationImages
from afa.data.images import DamagedImage
from afa.data.labels import write_labels
from afa.data.layout import find_layout
from afa.data.loader import evaluation_loader, training_loader
from afa.data.sampler import StreamSampler
from afa.errors import UserError

IMAGES = 7


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    """A data set in VOC layout without a labels file: labels come from the masks."""
    root = tmp_path_factory.mktemp("voc")
    names = [f"image_{number}" for number in range(IMAGES)]
    for number, name in enumerate(names):
        size = (40 + 5 * number, 70 - 4 * number)
        write_image(root / "JPEGImages" / f"{name}.jpg", size, seed=number)
        mask = np.zeros(size, np.uint8)
        mask[5:20, 5:20] = number % 3 + 1
        mask[25:30] = 2
        mask[0] = 255
        write_mask(root / "SegmentationClass" / f"{name}.png", mask)
    for split, listed in (("train", names), ("val", names[:3])):
        write_list(root / "ImageSets/Segmentation" / f"{split}.txt", listed)
    (root / "classes.txt").write_text("cat\ndog\ncow\n")
    return DatasetConfig(root=str(root), train_split="train")


def batches(config: DatasetConfig, **settings: Any) -> list[dict[str, Any]]:
    defaults = {"global_batch": 4, "batch_size": 4, "steps": 6}
    images = training_images(config, seed=settings.pop("seed", 3))
    return list(training_loader(images, **{**defaults, **settings}))


def assert_same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one["name"] == other["name"]
        for key in ("image", "class_labels", "valid_box"):
            assert torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype


def test_batch_contents(config: DatasetConfig) -> None:
    (batch,) = batches(config, steps=1)
    assert set(batch) == {"image", "class_labels", "valid_box", "name"}
    assert batch["image"].shape == (4, 3, 48, 48) and batch["image"].dtype == torch.float32
    assert batch["class_labels"].shape == (4, 3) and batch["class_labels"].dtype == torch.float32
    assert batch["valid_box"].shape == (4, 4) and batch["valid_box"].dtype == torch.int64
    padding = -torch.tensor(config.image_mean) / torch.tensor(config.image_std)
    for image, name, labels, (y0, y1, x0, x1) in zip(
        batch["image"], batch["name"], batch["class_labels"], batch["valid_box"], strict=True
    ):
        expected = torch.zeros(3)
        expected[[int(name[-1]) % 3, 1]] = 1
        assert torch.equal(labels, expected)
        outside = torch.ones(48, 48, dtype=torch.bool)
        outside[y0:y1, x0:x1] = False
        assert torch.allclose(image[:, outside], padding[:, None])


@pytest.mark.parametrize("workers", [1, 4])
def test_batches_do_not_depend_on_the_number_of_workers(config: DatasetConfig, workers: int) -> None:
    assert_same(batches(config, workers=workers), batches(config, workers=0))


def test_batches_do_not_depend_on_the_global_random_state(config: DatasetConfig) -> None:
    torch.manual_seed(1)
    first = batches(config)
    torch.manual_seed(2)
    np.random.seed(5)
    state = torch.get_rng_state()
    assert_same(first, batches(config))
    assert torch.equal(state, torch.get_rng_state())


def test_seeds_differ(config: DatasetConfig) -> None:
    assert [batch["name"] for batch in batches(config)] != [batch["name"] for batch in batches(config, seed=4)]


def test_resuming_goes_on_in_the_stream(config: DatasetConfig) -> None:
    assert_same(batches(config, start_step=2, steps=4), batches(config)[2:])


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 2), (4, 1), (2, 1), (1, 2)])
def test_processes_and_micro_batches_share_out_the_same_global_batch(
    config: DatasetConfig, world_size: int, batch_size: int
) -> None:
    whole = batches(config, steps=3)
    shares = [
        batches(config, steps=3, rank=rank, world_size=world_size, batch_size=batch_size) for rank in range(world_size)
    ]
    per_step = 4 // world_size // batch_size
    for step in range(3):
        parts = [part for share in shares for part in share[step * per_step : (step + 1) * per_step]]
        assert [name for part in parts for name in part["name"]] == whole[step]["name"]
        assert torch.equal(torch.cat([part["image"] for part in parts]), whole[step]["image"])


def test_every_epoch_shows_every_image_once() -> None:
    sampler = StreamSampler(7, seed=0, global_batch=3, batch_size=3, steps=14)
    stream = [index for batch in sampler for _, index in batch]
    epochs = [tuple(stream[start : start + 7]) for start in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and len(set(epochs)) == 6
    assert [position for batch in sampler for position, _ in batch] == list(range(42))
    assert len(sampler) == 14


def test_a_batch_larger_than_the_data_set_still_fills() -> None:
    sampler = StreamSampler(2, seed=0, global_batch=5, batch_size=5, steps=2)
    assert [len(batch) for batch in sampler] == [5, 5]


def test_what_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(UserError, match="multiple of 4"):
        StreamSampler(9, seed=0, global_batch=6, batch_size=2, world_size=2, steps=1)
    with pytest.raises(UserError, match="empty"):
        StreamSampler(0, seed=0, global_batch=1, batch_size=1, steps=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_samples(config: DatasetConfig, workers: int) -> None:
    samples = list(evaluation_loader(config, workers=workers))
    assert [sample.sample.name for sample in samples] == ["image_0", "image_1", "image_2"]
    sample = samples[2]
    assert sample.sample.image.shape == (50, 62, 3) and sample.sample.image.dtype == np.uint8
    assert sample.label.shape == (50, 62) and sample.label.dtype == torch.int64
    assert sample.label.unique().tolist() == [0, 2, 3, 255]
    assert sample.sample.class_labels.tolist() == [0, 1, 1]
    with Image.open(Path(config.root) / "JPEGImages/image_2.jpg") as image:
        assert np.array_equal(sample.sample.image, np.array(image))


def test_evaluation_is_shared_out(config: DatasetConfig) -> None:
    names = [[sample.sample.name for sample in evaluation_loader(config, rank=rank, world_size=2)] for rank in range(2)]
    assert names == [["image_0", "image_2"], ["image_1"]]
    assert [sample.sample.name for sample in evaluation_loader(config, limit=2)] == ["image_0", "image_1"]
    assert len(evaluation_loader(config, split="train")) == IMAGES


def test_own_ignore_value_becomes_255(config: DatasetConfig, tmp_path: Path) -> None:
    copy = damaged_copy(config, tmp_path, ())
    mask = np.full((40, 70), 9)
    mask[3:20] = 1
    write_mask(tmp_path / "copy/SegmentationClass/image_0.png", mask)
    sample = EvaluationImages(replace(copy, ignore_index=9))[0]
    assert sample.label.unique().tolist() == [1, 255] and sample.sample.class_labels.tolist() == [1, 0, 0]


def test_labels_from_masks_are_said_and_kept(
    config: DatasetConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(config.root, root, ignore=shutil.ignore_patterns(".class_labels*"))
    copy = replace(config, root=str(root))
    with caplog.at_level(logging.INFO, "afa.data"):
        first = training_images(copy).class_labels
        assert "from its masks" in caplog.text
        caplog.clear()
        again = training_images(copy).class_labels
        assert "from its masks" not in caplog.text and np.array_equal(first, again)
        # A mask replaced by another one counts.
        mask = np.zeros((40, 70), np.uint8)
        mask[:9] = 3
        write_mask(root / "SegmentationClass/new.png", mask)
        (root / "SegmentationClass/new.png").replace(root / "SegmentationClass/image_0.png")
        changed = training_images(copy).class_labels
        # So does one that is written over, which leaves the folder's time as it is.
        (root / "SegmentationClass/image_0.png").write_bytes((root / "SegmentationClass/image_1.png").read_bytes())
        overwritten = training_images(copy).class_labels
    assert changed[0].tolist() == [0, 0, 1] and np.array_equal(changed[1:], first[1:])
    assert np.array_equal(overwritten[0], first[1]) and np.array_equal(overwritten[1:], first[1:])


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_files_that_are_not_there_are_said_at_once(config: DatasetConfig, tmp_path: Path, kind: str) -> None:
    copy = damaged_copy(config, tmp_path, ())
    file = tmp_path / "copy" / ("JPEGImages/image_1.jpg" if kind == "images" else "SegmentationClass/image_1.png")
    file.unlink()
    missing = rf"1 of the 3 {kind} of 'val' are missing, the first is .*{file.name}"
    with pytest.raises(UserError, match=missing):
        EvaluationImages(copy)
    assert len(EvaluationImages(copy, limit=1)) == 1
    assert len(EvaluationImages(replace(copy, bad_image="skip"))) == 3
    if kind == "images":
        with pytest.raises(UserError, match=r"images of 'train' are missing"):
            training_images(copy)
        training_images(replace(copy, bad_image="skip"))


def test_a_path_of_the_settings_lies_below_the_root_first(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "elsewhere").mkdir()
    assert find_layout(replace(config, mask_dir="SegmentationClass")).masks == Path(config.root, "SegmentationClass")
    assert find_layout(replace(config, mask_dir="elsewhere")).masks == Path("elsewhere")


def damaged_copy(config: DatasetConfig, tmp_path: Path, numbers: tuple[int, ...]) -> DatasetConfig:
    shutil.copytree(config.root, tmp_path / "copy")
    for number in numbers:
        (tmp_path / f"copy/JPEGImages/image_{number}.jpg").write_bytes(b"no picture")
    return replace(config, root=str(tmp_path / "copy"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_stops_with_its_name(config: DatasetConfig, tmp_path: Path, workers: int) -> None:
    copy = damaged_copy(config, tmp_path, (2,))
    with pytest.raises(DamagedImage, match=r"image_2\.jpg") as caught:
        batches(copy, workers=workers)
    assert "Traceback" not in str(caught.value)


def test_a_damaged_image_may_be_skipped(
    config: DatasetConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = replace(damaged_copy(config, tmp_path, (2, 3)), bad_image="skip")
    first = batches(copy)
    assert caplog.text.count("image_2.jpg") == 1
    names = [name for batch in first for name in batch["name"]]
    assert "image_2" not in names and "image_3" not in names and len(names) == 24
    assert_same(first, batches(copy, workers=2))
    # All others are what they are without the damage.
    sound = [name for batch in batches(config) for name in batch["name"]]
    kept = [(one, other) for one, other in zip(names, sound, strict=True) if other not in ("image_2", "image_3")]
    assert kept and all(one == other for one, other in kept)


def test_nothing_but_damaged_images_ends(config: DatasetConfig, tmp_path: Path) -> None:
    copy = replace(damaged_copy(config, tmp_path, tuple(range(IMAGES))), bad_image="skip")
    with pytest.raises(DamagedImage, match="run 'afa check'"):
        batches(copy)


@pytest.mark.parametrize(
    ("remove", "expected"),
    [
        ("JPEGImages", "afa prepare voc"),
        ("ImageSets/Segmentation/train.txt", "train.txt"),
        ("SegmentationClass", "no image-level labels"),
        ("", "does not exist"),
    ],
)
def test_missing_parts_are_one_line(config: DatasetConfig, tmp_path: Path, remove: str, expected: str) -> None:
    shutil.copytree(config.root, tmp_path / "copy")
    (tmp_path / "copy" / remove).rename(tmp_path / "away")
    with pytest.raises(UserError, match=expected) as caught:
        training_images(replace(config, root=str(tmp_path / "copy")))
    assert "\n" not in str(caught.value)


def test_labels_file_must_know_every_training_image(config: DatasetConfig, tmp_path: Path) -> None:
    labels = {f"image_{number}": ["cat"] for number in range(IMAGES - 1)}
    write_labels(tmp_path / "labels.json", labels)
    with pytest.raises(UserError, match="image_6"):
        training_images(replace(config, labels=str(tmp_path / "labels.json")))
    write_labels(tmp_path / "labels.json", {**labels, "image_6": ["cow"]})
    images = training_images(replace(config, labels=str(tmp_path / "labels.json")))
    assert images.class_labels[6].tolist() == [0, 0, 1]


def test_labels_file_wins_over_the_mask_in_evaluation(config: DatasetConfig, tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.csv", {"image_1": ["cow"]})
    images = EvaluationImages(replace(config, labels=str(tmp_path / "labels.csv")))
    assert images[1].sample.class_labels.tolist() == [0, 0, 1]
    # What the file does not name is taken from the mask.
    assert images[0].sample.class_labels.tolist() == [1, 1, 0]


def test_evaluation_refuses_what_does_not_fit(config: DatasetConfig, tmp_path: Path) -> None:
    copy = damaged_copy(config, tmp_path, ())
    write_mask(tmp_path / "copy/SegmentationClass/image_0.png", np.zeros((41, 70)))
    write_mask(tmp_path / "copy/SegmentationClass/image_1.png", np.full((45, 66), 4))
    with pytest.raises(DamagedImage, match="70 x 41 pixels, its image 70 x 40"):
        EvaluationImages(copy)[0]
    with pytest.raises(DamagedImage, match=r"image_1\.png.*value 4"):
        EvaluationImages(copy)[1]


def test_own_folder(tmp_path: Path) -> None:
    root = make_folder_source(tmp_path / "mine")
    config = DatasetConfig(type="folder", root=str(root), train_split="train")
    write_labels(root / "class_labels.csv", {f"train/picture {number}": ["red panda"] for number in range(5)})
    images = training_images(config)
    assert images.images.names == [f"train/picture {number}" for number in range(5)]
    assert images.class_labels.tolist() == [[0, 1]] * 5
    assert [images[0, index]["image"].shape for index in range(5)] == [(3, 48, 48)] * 5
    sample = EvaluationImages(config)[1]
    assert sample.sample.class_labels.tolist() == [0, 1] and sample.label.max() == 2
    # A list of one's own wins over the sub-folders.
    write_list(root / "train.txt", ["train/picture 3.webp", "train/picture 1"])
    assert training_images(config).images.names == ["train/picture 3", "train/picture 1"]


def test_own_folder_without_masks_trains_but_is_not_scored(tmp_path: Path) -> None:
    root = make_folder_source(tmp_path / "mine")
    shutil.rmtree(root / "masks")
    config = DatasetConfig(type="folder", root=str(root), train_split="train")
    with pytest.raises(UserError, match="no image-level labels"):
        training_images(config)
    write_labels(root / "class_labels.json", {f"train/picture {number}": ["cat"] for number in range(5)})
    assert len(training_images(config)) == 5
    with pytest.raises(UserError, match="evaluation needs masks"):
        EvaluationImages(config)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    root = make_folder_source(tmp_path / "mine")
    write_image(root / "images/train/picture 0.png")
    with pytest.raises(UserError, match="same name"):
        EvaluationImages(DatasetConfig(type="folder", root=str(root)))
