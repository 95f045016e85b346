"""Data loaders for training and evaluation."""

from __future__ import annotations

import logging
import multiprocessing
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from afa.data.dataset import EvaluationImages, Split, SplitImages, TrainingImages
from afa.data.images import DamagedImage
from afa.data.parallel import end_with_parent
from afa.data.sampler import ListedPairSampler, PairSampler, StreamSampler
from afa.errors import UserError, leave_without_waiting

if TYPE_CHECKING:
    from afa.config import DatasetConfig

logger = logging.getLogger(__name__)

_SLICE = 0.1  # seconds between two looks at whether to go on waiting
_GRACE = 1.0  # seconds in which processes end by themselves, or are ended

LOST_LOADER = "DataLoader worker (pid"
"""How PyTorch begins to say that a loader process is gone; an error within one is passed on with other words."""

# How PyTorch begins to say that no batch came in time.
_TIMED_OUT = "DataLoader timed out"


class StopRequest(Protocol):
    """Somebody who may ask this process to stop."""

    def asked(self) -> bool:
        """Whether a request has come."""
        ...

    def kept_from_children(self) -> AbstractContextManager[None]:
        """Processes that start inside do not hear of it."""
        ...


class LoadingStopped(Exception):
    """A request to stop came while images were waited for."""


class ImageLoader(DataLoader[Any]):
    """A loader that can be stopped at any time.

    It raises a worker's :class:`UserError` as it is: one line, without the worker's traceback. While it waits for an
    image, it looks at the time limit and at requests to stop; so it reads in a thread where it has no processes. When
    it is left, its processes are ended, also those that hang in a read.

    Args:
        images: What it loads.
        files: The files that belong to a key of ``images``, for messages.
        damaged: What becomes of a damaged image: its error is raised, it is left out with a warning, or its error is
            given in its place.
        read_timeout: Seconds to wait for a batch at most; 0 waits for ever.
        stop: Who may ask to stop.
        **settings: Those of PyTorch's loader.
    """

    def __init__(
        self,
        images: Dataset[Any],
        *,
        files: Callable[[Any], Sequence[Path]],
        damaged: Literal["raise", "skip", "give"] = "raise",
        read_timeout: float = 0.0,
        stop: StopRequest | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        **settings: Any,
    ) -> None:
        self._files = files
        self._damaged = damaged
        self._read_timeout = read_timeout
        self._stop = stop
        self._items = _ErrorsAsItems(images, num_workers)
        # One sample at a time where there are no batches.
        kind = "sampler" if settings.get("batch_size", 1) is None else "batch_sampler"
        settings[kind] = self._drawn = _DrawnKeys(settings.get(kind, range(len(images))))  # type: ignore[arg-type]
        # Of its own, so that starting to load does not draw from the global random state.
        generator = torch.Generator()
        super().__init__(
            self._items,
            generator=generator,
            worker_init_fn=_begin_worker,
            num_workers=num_workers,
            timeout=_SLICE if num_workers else 0,
            # A thread would do it on the first GPU, whichever is this process's.
            pin_memory=pin_memory and num_workers > 0,
            **settings,
        )

    def __iter__(self) -> Generator[Any, None, None]:  # type: ignore[override]
        source: _FromProcesses | _FromThread
        # Signals that come now are for this process alone.
        with self._stop.kept_from_children() if self._stop is not None else nullcontext():
            source = (_FromProcesses if self.num_workers else _FromThread)(super().__iter__)
        drawn = self._drawn.latest
        try:
            while True:
                try:
                    batch = self._wait(source, drawn)
                except StopIteration:
                    return
                drawn.popleft()
                if isinstance(batch, DamagedImage) and self._damaged == "skip":
                    logger.warning("%s; it is left out", batch)
                elif isinstance(batch, UserError) and not (isinstance(batch, DamagedImage) and self._damaged == "give"):
                    raise batch
                else:
                    yield batch
        finally:
            source.end()

    def _wait(self, source: _FromProcesses | _FromThread, drawn: deque[Any]) -> Any:
        """The next batch.

        Raises:
            StopIteration: There is none.
            LoadingStopped: Somebody asked to stop.
            UserError: It did not come in time.
        """
        slices = 0
        while True:
            try:
                return source.get()
            except _NothingYet:
                # Slices are counted, no clock is asked: a process that was stopped for an hour has not waited for one.
                slices += 1
            if self._stop is not None and self._stop.asked():
                raise LoadingStopped
            if self._read_timeout and slices * _SLICE >= self._read_timeout:
                raise UserError(
                    f"{self._missing(drawn[0])} could not be read in {self._read_timeout:g} s: is the drive still "
                    "there? dataset.read_timeout is the time limit, 0 is none"
                )

    def _missing(self, keys: Any) -> str:
        """What is waited for: the file that is being read, or, where nobody knows, all of the batch."""
        batch = keys if isinstance(keys, list) else [keys]
        hanging = [key for key in batch if _number(key) in self._items.being_read]
        return " or ".join(str(path) for key in hanging or batch for path in self._files(key))


