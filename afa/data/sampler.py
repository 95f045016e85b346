"""Which image is trained on when: an endless stream of shuffled epochs, cut into global batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from afa.errors import UserError

# Keep the random streams of permutations and partners apart from the samples', which are seeded with (seed, position).
_PERMUTATION_STREAM = 1
_PARTNER_STREAM = 2


class StreamSampler(Sampler[list[tuple[int, int]]]):
    """Batch sampler over the stream of epochs.

    Sample j of step s has the position p = s * global_batch + j in the stream; it is image ``permutation(seed, p //
    size)[p % size]``. The global batch of a step so depends on the seed and the step only: neither on the number of
    processes, nor on accumulation, nor on where training was resumed.

    Args:
        size: Number of images.
        seed: Seed of the permutations.
        global_batch: Images per optimisation step, over all processes and accumulated micro-batches.
        batch_size: Images per process and micro-batch. Accumulation = global_batch / (world_size * batch_size).
        steps: Number of optimisation steps to give, from ``start_step`` on.
        start_step: First step, counted from 0.
        rank: This process; it takes a contiguous share of each global batch.
        world_size: Number of processes.

    Raises:
        UserError: There is no image, or the global batch cannot be shared out evenly.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        global_batch: int,
        batch_size: int,
        steps: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if size < 1:
            raise UserError("the training list is empty: there is no image to train on")
        if global_batch % (world_size * batch_size):
            raise UserError(
                f"a global batch of {global_batch} images cannot be shared out over {world_size} process(es) "
                f"with {batch_size} image(s) each: choose a multiple of {world_size * batch_size}"
            )
        self.size = size
        self.seed = seed
        self.global_batch = global_batch
        self.batch_size = batch_size
        self.steps = steps
        self.start_step = start_step
        self.rank = rank
        self.share = global_batch // world_size
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)

    @property
    def accumulation(self) -> int:
        """Number of micro-batches per optimisation step."""
        return self.share // self.batch_size

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start_step, self.start_step + self.steps):
            first = step * self.global_batch + self.rank * self.share
            for start in range(first, first + self.share, self.batch_size):
                yield [(position, self.index(position)) for position in range(start, start + self.batch_size)]

    def index(self, position: int) -> int:
        """The image at a position of the stream."""
        return self._shuffled(position)

    def _shuffled(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch, _PERMUTATION_STREAM))
            self._epoch, self._permutation = epoch, rng.permutation(self.size)
        return int(self._permutation[place])


class PairSampler(StreamSampler):
    """Pairs of images with a class in common, partners side by side: positions 2a and 2a + 1 are pair a.

    The first of pair a is image ``permutation[a]`` of the stream of epochs, as :class:`StreamSampler` has it. One of
    its classes is drawn, then one of the other images of that class; a class of one image pairs that image with
    itself. All of it is a function of the seed and a.

    Args:
        class_labels: [images, K], above 0 means present. Every image has a class.
        **settings: Those of :class:`StreamSampler` but for ``size``; ``batch_size`` counts images and is even.

    Raises:
        UserError: As :class:`StreamSampler`, or ``batch_size`` is odd, or an image has no class.
    """

    def __init__(self, class_labels: np.ndarray, *, batch_size: int, **settings: int) -> None:
        _require_even(batch_size)
        super().__init__(len(class_labels), batch_size=batch_size, **settings)
        self._classes: Sequence[np.ndarray] = [np.flatnonzero(row > 0) for row in class_labels]
        if any(len(classes) == 0 for classes in self._classes):
            first = next(index for index, classes in enumerate(self._classes) if len(classes) == 0)
            raise UserError(f"image {first + 1} of the training list has no class, so it has no partner: take it out")
        self._members = [np.flatnonzero(column > 0) for column in class_labels.T]

    def index(self, position: int) -> int:
        """The image at a position of the stream."""
        pair, is_partner = divmod(position, 2)
        first = self._shuffled(pair)
        if not is_partner:
            return first
        rng = np.random.default_rng((self.seed, pair, _PARTNER_STREAM))
        members = self._members[rng.choice(self._classes[first])]
        others = members[members != first]
        return int(rng.choice(others)) if len(others) else first


class ListedPairSampler(StreamSampler):
    """Pairs in the order of a list, partners side by side: positions 2a and 2a + 1 are pair a.

    Nothing is shuffled. After the last pair comes the first one again.

    Args:
        pairs: Numbers of the images, int [pairs, 2].
        **settings: Those of :class:`StreamSampler` but for ``size``; ``batch_size`` counts images and is even.

    Raises:
        UserError: As :class:`StreamSampler`, or ``batch_size`` is odd.
    """

    def __init__(self, pairs: np.ndarray, *, batch_size: int, **settings: int) -> None:
        _require_even(batch_size)
        super().__init__(len(pairs), batch_size=batch_size, **settings)
        self._pairs = pairs

    def index(self, position: int) -> int:
        """The image at a position of the stream."""
        pair, is_partner = divmod(position, 2)
        return int(self._pairs[pair % self.size, is_partner])


def _require_even(batch_size: int) -> None:
    if batch_size % 2:
        raise UserError(f"train.batch_size counts images, and pairs need an even number: {batch_size} is odd")
