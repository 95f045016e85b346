"""Make saliency maps for images that have none: grey images NAME.png, which dataset.saliency names.

    afa prepare saliency photos/ cat.jpg --output saliency
    afa prepare saliency --config voc --split train_aug --output saliency dataset.root=data/VOC2012
    afa prepare saliency photos/ --output saliency --network vit_s_focus.onnx

Without a network they are made by minimum barrier distance (Zhang et al., ICCV 2015), which finds objects that differ
in colour from a simple background, and little else: docs/data.md has scores, and names a network that you can download.
After a kill, the same command makes the missing maps. Exit code 1 if an image could not be read; all others are done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from afa.commands.arguments import CommandParser, add_workers_argument, check_workers
from afa.config.settings import MAX_PIXELS
from afa.data.files import require_writable
from afa.errors import UserError, one_line
from afa.paths import expand_home, given_path
from afa.prediction.images import describe_files, find_pictures


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, make the maps, say what came of it."""
    parser = CommandParser(__doc__, settings=True)
    parser.add_argument(
        "images",
        nargs="*",
        default=[],
        metavar="IMAGE_OR_FOLDER",
        help="image files; folders, with all below them",
    )
    parser.add_argument("--output", type=given_path, required=True, metavar="FOLDER", help="folder of the maps")
    parser.add_argument(
        "--config",
        type=expand_home,
        metavar="FILE",
        help="configuration (a YAML file or a recipe) whose data set's images are taken",
    )
    parser.add_argument("--split", help="list of images of that data set; default: dataset.train_split")
    parser.add_argument(
        "--network", type=given_path, metavar="FILE", help="network for salient objects (ONNX); needs onnxruntime"
    )
    add_workers_argument(parser)
    args = parser.read(arguments)
    check_workers(args)
    if args.split is not None and args.config is None:
        raise UserError("--split belongs to --config")
    if args.settings and args.config is None:
        raise UserError(f"'{args.settings[0]}': settings belong to --config, and there is no file of that name")
    if args.images and args.config is not None:
        raise UserError(f"'{args.images[0]}': with --config the images are those of its data set; leave it out")
    if args.config is None and not args.images:
        raise UserError("no image was named: give image files or folders, or --config FILE")
    require_writable(args.output, "--output", folder=True)

    images, passed_over, max_pixels = _images(args)
    from afa.prediction.saliency import make_saliency

    made = make_saliency(images, args.output, network=args.network, max_pixels=max_pixels, workers=args.workers)
    counts = f"{len(images)} images: {made.written} maps made, {made.there} there already, {len(made.failures)} failed"
    print(f"{counts}; in {one_line(str(args.output))}")
    if passed_over:
        print(f"skipped, because they are not readable images: {describe_files(passed_over)}")
    for failure in made.failures:
        print(f"  failed: {failure}", file=sys.stderr)
    return 1 if made.failures else 0


def _images(args: argparse.Namespace) -> tuple[dict[str, Path], list[Path], int]:
    """Name -> file, what is passed over, and how many pixels an image may have."""
    if args.config is None:
        found = find_pictures([given_path(text) for text in args.images], without=args.output)
        return {picture.name: picture.path for picture in found.pictures}, found.passed_over, MAX_PIXELS
    from afa.data.layout import find_layout
    from afa.methods import load_config

    dataset = load_config(args.config, args.settings).dataset
    layout, split = find_layout(dataset), args.split or dataset.train_split
    return {name: layout.image(name, split) for name in layout.names(split)}, [], dataset.max_pixels
