"""Predictions in order, with what follows a network's passes beside the passes of the next images."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

import torch

from afa.data.parallel import usable_cores
from afa.data.samples import Sample
from afa.device import set_own_threads
from afa.methods.base import Found, Method, SegmentationProtocol

Group = TypeVar("Group")

_AT_ONCE = 2  # one runs its passes, the other one works on what came out of its own


def predictions(
    method: Method,
    groups: Iterable[tuple[Group, Sequence[Sample]]],
    wanted: Sequence[str],
    protocol: SegmentationProtocol,
    device: torch.device,
) -> Iterator[tuple[Group, list[Found]]]:
    """Predict groups of images, and give each with its predictions, in their order and with the same values as one by
    one.

    Where a processor core is left, two groups are in work at a time: one runs the network, and the other one, in
    another thread, does what follows its passes (CAM fusion, PAR, random walk, DenseCRF). The caller's own work on a
    group, such as writing files, lies beside both. The network itself runs once at a time.

    Args:
        method: Its network is in evaluation mode.
        groups: Anything of the caller's, and the samples that run together.
        wanted: Names of outputs.
        protocol: Of segmentations.
        device: Of the network.

    Raises:
        Exception: What ``groups`` or the method raises, after everything before it was given.
    """

    def predict(samples: Sequence[Sample]) -> list[Found]:
        with torch.no_grad():
            return method.predict(samples, wanted, protocol)

    searching = torch.backends.cudnn.benchmark
    # Images have many sizes: a search for the fastest convolution would begin anew with each. And what it finds may
    # differ from one start of a command to the next, and so may the rounding.
    torch.backends.cudnn.benchmark = False
    try:
        if _is_worth_threads(method, device):
            yield from _in_threads(method, groups, predict, device)
        else:
            for group, samples in groups:
                yield group, predict(samples)
    finally:
        torch.backends.cudnn.benchmark = searching


def _in_threads(
    method: Method,
    groups: Iterable[tuple[Group, Sequence[Sample]]],
    predict: Callable[[Sequence[Sample]], list[Found]],
    device: torch.device,
) -> Iterator[tuple[Group, list[Found]]]:
    """:func:`predictions` with two groups in work at a time."""
    threads = torch.get_num_threads()
    gpu = None
    if device.type == "cuda":  # "cuda" alone is the GPU of this thread; another thread begins with the first one
        gpu = torch.cuda.current_device() if device.index is None else device.index

    def begin() -> None:
        set_own_threads(threads)  # with another number, products may round in another way
        if gpu is not None:
            torch.cuda.set_device(gpu)

    waiting: deque[tuple[Group, Future[list[Found]]]] = deque()
    source = iter(groups)
    failed: Exception | None = None
    method.turn = threading.RLock()  # a pass within a pass does not wait for itself
    pool = ThreadPoolExecutor(_AT_ONCE, "prediction", begin)
    try:
        while True:
            try:
                group, samples = next(source)
            except StopIteration:
                break
            except Exception as error:  # what comes before it in the list is finished, as one by one
                failed = error
                break
            waiting.append((group, pool.submit(predict, samples)))
            if len(waiting) > _AT_ONCE:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
        if failed is not None:
            raise failed
    finally:
        failed = None  # its traceback holds this frame, and so the loader with its processes: they would live on
        pool.shutdown(cancel_futures=True)
        method.turn = nullcontext()


def _is_worth_threads(method: Method, device: torch.device) -> bool:
    """Whether a core is left that the network's passes do not use, and the passes are told apart from all else.

    Inside a pass of tf32, a GPU's products of other threads would be rounded as well.
    """
    if not method.low_precision or method.precision == "tf32":
        return False
    if device.type == "cuda":
        return usable_cores() > 1
    if device.type != "cpu":  # PyTorch does not promise that several threads may use another kind of GPU at once
        return False
    said = os.environ.get("LOCAL_WORLD_SIZE", "")
    beside = int(said) if said.isdecimal() else 1  # processes of torchrun on this machine
    return torch.get_num_threads() * beside < usable_cores()
