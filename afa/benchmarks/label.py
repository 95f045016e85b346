"""The label stage and evaluation: their time over that of the network's passes, and two processes over one."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from afa.benchmarks.timing import device_name, wait
from afa.data.loader import evaluation_loader
from afa.engine.runtime import ProcessRuntime, shared_work
from afa.errors import UserError, one_line
from afa.methods.base import Method, named_input_outputs, scored_outputs
from afa.prediction.evaluate import evaluate
from afa.prediction.labelling import label_split
from afa.prediction.model import Model, load, scored_class_names

_STAGES = ("label", "eval")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table.

    Args:
        args: As :func:`afa.commands.benchmark.parse` gives them.

    Returns:
        For each of ``label`` and ``eval``: ``passes`` and ``whole``, seconds per image of the network's passes alone
        and of the whole stage (of the median run); ``ratio`` of the two, and ``cpu_ratio``, that of the seconds of
        processors. ``two_processes``: how many times as fast as one the two are, where that is wanted.

    Raises:
        UserError: The run or the data set cannot be used; a process failed; or the method does not tell its passes.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    with shared_work(args.device) as runtime:
        if runtime.world_size > 1:
            raise UserError("this starts its own processes: leave torchrun out")
        model = load(args.checkpoint, config=args.config, device=str(runtime.device), overrides=args.settings)
        if not model.method.low_precision:
            raise UserError(f"the method '{model.method.name}' does not tell its passes from what follows them")
        split = args.split or model.config.dataset.val_split
        table = _stages(args, model, split, runtime)
    if args.processes:
        table["two_processes"] = median(_speed_up(args, split) for _ in range(args.repeats))
        print(f"two processes of one thread label {table['two_processes']:.2f} times as fast as one")
    return table


def _stages(args: argparse.Namespace, model: Model, split: str, runtime: ProcessRuntime) -> dict[str, Any]:
    """Time both stages and the passes that each of them makes, in turn."""
    writable = [output for output in model.method.outputs if output.kind != "affinity"]
    outputs = named_input_outputs(writable, model.config.dataset)
    scored = named_input_outputs(scored_outputs(model.method), model.config.dataset)
    names = scored_class_names(model)
    inputs = sorted({name for output in (*outputs, *scored) for name in output.inputs})
    samples = list(evaluation_loader(model.config.dataset, split=split, inputs=inputs, limit=args.limit))
    wanted = {"label": [output.name for output in outputs], "eval": [output.name for output in scored]}

    def label() -> None:
        with tempfile.TemporaryDirectory() as folder:
            label_split(
                model,
                split=split,
                output=Path(folder) / "labels",
                outputs=outputs,
                maps=True,
                compress=False,
                limit=args.limit,
                workers=0,
                processes=runtime,
            )

    def score() -> None:
        evaluate(
            model.method,
            evaluation_loader(model.config.dataset, split=split, inputs=inputs, limit=args.limit),
            class_names=names,
            device=model.device,
            outputs=wanted["eval"],
            protocol=model.protocol,
        )

    def passes(stage: str) -> Callable[[], None]:
        def predict() -> None:
            for seen in samples:
                model.method.predict([seen.sample], wanted[stage], model.protocol)

        return predict

    stages: dict[str, Callable[[], None]] = {"label": label, "eval": score}
    found: dict[str, list[tuple[float, float, float, float]]] = {stage: [] for stage in _STAGES}
    for repeat in range(args.repeats + 1):
        for stage in _STAGES:
            alone = _passes_alone(model.method, passes(stage), model.device)
            whole = _timed(stages[stage], model.device)
            if repeat:  # the first round warms up
                found[stage].append((*alone, *whole))
    print(f"{args.checkpoint}, {len(samples)} images of '{split}', {device_name(model.device)}")
    print(f"{'':<8}{'passes alone':>16}{'whole':>12}{'ratio':>9}{'of processor time':>20}")
    table: dict[str, Any] = {}
    for stage, rows in found.items():
        figures = {
            "passes": median(row[0] for row in rows) / len(samples),
            "whole": median(row[2] for row in rows) / len(samples),
            "ratio": median(row[2] / row[0] for row in rows),
            "cpu_ratio": median(row[3] / row[1] for row in rows),
        }
        table[stage] = figures
        print(
            f"{stage:<8}{figures['passes']:>10.3f} s/image{figures['whole']:>6.3f} s/image{figures['ratio']:>7.2f}"
            f"{figures['cpu_ratio']:>20.2f}"
        )
    return table


def _timed(call: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Seconds that passed, and seconds of processors."""
    wait(device)
    start, cpu = time.perf_counter(), time.process_time()
    call()
    wait(device)
    return time.perf_counter() - start, time.process_time() - cpu


def _passes_alone(method: Method, predict: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """The same of the network's passes that a prediction makes, one after the other."""
    spent = [0.0, 0.0]
    turn = _Timed(spent, device)
    before, method.turn = method.turn, turn
    try:
        with torch.no_grad():
            predict()
    finally:
        method.turn = before
    return spent[0], spent[1]


class _Timed:
    """A context that adds up the time inside it."""

    def __init__(self, spent: list[float], device: torch.device) -> None:
        self.spent, self.device = spent, device

    def __enter__(self) -> None:
        wait(self.device)
        self.start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        wait(self.device)
        for index, (now, start) in enumerate(zip((time.perf_counter(), time.process_time()), self.start, strict=True)):
            self.spent[index] += now - start


def _speed_up(args: argparse.Namespace, split: str) -> float:
    """Seconds of one labelling process over those of two, their start left out."""
    seconds = []
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "labels"
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            command += ["-m", "afa", "label", str(args.checkpoint), "--split", split, "--output", str(output)]
            command += ["--limit", str(args.limit), "--workers", "0", "--device", args.device, *args.settings]
            if args.config is not None:
                command += ["--config", str(args.config)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
                raise UserError(f"{processes} process(es): {one_line(errors[0] if errors else done.stderr[-300:])}")
            seconds.append(float(json.loads((output / "manifest.json").read_text())["seconds"]))
    return seconds[0] / max(seconds[1], 0.1)
