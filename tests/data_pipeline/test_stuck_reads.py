"""A read that never comes back: the loader says which, hears of requests to stop, and can be left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Dataset

from afa.data.images import DamagedImage
from afa.data.loader import ImageLoader, LoadingStopped
from afa.errors import UserError

BOTH = pytest.mark.parametrize("workers", [0, 2])


class Drive(Dataset[dict[str, Any]]):
    """Six images, some on a drive that does not answer: a pipe that nobody writes to stands for it."""

    def __init__(self, pipe: Path, *hanging: int) -> None:
        self.pipe, self.hanging = pipe, hanging

    def __len__(self) -> int:
        return 6

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        number = key if isinstance(key, int) else key[1]
        if number in self.hanging:
            os.close(os.open(self.pipe, os.O_RDONLY))
        return {"number": number}


class Stop:
    """Asks to stop when it has been asked so often."""

    def __init__(self, after: int) -> None:
        self.left = after

    def asked(self) -> bool:
        self.left -= 1
        return self.left < 0

    def kept_from_children(self) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    yield path
    # Lets threads go that still wait.
    os.close(os.open(path, os.O_RDWR))


def loader(images: Dataset[dict[str, Any]], workers: int, **settings: Any) -> ImageLoader:
    return ImageLoader(images, files=files, num_workers=workers, batch_size=None, **settings)


def files(key: Any) -> list[Path]:
    number = key if isinstance(key, int) else key[1]
    return [Path(f"image_{number}.jpg"), Path(f"mask_{number}.png")]


def numbers(samples: Iterator[dict[str, Any]], count: int) -> list[int]:
    return [next(samples)["number"] for _ in range(count)]


@BOTH
def test_a_file_that_does_not_come_is_named(pipe: Path, workers: int) -> None:
    samples = iter(loader(Drive(pipe, 3), workers, read_timeout=2))
    assert numbers(samples, 3) == [0, 1, 2]
    with pytest.raises(UserError, match=r"^image_3.jpg or mask_3.png could not be read in 2 s: .*read_timeout"):
        next(samples)
    assert not multiprocessing.active_children()


@BOTH
def test_of_a_batch_the_one_file_is_named(pipe: Path, workers: int) -> None:
    batches = [[(position, position) for position in range(first, first + 3)] for first in (0, 3)]
    images = ImageLoader(
        Drive(pipe, 4), files=files, num_workers=workers, batch_sampler=batches, collate_fn=list, read_timeout=2
    )
    samples = iter(images)
    assert [sample["number"] for sample in next(samples)] == [0, 1, 2]
    with pytest.raises(UserError, match=r"^image_4.jpg or mask_4.png could not be read"):
        next(samples)


@BOTH
def test_a_request_to_stop_is_heard_while_an_image_is_waited_for(pipe: Path, workers: int) -> None:
    stop = Stop(after=1_000_000)
    samples = iter(loader(Drive(pipe, 1), workers, stop=stop))
    assert numbers(samples, 1) == [0]
    stop.left = 2
    with pytest.raises(LoadingStopped):
        next(samples)
    assert not multiprocessing.active_children()


@BOTH
def test_an_interrupt_ends_the_waiting_at_once(pipe: Path, workers: int) -> None:
    samples = iter(loader(Drive(pipe, 1), workers))
    assert numbers(samples, 1) == [0]
    timer = threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(samples)
    timer.join()
    assert not multiprocessing.active_children()


class DeafProcesses(Stop):
    """As a run has it: its processes do not hear the signals that would end them."""

    def kept_from_children(self) -> AbstractContextManager[None]:
        return Blocked()


class Blocked(AbstractContextManager[None]):
    def __enter__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def test_a_loader_is_left_while_its_processes_hang(pipe: Path) -> None:
    samples = iter(loader(Drive(pipe, 2, 3, 4, 5), 2, stop=DeafProcesses(after=1_000_000)))
    assert numbers(samples, 2) == [0, 1]
    assert len(multiprocessing.active_children()) == 2
    handler = signal.getsignal(signal.SIGCHLD)
    samples.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGCHLD) is handler


@BOTH
def test_a_loader_can_be_looped_over_again(pipe: Path, workers: int) -> None:
    images = loader(Drive(pipe), workers)
    for _ in range(2):
        assert [sample["number"] for sample in images] == list(range(6))
    assert not multiprocessing.active_children()


class Damaged(Drive):
    def __getitem__(self, key: Any) -> dict[str, Any]:
        if key == 1:
            raise DamagedImage("image_1.jpg is damaged")
        if key == 4:
            raise ValueError("a mistake in the program")
        return super().__getitem__(key)


def test_errors_of_the_reading_thread_arrive_as_they_are(pipe: Path) -> None:
    samples = iter(loader(Damaged(pipe), 0, damaged="skip"))
    assert numbers(samples, 3) == [0, 2, 3]
    with pytest.raises(ValueError, match="a mistake in the program"):
        next(samples)
    with pytest.raises(DamagedImage, match=r"image_1.jpg"):
        list(loader(Damaged(pipe), 0))
