"""How far a long loop is: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 30.0
# What matters most stands first: a narrow terminal cuts the line's end off.
_WITH_TOTAL = (
    "{title}{percentage:3.0f}% |{bar:8}| {n_fmt}/{total_fmt} {unit}s{first}, {speed}, {left} remaining, "
    "{passed} elapsed{last}"
)
_WITHOUT_TOTAL = "{title}{n_fmt} {unit}s{first}, {speed}, {passed} elapsed{last}"


class Bar(tqdm):
    """The live line: bar, count, speed, time; nothing where stderr is no terminal.

    Args:
        total: How many items there are; None: unknown.
        what: Name of the work, for example "evaluating"; may be empty.
        unit: What is counted, in the singular.
        initial: Items that were done before.
        seconds_before: Time that these took.
        per_item: The speed is always seconds per item; else items per second where that is more than one.
        stays: Whether the line stays when the work is done.
        enabled: False on processes that do not speak.
    """

    def __init__(
        self,
        total: int | None,
        what: str,
        unit: str,
        *,
        initial: int = 0,
        seconds_before: float = 0.0,
        per_item: bool = False,
        stays: bool = False,
        enabled: bool = True,
    ) -> None:
        self._what, self._seconds_before, self._per_item = what, seconds_before, per_item
        self._first: str = ""
        self._last: tuple[str, ...] = ()
        super().__init__(
            total=total,
            initial=initial,
            unit=unit,
            bar_format=_WITHOUT_TOTAL if total is None else _WITH_TOTAL,
            dynamic_ncols=True,
            file=sys.stderr,
            smoothing=0.05,
            leave=stays,
            disable=None if enabled else True,
        )
        self._forget_no_size()

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the line is made of."""
        facts = dict(super().format_dict)
        self._forget_no_size()
        seconds, done = facts["elapsed"], facts["n"] - facts["initial"]
        rate = facts["rate"] or (done / seconds if seconds else 0)
        remaining = None if not rate or facts["total"] is None else max(0, facts["total"] - facts["n"]) / rate
        line = {
            **facts,
            "ncols": facts["ncols"] if (facts["ncols"] or 0) > 0 else None,
            "title": f"{self._what}: " if self._what else "",
            "first": self._first,
            "last": "",
            "speed": speed(rate, facts["unit"], per_item=self._per_item),
            "passed": clock(seconds + self._seconds_before),
            "left": clock(remaining),
        }
        room = None if line["ncols"] is None else line["ncols"] - len(self.format_meter(**{**line, "ncols": None}))
        for text in self._last:
            if room is not None and len(line["last"]) + len(text) + 2 > room:
                break
            line["last"] += f", {text}"
        return line

    def _forget_no_size(self) -> None:
        """A terminal that does not know its size says 0, and tqdm would show nothing there."""
        if (getattr(self, "nrows", None) or 0) <= 0:
            self.nrows = None

    def say(self, first: str, last: Iterable[str] = ()) -> None:
        """Show a figure beside the count, and others at the line's end as far as they fit, from the next drawing on."""
        self._first, self._last = f", {first}" if first else "", tuple(last)


@contextmanager
def live_line(total: int | None, what: str, unit: str, **settings: Any) -> Iterator[Bar]:
    """A :class:`Bar` that log lines do not tear apart: they appear above it.

    Args:
        total: As :class:`Bar` takes it.
        what: As :class:`Bar` takes it.
        unit: As :class:`Bar` takes it.
        settings: Of :class:`Bar`.
    """
    with Bar(total, what, unit, **settings) as bar, nullcontext() if bar.disable else logging_redirect_tqdm():
        yield bar


def track(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Pass items on and show on stderr how far the loop is.

    Args:
        items: What is looped over.
        total: How many there are.
        what: Name of the work, for example "evaluating".
    """
    with live_line(total, what, "image") as bar:
        start = last = time.monotonic()
        for number, item in enumerate(items, 1):
            yield item
            bar.update()
            now = time.monotonic()
            if bar.disable and now - last >= _SECONDS_BETWEEN_LINES and number < total:
                last = now
                rate = number / (now - start)
                times = f"{clock(now - start)} elapsed, {clock((total - number) / rate)} remaining"
                line = f"{what}: {number} of {total} images, {speed(rate, 'image')}, {times}"
                print(line, file=sys.stderr, flush=True)


def clock(seconds: float | None) -> str:
    """Seconds as H:MM:SS; None: unknown."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def speed(rate: float, unit: str, *, per_item: bool = False) -> str:
    """A rate for people.

    Args:
        rate: Items per second; 0: unknown.
        unit: What is counted, in the singular.
        per_item: Always seconds per item; else items per second where that is more than one.
    """
    if not rate:
        return f"- s/{unit}"
    return f"{rate:.1f} {unit}s/s" if rate > 1 and not per_item else f"{1 / rate:.3g} s/{unit}"
