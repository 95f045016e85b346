"""Training steps in the three phases of AFA's schedule, plain or compiled."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from afa.benchmarks.gpu.apart import NotHere
from afa.benchmarks.gpu.machine import BusyReading
from afa.benchmarks.gpu.setting import (
    Setting,
    peak_memory,
    require_precision,
    restored_backends,
    start_memory,
    step_arguments,
    step_configuration,
    time_steps,
)
from afa.benchmarks.timing import wait
from afa.benchmarks.training_step import TrainingStep
from afa.device import choose_device
from afa.engine.runtime import ProcessRuntime
from afa.methods.afa.config import AFAConfig

logger = logging.getLogger(__name__)

PHASES = ("propagated", "refined", "classification")
"""In the order in which they are measured: the longest of the schedule first."""

_NOT_COMPILED = "torch.compile does not work here"  # how compile_network begins to say that it gave up


def measure_training(setting: Setting, precision: str, compiled: str) -> Iterator[dict[str, Any]]:
    """Time steps on one batch that stays on the device.

    Args:
        setting: How to measure.
        precision: ``train.precision``.
        compiled: ``""``: as it is. ``default``: ``train.compile=true``. ``reduce-overhead``: that mode of
            :func:`torch.compile`, which replays CUDA graphs; no setting of a run offers it.

    Yields:
        ``schedule``, ``batch``, ``phases``: phase -> figures of :func:`afa.benchmarks.gpu.setting.time_steps`, memory,
        ``first_step_s`` and ``warm_up_s`` (compilation included); ``busy``, the GPU's clock and power at work; of
        compiled steps ``compiler``, see :func:`compiler_counts`.

    Raises:
        NotHere: The device has not this precision, or no CUDA graphs.
        RuntimeError: ``torch.compile`` gave up, and uncompiled steps would have been measured.
    """
    device = choose_device(setting.device, "--device")
    require_precision(precision, device)
    if compiled == "reduce-overhead" and device.type != "cuda":
        raise NotHere("CUDA graphs exist on GPUs alone")
    args = step_arguments(setting, precision, f"train.compile={str(compiled == 'default').lower()}")
    config = step_configuration(args)
    phases: dict[str, Any] = {}
    with restored_backends(), ProcessRuntime.start(config.train) as runtime, complaints() as complaint:
        training = TrainingStep(config, runtime, args, setting.folder)
        if compiled == "reduce-overhead":
            for part in training.method.network.children():
                part.compile(mode="reduce-overhead")
        yield {"schedule": phase_lengths(config), "batch": config.train.batch_size}

        def step() -> None:
            if compiled == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()
            training.step()

        for phase in PHASES:
            training.number = first_step(config, phase)
            start_memory(device)
            start = time.perf_counter()
            step()
            wait(device)
            first = time.perf_counter() - start
            for _ in range(setting.sizes.warm_up - 1):
                step()
            wait(device)
            warm_up = time.perf_counter() - start
            if complaint:
                raise RuntimeError(complaint[0])
            timed = time_steps(step, setting.sizes, device)
            phases[phase] = {**timed, "first_step_s": first, "warm_up_s": warm_up, **peak_memory(device)}
            yield {"phases": phases}
            if compiled:
                counts = compiler_counts()
                yield {"compiler": counts}
                if compiled == "reduce-overhead" and counts["not_replayed"]:
                    logger.warning("%d graphs were not replayed by CUDA (%s)", counts["not_replayed"], phase)
            if phase == PHASES[0]:
                reading = BusyReading(device)
                while reading.waits():
                    step()
                wait(device)
                yield {"busy": reading.facts()}


def first_step(config: AFAConfig, phase: str) -> int:
    """The number, counted from 0, of a phase's first step."""
    schedule = config.schedule
    return {
        "classification": 0,
        "refined": schedule.cls_until + 1,
        "propagated": max(schedule.refined_until, schedule.cls_until) + 1,
    }[phase]


def phase_lengths(config: AFAConfig) -> dict[str, int]:
    """Phase -> how many of the run's steps it has."""
    starts = [first_step(config, phase) for phase in reversed(PHASES)]
    ends = [*starts[1:], config.train.steps]
    return {phase: end - start for phase, start, end in zip(reversed(PHASES), starts, ends, strict=True)}


def schedule_hours(lengths: Mapping[str, int], phases: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Hours that the steps of a whole run take, by the medians; None where a phase was not measured.

    Validation, checkpoints and the start of the run are not in it.
    """
    if any(phase not in phases for phase in lengths):
        return None
    return sum(count * phases[phase]["step_s"] for phase, count in lengths.items()) / 3600


def compiler_counts() -> dict[str, int]:
    """What PyTorch's compiler made so far: graphs, breaks between them, and graphs that it did not replay by CUDA."""
    from torch._dynamo.utils import counters  # takes a second

    return {
        "graphs": int(counters["stats"]["unique_graphs"]),
        "breaks": sum(counters["graph_break"].values()),
        "not_replayed": int(counters["inductor"]["cudagraph_skips"]),
    }


@contextmanager
def complaints() -> Iterator[list[str]]:
    """What :func:`afa.engine.runtime.compile_network` says where it gives up and lets the network run as it is."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if _NOT_COMPILED in (text := record.getMessage()):
                found.append(text)

    listener, logger = Listener(logging.WARNING), logging.getLogger("afa.engine.runtime")
    logger.addHandler(listener)
    try:
        yield found
    finally:
        logger.removeHandler(listener)
