"""The label stage: a trained method predicts every image of a split and saves its outputs."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from afa.config import RunConfig, config_to_dict
from afa.data.dataset import SETTINGS_OF_PLACES, Split
from afa.data.images import DamagedImage
from afa.data.inputs import CLASS_LABELS
from afa.data.layout import find_layout
from afa.data.loader import split_loader
from afa.data.map_files import AS_THEY_ARE, StoredForm
from afa.data.names import two_of_each
from afa.data.notices import say
from afa.data.samples import Sample
from afa.errors import UserError
from afa.methods.base import Output
from afa.prediction.ahead import predictions
from afa.prediction.batching import by_size
from afa.prediction.label_folder import LabelFolder
from afa.prediction.model import Model, scored_class_names
from afa.progress import track
from afa.weights.reading import file_checksum

logger = logging.getLogger(__name__)

_SPARE_BYTES = 2**28  # so much of the disk is left alone
# What a run did to come about, where its data lie, and how the work is done shape no label.
_WITHOUT_EFFECT = ("train", "optimiser", "augmentation", "loss", "schedule")
_SETTINGS_WITHOUT_EFFECT = {
    "dataset": (*SETTINGS_OF_PLACES, "train_split", "val_split"),
    "validation": ("every", "outputs", "batch_size"),
    "test": ("batch_size",),
}

Value = TypeVar("Value")


class Processes(Protocol):
    """The processes that share the work: those of torchrun, or one."""

    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this one speaks and writes what is common."""
        ...

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, in the order of their ranks."""
        ...

    def on_main(self, function: Any) -> Any:
        """Let the main process do something; every process gets its result."""
        ...


@dataclass(frozen=True)
class Labelled:
    """What came of it.

    Attributes:
        images: How many images are labelled now.
        written: How many of them were written by this call.
        failures: One line for each image that could not be read.
    """

    images: int
    written: int
    failures: tuple[str, ...]


def label_split(
    model: Model,
    *,
    split: str,
    output: Path,
    outputs: Sequence[Output],
    maps: bool,
    compress: bool,
    limit: int | None,
    workers: int,
    processes: Processes,
    form: StoredForm = AS_THEY_ARE,
) -> Labelled:
    """Label the images of a split that are not labelled yet.

    Args:
        model: Looks at them.
        split: Name of the list.
        output: The label folder; made, or gone on with.
        outputs: What is written.
        maps: Whether maps are written beside the labels made of them.
        compress: Whether maps are compressed.
        limit: The first images of the list only.
        workers: Loader processes.
        processes: Who shares the images.
        form: Size and precision of the maps.

    Raises:
        UserError: Something of the data set is missing, the folder holds other labels, or the disk is too small.
    """
    scored_class_names(model)
    images = _images(model, split, outputs, limit)
    facts = _facts(model, images, outputs, limit)
    # A folder of an earlier version does not name the settings that are new: they were what they are by default.
    unnamed = {"config": _shaping_settings(type(model.config)())}
    folder = LabelFolder(output, facts, outputs, maps=maps, compress=compress, form=form, unnamed=unnamed)
    processes.on_main(folder.begin)
    processes.on_main(folder.tidy)
    mine = [name for name in images.names[processes.rank :: processes.world_size] if not folder.is_done(name)]
    start = time.monotonic()
    failures: list[str] = []
    written = 0
    try:
        for sample in _labelled(model, folder, images, mine, workers, failures, speaks=processes.is_main):
            written += 1
            if written == 1 and processes.is_main:
                _check_disk(folder, folder.bytes_of(sample.name), processes.world_size * (len(mine) - 1))
    except OSError as error:
        raise UserError(
            f"{output} cannot be written: {error.strerror or error}; the same command goes on from here"
        ) from error
    counts = processes.gather((written, failures))
    every_failure = tuple(failure for _, found in counts for failure in found)
    done = Labelled(len(images) - len(every_failure), sum(count for count, _ in counts), every_failure)
    manifest = {
        "images": done.images,
        "failures": list(done.failures),
        "outputs": [wanted.name for wanted in outputs],
        "seconds": round(time.monotonic() - start, 1),
    }
    processes.on_main(lambda: folder.finish(manifest) if done.written or done.failures else None)
    return done


def _images(model: Model, split: str, outputs: Sequence[Output], limit: int | None) -> Split:
    """The images with what the outputs need, and with the class labels that training would take.

    Raises:
        UserError: Something is missing, or only some of the images have class labels.
    """
    dataset = model.config.dataset
    layout = find_layout(dataset)
    inputs = {name for wanted in outputs for name in wanted.inputs}
    if CLASS_LABELS in model.method.needs and layout.labels is None and layout.has_masks(split):
        inputs.add(CLASS_LABELS)
    images = Split(dataset, split, inputs=sorted(inputs), limit=limit)
    without = [name for name in images.names if name not in images.class_labels]
    if CLASS_LABELS not in model.method.needs:
        return images
    if len(without) == len(images):
        say(f"the images of '{split}' have no class labels: the classifier's own count", logging.INFO)
    elif without:
        wanted = set(images.names)
        compared = two_of_each(without, (name for name in images.class_labels if name not in wanted))
        raise UserError(
            f"the labels file {layout.labels} has no labels for {len(without)} of the {len(images)} images of "
            f"'{split}', the first is '{without[0]}'{compared}: add them, or make a new file with 'afa prepare labels'"
        )
    return images


@torch.no_grad()
def _labelled(
    model: Model,
    folder: LabelFolder,
    images: Split,
    names: Sequence[str],
    workers: int,
    failures: list[str],
    *,
    speaks: bool,
) -> Iterator[Sample]:
    """Label images one by one, or those of one size together; gives each when its files are written."""
    wanted = [output.name for output in folder.outputs]
    samples = _readable(images, names, workers, failures)
    tracked = track(samples, len(names), "labelling") if speaks else samples
    groups = by_size(tracked, model.config.test.batch_size, size=lambda sample: sample.image.shape[:2])
    pairs = ((group, group) for group in groups)
    for group, of_group in predictions(model.method, pairs, wanted, model.protocol, model.device):
        for sample, found in zip(group, of_group, strict=True):
            folder.write(sample.name, found, sample.image.shape[:2])
            yield sample


def _readable(images: Split, names: Sequence[str], workers: int, failures: list[str]) -> Iterator[Sample]:
    """The images that can be read; with ``bad_image`` stop, the first that cannot ends it."""
    try:
        for found in split_loader(images, names, workers=workers):
            if isinstance(found, DamagedImage):
                failures.append(str(found))
                logger.warning("%s; it gets no label", found)
            else:
                yield found
    except DamagedImage as error:
        raise DamagedImage(f"{error} ('afa check' finds all; dataset.bad_image=skip goes on)") from error


def _facts(model: Model, images: Split, outputs: Sequence[Output], limit: int | None) -> dict[str, Any]:
    """What makes the folder what it is. Where things lie does not."""
    return {
        "made_by": "afa label",
        "method": model.method.name,
        "weights_sha256": file_checksum(model.weights),
        "step": model.step,
        "class_names": list(model.class_names),
        "split": images.split,
        "limit": limit,
        "images": images.fingerprint,
        "outputs": {
            output.name: {"kind": output.kind, "threshold": output.threshold, "inputs": list(output.inputs)}
            for output in outputs
        },
        "config": _shaping_settings(model.config),
    }


def _shaping_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that shape labels."""
    shaping = {key: value for key, value in config_to_dict(config).items() if key not in _WITHOUT_EFFECT}
    for section, names in _SETTINGS_WITHOUT_EFFECT.items():
        shaping[section] = {key: value for key, value in shaping[section].items() if key not in names}
    return shaping


def _check_disk(folder: LabelFolder, bytes_of_one: int, images: int) -> None:
    """Say how much all images will need, judged by the first, before hours are spent on them."""
    needed, free = bytes_of_one * images, shutil.disk_usage(folder.root).free
    if images:
        logger.info("about %.2f GB for %d more images, judged by the first", needed / 1e9, images)
    if needed + _SPARE_BYTES > free:
        advice = "" if folder.compress or not folder.maps else ", give --compress, --maps-size or --no-maps"
        raise UserError(
            f"about {needed / 1e9:.1f} GB are needed in {folder.root}, {free / 1e9:.1f} GB are free: make room there, "
            f"name fewer --outputs{advice}; the same command goes on from here"
        )
