"""Photographs on the disk: how many the loader prepares a second, whether a training waits for them, and labelling."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from afa.benchmarks.gpu.setting import (
    CLASSES,
    PRESENT,
    RECIPE,
    Setting,
    fastest_precision,
    peak_memory,
    restored_backends,
    start_memory,
    step_arguments,
    step_configuration,
)
from afa.benchmarks.gpu.training import first_step
from afa.benchmarks.pictures import make_jpegs
from afa.benchmarks.timing import wait
from afa.benchmarks.training_step import TrainingStep
from afa.config import TrainConfig, config_to_dict
from afa.data.classes import VOC_CLASS_NAMES
from afa.data.dataset import TrainingImages
from afa.data.files import write_json, write_lines
from afa.data.layout import LISTS
from afa.data.loader import training_loader
from afa.data.parallel import usable_cores
from afa.device import choose_device
from afa.engine.checkpoint import CheckpointStore
from afa.engine.optimisation import build_optimiser
from afa.engine.runtime import ProcessRuntime
from afa.methods import build_method, load_config
from afa.methods.afa.config import AFAConfig
from afa.methods.base import SingleProcess
from afa.prediction.labelling import label_split
from afa.prediction.model import load

SPLIT = "train_aug"
WARMING_IMAGES = 2
_LABELLED = ("cam", "propagated_cam", "refined_label", "propagated_label")
_MOST_STEPS = 1_000_000


def measure_loading(setting: Setting) -> Iterator[dict[str, Any]]:
    """The loader alone, and a training that it feeds. The files are in the system's cache: no disk is measured.

    Yields:
        ``loader``: number of worker processes -> images per second; ``fed``: of a training with the quickest number of
        workers, ``workers``, ``step_s`` (mean), ``steps``, and ``wait_share``, the share of the time in which the step
        waits for its batch.
    """
    device, sizes = choose_device(setting.device, "--device"), setting.sizes
    precision = fastest_precision(device)
    args = step_arguments(setting, precision)
    config = step_configuration(args)
    config.dataset.root = str(photographs(setting))
    rates: dict[str, float] = {}
    with restored_backends(), ProcessRuntime.start(config.train) as runtime:
        training = TrainingStep(config, runtime, args, setting.folder)
        for workers in worker_counts(usable_cores(), small=setting.small):
            with closing(_batches(config, training, workers)) as batches:
                next(batches)  # the processes start
                start, count = time.perf_counter(), 0
                while count < sizes.least or time.perf_counter() - start < sizes.seconds / 2:
                    next(batches)
                    count += 1
                rates[str(workers)] = count * sizes.batch / (time.perf_counter() - start)
            yield {"precision": precision, "loader": rates}
        quickest = max(rates, key=lambda name: rates[name])
        yield {"fed": {"workers": int(quickest), **_fed(config, training, int(quickest), setting)}}


def worker_counts(cores: int, *, small: bool) -> list[int]:
    """Numbers of loader processes that are tried: powers of two up to the cores, and the cores."""
    if small:
        return [0, 1]
    return sorted({count for count in (1, 2, 4, 8, 16) if count <= cores} | {min(cores, 32)})


def _fed(config: AFAConfig, training: TrainingStep, workers: int, setting: Setting) -> dict[str, Any]:
    sizes, device = setting.sizes, training.device
    number, waited, count = first_step(config, "propagated"), 0.0, 0
    with closing(_batches(config, training, workers)) as batches:
        for _ in range(sizes.warm_up):
            training.trainer.step(number, [training.trainer.to_device(next(batches))])
        wait(device)
        start = time.perf_counter()
        while count < sizes.least or time.perf_counter() - start < sizes.seconds:
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            training.trainer.step(number, [training.trainer.to_device(batch)])
            count += 1
        wait(device)
        whole = time.perf_counter() - start
    return {"step_s": whole / count, "steps": count, "wait_share": waited / whole}


def _batches(config: AFAConfig, training: TrainingStep, workers: int) -> Any:
    method = training.method
    images = TrainingImages(
        config.dataset, method.transform(), needs=method.needs, seed=config.train.seed, sampler=method.sampler
    )
    batch = config.train.batch_size
    return iter(
        training_loader(
            images,
            global_batch=batch,
            batch_size=batch,
            steps=_MOST_STEPS,
            workers=workers,
            pin_memory=training.device.type == "cuda",
        )
    )


def measure_labelling(setting: Setting) -> Iterator[dict[str, Any]]:
    """The label stage, as ``afa label`` runs it: multi-scale CAMs, PAR, random walk, maps and labels written.

    The network has random weights, and every image shows one or two of VOC's classes.

    Yields:
        ``images``, ``seconds``, ``images_per_s``, ``outputs``, ``workers``, and memory.
    """
    sizes, folder = setting.sizes, setting.folder / "labelling"
    device = choose_device(setting.device, "--device")
    settings = [*sizes.model, "model.pretrained=null", f"augmentation.crop_size={sizes.crop}"]
    config = load_config(RECIPE, settings)
    config.dataset.root = str(photographs(setting))
    torch.manual_seed(0)
    method = build_method(config, VOC_CLASS_NAMES, SingleProcess())
    store = CheckpointStore(folder)
    facts = {"config": config_to_dict(config), "class_names": list(VOC_CLASS_NAMES)}
    if not store.save(1, method.network, build_optimiser(method.parameter_groups(), config.optimiser), facts):
        raise OSError(f"no checkpoint could be written below {folder}")
    workers = 0 if setting.small else min(usable_cores(), config.train.workers)
    with restored_backends(), ProcessRuntime.start(TrainConfig(device=setting.device)) as runtime:
        model = load(store.path(1), device=str(runtime.device))
        outputs = [output for output in model.method.outputs if output.name in _LABELLED]
        start_memory(device)
        for limit, name in ((WARMING_IMAGES, "warming"), (None, "labels")):
            wait(device)
            start = time.perf_counter()
            done = label_split(
                model,
                split=SPLIT,
                output=folder / name,
                outputs=outputs,
                maps=True,
                compress=False,
                limit=limit,
                workers=workers,
                processes=runtime,
            )
            wait(device)
            seconds = time.perf_counter() - start
    yield {
        "images": done.written,
        "seconds": seconds,
        "images_per_s": done.written / seconds,
        "outputs": [output.name for output in outputs],
        "workers": workers,
        **peak_memory(device),
    }


def photographs(setting: Setting) -> Path:
    """A data set in VOC's layout, made unless it is there: JPEG files and their class labels."""
    root, sizes = setting.folder / "photographs", setting.sizes
    labels = root / LISTS / "class_labels.json"
    if not labels.exists():  # written last
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        names = [path.stem for path in make_jpegs(root / "JPEGImages", sizes.images, sizes.photograph)]
        (root / LISTS).mkdir(parents=True, exist_ok=True)
        write_lines(root / LISTS / f"{SPLIT}.txt", names)
        classes = {
            name: [VOC_CLASS_NAMES[(number + index) % (CLASSES - 1)] for index in range(1 + number % PRESENT)]
            for number, name in enumerate(names)
        }
        write_json(labels, classes)
    return root
