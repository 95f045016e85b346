"""A training step: where its time goes, and how far it is from the arithmetic that cannot be avoided.

The floor is that arithmetic at the machine's own rate for large matrix products, measured between the steps: the
encoder over all CAM scales with mirrors, and the network's forward and backward pass. (A step of ours makes one of
these passes serve twice and does a little less.) The ratio step / floor tells how much is lost to everything else, and
is comparable between machines and loads where seconds are not.

In between, the training loop's own step runs on the same batch: with its seeding, finite guard and records, what makes
a run exact and safe. Their cost is added up call by call, as the difference of two whole steps is lost in the noise.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from afa.benchmarks.pictures import make_jpegs, noise_image
from afa.benchmarks.timing import wait
from afa.config import Config, ModelConfig, load_config
from afa.data.images import read_image
from afa.data.transforms import normalise, training_transform
from afa.engine.loop import TrainingRun
from afa.engine.runtime import ProcessRuntime, compile_network
from afa.engine.signals import StopSignals
from afa.errors import UserError
from afa.methods import AFA, Batch
from afa.models import build_network
from afa.ops.par import PAR

PHASES = ("data", "forward", "cam", "propagation", "par", "labels", "losses", "backward", "optimiser")
MATRIX_SIDE, MATRIX_SECONDS = 2048, 1.0
PRODUCTS_IN_A_ROW = {"cpu": 1, "cuda": 100}  # a GPU is kept busy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's command-line arguments."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings to start from; default: those of VOC")
    parser.add_argument("--encoder", help="MiT variant; default: the configuration's")
    parser.add_argument("--crop", type=int, help="in pixels; default: the configuration's")
    parser.add_argument("--batch", type=int, help="images in a step; default: the configuration's")
    parser.add_argument("--classes", type=int, default=21, help="with background (default: %(default)s)")
    parser.add_argument("--present", type=int, default=2, help="classes in an image, at most (default: %(default)s)")
    parser.add_argument("--precision", choices=("float32", "tf32", "bf16", "fp16"), help="default: the configuration's")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads; 0: as torch chooses (default: %(default)s)"
    )
    parser.add_argument(
        "--stage",
        choices=("all", "classification"),
        default="all",
        help="steps with all labels, or classification alone (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="steps that count (default: %(default)s)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings: train.compile=true par.iterations=15"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table.

    Args:
        args: As :func:`add_arguments` gives them.

    Returns:
        Seconds of whole steps (undisturbed), of the training loop's, and of their phases (medians, from steps of their
        own), what the loop's care costs and its share of a step, images per second, GFLOP of the floor and of the step,
        GFLOP/s of matrix products, the ratio, and memory in GB.

    Raises:
        UserError: An argument makes no sense.
    """
    config = configuration(args)
    memory_before = _resident_gb()
    with ProcessRuntime.start(config.train) as runtime, tempfile.TemporaryDirectory() as folder:
        setting = _Setting(config, runtime, args, Path(folder))
        setting.step(_Undisturbed())  # warms caches up
        if runtime.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(runtime.device)
        seconds: list[float] = []
        rates: list[float] = []
        loop_seconds: list[float] = []
        care_seconds: list[float] = []
        for _ in range(args.repeats):
            before = setting.matrix_rate()
            seconds.append(setting.step(_Undisturbed()))
            rates.append((before + setting.matrix_rate()) / 2)
            spent, care = setting.loop_step()
            loop_seconds.append(spent)
            care_seconds.append(care)
        memory = _memory(runtime.device, memory_before)
        watches = []
        for _ in range(args.repeats):
            watches.append(watch := Stopwatch(runtime.device))
            setting.step(watch)
        data = setting.data_seconds(args.repeats)
        counted = setting.count_flops()

    floor = floor_flops(config, args.classes, classification=args.stage == "classification")
    gflop_per_second = median(rates)
    # Each step against the rate just before and after it: both met the same load.
    ratio = median(spent * rate / (floor / 1e9) for spent, rate in zip(seconds, rates, strict=True))
    phases = {name: median(watch.seconds.get(name, 0.0) for watch in watches) for name in PHASES}
    phases["data"] = data
    result: dict[str, Any] = {
        "encoder": config.model.encoder,
        "crop": config.augmentation.crop_size,
        "batch": config.train.batch_size,
        "classes": args.classes,
        "present": args.present,
        "precision": config.train.precision,
        "device": _device_name(runtime.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stage": args.stage,
        "step_s": median(seconds),
        "loop_step_s": median(loop_seconds),
        "care_s": median(care_seconds),
        "care_share": median(care / spent for care, spent in zip(care_seconds, loop_seconds, strict=True)),
        "images_per_s": config.train.batch_size / median(seconds),
        "phases_s": phases,
        "step_gflop": counted / 1e9,
        "floor_gflop": floor / 1e9,
        "matrix_gflop_per_s": gflop_per_second,
        "floor_s": floor / 1e9 / gflop_per_second,
        "ratio_to_floor": ratio,
        "memory_gb": memory,
    }
    _print(result)
    return result


class Stopwatch:
    """Time of named ranges; a range inside another does not count for the outer one.

    On a GPU each range waits for the device: the phases are right, their sum is more than an undisturbed step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._mark = 0.0

    @contextmanager
    def range(self, name: str) -> Iterator[None]:
        """Count what happens inside for ``name``."""
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted for ``name``."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.range(name):
                return function(*args, **kwargs)

        return call

    @contextmanager
    def watching(self, *calls: tuple[object, str, str]) -> Iterator[None]:
        """Count what happens in calls inside: of an object's method (or a module's function), by name, for a phase."""
        with ExitStack() as stack:
            for owner, name, phase in calls:
                stack.enter_context(patch.object(owner, name, self.timed(phase, getattr(owner, name))))
            yield

    def _settle(self) -> None:
        wait(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._mark
        self._mark = now


class _Undisturbed:
    """In a stopwatch's place where only the whole step is timed."""

    def range(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def watching(self, *calls: tuple[object, str, str]) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
class _Setting:
    """A method with its optimiser and one batch."""

    config: Config
    runtime: ProcessRuntime
    args: argparse.Namespace
    folder: Path
    method: AFA = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.device = self.runtime.device
        network = build_network(self.config.model, self.args.classes).to(self.device).train()
        if self.config.train.channels_last:
            network.to(memory_format=torch.channels_last)
        if self.config.train.compile:
            compile_network(network)
        self.method = AFA(network, self.config, self.runtime)
        schedule = self.config.schedule
        self.number = 0 if self.args.stage == "classification" else max(schedule.refined_until, schedule.cls_until) + 1
        self.config.train.steps = max(self.config.train.steps, self.number + 1)
        self.config.train.non_finite = "skip"  # gives the finite guard most to do
        # Its batches are made here: the loop never asks for images.
        self.loop = TrainingRun(self.config, self.method, self.runtime, None, None, self.folder, {}, StopSignals())
        self.batch = make_batch(self.config, self.args.classes, self.args.present, self.device)

    def step(self, watch: Stopwatch | _Undisturbed) -> float:
        """One step, and how many seconds it took."""
        wait(self.device)
        start = time.perf_counter()
        network = watch.timed("forward", self.method.network)
        with watch.watching(
            (self.method, "_cams", "cam"),
            (self.method, "_labels", "labels"),
            (PAR, "__call__", "par"),
            (PAR, "weights", "par"),
            (sys.modules["afa.methods.pseudo_labels"], "propagate", "propagation"),
        ):
            with watch.range("losses"):
                total = self.method.training_step(network, self.batch, self.number).total()  # type: ignore[arg-type]
            with watch.range("backward"):
                self.loop.optimiser.zero_grad(set_to_none=True)
                self.loop.scaler.scale(total).backward()
            with watch.range("optimiser"):
                self.loop.scaler.step(self.loop.optimiser)
                self.loop.scaler.update()
        wait(self.device)
        return time.perf_counter() - start

    def loop_step(self) -> tuple[float, float]:
        """A step of the training loop, and what it spends on more than the bare step does, both in seconds.

        On a GPU the second is the host's time alone.
        """
        watch = Stopwatch(torch.device("cpu"))  # a GPU is not waited for: the loop does not either
        loop = self.loop
        with watch.watching(
            (self.runtime, "worst", "care"),
            (self.runtime, "seed", "care"),
            (loop.guard, "remember_buffers", "care"),
            (loop.guard, "inspect", "care"),
            (loop.guard, "mend_buffers", "care"),
            (loop.meter, "add", "care"),
        ):
            wait(self.device)
            start = time.perf_counter()
            self.runtime.worst(0)
            loop.step(self.number, [self.batch])
            wait(self.device)
            seconds = time.perf_counter() - start
        return seconds, watch.seconds["care"]

    def matrix_rate(self) -> float:
        """GFLOP/s of large matrix products at the run's precision, over a second: a shared machine's speed jumps."""
        matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=self.device).to(self.runtime.dtype)
        products = 0
        matrix @ matrix
        wait(self.device)
        start = time.perf_counter()
        while time.perf_counter() - start < MATRIX_SECONDS:
            for _ in range(PRODUCTS_IN_A_ROW[self.device.type]):
                matrix @ matrix
                products += 1
            wait(self.device)
        return 2 * MATRIX_SIDE**3 * products / (time.perf_counter() - start) / 1e9

    def data_seconds(self, repeats: int) -> float:
        """Processor seconds that one batch costs the loader: JPEG files of VOC's size to training samples."""
        augmentation, dataset = self.config.augmentation, self.config.dataset
        with tempfile.TemporaryDirectory() as folder:
            paths = make_jpegs(Path(folder), 2)
            seconds = []
            for repeat in range(repeats):
                start = time.process_time()
                for number in range(self.config.train.batch_size):
                    crop, _ = training_transform(
                        read_image(paths[number % len(paths)]),
                        np.random.default_rng([repeat, number]),
                        crop_size=augmentation.crop_size,
                        scale_range=(augmentation.scale_min, augmentation.scale_max),
                        mirror_probability=augmentation.mirror_probability,
                        resampling=augmentation.resampling,
                    )
                    normalise(crop, dataset.image_mean, dataset.image_std)
                seconds.append(time.process_time() - start)
        return median(seconds)

    def count_flops(self) -> int:
        """Multiplications and additions of matrix products and convolutions in one step."""
        with _flop_counter() as counter:
            self.step(_Undisturbed())
        return counter.get_total_flops()


