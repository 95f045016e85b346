"""Training: everything that a run needs before its first step, and how it ends."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from afa.config import Config, check_training, config_to_dict
from afa.data.dataset import TrainingImages
from afa.engine.loop import LOST_LOADER, TrainingRun, killed_loader
from afa.engine.output import check_output
from afa.engine.runtime import ProcessRuntime, compile_network, is_lost_process
from afa.engine.signals import StopSignals
from afa.errors import UserError, is_out_of_memory
from afa.evaluation.evaluate import Validator
from afa.methods import build_method
from afa.models import build_network
from afa.weights import load_encoder

logger = logging.getLogger(__name__)

LOST_PROCESS_EXIT_CODE = 1


def train(config: Config) -> int:
    """Train as configured, going on from the output folder's latest checkpoint where there is one.

    Every step's randomness (samples, augmentation, dropout) is a function of the seed and the step, so a resumed run
    ends like an undisturbed one.

    Returns:
        Exit code: 0 when done; :data:`afa.engine.signals.PREEMPTED_EXIT_CODE` after SIGTERM or SIGUSR1, 130 after an
        interrupt, both with everything saved; 1 where another process of the run is gone.

    Raises:
        UserError: Anything that the user can mend.
    """
    remarks = check_training(config)
    try:
        with (
            ProcessRuntime.start(config.train, global_counts=config.loss.normalisation == "global") as runtime,
            StopSignals() as stop,
        ):
            for remark in remarks if runtime.is_main else ():
                logger.warning("%s", remark)
            return _prepare(config, runtime, stop).go()
    except (MemoryError, RuntimeError) as error:
        if LOST_LOADER in str(error):
            raise UserError(f"{killed_loader()}; the same command goes on from the last checkpoint") from error
        if is_out_of_memory(error):
            raise UserError(
                "memory ran out: lower train.batch_size (and raise train.accumulate), augmentation.crop_size or the "
                f"largest of cam.scales ({str(error).strip().splitlines()[0] if str(error) else 'MemoryError'})"
            ) from error
        if not is_lost_process(error):
            raise
        # The one that failed tells why; torchrun ends or restarts this one.
        time.sleep(2)
        logger.error("another process of this run is gone: the same command goes on from the last checkpoint")
        return LOST_PROCESS_EXIT_CODE


def _prepare(config: Config, runtime: ProcessRuntime, stop: StopSignals) -> TrainingRun:
    """Check and build everything. Nothing is written yet."""
    settings = config.train
    images = TrainingImages(config.dataset, config.augmentation, seed=settings.seed)
    layout = images.layout
    class_names = list(layout.class_names)
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

    torch.manual_seed(settings.seed)
    network = build_network(config.model, len(class_names) + 1)
    if config.model.pretrained and not going_on:
        load_encoder(network.encoder, config.model.pretrained)
    elif config.optimiser.freeze_norms and not going_on and runtime.is_main:
        logger.warning("optimiser.freeze_norms without model.pretrained: the norms stay at their initial values")
    network.to(runtime.device)
    if settings.channels_last:
        network.to(memory_format=torch.channels_last)
    if settings.compile:
        compile_network(network)
    method = build_method(network, config, runtime)
    validator = None
    if layout.has_masks(config.dataset.val_split):
        validator = Validator(
            config, class_names, device=runtime.device, rank=runtime.rank, world_size=runtime.world_size, stop=stop
        )
    elif runtime.is_main:
        masks = layout.split_masks(config.dataset.val_split)
        logger.warning("there are no masks in %s: training goes without validation, the last weights count", masks)
    return TrainingRun(config, method, runtime, images, validator, output, facts, stop)
