"""Prepare PASCAL VOC 2012: build SegmentationClassAug, lists and image-level labels from VOC 2012 and SBD.

    afa prepare voc data/VOC2012 --download

After an interruption, start it again: it continues.
"""

from __future__ import annotations

from collections.abc import Sequence

from afa.commands.arguments import CommandParser, add_workers_argument, check_workers
from afa.data.manifest import LABEL_SOURCES, describe_counts
from afa.paths import expand_home


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, prepare, say what came of it."""
    parser = CommandParser(__doc__)
    parser.add_argument(
        "root", type=expand_home, metavar="ROOT", help="folder with VOC 2012: unpacked, or the archives of VOC and SBD"
    )
    parser.add_argument("--download", action="store_true", help="fetch what is missing")
    parser.add_argument(
        "--sbd", type=expand_home, help="SBD's archive or folder, where it is not in ROOT; or a folder of PNG masks"
    )
    parser.add_argument(
        "--labels-from",
        choices=LABEL_SOURCES,
        default=LABEL_SOURCES[0],
        help="image-level labels: classes of the masks, or of the boxes in Annotations (default: %(default)s)",
    )
    add_workers_argument(parser)
    args = parser.read(arguments)
    check_workers(args)
    from afa.data.prepare_voc import prepare_voc

    prepared = prepare_voc(
        args.root,
        download=args.download,
        sbd=args.sbd,
        labels_from=args.labels_from,
        workers=args.workers,
    )
    print("\n".join([*describe_counts("voc", prepared.counts), *prepared.notes]))
    print(f"ready: dataset.root={prepared.root}")
    return 0
