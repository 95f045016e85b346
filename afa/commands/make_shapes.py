"""Make the small built-in data set of the demonstration, in VOC layout: afa prepare shapes --output data/shapes"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from afa.commands.arguments import CommandParser, add_workers_argument, check_workers, one_output
from afa.paths import expand_home


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments and make the data set."""
    parser = CommandParser(__doc__)
    parser.add_argument("earlier_output", nargs="?", type=expand_home, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=expand_home, metavar="FOLDER", help="folder of the data set")
    parser.add_argument("--train", type=int, default=2000, help="number of training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=200, help="number of validation images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images (default: %(default)s)")
    add_workers_argument(parser)
    args = parser.read(arguments)
    check_workers(args)
    output = one_output(args.output, args.earlier_output, parser, "FOLDER")
    from afa.data.shapes import ShapesStyle, make_shapes

    root = make_shapes(
        output,
        train=args.train,
        val=args.val,
        seed=args.seed,
        style=ShapesStyle(size=args.size),
        workers=args.workers,
    )
    print(f"the data set is in {root}")
    return 0
