"""Evaluation: images per second for each output, and what sharing passes between outputs saves."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from afa.benchmarks.pictures import noise_image
from afa.benchmarks.timing import device_name, time_in_turn
from afa.data.samples import EvaluationSample, Sample
from afa.device import choose_device
from afa.errors import UserError
from afa.methods import build_method, config_from_dict
from afa.methods.base import SegmentationProtocol, SingleProcess, scored_outputs
from afa.ops.dense_crf import DenseCRF
from afa.prediction.evaluate import Evaluation, evaluate
from afa.prediction.model import build_crf

_TEST = "segmentation, scales and mirror"
_BOTH = "both of these, passes shared"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table.

    Args:
        args: As :func:`afa.commands.benchmark.parse` gives them.

    Returns:
        Images per second (of the median run) by output, and ``shared_ratio``: time of CAMs and segmentation together
        over the sum of their times alone.

    Raises:
        UserError: An argument makes no sense.
    """
    if not 1 <= args.present <= args.classes <= 254:
        raise UserError(f"--present {args.present} of --classes {args.classes}: take 1 up to all of the classes")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device, "--device")
    config = config_from_dict({"model": {"encoder": args.encoder}})
    names = [f"class{number}" for number in range(1, args.classes + 1)]
    torch.manual_seed(0)
    method = build_method(config, names, SingleProcess(device))
    method.network.to(device)
    samples = [_sample(args, number) for number in range(args.limit)]
    one_forward = SegmentationProtocol()
    native = SegmentationProtocol(scales=tuple(config.test.scales), mirror=config.test.mirror)
    released = replace(native, long_side=args.long_side)

    def job(
        outputs: Sequence[str], protocol: SegmentationProtocol = one_forward, refinement: DenseCRF | None = None
    ) -> Callable[[], Evaluation]:
        return lambda: evaluate(
            method,
            samples,
            class_names=names,
            device=device,
            outputs=outputs,
            protocol=protocol,
            refinement=refinement,
            batch_size=args.batch_size,
        )

    scored = scored_outputs(method)
    maps = [output.name for output in scored if not output.logits]
    cams = " and ".join(output.title for output in scored if not output.logits)
    segmentation = [output.name for output in scored if output.logits]
    jobs = {
        "segmentation, one forward": job(segmentation),
        cams: job(maps),
        "validation: both of these": job(maps + segmentation),
        _TEST: job(segmentation, native),
        _BOTH: job(maps + segmentation, native),
        f"both, at long side {args.long_side}": job(maps + segmentation, released),
    }
    if args.crf:
        jobs["segmentation, one forward, and CRF"] = job(segmentation, refinement=build_crf(config.test))
    seconds = time_in_turn(jobs, args.repeats, device).seconds

    height, width = args.size
    what = f"{args.encoder}, {width} x {height}, batch {args.batch_size}, {args.classes} classes"
    print(f"evaluation, {what}, {device_name(device)}, torch {torch.__version__}")
    table: dict[str, Any] = {}
    for name, times in seconds.items():
        table[name] = args.limit / median(times)
        print(f"{name:36}{table[name]:9.2f} images/s")
    alone = zip(seconds[cams], seconds[_TEST], strict=True)
    table["shared_ratio"] = median(both / sum(pair) for both, pair in zip(seconds[_BOTH], alone, strict=True))
    print(f"sharing passes takes {table['shared_ratio']:.2f} of the time that CAMs and segmentation take one by one")
    return table


def _sample(args: argparse.Namespace, number: int) -> EvaluationSample:
    image = noise_image(args.size[0], args.size[1], number).permute(1, 2, 0).contiguous().numpy()
    class_labels = np.zeros(args.classes, np.float32)
    class_labels[: args.present] = 1
    label = torch.zeros(args.size, dtype=torch.int64)
    label[: args.size[0] // 2] = 1
    return EvaluationSample(Sample(f"noise{number}", image, class_labels), label)
