from __future__ import annotations

import json
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from data_sources import kill_half_way, stored_mask, tool_command, tool_environment, training_images, tree_bytes
from PIL import Image
from scipy import ndimage

from afa.config import DatasetConfig
from afa.data.dataset import EvaluationImages
from afa.data.saliency import read_saliency
from afa.data.shapes import (
    CLASS_NAMES,
    SALIENCY_FOLDER,
    SMALLEST_SIZE,
    SaliencyStyle,
    ShapesStyle,
    draw_picture,
    draw_saliency,
    make_shapes,
)
from afa.errors import UserError

STYLE = ShapesStyle()


@cache
def picture(number: int, style: ShapesStyle) -> tuple[np.ndarray, np.ndarray]:
    return draw_picture(np.random.default_rng((7, number)), style)


def pictures(count: int, style: ShapesStyle = STYLE) -> list[tuple[np.ndarray, np.ndarray]]:
    """For all tests, which only look at them."""
    return [picture(number, style) for number in range(count)]


def saturated(image: np.ndarray) -> np.ndarray:
    return np.ptp(image.astype(int), axis=2) > 70


def test_pictures_are_a_function_of_the_generator() -> None:
    first, again = (draw_picture(np.random.default_rng(3), STYLE) for _ in range(2))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert first[0].shape == (STYLE.size, STYLE.size, 3) and first[0].dtype == np.uint8 and first[1].dtype == np.uint8


def test_emblems_mark_bodies_and_cover_at_most_60_percent() -> None:
    classes: set[int] = set()
    for image, mask in pictures(60):
        emblem = saturated(image)
        assert not (emblem & (mask == 0)).any(), "saturated colours lie on bodies only"
        # Objects that touch share a region: the share holds for each of them, so for all of them together.
        for class_id in set(np.unique(mask)) - {0}:
            classes.add(int(class_id))
            share = emblem[mask == class_id].mean()
            assert 0.03 < share <= 0.6
            hue = image[(mask == class_id) & emblem].mean(axis=0)
            expected = {1: (1, 0, 0), 2: (0, 1, 0), 3: (0, 0, 1), 4: (1, 1, 0), 5: (1, 0, 1)}[int(class_id)]
            assert ((hue > hue.mean() * 0.85) == np.array(expected, bool)).all()
    assert classes == {1, 2, 3, 4, 5}


def test_backgrounds_and_bodies_are_weakly_saturated() -> None:
    for image, mask in pictures(20):
        assert np.ptp(image[mask == 0].mean(axis=0)) < 30
        assert np.percentile(np.ptp(image[mask == 0].astype(int), axis=1), 99) < 40


def test_bodies_stand_out_from_the_background() -> None:
    differences = []
    for image, mask in pictures(30):
        grey = image.mean(axis=2)
        regions, count = ndimage.label(mask > 0)
        for number in range(1, count + 1):
            body = (regions == number) & ~saturated(image)
            ring = ndimage.binary_dilation(regions == number, iterations=6) & (mask == 0)
            differences.append(abs(np.median(grey[body]) - np.median(grey[ring])))
    assert np.mean(np.array(differences) > 20) > 0.9


def test_one_to_three_objects() -> None:
    single = ShapesStyle(max_objects=1)
    for _, mask in pictures(10, single):
        assert ndimage.label(mask > 0)[1] == 1 and len(np.unique(mask)) == 2
    counts = [ndimage.label(mask > 0)[1] for _, mask in pictures(60)]
    assert set(counts) == {1, 2, 3}


def test_the_tool_makes_a_data_set_that_the_loaders_read(tmp_path: Path, run_tool) -> None:
    root = tmp_path / "shapes"
    run_tool("make_shapes.py", root, "--train", 6, "--val", 3, "--size", 96, "--workers", 1)
    config = DatasetConfig(root=str(root), train_split="train")
    images = training_images(config, crop_size=64)
    assert len(images) == 6 and images.images.layout.class_names == CLASS_NAMES
    evaluation = EvaluationImages(config)
    assert len(evaluation) == 3
    for number in range(3):
        sample = evaluation[number]
        classes = [class_id for class_id in sample.label.unique().tolist() if class_id]
        assert np.flatnonzero(sample.sample.class_labels).tolist() == [class_id - 1 for class_id in classes]
        assert sample.sample.image.shape == (96, 96, 3)
    # Training labels are those of the masks, although they come from the labels file.
    for name, labels in zip(images.images.names, images.class_labels, strict=True):
        shown = np.unique(stored_mask(root / "SegmentationClass" / f"{name}.png"))
        assert np.flatnonzero(labels).tolist() == [class_id - 1 for class_id in shown if class_id]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    run_tool("make_shapes.py", root, "--train", 6, "--val", 3, "--size", 96)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_seeds_differ_and_splits_differ(tmp_path: Path) -> None:
    style = ShapesStyle(size=64)
    for seed in (0, 1):
        make_shapes(tmp_path / str(seed), train=1, val=1, seed=seed, style=style)
    images = [np.array(Image.open(path)).tobytes() for path in sorted(tmp_path.rglob("*.jpg"))]
    assert len(images) == len(set(images)) == 4


