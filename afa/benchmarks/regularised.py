"""The regularised loss: what it adds to a training step."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.benchmarks.pictures import noise_image
from afa.benchmarks.timing import time_in_turn
from afa.benchmarks.training_step import TrainingStep, configuration, headline
from afa.engine.runtime import ProcessRuntime
from afa.errors import UserError
from afa.methods.afa.config import AFAConfig
from afa.ops.dense_energy import dense_energy_loss

WEIGHT = 0.01  # the paper's, where the settings leave the loss out


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table: training steps without and with the loss in turn, and the loss by itself.

    Args:
        args: As :func:`afa.commands.benchmark.parse` gives them.

    Returns:
        Seconds (medians) and the loss's share of a step without it.

    Raises:
        UserError: An argument makes no sense.
    """
    plain, regularised = configuration(args), configuration(args)
    if not isinstance(plain, AFAConfig):
        raise UserError(f"reg: the method '{plain.method}' has no regularised loss")
    plain.loss.reg.weight, regularised.loss.reg.weight = 0.0, regularised.loss.reg.weight or WEIGHT
    crop, count = plain.augmentation.crop_size, plain.train.batch_size
    pictures = torch.stack([noise_image(crop, crop, seed) for seed in range(count)]).float()
    with ProcessRuntime.start(plain.train) as runtime, tempfile.TemporaryDirectory() as folder:
        without = TrainingStep(plain, runtime, args, Path(folder))
        runs: dict[str, Callable[[], None]] = {
            "without": without.step,
            "with": TrainingStep(regularised, runtime, args, Path(folder)).step,
            "loss alone": lambda: _loss_alone(pictures.to(runtime.device), args.classes),
        }
        seconds = time_in_turn(runs, args.repeats, runtime.device).seconds

    medians = {name: median(times) for name, times in seconds.items()}
    added = median(b / a - 1 for a, b in zip(seconds["without"], seconds["with"], strict=True))
    alone = median(loss / step for loss, step in zip(seconds["loss alone"], seconds["without"], strict=True))
    print(f"regularised loss: {headline(without.facts())}")
    print(f"step without the loss      {medians['without']:8.3f} s")
    print(f"step with the loss         {medians['with']:8.3f} s  {100 * added:+.1f} %")
    print(f"loss and its gradient alone{medians['loss alone']:8.3f} s  {100 * alone:.1f} % of a step without")
    return {
        "without_s": medians["without"],
        "with_s": medians["with"],
        "alone_s": medians["loss alone"],
        "added_share": added,
        "alone_share": alone,
    }


def _loss_alone(pictures: Tensor, classes: int) -> None:
    """The loss and its gradient, for logits of a quarter of the size as the decoder gives them."""
    count, _, height, width = pictures.shape
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, -(-height // 4), -(-width // 4), generator=generator).to(pictures.device)
    logits.requires_grad_()
    upsampled = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
    everywhere = torch.ones(count, height, width, device=pictures.device)
    dense_energy_loss(pictures, upsampled.softmax(dim=1), everywhere, everywhere * 255).backward()
