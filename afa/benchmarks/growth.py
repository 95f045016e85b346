"""How time and memory of a step grow with crop, classes, batch and backbone."""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from afa.benchmarks import SERIES, step
from afa.benchmarks.training_step import PARTS, configuration
from afa.errors import UserError

_OPTIONS = {"batch": "batch_size"}  # what is varied -> its option, where that has another name


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print tables. Every row is a process of its own, so that its memory is its own.

    Args:
        args: As :func:`afa.commands.benchmark.parse` gives them.

    Returns:
        Name of what is varied -> the results of :func:`afa.benchmarks.step.run`, row by row.

    Raises:
        UserError: An argument makes no sense.
    """
    if args.values and len(args.vary) != 1:
        raise UserError("--values goes with one --vary")
    tables: dict[str, Any] = {}
    for name in args.vary:
        values = [_converted(name, value) for value in args.values] if args.values else SERIES[name]
        alike = [*args.settings, "train.pictures_every=0"]  # They grow with what is tested, not with what is varied.
        rows_of = ({**vars(args), _OPTIONS.get(name, name): value, "settings": alike} for value in values)
        settings = [argparse.Namespace(**row) for row in rows_of]
        for row_args in settings:
            configuration(row_args)  # a mistake is said before anything is measured
        rows = []
        print(f"{name:>10}{'step s':>10}{'floor s':>10}{'ratio':>8}{'GFLOP':>9}{'peak GB':>10}", end="")
        print("".join(f"{part:>13}" for part in PARTS))
        for value, row_args in zip(values, settings, strict=True):
            row = _measure(row_args)
            rows.append(row)
            memory = row["memory_gb"]
            print(
                f"{value!s:>10}{row['step_s']:10.3f}{row['floor_s']:10.3f}{row['ratio_to_floor']:8.2f}"
                f"{row['step_gflop']:9.0f}{memory.get('gpu_peak', memory['process_peak']):10.2f}"
                + "".join(f"{row['parts_s'][part]:13.3f}" for part in PARTS),
                flush=True,
            )
        tables[name] = rows
    return tables


def _converted(name: str, text: str) -> int | str:
    if name == "encoder":
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--values {text}: whole numbers are needed for --vary {name}") from None


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            outcome = pool.submit(_in_process, args).result()
        except BrokenProcessPool as error:
            raise UserError("the measuring process was killed: memory ran out?") from error
    if isinstance(outcome, str):
        raise UserError(outcome)
    return outcome


def _in_process(args: argparse.Namespace) -> dict[str, Any] | str:
    """A row, or the user's mistake as text: what is raised in a pool comes back with a traceback."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return step.run(args)
    except UserError as error:
        return str(error)