def test_killed_half_way_it_goes_on_to_the_same_bytes(tmp_path: Path, run_tool) -> None:
    arguments = ("--train", 66, "--val", 2, "--size", 32)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_tool("make_shapes.py", whole, *arguments, "--workers", 2)
    masks = killed / "SegmentationClass"
    kill_half_way(masks, 5, "make_shapes.py", killed, *arguments, "--workers", 1)
    assert not (killed / "manifest.json").exists()
    # One picture without its mask, as a kill between the two leaves it.
    min(masks.glob("[!.]*.png")).unlink()
    run_tool("make_shapes.py", killed, *arguments, "--workers", 1)
    assert tree_bytes(killed) == tree_bytes(whole)


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    command = tool_command("make_shapes.py", tmp_path / "shapes", "--train", 3000, "--workers", 2)
    process = subprocess.Popen(command, env=tool_environment(), start_new_session=True, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("shapes/SegmentationClass/[!.]*.png")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and _group_lives(process.pid):
        time.sleep(0.05)
    assert not _group_lives(process.pid)


def _group_lives(group: int) -> bool:
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(process_group) == group and state != "Z":
            return True
    return False


def test_foreign_folders_and_other_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        make_shapes(tmp_path / "full", train=1, val=1)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    make_shapes(tmp_path / "made", train=1, val=1)
    with pytest.raises(UserError, match="other settings"):
        make_shapes(tmp_path / "made", train=2, val=1)
    shutil.rmtree(tmp_path / "made")
    make_shapes(tmp_path / "made", train=2, val=1)
    assert json.loads((tmp_path / "made/manifest.json").read_text())["counts"] == {"train": 2, "val": 1}
    with pytest.raises(UserError, match="at least one"):
        make_shapes(tmp_path / "none", train=0, val=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "31"], "32 is the least"),
        (["--seed", "-1"], "the seed -1 is below 0"),
        (["--val", "0"], "at least one training and one validation image"),
    ],
)
def test_impossible_wishes_are_one_line_and_leave_nothing(
    tmp_path: Path, run_tool, arguments: list[str], message: str
) -> None:
    done = run_tool("make_shapes.py", tmp_path / "shapes", *arguments, code=2)
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "shapes").exists()


def test_smallest_pictures_can_be_drawn() -> None:
    image, mask = draw_picture(np.random.default_rng(0), ShapesStyle(size=SMALLEST_SIZE))
    assert image.shape == (SMALLEST_SIZE, SMALLEST_SIZE, 3) and mask.any()


def maps(count: int, style: SaliencyStyle) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks and saliency maps."""
    masks = [mask for _, mask in pictures(count)]
    return [(mask, draw_saliency(np.random.default_rng((3, n)), mask, style)) for n, mask in enumerate(masks)]


def test_saliency_follows_objects_and_misses_some() -> None:
    plain = SaliencyStyle(missed=0, distractor=0, shift=(0, 0), level=(0.8, 0.8), clouds=0.1)
    for mask, saliency in maps(20, plain):
        assert saliency.shape == mask.shape and saliency.dtype == np.uint8
        assert saliency.max() <= 0.8 * 255 + 1
        inside = ndimage.binary_erosion(mask > 0, iterations=8)
        outside = ~ndimage.binary_dilation(mask > 0, iterations=8)
        assert saliency[outside].max() <= 0.1 * 255 + 1
        assert (saliency[inside] > 100).mean() > 0.9
        edge = (saliency > 60) & (saliency < 140)
        assert edge.any(), "edges are soft"
    shown, truth, missed = [], [], 0
    for mask, saliency in maps(60, SaliencyStyle()):
        shown.append(saliency > 100)
        truth.append(mask > 0)
        regions, count = ndimage.label(mask > 0)
        missed += sum(saliency[regions == number].mean() < 60 for number in range(1, count + 1))
    both = np.logical_and(shown, truth).sum() / np.logical_or(shown, truth).sum()
    assert 0.7 < both < 0.93 and missed > 3, "imperfect on purpose"


def test_distractors_show_where_nothing_is() -> None:
    style = SaliencyStyle(missed=0, distractor=1, shift=(0, 0), clouds=0)
    beside = [
        (saliency[~ndimage.binary_dilation(mask > 0, iterations=10)] > 100).any() for mask, saliency in maps(30, style)
    ]
    assert np.mean(beside) > 0.3


def test_saliency_changes_no_image_and_comes_to_a_data_set_of_an_earlier_version(tmp_path: Path) -> None:
    style = ShapesStyle(size=64)
    root = make_shapes(tmp_path / "shapes", train=3, val=1, seed=5, style=style)
    whole = tree_bytes(root)
    for split, number in (("train", 2), ("val", 0)):
        image, mask = draw_picture(np.random.default_rng((5, ("train", "val").index(split), number)), style)
        assert np.array_equal(stored_mask(root / "SegmentationClass" / f"{split}_{number:05d}.png"), mask)
        Image.fromarray(image).save(tmp_path / "alone.jpg", quality=style.jpeg_quality)
        assert (tmp_path / "alone.jpg").read_bytes() == whole[f"JPEGImages/{split}_{number:05d}.jpg"]
        assert read_saliency(root / SALIENCY_FOLDER / f"{split}_{number:05d}.png").shape == (64, 64)
    assert sum(name.startswith(SALIENCY_FOLDER) for name in whole) == 4
    shutil.rmtree(root / SALIENCY_FOLDER)
    kept = {path: path.stat().st_mtime_ns for path in root.rglob("*.[jpt]*g")}
    make_shapes(root, train=3, val=1, seed=5, style=style)
    assert tree_bytes(root) == whole
    assert all(path.stat().st_mtime_ns == time_of_change for path, time_of_change in kept.items())
