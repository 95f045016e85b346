"""DenseCRF: time, memory and agreement beside pydensecrf, on the same machine in the same run."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afa.benchmarks.pictures import noise_image
from afa.benchmarks.timing import time_in_turn
from afa.data.images import read_image
from afa.errors import UserError
from afa.ops.dense_crf import DenseCRF


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table.

    Args:
        args: As :func:`afa.commands.benchmark.parse` gives them.

    Returns:
        Seconds (median of the interleaved runs), ratios to pydensecrf, memory in MB and agreement, by name. What needs
        pydensecrf is left out where it is not installed.

    Raises:
        UserError: An argument makes no sense or the image cannot be read.
    """
    if args.present > args.classes:
        raise UserError(f"--present {args.present} of --classes {args.classes}: take 1 up to all of the classes")
    if not 0 <= args.negligible < 1:
        raise UserError(f"--negligible {args.negligible}: a probability from 0 up to below 1 is needed")
    if args.threads:
        torch.set_num_threads(args.threads)
    image = _read(args.image, args.size) if args.image else noise_image(*args.size)
    probabilities = random_probabilities(args.classes, args.present, args.size)
    every = DenseCRF(iterations=args.iterations)
    merged = DenseCRF(iterations=args.iterations, negligible=args.negligible)
    runs: dict[str, Callable[[], Tensor]] = {
        "all classes": lambda: every(image, probabilities),
        "negligible classes merged": lambda: merged(image, probabilities),
    }
    peer = _peer(image, probabilities, args.iterations)
    if peer is not None:
        runs["pydensecrf"] = peer

    # The first run of a size also builds the position lattice.
    seconds, first, results = time_in_turn(runs, args.repeats, torch.device("cpu"))

    settings = (image, probabilities, args.iterations, torch.get_num_threads())
    memory = {
        "all classes": peak_memory(*settings, None),
        "negligible classes merged": peak_memory(*settings, args.negligible),
    }
    kept = int((probabilities.amax(dim=(1, 2)) >= args.negligible).sum())
    height, width = args.size
    print(
        f"DenseCRF, {width} x {height}, {args.classes} classes ({kept} above {args.negligible:g}), "
        f"{args.iterations} iterations, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{'':28}{'first ms':>10}{'median ms':>11}{'ratio':>8}{'extra MB':>10}{'difference':>12}{'arg max':>9}")
    table: dict[str, Any] = {"kept": kept, "threads": torch.get_num_threads()}
    for name, times in seconds.items():
        row: dict[str, Any] = {"first_s": first[name], "median_s": median(times)}
        line = f"{name:28}{1e3 * first[name]:10.0f}{1e3 * row['median_s']:11.0f}"
        if peer is not None:
            # The two of one repeat met the same load: the median of their ratios is steadier than that of their times.
            row["ratio"] = median(ours / theirs for ours, theirs in zip(times, seconds["pydensecrf"], strict=True))
            line += f"{row['ratio']:8.2f}"
        else:
            line += f"{'-':>8}"
        if name in memory:
            extra = memory[name]
            row["extra_mb"] = extra
            line += f"{'-' if extra is None else round(extra):>10}"
            if peer is not None:
                theirs_result = results["pydensecrf"]
                row["difference"] = (results[name] - theirs_result).abs().max().item()
                row["same_argmax"] = (results[name].argmax(0) == theirs_result.argmax(0)).float().mean().item()
                line += f"{row['difference']:12.1e}{100 * row['same_argmax']:8.2f}%"
        print(line)
        table[name] = row
    moved = (results["negligible classes merged"] - results["all classes"]).abs().max().item()
    table["moved_by_merging"] = moved
    print(f"merging moves a marginal by {moved:.1e} at most")
    if peer is None:
        print("pydensecrf is not installed (pip install pydensecrf2): nothing to compare with")
    return table


def _read(path: Path, size: list[int]) -> Tensor:
    pixels = cv2.resize(read_image(path), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def random_probabilities(classes: int, present: int, size: list[int]) -> Tensor:
    """Smooth scores in which `present` classes are likely somewhere and the others nowhere; [C, H, W]."""
    coarse = torch.randn(1, classes, size[0] // 32 + 2, size[1] // 32 + 2, generator=torch.Generator().manual_seed(1))
    coarse[:, :present] *= 2
    coarse[:, :present] += 10
    return F.interpolate(coarse, size=tuple(size), mode="bilinear").softmax(dim=1)[0]


def _peer(image: Tensor, probabilities: Tensor, iterations: int) -> Callable[[], Tensor] | None:
    """Give pydensecrf with the same settings, or None where it is not installed."""
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError:
        return None
    classes, height, width = probabilities.shape
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    unary = np.ascontiguousarray(-np.log(probabilities.numpy().clip(1e-5, 1)).reshape(classes, -1))

    def infer() -> Tensor:
        crf = DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=64, srgb=5, rgbim=pixels, compat=4)
        return torch.from_numpy(np.array(crf.inference(iterations))).view(classes, height, width)

    return infer


def peak_memory(
    image: Tensor, probabilities: Tensor, iterations: int, threads: int, negligible: float | None
) -> float | None:
    """Memory in MB that one inference takes at its peak, in a fresh process; None where the system does not tell."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, image.numpy(), probabilities.numpy(), iterations, threads, negligible)
    process = context.Process(target=_report_peak_memory, args=arguments)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise UserError("the process that measures memory was ended: is there enough of it?") from None
    finally:
        process.join()


def _report_peak_memory(
    sender: Any, image: np.ndarray, probabilities: np.ndarray, iterations: int, threads: int, negligible: float | None
) -> None:
    torch.set_num_threads(threads)
    crf = DenseCRF(iterations=iterations, negligible=negligible)
    inputs = torch.from_numpy(image), torch.from_numpy(probabilities)
    # Loads code and starts threads.
    crf(inputs[0][:, :8, :8], inputs[1][:, :8, :8])
    try:
        # Linux: sets the peak back to what is in use now.
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident_peak()
        crf(*inputs)
        sender.send((_resident_peak() - before) / 1e6)
    except OSError:
        sender.send(None)


def _resident_peak() -> int:
    """Bytes that this process had in memory at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
