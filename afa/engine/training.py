"""Training: everything that a run needs before its first step, and how it ends."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from afa.config import RunConfig, check_training, config_to_dict
from afa.data.dataset import Split, TrainingImages
from afa.data.layout import Layout, find_class_names
from afa.data.loader import LOST_LOADER, evaluation_loader
from afa.engine.held_out import HeldOutLosses
from afa.engine.log import RunLog
from afa.engine.loop import TrainingRun, Validation, killed_loader
from afa.engine.output import check_output
from afa.engine.runtime import ProcessRuntime, compile_network, is_lost_process
from afa.engine.signals import StopSignals
from afa.errors import UserError, is_out_of_memory
from afa.methods import build_method
from afa.methods.base import Method, Output, named_outputs, scored_outputs
from afa.models import Encoder
from afa.weights import last_checkpoint, load_encoder, load_fitting

logger = logging.getLogger(__name__)

LOST_PROCESS_EXIT_CODE = 1

_SAME_LEVEL = 0.5  # of 255: normalisations that are written with fewer digits


def train(config: RunConfig) -> int:
    """Train as configured; continue from the latest checkpoint in the output folder, if there is one.

    Every step's randomness (samples, augmentation, dropout) is a function of the seed and the step, so a resumed run
    ends like an undisturbed one.

    Returns:
        Exit code: 0 when done; :data:`afa.engine.signals.PREEMPTED_EXIT_CODE` after SIGTERM or SIGUSR1, 130 after an
        interrupt, both with everything saved; 1 if another process of the run has ended.

    Raises:
        UserError: Anything that the user can mend.
    """
    with RunLog() as log:
        return _trained(config, log)


def _trained(config: RunConfig, log: RunLog) -> int:
    """:func:`train`, where what it says is kept."""
    remarks = check_training(config)
    try:
        with (
            ProcessRuntime.start(config.train) as runtime,
            StopSignals() as stop,
        ):
            for remark in remarks if runtime.is_main else ():
                logger.warning("%s", remark)
            return _prepare(config, runtime, stop, log).go()
    except (MemoryError, RuntimeError) as error:
        if LOST_LOADER in str(error):
            raise UserError(f"{killed_loader()}; the same command goes on from the last checkpoint") from error
        if is_out_of_memory(error):
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "MemoryError"
            raise UserError(
                "memory ran out: lower train.batch_size (and raise train.accumulate) or augmentation.crop_size, or "
                f"take smaller scales or a smaller network ({reason})"
            ) from error
        if not is_lost_process(error):
            raise
        # The one that failed tells why; torchrun ends or restarts this one.
        time.sleep(2)
        logger.error("another process of this run has ended: the same command goes on from the last checkpoint")
        return LOST_PROCESS_EXIT_CODE


def _prepare(config: RunConfig, runtime: ProcessRuntime, stop: StopSignals, log: RunLog) -> TrainingRun:
    """Check and build everything. Nothing is written yet."""
    settings = config.train
    class_names = list(find_class_names(config.dataset))
    torch.manual_seed(settings.seed)
    method = build_method(config, class_names, runtime)
    network = method.network
    images = TrainingImages(
        config.dataset, method.transform(), needs=method.needs, seed=settings.seed, sampler=method.sampler
    )
    global_batch = settings.batch_size * settings.accumulate * runtime.world_size
    if global_batch > len(images):
        raise UserError(
            f"{runtime.world_size} process(es) x {settings.batch_size} x {settings.accumulate} images make a step "
            f"of {global_batch}, but '{config.dataset.train_split}' has {len(images)}: lower train.batch_size or "
            "train.accumulate, or start fewer processes"
        )
    output = Path(settings.output)
    facts = {
        "config": config_to_dict(config),
        "class_names": class_names,
        "global_batch": global_batch,
        "images": images.fingerprint,
    }
    going_on = runtime.on_main(lambda: check_output(output, facts, resume=settings.resume))

    if not going_on:
        _start_weights(config, method, speaks=runtime.is_main)
    network.to(runtime.device)
    if settings.channels_last:
        on_cpu = runtime.device.type == "cpu"
        if on_cpu and any(isinstance(part, Encoder) and not part.channels_last_on_cpu for part in network.modules()):
            raise UserError("train.channels_last does not work with this encoder on the CPU: leave it out")
        network.to(memory_format=torch.channels_last)
    if settings.compile:
        compile_network(network)
    validation, held_out = _validation(config, method, runtime, images.images.layout, stop)
    return TrainingRun(config, method, runtime, images, validation, held_out, output, facts, stop, log)


def _start_weights(config: RunConfig, method: Method, *, speaks: bool) -> None:
    """Give a new run's network the weights that it starts from."""
    pretrained = method.pretrained()
    for module, source in pretrained:
        load_encoder(module, source)
        if isinstance(module, Encoder) and speaks:
            _warn_of_other_normalisation(config, module)
    if config.train.init is not None:
        load_fitting(method.network, last_checkpoint(config.train.init))
    elif config.optimiser.freeze == "released" and not pretrained and speaks:
        logger.warning(
            "optimiser.freeze=released without pretrained weights: frozen parameters keep their initial values"
        )


