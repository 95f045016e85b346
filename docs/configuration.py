#!/usr/bin/env python
"""Print the tables of docs/configuration.md, made from the settings themselves: docs/configuration.py [--write]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from afa.config.page import settings_page
from afa.data.files import replacing
from afa.errors import UserError, run_command
from afa.methods import OWN_METHODS, config_class

DOCUMENT = Path(__file__).resolve().with_suffix(".md")
BEGIN = "<!-- settings: what follows is written by python docs/configuration.py --write -->\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, print the tables or write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write them into {DOCUMENT.name} instead")
    args = parser.parse_args(arguments)
    page = settings_page({name: config_class(name) for name in OWN_METHODS})
    if not args.write:
        print(page, end="")
        return 0
    introduction, begin, _ = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    if not begin:
        raise UserError(f"{DOCUMENT} lacks the line {BEGIN.strip()}")
    with replacing(DOCUMENT) as beside:
        beside.write_text(f"{introduction}{BEGIN}\n{page}", encoding="utf-8")
    print(f"saved to {DOCUMENT}")
    return 0


if __name__ == "__main__":
    run_command(main)
