"""A training step to be measured: its settings from the command line, its batch, and its floor.

The floor is the arithmetic that cannot be avoided: the encoder over all CAM scales with mirrors, and the network's
forward and backward pass. (A step of ours makes one of these passes serve twice and does a little less.)
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from afa.benchmarks.pictures import make_jpegs, noise_image
from afa.benchmarks.timing import Stopwatch, Undisturbed, time_in_turn, wait
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
from afa.paths import given_path

MATRIX_SIDE, MATRIX_SECONDS = 2048, 1.0
PRODUCTS_IN_A_ROW = {"cpu": 1, "cuda": 100}  # a GPU is kept busy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's command-line arguments."""
    parser.add_argument(
        "--config", type=given_path, metavar="FILE", help="settings to start from; default: those of VOC"
    )
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


@dataclass
class TrainingStep:
    """A method with its optimiser and one batch.

    Attributes:
        config: Its ``train.steps`` is raised where it ends before the stage asked for.
        args: As :func:`add_arguments` gives them.
        folder: For what the training loop writes.
    """

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

    def facts(self) -> dict[str, Any]:
        """What is measured, and on what."""
        cuda = self.device.type == "cuda"
        return {
            "encoder": self.config.model.encoder,
            "crop": self.config.augmentation.crop_size,
            "batch": self.config.train.batch_size,
            "classes": self.args.classes,
            "present": self.args.present,
            "precision": self.config.train.precision,
            "device": torch.cuda.get_device_name(self.device) if cuda else self.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "stage": self.args.stage,
        }

    def step(self, watch: Stopwatch | Undisturbed) -> float:
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

    def fastest_product(self, repeats: int = 10) -> float:
        """GFLOP/s of the fastest of some large matrix products at the run's precision, each waited for."""
        matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=self.device).to(self.runtime.dtype)
        timings = time_in_turn({"product": lambda: matrix @ matrix}, repeats, self.device)
        return 2 * MATRIX_SIDE**3 / min(timings.seconds["product"]) / 1e9

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

    def count_flops(self) -> dict[str, int]:
        """Multiplications and additions of the matrix products, convolutions and attention of one step, by operator."""
        with _flop_counter() as counter:
            self.step(Undisturbed())
        return {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}


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


def headline(facts: Mapping[str, Any]) -> str:
    """A table's first line, of :meth:`TrainingStep.facts`."""
    return (
        f"{facts['stage']} step, {facts['encoder']}, crop {facts['crop']}, batch {facts['batch']}, "
        f"{facts['classes']} classes, {facts['precision']}, {facts['device']}, {facts['threads']} threads, "
        f"torch {facts['torch']}"
    )


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
