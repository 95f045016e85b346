"""Prediction in bf16 or tf32 compared with float32: labels that change, differences of scores, mIoU, time."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from afa.benchmarks.timing import device_name, wait
from afa.data.loader import evaluation_loader
from afa.device import require_precision
from afa.errors import UserError
from afa.evaluation.metrics import ConfusionMatrix
from afa.maps import Maps
from afa.methods.base import Found, Output, named_input_outputs, scored_outputs
from afa.prediction.model import load, scored_class_names
from afa.progress import track

_EXACT = "float32"


@dataclass
class _Row:
    """What was found for one output: pixels, those of another label, the largest difference of scores, and counts."""

    exact: ConfusionMatrix
    rounded: ConfusionMatrix
    pixels: int = 0
    changed: int = 0
    difference: float | None = None

    def add(self, output: Output, pair: tuple[Found, Found], truth: Tensor) -> None:
        """Compare one image's predictions, in float32 and in the other precision."""
        size = (truth.shape[-2], truth.shape[-1])
        one, other = (found.outputs[output.name] for found in pair)
        labels = [output.label(found, size) for found in (one, other)]
        self.exact.update(truth, labels[0])
        self.rounded.update(truth, labels[1])
        self.pixels += truth.numel()
        self.changed += int((labels[0] != labels[1]).sum())
        if isinstance(one, Maps) and isinstance(other, Maps) and torch.equal(one.class_ids, other.class_ids):
            scores = [output.probabilities(maps, size) if output.logits else maps.scores for maps in (one, other)]
            highest = float(scores[0].abs().max()) or 1.0
            largest = float((scores[0] - scores[1]).abs().max()) / highest
            self.difference = max(largest, self.difference or 0.0)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table.

    Args:
        args: As :func:`afa.commands.benchmark.parse` gives them.

    Returns:
        For each output ``changed`` (share of pixels whose label is another one), ``difference`` (largest, of scores or
        probabilities, over the highest one of the image; None where there are none), ``miou`` and ``miou_float32``;
        and ``time_ratio``: seconds of prediction in the other precision over those in float32, where there is more
        than one image.

    Raises:
        UserError: The device cannot do the precision, or something of the run or the data set is missing.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    given = [*args.settings, f"test.precision={_EXACT}"]
    model = load(args.checkpoint, config=args.config, device=args.device, overrides=given)
    method, device = model.method, model.device
    if not method.low_precision:
        raise UserError(f"the method '{method.name}' predicts in float32 alone: there is nothing to compare")
    require_precision(args.precision, device, "--precision")
    outputs = named_input_outputs(scored_outputs(method), model.config.dataset)
    names = ("background", *scored_class_names(model))
    inputs = sorted({name for output in outputs for name in output.inputs})
    split = args.split or model.config.dataset.val_split
    samples = evaluation_loader(model.config.dataset, split=split, inputs=inputs, limit=args.limit)
    rows = {output.name: _Row(ConfusionMatrix(len(names)), ConfusionMatrix(len(names))) for output in outputs}
    seconds = dict.fromkeys((_EXACT, args.precision), 0.0)
    images = 0
    for seen in track(samples, len(samples), "comparing"):
        found = {}
        # In turn: both meet the same load of a shared machine, and neither is always the first.
        for precision in (list(seconds), list(reversed(seconds)))[images % 2]:
            method.precision = precision
            wait(device)
            start = time.perf_counter()
            with torch.no_grad():
                found[precision] = method.predict([seen.sample], list(rows), model.protocol)[0]
            wait(device)
            if images:  # the first image warms up
                seconds[precision] += time.perf_counter() - start
        images += 1
        truth = seen.label.to(device)
        for output in outputs:
            rows[output.name].add(output, (found[_EXACT], found[args.precision]), truth)
    if not images:
        raise UserError("no image could be compared: 'afa check' says what is wrong with them")
    return _told(args, rows, seconds, names, f"{images} images of '{split}'", device)


def _told(
    args: argparse.Namespace,
    rows: Mapping[str, _Row],
    seconds: Mapping[str, float],
    names: Sequence[str],
    what: str,
    device: torch.device,
) -> dict[str, Any]:
    """Print the table, and return its figures."""
    print(f"{args.precision} compared with float32: {args.checkpoint}, {what}, {device_name(device)}")
    print(f"{'output':<20}{'other label':>14}{'largest difference':>20}{'mIoU':>9}{'in float32':>12}")
    table: dict[str, Any] = {}
    for name, row in rows.items():
        figures = {
            "changed": row.changed / row.pixels,
            "difference": row.difference,
            "miou": row.rounded.scores(names)["miou"],
            "miou_float32": row.exact.scores(names)["miou"],
        }
        table[name] = figures
        difference = "-" if row.difference is None else f"{row.difference:.4f}"
        print(
            f"{name:<20}{100 * figures['changed']:>12.3f} %{difference:>20}{100 * figures['miou']:>9.2f}"
            f"{100 * figures['miou_float32']:>12.2f}"
        )
    if seconds[_EXACT]:
        table["time_ratio"] = seconds[args.precision] / seconds[_EXACT]
        print(f"prediction takes {table['time_ratio']:.2f} of the time that it takes in float32")
    return table
