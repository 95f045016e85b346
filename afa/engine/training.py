"""The training loop: prepare, then step, validate, save, record, until done."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from afa.config import Config, config_differences, config_to_dict
from afa.data.layout import find_layout
from afa.data.loader import training_loader
from afa.engine.checkpoint import CheckpointStore, git_revision
from afa.engine.finite import FiniteGuard
from afa.engine.optimisation import build_optimiser, set_learning_rates
from afa.engine.records import Meter, NullRecords, Progress, Records, RunRecords, clock
from afa.engine.runtime import ProcessRuntime
from afa.errors import UserError
from afa.evaluation.evaluate import Validator
from afa.methods import Batch, Method, StepOutput, build_method
from afa.models import build_network
from afa.weights import load_encoder

logger = logging.getLogger("afa")

PREEMPTED_EXIT_CODE = 75
"""The run was asked to stop, has saved and wants to be started again (EX_TEMPFAIL)."""

# Settings that change how a run goes about its work, not what comes out of it.
_FREE_SETTINGS = {
    "dataset": {"root", "bad_image"},
    "train": {
        "output", "workers", "device", "threads", "compile", "channels_last", "batch_size", "accumulate",
        "non_finite", "non_finite_limit", "pictures_every", "checkpoint_every", "keep_checkpoints", "resume",
    },
    "test": {field.name for field in dataclasses.fields(Config().test)},
}  # fmt: skip


def train(config: Config) -> int:
    """Train as configured, going on from the output folder's latest checkpoint where there is one.

    Every step's randomness (samples, augmentation, dropout) is a function of the seed and the step, so a resumed run
    ends like an undisturbed one.

    Returns:
        Exit code: 0 when done, :data:`PREEMPTED_EXIT_CODE` after SIGTERM or SIGUSR1.

    Raises:
        UserError: Anything that the user can mend.
    """
    layout = find_layout(config.dataset)
    settings, class_names = config.train, list(layout.class_names)
    output = Path(settings.output)
    with ProcessRuntime.start(settings, global_counts=config.loss.normalisation == "global") as runtime:
        global_batch = settings.batch_size * settings.accumulate * runtime.world_size
        facts = {"config": config_to_dict(config), "class_names": class_names, "global_batch": global_batch}
        earlier = _check_output_folder(output, facts, resume=settings.resume)
        images = len(layout.names(config.dataset.train_split))
        if global_batch > images:
            raise UserError(
                f"{runtime.world_size} process(es) x {settings.batch_size} x {settings.accumulate} images make a step "
                f"of {global_batch}, but '{config.dataset.train_split}' has {images}: lower train.batch_size or "
                "train.accumulate, or start fewer processes"
            )

        torch.manual_seed(settings.seed)
        network = build_network(config.model, len(class_names) + 1)
        if config.model.pretrained and not earlier:
            load_encoder(network.encoder, config.model.pretrained)
        elif config.optimiser.freeze_norms and not earlier and runtime.is_main:
            logger.warning("optimiser.freeze_norms without model.pretrained: the norms stay at their initial values")
        network.to(runtime.device)
        if settings.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.compile:
            _compile(network)
        method = build_method(network, config, runtime)
        validator = Validator(
            config, class_names, device=runtime.device, rank=runtime.rank, world_size=runtime.world_size
        )
        run = _Run(config, method, runtime, validator, output, facts)
        return run.go()


class _Run:
    """State of one run between its steps."""

    def __init__(
        self,
        config: Config,
        method: Method,
        runtime: ProcessRuntime,
        validator: Validator,
        output: Path,
        facts: dict[str, Any],
    ) -> None:
        self.config, self.method, self.runtime, self.validator = config, method, runtime, validator
        self.output, self.facts = output, facts
        self.wrapped = runtime.wrap(method.network, sync_batchnorm=config.train.sync_batchnorm)
        self.optimiser = build_optimiser(method.parameter_groups(), config.optimiser)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=config.train.precision == "fp16")
        self.store = CheckpointStore(output, keep=config.train.keep_checkpoints)
        self.meter = Meter()
        self.best: float | None = None

    def go(self) -> int:
        """Train from where the run stands to its end."""
        settings = self.config.train
        saved = self.store.load_latest(self.method.network, self.optimiser) or {}
        start = int(saved.get("step", 0))
        self.best = saved.get("best")
        if saved:
            self.meter.restore(saved["meter"], self.runtime.device)
            self.scaler.load_state_dict(saved["scaler"])
        if start >= settings.steps:
            if self.runtime.is_main:
                logger.info("%s is already trained: %d steps are done", self.output, start)
            return 0
        loader = training_loader(
            self.config.dataset,
            self.config.augmentation,
            seed=settings.seed,
            global_batch=self.facts["global_batch"],
            batch_size=settings.batch_size,
            steps=settings.steps - start,
            start_step=start,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            workers=settings.workers,
            pin_memory=self.runtime.device.type == "cuda",
        )
        # All processes have read the checkpoint before one of them writes.
        self.runtime.barrier()
        self.records: Records = NullRecords()
        if self.runtime.is_main:
            self._prepare_output(start)
            self.records = RunRecords(
                self.output, resume_step=start, resume_position=int(saved.get("metrics_position", 0))
            )
        self.guard = FiniteGuard(
            self.runtime,
            self.output,
            policy=settings.non_finite,
            limit=settings.non_finite_limit,
            skipped=int(saved.get("skipped_steps", 0)),
        )
        self.progress = Progress(
            start, settings.steps, seconds_before=float(saved.get("seconds", 0)), enabled=self.runtime.is_main
        )
        try:
            with _StopSignals() as stop:
                return self._loop(start, iter(loader), stop)
        finally:
            self.records.close()
            self.progress.close()

    def _loop(self, start: int, batches: Iterator[dict[str, Any]], stop: _StopSignals) -> int:
        settings = self.config.train
        self.method.network.train()
        since, recorded = time.monotonic(), start
        for step in range(start, settings.steps):
            rates = set_learning_rates(
                self.optimiser, step, steps=settings.steps, settings=self.config.optimiser
            )
            torch.manual_seed(step_seed(settings.seed, step, self.runtime.rank))
            batch = self._step(step, batches)
            done = step + 1
            last = done == settings.steps
            self.progress.step()

            if done % settings.log_every == 0 or last:
                values = self.meter.means(self.runtime.mean)
                now = time.monotonic()
                values |= {f"lr/{name}": rate for name, rate in rates.items()}
                values["time/seconds"] = self.progress.seconds()
                values["time/seconds_per_step"] = (now - since) / (done - recorded)
                since, recorded = now, done
                self.records.scalars(done, values)
                self.progress.record(done, values)
            if settings.pictures_every and done % settings.pictures_every == 0 and self.runtime.is_main:
                self.records.pictures(done, self.method.pictures(batch))
            validated = done % self.config.validation.every == 0 or last
            is_best = self._validate(done) if validated else False
            stopping = self.runtime.any(stop.requested)
            if validated or stopping or done % settings.checkpoint_every == 0:
                self.guard.settle()
                self._save(done, is_best=is_best)
            if stopping and not last:
                if self.runtime.is_main:
                    logger.info("asked to stop at step %d: saved; the same command goes on from there", done)
                return PREEMPTED_EXIT_CODE
        if self.runtime.is_main:
            logger.info("trained %d steps in %s: %s", settings.steps, clock(self.progress.seconds()), self.output)
        return 0

    def _step(self, step: int, batches: Iterator[dict[str, Any]]) -> Batch:
        """One optimisation step over ``train.accumulate`` micro-batches; returns the last of them."""
        count = self.config.train.accumulate
        self.optimiser.zero_grad(set_to_none=True)
        scalars: dict[str, torch.Tensor] = {}
        for number in range(1, count + 1):
            batch = self._to_device(next(batches))
            synchronise = number == count or self.runtime.world_size == 1
            with nullcontext() if synchronise else self.wrapped.no_sync():  # type: ignore[operator]
                result = self.method.training_step(self.wrapped, batch, step)
                total = result.total()
                self.scaler.scale(total / count if count > 1 else total).backward()
            for name, value in _scalars(result, total).items():
                scalars[name] = scalars.get(name, 0) + value / count
        self._update(step, batch, result, total, scalars)
        return batch

    def _update(
        self, step: int, batch: Batch, result: StepOutput, total: torch.Tensor, scalars: dict[str, torch.Tensor]
    ) -> None:
        gradients = [
            parameter.grad
            for group in self.optimiser.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if self.scaler.is_enabled():
            # The scaler itself leaves out steps whose scaled gradients overflow; only the loss is looked at here.
            self.guard.inspect(step, batch, result, total, [])
            self.scaler.step(self.optimiser)
            self.scaler.update()
        else:
            norm, flag = self.guard.inspect(step, batch, result, total, gradients)
            self.optimiser.found_inf = flag  # type: ignore[attr-defined]
            self.optimiser.step()
            scalars["gradient_norm"] = norm
        self.meter.add(scalars)

    def _to_device(self, batch: dict[str, Any]) -> Batch:
        """Images travel to the device; what steers shapes stays on the host."""
        image = batch["image"].to(self.runtime.device, non_blocking=True)
        if self.config.train.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return Batch(
            image=image, class_labels=batch["class_labels"], valid_box=batch["valid_box"], name=batch["name"]
        )

    def _validate(self, done: int) -> bool:
        """Score the network; returns whether its segmentation is the best so far."""
        table = self.validator(self.method.network)  # type: ignore[arg-type]
        values = {f"validation/{row}_miou": table[row]["miou"] for row in table if isinstance(table[row], dict)}
        values["validation/cls_f1"] = table["cls_f1"]
        self.records.scalars(done, values)
        if self.runtime.is_main:
            shown = ", ".join(f"{key.removeprefix('validation/')} {value:.4f}" for key, value in values.items())
            logger.info("validation at step %d: %s", done, shown)
        score = table["segmentation"]["miou"]
        if self.best is None or score > self.best:
            self.best = score
            return True
        return False

    def _save(self, done: int, *, is_best: bool) -> None:
        if not self.runtime.is_main:
            return
        facts = {
            **self.facts,
            "best": self.best,
            "seconds": self.progress.seconds(),
            "metrics_position": self.records.position(),
            "meter": self.meter.state(),
            "scaler": self.scaler.state_dict(),
            "skipped_steps": self.guard.skipped,
            "world_size": self.runtime.world_size,
        }
        self.store.save(done, self.method.network, self.optimiser, facts, is_best=is_best)

    def _prepare_output(self, start: int) -> None:
        """Create the folder and say in it what the run is."""
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            config = OmegaConf.to_yaml(OmegaConf.create(self.facts["config"]))
            (self.output / "config.yaml").write_text(config, encoding="utf-8")
        except OSError as error:
            raise UserError(f"train.output: {self.output} cannot be written: {error.strerror}") from error
        where = f"{self.runtime.world_size} process(es) on {self.runtime.device.type}"
        beginning = f"going on from step {start}" if start else "starting"
        logger.info("%s in %s, %s, git %s", beginning, self.output, where, git_revision()[:12])


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a step's dropout and drop-path on one process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])


class _StopSignals:
    """Notes SIGTERM and SIGUSR1 instead of dying of them."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> _StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def _check_output_folder(output: Path, facts: Mapping[str, Any], *, resume: bool) -> bool:
    """Whether the folder holds checkpoints to go on from.

    Raises:
        UserError: They belong to another configuration, or going on is not wanted.
    """
    store = CheckpointStore(output, keep=1)
    steps = store.steps()
    if not steps:
        if output.exists() and not os.access(output, os.W_OK):
            raise UserError(f"train.output: {output} is not writable")
        return False
    if not resume:
        raise UserError(f"{output} already holds a run, and train.resume=false: choose another train.output")
    for step in reversed(steps):
        try:
            old = json.loads((store.path(step) / "checkpoint.json").read_text(encoding="utf-8"))
            lines = config_differences(_comparable(old), _comparable(facts))
        except (OSError, ValueError, KeyError, AttributeError):
            continue  # A damaged checkpoint is reported when the run is restored.
        if lines:
            raise UserError(
                f"{output} holds a run of another configuration ({'; '.join(lines[:5])}"
                f"{f'; and {len(lines) - 5} more' if len(lines) > 5 else ''}): choose another train.output"
            )
        break
    return True


def _comparable(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What two starts of one run must agree on."""
    config = {
        section: {key: value for key, value in settings.items() if key not in _FREE_SETTINGS.get(section, ())}
        if isinstance(settings, Mapping)
        else settings
        for section, settings in facts["config"].items()
    }
    return {**config, "class_names": list(facts["class_names"]), "global_batch": facts["global_batch"]}


def _scalars(result: StepOutput, total: torch.Tensor) -> dict[str, torch.Tensor]:
    losses = {f"loss/{name}": loss.detach() for name, loss in result.losses.items()}
    return {**losses, "loss/total": total.detach(), **result.scalars}


def _compile(network: nn.Module) -> None:
    """Compile encoder and decoder in place; what cannot be compiled runs as it is, with a warning."""
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True
    for child in network.children():
        child.compile()
