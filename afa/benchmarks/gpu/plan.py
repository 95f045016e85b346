"""What ``afa benchmark gpu`` measures, in which order, and within which time; what it writes.

The most important measurements come first. Each has a process of its own and a limit; one that fails, or for which no
time is left, says so in its place, and the next one begins. The files are written anew after each.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from afa.benchmarks import GPU_GROUPS
from afa.benchmarks.gpu.apart import Outcome, run_apart
from afa.benchmarks.gpu.feeding import measure_labelling, measure_loading
from afa.benchmarks.gpu.graphs import measure_graphs
from afa.benchmarks.gpu.machine import measure_machine
from afa.benchmarks.gpu.profiling import measure_profile
from afa.benchmarks.gpu.setting import RECIPE, Setting
from afa.benchmarks.gpu.table import HEADING, headline, table
from afa.benchmarks.gpu.training import measure_training, schedule_hours
from afa.benchmarks.gpu.values import measure_values
from afa.data.files import require_writable, write_json, write_text
from afa.device import choose_device
from afa.errors import UserError

FORMAT = 1
"""Of the JSON file; it rises when a key changes its meaning."""

_AT_THE_END = 10.0  # seconds kept for ending the last process and writing
_PRELOAD = (__name__,)


class Cell(NamedTuple):
    """One measurement.

    Attributes:
        name: Its name in the files.
        group: What ``--only`` calls it.
        measurement: Makes it.
        arguments: Behind the setting.
        least: Seconds; with less left it is not begun.
        limit: Seconds that it may take.
    """

    name: str
    group: str
    measurement: Callable[..., Iterator[dict[str, Any]]]
    arguments: tuple[Any, ...]
    least: float
    limit: float


CELLS = (
    Cell("machine", "machine", measure_machine, (), 2, 90),
    Cell("values", "values", measure_values, (), 10, 60),
    Cell("bf16", "train", measure_training, ("bf16", ""), 15, 90),
    Cell("tf32", "train", measure_training, ("tf32", ""), 15, 90),
    Cell("float32", "train", measure_training, ("float32", ""), 15, 90),
    Cell("loading", "loading", measure_loading, (), 15, 60),
    Cell("labelling", "labelling", measure_labelling, (), 10, 60),
    Cell("profile", "profile", measure_profile, (), 15, 60),
    Cell("bf16, compiled", "compile", measure_training, ("bf16", "default"), 60, 170),
    Cell("graphs", "graphs", measure_graphs, (), 20, 60),
    Cell("tf32, compiled", "compile", measure_training, ("tf32", "default"), 60, 170),
    Cell("bf16, reduce-overhead", "graphs", measure_training, ("bf16", "reduce-overhead"), 60, 170),
    Cell("float32, compiled", "compile", measure_training, ("float32", "default"), 60, 170),
)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and write ``args.output`` (JSON) and the table beside it (Markdown) after each measurement.

    Args:
        args: As :func:`afa.commands.benchmark.parse` gives them.

    Returns:
        What the JSON file holds: ``format``, ``complete``, ``started``, ``seconds``, ``setting``, and ``cells``, each
        with ``name``, ``group``, ``status``, ``reason``, ``seconds``, ``remarks`` and ``figures``; and ``summary``, see
        :func:`summary`.

    Raises:
        UserError: There is no such device, or the table would take another file's place.
    """
    start = time.monotonic()
    page = table_place(args.output)
    device = _device(args.device)
    chosen = [cell for cell in CELLS if cell.group == "machine" or not args.only or cell.group in args.only]
    report: dict[str, Any] = {
        "format": FORMAT,
        "made_by": "afa benchmark gpu",
        "complete": False,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "setting": {"device": device, "small": args.small, "budget_s": args.budget, "recipe": RECIPE},
        "cells": [],
        "summary": {},
    }
    with tempfile.TemporaryDirectory(prefix="afa_gpu_", ignore_cleanup_errors=True) as folder:
        setting = Setting(device, args.small, Path(folder))
        for number, cell in enumerate(chosen):
            left = start + args.budget - _AT_THE_END - time.monotonic()
            if left < cell.least and not args.small:
                reason = (
                    f"of {args.budget} s, {max(0.0, left):.0f} were left, and it may need more: --only {cell.group}"
                )
                outcome = Outcome("skipped", reason)
            else:
                outcome = run_apart(
                    cell.measurement,
                    (setting, *cell.arguments),
                    limit=max(1.0, left if args.small else min(cell.limit, left)),  # small: on any machine
                    folder=Path(folder) / f"process{number}",
                    preload=_PRELOAD,
                )
            row = {"name": cell.name, "group": cell.group, **asdict(outcome)}
            report["cells"].append(plain(row))
            report["seconds"] = round(time.monotonic() - start, 1)
            report["complete"] = number == len(chosen) - 1
            report["summary"] = summary(report["cells"])
            write_json(args.output, report)
            write_text(page, table(report))
            print(f"[{report['seconds']:5.0f} s] {headline(report['cells'][-1])}", flush=True)
    print(f"{args.output} and {page} were written")
    return report


def table_place(output: Path) -> Path:
    """Where the table goes: beside the JSON file, under the same name with ``.md``.

    Raises:
        UserError: That is the JSON file itself, cannot be written, or holds something else than such a table.
    """
    page = output.with_suffix(".md")
    if page == output:
        raise UserError(
            f"--output {output}: the table is written there; name the JSON file, such as {output.stem}.json"
        )
    require_writable(page, "the table's place, beside --output,")
    if page.exists():
        with page.open("rb") as file:
            if file.read(len(HEADING)) != HEADING.encode():
                raise UserError(f"--output {output}: {page}, where the table would go, is another file: name another")
    return page


def _device(name: str) -> str:
    """The device that is measured.

    Raises:
        UserError: It is not there, or is none that this measures.
    """
    if name.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                f"--device {name}: PyTorch sees no GPU with CUDA here, so there is nothing to measure; "
                "'--device cpu --small' tries the command itself"
            )
    device = choose_device(name, "--device")
    if device.type not in ("cuda", "cpu"):
        raise UserError(f"--device {name}: GPUs with CUDA are measured: cuda or cuda:N; or cpu, to try the command")
    return str(device)


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """What follows from several measurements.

    Returns:
        ``hours``: measurement -> hours of the steps of a whole run of the recipe at this batch, None where a phase is
        missing; ``needed_images_per_s``: what the fastest measured steps with propagated labels take in;
        ``enough_workers``: the least number of loader processes that gives as much, None where none does or nothing
        was measured.
    """
    figures = {cell["name"]: cell["figures"] for cell in cells}
    trained = {name: found for name, found in figures.items() if found.get("phases")}
    hours = {name: schedule_hours(found["schedule"], found["phases"]) for name, found in trained.items()}
    rates = [
        found["batch"] / found["phases"]["propagated"]["step_s"]
        for found in trained.values()
        if "propagated" in found["phases"]
    ]
    needed = max(rates, default=None)
    loader = figures.get("loading", {}).get("loader", {})
    enough = [int(workers) for workers, rate in loader.items() if needed is not None and rate >= needed]
    return {"hours": hours, "needed_images_per_s": needed, "enough_workers": min(enough, default=None)}


def plain(value: Any) -> Any:
    """A value as JSON can hold it: no NaN or infinity, which become text; no tuples."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


assert {cell.group for cell in CELLS} == {"machine", *GPU_GROUPS}
