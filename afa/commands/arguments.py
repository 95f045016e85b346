"""What the tools that predict share: their arguments. Imports no PyTorch, which takes seconds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from afa.data.parallel import usable_cores
from afa.errors import UserError
from afa.paths import expand_home


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint and what concerns prediction."""
    parser.add_argument(
        "checkpoint", type=expand_home, metavar="CHECKPOINT", help="a run's output folder, a checkpoint or its weights"
    )
    parser.add_argument(
        "--config", type=expand_home, metavar="FILE", help="configuration instead of the one that came with the weights"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--scales", nargs="+", metavar="S", help="scales of the segmentation; default: test.scales")
    parser.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, help="average with the mirror image; default: test.mirror"
    )
    parser.add_argument(
        "--long-side", type=int, metavar="N", help="resize to this long side first, 0: native; default: test.long_side"
    )


def add_batch_argument(parser: argparse.ArgumentParser) -> None:
    """Add how many images run together, for tools that look at many."""
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images of one size that run together, for a GPU; default: test.batch_size",
    )


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which images of a list are read, and by how many processes."""
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images of the list only")
    parser.add_argument(
        "--workers", type=int, default=min(4, usable_cores()), help="loader processes (default: %(default)s)"
    )


def check_loading(args: argparse.Namespace) -> None:
    """Refuse numbers that make no sense.

    Raises:
        UserError: No image is left, or there are less than no processes.
    """
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: at least 1 image is needed")
    if args.workers < 0:
        raise UserError(f"--workers {args.workers} is below 0")


def add_map_arguments(parser: argparse.ArgumentParser, *, size: int, bits: int) -> None:
    """Add how maps are stored.

    Args:
        parser: Of the command.
        size, bits: What is stored unless something else is asked for.
    """
    default = f"{size}" if size else "as the method gives them"
    parser.add_argument(
        "--maps-size",
        type=int,
        default=size,
        metavar="N",
        help=f"shrink larger maps to this long side, 0: as they are (default: {default})",
    )
    parser.add_argument(
        "--maps-bits",
        type=int,
        default=bits,
        choices=(8, bits),
        help="bits of a score: 8 are small and for looking, no threshold should meet them (default: %(default)s)",
    )


def check_map_arguments(args: argparse.Namespace) -> None:
    """Refuse sizes that make no sense.

    Raises:
        UserError: The size is negative.
    """
    if args.maps_size < 0:
        raise UserError(f"--maps-size {args.maps_size}: give a long side in pixels, or 0")


def add_crf_arguments(parser: argparse.ArgumentParser) -> None:
    """Add DenseCRF."""
    parser.add_argument("--crf", action="store_true", help="refine the segmentation with DenseCRF")
    parser.add_argument(
        "--crf-negligible",
        type=float,
        metavar="P",
        help="DenseCRF: join the classes whose probability stays below P everywhere; faster with many classes",
    )


def split_scales(args: argparse.Namespace) -> list[str]:
    """Keep the numbers in ``args.scales`` and return what else came after ``--scales``: it was meant for elsewhere."""
    others = [text for text in args.scales or [] if not _is_number(text)]
    if args.scales is not None:
        args.scales = [text for text in args.scales if _is_number(text)]
        if not args.scales:
            raise UserError("--scales needs numbers, for example --scales 1 0.5 0.75")
    return others


def split_names(names: Sequence[str] | None) -> tuple[list[str] | None, list[str]]:
    """Names that followed an option such as ``--outputs``, and the settings key=value that came after them."""
    if names is None:
        return None, []
    return [name for name in names if "=" not in name], [name for name in names if "=" in name]


def prediction_overrides(args: argparse.Namespace) -> list[str]:
    """The ``test`` settings among the arguments as overrides, after :func:`split_scales`."""
    overrides = []
    if args.scales is not None:
        overrides.append(f"test.scales=[{', '.join(args.scales)}]")
    if args.flip is not None:
        overrides.append(f"test.mirror={str(args.flip).lower()}")
    if args.long_side is not None:
        overrides.append(f"test.long_side={args.long_side}")
    if getattr(args, "batch_size", None) is not None:  # not every tool takes it
        overrides.append(f"test.batch_size={args.batch_size}")
    return overrides


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
