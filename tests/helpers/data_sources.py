"""Small data sets as they come from their makers, with hand-made truth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afa.config import DatasetConfig
from afa.data.dataset import TrainingImages
from afa.data.transforms import ColourJitter
from afa.methods.afa.method import training_sample

REPOSITORY = Path(__file__).parents[2]
TOOL_VARIABLES = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def tool_command(tool: str, *arguments: object) -> list[str]:
    return [sys.executable, str(REPOSITORY / "tools" / tool), *map(str, arguments)]


def tool_environment() -> dict[str, str]:
    return {**os.environ, **TOOL_VARIABLES}


# A command that dies, as by kill -9, when it has written so many masks and is about to give the next one its name.
DIES_HALF_WAY = """
import os, runpy, signal, sys
left, folder, replace = int(sys.argv[1]), sys.argv[2], os.replace
def count(source, target):
    global left
    if os.path.dirname(target) == folder:
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    replace(source, target)
os.replace = count
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def kill_half_way(masks: Path, files: int, tool: str, *arguments: object) -> None:
    """Run a command that dies when a folder holds so many masks; the next one lies half-written beside them."""
    python, *script = tool_command(tool, *arguments)
    done = subprocess.run([python, "-c", DIES_HALF_WAY, str(files), str(masks), *script], env=tool_environment())
    assert done.returncode == -signal.SIGKILL
    assert len(list(masks.glob("[!.]*.png"))) == files and len(list(masks.glob(".*.part.png"))) == 1


def write_image(path: Path, size: tuple[int, int] = (48, 64), seed: int = 0, **options: Any) -> None:
    """Smooth random colours: survives JPEG. Size is height, width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(path, **options)


def write_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8)).save(path)


def write_list(path: Path, names: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def stored_mask(path: Path) -> np.ndarray:
    """A mask file's values as a plain reader sees them."""
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.array(image)


def tree_bytes(root: Path) -> dict[str, bytes]:
    """Every file below a folder with its content; links to folders are not followed."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


VOC_TRAIN, VOC_VAL = ("2007_000001", "2007_000002"), ("2007_000003", "2007_000004")
SBD_TRAIN, SBD_VAL = ("2007_000002", "2008_000010", "2008_000011"), ("2007_000003", "2008_000012")


def voc_truth(name: str) -> np.ndarray:
    """VOC's mask of an image: with an ignored border, which SBD's has not."""
    mask = sbd_truth(name)
    mask[:3] = 255
    return mask


def sbd_truth(name: str) -> np.ndarray:
    rng = np.random.default_rng(int(name[-2:]))
    mask = np.zeros((48, 64), np.uint8)
    for class_id in rng.choice(np.arange(1, 21), 2, replace=False):
        y, x = rng.integers(4, 30), rng.integers(0, 40)
        mask[y : y + 14, x : x + 20] = class_id
    return mask


def make_voc_source(root: Path) -> Path:
    """VOC 2012 as its archive unpacks, and SBD's folder 'dataset' beside it, both small."""
    from scipy.io import savemat

    for name in {*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL}:
        write_image(root / "JPEGImages" / f"{name}.jpg", seed=int(name[-2:]), quality=95)
    for name in (*VOC_TRAIN, *VOC_VAL):
        write_mask(root / "SegmentationClass" / f"{name}.png", voc_truth(name))
    write_list(root / "ImageSets/Segmentation/train.txt", VOC_TRAIN)
    write_list(root / "ImageSets/Segmentation/val.txt", VOC_VAL)
    write_list(root / "ImageSets/Segmentation/trainval.txt", [*VOC_TRAIN, *VOC_VAL])
    (root / "dataset/cls").mkdir(parents=True)
    for name in (*SBD_TRAIN, *SBD_VAL):
        # SBD's structure: GTcls with Boundaries (a cell of sparse arrays), Segmentation, CategoriesPresent.
        mask = sbd_truth(name)
        content = {
            "Boundaries": np.zeros((20, 1), object),
            "Segmentation": mask,
            "CategoriesPresent": np.unique(mask[mask > 0])[:, None],
        }
        savemat(root / "dataset/cls" / f"{name}.mat", {"GTcls": content}, do_compression=True)
    write_list(root / "dataset/train.txt", SBD_TRAIN)
    write_list(root / "dataset/val.txt", SBD_VAL)
    return root


