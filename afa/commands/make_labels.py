"""Make image-level labels for own data, from masks or from the names of folders.

    afa prepare labels --masks data/mine/masks --output data/mine/class_labels.json
afa prepare labels --folders data/mine/images --output data/mine/class_labels.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from afa.commands.arguments import CommandParser, add_workers_argument, check_workers, one_output
from afa.config.settings import MAX_PIXELS
from afa.data.files import require_writable
from afa.errors import UserError
from afa.paths import expand_home


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, write the file, say what came of it."""
    parser = CommandParser(__doc__)
    parser.add_argument("earlier_output", nargs="?", type=expand_home, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=expand_home, metavar="FILE", help="labels file to write: .json or .csv")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--masks", type=expand_home, help="folder of masks: an image has the classes that its mask shows"
    )
    source.add_argument(
        "--folders", type=expand_home, help="folder of images in sub-folders: the sub-folder's name is the class"
    )
    parser.add_argument(
        "--class-names",
        type=expand_home,
        help="file with one class name per line (default: classes.txt beside --output)",
    )
    parser.add_argument(
        "--mask-palette", type=expand_home, metavar="FILE", help="colours of the classes, where masks are colour images"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="refuse larger masks (default: %(default)s)"
    )
    parser.add_argument("--ignore-index", type=int, default=255, help="mask value of no class (default: %(default)s)")
    add_workers_argument(parser)
    args = parser.read(arguments)
    check_workers(args)
    output = one_output(args.output, args.earlier_output, parser, "FILE")
    if args.max_pixels < 1:
        raise UserError(f"--max-pixels {args.max_pixels}: at least 1 is needed")
    require_writable(Path(output), "--output")
    from afa.data.make_labels import write_label_file

    count, names = write_label_file(
        output,
        masks=args.masks,
        folders=args.folders,
        class_names=args.class_names,
        ignore_index=args.ignore_index,
        mask_palette=args.mask_palette,
        max_pixels=args.max_pixels,
        workers=args.workers,
    )
    print(f"{output}: {count} images, {len(names)} classes")
    return 0
