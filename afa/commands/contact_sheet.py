"""Draw the maps and labels of a trained network, one row or more for each image.

afa sheet work_dirs/voc --split val --limit 8 --output sheet.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from afa.commands.arguments import (
    CommandParser,
    add_crf_arguments,
    add_network_arguments,
    check_scales,
    prediction_settings,
)
from afa.data.files import require_writable
from afa.errors import UserError, one_line
from afa.paths import given_path
from afa.weights.files import require_source


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, draw, write."""
    parser = CommandParser(__doc__, settings=True)
    add_network_arguments(parser)
    parser.add_argument("--split", help="list of images; default: dataset.val_split")
    parser.add_argument(
        "--limit", type=int, default=8, metavar="N", help="images, evenly from the list (default: %(default)s)"
    )
    parser.add_argument("--cell", type=int, default=200, help="width of an image in pixels (default: %(default)s)")
    parser.add_argument("--output", type=given_path, required=True, metavar="FILE", help=".png or .jpg")
    add_crf_arguments(parser)
    args = parser.read(arguments)
    check_scales(args)
    args.settings += prediction_settings(args)
    for name in ("limit", "cell"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: at least 1 is needed")
    if args.output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--output {args.output}: give a .png or .jpg file")
    require_writable(args.output, "--output")
    require_source(args.checkpoint)

    # PyTorch takes seconds: a mistake in the arguments is said before.
    from afa.data.dataset import EvaluationImages
    from afa.data.inputs import CLASS_LABELS
    from afa.prediction.model import build_crf, load, scored_class_names
    from afa.prediction.sheet import output_sheet
    from afa.visual import write_picture

    model = load(args.checkpoint, config=args.config, device=args.device, overrides=args.settings)
    images = EvaluationImages(model.config.dataset, split=args.split)
    wanted = sorted({name for output in model.method.outputs for name in output.inputs})
    inputs, reasons = images.images.inputs_there(wanted)
    for reason in reasons:
        print(f"note: {reason}", file=sys.stderr)
    images = EvaluationImages(model.config.dataset, split=args.split, inputs=inputs)
    scored_class_names(model)
    count = min(args.limit, len(images))
    chosen = (images[index * len(images) // count] for index in range(count))
    crf = build_crf(model.config.test, args.crf_negligible) if args.crf else None
    step = "" if model.step is None else f", step {model.step}"
    heading = f"{args.checkpoint}: {model.method.name.upper()}{step}, split {images.images.split}"
    rows = ((found.sample, found.label) for found in chosen)
    predictor = model.predictor(crf, [CLASS_LABELS, *inputs])
    sheet = output_sheet(predictor, rows, heading=heading, cell=args.cell)
    try:
        write_picture(args.output, sheet)
    except OSError as error:
        raise UserError(f"--output {args.output} cannot be written: {error.strerror or error}") from error
    without = f", without {predictor.left_out}" if predictor.left_out else ""
    print(f"{count} images in {one_line(str(args.output))}{without}")
    return 0
