"""Prepare data: known data sets, and labels or saliency maps for your own images."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from afa.commands.main import run_one
from afa.commands.table import PREPARATIONS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the preparation that the first argument names."""
    return run_one(PREPARATIONS, list(sys.argv[1:] if arguments is None else arguments), str(__doc__))
