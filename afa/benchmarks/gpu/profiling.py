"""Where the time of a training step goes: its parts, its operators, its GPU kernels, and the time that a GPU waits."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from afa.benchmarks.gpu.setting import (
    CLASSES,
    Setting,
    fastest_precision,
    restored_backends,
    step_arguments,
    step_configuration,
    time_steps,
)
from afa.benchmarks.gpu.training import first_step
from afa.benchmarks.timing import wait
from afa.benchmarks.training_step import PARTS, TrainingStep, floor_flops
from afa.device import choose_device
from afa.engine.runtime import ProcessRuntime

ROWS = 20  # operators and kernels that are told, the slowest first
_OF_THE_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of the profiler's trace


def measure_profile(setting: Setting) -> Iterator[dict[str, Any]]:
    """Profile steps with propagated labels, uncompiled.

    Yields:
        ``precision``; ``step_s``, without the profiler; ``parts_s``, each waited for, so that their sum is more;
        GFLOP of step and floor, and GFLOP/s of large matrix products; ``operators``: [name, calls and seconds in a
        step]. Of a GPU also ``kernels``, the same; ``busy_s``, seconds of a step in which the GPU works on something;
        and ``idle_share``, the rest's share of ``step_s``: the GPU waits for the host.
    """
    device = choose_device(setting.device, "--device")
    precision = fastest_precision(device)
    args = step_arguments(setting, precision)
    config, sizes = step_configuration(args), setting.sizes
    with restored_backends(), ProcessRuntime.start(config.train) as runtime:
        training = TrainingStep(config, runtime, args, setting.folder)
        training.number = first_step(config, "propagated")
        for _ in range(sizes.warm_up):
            training.step()
        step_s = time_steps(training.step, sizes, device)["step_s"]
        watched = [training.part_seconds() for _ in range(sizes.least)]
        yield {
            "precision": precision,
            "step_s": step_s,
            "parts_s": {name: median(seconds[name] for seconds in watched) for name in PARTS},
        }
        if device.type == "cuda":
            _profiled(training, 1, setting.folder)  # The profiler's first look at a GPU starts slowly.
        operators, kernels, busy = _profiled(training, sizes.profiled, setting.folder)
        yield {"operators": operators}
        if device.type == "cuda":
            yield {"kernels": kernels, "busy_s": busy, "idle_share": max(0.0, 1 - busy / step_s)}
        yield {
            "floor_gflop": floor_flops(config, CLASSES) / 1e9,
            "matrix_gflop_per_s": training.matrix_rate(),
        }
        yield {"step_gflop": sum(training.count_flops().values()) / 1e9}


Row = tuple[str, float, float]
"""Name, calls in a step, seconds in a step."""


def _profiled(training: TrainingStep, steps: int, folder: Path) -> tuple[list[Row], list[Row], float]:
    """Operators, kernels, and the seconds of a step in which the GPU works."""
    cuda = training.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    wait(training.device)
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            training.step()
        wait(training.device)
    rows = []
    for event in profiler.key_averages():
        seconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        if event.device_type == DeviceType.CPU and event.key.startswith("aten::"):
            rows.append((event.key, event.count / steps, seconds / steps))
    if not cuda:
        return slowest(rows), [], 0.0
    trace = folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    trace.unlink()
    kernels, busy = gpu_work(events)
    return slowest(rows), slowest([(name, calls / steps, s / steps) for name, calls, s in kernels]), busy / steps


def gpu_work(events: Sequence[Mapping[str, Any]]) -> tuple[list[Row], float]:
    """What a GPU did, from the events of a profiler's trace.

    Returns:
        Kernels and copies with their calls and seconds; and the seconds in which at least one of them ran: those of
        several streams may run at once.
    """
    counts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    times: list[tuple[float, float]] = []
    for event in events:
        if event.get("ph") != "X" or event.get("cat") not in _OF_THE_GPU:
            continue
        start, length = float(event["ts"]), float(event["dur"])
        counts[str(event["name"])[:200]][0] += 1
        counts[str(event["name"])[:200]][1] += length / 1e6
        times.append((start, start + length))
    busy, end = 0.0, float("-inf")
    for start, stop in sorted(times):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return [(name, calls, seconds) for name, (calls, seconds) in counts.items()], busy / 1e6


def slowest(rows: Sequence[Row]) -> list[Row]:
    """The :data:`ROWS` slowest, the slowest first, and all others as one."""
    ordered = sorted(rows, key=lambda row: -row[2])
    rest = ordered[ROWS:]
    if not rest:
        return ordered
    return [*ordered[:ROWS], (f"{len(rest)} more", sum(row[1] for row in rest), sum(row[2] for row in rest))]
