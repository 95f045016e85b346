#!/usr/bin/env python
"""Score a checkpoint: tools/eval.py work_dirs/voc --split val --scales 1 0.5 0.75 --flip dataset.root=data/VOC2012

Segmentation follows the test protocol (long side, scales, mirror); CAM and propagated CAM are scored as in training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from afa.data.parallel import usable_cores
from afa.errors import UserError, run_command
from afa.evaluation.arguments import (
    add_batch_argument,
    add_crf_arguments,
    add_network_arguments,
    prediction_overrides,
    split_scales,
)
from afa.paths import given_path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_arguments(parser)
    add_batch_argument(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as dataset.root=data/mine")
    parser.add_argument("--split", help="list of images; default: dataset.val_split")
    parser.add_argument("--cams", action=argparse.BooleanOptionalAction, default=True, help="score the CAMs, too")
    parser.add_argument("--limit", type=int, metavar="N", help="score the first N images only")
    parser.add_argument(
        "--workers", type=int, default=min(4, usable_cores()), help="loader processes (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=given_path, metavar="FILE", help="JSON; default: evaluation.json in the run's folder"
    )
    add_crf_arguments(parser)
    args = parser.parse_intermixed_args(arguments)
    args.overrides += split_scales(args)
    args.overrides += prediction_overrides(args)
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: at least 1 image is needed")
    if args.workers < 0:
        raise UserError(f"--workers {args.workers} is below 0")

    # PyTorch takes seconds: a mistake in the arguments is said before.
    from afa.data.loader import evaluation_loader
    from afa.evaluation.evaluate import evaluate
    from afa.evaluation.opening import build_crf, open_network, scored_class_names
    from afa.evaluation.report import default_report_path, format_table, write_report

    opened = open_network(args.checkpoint, config=args.config, device=args.device, overrides=args.overrides)
    test = opened.config.test
    crf = build_crf(test, args.crf_negligible) if args.crf else None
    output = args.output or default_report_path(args.checkpoint)
    loader = evaluation_loader(
        opened.config.dataset,
        split=args.split,
        limit=args.limit,
        workers=args.workers,
        pin_memory=opened.device.type == "cuda",
    )
    class_names = scored_class_names(opened)
    table = evaluate(
        opened.network,
        loader,
        config=opened.config,
        class_names=class_names,
        device=opened.device,
        test=test,
        cams=args.cams,
        refinement=crf,
        batch_size=test.batch_size,
        progress="evaluating",
    )
    table["step"] = opened.step
    table["split"] = args.split or opened.config.dataset.val_split
    table["test"] = {"long_side": test.long_side, "scales": test.scales, "mirror": test.mirror}
    if crf is not None:
        table["test"] |= {name: value for name, value in vars(test).items() if name.startswith("crf_")}
        table["test"]["crf_negligible"] = args.crf_negligible
    print(format_table(table))
    write_report(output, table)
    print(f"written to {output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_command(main)
