"""A training step: where its time goes, and how far it is from the arithmetic that cannot be avoided.

The floor is that arithmetic (:mod:`afa.benchmarks.training_step`) at the machine's own rate for large matrix products,
measured between the steps. The ratio step / floor tells how much is lost to everything else, and is comparable between
machines and loads where seconds are not.

The step is that of a training run, with seeding, finite guard and sums of the records: what makes a run exact and safe.
What they take is measured apart: the difference of two whole steps is lost in the noise.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from afa.benchmarks.training_step import PARTS, TrainingStep, configuration, floor_flops, headline
from afa.engine.runtime import ProcessRuntime


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table.

    Args:
        args: As :func:`afa.commands.benchmark.parse` gives them.

    Returns:
        Seconds of whole steps and of their parts (medians; the parts are those of further steps), what care costs and
        its share of a step, what TensorBoard's images take each time (None where there are none), images per second,
        GFLOP of the floor and of the step, operators that the step's leave out, GFLOP/s of matrix products, the ratio,
        and memory in GB.

    Raises:
        UserError: An argument makes no sense.
    """
    config = configuration(args)
    memory_before = _resident_gb()
    with ProcessRuntime.start(config.train) as runtime, tempfile.TemporaryDirectory() as folder:
        training = TrainingStep(config, runtime, args, Path(folder))
        training.step()  # warms caches up
        if runtime.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(runtime.device)
        seconds: list[float] = []
        rates: list[float] = []
        care: list[float] = []
        for _ in range(args.repeats):
            before = training.matrix_rate()
            seconds.append(training.seconds())
            care.append(training.care_seconds())
            rates.append((before + training.matrix_rate()) / 2)
        memory = _memory(runtime.device, memory_before)
        watched = [training.part_seconds() for _ in range(args.repeats)]
        data = training.data_seconds(args.repeats)
        sheet = training.sheet_seconds() if config.train.pictures_every else None
        counted = sum(training.count_flops().values())

    floor = floor_flops(config, args.classes, classification=args.stage == "classification")
    gflop_per_second = median(rates)
    # Each step against the rate just before and after it: both met the same load.
    ratio = median(spent * rate / (floor / 1e9) for spent, rate in zip(seconds, rates, strict=True))
    parts = {"data": data} | {name: median(seconds[name] for seconds in watched) for name in PARTS}
    result: dict[str, Any] = {
        **training.facts(),
        "step_s": median(seconds),
        "care_s": median(care),
        "care_share": median(part / whole for part, whole in zip(care, seconds, strict=True)),
        "sheet_s": sheet,
        "sheet_every": config.train.pictures_every,
        "images_per_s": config.train.batch_size / median(seconds),
        "parts_s": parts,
        "step_gflop": counted / 1e9,
        "uncounted": training.uncounted,
        "floor_gflop": floor / 1e9,
        "matrix_gflop_per_s": gflop_per_second,
        "floor_s": floor / 1e9 / gflop_per_second,
        "ratio_to_floor": ratio,
        "memory_gb": memory,
    }
    _print(result)
    return result


def _resident_gb() -> float:
    """Memory that the process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _peak_resident_gb()
    return pages * resource.getpagesize() / 1e9


def _peak_resident_gb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _memory(device: torch.device, before: float) -> dict[str, float]:
    peak = _peak_resident_gb()
    # Linux counts the peak less exactly than what is held now: the peak can be the smaller one.
    memory = {"process_peak": peak, "beyond_start": max(0.0, peak - before)}
    if device.type == "cuda":
        memory["gpu_peak"] = torch.cuda.max_memory_allocated(device) / 1e9
    return memory


def _print(result: dict[str, Any]) -> None:
    print(headline(result))
    for name, seconds in result["parts_s"].items():
        if not seconds:
            continue  # another method's part
        note = "  (in the loader's processes)" if name == "data" else ""
        print(f"  {name:12}{1e3 * seconds:9.1f} ms{note}")
    print(f"step          {result['step_s']:8.3f} s   {result['images_per_s']:.2f} images/s")
    print(
        f"floor         {result['floor_s']:8.3f} s   {result['floor_gflop']:.0f} GFLOP at "
        f"{result['matrix_gflop_per_s']:.0f} GFLOP/s (the step does {result['step_gflop']:.0f} GFLOP)"
    )
    print(f"ratio         {result['ratio_to_floor']:8.2f}")
    print(
        f"care          {result['care_s']:8.3f} s   {result['care_share']:.2%} of the step: for exact resume, finite "
        "guard and records"
    )
    if result["sheet_s"] is not None:
        share = result["sheet_s"] / result["sheet_every"] / result["step_s"]
        print(
            f"images        {result['sheet_s']:8.3f} s   for TensorBoard, every {result['sheet_every']} steps: "
            f"{share:.2%} of a step"
        )
    for name, gigabytes in result["memory_gb"].items():
        print(f"memory, {name.replace('_', ' '):14}{gigabytes:8.2f} GB")
