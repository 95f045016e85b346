"""Data loaders for training and evaluation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from afa.data.dataset import EvaluationImages, TrainingImages
from afa.data.images import DamagedImage
from afa.data.sampler import StreamSampler
from afa.errors import UserError

if TYPE_CHECKING:
    from afa.config import DatasetConfig

logger = logging.getLogger(__name__)


class ImageLoader(DataLoader[dict[str, Any]]):
    """A loader that raises a worker's :class:`UserError` as it is: one line, without the worker's traceback.

    Args:
        images: What it loads.
        skip_damaged: Leave a damaged image out with a warning instead of raising its error.
        **settings: Those of PyTorch's loader.
    """

    def __init__(self, images: Dataset[dict[str, Any]], *, skip_damaged: bool = False, **settings: Any) -> None:
        self._skip_damaged = skip_damaged
        # Of its own, so that starting to load does not draw from the global random state.
        generator = torch.Generator()
        super().__init__(
            _ErrorsAsItems(images),  # type: ignore[arg-type]
            generator=generator,
            worker_init_fn=_single_threaded,
            **settings,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, DamagedImage) and self._skip_damaged:
                logger.warning("%s; it is left out", batch)
                continue
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _ErrorsAsItems(Dataset[dict[str, Any] | UserError]):
    """Gives what was raised instead of raising it: PyTorch would wrap it into a traceback."""

    def __init__(self, images: Dataset[dict[str, Any]]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> dict[str, Any] | UserError:
        try:
            return self.images[key]
        except UserError as error:
            return error


def training_loader(
    images: TrainingImages,
    *,
    global_batch: int,
    batch_size: int,
    steps: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> ImageLoader:
    """Batches for steps ``start_step`` to ``start_step + steps - 1``; accumulated micro-batches follow one another.

    What a batch holds depends on the seed and the step, not on workers, processes or resuming.

    Args:
        images: What is trained on; their seed is that of the order, too.
        global_batch: Images per optimisation step, over all processes and micro-batches.
        batch_size: Images B per process and micro-batch.
        steps: Number of optimisation steps.
        start_step: First step, counted from 0.
        rank: This process.
        world_size: Number of processes.
        workers: Loading processes; 0 loads in this one.
        pin_memory: Page-locked batches, for a GPU.

    Returns:
        Loader of dictionaries: ``image`` float32 [B, 3, S, S], ``class_labels`` float32 [B, K], ``valid_box`` int64
        [B, 4] (y0, y1, x0, x1) and ``name``, a list of B names. All tensors are on the CPU.

    Raises:
        UserError: The batch cannot be shared out.
    """
    sampler = StreamSampler(
        len(images),
        seed=images.seed,
        global_batch=global_batch,
        batch_size=batch_size,
        steps=steps,
        start_step=start_step,
        rank=rank,
        world_size=world_size,
    )
    return ImageLoader(
        images,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate_training,
        pin_memory=pin_memory,
    )


def evaluation_loader(
    config: DatasetConfig,
    *,
    split: str | None = None,
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
    workers: int = 0,
    pin_memory: bool = False,
) -> ImageLoader:
    """The images of a split, one by one, at their own size; each process takes every ``world_size``-th.

    Args:
        config: The data set; with ``bad_image`` skip, damaged images and masks are left out with a warning.
        split: Name of the list; the validation list by default.
        rank: This process.
        world_size: Number of processes.
        limit: At most this many images, over all processes: the first ones of the list.
        workers: Loading processes; 0 loads in this one.
        pin_memory: Page-locked tensors, for a GPU.

    Returns:
        Loader of samples as :class:`EvaluationImages` gives them, without a batch dimension.

    Raises:
        UserError: Something of the data set is missing.
    """
    images = EvaluationImages(config, split=split, limit=limit)
    return ImageLoader(
        Subset(images, range(rank, len(images), world_size)),
        skip_damaged=config.bad_image == "skip",
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
    )


def collate_training(samples: Sequence[dict[str, Any] | UserError]) -> dict[str, Any] | UserError:
    """Stack samples of :class:`TrainingImages` into a batch; names become a list. An error takes the batch's place."""
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    whole = cast(Sequence[dict[str, Any]], samples)
    batch: dict[str, Any] = {
        key: torch.stack([sample[key] for sample in whole]) for key in ("image", "class_labels", "valid_box")
    }
    batch["name"] = [sample["name"] for sample in whole]
    return batch


def _single_threaded(worker: int) -> None:
    # Workers already share the cores out; OpenCV's own threads would fight over them.
    cv2.setNumThreads(0)
