"""Draw the maps and labels of a trained network, one row or more for each image.

afa sheet work_dirs/voc --split val --limit 8 --output sheet.png
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from torch import Tensor

    from afa.data.samples import Sample


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
    from afa.data.dataset import Split, read_with_truth
    from afa.data.inputs import CLASS_LABELS
    from afa.prediction.model import build_crf, load, scored_class_names
    from afa.prediction.sheet import output_sheet
    from afa.visual import write_picture

    model = load(args.checkpoint, config=args.config, device=args.device, overrides=args.settings)
    dataset, split = model.config.dataset, args.split or model.config.dataset.val_split
    wanted = {name for output in model.method.outputs for name in output.inputs} - {CLASS_LABELS}
    inputs, reasons = Split(dataset, split).inputs_there(sorted(wanted))
    images = Split(dataset, split, inputs=inputs)
    scored_class_names(model)
    count = min(args.limit, len(images.names))
    chosen = [images.names[index * len(images.names) // count] for index in range(count)]
    with_mask = images.layout.names_with_mask(chosen, split)
    without = [name for name in chosen if name not in with_mask]
    if without:
        reasons.append(f"{len(without)} of the {count} images have no true mask in {images.layout.split_masks(split)}")
    for reason in reasons:
        print(f"note: {reason}", file=sys.stderr)
    crf = build_crf(model.config.test, args.crf_negligible) if args.crf else None
    step = "" if model.step is None else f", step {model.step}"
    heading = f"{args.checkpoint}: {model.method.name.upper()}{step}, split {split}"

    def rows() -> Iterator[tuple[Sample, Tensor | None]]:
        for name in chosen:
            if name in without:
                yield images.read(name), None
            else:
                found = read_with_truth(images, name)
                yield found.sample, found.label

    predictor = model.predictor(crf, [CLASS_LABELS, *inputs])
    sheet = output_sheet(predictor, rows(), heading=heading, cell=args.cell)
    try:
        write_picture(args.output, sheet)
    except OSError as error:
        raise UserError(f"--output {args.output} cannot be written: {error.strerror or error}") from error
    left_out = f", without {predictor.left_out}" if predictor.left_out else ""
    print(f"{count} images in {one_line(str(args.output))}{left_out}")
    return 0