def floor_flops(config: Config, classes: int, *, classification: bool = False) -> int:
    """Operations that no implementation of the step can avoid.

    The encoder over all CAM scales with mirrors, and encoder, decoder and classifier forward and backward; for a
    classification step encoder and classifier forward and backward alone. The raw attention that the affinity head
    reads is part of the encoder. Counted on shapes alone, with attention written out.
    """
    crop, batch = config.augmentation.crop_size, config.train.batch_size
    model = ModelConfig(**{**vars(config.model), "pretrained": None})
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), _flop_counter() as counter:
        network = build_network(model, classes).train()
        if not classification:
            with torch.no_grad():
                for scale in config.cam.scales:
                    network.encoder(torch.empty(2 * batch, 3, int(scale * crop), int(scale * crop)))
        output = network(torch.empty(batch, 3, crop, crop), decode=not classification, with_affinity=False)
        loss = output.cls_logits.sum()
        if not classification:
            loss = loss + output.seg_logits.sum()
        loss.backward()
    return counter.get_total_flops()


def _flop_counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def _convolution_backward(
    gradient: Sequence[int], _: Sequence[int], weight: Sequence[int], *rest: Any, **__: Any
) -> int:
    """Operations of a convolution's gradients. PyTorch's own count takes a depth-wise convolution for a full one.

    Args:
        gradient: Shape of the output's gradient.
        weight: [channels out, channels in / groups, *kernel].
    """
    wanted = sum(rest[-1][:2])
    return 2 * gradient[0] * math.prod(gradient[2:]) * math.prod(weight) * wanted


