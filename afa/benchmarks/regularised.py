"""The regularised loss: what it adds to a training step."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afa.benchmarks.pictures import noise_image
from afa.benchmarks.timing import time_in_turn
from afa.benchmarks.training_step import make_batch
from afa.config import config_from_dict
from afa.engine.optimisation import build_optimiser
from afa.engine.runtime import ProcessRuntime
from afa.errors import UserError
from afa.methods import build_method
from afa.models import build_network
from afa.ops.dense_energy import dense_energy_loss


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's command-line arguments."""
    parser.add_argument("--encoder", default="mit_b1", help="(default: %(default)s)")
    parser.add_argument("--crop", type=int, default=512, help="in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="images in a step (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=21, help="with background (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads; 0: as torch chooses (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table: training steps without and with the loss in turn, and the loss by itself.

    Args:
        args: As :func:`add_arguments` gives them.

    Returns:
        Seconds (medians) and the loss's share of a step without it.

    Raises:
        UserError: An argument makes no sense.
    """
    if min(args.crop, args.batch, args.repeats) < 1 or args.classes < 2 or args.threads < 0:
        raise UserError("--crop, --batch and --repeats must be at least 1, --classes 2, --threads 0")
    settings: dict[str, Any] = {
        "model": {"encoder": args.encoder},
        "train": {"device": args.device, "threads": args.threads, "batch_size": args.batch},
        "augmentation": {"crop_size": args.crop},
        "optimiser": {"freeze_norms": False},
    }
    plain = config_from_dict(settings)
    regularised = config_from_dict({**settings, "loss": {"reg": {"weight": 0.01}}})

    with ProcessRuntime.start(plain.train) as runtime:
        torch.manual_seed(0)
        network = build_network(plain.model, args.classes).to(runtime.device).train()
        methods = {
            "without": build_method(network, plain, runtime),
            "with": build_method(network, regularised, runtime),
        }
        optimiser = build_optimiser(methods["with"].parameter_groups(), plain.optimiser)
        pictures = torch.stack([noise_image(args.crop, args.crop, seed) for seed in range(args.batch)]).float()
        batch = make_batch(plain, args.classes, min(2, args.classes - 1), runtime.device)
        step = plain.schedule.refined_until + 1

        def train_with(name: str) -> None:
            optimiser.zero_grad(set_to_none=True)
            methods[name].training_step(network, batch, step).total().backward()
            optimiser.step()

        runs: dict[str, Callable[[], None]] = {name: partial(train_with, name) for name in methods}
        runs["loss alone"] = lambda: _loss_alone(pictures.to(runtime.device), args.classes)
        seconds = time_in_turn(runs, args.repeats, runtime.device).seconds

    medians = {name: median(times) for name, times in seconds.items()}
    added = median(b / a - 1 for a, b in zip(seconds["without"], seconds["with"], strict=True))
    alone = median(loss / step for loss, step in zip(seconds["loss alone"], seconds["without"], strict=True))
    print(
        f"regularised loss, {args.encoder}, crop {args.crop}, batch {args.batch}, {args.classes} classes, "
        f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
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
