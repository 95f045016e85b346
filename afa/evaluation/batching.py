"""Putting samples of one size together, so that the network sees several at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

_WAITING_GROUPS = 4


def by_size(samples: Iterable[dict[str, Any]], batch_size: int) -> Iterator[list[dict[str, Any]]]:
    """Group samples whose images have one size.

    Each sample comes once, in groups of ``batch_size`` as they fill up; what is left comes at the end. At most four
    times ``batch_size`` samples wait: then the longest waiting group goes as it is. So memory does not grow with the
    number of samples, nor with that of sizes.

    Args:
        samples: With ``image`` [3, H, W].
        batch_size: Most samples of a group.
    """
    waiting: dict[tuple[int, int], list[dict[str, Any]]] = {}  # in the order of their first samples
    for sample in samples:
        size = (sample["image"].shape[-2], sample["image"].shape[-1])
        group = waiting.setdefault(size, [])
        group.append(sample)
        if len(group) == batch_size:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) >= _WAITING_GROUPS * batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()
