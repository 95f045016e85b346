from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from afa.parts import part, watched


def test_a_watcher_is_told_of_parts_until_it_stops_to_watch() -> None:
    told = []

    @contextmanager
    def tell(name: str) -> Iterator[None]:
        told.append(f"{name} begins")
        try:
            yield
        finally:
            told.append(f"{name} ends")

    with pytest.raises(ZeroDivisionError), watched(tell), part("outer"), part("inner"):
        raise ZeroDivisionError
    with part("later"):
        pass
    assert told == ["outer begins", "inner begins", "inner ends", "outer ends"]


def test_the_profiler_shows_parts() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as profiler, part("a part of the work"):
        torch.ones(2) + 1
    assert "a part of the work" in {event.key for event in profiler.key_averages()}
