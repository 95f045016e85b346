"""Validation without masks: a method's training losses on the validation list."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import default_collate

from afa.config import RunConfig
from afa.data.dataset import TrainingImages, Transform
from afa.engine.runtime import ProcessRuntime
from afa.engine.trainer import Trainer
from afa.errors import UserError
from afa.methods.base import Method
from afa.prediction.evaluate import EvaluationStopped


class HeldOutLosses:
    """Means of the losses over batches as in training: the list in its order, an incomplete last batch left out.

    Args:
        config: The validation list and ``train.batch_size`` count.
        needs: Of the method.
        transform: Of the method, for images of the validation list.

    Raises:
        UserError: Something is missing that a training step needs, or the list holds less than a batch.
    """

    def __init__(self, config: RunConfig, needs: tuple[str, ...], transform: Transform) -> None:
        dataset = dataclasses.replace(config.dataset, train_split=config.dataset.val_split, pairs=None)
        self.images = TrainingImages(dataset, transform, needs=needs, seed=config.train.seed)
        self.batch_size = config.train.batch_size
        if len(self.images) < self.batch_size:
            raise UserError(
                f"'{config.dataset.val_split}' has {len(self.images)} images, fewer than a batch of {self.batch_size}"
            )

    @torch.no_grad()
    def __call__(
        self, method: Method, trainer: Trainer, runtime: ProcessRuntime, step: int, stop: Callable[[], bool]
    ) -> dict[str, float]:
        """The losses in evaluation mode; the network's mode is the same afterwards as before.

        Every process computes all of it: the steps of some methods speak with the other processes.

        Args:
            method: Whose losses these are.
            trainer: Brings batches to the device.
            runtime: The processes; all of them call this at the same step.
            step: Counted from 0, as the method's steps are.
            stop: Asked before each batch.

        Returns:
            Name -> mean over the batches.

        Raises:
            EvaluationStopped: On every process, where ``stop`` said so on one.
        """
        network = method.network
        training = network.training
        sums: dict[str, torch.Tensor] = {}
        batches = len(self.images) // self.batch_size
        network.eval()
        try:
            for first in range(0, batches * self.batch_size, self.batch_size):
                if runtime.worst(int(stop())):
                    raise EvaluationStopped
                members: list[dict[str, Any]] = [
                    self.images[index, index] for index in range(first, first + self.batch_size)
                ]
                found = method.training_step(network, trainer.to_device(default_collate(members)), step)
                for name, loss in found.losses.items():
                    sums[name] = sums.get(name, loss.new_zeros(())) + loss
        finally:
            network.train(training)
        return {name: float(total) / batches for name, total in sums.items()}
