"""Timing: calls in turn, so that all of them meet the same load of a shared machine, and the parts of one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Timings(NamedTuple):
    """What was measured, by name.

    Attributes:
        seconds: Of the runs that count, in their order: the n-th of all were neighbours, so ratios are taken pair by
            pair.
        first: Seconds of the run before, which warms up.
        results: What the last run returned.
    """

    seconds: dict[str, list[float]]
    first: dict[str, float]
    results: dict[str, Any]


def time_in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device) -> Timings:
    """Run each call once to warm up, then all of them in turn.

    Args:
        calls: By name.
        repeats: Runs of each that count.
        device: Waited for before and after each run.
    """
    timings = Timings({name: [] for name in calls}, {}, {})
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            wait(device)
            start = time.perf_counter()
            timings.results[name] = call()
            wait(device)
            taken = time.perf_counter() - start
            if repeat:
                timings.seconds[name].append(taken)
            else:
                timings.first[name] = taken
    return timings


class Stopwatch:
    """Time of named parts; a part inside another one does not count for the outer one.

    On a GPU each part waits for the device: the parts are right, their sum is more than an undisturbed step.

    Attributes:
        seconds: By name.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._mark = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside for ``name``."""
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def _settle(self) -> None:
        wait(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._mark
        self._mark = now


def wait(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """What people call the device, and how many threads it has."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else device.type
