"""A training step to be measured: its settings from the command line, its batch, and its floor.

The floor is the arithmetic that cannot be avoided: the network's forward and backward pass and, for AFA, the encoder
over all CAM scales with mirrors. (A step of AFA makes one of these passes serve twice and does a little less.)
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import default_collate

from afa.benchmarks.flops import FlopCounter
from afa.benchmarks.pictures import make_jpegs, noise_image
from afa.benchmarks.timing import Stopwatch, time_in_turn, wait
from afa.config import RunConfig
from afa.data.images import read_image
from afa.data.samples import Sample
from afa.engine.board import EventFile
from afa.engine.finite import InspectedStep
from afa.engine.loop import IMAGE_WIDTH, IMAGES_SHOWN
from afa.engine.runtime import ProcessRuntime, compile_network
from afa.engine.trainer import Trainer, leave_at_rest, step_seed
from afa.errors import UserError
from afa.maps import Maps
from afa.methods import build_method, config_from_dict, load_config
from afa.methods.afa.config import AFAConfig
from afa.methods.afa.method import AFA
from afa.methods.afa.network import build_network
from afa.methods.base import Batch, Method, SingleProcess
from afa.parts import watched
from afa.prediction.predictor import Predictor
from afa.prediction.sheet import output_sheet

MATRIX_SIDE, MATRIX_SECONDS = 2048, 1.0
PRODUCTS_IN_A_ROW = {"cpu": 1, "cuda": 100}  # a GPU is kept busy

PARTS = ("forward", "cam", "propagation", "par", "labels", "losses", "backward", "optimiser")
"""Of a step. The first five have their names from the method, see :mod:`afa.parts`."""


class TrainingStep:
    """A method with its optimiser and one batch, which makes steps as a training run does.

    Args:
        config: Of :func:`configuration`.
        runtime: Where it runs.
        args: As :func:`afa.commands.benchmark.parse` gives them.
        folder: For what the finite guard and TensorBoard save.
    """

    def __init__(self, config: Any, runtime: ProcessRuntime, args: argparse.Namespace, folder: Path) -> None:
        self.config, self.runtime, self.args, self.device = config, runtime, args, runtime.device
        torch.manual_seed(0)
        self.method = build_method(config, class_names(args.classes), runtime)
        network = self.method.network.to(self.device).train()
        if config.train.channels_last:
            network.to(memory_format=torch.channels_last)
        if config.train.compile:
            compile_network(network)
        self.trainer = Trainer(config, self.method, runtime, folder)
        self.batch = self.trainer.to_device(make_batch(self.method, args.classes, args.present))
        self.number = step_number(config, args.stage)
        self.uncounted: tuple[str, ...] = ()
        self.folder = folder

    def facts(self) -> dict[str, Any]:
        """What is measured, and on what."""
        cuda = self.device.type == "cuda"
        return {
            "method": self.config.method,
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

    def step(self) -> None:
        """One step of training."""
        self.trainer.step(self.number, [self.batch])

    def seconds(self) -> float:
        """How long a step takes."""
        wait(self.device)
        start = time.perf_counter()
        self.step()
        wait(self.device)
        return time.perf_counter() - start

    def part_seconds(self) -> dict[str, float]:
        """The :data:`PARTS` of a bare step: without what :meth:`care_seconds` measures."""
        watch, trainer = Stopwatch(self.device), self.trainer
        with watched(watch.part):
            with watch.part("losses"):
                result = self.method.training_step(self.method.network, self.batch, self.number)
                total = result.total()
            with watch.part("backward"):
                trainer.optimiser.zero_grad(set_to_none=True)
                trainer.scaler.scale(total).backward()
            leave_at_rest(result.resting)
            with watch.part("optimiser"):
                trainer.scaler.step(trainer.optimiser)
                trainer.scaler.update()
        return {name: watch.seconds.get(name, 0.0) for name in PARTS}

    def care_seconds(self) -> float:
        """What seeding, finite guard and sums of the records take, with the gradients of the last step.

        On a GPU it is the host's time alone.
        """
        trainer = self.trainer
        figures = {f"figure {number}": torch.zeros((), device=self.device) for number in range(10)}
        total = figures["figure 0"]
        wait(self.device)
        start = time.perf_counter()
        self.runtime.seed(step_seed(self.config.train.seed, self.number, self.runtime.rank))
        trainer.guard.remember_buffers()
        norm, flag = trainer.guard.inspect(InspectedStep(self.number, [self.batch], [figures], total))
        trainer.guard.mend_buffers(flag)
        trainer.meter.add({**figures, "gradient_norm": norm}, left_out=flag)
        return time.perf_counter() - start

    def sheet_seconds(self) -> float | None:
        """What TensorBoard's images take each time, of the crop's size, passes of the network and writing included.

        None where the method can say nothing about such an image.
        """
        try:
            predictor = Predictor(self.method, self.config, device=self.device, inputs=self.method.needs)
        except UserError:
            return None
        samples = []
        for number in range(IMAGES_SHOWN):
            crop = self.config.augmentation.crop_size
            image = noise_image(crop, crop, number).permute(1, 2, 0).numpy()
            sample = made_up_sample(self.method.needs, image, number, self.args.classes, self.args.present)
            samples.append((sample, None))
        self.method.network.eval()
        wait(self.device)
        start = time.perf_counter()
        sheet = output_sheet(predictor, samples, heading="", cell=IMAGE_WIDTH)
        board = EventFile(self.folder, first_step=0)
        board.pictures(0, {"outputs": torch.from_numpy(sheet).permute(2, 0, 1)})
        board.close()
        seconds = time.perf_counter() - start
        self.method.network.train()
        return seconds

    def matrix_rate(self) -> float:
        """GFLOP/s of large matrix products at the run's precision, over a second: a shared machine's speed jumps."""
        matrix = self._matrix()
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
        matrix = self._matrix()
        timings = time_in_turn({"product": lambda: matrix @ matrix}, repeats, self.device)
        return 2 * MATRIX_SIDE**3 / min(timings.seconds["product"]) / 1e9

    def _matrix(self) -> Tensor:
        return torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=self.device).to(self.runtime.dtype)

    def data_seconds(self, repeats: int) -> float:
        """Processor seconds that one batch costs the loader: JPEG files of VOC's size to training samples."""
        transform = self.method.transform()
        with tempfile.TemporaryDirectory() as folder:
            paths = make_jpegs(Path(folder), 2)
            seconds = []
            for repeat in range(repeats):
                start = time.process_time()
                for number in range(self.config.train.batch_size):
                    image = read_image(paths[number % len(paths)])
                    sample = made_up_sample(self.method.needs, image, number, self.args.classes, self.args.present)
                    transform(sample, np.random.default_rng([repeat, number]))
                seconds.append(time.process_time() - start)
        return median(seconds)

    def count_flops(self) -> dict[str, int]:
        """Multiplications and additions of the matrix products, convolutions and attention of one step, by operator.

        ``uncounted`` then names the operators that are missing.
        """
        with FlopCounter() as counter:
            self.step()
        self.uncounted = counter.unknown
        return counter.by_operator


