"""Progress of a long loop: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 30.0


def track(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Pass items on and show on stderr how far the loop is.

    Args:
        items: What is looped over.
        total: How many there are.
        what: Name of the work, for example "evaluating".
    """
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, unit="image", dynamic_ncols=True, leave=False)
        return
    start = last = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES and number < total:
            last = now
            left = (now - start) / number * (total - number)
            print(f"{what}: {number} of {total} images, {left:.0f} s left", file=sys.stderr, flush=True)
