"""The evaluation table of a method on a data set, streamed image by image.

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
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from afa.data.loader import LoadingStopped
from afa.data.samples import EvaluationSample
from afa.device import set_own_threads
from afa.errors import UserError
from afa.evaluation.metrics import ConfusionMatrix, ImageCounts, multi_label_f1
from afa.maps import Maps
from afa.methods.base import Method, Output, SegmentationProtocol, scored_outputs
from afa.prediction.ahead import predictions
from afa.prediction.batching import by_size
from afa.progress import track

# Image uint8 [3, H, W] and probabilities [1, C, H, W] -> marginals [1, C, H, W].
Refinement = Callable[[Tensor, Tensor], Tensor]

Group = TypeVar("Group")

_MOST_REFINED_AT_ONCE = 8  # each takes up to 200 MB


class EvaluationStopped(Exception):
    """Some process was asked to stop before all images were seen."""


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
        table: Output's name -> scores, as :meth:`afa.evaluation.metrics.Counts.scores` gives them, ``background``
            first; ``NAME_crf`` for a refined output; ``cls_f1`` where the method has a classifier; and ``images``.
        per_image: The same rows -> counts of each image.
        confusion: The same rows -> confusion matrix, int64 [C, C + 1].
    """

    table: dict[str, Any]
    per_image: dict[str, ImageCounts]
    confusion: dict[str, Tensor]


class Samples(Protocol):
    """Evaluation samples, one by one: a loader, or a list."""

    def __iter__(self) -> Iterator[EvaluationSample]: ...

    def __len__(self) -> int: ...


def evaluate(
    method: Method,
    samples: Samples,
    *,
    class_names: Sequence[str],
    device: torch.device | str,
    outputs: Sequence[str] | None = None,
    protocol: SegmentationProtocol | None = None,
    refinement: Refinement | None = None,
    known_classes: bool = False,
    batch_size: int = 1,
    progress: str | None = None,
    stop: Callable[[], bool] | None = None,
) -> Evaluation:
    """Score a method's outputs.

    Where ``torch.distributed`` runs, every process gives its own share of the images and gets the whole table; the
    BatchNorm statistics that count are those of the first process.

    Args:
        method: Its network's mode and the random state are the same afterwards as before.
        samples: As :func:`afa.data.loader.evaluation_loader` gives them; this process's share. Maps are made with their
            class labels.
        class_names: K names, without the background.
        device: Where the network lies.
        outputs: Names of those to score; default: all that are scored.
        protocol: Of the segmentation; default: one forward at native size, as in training.
        refinement: DenseCRF for a further row, ``NAME_crf`` of the last output that gives logits. It runs where the
            network does: on a GPU in turn with it, on the CPU beside it, several images at a time.
        known_classes: A further row, ``NAME_known`` of the same output: its label among the background and the classes
            of each image's class labels, which is what labels for training are made with.
        batch_size: Images of one size that the network sees together. With more than one, rounding depends on who
            is together: a pixel at a tie may change, and the number of processes with it.
        progress: What to call the work in the progress line; None shows none.
        stop: Asked before each batch whether to give up. Processes whose own ``stop`` does not say so finish their
            share before they learn of it.

    Returns:
        The table, and each image's counts.

    Raises:
        EvaluationStopped: On every process, where ``stop`` said so on one.
        UserError: There was no image to score, or all were damaged and left out; or there is nothing to refine, or no
            segmentation to tell the classes of.
    """
    device = torch.device(device)
    names = ("background", *class_names)
    rows = [output for output in scored_outputs(method) if outputs is None or output.name in outputs]
    refined = _segmentation(method, "--crf") if refinement is not None else None
    named = _segmentation(method, "--known-classes") if known_classes else None
    matrices = {output.name: ConfusionMatrix(len(names), device) for output in rows}
    if refined is not None:
        matrices[f"{refined.name}_crf"] = ConfusionMatrix(len(names), device)
    if named is not None:
        matrices[f"{named.name}_known"] = ConfusionMatrix(len(names), device)
    further = (output.name for output in (refined, named) if output is not None)
    wanted = list(dict.fromkeys([*(output.name for output in rows), *further]))
    per_image = {row: ImageCounts() for row in matrices}
    f1_values = array("d")
    count = 0
    stopped = False

    def count_label(row: str, name: str, truth: Tensor, found: Tensor) -> None:
        per_image[row].add(name, matrices[row].update(truth, found))

    network = method.network
    was_training = network.training
    _share_buffers(network)
    network.eval()
    try:
        with torch.no_grad(), _stream(refinement, device) as stream:
            seen_samples = track(samples, len(samples), progress) if progress is not None else samples
            groups = by_size(seen_samples, batch_size, size=lambda seen: seen.sample.image.shape[:2])
            pairs = ((group, [seen.sample for seen in group]) for group in _until(stop, groups))
            for group, found in predictions(method, pairs, wanted, protocol or SegmentationProtocol(), device):
                for seen, image in zip(group, found, strict=True):
                    count += 1
                    label = seen.label.to(device, non_blocking=True)
                    size = (label.shape[-2], label.shape[-1])
                    for output in rows:
                        count_label(
                            output.name, seen.sample.name, label, output.label(image.outputs[output.name], size)
                        )
                    if named is not None:
                        maps, labels = image.outputs[named.name], seen.sample.class_labels
                        assert isinstance(maps, Maps)  # logits
                        if labels is None:
                            raise UserError(f"known_classes needs class labels, and '{seen.sample.name}' has none")
                        known = maps.among(torch.from_numpy(labels)).label(size)[0]
                        count_label(f"{named.name}_known", seen.sample.name, label, known)
                    if stream is not None and refined is not None:
                        pixels = torch.from_numpy(seen.sample.image).permute(2, 0, 1).contiguous()
                        probabilities = refined.probabilities(image.outputs[refined.name], size)
                        of_image = partial(count_label, f"{refined.name}_crf", seen.sample.name, label)
                        stream.add(pixels, probabilities, of_image)
                    if image.class_logits is not None and seen.sample.class_labels is not None:
                        truth = torch.from_numpy(seen.sample.class_labels)
                        f1_values.append(multi_label_f1(image.class_logits > 0, truth))
    except (LoadingStopped, EvaluationStopped):
        stopped = True
    finally:
        network.train(was_training)

    if _any_process(stopped):
        raise EvaluationStopped
    images, all_f1, per_image = _gather(matrices.values(), count, f1_values, per_image)
    if not images:
        raise UserError("no image could be scored: 'afa check' says what is wrong with them")
    table: dict[str, Any] = {row: matrix.scores(names) for row, matrix in matrices.items()}
    if all_f1:
        # Rounded once, at the end: the sum does not depend on the order.
        table["cls_f1"] = math.fsum(all_f1) / len(all_f1)
    table["images"] = images
    return Evaluation(table, per_image, {row: matrix.counts.cpu() for row, matrix in matrices.items()})