def _warn_of_other_normalisation(config: RunConfig, encoder: Encoder) -> None:
    """Warn if pretrained weights need another normalisation of the images."""
    for name, used_to in (("image_mean", encoder.mean), ("image_std", encoder.std)):
        given = getattr(config.dataset, name)
        if any(abs(ours - theirs) > _SAME_LEVEL for ours, theirs in zip(given, used_to, strict=True)):
            values = ",".join(f"{value:g}" for value in used_to)
            logger.warning(
                "the encoder was pretrained with dataset.%s=[%s], not %s: results will be worse", name, values, given
            )


def _validation(
    config: RunConfig, method: Method, runtime: ProcessRuntime, layout: Layout, stop: StopSignals
) -> tuple[Validation | None, HeldOutLosses | None]:
    """Scores where there are masks, else losses where the method and the data set allow it, else nothing.

    Raises:
        UserError: The settings name outputs that cannot be scored.
    """
    split = config.dataset.val_split
    if layout.has_masks(split):
        outputs = _validated_outputs(config, method, speaks=runtime.is_main)
        if not outputs:
            return None, None
        loader = evaluation_loader(
            config.dataset,
            inputs=sorted({name for output in outputs for name in output.inputs}),
            rank=runtime.rank,
            world_size=runtime.world_size,
            workers=config.train.workers,
            pin_memory=runtime.device.type == "cuda",
            stop=stop,
        )
        return Validation(loader, [output.name for output in outputs]), None
    said = f"there are no masks in {layout.split_masks(split)}"
    transform, held_out = method.validation_transform(), None
    if transform is not None:
        try:
            held_out = HeldOutLosses(config, method.needs, transform)
        except UserError as error:
            said = f"{said}, and no losses on '{split}': {error}"
    if runtime.is_main:
        if held_out is None:
            logger.warning("%s: training continues without validation; the last weights are the result", said)
        else:
            logger.info("%s: the losses on '%s' are reported; the last weights are the result", said, split)
    return None, held_out


def _validated_outputs(config: RunConfig, method: Method, *, speaks: bool) -> list[Output]:
    """The outputs that validation scores; those whose inputs validation images lack only where they are asked for.

    Raises:
        UserError: The settings name one that there is not, or that has no score.
    """
    wanted = config.validation.outputs
    if wanted == []:
        raise UserError("validation.outputs is empty: name outputs, or leave it out")
    outputs = named_outputs(scored_outputs(method), wanted, "validation.outputs")
    if wanted is not None:
        return outputs
    missing = {output.name: _missing_inputs(config, output) for output in outputs}
    for name, reason in missing.items():
        if reason and speaks:
            logger.warning("validation leaves the output '%s' out: %s", name, reason)
    return [output for output in outputs if not missing[output.name]]


def _missing_inputs(config: RunConfig, output: Output) -> str | None:
    """What validation images lack for an output; None: nothing."""
    if not output.inputs:
        return None
    try:
        Split(config.dataset, config.dataset.val_split, inputs=output.inputs)
    except UserError as error:
        return str(error)
    return None
