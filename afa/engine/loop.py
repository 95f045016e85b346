"""The training loop: step, save, record, validate, until done."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from afa.config import RunConfig
from afa.data.dataset import TrainingImages
from afa.data.files import remove_unfinished
from afa.data.images import DamagedImage
from afa.data.loader import LOST_LOADER, LoadingStopped, training_loader
from afa.data.samples import Sample
from afa.engine.checkpoint import CheckpointStore, restore, software_versions
from afa.engine.ending import next_commands, whereabouts
from afa.engine.held_out import HeldOutLosses
from afa.engine.log import RunLog
from afa.engine.memory import peak_gpu_memory
from afa.engine.optimisation import learning_rates
from afa.engine.output import finished_step, locked, write_config, write_result
from afa.engine.records import Progress, RunRecords
from afa.engine.runtime import ProcessRuntime
from afa.engine.signals import StopSignals
from afa.engine.trainer import Trainer
from afa.errors import UserError
from afa.methods.base import Batch, Method
from afa.prediction.evaluate import EvaluationStopped, Samples, evaluate
from afa.prediction.predictor import Predictor
from afa.prediction.sheet import output_sheet
from afa.progress import clock

logger = logging.getLogger(__name__)

# What the processes agree on before each step; the greatest number wins.
_GO_ON, _STOP, _FAIL = range(3)

IMAGES_SHOWN, IMAGE_WIDTH = 4, 160
"""In TensorBoard: how many images of a batch, and how wide each is."""


class Validation(NamedTuple):
    """What is scored during training: this process's share of the images, and the names of the outputs."""

    samples: Samples
    outputs: Sequence[str]