def configuration(args: argparse.Namespace) -> Any:
    """The configuration that the arguments of a step ask for.

    It trains long enough to reach the step that is measured. What is not finite is skipped: that gives the finite guard
    most to do.

    Raises:
        UserError: An argument makes no sense.
    """
    if args.present >= args.classes:
        raise UserError(f"--present {args.present} of --classes {args.classes}: the background is one of them")
    overrides: Sequence[tuple[str, Any]] = (
        ("model.encoder", args.encoder),
        ("augmentation.crop_size", args.crop),
        ("train.batch_size", args.batch_size),
        ("train.precision", args.precision),
        ("train.device", args.device),
        ("train.threads", args.threads),
        ("train.non_finite", "skip"),
    )
    given = [f"{key}={value}" for key, value in overrides if value is not None] + args.settings
    config = load_config(args.config, given) if args.config else config_from_dict({"method": AFA.name}, overrides=given)
    if args.stage == "classification" and not isinstance(config, AFAConfig):
        raise UserError(f"--stage classification: the steps of the method '{config.method}' are all alike")
    if args.stage == "classification" and config.schedule.cls_until < 0:
        raise UserError("--stage classification: with schedule.cls_until=-1 there is no such step")
    config.train.steps = max(config.train.steps, step_number(config, args.stage) + 1)
    return config


def step_number(config: RunConfig, stage: str) -> int:
    """The first step, counted from 0, of ``all`` labels, or of ``classification`` alone."""
    if not isinstance(config, AFAConfig):
        return 0
    schedule = config.schedule
    return 0 if stage == "classification" else max(schedule.refined_until, schedule.cls_until) + 1


