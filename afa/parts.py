"""Named parts of the work, so that the time of each can be measured.

PyTorch's profiler shows them under their names. :func:`watched` is for measurements of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from torch.profiler import record_function

Watcher = Callable[[str], AbstractContextManager[Any]]
"""Name of a part -> context in which the part runs."""

_watcher: ContextVar[Watcher] = ContextVar("watcher", default=record_function)


def part(name: str) -> AbstractContextManager[Any]:
    """Context for a part of the work; parts may lie in one another."""
    return _watcher.get()(name)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Let the parts that this thread runs inside run in contexts of the caller's."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)
