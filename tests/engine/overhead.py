#!/usr/bin/env python
"""Measure what the engine's care costs per step: finite guard, records' means, agreement on stopping, seeding.

    OMP_NUM_THREADS=1 python tests/engine/overhead.py [--crop 128] [--batch 8] [--steps 40]

The processor time of one thread is counted, so that other work on the machine hardly matters; medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faults

sys.path.insert(0, str(faults.REPOSITORY))

import torch

from afa.config import Config, load_config
from afa.engine.finite import FiniteGuard, InspectedStep
from afa.engine.loop import step_seed
from afa.engine.optimisation import build_optimiser, set_learning_rates, update
from afa.engine.records import Meter
from afa.engine.runtime import ProcessRuntime
from afa.methods import Batch, build_method
from afa.models import build_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            faults.write_config(
                Path(folder) / "c.yaml",
                Path(folder),
                Path(folder) / "run",
                model={"encoder": "mit_b0", "widths": None, "depths": None, "heads": None, "decoder_width": 256},
                train={"non_finite": "skip"},
            )
        )
        measure(config, args.crop, args.batch, args.steps, Path(folder))


def measure(config: Config, crop: int, batch_size: int, steps: int, folder: Path) -> None:
    runtime = ProcessRuntime(torch.device("cpu"))
    network = build_network(config.model, 6)
    method = build_method(network, config, runtime)
    optimiser = build_optimiser(method.parameter_groups(), config.optimiser)
    guard, meter = FiniteGuard(runtime, network, folder, policy="skip", limit=10, scaled=False), Meter()
    batch = Batch(
        image=torch.randn(batch_size, 3, crop, crop),
        class_labels=(torch.rand(batch_size, 5) < 0.4).float(),
        valid_box=torch.tensor([[0, crop, 0, crop]]).repeat(batch_size, 1),
        name=[str(number) for number in range(batch_size)],
    )
    times: dict[str, list[float]] = {}

    def timed(name: str, function: Callable[[], object]) -> object:
        start = time.process_time()
        result = function()
        times.setdefault(name, []).append(time.process_time() - start)
        return result

    for step in range(steps):
        set_learning_rates(optimiser, step % 10, steps=10, settings=config.optimiser)
        timed("agree on stopping", lambda: runtime.worst(0))
        timed("seed the step", lambda step=step: runtime.seed(step_seed(1, step, 0)))
        timed("remember BatchNorm statistics", guard.remember_buffers)

        def work() -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, torch.Tensor]]:
            optimiser.zero_grad(set_to_none=True)
            result = method.training_step(network, batch, 9)
            total = result.total()
            total.backward()
            losses = {name: loss.detach() for name, loss in result.losses.items()}
            return losses, total.detach(), result.scalars

        losses, total, scalars = timed("forward, labels, backward", work)  # type: ignore[misc]
        inspected = InspectedStep(step, [batch], [losses], total)
        norm, flag = timed("gradient norm and finite check", lambda seen=inspected: guard.inspect(seen))  # type: ignore[misc]
        timed("update", lambda flag=flag: update(optimiser, flag))
        timed("mend BatchNorm statistics", lambda flag=flag: guard.mend_buffers(flag))
        figures = {f"loss/{name}": loss for name, loss in losses.items()} | scalars | {"gradient_norm": norm}
        timed("add up the records' means", lambda figures=figures, flag=flag: meter.add(figures, left_out=flag))

    medians = {name: statistics.median(values[3:]) for name, values in times.items()}
    bare = medians["forward, labels, backward"] + medians["update"]
    print(f"mit_b0, {batch_size} x {crop} x {crop}, one thread, {steps} steps, median processor time\n")
    print("| part of a step | ms | share of the bare step |\n| --- | --- | --- |")
    for name, seconds in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"| {name} | {seconds * 1e3:.3f} | {seconds / bare:.3%} |")
    care = sum(medians.values()) - bare
    print(f"| **all but the bare step** | {care * 1e3:.3f} | {care / bare:.3%} |")


if __name__ == "__main__":
    main()
