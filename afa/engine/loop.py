"""The training loop: step, save, record, validate, until done."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from afa.config import Config
from afa.data.dataset import TrainingImages
from afa.data.files import remove_unfinished
from afa.data.loader import LoadingStopped, training_loader
from afa.engine.checkpoint import CheckpointStore, restore, software_versions
from afa.engine.finite import FiniteGuard, InspectedStep
from afa.engine.optimisation import build_optimiser, set_learning_rates, update
from afa.engine.output import finished_step, locked, write_config, write_result
from afa.engine.records import Meter, NullRecords, Progress, Records, RunRecords, clock
from afa.engine.runtime import ProcessRuntime
from afa.engine.signals import StopSignals
from afa.errors import UserError
from afa.evaluation.evaluate import EvaluationStopped, Validator
from afa.methods import Batch, Method

logger = logging.getLogger(__name__)

# What the processes agree on before each step; the greatest number wins.
_GO_ON, _STOP, _FAIL = range(3)

LOST_LOADER = "DataLoader worker (pid"
"""How PyTorch begins to say that a loader process is gone; an error within one is passed on with other words."""


class TrainingRun:
    """State of one run between its steps.

    Args:
        config: The whole configuration.
        method: What one step means.
        runtime: The processes.
        images: What is trained on. None: whoever calls :meth:`step` brings the batches.
        validator: Scores the network; every process calls it at the same step. None: there is nothing to score on.
        output: Folder of the run.
        facts: What a checkpoint says about the run beside its state.
        stop: Where a request to stop is noted.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        runtime: ProcessRuntime,
        images: TrainingImages | None,
        validator: Validator | None,
        output: Path,
        facts: dict[str, Any],
        stop: StopSignals,
    ) -> None:
        self.config, self.method, self.runtime = config, method, runtime
        self.images, self.validator = images, validator
        self.output, self.stop = output, stop
        self.facts = {**facts, "world_size": runtime.world_size, "versions": software_versions()}
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
        self.store = CheckpointStore(output, keep=config.train.keep_checkpoints)
        self.meter = Meter()
        self.wrapped: nn.Module = method.network
        self.records: Records = NullRecords()
        self.best: float | None = None
        self.best_step: int | None = None
        self.table: dict[str, Any] = {}

    def go(self) -> int:
        """Train from where the run stands to its end."""
        with ExitStack() as stack:
            self.runtime.on_main(lambda: stack.enter_context(locked(self.output)))
            saved = self._restore()
            start = int(saved.get("step", 0))
            if start >= self.config.train.steps and self.runtime.on_main(lambda: finished_step(self.output)) == start:
                if self.runtime.is_main:
                    logger.info("%s is already trained: %d steps are done", self.output, start)
                return 0
            batches = self._batches(start)
            stack.callback(batches.close)
            # A checkpoint may have been written before its step was recorded and validated: then that comes first.
            recorded = bool(saved.get("recorded", True))
            self.runtime.on_main(lambda: self._open_output(start, start + 1 if recorded else start))
            self.progress = Progress(
                start,
                self.config.train.steps,
                seconds_before=float(saved.get("seconds", 0)),
                enabled=self.runtime.is_main,
            )
            # All processes get the main one's weights here.
            self.wrapped = self.runtime.wrap(self.method.network, sync_batchnorm=self.config.train.sync_batchnorm)
            try:
                return self._loop(start, batches, recorded=recorded)
            finally:
                self.records.close()
                self.progress.close()

    def _loop(self, start: int, batches: Iterator[dict[str, Any]], *, recorded: bool) -> int:
        settings = self.config.train
        self.method.network.train()
        self.mark = (start, time.monotonic())
        if not recorded and not self._record(start):
            return self._leave(start, None, saved=True, failed=False)
        for step in range(start, settings.steps):
            micro_batches, failure = self._fetch(batches)
            stopped = self.stop.requested or not micro_batches
            verdict = self.runtime.worst(_FAIL if failure else _STOP if stopped else _GO_ON)
            if verdict != _GO_ON:
                self.guard.settle()
                saved = (step == start and recorded) or self._save(step, recorded=True)
                return self._leave(step, failure, saved=saved, failed=verdict == _FAIL)
            self.step(step, micro_batches)
            self.progress.step()
            done = step + 1
            if done % settings.checkpoint_every == 0 or done == settings.steps or self._validates(done):
                # Before validation, which may take long: a run that is killed in it has lost nothing else.
                self.guard.settle()
                saved = self._save(done, recorded=False)
            if not self._record(done, micro_batches[-1]):
                return self._leave(done, None, saved=saved, failed=False)
        self._finish(settings.steps)
        return 0

    def _fetch(self, batches: Iterator[dict[str, Any]]) -> tuple[list[Batch], UserError | None]:
        """The micro-batches of a step on the device, or why there are none; neither where one is asked to stop."""
        try:
            return [self._to_device(next(batches)) for _ in range(self.config.train.accumulate)], None
        except UserError as error:
            return [], error
        except LoadingStopped:
            return [], None
        except RuntimeError as error:
            if LOST_LOADER in str(error):
                return [], killed_loader()
            raise

    def step(self, step: int, micro_batches: list[Batch]) -> None:
        """One optimisation step over ``train.accumulate`` micro-batches.

        Args:
            step: Counted from 0.
            micro_batches: Of this process, on its device.

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
        for number, batch in enumerate(micro_batches, 1):
            with self._no_sync() if number < count else nullcontext():
                result = self.method.training_step(self.wrapped, batch, step)
                total = result.total()
                self.scaler.scale(total / count if count > 1 else total).backward()
            losses.append({name: loss.detach() for name, loss in result.losses.items()})
            figures = {f"loss/{name}": loss for name, loss in losses[-1].items()} | result.scalars
            for name, value in (figures | {"loss/total": total.detach()}).items():
                scalars[name] = scalars.get(name, 0) + value / count
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimiser)
        norm, flag = self.guard.inspect(InspectedStep(step, micro_batches, losses, scalars["loss/total"]))
        update(self.optimiser, flag)
        self.guard.mend_buffers(flag)
        if self.scaler.is_enabled():
            self.scaler.update()
        self.meter.add({**scalars, "gradient_norm": norm}, left_out=flag)

    def _no_sync(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.wrapped is self.method.network else self.wrapped.no_sync()  # type: ignore[operator]

    def _to_device(self, batch: dict[str, Any]) -> Batch:
        """Images travel to the device; what steers shapes stays on the host."""
        image = batch["image"].to(self.runtime.device, non_blocking=True)
        if self.config.train.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return Batch(image=image, class_labels=batch["class_labels"], valid_box=batch["valid_box"], name=batch["name"])

    def _validates(self, done: int) -> bool:
        due = done % self.config.validation.every == 0 or done == self.config.train.steps
        return due and self.validator is not None

    def _record(self, done: int, batch: Batch | None = None) -> bool:
        """Say what there is to say after a step: one record, with the validation's figures where it is validated.

        Returns:
            Whether that was done: a validation is given up where a process was asked to stop. The next start then
            begins with it.
        """
        settings = self.config.train
        pictured = settings.pictures_every and done % settings.pictures_every == 0
        if batch is not None and pictured and self.runtime.is_main:
            self.records.pictures(done, self.method.pictures(batch))
        if done % settings.log_every and done != settings.steps and not self._validates(done):
            return True
        values = self.meter.means(self.runtime.mean)
        rates = set_learning_rates(self.optimiser, done - 1, steps=settings.steps, settings=self.config.optimiser)
        values |= {f"lr/{name}": rate for name, rate in rates.items()}
        values["time/seconds"] = self.progress.seconds()
        since, then = self.mark
        if done > since:
            values["time/seconds_per_step"] = (time.monotonic() - then) / (done - since)
        self.progress.record(done, values)
        if self._validates(done):
            try:
                values |= self._validate(done)
            except EvaluationStopped:
                return False
        self.records.scalars(done, values)
        self.mark = (done, time.monotonic())
        return True

    def _validate(self, done: int) -> dict[str, float]:
        """Score the network, remember whether its segmentation is the best so far.

        Raises:
            EvaluationStopped: On every process, where one was asked to stop.
        """
        assert self.validator is not None
        self.table = self.validator(self.method.network, self.stop.asked)  # type: ignore[arg-type]
        rows = {row: scores["miou"] for row, scores in self.table.items() if isinstance(scores, dict)}
        values = {**{f"{row}_miou": miou for row, miou in rows.items()}, "cls_f1": self.table["cls_f1"]}
        score = rows["segmentation"]
        if self.runtime.is_main:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            logger.info("validation at step %d: %s", done, shown)
            if (self.best is None or score > self.best) and self.store.mark_best(done):
                self.best, self.best_step = score, done
        return {f"validation/{name}": value for name, value in values.items()}

    def _save(self, done: int, *, recorded: bool) -> bool:
        """Write a checkpoint, which the main process does; returns whether it was written. All processes take part."""
        meters = self.runtime.gather(self.meter.state())
        if not self.runtime.is_main:
            return True
        self.records.flush()
        facts = {
            **self.facts,
            "recorded": recorded,
            "best": self.best,
            "best_step": self.best_step,
            "seconds": self.progress.seconds(),
            "meters": meters,
            "scaler": self.scaler.state_dict(),
            "non_finite": self.guard.state(),
        }
        return self.store.save(done, self.method.network, self.optimiser, facts)

    def _restore(self) -> dict[str, Any]:
        """Bring everything to where the newest intact checkpoint was; the main process reads it for all."""
        checkpoint = self.runtime.on_main(self.store.load_latest)
        if checkpoint is None:
            return {}
        restore(checkpoint, self.method.network, self.optimiser)
        facts = checkpoint.facts
        self.best, self.best_step = facts["best"], facts["best_step"]
        self.meter.restore(facts["meters"], self.runtime)
        self.scaler.load_state_dict(facts["scaler"])
        self.guard.restore(facts["non_finite"])
        return facts

    def _batches(self, start: int) -> Generator[dict[str, Any], None, None]:
        """This process's micro-batches from a step on; the loader's processes start with the first."""
        assert self.images is not None
        settings = self.config.train
        loader = training_loader(
            self.images,
            global_batch=self.facts["global_batch"],
            batch_size=settings.batch_size,
            steps=settings.steps - start,
            start_step=start,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            workers=settings.workers,
            pin_memory=self.runtime.device.type == "cuda",
            read_timeout=self.config.dataset.read_timeout,
            stop=self.stop,
        )
        return iter(loader)

    def _open_output(self, start: int, first_record: int) -> None:
        """Say in the folder what the run is, and open its records: the main process's work."""
        remove_unfinished(self.output)
        write_config(self.output, self.facts["config"])
        self.records = RunRecords(self.output, first_step=first_record)
        where = f"{self.runtime.world_size} process(es) on {self.runtime.device.type}"
        beginning = f"going on from step {start}" if start else "starting"
        logger.info("%s in %s, %s, git %s", beginning, self.output, where, self.facts["versions"]["git"][:12])

    def _leave(self, step: int, failure: UserError | None, *, saved: bool, failed: bool) -> int:
        """End before all steps are done: because of a failure, or asked to."""
        where = "from there" if saved else "from the last checkpoint"
        if failed:
            failures = self.runtime.gather(None if failure is None else str(failure))
            first = next(message for message in failures if message is not None)
            raise UserError(f"{first} (stopped after step {step}; the same command goes on {where})")
        if self.runtime.is_main:
            logger.info("asked to stop at step %d; the same command goes on %s", step, where)
        return self.stop.exit_code

    def _finish(self, steps: int) -> None:
        """Say what came out, provided that it is on the disk."""
        written = self.runtime.on_main(lambda: self.store.path(steps).is_dir()) or self._save(steps, recorded=True)
        if not self.runtime.is_main:
            return
        if not written:
            raise UserError(
                f"all {steps} steps are done, but the last checkpoint could not be written to {self.store.folder}: "
                "make room there; the same command then goes on from the last one that was"
            )
        result = {"step": steps, "seconds": self.progress.seconds(), "best": self.best, "best_step": self.best_step}
        write_result(self.output, {**result, "validation": self.table})
        logger.info("trained %d steps in %s: %s", steps, clock(self.progress.seconds()), self.output)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a step's dropout and drop-path on one process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])


def killed_loader() -> UserError:
    """What is said when a loader process has died."""
    return UserError(
        "a loader process was killed, perhaps because memory ran out: lower train.workers if it happens again"
    )
