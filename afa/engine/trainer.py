"""One optimisation step of any method, and all the state that steps change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from afa.config import RunConfig
from afa.engine.finite import FiniteGuard, InspectedStep
from afa.engine.optimisation import build_optimiser, set_learning_rates, update
from afa.engine.records import Meter
from afa.engine.runtime import ProcessRuntime
from afa.methods.base import Batch, Method


class Trainer:
    """A method with its optimiser, gradient scaler, guard against what is not finite, and meter.

    Args:
        config: The ``train`` and ``optimiser`` settings count.
        method: What one step means.
        runtime: The processes.
        output: Folder for what the guard saves.
    """

    def __init__(self, config: RunConfig, method: Method, runtime: ProcessRuntime, output: Path) -> None:
        self.config, self.method, self.runtime = config, method, runtime
        self.optimiser = build_optimiser(method.parameter_groups(), config.optimiser)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=config.train.precision == "fp16")
        self.guard = FiniteGuard(
            runtime,
            method.network,
            output,
            policy=config.train.non_finite,
            limit=config.train.non_finite_limit,
            scaled=self.scaler.is_enabled(),
        )
        self.meter = Meter()
        self._wrapped: nn.Module = method.network

    def wrap(self) -> None:
        """Average gradients over the processes from now on. All of them get the main one's weights here."""
        self._wrapped = self.runtime.wrap(self.method.network, sync_batchnorm=self.config.train.sync_batchnorm)

    def to_device(self, batch: Mapping[str, Any]) -> Batch:
        """Inputs of networks go to the device; values that decide shapes stay on the host."""
        moved: Batch = {}
        for key, value in batch.items():
            if isinstance(value, Tensor) and key not in self.method.on_host:
                value = value.to(self.runtime.device, non_blocking=True)
                if self.config.train.channels_last and value.dim() == 4 and value.is_floating_point():
                    value = value.contiguous(memory_format=torch.channels_last)
            moved[key] = value
        return moved

    def step(self, step: int, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
        """One optimisation step over ``train.accumulate`` micro-batches.

        Args:
            step: Counted from 0.
            micro_batches: Of this process, on its device.

        Returns:
            Its losses, ``total`` among them, of this process, on the device.

        Raises:
            UserError: A loss or gradient is not finite, and ``train.non_finite`` says stop.
        """
        set_learning_rates(self.optimiser, step, steps=self.config.train.steps, settings=self.config.optimiser)
        self.runtime.seed(step_seed(self.config.train.seed, step, self.runtime.rank))
        self.optimiser.zero_grad(set_to_none=True)
        self.guard.remember_buffers()
        count = len(micro_batches)
        scalars: dict[str, Tensor] = {}
        losses: list[Mapping[str, Tensor]] = []
        resting: Sequence[nn.Parameter] = ()
        for number, batch in enumerate(micro_batches, 1):
            with self._no_sync() if number < count else nullcontext():
                result = self.method.training_step(self._wrapped, batch, step)
                total = result.total()
                self.scaler.scale(total / count if count > 1 else total).backward()
            resting = result.resting
            losses.append({name: loss.detach() for name, loss in result.losses.items()})
            figures = {f"loss/{name}": loss for name, loss in losses[-1].items()} | result.scalars
            for name, value in (figures | {"loss/total": total.detach()}).items():
                scalars[name] = scalars.get(name, 0) + value / count
        leave_at_rest(resting)
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimiser)
        norm, flag = self.guard.inspect(InspectedStep(step, micro_batches, losses, scalars["loss/total"]))
        update(self.optimiser, flag)
        self.guard.mend_buffers(flag)
        if self.scaler.is_enabled():
            self.scaler.update()
        self.method.after_step(step, flag)
        self.meter.add({**scalars, "gradient_norm": norm}, left_out=flag)
        return {
            name.removeprefix("loss/"): value.detach() for name, value in scalars.items() if name.startswith("loss/")
        }

    def state(self) -> dict[str, Any]:
        """For a checkpoint, beside weights and optimiser; all processes take part."""
        return {
            "meters": self.runtime.gather(self.meter.state()),
            "scaler": self.scaler.state_dict(),
            "non_finite": self.guard.state(),
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.meter.restore(facts["meters"], self.runtime)
        self.scaler.load_state_dict(facts["scaler"])
        self.guard.restore(facts["non_finite"])

    def _no_sync(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._wrapped is self.method.network else self._wrapped.no_sync()  # type: ignore[operator]


def leave_at_rest(parameters: Iterable[nn.Parameter]) -> None:
    """Drop gradients, so that the optimiser changes neither the parameters nor their moments."""
    for parameter in parameters:
        parameter.grad = None


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a step's dropout and drop-path on one process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
