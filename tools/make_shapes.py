"""Make the embedded data set: python tools/make_shapes.py data/shapes"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from afa.data.parallel import usable_cores
from afa.data.shapes import ShapesStyle, make_shapes
from afa.errors import run_command
from afa.paths import expand_home


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments and make the data set."""
    parser = argparse.ArgumentParser(description="Make the small data set of the demonstration, in VOC layout.")
    parser.add_argument("root", type=expand_home, help="folder of the data set")
    parser.add_argument("--train", type=int, default=2000, help="number of training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=200, help="number of validation images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: all usable cores)")
    args = parser.parse_args(arguments)
    root = make_shapes(
        args.root,
        train=args.train,
        val=args.val,
        seed=args.seed,
        style=ShapesStyle(size=args.size),
        workers=args.workers,
    )
    print(f"the data set lies in {root}")


if __name__ == "__main__":
    run_command(main)
