"""Make saliency maps for images that have none: grey images NAME.png, which dataset.saliency names.

    tools/make_saliency.py photos/ cat.jpg --output saliency
    tools/make_saliency.py --config configs/voc.yaml --split train_aug --output saliency dataset.root=data/VOC2012
    tools/make_saliency.py photos/ --output saliency --network vit_s_focus.onnx

Without a network they are made by minimum barrier distance (Zhang et al., ICCV 2015), which finds objects that differ
in colour from a simple background, and little else: docs/data.md has figures, and a network that can be had. Killed and
started again, the same command does what is missing. Exit code 1 if an image could not be read; the others are done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from afa.config.settings import MAX_PIXELS
from afa.data.files import require_writable
from afa.data.parallel import usable_cores
from afa.errors import UserError, one_line
from afa.paths import expand_home, given_path
from afa.prediction.images import describe_files, find_pictures


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, make the maps, say what came of it."""
    parser = argparse.ArgumentParser(
        prog="make_saliency.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE_OR_FOLDER",
        help="folders with sub-folders; with --config: settings key=value, such as dataset.root=data/mine",
    )
    parser.add_argument("--output", type=given_path, required=True, metavar="FOLDER", help="folder of the maps")
    parser.add_argument(
        "--config", type=expand_home, metavar="FILE", help="configuration (YAML) whose data set's images are taken"
    )
    parser.add_argument("--split", help="list of images of that data set; default: dataset.train_split")
    parser.add_argument(
        "--network", type=given_path, metavar="FILE", help="network for salient objects (ONNX); needs onnxruntime"
    )
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: all usable cores)")
    args = parser.parse_intermixed_args(arguments)
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: at least 1 is needed")
    if args.split is not None and args.config is None:
        raise UserError("--split belongs to --config")
    if args.config is None and not args.images:
        raise UserError("no image was named: give image files or folders, or --config FILE")
    require_writable(args.output, "--output", folder=True)

    images, passed_over, max_pixels = _images(args)
    from afa.prediction.saliency import make_saliency

    made = make_saliency(images, args.output, network=args.network, max_pixels=max_pixels, workers=args.workers)
    counts = f"{len(images)} images: {made.written} maps made, {made.there} there already, {len(made.failures)} failed"
    print(f"{counts}; in {one_line(str(args.output))}")
    if passed_over:
        print(f"passed over, as no images that can be read: {describe_files(passed_over)}")
    for failure in made.failures:
        print(f"  failed: {failure}", file=sys.stderr)
    return 1 if made.failures else 0


def _images(args: argparse.Namespace) -> tuple[dict[str, Path], list[Path], int]:
    """Name -> file, what is passed over, and how many pixels an image may have."""
    if args.config is None:
        found = find_pictures([given_path(text) for text in args.images], without=args.output)
        return {picture.name: picture.path for picture in found.pictures}, found.passed_over, MAX_PIXELS
    files = [text for text in args.images if "=" not in text]
    if files:
        raise UserError(f"'{files[0]}': with --config the images are those of its data set; leave it out")
    from afa.data.layout import find_layout
    from afa.methods import load_config

    dataset = load_config(args.config, args.images).dataset
    layout, split = find_layout(dataset), args.split or dataset.train_split
    return {name: layout.image(name, split) for name in layout.names(split)}, [], dataset.max_pixels
