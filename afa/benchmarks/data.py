"""How many training images one core prepares per second, and what JPEG decoders cost.

Candidates take turns, image by image and round by round, and processor time is measured, not the clock's: both keep
the figures comparable while other work runs on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import imageio.v3 as imageio
import numpy as np
import torch
from PIL import Image

from afa.benchmarks.pictures import make_jpegs
from afa.config import AugmentationConfig, DatasetConfig
from afa.data.images import read_image
from afa.data.transforms import normalise, training_transform
from afa.errors import UserError

Candidate = Callable[[Path, int], Any]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print two tables.

    Args:
        args: As :func:`afa.commands.benchmark.parse` gives them.

    Returns:
        ``samples``: images per second and core for whole training samples; ``decoders``: the same for decoding, and
        the largest difference to Pillow's pixels; ``ratio_to_baseline``: median ratio, round by round, to the plain
        Pillow baseline.

    Raises:
        UserError: There are no images.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = _find(args.images, args.limit) if args.images else make_jpegs(Path(folder), args.limit)
        for path in paths:
            read_image(path)  # What cannot be read is said in one line, before other decoders meet it.
        samples = {
            "baseline (Pillow)": Baseline(args.crop),
            "afa, resampling pil": TrainingSample(args.crop, "pil"),
            "afa, resampling opencv": TrainingSample(args.crop, "opencv"),
        }
        decoders: dict[str, Candidate] = {
            "pillow": lambda path, _: read_image(path),
            "opencv": lambda path, _: _decode_opencv(path),
            "torchvision": lambda path, _: _decode_torchvision(path),
            "imageio": lambda path, _: imageio.imread(path),
        }
        sample_seconds = measure(samples, paths, args.rounds)
        decoder_seconds = measure(decoders, paths, args.rounds)
        reference = read_image(paths[0]).astype(int)
        differences = {
            name: int(np.abs(np.asarray(decode(paths[0], 0)).astype(int) - reference).max())
            for name, decode in decoders.items()
        }
    baseline = sample_seconds["baseline (Pillow)"]
    figures: dict[str, Any] = {
        "images": len(paths),
        "rounds": args.rounds,
        "crop": args.crop,
        "samples": {name: _rate(seconds) for name, seconds in sample_seconds.items()},
        "ratio_to_baseline": {
            name: round(statistics.median(base / own for base, own in zip(baseline, seconds, strict=True)), 2)
            for name, seconds in sample_seconds.items()
        },
        "decoders": {name: _rate(seconds) for name, seconds in decoder_seconds.items()},
        "largest_difference_to_pillow": differences,
    }
    print(f"{len(paths)} images, crop {args.crop}, one core, medians of {args.rounds} rounds")
    print("training samples          images/s   x baseline")
    for name, rate in figures["samples"].items():
        print(f"  {name:24}{rate:8.1f}{figures['ratio_to_baseline'][name]:13.2f}")
    print("decoders                  images/s   differs from Pillow by")
    for name, rate in figures["decoders"].items():
        print(f"  {name:24}{rate:8.1f}{differences[name]:13d}")
    return figures


def measure(candidates: dict[str, Any], paths: Sequence[Path], rounds: int) -> dict[str, list[float]]:
    """Processor seconds per image of each candidate, one figure per round; they take turns on every image.

    Args:
        candidates: Name -> function of a path and a position, which seeds what is random.
        paths: The images.
        rounds: How often all are gone through, after one image to warm up.
    """
    for candidate in candidates.values():
        candidate(paths[0], 0)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds):
        total = dict.fromkeys(candidates, 0.0)
        for number, path in enumerate(paths):
            for name, candidate in candidates.items():
                start = time.process_time()
                candidate(path, turn * len(paths) + number)
                total[name] += time.process_time() - start
        for name, spent in total.items():
            seconds[name].append(spent / len(paths))
    return seconds


class Baseline:
    """The transform as it is commonly written with Pillow and NumPy."""

    def __init__(self, crop_size: int) -> None:
        self.crop_size = crop_size
        settings = DatasetConfig()
        self.mean = np.asarray(settings.image_mean, np.float32)
        self.std = np.asarray(settings.image_std, np.float32)

    def __call__(self, path: Path, position: int) -> torch.Tensor:
        rng, size = np.random.default_rng(position), self.crop_size
        image = Image.open(path, formats=("JPEG",)).convert("RGB")
        scale = rng.uniform(0.5, 2.0)
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        canvas = Image.new("RGB", (max(size, image.width), max(size, image.height)))
        place = rng.integers(canvas.width - image.width + 1), rng.integers(canvas.height - image.height + 1)
        canvas.paste(image, (int(place[0]), int(place[1])))
        x, y = int(rng.integers(canvas.width - size + 1)), int(rng.integers(canvas.height - size + 1))
        crop = np.asarray(canvas.crop((x, y, x + size, y + size)), np.float32)
        return torch.from_numpy(((crop - self.mean) / self.std).transpose(2, 0, 1).copy())


class TrainingSample:
    """What :class:`afa.data.dataset.TrainingImages` does for an image."""

    def __init__(self, crop_size: int, resampling: str) -> None:
        self.crop_size, self.resampling = crop_size, resampling
        self.dataset, self.augmentation = DatasetConfig(), AugmentationConfig()

    def __call__(self, path: Path, position: int) -> torch.Tensor:
        crop, _ = training_transform(
            read_image(path),
            np.random.default_rng(position),
            crop_size=self.crop_size,
            scale_range=(self.augmentation.scale_min, self.augmentation.scale_max),
            mirror_probability=self.augmentation.mirror_probability,
            resampling=self.resampling,
        )
        return normalise(crop, self.dataset.image_mean, self.dataset.image_std)


def _decode_opencv(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise UserError(f"OpenCV cannot read {path}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_torchvision(path: Path) -> np.ndarray:
    import torchvision.io as io  # as long as PyTorch's own import: here, and in the round that warms up

    return io.decode_jpeg(io.read_file(str(path)), io.ImageReadMode.RGB).permute(1, 2, 0).numpy()


def _rate(seconds: Sequence[float]) -> float:
    return round(1 / statistics.median(seconds), 1)


def _find(folder: Path, count: int) -> list[Path]:
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:count]
    if not paths:
        raise UserError(f"there is no JPEG file in {folder}")
    return paths
