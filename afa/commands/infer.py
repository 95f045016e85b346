"""Segment your own images: save masks, CAMs and overlays.

    afa predict work_dirs/voc photos/ cat.jpg --output results

Exit code 1 if an image could not be read; all other images are done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from afa.commands.arguments import (
    CommandParser,
    add_batch_argument,
    add_crf_arguments,
    add_map_arguments,
    add_network_arguments,
    check_map_arguments,
    prediction_settings,
    split_scales,
)
from afa.errors import UserError, one_line
from afa.paths import given_path
from afa.prediction import results
from afa.prediction.images import describe_files, find_pictures
from afa.weights.files import require_source

if TYPE_CHECKING:
    from afa.prediction.model import Model


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, predict, write."""
    parser = CommandParser(__doc__, settings=True, epilog=results.__doc__)
    add_network_arguments(parser)
    add_batch_argument(parser)
    parser.add_argument(
        "images",
        nargs="*",
        default=[],
        metavar="IMAGE_OR_FOLDER",
        help="image files; folders, with all below them",
    )
    parser.add_argument("--output", type=given_path, required=True, metavar="FOLDER", help="folder of the results")
    parser.add_argument(
        "--labels",
        type=given_path,
        metavar="FILE",
        help="image-level labels (.txt .csv .json .npy) instead of predicted ones; "
        "in folders, images without labels are skipped",
    )
    parser.add_argument(
        "--pseudo-labels",
        nargs="+",
        metavar="KIND",
        help="pseudo labels to save: outputs of the method, named as in label folders (X also means X_label), or "
        "plain: a threshold on the first maps; default: with --labels the method's last output that is a "
        "label only, else none",
    )
    parser.add_argument("--gif", action="store_true", help="an animated GIF for each folder of frames")
    parser.add_argument("--fps", type=float, default=8.0, help="its frames per second (default: %(default)s)")
    parser.add_argument("--cams", action=argparse.BooleanOptionalAction, default=True, help="write CAMs")
    add_map_arguments(parser, size=1024, bits=16)
    parser.add_argument("--overlays", action=argparse.BooleanOptionalAction, default=True, help="write overlays")
    parser.add_argument(
        "--exif",
        action=argparse.BooleanOptionalAction,
        help="turn images as their EXIF orientation says; default: yes, but not with --labels, whose masks must fit "
        "the stored pixels, nor with maps or saliency, which fit those as well",
    )
    add_crf_arguments(parser)
    args = parser.read(arguments)
    places = [given_path(text) for text in [*args.images, *split_scales(args)]]
    settings = [*args.settings, *prediction_settings(args)]

    check_map_arguments(args)
    if not places:
        taken = f"; '{args.settings[0]}' is read as a setting, as no file has that name" if args.settings else ""
        raise UserError(f"no image was named: give image files or folders after RUN{taken}")
    if not 0.01 <= args.fps <= 100:
        raise UserError(f"--fps {args.fps}: a GIF shows from 0.01 to 100 frames per second")
    require_source(args.checkpoint)
    pictures, passed_over = find_pictures(places, without=args.output)

    alone = sum(picture.folder is None for picture in pictures)
    if args.gif and alone:
        of_all = f"{alone} of {len(pictures)} images"
        print(
            f"note: --gif makes a GIF of each folder; {of_all} were given as files and are in no GIF", file=sys.stderr
        )

    # PyTorch takes seconds: a mistake in the arguments is said before.
    from afa.data.inputs import CLASS_LABELS, Inputs
    from afa.data.labels import read_labels
    from afa.data.map_files import StoredForm
    from afa.methods.base import label_output
    from afa.prediction.inference import Inference
    from afa.prediction.model import build_crf, load

    model = load(args.checkpoint, config=args.config, device=args.device, overrides=settings)
    labels = None if args.labels is None else read_labels(args.labels, model.class_names)
    inputs = _given_inputs(model, settings)
    crf = build_crf(model.config.test, args.crf_negligible) if args.crf else None
    predictor = model.predictor(crf, [*inputs, *([] if labels is None else [CLASS_LABELS])])
    kinds = args.pseudo_labels or []
    if args.pseudo_labels is None and labels is not None:
        kinds = [output.name.removesuffix("_label") for output in predictor.outputs if output.kind == "label"][-1:]
    pseudo_labels = {}
    for kind in kinds:
        output = label_output(model.method, kind)
        if output is None:
            offered = ", ".join(output.name for output in predictor.outputs if output.kind != "affinity")
            raise UserError(f"--pseudo-labels {kind}: the method '{model.method.name}' offers {offered}")
        predictor.require(output.name)
        pseudo_labels[kind] = output.name
    maps = [output.name for output in predictor.outputs if output.kind == "maps" and not output.logits]
    wanted = results.WantedResults(
        maps=maps[0] if maps and (args.cams or args.overlays) else None,
        write_maps=args.cams,
        maps_form=StoredForm(args.maps_size, args.maps_bits),
        overlays=args.overlays,
        pseudo_labels=pseudo_labels,
        gif=args.gif,
        frames_per_second=args.fps,
        upright=labels is None and not inputs if args.exif is None else args.exif,
    )
    read = Inputs(model.config.dataset, inputs, model.class_names) if inputs else None
    work = Inference(predictor, args.output, wanted, labels, read)
    failed = work.run(pictures)
    left_out = f", {work.left_out} without labels left out" if work.left_out else ""
    place = one_line(str(args.output))
    print(f"{len(pictures)} images: {len(work.done)} done, {failed} failed{left_out}; saved to {place}")
    if passed_over:
        print(f"skipped, because they are not readable images: {describe_files(passed_over)}")
    for message in work.failures:
        print(f"  failed: {message}", file=sys.stderr)
    return 1 if failed else 0


def _given_inputs(model: Model, settings: Sequence[str]) -> list[str]:
    """The inputs that outputs need and whose folders are named in this call: those of the training are of others."""
    from afa.data.inputs import is_named, setting_of

    named = {setting.partition("=")[0].strip() for setting in settings}
    wanted = sorted({name for output in model.method.outputs for name in output.inputs})
    return [name for name in wanted if f"dataset.{setting_of(name)}" in named and is_named(model.config.dataset, name)]
