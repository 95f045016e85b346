"""Predicting a large photo as tools/infer.py does, and the label of its size alone, beside the plain way to make it."""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from afa.benchmarks.pictures import noise_image
from afa.data.inputs import CLASS_LABELS
from afa.data.samples import Sample
from afa.errors import UserError
from afa.maps import Maps
from afa.methods import build_method, config_from_dict
from afa.methods.base import Found, SegmentationProtocol, SingleProcess
from afa.ops.cam import resize
from afa.prediction.images import find_pictures
from afa.prediction.inference import Inference
from afa.prediction.predictor import Predictor
from afa.prediction.results import WantedResults

# The network is not what is measured here.
_SMALL_MODEL = {
    "encoder": "custom",
    "widths": [8, 16, 20, 32],
    "depths": [1, 1, 1, 2],
    "heads": [1, 2, 5, 8],
    "decoder_width": 16,
}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table.

    Args:
        args: As :func:`afa.commands.benchmark.parse` gives them.

    Returns:
        Seconds of processor time, each the median: ``network``, its passes and the CAMs; ``rest``, everything else
        that ``tools/infer.py`` does with the photo; ``label`` and ``label_plain``, the label of the photo's size from
        scores of a quarter of the network's size. ``same``: whether these two are equal. ``cam_file_mb``, and
        ``peak_mb``, the process's peak memory after the predictions.

    Raises:
        UserError: An argument makes no sense.
    """
    if args.present >= args.classes:
        raise UserError(f"--present {args.present} of --classes {args.classes}: the background is one of the classes")
    if args.threads:
        torch.set_num_threads(args.threads)
    height = int((args.megapixels * 1e6 * 3 / 4) ** 0.5)
    size = (height, height * 4 // 3)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        figures |= _predict(args, size, Path(folder))
    figures |= _labels(args.classes, size, args.repeats)
    print(
        f"photo of {size[1]} x {size[0]}, {args.classes} classes, {args.present} in the photo, "
        f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    )
    print(f"network's passes and CAMs   {figures['network']:8.2f} s of processor time")
    print(f"everything else             {figures['rest']:8.2f} s")
    print(f"the label alone             {figures['label']:8.2f} s; all scores resized: {figures['label_plain']:.2f} s")
    print(f"labels equal to the pixel   {'yes' if figures['same'] else 'NO':>8}")
    print(f"file of CAMs, peak memory   {figures['cam_file_mb']:8.2f} MB, {figures['peak_mb']:.0f} MB")
    return figures


def _predict(args: argparse.Namespace, size: tuple[int, int], folder: Path) -> dict[str, float]:
    """A small network's prediction of a JPEG, with all results."""
    photo = folder / "photo.jpg"
    # Made small and enlarged: making it must not be what takes most memory.
    pixels = noise_image(max(16, size[0] // 4), max(16, size[1] // 4)).permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).resize(size[::-1]).save(photo, quality=92)
    torch.manual_seed(0)
    names = [f"class{number}" for number in range(1, args.classes)]
    method = build_method(config_from_dict({"model": _SMALL_MODEL}), names, SingleProcess())
    method.network.eval()
    in_network = 0.0
    predict: Callable[..., list[Found]] = method.predict

    def timed(samples: Sequence[Sample], wanted: Sequence[str], protocol: SegmentationProtocol) -> list[Found]:
        nonlocal in_network
        start = time.process_time()
        found = predict(samples, wanted, protocol)
        in_network += time.process_time() - start
        return found

    method.predict = timed  # type: ignore[method-assign]
    class_labels = np.zeros(args.classes - 1, np.float32)
    class_labels[: args.present] = 1
    out = folder / "out"
    pictures = find_pictures([photo], without=out).pictures
    network, rest = [], []
    for _ in range(args.repeats):
        predictor = Predictor(method, method.config, inputs=[CLASS_LABELS])
        inference = Inference(predictor, out, WantedResults(maps="cam"), {"photo": class_labels})
        in_network, start = 0.0, time.process_time()
        inference.run(pictures)
        network.append(in_network)
        rest.append(time.process_time() - start - in_network)
    return {
        "network": median(network),
        "rest": median(rest),
        "cam_file_mb": (out / "cams/photo.npz").stat().st_size / 1e6,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def _labels(classes: int, size: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Of scores as smooth as a segmentation's, in turn."""
    generator = torch.Generator().manual_seed(0)
    scores = 3 * resize(torch.randn(1, classes, 6, 8, generator=generator), (96, 128))
    scores += 0.1 * torch.randn(scores.shape, generator=generator)
    maps = Maps.of_all_classes(scores, has_background=True)
    jobs = {"label": lambda: maps.label(size), "label_plain": lambda: _plain(scores, size)}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    results = {}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.process_time()
            results[name] = job()
            seconds[name].append(time.process_time() - start)
    same = torch.equal(results["label"], results["label_plain"])
    return {**{name: median(times) for name, times in seconds.items()}, "same": same}


def _plain(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize each class's scores, then compare."""
    best = resize(scores[:, :1], size)[:, 0]
    label = torch.zeros(best.shape, dtype=torch.int64)
    for index in range(1, scores.shape[1]):
        own = resize(scores[:, index : index + 1], size)[:, 0]
        label = torch.where(own > best, index, label)
        best = torch.maximum(best, own)
    return label