class _NothingYet(Exception):
    """No batch came within a slice of time."""


class _FromProcesses:
    """Batches that other processes load."""

    def __init__(self, start: Callable[[], Iterator[Any]]) -> None:
        others = multiprocessing.active_children()
        self._iterator = [start()]
        self._processes = [process for process in multiprocessing.active_children() if process not in others]

    def get(self) -> Any:
        try:
            return next(self._iterator[0])
        except RuntimeError as error:
            if str(error).startswith(_TIMED_OUT):
                raise _NothingYet from None
            raise
        except (ConnectionError, EOFError) as error:
            # It died while it handed a batch over.
            raise RuntimeError(f"{LOST_LOADER} unknown) is gone: {error}") from error

    def end(self) -> None:
        """End the processes: PyTorch asks them to, and waits for each; those that hang are killed."""
        asking = threading.Thread(target=self._iterator.clear, daemon=True)
        asking.start()
        asking.join(_GRACE)
        _kill([process for process in self._processes if process.is_alive()])
        asking.join(_GRACE)
        if asking.is_alive() or any(process.is_alive() for process in self._processes):
            leave_without_waiting()


class _FromThread:
    """Batches that a thread of this process loads, one at a time and on demand."""

    def __init__(self, start: Callable[[], Iterator[Any]]) -> None:
        self._wishes: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._wished = False
        arguments = (start(), self._wishes, self._answers)
        threading.Thread(target=_answer, args=arguments, daemon=True).start()

    def get(self) -> Any:
        if not self._wished:
            self._wishes.put(True)
            self._wished = True
        try:
            batch, error = self._answers.get(timeout=_SLICE)
        except queue.Empty:
            raise _NothingYet from None
        self._wished = False
        if error is not None:
            raise error
        return batch

    def end(self) -> None:
        """End the thread; one that hangs ends with the process."""
        self._wishes.put(False)


def _answer(
    batches: Iterator[Any],
    wishes: queue.SimpleQueue[bool],
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]],
) -> None:
    while wishes.get():
        try:
            answers.put((next(batches), None))
        except BaseException as error:  # the end of the batches, too, is the other thread's to see
            answers.put((None, error))


def _kill(processes: Sequence[BaseProcess]) -> None:
    if not processes:
        return
    # PyTorch would take their end for an accident and raise an error from a signal handler.
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main else None
    try:
        for process in processes:
            process.kill()
        for process in processes:
            process.join(_GRACE)
    finally:
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


class _DrawnKeys:
    """A sampler that remembers what it has given and has not been delivered yet, in ``latest``."""

    def __init__(self, sampler: Iterable[Any]) -> None:
        self.sampler = sampler
        self.latest: deque[Any] = deque()

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        drawn: deque[Any] = deque()
        self.latest = drawn
        return self._draw(drawn)

    def _draw(self, drawn: deque[Any]) -> Iterator[Any]:
        for keys in self.sampler:
            drawn.append(keys)
            yield keys


class _ErrorsAsItems(Dataset[Any]):
    """Gives what was raised instead of raising it: PyTorch would wrap it into a traceback.

    ``being_read`` says for each process that loads which image it is at, -1 between two.
    """

    def __init__(self, images: Dataset[Any], workers: int) -> None:
        self.images = images
        self.being_read: Any = RawArray("q", [-1] * max(1, workers))

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        worker = get_worker_info()
        place = 0 if worker is None else worker.id
        self.being_read[place] = _number(key)
        try:
            return self.images[key]
        except UserError as error:
            return error
        finally:
            self.being_read[place] = -1