def headline(facts: Mapping[str, Any]) -> str:
    """A table's first line, of :meth:`TrainingStep.facts`."""
    return (
        f"{facts['method']}, {facts['stage']} step, {facts['encoder']}, crop {facts['crop']}, batch {facts['batch']}, "
        f"{facts['classes']} classes, {facts['precision']}, {facts['device']}, {facts['threads']} threads, "
        f"torch {facts['torch']}"
    )


def class_names(classes: int) -> list[str]:
    """Made-up names of the foreground classes; ``classes`` counts the background, too."""
    return [f"class{number}" for number in range(1, classes)]


def make_batch(method: Method, classes: int, present: int) -> Batch:
    """Images of noise that show between 1 and ``present`` classes; AFA's fill a part of every second crop only."""
    config = method.config
    crop, count = config.augmentation.crop_size, config.train.batch_size
    images = [noise_image(crop, crop, seed) for seed in range(count)]
    samples = [
        made_up_sample(method.needs, image.permute(1, 2, 0).numpy(), number, classes, present)
        for number, image in enumerate(images)
    ]
    names = [f"noise{number}" for number in range(count)]
    if not isinstance(method, AFA):
        transform = method.transform()
        rows = [transform(sample, np.random.default_rng(number)) for number, sample in enumerate(samples)]
        return {**default_collate(rows), "name": names}
    mean = torch.tensor(config.dataset.image_mean)[:, None, None]
    std = torch.tensor(config.dataset.image_std)[:, None, None]
    valid_box = torch.tensor([[0, crop, 0, crop]] * count)
    valid_box[1::2] = torch.tensor([crop // 16, crop - crop // 8, 0, crop])
    return {
        "image": torch.stack([(image.float() - mean) / std for image in images]),
        "class_labels": torch.stack([torch.as_tensor(sample.class_labels) for sample in samples]),
        "valid_box": valid_box,
        "name": names,
    }


def made_up_sample(needs: Sequence[str], image: np.ndarray, number: int, classes: int, present: int) -> Sample:
    """An image with all that a method needs of it: between 1 and ``present`` classes, in upright stripes.

    Raises:
        UserError: A need that nobody can make up.
    """
    count = 1 + number % present
    ids = sorted((number + index) % (classes - 1) + 1 for index in range(count))
    class_labels = np.zeros(classes - 1, np.float32)
    class_labels[[class_id - 1 for class_id in ids]] = 1
    stripes = np.arange(image.shape[1]) * (count + 1) // image.shape[1]
    channels = torch.from_numpy(np.broadcast_to(stripes, image.shape[:2]).copy())
    inputs: dict[str, Any] = {}
    for need in needs:
        if need.startswith("maps/"):
            scores = torch.nn.functional.one_hot(channels, count + 1).permute(2, 0, 1)[None].float()
            counted = torch.ones(1, count + 1, dtype=torch.bool)
            inputs[need] = Maps(scores, torch.tensor([[0, *ids]]), counted, has_background=True)
        elif need == "pixel_labels":
            inputs[need] = torch.tensor([0, *ids])[channels].to(torch.uint8).numpy()
        elif need == "saliency":
            inputs[need] = (255 * (channels > 0)).to(torch.uint8).numpy()
        elif need != "class_labels":
            raise UserError(f"a step that needs '{need}' cannot be measured")
    return Sample(f"noise{number}", image, class_labels, inputs)


def floor_flops(config: RunConfig, classes: int, *, classification: bool = False) -> int:
    """Operations that no implementation of the step can avoid: the network's forward and backward pass.

    Of AFA: the encoder over all CAM scales with mirrors, and encoder, decoder and classifier forward and backward; for
    a classification step encoder and classifier forward and backward alone. The raw attention that the affinity head
    reads is part of the encoder. Counted on shapes alone, with attention written out.
    """
    crop, batch = config.augmentation.crop_size, config.train.batch_size
    if not isinstance(config, AFAConfig):
        with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
            method = build_method(config, class_names(classes), SingleProcess(torch.device("meta")))
            method.network.train()(torch.empty(batch, 3, crop, crop)).sum().backward()
        return counter.total
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
        network = build_network(config.model, classes).train()
        if not classification:
            with torch.no_grad():
                for scale in config.cam.scales:
                    passes = torch.empty(2 * batch, 3, int(scale * crop), int(scale * crop))
                    network.encoder(passes, cam_only=True)
        output = network(torch.empty(batch, 3, crop, crop), decode=not classification, with_affinity=False)
        loss = output.cls_logits.sum()
        if not classification:
            loss = loss + output.seg_logits.sum()
        loss.backward()
    return counter.total
