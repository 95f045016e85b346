"""Images to measure with: nothing outside the package is needed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor


def noise_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Make an image of cloudy noise and a few discs.

    At 500 x 375 it needs about 150 000 lattice vertices, somewhat more than a photograph (100 000 for a portrait).

    Args:
        height: In pixels.
        width: In pixels.
        seed: Gives another image.

    Returns:
        [3, H, W] uint8.
    """
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]).clamp(min=1 / width)
    white = torch.fft.rfft2(torch.randn(3, height, width, generator=generator))
    noise = torch.fft.irfft2(white / frequency**1.6, s=(height, width))
    # Colours go together in photographs: much of the noise is shared.
    noise = 0.4 * noise + noise.mean(dim=0, keepdim=True)
    noise = 128 + 55 * noise / noise.std()
    for _ in range(4):
        extent = torch.tensor([height, width, min(height, width) / 4])
        y, x, radius = (torch.rand(3, generator=generator) * extent).tolist()
        distance = torch.hypot(torch.arange(height)[:, None] - y, torch.arange(width)[None] - x)
        noise += (distance < radius) * (torch.rand(3, 1, 1, generator=generator) * 160 - 80)
    return noise.clamp(0, 255).to(torch.uint8)


def make_jpegs(folder: Path, count: int, size: tuple[int, int] = (375, 500)) -> list[Path]:
    """Images with detail at all scales as JPEG; those of VOC's size, (H, W) = (375, 500), take about 70 kB each."""
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = np.full((*size, 3), 128.0, np.float32)
        for cells in (4, 16, 64, 250, 500):
            noise = rng.normal(0, 120 / cells**0.5, (cells * 3 // 4, cells, 3)).astype(np.float32)
            image += cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
        path = folder / f"{number}.jpg"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=92)
        paths.append(path)
    return paths
