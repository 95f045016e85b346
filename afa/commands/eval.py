"""Score a trained network on a list of images that have masks.

    afa eval work_dirs/voc --split val --scales 1 0.5 0.75 --mirror dataset.root=data/VOC2012

Segmentation follows the test protocol (long side, scales, mirror); CAMs, and labels made from CAMs, are scored as in
the validation during training. Under torchrun the processes share the images; the scores are the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from afa.commands.arguments import (
    CommandParser,
    add_batch_argument,
    add_crf_arguments,
    add_loading_arguments,
    add_network_arguments,
    check_loading,
    check_scales,
    prediction_settings,
)
from afa.config import RunConfig
from afa.data.files import confusion_place, require_writable
from afa.errors import UserError
from afa.paths import given_path
from afa.weights.files import require_source

_READ = ("dataset.maps", "dataset.saliency")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, score, write the table."""
    parser = CommandParser(__doc__, settings=True)
    add_network_arguments(parser)
    add_batch_argument(parser)
    parser.add_argument("--split", help="list of images; default: dataset.val_split")
    parser.add_argument("--cams", action=argparse.BooleanOptionalAction, default=True, help="score the CAMs, too")
    add_loading_arguments(parser)
    parser.add_argument(
        "--output", type=given_path, metavar="FILE", help="JSON; default: evaluation.json in the run's folder"
    )
    parser.add_argument(
        "--csv",
        type=given_path,
        metavar="FILE",
        help=".csv for each class's and image's IoU; confusion matrix beside it",
    )
    add_crf_arguments(parser)
    parser.add_argument(
        "--known-classes",
        action="store_true",
        help="score the segmentation among the classes of each image's labels, too: what remains are errors of shape",
    )
    args = parser.read(arguments)
    check_scales(args)
    args.settings += prediction_settings(args)
    check_loading(args)

    path = args.output or default_report_path(args.checkpoint)
    require_writable(path, "--output" if args.output else "without --output,")
    if args.csv is not None:
        if args.csv.suffix.lower() != ".csv":
            raise UserError(f"--csv {args.csv}: give a .csv file")
        for place in (args.csv, confusion_place(args.csv)):
            require_writable(place, "--csv")
    require_source(args.checkpoint)

    # PyTorch takes seconds: a mistake in the arguments is said before.
    from afa.data.layout import find_layout
    from afa.data.loader import evaluation_loader
    from afa.engine.runtime import shared_work
    from afa.evaluation.tables import format_table, protocol_key, read_entries, write_csv, write_entry
    from afa.methods.base import named_input_outputs, scored_outputs
    from afa.prediction.evaluate import evaluate
    from afa.prediction.model import build_crf, load, scored_class_names

    with shared_work(args.device) as runtime:
        model = load(args.checkpoint, config=args.config, device=str(runtime.device), overrides=args.settings)
        test = model.config.test
        outputs = [output for output in scored_outputs(model.method) if args.cams or output.logits]
        outputs = named_input_outputs(outputs, model.config.dataset)
        crf = build_crf(test, args.crf_negligible) if args.crf else None
        read_entries(path)  # before hours of work, what could not be written beside them
        split = args.split or model.config.dataset.val_split
        listed = find_layout(model.config.dataset).names(split)
        # The whole list is no part of it.
        limit = None if args.limit is None or args.limit >= len(listed) else args.limit
        loader = evaluation_loader(
            model.config.dataset,
            split=split,
            inputs=sorted({name for output in outputs for name in output.inputs}),
            rank=runtime.rank,
            world_size=runtime.world_size,
            limit=limit,
            workers=args.workers,
            pin_memory=model.device.type == "cuda",
        )
        found = evaluate(
            model.method,
            loader,
            class_names=scored_class_names(model),
            device=model.device,
            outputs=[output.name for output in outputs],
            protocol=model.protocol,
            refinement=crf,
            known_classes=args.known_classes,
            batch_size=test.batch_size,
            progress="evaluating" if runtime.is_main else None,
        )
        crf_settings = {name: value for name, value in vars(test).items() if name.startswith("crf_")}
        key = protocol_key(
            split=split,
            step=model.step,
            scales=test.scales,
            long_side=test.long_side,
            mirror=test.mirror,
            crf=None if crf is None else {**crf_settings, "crf_negligible": args.crf_negligible},
            limit=limit,
            settings=method_settings(args.settings),
            precision=test.precision,
        )
        titles = {output.name: output.title for output in model.method.outputs}
        titles |= {
            f"{name}{ending}": f"{title}{words}"
            for name, title in titles.items()
            for ending, words in (("_crf", " + CRF"), ("_known", ", classes known"))
        }
        per_image = {row: counts.in_order(listed) for row, counts in found.per_image.items()}

        def write() -> None:
            print(format_table(found.table, titles, limit=limit))
            beside = write_entry(path, key, found.table, per_image, found.confusion)
            written = [path, *([] if beside is None else [beside])]
            if args.csv is not None:
                totals = {row: found.table[row] for row in per_image}
                written += write_csv(args.csv, per_image, totals, found.confusion)
            print(f"written to {', '.join(map(str, written))}", file=sys.stderr)

        runtime.on_main(write)
    return 0


def method_settings(overrides: Sequence[str]) -> dict[str, str]:
    """Those of ``key=value`` settings that are in none of the sections that every run has, and what is read, sorted."""
    common = {item.name for item in dataclasses.fields(RunConfig)}
    given = dict(override.split("=", 1) for override in overrides)
    return {key: text for key, text in sorted(given.items()) if key in _READ or key.partition(".")[0] not in common}


def default_report_path(checkpoint: str | Path) -> Path:
    """``evaluation.json`` in the folder of the run that a checkpoint belongs to, else beside the weights file."""
    from afa.weights.facts import CHECKPOINTS_FOLDER

    path = Path(checkpoint)
    folder = path if path.is_dir() else path.parent
    # OUTPUT itself, OUTPUT/checkpoints and OUTPUT/checkpoints/step_00002000 all belong to the run OUTPUT.
    store = next((parent for parent in (folder, folder.parent) if parent.name == CHECKPOINTS_FOLDER), None)
    return (store.parent if store else folder) / "evaluation.json"
