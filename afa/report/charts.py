"""Curves as SVG within a page. Colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 520, 244
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 44
_MOST_TICKS = 6
COLOURS = 8
"""Classes ``c0`` to ``c7`` of the style sheet; further curves begin anew, dashed."""


@dataclass(frozen=True)
class Curve:
    """A line.

    Attributes:
        label: Its name.
        x: Rising.
        y: One for each x; None where nothing is known.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True)
class Mark:
    """A vertical line at a value of x, with a text."""

    x: float
    text: str


def style_of(index: int) -> str:
    """Classes of the style sheet for a curve by its number."""
    return f"c{index % COLOURS}{' dashed' if index >= COLOURS else ''}"


def chart_svg(
    title: str, curves: Sequence[Curve], *, x_label: str, percent: bool = False, marks: Sequence[Mark] = ()
) -> str:
    """Draw curves over one pair of axes.

    Args:
        title: Read to those who cannot see it.
        curves: At least one; its label is told beside the chart, by the page.
        x_label: Below the horizontal axis.
        percent: The values are shares from 0 to 1.
        marks: Vertical lines.

    Returns:
        An SVG element.
    """
    xs = [x for curve in curves for x in curve.x]
    factor = 100 if percent else 1
    ys = [factor * y for curve in curves for y in curve.y if y is not None]
    x_low, x_high = _range(xs, from_zero=False)
    y_low, y_high = _range(ys, from_zero=percent or (bool(ys) and min(ys) >= 0))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x_of(value: float) -> float:
        return _LEFT + (value - x_low) / (x_high - x_low) * (right - _LEFT)

    def y_of(value: float) -> float:
        return bottom - (factor * value - y_low) / (y_high - y_low) * (bottom - _TOP)

    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(title)}">']
    for tick in _ticks(y_low, y_high):
        y = y_of(tick / factor)
        parts.append(f'<line class="gridline" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}{"%" if percent else ""}</text>')
    for tick in _ticks(x_low, x_high):
        x = x_of(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    parts.append(f'<text x="{right}" y="{bottom + 34}" text-anchor="end">{_text(x_label)}</text>')
    for number, mark in enumerate(marks):
        x, y = x_of(mark.x), _TOP + 10 + 16 * number
        anchor, at = ("start", x + 5) if x < (_LEFT + right) / 2 else ("end", x - 5)
        parts.append(f'<line class="mark" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="mark" x="{at:.1f}" y="{y}" text-anchor="{anchor}">{_text(mark.text)}</text>')
    for number, curve in enumerate(curves):
        for points in _known(curve, x_of, y_of):
            # A single value is a dot: a line that ends where it begins.
            shape, line = (" dot", f"M{points[0]}h.1") if len(points) == 1 else ("", f"M{'L'.join(points)}")
            parts.append(f'<path class="curve {style_of(number)}{shape}" d="{line}"/>')
    return "".join([*parts, "</svg>"])


def _known(curve: Curve, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> list[list[str]]:
    """The points of a curve, one list for each run of known values."""
    runs: list[list[str]] = [[]]
    for x, y in zip(curve.x, curve.y, strict=True):
        if y is None:
            runs.append([])
        else:
            runs[-1].append(f"{x_of(x):.1f} {y_of(y):.1f}")
    return [run for run in runs if run]


def _range(values: Sequence[float], *, from_zero: bool) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low = min(0.0, low) if from_zero else low
    if high - low < 1e-12 * max(1.0, abs(high)):
        spread = abs(high) / 2 or 0.5
        low, high = (low, high + spread) if from_zero else (low - spread, high + spread)
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / _MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def _text(text: str) -> str:
    return escape("".join(character if character.isprintable() else "?" for character in text))