def rectangle(x: int, y: int, width: int, height: int) -> list[float]:
    """A polygon whose raster is exactly the rectangle's pixels."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def run_lengths(region: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run-length encoding, column by column, beginning with the zeros."""
    counts, value, run = [], False, 0
    for pixel in region.flatten(order="F"):
        if pixel != value:
            counts.append(run)
            value, run = pixel, 0
        run += 1
    return {"size": list(region.shape), "counts": [*counts, run]}


COCO_CATEGORIES = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 13, "name": "stop sign"}]


def make_coco_source(root: Path, split_sizes: dict[str, int] | None = None) -> Path:
    """COCO as its archives unpack, small: polygons, run lengths, crowds, overlaps, images without annotation."""
    for split, count in (split_sizes or {"train": 4, "val": 3}).items():
        images, annotations = [], []
        for number in range(count):
            name = f"COCO_{split}2014_{number + 1:012d}.jpg"
            write_image(root / f"{split}2014" / name, seed=number + 100 * (split == "val"), quality=95)
            images.append({"id": number + 1, "file_name": name, "height": 48, "width": 64})
            annotations += coco_objects(number)
        for place, annotation in enumerate(annotations):
            annotation["id"] = place + 1
        path = root / "annotations" / f"instances_{split}2014.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": COCO_CATEGORIES}))
    return root


def coco_objects(number: int) -> list[dict[str, Any]]:
    """The annotations of an image; the one of number 1 has none."""
    crowd = np.zeros((48, 64), bool)
    crowd[0:40, 10:60] = True
    ring = np.zeros((48, 64), bool)
    ring[5:15, 5:15] = True
    ring[8:12, 8:12] = False
    kinds: list[list[tuple[int, int, Any]]] = [
        # The small stop sign comes before the large car that covers it, and two polygons make one person.
        [(13, 0, [rectangle(20, 20, 6, 6)]), (3, 0, [rectangle(10, 10, 30, 20)]),
         (1, 0, [rectangle(50, 2, 8, 8), rectangle(50, 30, 8, 8)])],
        [],
        # A crowd smaller than the car and listed after it lies beneath it all the same; a run-length encoded ring.
        [(3, 0, [rectangle(0, 0, 64, 44)]), (1, 1, run_lengths(crowd)), (13, 0, run_lengths(ring))],
        [(1, 1, run_lengths(crowd))],
    ]  # fmt: skip
    return [
        {"image_id": number + 1, "category_id": category, "iscrowd": is_crowd, "segmentation": segmentation, "area": 1}
        for category, is_crowd, segmentation in kinds[number % 4]
    ]


def coco_truth(number: int, crowd_value: int = 1) -> np.ndarray:
    mask = np.zeros((48, 64), np.uint8)
    if number % 4 == 0:
        mask[10:30, 10:40] = 2
        mask[20:26, 20:26] = 3
        mask[2:10, 50:58] = 1
        mask[30:38, 50:58] = 1
    elif number % 4 == 2:
        mask[0:40, 10:60] = crowd_value
        mask[0:44, 0:64] = 2
        ring = np.zeros_like(mask, bool)
        ring[5:15, 5:15] = True
        ring[8:12, 8:12] = False
        mask[ring] = 3
    elif number % 4 == 3:
        mask[0:40, 10:60] = crowd_value
    return mask


def make_folder_source(root: Path) -> Path:
    """An own folder: images of several kinds in sub-folders, class names, masks, no labels and no lists."""
    (root / "images").mkdir(parents=True)
    (root / "classes.txt").write_text("cat\nred panda\n")
    for split, count in (("train", 5), ("val", 2)):
        for number in range(count):
            suffix = ("jpg", "png", "JPG", "webp", "bmp")[number % 5]
            write_image(root / "images" / split / f"picture {number}.{suffix}", seed=number + 50 * (split == "val"))
            mask = np.zeros((48, 64), np.uint8)
            mask[10:30, 10:40] = 1 + number % 2
            write_mask(root / "masks" / split / f"picture {number}.png", mask)
    return root


def training_images(
    config: DatasetConfig, *, crop_size: int = 48, seed: int = 0, needs: Sequence[str] = ("class_labels",)
) -> TrainingImages:
    """The training images of a data set with AFA's transform."""
    transform = partial(
        training_sample,
        crop_size=crop_size,
        scale_range=(0.5, 2.0),
        mirror_probability=0.5,
        resampling="pil",
        jitter=ColourJitter(),
        mean=config.image_mean,
        std=config.image_std,
    )
    return TrainingImages(config, transform, needs=needs, seed=seed)