def _until(stop: Callable[[], bool] | None, groups: Iterable[Group]) -> Iterator[Group]:
    """The groups, until a stop is asked for.

    Raises:
        EvaluationStopped: It was.
    """
    for group in groups:
        if stop is not None and stop():
            raise EvaluationStopped
        yield group


def _segmentation(method: Method, flag: str) -> Output:
    """The last output whose scores are logits, which a flag of 'afa eval' asks for.

    Raises:
        UserError: There is none.
    """
    for output in reversed(method.outputs):
        if output.logits:
            return output
    raise UserError(f"{flag} needs a segmentation, and the method '{method.name}' gives none: leave it out")


class _RefinementStream:
    """Refines images and counts the results; on the CPU in threads, a few images ahead of the network."""

    def __init__(self, refinement: Refinement, device: torch.device) -> None:
        self.refinement, self.device = refinement, device
        self.threads_before = torch.get_num_threads()
        self.threads = min(_MOST_REFINED_AT_ONCE, self.threads_before) if device.type == "cpu" else 0
        self.pool = ThreadPoolExecutor(max(1, self.threads), initializer=set_own_threads, initargs=(1,))
        self.waiting: deque[tuple[Future[Tensor], Callable[[Tensor], None]]] = deque()

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

    def add(self, image: Tensor, probabilities: Tensor, count: Callable[[Tensor], None]) -> None:
        """Refine an image, and count the label made of it, now or later.

        Args:
            image: uint8 [3, H, W].
            probabilities: [1, C, H, W], on the device.
            count: Takes the label [H, W].
        """
        if not self.threads:
            count(self._refine(image.to(self.device, non_blocking=True), probabilities))
            return
        if len(self.waiting) > self.threads:
            self._count_first()
        self.waiting.append((self.pool.submit(self._refine, image, probabilities), count))

    def _refine(self, image: Tensor, probabilities: Tensor) -> Tensor:
        return self.refinement(image, probabilities)[0].argmax(dim=0)

    def _count_first(self) -> None:
        future, count = self.waiting.popleft()
        count(future.result())


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


def _share_buffers(network: nn.Module) -> None:
    """Give every process the first one's BatchNorm statistics: each has gathered its own."""
    if _distributed():
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def _gather(
    matrices: Iterable[ConfusionMatrix], images: int, f1_values: array[float], per_image: dict[str, ImageCounts]
) -> tuple[int, array[float], dict[str, ImageCounts]]:
    """Add the processes' counts up, and join what they counted image by image."""
    if not _distributed():
        return images, f1_values, per_image
    for matrix in matrices:
        dist.all_reduce(matrix.counts)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (images, f1_values, per_image))
    joined = {row: ImageCounts.joined(part[2][row] for part in gathered) for row in per_image}
    return sum(part[0] for part in gathered), array("d", (value for part in gathered for value in part[1])), joined
