"""Five images with masks of three classes, and a method whose untrained maps are not flat."""

from __future__ import annotations

from pathlib import Path

import golden
import numpy as np
import torch
from PIL import Image

from afa.config import config_to_dict
from afa.methods import build_method
from afa.methods.afa.config import AFAConfig
from afa.methods.afa.method import AFA
from afa.methods.base import SingleProcess
from afa.weights import pack_metadata, save_network
from afa.weights.facts import FACTS_FILE, WEIGHTS_FILE, pack_facts
from afa.weights.reading import file_checksum

CLASS_NAMES = ("disc", "bar", "ring")
SIZES = [(40, 56), (64, 48), (33, 47), (50, 50), (48, 64)]


def write_data_set(root: Path) -> Path:
    """Five images of several sizes in VOC layout, masks with ignored pixels."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"image_{number}" for number in range(len(SIZES))]
    for number, (name, (height, width)) in enumerate(zip(names, SIZES, strict=True)):
        image = rng.integers(0, 255, (height, width, 3), np.uint8)
        mask = np.zeros((height, width), np.uint8)
        mask[8:20, 5:25] = number % 3 + 1
        mask[25:32, 20:40] = (number + 1) % 3 + 1
        mask[0:3] = 255
        image[mask == 1] //= 3
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
    for split in ("train", "val"):
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    return root


def small_config(root: Path) -> AFAConfig:
    """The data set, made below ``root``, and settings for the small network."""
    return golden.small_config(
        dataset={"root": str(write_data_set(root)), "train_split": "train"}, test={"long_side": 64}
    )


def small_method(config: AFAConfig, seed: int = 1) -> AFA:
    """In training mode. Untrained maps are flat: larger heads make labels differ from pixel to pixel."""
    torch.default_generator.manual_seed(seed)
    method = build_method(config, CLASS_NAMES, SingleProcess())
    assert isinstance(method, AFA)
    with torch.no_grad():
        method.network.decoder.linear_pred.weight.mul_(20)
        method.network.attn_proj.weight.mul_(20)
    return method


def write_checkpoint(folder: Path, config: AFAConfig, seed: int, step: int) -> Path:
    """A checkpoint folder, as training leaves it."""
    weights = folder / WEIGHTS_FILE
    save_network(small_method(config, seed).network, weights, pack_metadata(config, CLASS_NAMES, step))
    facts = {"step": step, "config": config_to_dict(config), "class_names": list(CLASS_NAMES)}
    (folder / FACTS_FILE).write_text(pack_facts(facts, {WEIGHTS_FILE: file_checksum(weights)}))
    return folder
