"""What is measured, in the full and in the small setting, and how steps are timed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch

from afa.benchmarks.gpu.apart import NotHere
from afa.benchmarks.timing import wait
from afa.benchmarks.training_step import configuration
from afa.methods.afa.config import AFAConfig

RECIPE = "voc"
CLASSES, PRESENT = 21, 2
"""VOC's, with background; and how many an image shows at most."""


class Sizes(NamedTuple):
    """How large everything is.

    Attributes:
        model: Settings of the network.
        crop, batch: Of a training step.
        warm_up: Steps before the first that counts.
        least, most: Steps that count; between the two, time decides.
        seconds: How long steps are measured that are quick enough for more than ``least``.
        images: Photographs that are loaded and labelled.
        photograph: Their (H, W).
        checked_crop: Of the comparison with the CPU.
        profiled: Steps in the profile.
    """

    model: tuple[str, ...]
    crop: int
    batch: int
    warm_up: int
    least: int
    most: int
    seconds: float
    images: int
    photograph: tuple[int, int]
    checked_crop: int
    profiled: int


FULL = Sizes(
    model=("model.encoder=mit_b1",),
    crop=512,
    batch=4,
    warm_up=3,
    least=5,
    most=80,
    seconds=6.0,
    images=48,
    photograph=(375, 500),
    checked_crop=128,
    profiled=3,
)
SMALL = Sizes(
    model=(
        "model.encoder=custom",
        "model.widths=[8,16,20,32]",
        "model.depths=[1,1,1,2]",
        "model.heads=[1,2,5,8]",
        "model.decoder_width=16",
    ),
    crop=32,
    batch=2,
    warm_up=1,
    least=2,
    most=2,
    seconds=0.0,
    images=3,
    photograph=(48, 64),
    checked_crop=32,
    profiled=1,
)
"""Tries the command itself, within seconds on a CPU; its figures mean nothing."""


@dataclass(frozen=True)
class Setting:
    """How to measure; sent to the process of each measurement.

    Attributes:
        device: ``cuda``, ``cuda:N`` or ``cpu``.
        small: Whether sizes are :data:`SMALL`.
        folder: For files that are made on the way.
    """

    device: str
    small: bool
    folder: Path

    @property
    def sizes(self) -> Sizes:
        """Those of this setting."""
        return SMALL if self.small else FULL


def step_arguments(setting: Setting, precision: str, *settings: str) -> argparse.Namespace:
    """What :class:`afa.benchmarks.training_step.TrainingStep` reads: VOC's recipe in this setting.

    Args:
        setting: Device and sizes.
        precision: ``train.precision``.
        *settings: Further ones.
    """
    sizes = setting.sizes
    return argparse.Namespace(
        config=RECIPE,
        encoder=None,
        crop=sizes.crop,
        batch_size=sizes.batch,
        classes=CLASSES,
        present=PRESENT,
        precision=precision,
        device=setting.device,
        threads=0,
        stage="all",
        settings=[*sizes.model, "model.pretrained=null", "train.pictures_every=0", *settings],
    )


def step_configuration(args: argparse.Namespace) -> AFAConfig:
    """The configuration of :func:`step_arguments`."""
    config = configuration(args)
    assert isinstance(config, AFAConfig)
    return config


def require_precision(precision: str, device: torch.device) -> None:
    """Skip a measurement whose precision the device has not.

    Raises:
        NotHere: It would run, but as something else, or emulated.
    """
    if device.type != "cuda":
        if precision == "tf32":
            raise NotHere("tf32 exists on GPUs alone")
        return
    amd = torch.version.hip is not None
    old = not amd and torch.cuda.get_device_capability(device)[0] < 8  # NVIDIA's before Ampere
    if (precision == "tf32" and (amd or old)) or (precision == "bf16" and old):
        raise NotHere(f"{torch.cuda.get_device_name(device)} has no {precision}")


def fastest_precision(device: torch.device) -> str:
    """``bf16`` where the device has it, else ``float32``: what is measured in one precision alone takes this one."""
    try:
        require_precision("bf16", device)
    except NotHere:
        return "float32"
    return "bf16"


@contextmanager
def restored_backends() -> Iterator[None]:
    """What a run sets for the whole process, TF32 and cuDNN's search, is afterwards as before."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32, convolutions.benchmark
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32, convolutions.benchmark = before


class StepClock:
    """Moments between the steps. A GPU is not waited for: it notes them itself, and so works as in a training.

    Args:
        device: Where the steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Here one step ends and the next one begins."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between each two moments; waits for the device."""
        wait(self.device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self.device.type == "cuda":
            return [first.elapsed_time(second) / 1e3 for first, second in pairs]
        return [second - first for first, second in pairs]


def time_steps(step: Callable[[], Any], sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Time steps in a row, as a training makes them.

    Returns:
        ``step_s``, the median, ``quartiles_s``, ``steps``, how many; and ``mean_step_s`` by the host's clock, from
        before the first step until the device has finished the last.
    """
    wait(device)
    clock, start, count = StepClock(device), time.perf_counter(), 0
    clock.mark()
    while count < sizes.least or (count < sizes.most and time.perf_counter() - start < sizes.seconds):
        step()
        clock.mark()
        count += 1
    seconds = clock.seconds()
    whole = time.perf_counter() - start
    return {"step_s": median(seconds), **spread(seconds), "steps": count, "mean_step_s": whole / count}


def time_by_turns(
    calls: Mapping[str, Callable[[], Any]], sizes: Sizes, device: torch.device, *, in_a_row: int
) -> dict[str, list[float]]:
    """Seconds of one call each, where several in a row of each take turns, so that all meet the same load and clock.

    The first turn warms up and does not count.

    Args:
        calls: By name.
        sizes: ``least`` and ``most`` are numbers of turns here, and ``seconds`` the time for each name.
        device: Waited for before and after each row.
        in_a_row: Calls.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    start, turns = time.perf_counter(), -1
    while turns < sizes.least or (turns < sizes.most and time.perf_counter() - start < sizes.seconds * len(calls)):
        for name, call in calls.items():
            wait(device)
            begin = time.perf_counter()
            for _ in range(in_a_row):
                call()
            wait(device)
            if turns >= 0:
                seconds[name].append((time.perf_counter() - begin) / in_a_row)
        turns += 1
    return seconds


def spread(seconds: Sequence[float]) -> dict[str, list[float]]:
    """The quartiles of measured times."""
    if len(seconds) < 2:
        return {"quartiles_s": [seconds[0], seconds[0]]}
    first, _, third = quantiles(seconds, n=4, method="inclusive")
    return {"quartiles_s": [first, third]}


def start_memory(device: torch.device) -> None:
    """From here on the peak counts."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, float]:
    """GB (10^9 bytes) since :func:`start_memory`: of tensors, and with what PyTorch keeps for later; empty on a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "tensors_peak_gb": torch.cuda.max_memory_allocated(device) / 1e9,
        "reserved_peak_gb": torch.cuda.max_memory_reserved(device) / 1e9,
    }
