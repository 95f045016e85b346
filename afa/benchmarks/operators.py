"""A training step, operator by operator: what stands between it and its floor.

Of several steps each call of an operator counts with its fastest time, and so does the matrix product that gives the
rate: on a machine that others disturb, this estimates the step of a quiet one, without Python's time between the
operators. The median of whole steps is ``afa benchmark step``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from afa.benchmarks.timing import wait
from afa.benchmarks.training_step import TrainingStep, configuration, floor_flops, headline
from afa.engine.runtime import ProcessRuntime

ROWS = 16  # that are printed; the rest is one more


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table.

    Args:
        args: As :func:`afa.commands.benchmark.parse` gives them.

    Returns:
        What was measured, and of how many steps; operator -> its calls in a step, their seconds, GFLOP, and seconds
        beyond those that its GFLOP take at the rate of matrix products; operators whose GFLOP are not counted;
        the sum of the seconds, the floor's seconds and GFLOP, the rate in GFLOP/s and the ratio.

    Raises:
        UserError: An argument makes no sense.
    """
    config = configuration(args)
    with ProcessRuntime.start(config.train) as runtime, tempfile.TemporaryDirectory() as folder:
        training = TrainingStep(config, runtime, args, Path(folder))
        training.step()  # warms caches up
        fastest: dict[tuple[str, int], float] = {}
        rate = 0.0
        for _ in range(args.repeats):
            rate = max(rate, training.fastest_product())
            with OperatorTimer(runtime.device) as timer:
                training.step()
            for call, seconds in timer.seconds.items():
                fastest[call] = min(seconds, fastest.get(call, seconds))
        counted = training.count_flops()

    calls: dict[str, list[float]] = {}
    for (name, _), seconds in fastest.items():
        calls.setdefault(name, []).append(seconds)
    rows: dict[str, dict[str, float]] = {}
    for name, spent in calls.items():
        seconds, gflop = sum(spent), counted.get(name, 0) / 1e9
        rows[name] = {"calls": len(spent), "s": seconds, "gflop": gflop, "beyond_s": seconds - gflop / rate}
    rows = dict(sorted(rows.items(), key=lambda row: -row[1]["s"]))
    total = sum(fastest.values())
    floor = floor_flops(config, args.classes, classification=args.stage == "classification") / 1e9
    result = {
        **training.facts(),
        "repeats": args.repeats,
        "operators": rows,
        "uncounted": training.uncounted,
        "sum_s": total,
        "matrix_gflop_per_s": rate,
        "floor_gflop": floor,
        "floor_s": floor / rate,
        "ratio_to_floor": total * rate / floor,
    }
    _print(result)
    return result


class OperatorTimer(TorchDispatchMode):
    """Times every operator that runs inside.

    Attributes:
        seconds: By operator and number of its call.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.seconds: dict[tuple[str, int], float] = {}
        self._calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        wait(self.device)
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        wait(self.device)
        self.seconds[name, self._calls[name]] = time.perf_counter() - start
        self._calls[name] += 1
        return result


def _print(result: dict[str, Any]) -> None:
    print(f"{headline(result)}, fastest of {result['repeats']}")
    rows = list(result["operators"].items())
    shown, rest = rows[:ROWS], [row for _, row in rows[ROWS:]]
    if rest:
        shown.append((f"{len(rest)} more", {key: sum(row[key] for row in rest) for key in rest[0]}))
    print(f"  {'operator':54}{'calls':>7}{'seconds':>10}{'GFLOP':>8}{'beyond GFLOP/rate':>20}")
    for name, row in shown:
        figures = f"{row['calls']:7.0f}{row['s']:10.3f}{row['gflop']:8.1f}{row['beyond_s']:18.3f} s"
        print(f"  {name.removeprefix('aten.'):54}{figures}")
    print(f"sum           {result['sum_s']:8.3f} s")
    print(
        f"floor         {result['floor_s']:8.3f} s   {result['floor_gflop']:.0f} GFLOP at "
        f"{result['matrix_gflop_per_s']:.0f} GFLOP/s"
    )
    print(f"ratio         {result['ratio_to_floor']:8.2f}")
