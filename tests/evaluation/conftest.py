from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afa.config import Config, ModelConfig, config_from_dict
from afa.models import AFANet, build_network

CLASS_NAMES = ("disc", "bar", "ring")
SMALL_MODEL = {
    "encoder": "custom",
    "widths": [8, 16, 20, 32],
    "depths": [1, 1, 1, 2],
    "heads": [1, 2, 5, 8],
    "decoder_width": 16,
}
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
    return config_from_dict(
        {
            "dataset": {"root": str(write_data_set(root)), "train_split": "train"},
            "augmentation": {"crop_size": 64},
            "affinity": {"radius": 2},
            "test": {"long_side": 64},
            "model": SMALL_MODEL,
        }
    )


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return small_config(tmp_path / "shapes")


def small_network(settings: ModelConfig, seed: int = 1) -> AFANet:
    torch.manual_seed(seed)
    network = build_network(settings, len(CLASS_NAMES) + 1)
    # Untrained maps are flat: larger heads make labels differ from pixel to pixel.
    with torch.no_grad():
        network.decoder.linear_pred.weight.mul_(20)
        network.attn_proj.weight.mul_(20)
    return network


@pytest.fixture
def network(config: Config) -> AFANet:
    return small_network(config.model)
