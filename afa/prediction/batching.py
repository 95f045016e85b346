"""Putting samples of one size together, so that the network sees several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_WAITING_GROUPS = 4


def by_size(
    samples: Iterable[Item], batch_size: int, *, size: Callable[[Item], tuple[int, int]]
) -> Iterator[list[Item]]:
    """Group samples whose images have one size.

    Each sample comes once, in groups of ``batch_size`` as they fill up; what is left comes at the end. At most four
    times ``batch_size`` samples wait: then the longest waiting group goes as it is. So memory does not grow with the
    number of samples, nor with that of sizes.

    Args:
        samples: Of images of any size.
        batch_size: Most samples of a group.
        size: The size of a sample's image.
    """
    waiting: dict[tuple[int, int], list[Item]] = {}  # in the order of their first samples
    for sample in samples:
        group = waiting.setdefault(size(sample), [])
        group.append(sample)
        if len(group) == batch_size:
            yield waiting.pop(size(sample))
        elif sum(map(len, waiting.values())) >= _WAITING_GROUPS * batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()
