"""Prepare PASCAL VOC 2012 with SBD's masks: python tools/prepare_voc.py data/VOC2012 [--download]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from afa.data.manifest import describe_counts
from afa.data.parallel import usable_cores
from afa.data.prepare_voc import LABEL_SOURCES, prepare_voc
from afa.errors import run_command
from afa.paths import expand_home


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, prepare, say what came of it."""
    parser = argparse.ArgumentParser(
        description="Build SegmentationClassAug, lists and image-level labels from VOC 2012 and SBD. "
        "Interrupted, it goes on when started again."
    )
    parser.add_argument("root", type=expand_home, help="folder with VOC 2012: unpacked, or the archives of VOC and SBD")
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
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: all usable cores)")
    args = parser.parse_args(arguments)
    prepared = prepare_voc(
        args.root,
        download=args.download,
        sbd=args.sbd,
        labels_from=args.labels_from,
        workers=args.workers,
    )
    print("\n".join([*describe_counts("voc", prepared.counts), *prepared.notes]))
    print(f"ready: dataset.root={prepared.root}")


if __name__ == "__main__":
    run_command(main)
