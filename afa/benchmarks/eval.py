"""Evaluation: images per second for each output, and what sharing passes between outputs saves."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from afa.benchmarks.pictures import noise_image
from afa.benchmarks.timing import time_in_turn
from afa.config import Config
from afa.data.transforms import normalise
from afa.device import choose_device
from afa.errors import UserError
from afa.evaluation.evaluate import evaluate
from afa.evaluation.opening import build_crf
from afa.models import VARIANTS, build_network

_CAMS = "CAM and propagated CAM"
_TEST = "segmentation, scales and mirror"
_BOTH = "both of these, passes shared"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's command-line arguments."""
    parser.add_argument("--encoder", default="mit_b1", choices=tuple(VARIANTS), help="variant (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=20, help="foreground classes (default: %(default)s)")
    parser.add_argument("--present", type=int, default=2, help="classes in an image (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=[375, 500], metavar=("H", "W"), help="in pixels (default: 375 500)"
    )
    parser.add_argument(
        "--long-side", type=int, default=512, help="of the released protocol's segmentation (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, default=4, help="images per run (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=1, help="images that run together (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads; 0: as torch chooses (default: %(default)s)"
    )
    parser.add_argument("--crf", action="store_true", help="also measure DenseCRF, which runs beside the network")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table.

    Args:
        args: As :func:`add_arguments` gives them.

    Returns:
        Images per second (of the median run) by output, and ``shared_ratio``: time of CAMs and segmentation together
        over the sum of their times alone.

    Raises:
        UserError: An argument makes no sense.
    """
    if min(*args.size, args.long_side) < 16 or min(args.images, args.repeats, args.batch_size) < 1 or args.threads < 0:
        raise UserError(
            "--size and --long-side must be at least 16, --images, --repeats and --batch-size at least 1, --threads at "
            "least 0"
        )
    if not 1 <= args.present <= args.classes <= 254:
        raise UserError(f"--present {args.present} of --classes {args.classes}: take 1 up to all of the classes")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device, "--device")
    config = Config(model=replace(Config().model, encoder=args.encoder))
    torch.manual_seed(0)
    network = build_network(config.model, args.classes + 1).to(device).eval()
    samples = [_sample(args, config, index) for index in range(args.images)]
    names = [f"class{index}" for index in range(args.classes)]
    native = replace(config.test, long_side=0)

    def job(**options: Any) -> Callable[[], Any]:
        options |= {"config": config, "class_names": names, "device": device, "batch_size": args.batch_size}
        return lambda: evaluate(network, samples, **options)

    jobs = {
        "segmentation, one forward": job(cams=False),
        _CAMS: job(segmentation=False),
        "validation: both of these": job(),
        _TEST: job(cams=False, test=native),
        _BOTH: job(test=native),
        f"both, at long side {args.long_side}": job(test=replace(config.test, long_side=args.long_side)),
    }
    if args.crf:
        jobs["segmentation, one forward, and CRF"] = job(cams=False, refinement=build_crf(config.test))
    seconds = time_in_turn(jobs, args.repeats, device).seconds

    height, width = args.size
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    what = f"{args.encoder}, {width} x {height}, batch {args.batch_size}, {args.classes} classes"
    print(f"evaluation, {what}, {where}, torch {torch.__version__}")
    table: dict[str, Any] = {}
    for name, times in seconds.items():
        table[name] = args.images / median(times)
        print(f"{name:36}{table[name]:9.2f} images/s")
    alone = zip(seconds[_CAMS], seconds[_TEST], strict=True)
    table["shared_ratio"] = median(both / sum(pair) for both, pair in zip(seconds[_BOTH], alone, strict=True))
    print(f"sharing passes takes {table['shared_ratio']:.2f} of the time that CAMs and segmentation take one by one")
    return table


def _sample(args: argparse.Namespace, config: Config, index: int) -> dict[str, Any]:
    image = noise_image(args.size[0], args.size[1], index).permute(1, 2, 0).contiguous()
    class_labels = torch.zeros(args.classes)
    class_labels[: args.present] = 1
    label = torch.zeros(args.size, dtype=torch.int64)
    label[: args.size[0] // 2] = 1
    return {
        "image": normalise(image.numpy(), config.dataset.image_mean, config.dataset.image_std),
        "image_uint8": image,
        "label": label,
        "class_labels": class_labels,
        "name": f"noise{index}",
    }
