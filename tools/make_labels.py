"""Make image-level labels for own data.

python tools/make_labels.py data/mine/class_labels.json --masks data/mine/masks
python tools/make_labels.py data/mine/class_labels.csv --folders data/mine/images
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from afa.config.settings import MAX_PIXELS
from afa.data.files import require_writable
from afa.data.make_labels import write_label_file
from afa.data.parallel import usable_cores
from afa.errors import UserError, run_command
from afa.paths import expand_home


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, write the file, say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=expand_home, metavar="OUTPUT", help="labels file to write: .json or .csv")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--masks", type=expand_home, help="folder of masks: an image has the classes that its mask shows"
    )
    source.add_argument(
        "--folders", type=expand_home, help="folder of images in sub-folders: the sub-folder's name is the class"
    )
    parser.add_argument(
        "--class-names", type=expand_home, help="file with one class name per line (default: classes.txt beside OUTPUT)"
    )
    parser.add_argument(
        "--mask-palette", type=expand_home, metavar="FILE", help="colours of the classes, where masks are colour images"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="refuse larger masks (default: %(default)s)"
    )
    parser.add_argument("--ignore-index", type=int, default=255, help="mask value of no class (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: all usable cores)")
    args = parser.parse_args(arguments)
    if args.max_pixels < 1:
        raise UserError(f"--max-pixels {args.max_pixels}: at least 1 is needed")
    require_writable(Path(args.output), "OUTPUT")
    count, names = write_label_file(
        args.output,
        masks=args.masks,
        folders=args.folders,
        class_names=args.class_names,
        ignore_index=args.ignore_index,
        mask_palette=args.mask_palette,
        max_pixels=args.max_pixels,
        workers=args.workers,
    )
    print(f"{args.output}: {count} images, {len(names)} classes")


if __name__ == "__main__":
    run_command(main)
