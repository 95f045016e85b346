"""Five images with masks of three classes, and a network whose untrained maps are not flat."""

from __future__ import annotations

from pathlib import Path

import golden
import numpy as np
import torch
from PIL import Image

from afa.config import Config, ModelConfig
from afa.models import AFANet, build_network

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


def small_config(root: Path) -> Config:
    """The data set, made below ``root``, and settings for the small network."""
    return golden.small_config(
        dataset={"root": str(write_data_set(root)), "train_split": "train"}, test={"long_side": 64}
    )


def small_network(settings: ModelConfig, seed: int = 1) -> AFANet:
    """In training mode. Untrained maps are flat: larger heads make labels differ from pixel to pixel."""
    torch.manual_seed(seed)
    network = build_network(settings, len(CLASS_NAMES) + 1)
    with torch.no_grad():
        network.decoder.linear_pred.weight.mul_(20)
        network.attn_proj.weight.mul_(20)
    return network