def _number(key: Any) -> int:
    """The image of a key: a training key's place in the stream comes before it."""
    return int(key[-1] if isinstance(key, tuple) else key)


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
    read_timeout: float = 0.0,
    stop: StopRequest | None = None,
) -> ImageLoader:
    """Batches for steps ``start_step`` to ``start_step + steps - 1``; accumulated micro-batches follow one another.

    What a batch holds depends on the seed and the step, not on workers, processes or resuming.

    Args:
        images: What is trained on; their seed is that of the order, too, and their sampler says whether partners lie
            side by side.
        global_batch: Images per optimisation step, over all processes and micro-batches.
        batch_size: Images B per process and micro-batch.
        steps: Number of optimisation steps.
        start_step: First step, counted from 0.
        rank: This process.
        world_size: Number of processes.
        workers: Loading processes; 0 loads in this one.
        pin_memory: Page-locked batches, for a GPU, where other processes load.
        read_timeout: Seconds to wait for a batch at most; 0 waits for ever.
        stop: Who may ask to stop, also while a batch is waited for.

    Returns:
        Loader of dictionaries: what the method's transform gives, stacked, and ``name``, a list of B names. All tensors
        are on the CPU.

    Raises:
        UserError: The batch cannot be shared out. From the loader: an image is damaged, or did not come in time.
        LoadingStopped: From the loader: ``stop`` was asked while it waited.
    """
    shares = {
        "seed": images.seed,
        "global_batch": global_batch,
        "batch_size": batch_size,
        "steps": steps,
        "start_step": start_step,
        "rank": rank,
        "world_size": world_size,
    }
    order = StreamSampler(len(images), **shares)
    if images.pairs is not None:
        order = ListedPairSampler(images.pairs, **shares)
    elif images.sampler == "pairs":
        order = PairSampler(images.class_labels, **shares)
    return ImageLoader(
        images,
        files=lambda key: [images.images.layout.image(images.images.names[key[1]], images.images.split)],
        read_timeout=read_timeout,
        stop=stop,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate_training,
        pin_memory=pin_memory,
    )


def evaluation_loader(
    config: DatasetConfig,
    *,
    split: str | None = None,
    inputs: Sequence[str] = (),
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
    workers: int = 0,
    pin_memory: bool = False,
    stop: StopRequest | None = None,
) -> ImageLoader:
    """The images of a split, one by one, at their own size; each process takes every ``world_size``-th.

    Args:
        config: The data set; with ``bad_image`` skip, damaged images and masks are left out with a warning.
            ``read_timeout`` is how long an image is waited for.
        split: Name of the list; the validation list by default.
        inputs: What the outputs to be scored need of an image.
        rank: This process.
        world_size: Number of processes.
        limit: At most this many images, over all processes: the first ones of the list.
        workers: Loading processes; 0 loads in this one.
        pin_memory: Page-locked tensors, for a GPU, where other processes load.
        stop: Who may ask to stop, also while an image is waited for.

    Returns:
        Loader of samples as :class:`EvaluationImages` gives them, without a batch dimension.

    Raises:
        UserError: Something of the data set is missing. From the loader: an image or mask is damaged, or did not come
            in time.
        LoadingStopped: From the loader: ``stop`` was asked while it waited.
    """
    images = EvaluationImages(config, split=split, inputs=inputs, limit=limit)
    share = range(rank, len(images), world_size)

    def files(number: int) -> list[Path]:
        layout, name = images.images.layout, images.images.names[share[number]]
        return [layout.image(name, images.images.split), layout.mask(name, images.images.split)]

    return ImageLoader(
        Subset(images, share),
        files=files,
        damaged="skip" if config.bad_image == "skip" else "raise",
        read_timeout=config.read_timeout,
        stop=stop,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
    )


def split_loader(images: Split, names: Sequence[str], *, workers: int = 0) -> ImageLoader:
    """Some images of a list, one by one, as they are.

    Args:
        images: The list.
        names: Of the images that are wanted, in the order of the list.
        workers: Loading processes; 0 loads in this one.

    Returns:
        Loader of :class:`afa.data.samples.Sample`; with ``bad_image`` skip, of the :class:`DamagedImage` that says what
        is wrong in the place of an image that cannot be read.
    """
    places = {name: index for index, name in enumerate(images.names)}
    return ImageLoader(
        Subset(SplitImages(images), [places[name] for name in names]),
        files=lambda number: [images.layout.image(names[number], images.split)],
        damaged="give" if images.config.bad_image == "skip" else "raise",
        read_timeout=images.config.read_timeout,
        batch_size=None,
        num_workers=workers,
    )


def collate_training(samples: Sequence[dict[str, Any] | UserError]) -> dict[str, Any] | UserError:
    """Stack samples of :class:`TrainingImages` into a batch; names become a list. An error takes the batch's place."""
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    whole = cast(Sequence[dict[str, Any]], samples)
    batch: dict[str, Any] = {key: torch.stack([sample[key] for sample in whole]) for key in whole[0] if key != "name"}
    batch["name"] = [sample["name"] for sample in whole]
    return batch


def _begin_worker(worker: int) -> None:
    # Workers already share the cores out; OpenCV's own threads would fight over them.
    cv2.setNumThreads(0)
    # One that hangs in a read does not see by itself that nobody waits for it any more.
    end_with_parent()