def make_batch(config: Config, classes: int, present: int, device: torch.device) -> Batch:
    """Pictures of noise: every second image shows a part of the crop only, and between 1 and ``present`` classes."""
    crop, count = config.augmentation.crop_size, config.train.batch_size
    mean = torch.tensor(config.dataset.image_mean)[:, None, None]
    std = torch.tensor(config.dataset.image_std)[:, None, None]
    image = torch.stack([(noise_image(crop, crop, seed).float() - mean) / std for seed in range(count)])
    class_labels = torch.zeros(count, classes - 1)
    valid_box = torch.tensor([[0, crop, 0, crop]] * count)
    for number in range(count):
        class_labels[number, torch.arange(number, number + 1 + number % present) % (classes - 1)] = 1
        if number % 2:
            valid_box[number] = torch.tensor([crop // 16, crop - crop // 8, 0, crop])
    image = image.to(device)
    if config.train.channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    return Batch(image=image, class_labels=class_labels, valid_box=valid_box, name=[str(i) for i in range(count)])


def configuration(args: argparse.Namespace) -> Config:
    """The configuration that the arguments of :func:`add_arguments` ask for.

    Raises:
        UserError: An argument makes no sense.
    """
    if min(args.repeats, args.present) < 1 or args.classes < 2 or args.threads < 0:
        raise UserError("--repeats and --present must be at least 1, --classes 2, --threads 0")
    if args.present >= args.classes:
        raise UserError(f"--present {args.present} of --classes {args.classes}: the background is one of them")
    overrides: Sequence[tuple[str, Any]] = (
        ("model.encoder", args.encoder),
        ("augmentation.crop_size", args.crop),
        ("train.batch_size", args.batch),
        ("train.precision", args.precision),
        ("train.device", args.device),
        ("train.threads", args.threads),
    )
    given = [f"{key}={value}" for key, value in overrides if value is not None] + args.set
    with tempfile.TemporaryDirectory() as folder:
        path = args.config
        if path is None:
            path = Path(folder) / "default.yaml"
            path.write_text("method: afa\n")
        return load_config(path, given)


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
    memory = {"process_peak": peak, "beyond_start": peak - before}
    if device.type == "cuda":
        memory["gpu_peak"] = torch.cuda.max_memory_allocated(device) / 1e9
    return memory


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _print(result: dict[str, Any]) -> None:
    print(
        f"{result['stage']} step, {result['encoder']}, crop {result['crop']}, batch {result['batch']}, "
        f"{result['classes']} classes, {result['precision']}, {result['device']}, {result['threads']} threads, "
        f"torch {result['torch']}"
    )
    for name, seconds in result["phases_s"].items():
        note = "  (in the loader's processes)" if name == "data" else ""
        print(f"  {name:12}{1e3 * seconds:9.1f} ms{note}")
    print(f"step          {result['step_s']:8.3f} s   {result['images_per_s']:.2f} images/s")
    print(
        f"floor         {result['floor_s']:8.3f} s   {result['floor_gflop']:.0f} GFLOP at "
        f"{result['matrix_gflop_per_s']:.0f} GFLOP/s (the step does {result['step_gflop']:.0f} GFLOP)"
    )
    print(f"ratio         {result['ratio_to_floor']:8.2f}")
    print(
        f"training loop {result['loop_step_s']:8.3f} s   of which {1e3 * result['care_s']:.1f} ms "
        f"({result['care_share']:.2%}) for exact resume, finite guard and records"
    )
    for name, gigabytes in result["memory_gb"].items():
        print(f"memory, {name.replace('_', ' '):14}{gigabytes:8.2f} GB")
