"""Which image is trained on when: an endless stream of shuffled epochs, cut into global batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from afa.errors import UserError

# Keeps the permutations' random streams apart from the samples', which are seeded with (seed, position).
_PERMUTATION_STREAM = 1


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
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch, _PERMUTATION_STREAM))
            self._epoch, self._permutation = epoch, rng.permutation(self.size)
        return int(self._permutation[place])