class TrainingRun:
    """State of one run between its steps.

    Args:
        config: The whole configuration.
        method: What one step means.
        runtime: The processes.
        images: What is trained on.
        validation: What is scored; None: there is nothing to score on.
        held_out: The losses on the validation list, where there is nothing to score on; None: nor is there this.
        output: Folder of the run.
        facts: What a checkpoint says about the run beside its state.
        stop: Where a request to stop is noted.
        log: The text log, which the main process opens in the folder.
    """

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        runtime: ProcessRuntime,
        images: TrainingImages,
        validation: Validation | None,
        held_out: HeldOutLosses | None,
        output: Path,
        facts: dict[str, Any],
        stop: StopSignals,
        log: RunLog,
    ) -> None:
        self.config, self.method, self.runtime = config, method, runtime
        self.images, self.validation, self.held_out = images, validation, held_out
        self.output, self.stop, self.log = output, stop, log
        self.facts = {**facts, "world_size": runtime.world_size, "versions": software_versions()}
        self.trainer = Trainer(config, method, runtime, output)
        self.store = CheckpointStore(output, keep=config.train.keep_checkpoints)
        self.records: RunRecords | None = None  # the main process's
        self.predictor: Predictor | None = None
        self.progress = Progress(0, config.train.steps, seconds_before=0, device=runtime.device, enabled=False)
        self.mark = (0, time.monotonic())
        self.concerned: set[str] = set()
        self.best: float | None = None
        self.best_step: int | None = None
        self.table: dict[str, Any] = {}

    def go(self) -> int:
        """Train from the current step to the end."""
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
                device=self.runtime.device,
                enabled=self.runtime.is_main,
            )
            self.trainer.wrap()
            seconds = float(saved.get("seconds_since_record", 0))
            self.mark = (int(saved.get("recorded_step", start)), time.monotonic() - seconds)
            try:
                self.progress.open()
                return self._loop(start, batches, recorded=recorded)
            finally:
                if self.records is not None:
                    self.records.close()
                self.progress.close()

    def _loop(self, start: int, batches: Iterator[dict[str, Any]], *, recorded: bool) -> int:
        settings = self.config.train
        self.method.network.train()
        if not recorded and not self._record(start):
            return self._leave(start, None, saved=True, failed=False)
        for step in range(start, settings.steps):
            micro_batches, failure = self._fetch(batches)
            stopped = self.stop.requested or not micro_batches
            verdict = self.runtime.worst(_FAIL if failure else _STOP if stopped else _GO_ON)
            if verdict != _GO_ON:
                self.trainer.guard.settle()
                saved = (step == start and recorded) or self._save(step, recorded=True)
                return self._leave(step, failure, saved=saved, failed=verdict == _FAIL)
            self.progress.step(self.trainer.step(step, micro_batches))
            done = step + 1
            if done == settings.steps:
                self.trainer.guard.settle()
                self.method.after_training(self.images.images.read(name) for name in self.images.images.names)
            if done % settings.checkpoint_every == 0 or done == settings.steps or self._validates(done):
                # Before validation, which may take long: a run that is killed in it has lost nothing else.
                self.trainer.guard.settle()
                saved = self._save(done, recorded=False)
            if not self._record(done, micro_batches[-1]):
                return self._leave(done, None, saved=saved, failed=False)
        self._finish(settings.steps)
        return 0

    def _fetch(self, batches: Iterator[dict[str, Any]]) -> tuple[list[Batch], UserError | None]:
        """The micro-batches of a step on the device, or why there are none; neither where one is asked to stop."""
        try:
            return [self.trainer.to_device(next(batches)) for _ in range(self.config.train.accumulate)], None
        except UserError as error:
            return [], error
        except LoadingStopped:
            return [], None
        except RuntimeError as error:
            if LOST_LOADER in str(error):
                return [], killed_loader()
            raise

    def _validates(self, done: int) -> bool:
        due = done % self.config.validation.every == 0 or done == self.config.train.steps
        return due and (self.validation is not None or self.held_out is not None)

    def _record(self, done: int, batch: Batch | None = None) -> bool:
        """Say what there is to say after a step: one record, with the validation's figures where it is validated.

        Returns:
            Whether that was done: a validation is given up where a process was asked to stop. The next start then
            begins with it.
        """
        settings = self.config.train
        pictured = settings.pictures_every and done % settings.pictures_every == 0
        if batch is not None and pictured and self.records is not None:
            self.records.pictures(done, self._pictures(done, batch["name"]))
        if done % settings.log_every and done != settings.steps and not self._validates(done):
            return True
        values = self.trainer.meter.means(self.runtime.mean)
        rates = learning_rates(self.trainer.optimiser, done - 1, steps=settings.steps, settings=self.config.optimiser)
        values |= {f"lr/{name}": rate for name, rate in rates.items()}
        values["time/seconds"] = self.progress.seconds()
        since, then = self.mark
        if done > since:
            seconds = values["time/seconds_per_step"] = (time.monotonic() - then) / (done - since)
            values["time/images_per_second"] = self.facts["global_batch"] / seconds
        gigabytes = peak_gpu_memory(self.runtime.device)
        if gigabytes is not None:
            values["memory/gpu_peak_gb"] = gigabytes
        self.progress.record(done, values)
        for name, concern in self.method.concerns(values).items():
            if name not in self.concerned and self.runtime.is_main:
                logger.warning("step %d: %s", done, concern)
            self.concerned.add(name)
        if self._validates(done):
            try:
                values |= self._validate(done)
            except EvaluationStopped:
                return False
        if self.records is not None:
            self.records.scalars(done, values)
        self.mark = (done, time.monotonic())
        return True

    def _validate(self, done: int) -> dict[str, float]:
        """Score the network at native resolution, one forward for segmentations; remember whether it is the best.

        Without masks, compute the losses.

        Raises:
            EvaluationStopped: On every process, where one was asked to stop.
        """
        if self.held_out is not None:
            losses = self.held_out(self.method, self.trainer, self.runtime, done - 1, self.stop.asked)
            self.table = {"losses": losses}
            if self.runtime.is_main:
                shown = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
                logger.info("validation at step %d, losses: %s", done, shown)
            return {f"validation/loss/{name}": value for name, value in losses.items()}
        assert self.validation is not None
        self.table = evaluate(
            self.method,
            self.validation.samples,
            class_names=self.method.class_names,
            device=self.runtime.device,
            outputs=self.validation.outputs,
            batch_size=self.config.validation.batch_size,
            progress="validating" if self.runtime.is_main else None,
            stop=self.stop.asked,
        ).table
        rows = {
            output.name: self.table[output.name]["miou"] for output in self.method.outputs if output.name in self.table
        }
        values = {f"{row}_miou": miou for row, miou in rows.items()}
        if "cls_f1" in self.table:
            values["cls_f1"] = self.table["cls_f1"]
        score = list(rows.values())[-1]
        if self.runtime.is_main:
            texts = [f"{name} {100 * miou:.1f}" for name, miou in rows.items()]
            shown = f"mIoU in %: {', '.join(texts)}"
            if "cls_f1" in values:
                shown += f"; F1 of the image-level labels in %: {100 * values['cls_f1']:.1f}"
            logger.info("validation at step %d: %s", done, shown)
            if (self.best is None or score > self.best) and self.store.mark_best(done):
                self.best, self.best_step = score, done
        return {f"validation/{name}": value for name, value in values.items()}

    def _pictures(self, done: int, names: Sequence[str]) -> dict[str, Tensor]:
        """What the method says about a batch's first images, for TensorBoard; changes no state."""
        if self.predictor is None:
            return {}
        samples: list[tuple[Sample, Tensor | None]] = []
        for name in names[:IMAGES_SHOWN]:
            try:
                samples.append((self.images.images.read(name), None))
            except DamagedImage:
                continue  # Another one took its place in the batch.
        network = self.method.network
        training = network.training
        network.eval()
        try:
            sheet = output_sheet(self.predictor, samples, heading=f"step {done}", cell=IMAGE_WIDTH)
        finally:
            network.train(training)
        return {"outputs": torch.from_numpy(sheet).permute(2, 0, 1)} if samples else {}

    def _save(self, done: int, *, recorded: bool) -> bool:
        """Write a checkpoint, which the main process does; returns whether it was written. All processes take part."""
        state = self.trainer.state()
        if self.records is None:
            return True
        self.records.flush()
        facts = {
            **self.facts,
            "recorded": recorded,
            "best": self.best,
            "best_step": self.best_step,
            "seconds": self.progress.seconds(),
            "recorded_step": self.mark[0],
            "seconds_since_record": time.monotonic() - self.mark[1],
            **state,
        }
        return self.store.save(done, self.method.network, self.trainer.optimiser, facts)

    def _restore(self) -> dict[str, Any]:
        """Bring everything to where the newest intact checkpoint was; the main process reads it for all."""
        checkpoint = self.runtime.on_main(self.store.load_latest)
        if checkpoint is None:
            return {}
        restore(checkpoint, self.method.network, self.trainer.optimiser)
        facts = checkpoint.facts
        self.best, self.best_step = facts["best"], facts["best_step"]
        self.trainer.restore(facts)
        return facts

    def _batches(self, start: int) -> Generator[dict[str, Any], None, None]:
        """This process's micro-batches from a step on; the loader's processes start with the first."""
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
        self.log.open(self.output)
        self.records = RunRecords(self.output, first_step=first_record)
        if self.config.train.pictures_every:
            try:
                self.predictor = Predictor(
                    self.method, self.config, device=self.runtime.device, inputs=self.method.needs
                )
            except UserError as error:
                logger.info("TensorBoard gets no images: %s", error)
            else:
                if self.predictor.left_out:
                    logger.info("TensorBoard's images lack %s", self.predictor.left_out)
        where = f"{self.runtime.world_size} process(es) on {self.runtime.device.type}"
        beginning = f"going on from step {start}" if start else "starting"
        logger.info("%s in %s, %s, git %s", beginning, self.output, where, self.facts["versions"]["git"][:12])
        self.images.say_what_is_given()

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
        written = self.runtime.on_main(lambda: self.store.holds(steps)) or self._save(steps, recorded=True)
        if not self.runtime.is_main:
            return
        if not written:
            raise UserError(
                f"all {steps} steps are done, but the last checkpoint could not be written to {self.store.folder}: "
                "make room there; the same command then goes on from the last one that was"
            )
        result = {"step": steps, "seconds": self.progress.seconds(), "best": self.best, "best_step": self.best_step}
        write_result(self.output, {**result, "validation": self.table})
        self.progress.close()
        logger.info("trained %d steps in %s: %s", steps, clock(self.progress.seconds()), self.output)
        for line in whereabouts(self.output, self.best_step):
            logger.info("  %s", line)
        logger.info("next:")
        for line in next_commands(self.output, self.method, has_masks=self.validation is not None):
            logger.info("  %s", line)


def killed_loader() -> UserError:
    """What is said when a loader process has died."""
    return UserError(
        "a loader process was killed, perhaps because memory ran out: lower train.workers if it happens again"
    )
