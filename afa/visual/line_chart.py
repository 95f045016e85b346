"""Curves over a common axis as an SVG image, without a library; legible on light and dark pages, in colour and grey."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 760, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 170, 52, 56
_MOST_TICKS = 10
_LONGEST_TITLE = 80
# Curves differ in colour and in dashes.
_DASHES = ("", "8 4", "2 3", "8 3 2 3")
_STYLE = """
.page { fill: #ffffff } .text { fill: #1b1e23 } .grid { stroke: #d9dce0 } .axis { stroke: #1b1e23 }
.halo { stroke: #ffffff; stroke-width: 4; paint-order: stroke; stroke-linejoin: round }
.c0 { stroke: #1f5fa8 } .c1 { stroke: #b3541e } .c2 { stroke: #2f7d4f } .c3 { stroke: #7a3fa0 }
@media (prefers-color-scheme: dark) {
.page { fill: #16181c } .text { fill: #e6e8eb } .grid { stroke: #3a3e45 } .axis { stroke: #e6e8eb }
.halo { stroke: #16181c }
.c0 { stroke: #7fb4f0 } .c1 { stroke: #f0a878 } .c2 { stroke: #86d3a4 } .c3 { stroke: #cfa6ee }
}
text { font: 13px sans-serif } .title { font: bold 15px sans-serif }
"""


@dataclass(frozen=True)
class Curve:
    """Values from 0 to 1 over a panel's ``x``.

    Attributes:
        label: What the legend says.
        values: As many as the panel's ``x``.
    """

    label: str
    values: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One pair of axes with at most four curves.

    Attributes:
        title: Above it.
        x: Finite, rising, at least one.
        curves: Drawn over ``x``.
        marked: Index of a value of the first curve that is pointed out; None: none.
        mark_text: What is written there.
    """

    title: str
    x: Sequence[float]
    curves: Sequence[Curve]
    marked: int | None = None
    mark_text: str = ""


def line_chart_svg(panels: Sequence[Panel], *, x_label: str, y_label: str) -> str:
    """Draw panels, one below the other.

    Args:
        panels: At least one.
        x_label: Below each horizontal axis.
        y_label: Beside each vertical axis, which is in percent.

    Returns:
        An SVG document.
    """
    height = _HEIGHT * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'role="img">',
        f"<title>{_text('; '.join(panel.title for panel in panels))}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH}" height="{height}"/>',
    ]
    for number, panel in enumerate(panels):
        parts += [f'<g transform="translate(0 {number * _HEIGHT})">', *_panel(panel, x_label, y_label), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, x_label: str, y_label: str) -> list[str]:
    low, high = panel.x[0], panel.x[-1]
    if low == high:
        low, high = low - 0.5, high + 0.5
    top_value = max([0.01, *(value for curve in panel.curves for value in curve.values)])
    step = _nice_step(100 * top_value)
    top = step * math.ceil(100 * top_value / step - 1e-9)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x_of(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (right - _LEFT)

    def y_of(share: float) -> float:
        return bottom - 100 * share / top * (bottom - _TOP)

    parts = [_label(_LEFT, 28, panel.title, "text title")]
    for tick in _ticks(0, top, step):
        y = y_of(tick / 100)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(_label(_LEFT - 8, y + 4, f"{tick:g}", anchor="end"))
    for tick in _ticks(low, high, _nice_step(high - low)):
        x = x_of(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}"/>')
        parts.append(_label(x, bottom + 20, f"{tick:g}", anchor="middle"))
    parts.append(f'<path class="axis" fill="none" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    parts.append(_label((_LEFT + right) / 2, _HEIGHT - 12, x_label, anchor="middle"))
    middle = (_TOP + bottom) / 2
    parts.append(f'<g transform="translate(18 {middle:.1f}) rotate(-90)">{_label(0, 0, y_label, anchor="middle")}</g>')

    for number, curve in enumerate(panel.curves):
        style = f'class="c{number}" fill="none" stroke-width="2.5" stroke-dasharray="{_DASHES[number] or "none"}"'
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in zip(panel.x, curve.values, strict=True))
        if len(curve.values) == 1:
            parts.append(f'<circle {style} cx="{x_of(panel.x[0]):.1f}" cy="{y_of(curve.values[0]):.1f}" r="3"/>')
        else:
            parts.append(f'<polyline {style} points="{points}"/>')
        y = _TOP + 14 + 24 * number
        parts.append(f'<line {style} x1="{right + 14}" y1="{y}" x2="{right + 46}" y2="{y}"/>')
        parts.append(_label(right + 54, y + 4, curve.label))

    if panel.marked is not None:
        x, y = x_of(panel.x[panel.marked]), y_of(panel.curves[0].values[panel.marked])
        parts.append(f'<line class="axis" stroke-dasharray="4 4" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<circle class="axis page" stroke-width="2" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        left_half = x < (_LEFT + right) / 2
        at = x + 9 if left_half else x - 9
        parts.append(_label(at, _TOP - 6, panel.mark_text, "text halo", anchor="start" if left_half else "end"))
    return parts


def _label(x: float, y: float, text: str, style: str = "text", *, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(text)}</text>'


def _text(text: str) -> str:
    """Text that XML can hold."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return escape(shown if len(shown) <= _LONGEST_TITLE else f"{shown[: _LONGEST_TITLE - 3]}...")


def _nice_step(length: float) -> float:
    """1, 2 or 5 times a power of ten, so that it fits at most ten times into a length."""
    rough = length / _MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _ticks(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [round(index * step, 12) for index in range(first, last + 1)]
