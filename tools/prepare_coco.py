"""Prepare COCO 2014: python tools/prepare_coco.py data/COCO2014"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from afa.data.manifest import describe_counts
from afa.data.parallel import usable_cores
from afa.data.prepare_coco import CROWD_CHOICES, prepare_coco
from afa.errors import run_command
from afa.paths import expand_home


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, prepare, say what came of it."""
    parser = argparse.ArgumentParser(
        description="Build masks, lists and image-level labels from COCO's annotations. "
        "Interrupted, it goes on when started again."
    )
    parser.add_argument("root", type=expand_home, help="folder with annotations/, train2014/ and val2014/")
    parser.add_argument(
        "--crowd",
        choices=CROWD_CHOICES,
        default=CROWD_CHOICES[0],
        help="crowd regions, always beneath other objects: their class, or ignored (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: all usable cores)")
    args = parser.parse_args(arguments)
    prepared = prepare_coco(args.root, crowd=args.crowd, workers=args.workers)
    print("\n".join([*describe_counts("coco", prepared.counts), *prepared.notes]))
    print(f"ready: dataset.type=coco dataset.root={prepared.root}")


if __name__ == "__main__":
    run_command(main)
