"""The evaluation table of a network on a data set, streamed image by image.

Memory does not grow with the number of images, and nothing is written to disk. The processes of a job share the images
out; what they add up are whole numbers, so any number of processes gives the same table.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from afa.config import Config, TestConfig
from afa.data.loader import LoadingStopped, StopRequest, evaluation_loader
from afa.errors import UserError
from afa.evaluation.batching import by_size
from afa.evaluation.metrics import ConfusionMatrix, multi_label_f1
from afa.evaluation.predict import predict_images
from afa.evaluation.progress import track
from afa.models import AFANet

# Image uint8 [3, H, W] and probabilities [1, C, H, W] -> marginals [1, C, H, W].
Refinement = Callable[[Tensor, Tensor], Tensor]

_MOST_REFINED_AT_ONCE = 8  # each takes up to 200 MB


class EvaluationStopped(Exception):
    """Some process was asked to stop before all images were seen."""


class Samples(Protocol):
    """Evaluation samples, one by one: a loader, or a list."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def __len__(self) -> int: ...


class Validator:
    """Validation during training: native resolution, one forward for the segmentation.

    Args:
        config: Data set, CAM and affinity settings, ``validation`` section.
        class_names: K names, background left out.
        device: Where the network lies.
        rank: This process.
        world_size: Number of processes; each takes every ``world_size``-th image.
        workers: Loader processes; default: those of training.
        stop: Who may ask to stop, also while an image is waited for.

    Raises:
        UserError: The validation images or their masks are missing.
    """

    def __init__(
        self,
        config: Config,
        class_names: Sequence[str],
        *,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.config = config
        self.class_names = class_names
        self.device = torch.device(device)
        self.rank = rank
        self.loader = evaluation_loader(
            config.dataset,
            rank=rank,
            world_size=world_size,
            workers=config.train.workers if workers is None else workers,
            pin_memory=self.device.type == "cuda",
            stop=stop,
        )

    def __call__(self, network: AFANet, stop: Callable[[], bool] | None = None) -> dict[str, Any]:
        """Score the network as it is; its mode and the random state stay as they were.

        Args:
            network: Without the wrapper of distributed training. Every process calls this at the same step.
            stop: Asked between images (or batches of them). A process that is not asked to stop finishes its share
                first.

        Returns:
            As :func:`evaluate`, the same on every process.

        Raises:
            EvaluationStopped: On every process, where ``stop`` said so on one.
        """
        return evaluate(
            network,
            self.loader,
            config=self.config,
            class_names=self.class_names,
            device=self.device,
            cams=self.config.validation.cam,
            batch_size=self.config.validation.batch_size,
            progress="validating" if self.rank == 0 else None,
            stop=stop,
        )


def evaluate(
    network: AFANet,
    samples: Samples,
    *,
    config: Config,
    class_names: Sequence[str],
    device: torch.device | str,
    test: TestConfig | None = None,
    cams: bool = True,
    segmentation: bool = True,
    refinement: Refinement | None = None,
    batch_size: int = 1,
    progress: str | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Score CAMs, propagated CAMs and segmentation.

    Where ``torch.distributed`` runs, every process gives its own share of the images and gets the whole table; the
    BatchNorm statistics that count are those of the first process.

    Args:
        network: Its mode and the random state are the same afterwards as before.
        samples: As :func:`afa.data.loader.evaluation_loader` gives them; this process's share.
        config: CAM, affinity and propagation settings.
        class_names: K names, background left out.
        device: Where the network lies.
        test: Size, scales and mirror of the segmentation; None: one forward at native size, as in training.
        cams: Whether CAMs are scored: mirrors and all scales, true classes, at native size.
        segmentation: Whether the segmentation is scored.
        refinement: DenseCRF for a further row ``segmentation_crf``. It runs where the network does: on a GPU in turn
            with it, on the CPU beside it, several images at a time.
        batch_size: Images of one size that the network sees together. With more than one, rounding depends on who
            is together: a pixel at a tie may change, and the number of processes with it.
        progress: What to call the work in the progress line; None shows none.
        stop: Asked before each batch whether to give up. Processes whose own ``stop`` does not say so finish their
            share before they learn of it.

    Returns:
        ``cam``, ``propagated_cam``, ``segmentation``, ``segmentation_crf`` (those that were asked for), each as
        :meth:`ConfusionMatrix.scores` with ``background`` first, and ``cls_f1`` and ``images``.

    Raises:
        EvaluationStopped: On every process, where ``stop`` said so on one.
        UserError: There was no image to score, or all were damaged and left out.
    """
    device = torch.device(device)
    names = ("background", *class_names)
    rows = [*(["cam", "propagated_cam"] if cams else []), *(["segmentation"] if segmentation else [])]
    if refinement is not None:
        rows.append("segmentation_crf")
    matrices = {row: ConfusionMatrix(len(names), device) for row in rows}
    f1_values = array("d")
    stopped = False

    was_training, searching = network.training, torch.backends.cudnn.benchmark
    _share_buffers(network)
    network.eval()
    # Images have many sizes: a search for the fastest convolution would begin anew with each.
    torch.backends.cudnn.benchmark = False
    try:
        with torch.no_grad(), _stream(refinement, device) as stream:
            seen_samples = track(samples, len(samples), progress) if progress is not None else samples
            for group in by_size(seen_samples, batch_size):
                if stopped := stop is not None and stop():
                    break
                predictions = predict_images(
                    network,
                    torch.stack([sample["image"].to(device, non_blocking=True) for sample in group]),
                    torch.stack([sample["class_labels"] for sample in group]),
                    cam=config.cam if cams else None,
                    test=test,
                    segmentation=segmentation or refinement is not None,
                )
                for sample, seen in zip(group, predictions, strict=True):
                    label = sample["label"].to(device, non_blocking=True)
                    size = (label.shape[-2], label.shape[-1])
                    if cams:
                        matrices["cam"].update(label, seen.cam_label(size, config.cam.background))
                        background = config.validation.propagation_background
                        propagated = seen.propagated_label(size, background, config.affinity)
                        matrices["propagated_cam"].update(label, propagated)
                    if segmentation:
                        matrices["segmentation"].update(label, seen.segmentation(size))
                    if stream is not None:
                        image = sample["image_uint8"].permute(2, 0, 1).contiguous()
                        stream.add(image, seen.probabilities(size), label, matrices["segmentation_crf"])
                    f1_values.append(multi_label_f1(seen.cls_logits > 0, sample["class_labels"]))
    except LoadingStopped:
        stopped = True
    finally:
        network.train(was_training)
        torch.backends.cudnn.benchmark = searching

    if _any_process(stopped):
        raise EvaluationStopped
    all_f1 = _gather(matrices.values(), f1_values)
    if not all_f1:
        raise UserError("no image could be scored: tools/check_data.py says what is wrong with them")
    table: dict[str, Any] = {row: matrix.scores(names) for row, matrix in matrices.items()}
    # Rounded once, at the end: the sum does not depend on the order.
    table["cls_f1"] = math.fsum(all_f1) / len(all_f1)
    table["images"] = len(all_f1)
    return table


class _RefinementStream:
    """Refines images and counts the results; on the CPU in threads, a few images ahead of the network."""

    def __init__(self, refinement: Refinement, device: torch.device) -> None:
        self.refinement, self.device = refinement, device
        self.threads_before = torch.get_num_threads()
        self.threads = min(_MOST_REFINED_AT_ONCE, self.threads_before) if device.type == "cpu" else 0
        self.pool = ThreadPoolExecutor(max(1, self.threads), initializer=torch.set_num_threads, initargs=(1,))
        self.waiting: deque[tuple[Future[Tensor], Tensor, ConfusionMatrix]] = deque()

    def __enter__(self) -> _RefinementStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self.waiting:
                self._count_first()
        finally:
            self.pool.shutdown(cancel_futures=True)
            # The pool's own setting is also what threads to come would start with.
            torch.set_num_threads(self.threads_before)

    def add(self, image: Tensor, probabilities: Tensor, label: Tensor, matrix: ConfusionMatrix) -> None:
        """Count an image, now or later.

        Args:
            image: uint8 [3, H, W].
            probabilities: [1, C, H, W], on the device.
            label: [H, W].
            matrix: Where it counts.
        """
        if not self.threads:
            matrix.update(label, self._refine(image.to(self.device, non_blocking=True), probabilities))
            return
        if len(self.waiting) > self.threads:
            self._count_first()
        self.waiting.append((self.pool.submit(self._refine, image, probabilities), label, matrix))

    def _refine(self, image: Tensor, probabilities: Tensor) -> Tensor:
        return self.refinement(image, probabilities)[0].argmax(dim=0)

    def _count_first(self) -> None:
        future, label, matrix = self.waiting.popleft()
        matrix.update(label, future.result())


def _stream(refinement: Refinement | None, device: torch.device) -> AbstractContextManager[_RefinementStream | None]:
    return nullcontext() if refinement is None else _RefinementStream(refinement, device)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _any_process(flag: bool) -> bool:
    if not _distributed():
        return flag
    flags: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(flags, flag)
    return any(flags)


def _share_buffers(network: AFANet) -> None:
    """Give every process the first one's BatchNorm statistics: each has gathered its own."""
    if _distributed():
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def _gather(matrices: Iterable[ConfusionMatrix], f1_values: array[float]) -> array[float]:
    """Add the processes' counts up, and join their F1 values."""
    if not _distributed():
        return f1_values
    for matrix in matrices:
        dist.all_reduce(matrix.counts)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, f1_values)
    return array("d", (value for part in gathered for value in part))
