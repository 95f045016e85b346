"""Save the outputs of a trained method for every image of a split to a folder that later stages read.

    afa label work_dirs/voc --split train_aug --output work_dirs/voc_labels

The folder holds label.json, maps/OUTPUT/NAME.npz, labels/OUTPUT/NAME.png and, at the end, manifest.json. After a
kill, the same command does the missing images. Under torchrun the processes share the images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from afa.commands.arguments import (
    CommandParser,
    add_device_argument,
    add_loading_arguments,
    add_map_arguments,
    add_precision_argument,
    add_run_argument,
    check_loading,
    check_map_arguments,
    prediction_settings,
)
from afa.data.files import require_writable
from afa.paths import given_path
from afa.weights.files import require_source


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, label, say what came of it."""
    parser = CommandParser(__doc__, settings=True)
    add_run_argument(parser)
    parser.add_argument("--split", help="list of images; default: dataset.train_split")
    parser.add_argument("--output", type=given_path, required=True, metavar="FOLDER", help="the label folder")
    parser.add_argument("--outputs", nargs="+", metavar="NAME", help="outputs of the method; default: all it can give")
    parser.add_argument("--maps", action=argparse.BooleanOptionalAction, default=True, help="write maps, too")
    parser.add_argument("--compress", action="store_true", help="compress maps: less disk, slower")
    add_map_arguments(parser, size=0, bits=32)
    add_device_argument(parser)
    add_precision_argument(parser)
    add_loading_arguments(parser)
    args = parser.read(arguments)
    args.settings += prediction_settings(args)
    check_loading(args)
    check_map_arguments(args)
    require_writable(args.output, "--output", folder=True)
    require_source(args.checkpoint)

    # PyTorch takes seconds: a mistake in the arguments is said before.
    from afa.data.map_files import StoredForm
    from afa.engine.runtime import shared_work
    from afa.methods.base import named_input_outputs, named_outputs
    from afa.prediction.labelling import label_split
    from afa.prediction.model import load
    from afa.weights import last_checkpoint

    with shared_work(args.device) as runtime:
        device = str(runtime.device)
        model = load(last_checkpoint(args.checkpoint), config=args.config, device=device, overrides=args.settings)
        writable = [output for output in model.method.outputs if output.kind != "affinity"]
        outputs = named_outputs(writable, args.outputs, "--outputs")
        if args.outputs is None:
            outputs = named_input_outputs(outputs, model.config.dataset)
        done = label_split(
            model,
            split=args.split or model.config.dataset.train_split,
            output=args.output,
            outputs=outputs,
            maps=args.maps,
            compress=args.compress,
            form=StoredForm(args.maps_size, args.maps_bits),
            limit=args.limit,
            workers=args.workers,
            processes=runtime,
        )
    if runtime.is_main:
        print(
            f"{done.images} images, {done.written} of them now, in {args.output}: {', '.join(o.name for o in outputs)}"
        )
        for failure in done.failures:
            print(f"  failed: {failure}", file=sys.stderr)
    return 1 if done.failures else 0
