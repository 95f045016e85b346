"""Prepare COCO 2014: build masks, lists and image-level labels from its annotations.

    afa prepare coco data/COCO2014

After an interruption, start it again: it continues.
"""

from __future__ import annotations

from collections.abc import Sequence

from afa.commands.arguments import CommandParser, add_workers_argument, check_workers
from afa.data.manifest import CROWD_CHOICES, describe_counts
from afa.paths import expand_home


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, prepare, say what came of it."""
    parser = CommandParser(__doc__)
    parser.add_argument(
        "root", type=expand_home, metavar="ROOT", help="folder with annotations/, train2014/ and val2014/"
    )
    parser.add_argument(
        "--crowd",
        choices=CROWD_CHOICES,
        default=CROWD_CHOICES[0],
        help="crowd regions, always beneath other objects: their class, or ignored (default: %(default)s)",
    )
    add_workers_argument(parser)
    args = parser.read(arguments)
    check_workers(args)
    from afa.data.prepare_coco import prepare_coco

    prepared = prepare_coco(args.root, crowd=args.crowd, workers=args.workers)
    print("\n".join([*describe_counts("coco", prepared.counts), *prepared.notes]))
    print(f"ready: dataset.type=coco dataset.root={prepared.root}")
    return 0
